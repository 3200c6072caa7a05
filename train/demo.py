"""`rdp demo`: `rdp refine` with settings that show something within a quarter of an hour on two cores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rdp_jax.algos.joint import Schedule
from rdp_jax.config import validate
from rdp_jax.parallel import over_devices
from rdp_jax.runs import free_directory, write_json
from train.refine import run_refine
from train.task_args import DemoArgs, RefineArgs

FIRST_STD = 0.5  # of the first sample, see docs/refine.md
CHUNKS = 16  # per environment and iteration: one that has begun when the time is up is finished, and takes the less time for it


def refine_args(args: DemoArgs, out: Path) -> RefineArgs:
    """What the demo asks of `rdp refine`: two iterations of the controller, then the planner until the time is up."""
    defaults = RefineArgs.defaults("cpu")
    envs = args.num_envs or defaults.dppo.num_envs
    dppo = dataclasses.replace(defaults.dppo, unroll_length=CHUNKS)
    found = over_devices(
        dataclasses.replace(
            defaults,
            task=args.task,
            seed=args.seed,
            backend=args.backend,
            num_envs=envs,
            recorded=min(defaults.recorded, envs),
            out=out,
            minutes=args.minutes,
            trials=args.trials,
            first_std=FIRST_STD,
            dppo=dppo,
            schedule=Schedule(rounds=1, controller_iterations=2, planner_iterations=200, rehearsals=0),
        )
    )
    return validate(found.resolved())


def run_demo(args: DemoArgs) -> dict[str, Any]:
    """Runs it; the report is `report.html` in the run directory.  Raises `RunError` if `--out` is not empty."""
    out = free_directory(args.out, "demo")
    record = run_refine(refine_args(args, out), "demo")
    write_json(out / "summary.json", record)
    return record
