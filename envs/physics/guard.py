"""What both backends do around the engine: start from finite numbers, and freeze a state that the engine blew up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from envs.physics.base import ModelParams, PhysicsState, check_state

Array = jax.Array

# rad/s or m/s; no joint or object of these environments gets near it unless the integration has failed.
MAX_SPEED = 200.0


def nominal_params(model: mujoco.MjModel) -> ModelParams:
    """`ModelParams` of ones, in JAX's default float type."""
    return ModelParams(
        friction=jnp.ones(()), body_mass=jnp.ones(model.nbody), kp=jnp.ones(model.nu), kd=jnp.ones(model.nu)
    )


def flatten_params(params: ModelParams) -> Array:
    """`(1 + nbody + 2 nu,)` in the order of `variants.writer`."""
    return jnp.concatenate([params.friction[None], params.body_mass, params.kp, params.kd])


def finite(*arrays: Array) -> Array:
    """`()` bool: every entry of every array is finite."""
    return jnp.stack([jnp.isfinite(a).all() for a in arrays]).all()


def vary_like(tree: Any, ref: Array) -> Any:
    """`tree` with every leaf marked as varying over the mesh axes that `ref` varies over.

    Inside `shard_map`, constants and results of callbacks count as equal on all devices; a scan then refuses a carry
    whose marks change.  Outside, this does nothing.
    """
    kind = jax.typeof(ref)
    axes = getattr(kind, "vma", None)
    if axes is None:  # later JAX
        axes = getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(axes), to="varying"), tree) if axes else tree


# (qpos, qvel, act, time, ctrl, good) -> (qpos, qvel, act, sensordata, ok); what comes of a lane that is not good is not used
Advance = Callable[[Array, Array, Array, Array, Array, Array], tuple[Array, Array, Array, Array, Array]]


def guarded_init(
    model: mujoco.MjModel, sense: Callable[[Array, Array], Array], qpos: Array, qvel: Array
) -> PhysicsState:
    """State at `qpos (nq,)`, `qvel (nv,)`; `sense` gives the sensors of a finite state.  A non-finite one is replaced by
    the model's reference pose at rest and flagged."""
    check_state(model, qpos, qvel)
    dtype = jnp.result_type(float)
    qpos, qvel = jnp.asarray(qpos, dtype), jnp.asarray(qvel, dtype)
    good = finite(qpos, qvel)
    qpos = jnp.where(good, qpos, jnp.asarray(model.qpos0, dtype))
    qvel = jnp.where(good, qvel, 0.0)
    time, act = vary_like((jnp.zeros((), dtype), jnp.zeros(model.na, dtype)), qpos)
    return PhysicsState(
        qpos=qpos,
        qvel=qvel,
        time=time,
        sensordata=sense(qpos, qvel),
        diverged=~good,
        backend=act if model.na else (),
    )


def guarded_step(
    model: mujoco.MjModel,
    advance: Advance,
    state: PhysicsState,
    ctrl: Array,
    substeps: int,
    eq_active: Array | None = None,
) -> PhysicsState:
    """`advance` applied to `state`, unless the state is flagged, or to be flagged, as diverged.

    The engine always gets finite numbers (the reference pose stands in for a diverged lane), because one bad lane must
    neither slow the others down nor make the engine print warnings.  A diverged state keeps its last good numbers.
    """
    check_state(model, state.qpos, state.qvel)
    if ctrl.shape[-1:] != (model.nu,):
        raise ValueError(f"ctrl: last dimension must be {model.nu}, got shape {ctrl.shape}")
    if eq_active is not None and eq_active.shape[-1:] != (model.neq,):
        raise ValueError(f"eq_active: last dimension must be {model.neq}, got shape {eq_active.shape}")
    if substeps < 1:
        raise ValueError(f"substeps: must be at least 1, got {substeps}")
    dtype = state.qpos.dtype
    qpos0 = jnp.asarray(model.qpos0, dtype)
    good_state = finite(state.qpos, state.qvel) & (jnp.abs(state.qvel) <= MAX_SPEED).all()
    good = good_state & finite(ctrl) & ~state.diverged
    act = state.backend if model.na else jnp.zeros(0, dtype)

    qpos, qvel, new_act, sensordata, ok = advance(
        jnp.where(good, state.qpos, qpos0),
        jnp.where(good, state.qvel, 0.0),
        jnp.where(good, act, 0.0),
        state.time,
        jnp.where(good, ctrl, 0.0).astype(dtype),
        good,
    )
    good &= ok

    def keep(new, old):
        return jnp.where(good, new, old)

    # An environment may have *written* something absurd: then the old numbers are no good either.
    old_qpos = jnp.where(good_state, state.qpos, qpos0)
    old_qvel = jnp.where(good_state, state.qvel, 0.0)
    return PhysicsState(
        qpos=keep(qpos, old_qpos),
        qvel=keep(qvel, old_qvel),
        time=keep(state.time + substeps * model.opt.timestep, state.time).astype(dtype),
        sensordata=keep(sensordata, state.sensordata),
        diverged=~good,
        backend=keep(new_act, act) if model.na else (),
    )
