"""Names of the tasks, and of a planner's file.  Loads nothing."""

T1_TASKS = ("pickup", "transport", "door", "stairs")
GYM_TASKS = ("hopper", "walker2d", "halfcheetah")
TASKS = (*T1_TASKS, *GYM_TASKS)
OUTSIDE = (r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "MODULE:CLASS")
"""How a task of the T1 is named that is not part of this project: pattern, and what to call it."""

HDF5 = (".hdf5", ".h5")  # of robomimic's data
PLANNER = "planner.safetensors"  # in a run directory


def of_t1(task: str) -> bool:
    """Whether it is one of the T1, ours or from elsewhere."""
    return task not in GYM_TASKS
