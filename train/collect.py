"""`rdp collect`: demonstrations of the heuristic expert."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.tasks.catalog import make_expert
from envs.tasks.command import ACTION_LAYOUT
from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from rdp_jax.runs import git_revision, versions
from train import output
from train.medium import record_medium
from train.names import GYM_TASKS
from train.rollouts import ExpertPlayer, Played, Theatre
from train.task_args import CollectArgs
from train.tasks import HumanoidStage

STREAM = 0xDE30
FILE = "episodes.safetensors"


def run_collect(args: CollectArgs) -> dict[str, Any]:
    """Plays batches until enough have succeeded; what is kept is saved after every batch.

    A directory that is filled in several calls ends up with the episodes that one call would have kept.
    """
    start = time.monotonic()
    assert args.out is not None
    path = args.out / FILE
    if args.task in GYM_TASKS:
        return _collect_medium(args, path, start)
    kept, tried, won = _previous(args, path)
    stage = HumanoidStage(args)
    env, params = stage.env, stage.params
    theatre = Theatre(env, ExpertPlayer(make_expert(args.task, env)), record=True)
    at_once = args.num_envs or min(256, max(args.episodes, 8))
    key = jax.random.fold_in(jax.random.key(args.seed), STREAM)
    steps, whole = 0, None
    with output.Progress(f"collect {args.task}", total=args.episodes) as bar:
        while kept is None or len(kept) < args.episodes:
            whole = {"kept": len(kept) if kept else 0, "tried": tried, "won": won}
            played = theatre.play(key, np.arange(tried, tried + at_once), params)
            tried, won = tried + at_once, won + int(played.success.sum())
            steps += int(played.steps.sum())
            if tried >= 10 * at_once and won < 0.01 * tried:
                raise RuntimeError(f"the expert won {won} of {tried} episodes; nothing to learn from")
            fresh = _episodes(args, env, played, tried, won)
            if fresh is not None:
                kept = fresh if kept is None else E.concatenate([kept, fresh])
                # The counts of all batches so far belong to the whole file.
                kept = _noted(kept, tried=tried, won=won, whole=None)
                E.save(path, kept, overwrite=True)
            bar.update(min(len(kept) if kept else 0, args.episodes), steps, f"success {won / tried:.2f}")
    if whole is not None and len(kept) > args.episodes:
        # The last batch is cut short here, and played again by whoever wants more.
        kept = _noted(E.take(kept, np.arange(args.episodes)), whole=whole)
        E.save(path, kept, overwrite=True)
    metrics = {
        "episodes": tried,
        "kept": len(kept),
        "expert_success_rate": won / tried,
        "expert_success_ci95": list(output.wilson(won, tried)),
        **{k: v for k, v in E.summary(kept).items() if k in ("steps", "mean_length")},
    }
    return output.summary(
        "collect",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=at_once,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=steps,
    )


def _noted(episodes: E.Episodes, **entries: Any) -> E.Episodes:
    return dataclasses.replace(episodes, metadata={**episodes.metadata, **entries})


def _collect_medium(args: CollectArgs, path: Path, start: float) -> dict[str, Any]:
    """Episodes of a gym task; see `train.medium`."""
    if path.exists():
        raise ConfigError("out", str(args.out), "a directory without demonstrations")
    kept, metrics, env = record_medium(args)
    E.save(path, kept)
    found = E.summary(kept)
    return output.summary(
        "collect",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=args.num_envs or 64,
        wall_s=time.monotonic() - start,
        metrics={"kept": len(kept), "expert_success_rate": None, **found, **metrics},
        task=args.task,
        env_steps=metrics["ppo_env_steps"] + found["steps"],
    )


def _recipe(args: CollectArgs) -> dict[str, Any]:
    return {
        "task": args.task,
        "seed": args.seed,
        "start_range": args.start_range,
        "physics_dt": args.physics_dt,
        "at_once": args.num_envs or min(256, max(args.episodes, 8)),
    }


def _previous(args: CollectArgs, path: Any) -> tuple[E.Episodes | None, int, int]:
    """What a directory holds already.  Raises `ConfigError` unless it may be used."""
    if not path.exists():
        return None, 0, 0
    if not args.resume:
        raise ConfigError("out", str(args.out), "a directory without demonstrations, or --resume")
    kept = E.load(path)
    theirs, ours = kept.metadata.get("recipe"), _recipe(args)
    if theirs != ours:
        raise ConfigError("resume", str(args.out), f"the recipe of its demonstrations, {theirs}; now {ours}")
    whole = kept.metadata.get("whole")
    if whole is None or len(kept) >= args.episodes:
        return kept, int(kept.metadata["tried"]), int(kept.metadata["won"])
    return E.take(kept, np.arange(whole["kept"])) if whole["kept"] else None, int(whole["tried"]), int(whole["won"])


def _episodes(args: CollectArgs, env: Any, played: Played, tried: int, won: int) -> E.Episodes | None:
    """The successful episodes of a batch."""
    index = np.flatnonzero(played.success)
    if not len(index):
        return None
    assert played.frames is not None and played.actions is not None and played.qpos is not None
    steps = played.steps[index]

    def cut(track):
        return [track[:n, i] for i, n in zip(index, steps)]

    reward = [np.eye(1, n, n - 1, dtype=np.float32)[0] for n in steps]
    metadata = {
        "task": args.task,
        "recipe": _recipe(args),
        "observations": list(env.frame_layout.items()),
        "actions": list(ACTION_LAYOUT.items()),
        "control_dt": env.spec.control_dt,
        "tried": tried,
        "won": won,
        "versions": versions(),
        "git": git_revision(),
    }
    return E.from_lists(
        cut(played.frames),
        cut(played.actions),
        reward,
        [True] * len(index),
        played.seed[index].tolist(),
        {"qpos": cut(played.qpos)},
        metadata,
    )
