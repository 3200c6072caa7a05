"""What heuristic experts share: walking to a place, palms on the sides of a box, the habits that make episodes differ."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.control.controller import Command
from envs.core import State
from envs.t1 import rotations
from envs.tasks.base import PLANNER_DT
from envs.tasks.hierarchy import Hierarchy

Array = jax.Array


class Expert(Protocol):
    """A planner that knows the exact state; pure and unbatched.

    Attributes:
      errors: size of the errors that it mostly recovers from, see `envs.experts.clumsy`.
    """

    errors: float

    def start(self, key: Array, state: State) -> Any:
        """Habits of this episode, and an empty memory."""
        ...

    def act(self, memory: Any, state: State) -> tuple[Any, Array]:
        """New memory and the action `(23,)`."""
        ...


@struct.dataclass
class Habits:
    """How one episode is played, drawn once.

    Attributes:
      speed: `()` of walking, share of the fastest that is safe.
      pause: `()` seconds between stages.
      offset: `(3,)` where on the box the hands go: ahead, left, up [m].
      squeeze: `()` how far inside the box's sides the palms are commanded [m].
      hand_speed: `()` [m/s].
      wobble: `()` size of the slow errors of the velocity command [m/s].
      inward: `(2,)` by how much fingertips, and the lower edges of the palms, are turned towards the box [rad].
    """

    speed: Array
    pause: Array
    offset: Array
    squeeze: Array
    hand_speed: Array
    wobble: Array
    inward: Array


def draw_habits(key: Array) -> Habits:
    """Deliberately varied."""
    ks, kp, ko, kq, kh, kw = jax.random.split(key, 6)

    def uniform(key, low, high, shape=()):
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    return Habits(
        speed=uniform(ks, 0.7, 1.0),
        pause=uniform(kp, 0.0, 0.5),
        offset=jnp.array([0.03, 0.0, 0.03]) * uniform(ko, -1.0, 1.0, (3,)),
        squeeze=uniform(kq, 0.045, 0.06),
        hand_speed=uniform(kh, 0.2, 0.35),
        wobble=uniform(kw, 0.0, 0.03),
        inward=jnp.zeros(2),
    )


@struct.dataclass
class Memory:
    """What a stage machine remembers.

    Attributes:
      habits: of this episode.
      stage: `()` int32; clock `()` seconds in it.
      hands: `(2, 3)` palm targets commanded last, trunk frame [m].
      anchor: `(4,)` a point and a heading latched by a stage, its own business.
      drift: `(3,)` slow error of the velocity command.
      key: random key.
    """

    habits: Habits
    stage: Array
    clock: Array
    hands: Array
    anchor: Array
    drift: Array
    key: Array


def begin(key: Array, hands: Array) -> Memory:
    """First stage, hands where they are."""
    key, habit_key = jax.random.split(key)
    zero = jnp.float32(0.0)
    return Memory(draw_habits(habit_key), jnp.int32(0), zero, hands, jnp.zeros(4), jnp.zeros(3), key)


def enter(memory: Memory, stage: Array) -> Memory:
    """The memory in `stage`; its clock restarts if that is a new one."""
    clock = jnp.where(stage == memory.stage, memory.clock + PLANNER_DT, 0.0)
    return memory.replace(stage=jnp.asarray(stage, jnp.int32), clock=clock)


def wander(memory: Memory) -> Memory:
    """Lets the slow error drift (an Ornstein-Uhlenbeck process with a time constant of one second)."""
    key, noise_key = jax.random.split(memory.key)
    kick = memory.habits.wobble * 0.45 * jax.random.normal(noise_key, (3,))
    return memory.replace(key=key, drift=0.9 * memory.drift + kick)


FASTEST = (0.35, 0.14, 0.35)
"""Base velocity that is safe to walk at: ahead, aside [m/s], turning [rad/s]."""


def walk_to(place: Array, base: Array, memory: Memory, fastest: Array | None = None) -> tuple[Array, Array]:
    """Velocity command `(3,)` that walks the trunk to `place (3,)` (x, y, heading); the error `(3,)` in the base frame."""
    limit = jnp.asarray(FASTEST) if fastest is None else fastest
    c, s = jnp.cos(base[3]), jnp.sin(base[3])
    dx, dy = place[0] - base[0], place[1] - base[1]
    error = jnp.stack([c * dx + s * dy, c * dy - s * dx, rotations.wrap_angle(place[2] - base[3])])
    limit = limit * memory.habits.speed
    velocity = jnp.clip(jnp.asarray([1.0, 1.0, 1.0]) * error, -limit, limit)
    moving = jnp.linalg.norm(error[:2]) > 0.1
    return jnp.where(moving, velocity + memory.drift, velocity), error


def behind(place: Array, distance: Array | float) -> Array:
    """`place (3,)` (x, y, heading), moved back by `distance` [m]."""
    return place - distance * jnp.stack([jnp.cos(place[2]), jnp.sin(place[2]), 0.0])


def toward(now: Array, goal: Array, speed: Array) -> Array:
    """Palm targets `(2, 3)` one planner step nearer to `goal`, at `speed` [m/s]."""
    delta = goal - now
    length = jnp.linalg.norm(delta, axis=-1, keepdims=True)
    return now + delta * jnp.minimum(1.0, speed * PLANNER_DT / (length + 1e-9))


def beside(middle: Array, yaw: Array, half: float, overlap: Array | float, inward: Array) -> tuple[Array, Array]:
    """Palms on the sides of a box in `middle (3,)`, turned by `yaw`, trunk frame.

    Args:
      middle: between the palms [m].
      yaw: `()` heading of the box [rad].
      half: of the box's edge [m].
      overlap: how far inside the sides the palms are commanded [m].
      inward: `(2,)` see `Habits`.

    Returns:
      Positions `(2, 3)` and rotations `(2, 3, 3)`.
    """
    left = jnp.stack([-jnp.sin(yaw), jnp.cos(yaw), 0.0]) * (half - overlap)
    sides = jnp.array([-1.0, 1.0])[:, None] * jnp.stack([inward[1], 0.0, inward[0]])
    rot = rotations.mat_from_yaw(yaw) @ rotations.mat_from_rotvec(sides)
    return middle + jnp.stack([left, -left]), rot


def command(velocity: Array, hand_pos: Array, hand_rot: Array, gripper: float = 0.0) -> Command:
    """A command with both grippers alike."""
    return Command(velocity, hand_pos, hand_rot, jnp.full(2, gripper))


READY_X, READY_APART = 0.30, 0.085
"""Hands while walking: that far ahead of the trunk, and that far outside the box's sides [m]."""


def ready(height: Array, half: float) -> Array:
    """Palms `(2, 3)` on both sides of where the box will be."""
    y = half + READY_APART
    return jnp.stack([jnp.stack([READY_X, y, height]), jnp.stack([READY_X, -y, height])])


def hand_positions(env: Hierarchy, state: State) -> Array:
    """`(2, 3)` palms now, trunk frame."""
    return env.view(state).measured.hand_pos


def walking(state: State) -> Array:
    """Whether the gait's clock runs."""
    return state.task.inner.task.controller.gait.walking


STRAIGHT = np.tile(np.eye(3, dtype=np.float32), (2, 1, 1))
