"""The run directory of a command that learns."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdp_jax.config import to_dict, without_paths
from rdp_jax.runs import Run

WATCHED = {"resume": False, "json": False, "tensorboard": False}
"""Flags of every such command that change nothing of what is learned, and what is recorded instead of what was given."""


def agreed(args: Any, **free: Any) -> dict[str, Any]:
    """What a run and its resumption must agree on: all flags but `free` ones (name: what is recorded instead) and paths."""
    found = to_dict(without_paths(dataclasses.replace(args, **WATCHED, **free)))
    del found["tensorboard"]  # runs that were begun before there was this flag go on, too
    return found


def open_run(args: Any, config: dict[str, Any]) -> Run | None:
    """The directory `--out` with this `config`; none where none was asked for.  Raises `RunError` as `Run` does."""
    if args.out is None:
        return None
    return Run(args.out, config, args.resume, tensorboard=args.tensorboard, asked=to_dict(args))
