"""Physics backends `mjx` and `warp`: MuJoCo re-implemented on JAX (any device), and on Warp (NVIDIA, and slowly a CPU).

The model given decides the engine's options (iterations, `ls_iterations`, cone): the engines want different ones.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import os
import warnings

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.physics import guard
from envs.physics.base import WARP_DEVICES, ModelParams, PhysicsState
from envs.physics.variants import subtree_matrix
from rdp_jax.machine import usable_cores

with contextlib.redirect_stdout(io.StringIO()):  # without Warp, which is optional, the import prints an error
    from mujoco import mjx

Array = jax.Array

# Threads of XLA's CPU pool with which MJX is safe, see `widen_thread_pool`.
SAFE_THREADS = 8

# Warp keeps one contact buffer for all environments of a batch and cannot know how many there will be.
WARP_CONTACTS = 24 * 8192
WARP_LIMITS = 1 << 9 | 1 << 10  # of its warnings: solver and line search at their last iteration
WARP_CONSTRAINTS = 256
SLIPPERY = 1e-3  # coefficient of friction


def widen_thread_pool() -> None:
    """Give XLA's CPU thread pool enough threads for MJX; call it before JAX is first used, later it has no effect.

    From jaxlib 0.10 on, batched LAPACK calls (MJX's Cholesky factors) spread their work over XLA's thread pool and wait for
    it *inside* that pool, and XLA may run two of them at once: with two threads, both wait forever.  XLA takes the number
    of threads from `NPROC`, else from the cores or, if more, the (virtual) devices.
    """
    os.environ.setdefault("NPROC", str(max(SAFE_THREADS, usable_cores())))


def _pool_threads() -> int:
    nproc = os.environ.get("NPROC", "")
    return int(nproc) if nproc.isdigit() else max(usable_cores(), jax.local_device_count())


def with_cones(model: mujoco.MjModel) -> mujoco.MjModel:
    """`model` with such elliptic cones as MJX can take; itself if its cones are pyramids.

    MJX has no frictionless contacts beside elliptic cones, so they get hardly any friction; and it does not bear friction stiffer
    than the normal force: with an `impratio` of 10 a standing robot jumps (docs/design.md).
    """
    if model.opt.cone != mujoco.mjtCone.mjCONE_ELLIPTIC:
        return model
    changed, flat = copy.copy(model), model.pair_dim == 1
    changed.pair_dim[flat], changed.pair_friction[flat] = 3, SLIPPERY
    changed.opt.impratio = 1.0
    return changed


def _silent(model: mjx.Model) -> mjx.Model:
    """`model` of Warp's without the lines that its kernels print wherever its solver ends at the last iteration, as is meant."""
    own = model.opt._impl
    return model.replace(opt=model.opt.replace(_impl=own.replace(warn_overflow=own.warn_overflow & ~WARP_LIMITS)))


class MjxPhysics:
    """`envs.physics.base.Physics` on `mujoco.mjx`.

    Only `qpos`, `qvel` (and actuator state, if the model has any) live between steps; everything else is recomputed, and
    the solver starts cold, as in the native backend.  Under `jax.shard_map` use `check_vma=False`: MJX's own solver loops
    do not pass that check.  On a CPU with few cores see `widen_thread_pool`.

    Args:
      model: the model, with options meant for this engine.
      impl: `jax`, or `warp` (opt-in: needs the `warp-lang` package; meant for an NVIDIA GPU, on a CPU for agreement only).
      contacts: warp only, most contacts of a whole batch.
      constraints: warp only, most constraint rows of one environment.

    Raises:
      ValueError: `impl` is unknown, or `warp` is not possible here.
      NotImplementedError: the model uses a feature that MJX lacks (MJX's own message).
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        impl: str = "jax",
        contacts: int = WARP_CONTACTS,
        constraints: int = WARP_CONSTRAINTS,
    ):
        if impl not in ("jax", "warp"):
            raise ValueError(f"impl: {impl!r} is unknown; choose jax or warp")
        if impl == "warp":
            if jax.default_backend() not in WARP_DEVICES:
                raise ValueError(
                    f"impl: 'warp' runs on {' and '.join(WARP_DEVICES)}; JAX runs on {jax.default_backend()!r} here, "
                    "use 'jax'"
                )
            if importlib.util.find_spec("warp") is None:
                raise ValueError("impl: 'warp' needs the package warp-lang, which is not installed; use 'jax'")
        self.name = "mjx" if impl == "jax" else "warp"
        self.model = model
        if impl == "jax" and jax.default_backend() == "cpu" and _pool_threads() < 4:
            warnings.warn(
                f"MJX on a CPU with {_pool_threads()} pool threads may hang in batched LAPACK calls: "
                f"set NPROC={SAFE_THREADS} in the environment, or use the native backend",
                RuntimeWarning,
                stacklevel=2,
            )
        on_device = with_cones(model) if impl == "jax" else model
        self._mjx_model = mjx.put_model(on_device, impl=impl)
        if impl == "jax":
            self._data = mjx.make_data(on_device, impl=impl)
        else:
            self._mjx_model = _silent(self._mjx_model)
            self._data = mjx.make_data(model, impl=impl, naconmax=contacts, njmax=constraints)
        self._subtree = subtree_matrix(model).astype(np.float32)

    def nominal(self) -> ModelParams:
        """Model parameters that leave the model as it is."""
        return guard.nominal_params(self.model)

    def init(self, qpos: Array, qvel: Array, params: ModelParams | None = None) -> PhysicsState:
        """See `envs.physics.base.Physics.init`."""

        def sense(qpos: Array, qvel: Array) -> Array:
            return mjx.forward(self._scaled(params), self._data.replace(qpos=qpos, qvel=qvel)).sensordata

        return guard.guarded_init(self.model, sense, qpos, qvel)

    def step(
        self,
        state: PhysicsState,
        ctrl: Array,
        substeps: int,
        params: ModelParams | None = None,
        eq_active: Array | None = None,
    ) -> PhysicsState:
        """See `envs.physics.base.Physics.step`."""
        model = self._scaled(params)

        def advance(qpos, qvel, act, time, ctrl, good):
            del good  # all lanes cost the same
            data = self._data.replace(qpos=qpos, qvel=qvel, act=act, time=time, ctrl=ctrl)
            if eq_active is not None:
                data = data.replace(eq_active=eq_active.astype(self._data.eq_active.dtype))
            # A scan, not an unrolled loop: the step's graph is large and compiling it once is slow enough.
            data, _ = jax.lax.scan(lambda d, _: (mjx.step(model, d), None), data, None, length=substeps)
            ok = guard.finite(data.qpos, data.qvel, data.sensordata) & (jnp.abs(data.qvel) <= guard.MAX_SPEED).all()
            return data.qpos, data.qvel, data.act, data.sensordata, ok

        return guard.guarded_step(self.model, advance, state, ctrl, substeps, eq_active)

    def _scaled(self, params: ModelParams | None) -> mjx.Model:
        """The MJX model scaled as `variants.writer` scales the C model."""
        m = self._mjx_model
        if params is None:
            return m
        mass = m.body_mass * params.body_mass
        return m.replace(
            body_mass=mass,
            body_inertia=m.body_inertia * params.body_mass[:, None],
            body_gravcomp=m.body_gravcomp / params.body_mass,
            body_subtreemass=jnp.asarray(self._subtree, mass.dtype) @ mass,
            pair_friction=m.pair_friction.at[:, :2].multiply(params.friction),
            geom_friction=m.geom_friction.at[:, 0].multiply(params.friction),
            actuator_gainprm=m.actuator_gainprm.at[:, 0].multiply(params.kp),
            actuator_biasprm=m.actuator_biasprm.at[:, 1].multiply(params.kp).at[:, 2].multiply(params.kd),
        )
