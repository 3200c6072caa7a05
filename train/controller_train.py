"""`rdp controller train`: PPO of one part of the controller."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from envs.control.env import (
    ControlConfig,
    ControlEnv,
    training_params,
)
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import ppo
from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.checkpoint import fingerprint, save_weights
from rdp_jax.config import ConfigError, to_dict, without_paths
from rdp_jax.nets import mlp
from rdp_jax.runs import provenance
from train import output
from train.controller_args import TrainArgs
from train.controller_metrics import progress_metrics
from train.controller_weights import OTHER, Weights, act, acting, climbs, load_part, start_from
from train.running import agreed, open_run


def _partner(args: TrainArgs) -> Weights | None:
    """Weights of the part that is not trained.  Hands cannot do without legs; arms follow their references well alone."""
    other = OTHER[args.part]
    if args.partner is not None:
        return load_part(other, args.partner, field="partner")
    return load_part(other, climbs=climbs(args.scene)) if args.part == "hands" else None


def run_train(args: TrainArgs) -> dict[str, Any]:
    """Trains a policy; writes a run directory if `--out` is given, with `PART.safetensors` in it."""
    args = args.resolved()
    start = time.monotonic()
    given = None if args.init is None else load_part(args.part, args.init, field="init")
    partner = _partner(args)
    mesh = parallel.make_mesh()
    env = ControlEnv(
        ControlConfig(part=args.part, scene=args.scene, backend=args.backend, physics_dt=args.physics_dt), partner=act
    )
    vector = AutoReset(env)
    params = training_params(partner)
    # What may differ between a run and its resumption is left out.
    recorded = agreed(args, iterations=1, minutes=None)
    recorded["weights"] = {name: fingerprint(w) for name, w in (("init", given), ("partner", partner)) if w is not None}
    # What can be refused is, before anything is compiled and before a directory is taken.
    ppo.check_layout(args.ppo, mesh)
    if given is not None and mlp.mlp_sizes(given["actor"]["mlp"]) != args.ppo.actor_sizes:
        raise ConfigError("init", str(args.init), f"a policy with hidden widths {args.ppo.actor_sizes}")
    run = open_run(args, recorded)
    state = ppo.init(jax.random.key(args.seed), args.ppo, vector, params, mesh)
    if given is not None and args.init is not None:
        state = start_from(state, given, args.init)
    if run:
        state = run.restore(state)
    update = ppo.make_update(args.ppo, vector, mesh)
    loop = LoopConfig(
        iterations=args.iterations,
        save_every_s=60.0,
        save_share=0.05,
        max_wall_s=60.0 * args.minutes if args.minutes else 0.0,
    )
    budget = loop.max_wall_s or None
    compiled: list[float] = []
    first = int(state.iteration)
    with output.Progress(f"{args.part}", total=args.iterations, budget_s=budget) as bar:

        def report(p):
            compiled.append(p.wall_s) if not compiled else None
            bar.update(p.iteration, p.iteration * args.ppo.num_envs * args.ppo.unroll_length, _note(p.metrics))

        result = train(update, state, params, loop, run, progress=report)
    state = result.state
    if run:
        save_weights(run.out / f"{args.part}.safetensors", acting(state), _metadata(args, state))
        run.close()
    wall = time.monotonic() - start
    steps = (int(state.iteration) - first) * args.ppo.num_envs * args.ppo.unroll_length
    metrics = {
        "iterations": int(state.iteration),
        "total_env_steps": ppo.env_steps(args.ppo, state),
        "compile_s": compiled[0] if compiled else None,
        "stopped_by": result.stopped_by,
        **progress_metrics(result.metrics),
    }
    return output.summary(
        "controller train",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=args.ppo.num_envs,
        wall_s=wall,
        metrics=metrics,
        task=args.part,
        env_steps=steps,
    )


def _metadata(args: TrainArgs, state: ppo.LearnerState) -> dict[str, Any]:
    return {
        "part": args.part,
        "config": to_dict(without_paths(args)),
        "env_steps": ppo.env_steps(args.ppo, state),
        "iterations": int(state.iteration),
        **provenance(),
    }


def _note(metrics: Mapping[str, Any]) -> str:
    p = {name: float("nan") if value is None else value for name, value in progress_metrics(metrics).items()}
    return (
        f"reward {metrics['reward/mean']:.4f}  falls/10s {p['falls_per_10s']:.2f}  "
        f"touchdown {100 * p['touchdown_error_m']:.1f} cm  hand {1000 * p['hand_position_error_m']:.1f} mm  "
        f"kl {metrics['policy/kl']:.3f}  lr {metrics['lr']:.1e}"
    )
