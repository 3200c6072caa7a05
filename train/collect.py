"""`rdp collect`: demonstrations of the heuristic expert."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs.tasks.catalog import make_expert
from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from train import output
from train.demonstrations import FILE, check_recipe, from_played, held, noted
from train.medium import record_medium
from train.names import GYM_TASKS
from train.rollouts import ClumsyPlayer, Theatre
from train.task_args import CollectArgs
from train.tasks import HumanoidStage

STREAM = 0xDE30


def run_collect(args: CollectArgs) -> dict[str, Any]:
    """Plays batches until enough have succeeded; what is kept is saved after every batch.

    A directory that is filled in several calls ends up with the episodes that one call would have kept.
    """
    start = time.monotonic()
    assert args.out is not None
    path = args.out / FILE
    if args.task in GYM_TASKS:
        return _collect_medium(args, path, start)
    kept, tried, won = _previous(args)
    stage = HumanoidStage(args)
    env, params = stage.env, stage.params
    theatre = Theatre(env, ClumsyPlayer(make_expert(args.task, env), args.clumsiness), record=True)
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
            fresh = from_played(env, played, np.flatnonzero(played.success), _recipe(args), tried=tried, won=won)
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
        "clumsiness": args.clumsiness,
        "at_once": args.num_envs or min(256, max(args.episodes, 8)),
    }


def _previous(args: CollectArgs) -> tuple[E.Episodes | None, int, int]:
    """What a directory holds already.  Raises `ConfigError` unless it may be used."""
    assert args.out is not None
    kept = held(args.out, args.resume)
    if kept is None:
        return None, 0, 0
    check_recipe(args.out, kept.metadata.get("recipe"), _recipe(args))
    whole = kept.metadata.get("whole")
    if whole is None or len(kept) >= args.episodes:
        return kept, int(kept.metadata["tried"]), int(kept.metadata["won"])
    return E.take(kept, np.arange(whole["kept"])) if whole["kept"] else None, int(whole["tried"]), int(whole["won"])
