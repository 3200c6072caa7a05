"""`rdp finetune`: DPPO (or Gaussian PPO) on a task; the controller stays as it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import dppo
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner
from train.attempt import Attempt
from train.keeping import Best
from train.learning import Pace, described, learn, on_the_way, success_of
from train.residual import run_residual
from train.task_args import FinetuneArgs
from train.tasks import keep_planner


def run_finetune(args: FinetuneArgs) -> dict[str, Any]:
    """Evaluates, fine-tunes, evaluates again on the same fresh starts; writes `planner.safetensors`."""
    if args.algo == "residual":
        return run_residual(args)
    attempt = Attempt(args, args.algo)
    before, env, params = attempt.planner, attempt.stage.practice_env, attempt.stage.practice
    config = args.dppo
    if args.algo == "gaussian-ppo":
        config = dataclasses.replace(config, tuned_steps=1, quiet_steps=0)
    mesh = parallel.make_mesh()
    policy: Any = before.actor().policy
    dppo.check_layout(config, policy, mesh)
    attempt.begin()
    vector = AutoReset(Chunked(env, before.config.executed))  # type: ignore[arg-type]
    state = dppo.init(jax.random.key(args.seed), config, policy, before.bundle, vector, params, mesh)
    state = attempt.restored(state)
    pace = Pace.of(config, env.spec, before.config.executed)
    update = dppo.Update(config, policy, vector, mesh)

    best = Best(args, state.learned)

    def present(iteration, weights):
        return attempt.finished(tuned(before, weights, config, described(args, before, iteration)))

    def evaluate(state):
        count, weights = int(state.iteration), jax.device_get(state.learned)
        return best.offer(count, attempt.stage.judge(present(count, weights), best.seed, args.trials), weights)

    result, to_90 = learn("finetune", args, attempt.run, update, state, params, pace, note, evaluate)
    kept, weights = best.choose(int(result.state.iteration), result.state.learned)
    after = attempt.chosen(present(kept, weights))
    keep_planner(args, after)
    second = attempt.log.judge("after", after)
    steps = dppo.env_steps(config, result.state, before.config.executed)
    more = {"evaluations": on_the_way(args.out), "kept_iteration": kept}
    return attempt.end("finetune", config.num_envs, result, to_90, second, steps, **more)


def tuned(before: Planner, weights: Any, config: dppo.DPPOConfig, metadata: dict[str, Any]) -> Planner:
    """`before` with the learned `weights`; it keeps the frozen ones only if some steps still run on them."""
    split = config.tuned_steps < visited(before)
    return dataclasses.replace(
        before,
        bundle=before.bundle.replace(weights=weights),
        base=before.bundle.weights if split else None,
        tuned_steps=config.tuned_steps if split else 0,
        metadata=metadata,
    )


def visited(planner: Planner) -> int:
    """Denoising steps of one sample; 1 for a planner that predicts chunks at once."""
    return 1 if planner.config.net.kind in GAUSSIAN else planner.config.diffusion.visited


def note(metrics: dict[str, Any]) -> str:
    """What the progress line says."""
    return (
        f"return {success_of(metrics):.2f} of {int(metrics['episode/finished'])}  kl {metrics['policy/kl']:.3f}  "
        f"clipped {metrics['policy/clip_fraction']:.2f}  explained {metrics['value/explained_variance']:.2f}"
    )
