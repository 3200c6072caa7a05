"""A directory of demonstrations: recorded episodes become one file, filled in one call or, by its own recipe, in several."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.physics import resolve
from envs.tasks.catalog import make_task
from envs.tasks.command import ACTION_LAYOUT
from envs.tasks.hierarchy import Hierarchy
from rdp_jax.checkpoint import fingerprint
from rdp_jax.config import ConfigError, difference
from rdp_jax.data import episodes as E
from rdp_jax.runs import LOCK, claim, provenance
from train.rollouts import Played
from train.task_args import TaskFlags
from train.tasks import load_controller

FILE = "episodes.safetensors"
FLAGS = {"at_once": "num_envs"}
"""Of entries of a recipe, where they have another name."""


def from_played(
    env: Hierarchy, played: Played, index: np.ndarray, recipe: Mapping[str, Any], **entries: Any
) -> E.Episodes | None:
    """Episodes `index` of recorded ones; None if there are none.

    Args:
      env: where they were played.
      played: with frames, actions and qpos.
      index: `(K,)` numbers within `played`.
      recipe: how they came about; a directory holds episodes of one recipe.
      entries: more metadata.
    """
    if not len(index):
        return None
    assert played.frames is not None and played.actions is not None and played.qpos is not None
    steps = played.steps[index]

    def cut(track):
        return [track[:n, i] for i, n in zip(index, steps)]

    won = played.success[index]
    reward = [win * np.eye(1, n, n - 1, dtype=np.float32)[0] for n, win in zip(steps, won)]
    metadata = {
        "task": recipe.get("task", env.task.name),
        "recipe": dict(recipe),
        "observations": list(env.frame_layout.items()),
        "actions": list(ACTION_LAYOUT.items()),
        "control_dt": env.spec.control_dt,
        **entries,
        **provenance(),
    }
    return E.from_lists(
        cut(played.frames),
        cut(played.actions),
        reward,
        won.tolist(),
        played.seed[index].tolist(),
        {"qpos": cut(played.qpos)},
        metadata,
    )


def noted(episodes: E.Episodes, **entries: Any) -> E.Episodes:
    """The same episodes with more metadata."""
    return dataclasses.replace(episodes, metadata={**episodes.metadata, **entries})


def held(out: Path, resume: bool) -> E.Episodes | None:
    """What a directory holds already, None if nothing.  Raises `ConfigError` unless it may be used, and `DataError`."""
    if not (out / FILE).exists():
        return None
    if not resume:
        raise ConfigError("out", str(out), "a directory without demonstrations, or --resume")
    return E.load(out / FILE)


@contextlib.contextmanager
def taken(out: Path) -> Iterator[None]:
    """Within it the directory is this process's alone; made for it and left empty it goes again.  Raises `RunError`."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = claim(out)
    try:
        yield
    finally:
        if [found.name for found in out.iterdir()] == [LOCK]:
            (out / LOCK).unlink()
            with contextlib.suppress(OSError):
                if made:
                    out.rmdir()
        lock.close()


def made_with(args: TaskFlags) -> dict[str, Any]:
    """What of a recipe flags alone do not tell: the backend that `auto` is here, and fingerprints of the controller, whose files
    may move.  Raises `ConfigError`."""
    controller = load_controller(args, make_task(args.task).scene)
    weights = {part: fingerprint(policy) for part, policy in controller.items()}
    return {"backend": resolve(args.backend), "weights": weights}


def recipe_of(episodes: E.Episodes) -> Mapping[str, Any]:
    """How a directory's episodes were made; empty where they do not say."""
    found = episodes.metadata.get("recipe")
    return found if isinstance(found, Mapping) else {}


def check_recipe(out: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises `ConfigError`, which names the flag and both values, if a directory's episodes were made by another recipe."""
    found = difference(dict(ours), dict(theirs))
    if found is None:
        return
    name, now, then = found
    if now is None or then is None:  # one of the two knows nothing of it: no flag is to blame
        raise ConfigError(
            "resume", str(out), f"demonstrations of the same recipe; theirs has {name}={then!r}, now {now!r}"
        )
    kind = "weights with fingerprint " if name.startswith("weights.") else ""
    allowed = f"{kind}{then!r}, as the recipe of the demonstrations in {out} says"
    raise ConfigError(FLAGS.get(name, name.rpartition(".")[2]), now, allowed)
