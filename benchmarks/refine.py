"""Scenario `refine`: seconds per iteration of joint learning (`rdp refine`), either phase, and where they go.

Whole iterations are timed as `rdp refine` runs them, with fewer environments and chunks, on one device.  The controller's
rehearsals, which are PPO on another environment (scenario `controller`), are left out.  The parts are those of
`benchmarks.parts`, and the updates: all that follows a rollout.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import parts
from benchmarks.scenarios import Case
from envs.chunk import Chunked
from envs.tasks.command import TICKS
from envs.wrappers import LayeredAutoReset
from rdp_jax.algos import dppo, joint
from rdp_jax.config import validate
from rdp_jax.planner import Planner
from train.demo import FIRST_STD
from train.learning import start_planner
from train.refine import begin
from train.sampling import exploring, with_first_std
from train.task_args import RefineArgs
from train.tasks import HumanoidStage

PHASES = {
    "planner": joint.Schedule(controller_iterations=0, planner_iterations=1, rehearsals=0),
    "controller": joint.Schedule(controller_iterations=1, planner_iterations=0, rehearsals=0),
}


def setup(
    task: str,
    backend: str | None,
    num_envs: int,
    chunks: int,
    recorded: int,
    minibatches: int,
    physics_dt: float,
    seed: int,
) -> list[Case]:
    """Cases `planner_phase` and `controller_phase`, one iteration per call, and their parts.

    Args:
      task: a T1 task with a shipped planner.
      backend: of physics; None: the one that this machine takes by itself.
      num_envs: environments side by side.
      chunks: per environment and iteration.
      recorded: environments whose ticks the controller learns from.
      minibatches: per epoch, of either learner; the rest of their settings are those of `rdp refine`.
      physics_dt: seconds per physics step.
      seed: of everything drawn.
    """
    defaults = RefineArgs.defaults("cpu")
    args = dataclasses.replace(
        defaults,
        task=task,
        backend=backend or "auto",
        num_envs=num_envs,
        recorded=recorded,
        physics_dt=physics_dt,
        practice_dt=physics_dt,
        seed=seed,
        first_std=FIRST_STD,
        schedule=joint.Schedule(rehearsals=0),
        dppo=dataclasses.replace(
            defaults.dppo, unroll_length=chunks, minibatches=minibatches, num_envs=num_envs, reset_pool=num_envs
        ),
    )
    planner = start_planner(args, "dppo")
    # What a part of the controller learns from: one row per recorded environment, all ticks of its chunks in time.
    ticks = chunks * planner.config.executed * TICKS
    controller = dataclasses.replace(args.controller, num_envs=recorded, unroll_length=ticks, minibatches=minibatches)
    args = validate(dataclasses.replace(args, controller=controller).resolved())
    bench = Bench(args, planner)
    both = ("planner_phase", "controller_phase")
    builds: dict[str, tuple[Callable[[], Callable[[], Any]], tuple[str, ...]]] = {
        "planner_phase": (lambda: bench.phase("planner"), ()),
        "controller_phase": (lambda: bench.phase("controller"), ()),
        "physics": (bench.physics, both),
        "denoising": (bench.denoising, both),
        "planner_phase_controller": (bench.plain_controller, both[:1]),
        "controller_phase_controller": (bench.recorded_controller, both[1:]),
        "planner_phase_updates": (bench.planner_updates, both[:1]),
        "controller_phase_updates": (bench.controller_updates, both[1:]),
    }
    work = bench.sizes.steps
    return [Case(name, build, work, "env steps", part_of=part_of) for name, (build, part_of) in builds.items()]


class Constant(dppo.Update):
    """A planner that always has the same plan, so that what is left of a rollout is the environment's."""

    plan_of: parts.Act

    def plan(self, state: dppo.LearnerState, obs: Any, keys: Any, explore: bool) -> tuple[Any, Any]:
        """See `dppo.Update.plan`; the chain is zeros."""
        del explore
        action, _ = self.plan_of((), obs["actor"], keys)
        return action, jnp.zeros((keys.shape[0], self.config.decisions + 1, *self.policy.shape))


