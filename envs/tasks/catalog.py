"""Tasks and their experts by name; nothing is imported until it is asked for."""

from __future__ import annotations

import importlib
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


def _load(table: dict[str, str], name: str) -> Any:
    if name not in table:
        raise ConfigError("task", name, " | ".join(table))
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_task(name: str) -> Task:
    """The task of that name.  Raises `ConfigError` naming the known ones."""
    return _load(TASKS, name)()


def make_expert(name: str, env: Any) -> Any:
    """The heuristic expert of that task, for the `Hierarchy` environment `env`."""
    return _load(EXPERTS, name)(env)
