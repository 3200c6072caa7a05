"""The physics contract that every environment is written against.

One protocol, two backends (`envs.physics.mjx`, `envs.physics.native`), one result.  Environments read joint slices of
`qpos`/`qvel` and named sensor slices of `sensordata`, nothing else.
"""

from __future__ import annotations

from typing import Any, Protocol

import chex
import jax
import mujoco
from flax import struct

Array = jax.Array
WARP_DEVICES = ("cpu", "gpu")  # JAX's names of what Warp runs on


@struct.dataclass
class ModelParams:
    """Per-environment deviations from the nominal `MjModel`, as multipliers (1 = nominal).

    They are data, drawn at reset and carried in the environment state, so that randomisation never swaps a model behind
    the tracer's back.

    Attributes:
      friction: `()` multiplier of the sliding friction of every contact pair.
      body_mass: `(nbody,)` multiplier of mass and inertia of each body (a payload body has a tiny nominal mass, so its
        multiplier is large).
      kp: `(nu,)` multiplier of each servo's position gain.
      kd: `(nu,)` multiplier of each servo's velocity gain.
    """

    friction: Array
    body_mass: Array
    kp: Array
    kd: Array


@struct.dataclass
class PhysicsState:
    """What an environment may read (and, for `qpos` and `qvel`, write between steps).

    Attributes:
      qpos: `(nq,)` generalised positions [m, rad, unit quaternions w first].
      qvel: `(nv,)` generalised velocities [m/s, rad/s]; free joints: linear in world, angular in body frame.
      time: `()` simulated seconds.
      sensordata: `(nsensordata,)` named sensors.  As in `mj_step`, they are evaluated at the start of the last substep.
      diverged: `()` bool, true once the state is non-finite or absurdly fast; such a state is frozen, never propagated
        (and costs the native engine nothing: `put_to_rest`).
      backend: what the backend needs besides (opaque).
    """

    qpos: Array
    qvel: Array
    time: Array
    sensordata: Array
    diverged: Array
    backend: Any = ()


class Physics(Protocol):
    """A simulator of one `mujoco.MjModel`; unbatched, batch with `jax.vmap`.

    Attributes:
      name: `native`, `mjx` or `warp`.
      model: the nominal model.
    """

    name: str
    model: mujoco.MjModel

    def nominal(self) -> ModelParams:
        """Model parameters that leave the model as it is."""
        ...

    def init(self, qpos: Array, qvel: Array, params: ModelParams | None = None) -> PhysicsState:
        """State at `qpos (nq,)`, `qvel (nv,)` with its sensors computed."""
        ...

    def step(
        self,
        state: PhysicsState,
        ctrl: Array,
        substeps: int,
        params: ModelParams | None = None,
        eq_active: Array | None = None,
    ) -> PhysicsState:
        """Advance `substeps` physics steps under a constant `ctrl (nu,)` (servo targets, rad).

        `eq_active (neq,)` switches equality constraints on (non-zero) and off for this call, None: as the model says
        (a door's latch, whose logic the environment keeps in its own state).
        """
        ...


def put_to_rest(physics: Any, done: Array) -> Any:
    """`physics` with the states of which nobody wants to know more, `done` (like its flags), flagged as if they had diverged.

    Physics without such a flag (a toy's) stays as it is.
    """
    flag = getattr(physics, "diverged", None)
    return physics if flag is None else physics.replace(diverged=flag | done)


def sensor_slices(model: mujoco.MjModel) -> dict[str, slice]:
    """Name -> slice of `sensordata`, for every named sensor."""
    return {
        model.sensor(i).name: slice(int(model.sensor_adr[i]), int(model.sensor_adr[i] + model.sensor_dim[i]))
        for i in range(model.nsensor)
    }


def check_state(model: mujoco.MjModel, qpos: Array, qvel: Array) -> None:
    """Raise `AssertionError` if the trailing dimensions do not fit the model."""
    chex.assert_axis_dimension(qpos, -1, model.nq)
    chex.assert_axis_dimension(qvel, -1, model.nv)
