"""Where the robot starts: a random distance, angle and heading around the place where its work begins."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from envs.t1 import rotations

Array = jax.Array


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


def place_robot(key: Array, qpos: Array, params: Start, middle: Array) -> Array:
    """Robot at a random distance behind and angle around `middle (3,)` (x, y, heading), looking roughly at it."""
    u = jax.random.uniform(key, (3,), minval=-1.0)
    mean, half = params.distance.mean(), 0.5 * (params.distance[1] - params.distance[0])
    distance = jnp.maximum(mean + params.scale * half * u[0], 0.05)
    around = jnp.clip(params.scale * params.angle * u[1], -1.4, 1.4)
    xy = middle[:2] - distance * jnp.stack([jnp.cos(middle[2] + around), jnp.sin(middle[2] + around)])
    yaw = middle[2] + around + params.scale * params.heading * u[2]
    qpos = qpos.at[:2].set(xy)
    return qpos.at[3:7].set(rotations.quat_from_yaw(yaw))