class Bench:
    """What the cases share, each thing made when it is first needed."""

    def __init__(self, args: RefineArgs, planner: Planner):
        self.args = args
        self.given = exploring(with_first_std(planner, args.first_std), args)
        self.sizes = parts.Sizes(args.dppo.num_envs, args.dppo.unroll_length, self.given.config.executed)

    @functools.cached_property
    def stage(self) -> HumanoidStage:
        """The task."""
        return HumanoidStage(self.args, self.given.config.history)

    @functools.cached_property
    def begun(self) -> tuple[joint.JointState, tuple[Any, ...]]:
        """First state, which nobody may consume, and what an update is made of."""
        return begin(self.args, self.stage, self.given, mesh=None)

    def state(self) -> joint.JointState:
        """A first state of one's own."""
        copied: joint.JointState = jax.tree.map(lambda x: jnp.array(x, copy=True), self.begun[0])
        return copied

    @property
    def planner(self) -> dppo.Update:
        """The planner's update."""
        found: dppo.Update = self.begun[1][0]
        return found

    @functools.cached_property
    def updates(self) -> dict[str, joint.Update]:
        """Phase -> update."""
        return {name: joint.Update(schedule, *self.begun[1]) for name, schedule in PHASES.items()}

    @functools.cached_property
    def params(self) -> Any:
        """Of the environments, the controller as it is at first."""
        return self.stage.params.replace(controller=joint.controller_of(self.begun[0]))

    def _act(self, state: Any, obs: Any, keys: Any) -> tuple[Any, Any]:
        return self.planner.plan(state, {"actor": obs}, keys, explore=True)

    @functools.cached_property
    def weights(self) -> dppo.LearnerState:
        """What the planner plans with."""
        found: dppo.LearnerState = self.begun[0].planner.replace(env=(), episode=(), running=())
        return found

    @functools.cached_property
    def tape(self) -> parts.Tape:
        """The environments as an iteration of the planner leaves them, once for each chunk."""
        after, _ = self.updates["planner"](self.state(), self.stage.params)
        chunks = self.sizes.chunks
        found: parts.Tape = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (chunks, *x.shape)), parts.moment(after.planner.env)
        )
        return found

    @functools.cached_property
    def still(self) -> Constant:
        """The planner's update where plans and physics cost nothing."""
        env = parts.still_env(self.args, self.given.config.history)
        vector = LayeredAutoReset(Chunked(env, self.sizes.executed))  # type: ignore[arg-type]
        found = Constant(self.args.dppo, self.planner.policy, vector, self.planner.mesh)
        found.plan_of = parts.constant(self.given.bundle, self.sizes.executed)
        return found

    @functools.cached_property
    def recorded(self) -> Callable[[], Any]:
        """A rollout of the controller's phase without physics and plans; returns its transitions, chains and ticks included."""
        update = joint.Update(PHASES["controller"], self.still, *self.begun[1][1:])
        pool = update.fresh(self.begun[0], self.params)
        return self._timed(lambda s, p, pool: update.collect(s, p, pool, False), self.begun[0], self.params, pool)

    @functools.cached_property
    def batch(self) -> Any:
        """What the updates learn from: how long they take does not depend on what it says."""
        return self.recorded()[1]

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As an iteration is compiled."""

        def run(*args):
            with jax.default_matmul_precision(self.args.dppo.matmul_precision):
                return function(*args)

        return jax.jit(run)

    def _timed(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        compiled = self._compiled(function)
        return lambda: jax.block_until_ready(compiled(*args))

    # --- cases -----------------------------------------------------------------------------------------------------------

    def phase(self, name: str) -> Callable[[], Any]:
        """Iterations of one phase, one after the other, as the loop of `rdp refine` makes them."""
        update, state = self.updates[name], self.state()

        def call() -> Any:
            nonlocal state
            state, metrics = update(state, self.stage.params)
            return jax.device_get(metrics)

        return call

    def physics(self) -> Callable[[], Any]:
        """See `benchmarks.parts`."""
        return parts.physics(self.stage.env, self.sizes, self.tape)

    def denoising(self) -> Callable[[], Any]:
        """See `benchmarks.parts`; in the controller's phase the planner denoises as often, without noise."""
        return parts.denoising(self._act, self.sizes, self.weights, self.tape, self.args.seed)

    def plain_controller(self) -> Callable[[], Any]:
        """The environment of the planner's phase without physics and without fresh starts, a program of their own."""
        state = self.begun[0].planner
        return self._timed(self.still.collect, state, self.params, self.still.fresh(state, self.params))

    def recorded_controller(self) -> Callable[[], Any]:
        """The environment of the controller's phase without physics: its policies explore, and ticks are recorded."""
        return self.recorded

    def planner_updates(self) -> Callable[[], Any]:
        """All that the planner's phase does with a rollout."""

        def learn(state, data, key):
            return self.planner.digest(state, data.replace(extras=data.extras[0]), key)

        return self._timed(learn, self.begun[0].planner, self.batch, jax.random.key(self.args.seed))

    def controller_updates(self) -> Callable[[], Any]:
        """All that the controller's phase does with a rollout."""
        return self._timed(
            self.updates["controller"].digest, self.begun[0].parts, self.batch, jax.random.key(self.args.seed)
        )
