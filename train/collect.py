"""`rdp collect`: demonstrations of the heuristic expert."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.tasks.catalog import make_expert
from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from train import output
from train.demonstrations import FILE, check_recipe, from_played, held, made_with, noted, recipe_of, taken
from train.medium import record_medium
from train.names import GYM_TASKS
from train.rollouts import ClumsyPlayer, EpisodeRunner
from train.task_args import CollectArgs
from train.tasks import HumanoidStage

STREAM = 0xDE30


def run_collect(args: CollectArgs) -> dict[str, Any]:
    """Plays batches until enough have succeeded; what is kept is saved after every batch.

    A directory that is filled in several calls ends up with the episodes that one call would have kept.  Raises `RunError` where
    another process is filling it.
    """
    start = time.monotonic()
    assert args.out is not None
    path = args.out / FILE
    if args.task not in GYM_TASKS:
        _previous(args)  # refuses before a directory is made
    with taken(args.out):
        return _collect_medium(args, path, start) if args.task in GYM_TASKS else _collect(args, path, start)


def _collect(args: CollectArgs, path: Path, start: float) -> dict[str, Any]:
    recipe, kept, tried, won = _previous(args)
    stage = HumanoidStage(args)
    env, params = stage.env, stage.params
    runner = EpisodeRunner(env, ClumsyPlayer(make_expert(args.task, env), args.clumsiness), record=True)
    at_once = recipe["at_once"]
    key = jax.random.fold_in(jax.random.key(args.seed), STREAM)
    steps, whole = 0, None
    with output.Progress(f"collect {args.task}", total=args.episodes) as bar:
        while kept is None or len(kept) < args.episodes:
            whole = {"kept": len(kept) if kept else 0, "tried": tried, "won": won}
            played = runner.play(key, np.arange(tried, tried + at_once), params)
            tried, won = tried + at_once, won + int(played.success.sum())
            steps += int(played.steps.sum())
            if tried >= 10 * at_once and won < 0.01 * tried:
                raise output.Failed(f"the expert won {won} of {tried} episodes; nothing to learn from")
            fresh = from_played(env, played, np.flatnonzero(played.success), recipe, tried=tried, won=won)
            if fresh is not None:
                kept = fresh if kept is None else E.concatenate([kept, fresh])
                # The counts of all batches so far belong to the whole file.
                kept = noted(kept, tried=tried, won=won, whole=None)
                E.save(path, kept, overwrite=True)
            bar.update(min(len(kept) if kept else 0, args.episodes), steps, f"success {won / tried:.2f}")
    if whole is not None and len(kept) > args.episodes:
        # The last batch is cut short here, and played again by whoever wants more.
        kept = noted(E.take(kept, np.arange(args.episodes)), whole=whole)
        E.save(path, kept, overwrite=True)
    metrics = _metrics(kept, tried, won / tried, list(output.wilson(won, tried)))
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


def _metrics(
    kept: E.Episodes, tried: int, rate: float | None = None, interval: list[float] | None = None
) -> dict[str, Any]:
    """Figures of every collection; gym tasks have no success, hence no rate of it."""
    found = E.summary(kept)
    return {
        "episodes": tried,
        "kept": len(kept),
        "expert_success_rate": rate,
        "expert_success_ci95": interval,
        "steps": found["steps"],
        "mean_length": found["mean_length"],
    }


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
        # Every episode that is recorded is kept.
        metrics={**_metrics(kept, tried=len(kept)), "mean_return": found["mean_return"], **metrics},
        task=args.task,
        env_steps=metrics["ppo_env_steps"] + found["steps"],
    )


def _recipe(args: CollectArgs, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """How episodes are made; how many at once, a directory that is gone on with decides, unless `--num-envs` does."""
    return {
        "task": args.task,
        "seed": args.seed,
        "start_range": args.start_range,
        "physics_dt": args.physics_dt,
        "clumsiness": args.clumsiness,
        "at_once": args.num_envs or theirs.get("at_once") or min(256, max(args.episodes, 8)),
        **made_with(args),
    }


def _previous(args: CollectArgs) -> tuple[dict[str, Any], E.Episodes | None, int, int]:
    """The recipe, and what a directory holds already: episodes, how many were tried and won.  Raises `ConfigError` unless it may
    be used."""
    assert args.out is not None
    kept = held(args.out, args.resume)
    if kept is None:
        return _recipe(args, {}), None, 0, 0
    recipe = _recipe(args, recipe_of(kept))
    check_recipe(args.out, recipe_of(kept), recipe)
    whole = kept.metadata.get("whole")
    if whole is None or len(kept) >= args.episodes:
        return recipe, kept, int(kept.metadata["tried"]), int(kept.metadata["won"])
    before = E.take(kept, np.arange(whole["kept"])) if whole["kept"] else None
    return recipe, before, int(whole["tried"]), int(whole["won"])
