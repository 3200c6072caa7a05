"""`rdp eval`: success of a planner or of the expert over fresh starts."""

from __future__ import annotations

import time
from typing import Any

from envs.tasks.catalog import make_expert
from rdp_jax.planner import Planner
from train import output
from train.rollouts import ExpertPlayer, PlannerPlayer, Theatre, evaluate, report
from train.task_args import EvalArgs
from train.tasks import check_fits, find_planner, make_env, make_params


def planner_params(planner: Planner) -> tuple[Any, Any]:
    """What `PlannerPlayer` wants: the bundle, and the frozen weights if some steps run on those."""
    return planner.bundle, planner.base if planner.tuned_steps else ()


def run_eval(args: EvalArgs) -> dict[str, Any]:
    """Plays `--trials` episodes from the evaluation stream of the seed."""
    start = time.monotonic()
    if args.which == "expert" and args.run is None:
        env = make_env(args)
        theatre, weights = Theatre(env, ExpertPlayer(make_expert(args.task, env))), None
    else:
        planner = find_planner(args.run, args.task, args.which)
        env = make_env(args, planner.config.history)
        check_fits(planner, env)
        theatre, weights = Theatre(env, PlannerPlayer(planner.actor())), planner_params(planner)
    at_once = args.num_envs or min(256, args.trials)
    with output.Progress(f"eval {args.task}", total=args.trials) as bar:
        played = evaluate(
            theatre,
            args.seed,
            args.trials,
            make_params(args, env),
            weights,
            at_once,
            lambda done, _: bar.update(done, done * env.spec.episode_steps, ""),
        )
    return output.summary(
        "eval",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=at_once,
        wall_s=time.monotonic() - start,
        metrics=report(env, played),
        task=args.task,
        env_steps=int(played.steps.sum()),
    )
