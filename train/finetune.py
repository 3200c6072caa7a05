"""`rdp finetune`: DPPO (or Gaussian PPO) on a task; the controller stays as it is."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import dppo
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner, save
from rdp_jax.runs import Run
from train import output
from train.learning import (
    EvaluationLog,
    Pace,
    described,
    learn,
    on_the_way,
    outcome,
    settings,
    start_planner,
    success_of,
    with_first_std,
)
from train.pretrain import PLANNER
from train.residual import run_residual
from train.task_args import FinetuneArgs
from train.tasks import check_fits, set_up


def run_finetune(args: FinetuneArgs) -> dict[str, Any]:
    """Evaluates, fine-tunes, evaluates again on the same fresh starts; writes `planner.safetensors`."""
    if args.algo == "residual":
        return run_residual(args)
    start = time.monotonic()
    given = start_planner(args, args.algo)
    before = with_first_std(given, args.first_std)
    config = args.dppo
    if args.algo == "gaussian-ppo":
        config = dataclasses.replace(config, tuned_steps=1)
    stage = set_up(args, before.config.history, record=args.out is not None)
    env, params = stage.env, stage.params
    check_fits(before, env)
    run = Run(args.out, settings(args), resume=args.resume) if args.out else None
    log = EvaluationLog(args, stage)
    first = log.judge("before", given)
    # What the smaller noise does alone, without any learning.
    quiet = {} if before is given else log.judge("untrained", before)
    mesh = parallel.make_mesh()
    vector = AutoReset(Chunked(env, before.config.executed))  # type: ignore[arg-type]
    policy: Any = before.actor().policy
    state = dppo.init(jax.random.key(args.seed), config, policy, before.bundle, vector, params, mesh)
    state = run.restore(state) if run else state
    pace = Pace.of(config, env.spec, before.config.executed)
    update = dppo.Update(config, policy, vector, mesh)

    def present(state):
        return tuned(before, state, config, described(args, before, int(state.iteration)))

    def evaluate(state):
        figures = stage.judge(present(state), args.seed, args.trials)
        return {name: figures[name] for name in ("return", "success_rate") if name in figures}

    result, to_90 = learn("finetune", args, run, update, state, params, pace, note, evaluate if args.trials else None)
    state = result.state
    after = present(state)
    if args.out:
        save(args.out / PLANNER, after)
    second = log.judge("after", after)
    if run:
        run.close()
    steps = dppo.env_steps(config, state, before.config.executed)
    metrics = {
        **outcome(first, quiet, second, result, to_90),
        "evaluations": on_the_way(args.out),
        "env_steps": steps,
    }
    record = output.summary(
        "finetune",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=config.num_envs,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=steps,
    )
    log.report(record)
    return record


def tuned(before: Planner, state: dppo.LearnerState, config: dppo.DPPOConfig, metadata: dict[str, Any]) -> Planner:
    """The planner that `state` holds; it keeps the frozen weights only if some steps still run on them."""
    split = config.tuned_steps < visited(before)
    return dataclasses.replace(
        before,
        bundle=before.bundle.replace(weights=state.params["actor"]),
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
