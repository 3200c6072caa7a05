"""`rdp eval`: a planner, or the expert, over fresh starts."""

from __future__ import annotations

import time
from typing import Any

from envs.tasks.catalog import make_expert
from rdp_jax.config import ConfigError, left_out
from rdp_jax.planner import Actor
from rdp_jax.steer import NoiseActor
from train import output
from train.actors import find_actor
from train.names import of_t1
from train.rollouts import ExpertPlayer
from train.sampling import as_asked, exploring
from train.task_args import EvalArgs
from train.tasks import HumanoidStage, check_fits, find_planner, set_up, side_by_side


def run_eval(args: EvalArgs) -> dict[str, Any]:
    """Plays `--trials` episodes from the evaluation stream of the seed."""
    start = time.monotonic()
    stage: Any
    if args.which == "expert" and args.run is None:
        if not of_t1(args.task):
            raise ConfigError("which", args.which, f"pretrained | finetuned ({args.task} has no heuristic expert)")
        stage = HumanoidStage(args)
        player = ExpertPlayer(make_expert(args.task, stage.env))
        found = stage.judge_player(player, None, args.seed, args.trials, args.num_envs)
    else:
        planner = as_asked(find_planner(args.run, args.task, args.which), args)
        stage = set_up(args, planner.config.history)
        check_fits(planner, stage.env)
        actor, weights = find_actor(args.run, planner)
        if isinstance(actor, NoiseActor):
            for name in ("first_std", "step_noise"):
                left_out(args, name, False, "an actor chooses the noise of this run")
        if args.explores:
            if not isinstance(actor, Actor):
                raise ConfigError(
                    "run", str(args.run), "a planner without steering or correction, with flags of exploration"
                )
            found = stage.judge(exploring(planner, args), args.seed, args.trials, args.num_envs, explore=True)
        else:
            found = stage.judge_actor(actor, weights, args.seed, args.trials, args.num_envs)
    steps = found.pop("env_steps")
    return output.summary(
        "eval",
        seed=args.seed,
        backend=stage.env.physics.name,
        num_envs=side_by_side(stage, args.trials, args.num_envs),
        wall_s=time.monotonic() - start,
        metrics={name: value for name, value in found.items() if name != "score"},
        task=args.task,
        env_steps=steps,
    )
