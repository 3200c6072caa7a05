"""Episode randomisation of the physics: draw `ModelParams` within ranges, pure JAX, ids resolved from names once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.physics.base import ModelParams
from rdp_jax.config import ConfigError, ranged

Array = jax.Array


@struct.dataclass
class Ranges:
    """What varies between episodes, as `(low, high)` of uniform distributions.

    A pytree of numbers, so that a curriculum may change it without a new compile; `rdp_jax.config.validate` checks it
    while it is still made of Python numbers.
    """

    friction: tuple[float, float] = ranged(
        (0.4, 1.2), 0.05, 3.0, "sliding friction; 1 is the scenes' nominal coefficient"
    )
    mass: tuple[float, float] = ranged((0.85, 1.15), 0.2, 5.0, "multiplier of each body's mass and inertia")
    payload: tuple[float, float] = ranged((0.0, 2.0), 0.0, 10.0, "mass held by each hand", "kg")
    gain: tuple[float, float] = ranged((0.9, 1.1), 0.2, 5.0, "multiplier of each servo's gains")

    def check(self) -> None:
        """Raises `ConfigError` for a range that is not `(low, high)` with low <= high."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if len(value) != 2 or value[0] > value[1]:
                raise ConfigError(field.name, value, "(low, high) with low <= high")


NOTHING = Ranges(friction=(1.0, 1.0), mass=(1.0, 1.0), payload=(0.0, 0.0), gain=(1.0, 1.0))
"""Ranges that leave the nominal model."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the ranges apply to in one model; static under jit.

    Attributes:
      scaled: `(nbody,)` bool, bodies whose mass is randomised.
      payload: `(hands,)` ids of the payload bodies.
      payload_mass: `(hands,)` their nominal (tiny) masses [kg].
      nu: number of servos.
    """

    scaled: np.ndarray
    payload: np.ndarray
    payload_mass: np.ndarray
    nu: int

    @classmethod
    def from_model(
        cls, model: mujoco.MjModel, payload_bodies: Sequence[str] = (), fixed_bodies: Sequence[str] = ()
    ) -> Targets:
        """Resolve names.

        Args:
          model: the model.
          payload_bodies: bodies of tiny mass that stand for what the hands hold.
          fixed_bodies: bodies whose mass is left alone (a task's objects, say).

        Raises:
          KeyError: a name that the model lacks.
          ValueError: a payload body without mass, which no multiplier could load.
        """
        payload = np.array([model.body(name).id for name in payload_bodies], np.int32)
        mass = model.body_mass[payload]
        if (mass <= 0).any():
            raise ValueError(
                f"payload_bodies: {list(payload_bodies)} need a positive nominal mass, got {mass.tolist()}"
            )
        scaled = np.ones(model.nbody, bool)
        scaled[[0, *payload, *(model.body(name).id for name in fixed_bodies)]] = False
        return cls(scaled=scaled, payload=payload, payload_mass=mass, nu=model.nu)


def sample_model_params(key: Array, targets: Targets, ranges: Ranges) -> ModelParams:
    """One draw: friction common to all contacts, mass per body, load per hand, kp and kd per servo, all independent.

    Gains are those of the servo, so kp and kd of one joint vary apart.
    """
    nbody, hands, nu = len(targets.scaled), len(targets.payload), targets.nu
    draws = jax.random.uniform(key, (1 + nbody + hands + 2 * nu,))
    friction, mass, load, kp, kd = jnp.split(draws, np.cumsum([1, nbody, hands, nu]))

    def within(bounds: tuple[float, float], unit: Array) -> Array:
        return bounds[0] + (bounds[1] - bounds[0]) * unit

    nominal = jnp.asarray(targets.payload_mass, draws.dtype)
    scale = jnp.where(targets.scaled, within(ranges.mass, mass), 1.0)
    return ModelParams(
        friction=within(ranges.friction, friction[0]),
        body_mass=scale.at[targets.payload].set((nominal + within(ranges.payload, load)) / nominal),
        kp=within(ranges.gain, kp),
        kd=within(ranges.gain, kd),
    )
