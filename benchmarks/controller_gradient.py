"""How much of the controller's gradient is signal under a planner, for each part and each lambda of GAE.

    python -m benchmarks.controller_gradient --task pickup --first-std 0.5 --controller-std 0.3

The frozen controller explores under a frozen planner, as in joint learning.  Its critics first learn from some rollouts; from
each later one every group of environments gives a gradient, and what groups agree on is signal (`benchmarks.gradient.share`).
A critic has not seen the rollout that it values.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import numpy as np

from benchmarks.gradient import GROUPS, share
from benchmarks.standalone import run_command
from rdp_jax import parallel
from rdp_jax.algos import joint, ppo
from rdp_jax.config import ConfigError, ranged
from rdp_jax.types import Transition
from train import cli, output
from train.args import input_file, t1_task
from train.attempt import Attempt
from train.refine import begin
from train.task_args import RefineArgs, Sampling, TaskFlags
from train.tasks import HumanoidStage

Array = jax.Array
LAMBDAS = (0.95, 0.8, 0.5)
COMMAND = cli.Command(
    "benchmarks.controller_gradient",
    "The controller's gradient.",
    f"{__name__}:ControllerGradientArgs",
    f"{__name__}:run_controller_gradient",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControllerGradientArgs(Sampling, TaskFlags):
    """How much of the gradient that joint learning would take for the controller is signal?"""

    task: str = t1_task()
    planner: Path | None = input_file("planner file; left out: the shipped pre-trained one")
    controller_std: float = ranged(1.0, 0.01, 10.0, "share of its exploration std, as in rdp refine")
    recorded: int = ranged(64, GROUPS, 2**20, "environments whose ticks count")
    warmup: int = ranged(4, 1, 1000, "rollouts from which the critics learn first")
    rollouts: int = ranged(6, 1, 1000, "rollouts after those")

    def check(self) -> None:
        super().check()
        if self.recorded % GROUPS:
            raise ConfigError("recorded", self.recorded, f"a multiple of {GROUPS} (groups)")

    def refining(self) -> RefineArgs:
        """Of a joint run whose critics learn, and nobody else."""
        whole = RefineArgs()
        names = [field.name for cls in (Sampling, TaskFlags) for field in dataclasses.fields(cls)]
        shared = {name: getattr(self, name) for name in {*names, "planner", "controller_std", "recorded"}}
        return dataclasses.replace(
            whole,
            **shared,
            controller_parts="both",
            schedule=joint.Schedule(rehearsals=0, planner_iterations=0),
            controller=dataclasses.replace(whole.controller, critic_warmup=10**6),
        ).resolved()


def gradients(config: ppo.PPOConfig, part: ppo.LearnerState, data: Transition, live: Array) -> tuple[Array, Array]:
    """Of each group of environments, `(GROUPS, P)`, and the critic's share of explained variance `()`."""
    batch, seen = ppo.prepare(config, None, part, data, live)
    grouped = jax.tree.map(lambda x: x.reshape(x.shape[0], GROUPS, -1, *x.shape[2:]), batch)

    def gradient(rows):
        def score(actor):
            return (ppo.score(actor, rows.actor_obs, rows.action)[0] * rows.advantage).mean()

        return jax.flatten_util.ravel_pytree(jax.grad(score)(part.params["actor"]))[0]

    return jax.vmap(gradient, in_axes=1)(grouped), seen["value/explained_variance"]


def run_controller_gradient(args: ControllerGradientArgs) -> dict[str, Any]:
    """Shares of signal of both parts, with standard errors over rollouts and groups, and what they were measured on."""
    start = time.monotonic()
    refining = args.refining()
    attempt = Attempt(refining, "dppo")
    stage = attempt.stage
    assert isinstance(stage, HumanoidStage)  # `T1_TASKS` has no others
    state, learners = begin(refining, stage, attempt.planner, None)
    update, params = joint.Update(refining.schedule, *learners), parallel.strong(stage.params)
    configs = {lam: dataclasses.replace(update.config, gae_lambda=lam) for lam in LAMBDAS}

    @jax.jit
    def once(state, pool, key):
        told = params.replace(controller=joint.controller_of(state))
        planner, data, metrics = update.collect(state, told, pool, False)
        done = jax.vmap(update.watched)(data.terminated | data.truncated)
        parts, found = {}, {}
        for name, part in state.parts.items():
            seen, live = joint.transition(data.extras[1], done, name)
            parts[name], _ = ppo.digest(update.config, None, part, seen, key, live)
            found[name] = {lam: gradients(config, part, seen, live) for lam, config in configs.items()}
        return state.replace(planner=planner, parts=parts, iteration=state.iteration + 1), found, metrics

    # Of the environment, in a rollout.
    steps = refining.dppo.num_envs * refining.dppo.unroll_length * attempt.planner.config.executed
    each: dict[str, dict[float, list[Any]]] = {p: {lam: [] for lam in LAMBDAS} for p in state.parts}
    last: dict[str, float] = {}
    with output.Progress(f"gradient {args.task}", total=args.warmup + args.rollouts) as bar:
        for i in range(args.warmup + args.rollouts):
            state, found, metrics = once(state, update.fresh(state, params), jax.random.key(i))
            for name, by_lambda in found.items() if i >= args.warmup else ():
                for lam, (rows, explained) in by_lambda.items():
                    each[name][lam].append((share(np.asarray(rows)), float(explained)))
            last = {name: float(value) for name, value in metrics.items()}
            bar.update(i + 1, (i + 1) * steps, "")
    ticks = steps // refining.dppo.num_envs * stage.env.ticks
    return output.summary(
        "controller_gradient",
        seed=args.seed,
        backend=stage.env.physics.name,
        num_envs=refining.dppo.num_envs,
        wall_s=time.monotonic() - start,
        metrics={
            "samples_per_group": ticks * args.recorded // GROUPS,
            "success_rate": last["episode/return"],
            "hand_position_error_m": last["env/hand_position_error_m"],
            "signal": {
                name: {f"{lam:g}": summed(rows) for lam, rows in by_lambda.items()} for name, by_lambda in each.items()
            },
        },
        task=args.task,
        env_steps=(args.warmup + args.rollouts) * steps,
    )


def summed(rows: list[tuple[tuple[float, float], float]]) -> dict[str, float]:
    """Over rollouts: mean share and its standard error, mean explained variance."""
    shares = np.array([found for (found, _), _ in rows])
    return {
        "share": float(shares.mean()),
        "standard_error": float(shares.std() / np.sqrt(len(shares))),
        "explained_variance": float(np.mean([explained for _, explained in rows])),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(COMMAND, ControllerGradientArgs, run_controller_gradient, argv)


if __name__ == "__main__":
    sys.exit(main())
