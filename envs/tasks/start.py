"""Where the robot starts: a random distance, angle and heading around the place where its work begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from envs.t1 import rotations

Array = jax.Array
STREAM = 0x57A7  # of places that are drawn again
DRAWS = 31


@struct.dataclass
class Start:
    """Ranges of the start; `scale` 1 is nominal, more is out of distribution.

    Attributes:
      scale: `()` multiplier of the spread of distance, angle and heading around their middles.
      distance: `(2,)` from the place where the work begins to where the robot starts [m].
      angle: `()` half range of the polar angle around that place [rad]; heading `()` of the robot's error [rad].
      friction: `(2,)` multiplier of the friction of everything.
    """

    scale: Array
    distance: Array
    angle: Array
    heading: Array
    friction: Array

    @classmethod
    def nominal(cls, nearest: float, farthest: float, **more: Any) -> Self:
        """Starts of the usual spread at such distances [m]; `more`: what a subclass has besides."""
        return cls(
            scale=jnp.float32(1.0),
            distance=jnp.array([nearest, farthest]),
            angle=jnp.float32(0.4),
            heading=jnp.float32(0.3),
            friction=jnp.array([0.8, 1.2]),
            **more,
        )


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Rectangle on the ground, along the axes [m]: `low`, `high` (x, y); trunks start no nearer to it than `clear`."""

    low: tuple[float, float]
    high: tuple[float, float]
    clear: float

    def far(self, xy: Array) -> Array:
        """`()` bool: `xy (2,)` is far enough away."""
        outside = jnp.maximum(jnp.maximum(jnp.array(self.low) - xy, xy - jnp.array(self.high)), 0.0)
        return jnp.sum(jnp.square(outside)) >= self.clear**2


def place_robot(key: Array, qpos: Array, params: Start, middle: Array, obstacles: Sequence[Obstacle] = ()) -> Array:
    """Robot at a random distance behind and angle around `middle (3,)` (x, y, heading), looking roughly at it.

    A place too near to an obstacle is drawn again, up to `DRAWS` times.
    """
    mean, half = params.distance.mean(), 0.5 * (params.distance[1] - params.distance[0])

    def place(u: Array) -> Array:
        distance = jnp.maximum(mean + params.scale * half * u[0], 0.05)
        around = jnp.clip(params.scale * params.angle * u[1], -1.4, 1.4)
        xy = middle[:2] - distance * jnp.stack([jnp.cos(middle[2] + around), jnp.sin(middle[2] + around)])
        return jnp.append(xy, middle[2] + around + params.scale * params.heading * u[2])

    chosen = place(jax.random.uniform(key, (3,), minval=-1.0))
    if obstacles:
        again = jax.random.uniform(jax.random.fold_in(key, STREAM), (DRAWS, 3), minval=-1.0)
        places = jax.vmap(place)(again)
        good = jnp.stack([jax.vmap(o.far)(places[:, :2]) for o in obstacles]).all(axis=0)
        near = ~jnp.stack([o.far(chosen[:2]) for o in obstacles]).all()
        chosen = jnp.where(near, places[jnp.argmax(good)], chosen)
    qpos = qpos.at[:2].set(chosen[:2])
    return qpos.at[3:7].set(rotations.quat_from_yaw(chosen[2]))
