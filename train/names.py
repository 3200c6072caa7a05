"""Names of the tasks.  Loads nothing."""

T1_TASKS = ("pickup", "transport", "door", "stairs")
GYM_TASKS = ("hopper", "walker2d", "halfcheetah")
TASKS = (*T1_TASKS, *GYM_TASKS)
