"""`rdp finetune --algo residual`: PPO of a correction to a frozen planner."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import ppo
from rdp_jax.algos.residual import Residual, ResidualActor, ResidualParams
from rdp_jax.checkpoint import save_weights
from rdp_jax.config import ConfigError
from train.actors import CORRECTION
from train.attempt import Attempt
from train.controller_weights import acting
from train.learning import Pace, described, learn, success_of
from train.names import of_t1
from train.task_args import FinetuneArgs
from train.tasks import keep_planner


def run_residual(args: FinetuneArgs) -> dict[str, Any]:
    """Evaluates, learns the correction, evaluates again on the same starts; the planner stays as it is."""
    attempt = Attempt(args, "dppo")
    planner, stage = attempt.planner, attempt.stage
    mesh = parallel.make_mesh()
    try:
        ppo.check_layout(args.residual, mesh)
    except ConfigError as error:
        raise ConfigError(f"residual.{error.field}", error.value, error.allowed) from error
    attempt.begin()
    plain = AutoReset(Chunked(stage.practice_env, planner.config.executed))  # type: ignore[arg-type]
    # The critic of a T1 task sees the time that is left.
    vector = Residual(plain, planner, bootstrap=not of_t1(args.task))
    scale = jnp.float32(args.residual_scale)
    params = ResidualParams(stage.practice, planner.bundle, planner.base if planner.tuned_steps else (), scale)
    config = args.residual
    state = ppo.init(jax.random.key(args.seed), config, vector, params, mesh)
    # Before it has learned anything it must not disturb: the mean starts at zero.
    last = jax.tree.map(jnp.zeros_like, state.params["actor"]["mlp"]["last"])
    actor = {**state.params["actor"], "mlp": {**state.params["actor"]["mlp"], "last": last}}
    state = state.replace(params={**state.params, "actor": actor})
    state = attempt.restored(state)
    pace = Pace.of(config, stage.env.spec, planner.config.executed)
    update = ppo.Update(config, vector, mesh)
    result, to_90 = learn("residual", args, attempt.run, update, state, params, pace, note)
    state = result.state
    learned = jax.device_get(acting(state))
    count = int(state.iteration)
    final = attempt.chosen(planner)
    keep_planner(args, final)
    if args.out:
        described_as = {**described(args, planner, count), "scale": args.residual_scale}
        save_weights(args.out / CORRECTION, learned, described_as)
    second: dict[str, Any] = {}
    if args.trials:
        weights = (planner.bundle, (params.base, learned, scale))
        figures = stage.judge_actor(ResidualActor(final), weights, args.seed, args.trials)
        second = attempt.log.keep("after", figures)
    # As of the other algorithms; a correction is not judged on the way.
    more = {"evaluations": {}, "kept_iteration": count}
    return attempt.end("finetune", config.num_envs, result, to_90, second, count * pace.steps, **more)


def note(metrics: dict[str, Any]) -> str:
    """What the progress line says."""
    return f"return {success_of(metrics):.2f}  kl {metrics['policy/kl']:.3f}"
