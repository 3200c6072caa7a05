"""What the task commands share: environments, controller weights, planner files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from envs.tasks.catalog import make_task
from envs.tasks.hierarchy import Hierarchy, HierarchyConfig, PlannerParams
from rdp_jax.config import ConfigError
from rdp_jax.planner import Planner, load
from train.controller import act, load_part
from train.task_args import TaskFlags


def make_env(args: TaskFlags, history: int = 8) -> Hierarchy:
    """The planner's environment of `args.task`."""
    return Hierarchy(make_task(args.task), act, HierarchyConfig(args.backend, args.physics_dt, history))


def make_params(args: TaskFlags, env: Hierarchy) -> PlannerParams:
    """Its parameters: shipped or given controller, starts of the given range."""
    params = env.default_params({"legs": load_part("legs", args.legs), "hands": load_part("hands", args.hands)})
    start = params.control.world.replace(scale=jnp.float32(args.start_range))
    return params.replace(control=params.control.replace(world=start))


def shipped(task: str, which: str) -> Path:
    """Planner file that comes with the package; `which` is `pretrained` or `finetuned`."""
    return Path(str(resources.files("rdp_jax") / "assets" / f"{task}_{which}.safetensors"))


def find_planner(run: Path | None, task: str, which: str = "finetuned") -> Planner:
    """The planner of a run directory, of a file, or the shipped one (`pretrained` where there is no fine-tuned one).

    Raises `ConfigError` or `CheckpointError`.
    """
    if run is not None:
        path = run / "planner.safetensors" if run.is_dir() else run
        if not path.is_file():
            raise ConfigError("run", str(run), "a planner file, or a run directory with planner.safetensors")
    else:
        path = shipped(task, which)
        if which == "finetuned" and not path.is_file():
            path = shipped(task, "pretrained")
        if not path.is_file():
            raise ConfigError("task", task, "a task with shipped weights; name your own planner")
    planner = load(path)
    made_for = planner.metadata.get("task")
    if made_for != task:
        raise ConfigError("task", task, f"{made_for!r}, which the planner {path.name} was made for")
    return planner


def check_fits(planner: Planner, env: Any) -> None:
    """Raises `ConfigError` if the planner's widths are not the environment's."""
    wanted, found = env.spec.obs_dims["actor"], planner.config.history * planner.dims.frame
    if wanted != found:
        raise ConfigError("planner", found, f"observations of width {wanted} ({env.task.name})")
