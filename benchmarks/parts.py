"""A planner's rollout on a T1 task, and its parts, each to be timed alone on what such a rollout goes through.

| part | what is timed |
|---|---|
| `physics` | the same number of physics steps from the states of a rollout, servo targets held for the length of a chunk |
| `controller` | the rollout with physics at rest and a constant plan: references, policies, observations, rewards, fresh starts |
| `denoising` | the plans alone |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.chunk import Chunked
from envs.core import State
from envs.physics.base import ModelParams, Physics, PhysicsState
from envs.tasks.command import TICKS
from envs.tasks.hierarchy import Hierarchy
from envs.wrappers import AutoReset
from rdp_jax import rollout
from rdp_jax.planner import Bundle, to_chunk
from rdp_jax.starts import starts_of
from train.task_args import TaskFlags
from train.tasks import HumanoidStage

Array = jax.Array
Act = Callable[[Any, Array, Array], tuple[Array, Any]]
"""`(weights, obs (B, Do), keys (B,)) -> action (B, Te * Da), what else there is to remember`."""
DRIFT = 1e-9


class Still:
    """`envs.physics.base.Physics` in which nothing moves; starts are those of the real one."""

    def __init__(self, physics: Physics):
        self.name, self.model, self.nominal, self.init = physics.name, physics.model, physics.nominal, physics.init

    def step(
        self,
        state: PhysicsState,
        ctrl: Array,
        substeps: int,
        params: ModelParams | None = None,
        eq_active: Array | None = None,
    ) -> PhysicsState:
        """Time goes by."""
        del ctrl, params, eq_active
        time = state.time + jnp.asarray(substeps * self.model.opt.timestep, state.time.dtype)
        # Not quite at rest, as far as the compiler can tell: it would measure the robot once, outside the loop.
        return state.replace(time=time, qpos=state.qpos + DRIFT * time)


def still_env(args: TaskFlags, history: int) -> Hierarchy:
    """The task's environment with physics at rest."""
    env = HumanoidStage(args, history).env
    env.control.physics = Still(env.control.physics)
    return env


def constant(bundle: Bundle, executed: int) -> Act:
    """A plan that costs nothing: the middle of all actions."""
    middle = to_chunk(bundle, jnp.zeros((1, executed, bundle.action.lo.shape[0])))
    return lambda weights, obs, keys: (jnp.tile(middle, (obs.shape[0], 1)), ())


@struct.dataclass
class Tape:
    """Where each chunk of a rollout started, `(T, B, ...)`: `obs` of the planner, physics, servo targets, model, and the equality
    constraints that `held` (None in scenes without any)."""

    obs: Array
    physics: PhysicsState
    ctrl: Array
    model: ModelParams
    held: Any


def moment(state: State) -> Tape:
    """One row `(B, ...)` of a tape."""
    inner = state.task.inner.task
    held = getattr(inner.commands, "eq_active", None)
    return Tape(state.obs["actor"], state.physics, inner.last_ctrl, inner.model, held)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Environments side by side, chunks per rollout, actions executed per chunk."""

    num_envs: int
    chunks: int
    executed: int

    @property
    def steps(self) -> int:
        """Planner steps (0.1 s) of a rollout."""
        return self.num_envs * self.chunks * self.executed


class Rollout:
    """Rollouts that go on where the last one ended; fresh starts are drawn for each, as many as there are environments.

    Args:
      env: a task, physics at rest or not.
      act: who plans.
      sizes: of a rollout.
      params, weights: of the environment, and of who plans.
      seed: of starts and noise.
      state: where the first one starts; None: fresh starts.

    Attributes:
      metrics: of the latest rollout.
    """

    def __init__(
        self, env: Hierarchy, act: Act, sizes: Sizes, params: Any, weights: Any, seed: int, state: State | None = None
    ):
        self.vector = AutoReset(Chunked(env, sizes.executed))  # type: ignore[arg-type]
        self.act, self.sizes, self.params, self.weights = act, sizes, params, weights
        self.key, self.count = jax.random.key(seed), 0
        self.starts = starts_of(self.vector)
        self.state: Any = self.starts.pool(self.key, sizes.num_envs, params) if state is None else state
        self.compiled = jax.jit(self._roll)
        self.metrics: dict[str, Any] = {}

    def _roll(
        self, state: State, pool: State, key: Array, params: Any, weights: Any
    ) -> tuple[State, Tape, dict[str, Array]]:
        sizes = self.sizes
        keys = jax.random.split(key, (sizes.chunks, sizes.num_envs))

        def act(obs, keys):
            return self.act(weights, obs["actor"], keys)

        def step(pool, state, action, params, noise):
            del noise
            return self.vector.step(pool, state, action, params), moment(state)

        begin = rollout.begin(sizes.num_envs)
        state, _, data, stats = rollout.collect(self.vector, act, state, begin, pool, keys, params, step)
        return state, data.extras[1], rollout.summarize(stats)

    def __call__(self) -> Tape:
        """One rollout."""
        self.count += 1
        pool_key, key = jax.random.split(jax.random.fold_in(self.key, self.count))
        pool = self.starts.pool(pool_key, self.sizes.num_envs, self.params)
        self.state, tape, metrics = self.compiled(self.state, pool, key, self.params, self.weights)
        self.metrics = jax.device_get(metrics)
        return tape


def physics(env: Hierarchy, sizes: Sizes, tape: Tape) -> Callable[[], Any]:
    """The physics of a rollout, alone."""
    substeps = env.control.substeps

    def hold(state, ctrl, model, held):
        def tick(state, _):
            return env.control.physics.step(state, ctrl, substeps, model, eq_active=held), None

        return jax.lax.scan(tick, state, None, length=sizes.executed * TICKS)[0]

    @jax.jit
    def roll(tape):
        def chunk(_, now):
            return None, jax.vmap(hold)(now.physics, now.ctrl, now.model, now.held).qpos

        return jax.lax.scan(chunk, None, tape)[1]

    return lambda: jax.block_until_ready(roll(tape))


def denoising(act: Act, sizes: Sizes, weights: Any, tape: Tape, seed: int) -> Callable[[], Any]:
    """The plans of a rollout, alone."""
    keys = jax.random.split(jax.random.key(seed), (sizes.chunks, sizes.num_envs))

    @jax.jit
    def plan(weights, obs, keys):
        return jax.lax.scan(lambda _, now: (None, act(weights, *now)), None, (obs, keys))[1]

    return lambda: jax.block_until_ready(plan(weights, tape.obs, keys))
