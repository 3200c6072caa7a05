"""Tasks and their experts by name, ours and those of others; nothing is imported until it is asked for."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from envs.tasks.base import Task
from rdp_jax.config import ConfigError

TASKS: dict[str, str] = {
    "pickup": "envs.tasks.pickup:Pickup",
    "transport": "envs.tasks.transport:Transport",
    "door": "envs.tasks.door:Door",
    "stairs": "envs.tasks.stairs:Stairs",
}
EXPERTS: dict[str, str] = {
    "pickup": "envs.experts.pickup:PickupExpert",
    "transport": "envs.experts.transport:TransportExpert",
    "door": "envs.experts.door:DoorExpert",
    "stairs": "envs.experts.stairs:StairsExpert",
}


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_task(name: str) -> Task:
    """The task of that name, or the class `MODULE:CLASS` of somebody else's, in what is installed or in the working directory.

    Raises `ConfigError` naming the known ones, or what such a class lacks.
    """
    if name in TASKS:
        return _load(TASKS[name])()
    if ":" not in name:
        raise ConfigError("task", name, " | ".join([*TASKS, "MODULE:CLASS"]))
    if os.getcwd() not in sys.path:  # an installed script has its own directory there, and not this one
        sys.path.append(os.getcwd())
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError("task", name, f"a class that can be imported from {os.getcwd()} ({error})") from error
    made = getattr(found, attribute, None)
    if not isinstance(made, type):
        raise ConfigError("task", name, f"a class of the module {module!r}")
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise ConfigError("task", name, f"a class that is made without arguments ({error})") from error
    task: Task = made()
    wanted = [*Task.__annotations__, *(member for member in vars(Task) if not member.startswith("_"))]
    missing = [member for member in wanted if not hasattr(task, member)]
    if missing:
        raise ConfigError("task", name, f"a class with all that envs.tasks.base.Task has; no {', '.join(missing)}")
    return task


def make_expert(name: str, env: Any) -> Any:
    """The heuristic expert of that task, for the `Hierarchy` environment `env`; of somebody else's task, what its `expert` makes
    of the environment.  Raises `ConfigError` where there is none."""
    if name in EXPERTS:
        return _load(EXPERTS[name])(env)
    if not hasattr(env.task, "expert"):
        raise ConfigError("task", name, f"{' | '.join(EXPERTS)}, or a class with a method `expert`")
    return env.task.expert(env)
