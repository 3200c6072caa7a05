"""Physics backend `native`: MuJoCo's C engine, called from inside jit.

A callback (see `envs.physics.callback`) hands all lanes of a batch to one `mujoco.rollout.Rollout`, whose C++ threads
step them without the Python lock.  There is *one* pool per process, behind a lock: a pool per calling thread crashed,
and two rollouts at a time would only fight over the same cores.  Callbacks use NumPy only; JAX inside a callback can
deadlock.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np

from envs.physics import guard
from envs.physics.base import ModelParams, PhysicsState
from envs.physics.callback import batched_callback
from envs.physics.variants import ModelTable, params_size
from rdp_jax.machine import usable_cores

Array = jax.Array

_CTRL = mujoco.mjtState.mjSTATE_CTRL.value
_EQ_ACTIVE = mujoco.mjtState.mjSTATE_EQ_ACTIVE.value
_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS.value


class _Pool:
    """The process-wide rollout pool and its lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.threads = usable_cores()
        self._rollout: mujoco.rollout.Rollout | None = None

    def resize(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads: must be at least 1, got {threads}")
        with self.lock:
            if threads != self.threads and self._rollout is not None:
                self._rollout.close()
                self._rollout = None
            self.threads = threads

    def get(self) -> mujoco.rollout.Rollout:
        if self._rollout is None:
            self._rollout = mujoco.rollout.Rollout(nthread=self.threads)
        return self._rollout


POOL = _Pool()


def digest(model: mujoco.MjModel) -> str:
    """Of all that is in a model: the same wherever it is the same."""
    found = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, found)
    return hashlib.sha256(found.tobytes()).hexdigest()[:16]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Engine warnings (a state that blows up) neither printed nor written to `MUJOCO_LOG.TXT` in the working directory;
    the caller sees them as `diverged`.  Use under the pool's lock."""
    if not hasattr(mujoco, "MjLogConfig"):  # MuJoCo before its logging API
        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(handler)
        return
    old, quiet = mujoco.MjLogConfig.get(), mujoco.MjLogConfig.get()
    quiet.logto_console = quiet.logto_file = False
    quiet.set()
    try:
        yield
    finally:
        old.set()


class NativePhysics:
    """`envs.physics.base.Physics` on MuJoCo's C engine.

    State is float64 inside the engine and JAX's float type outside.  As `mujoco.rollout` does, the solver's warm start is
    zeroed at every call.  `init` computes sensors with zero `ctrl`.

    Args:
      model: the model; copied, later changes to it have no effect.
      threads: size of the process-wide pool; None leaves it as it is (first: all usable cores).

    Raises:
      ValueError: the model has state that is not carried (plugins, delayed actuators).
    """

    name = "native"

    def __init__(self, model: mujoco.MjModel, threads: int | None = None):
        if threads is not None:
            POOL.resize(threads)
        if mujoco.mj_stateSize(model, _FULL) != 1 + model.nq + model.nv + model.na:
            raise ValueError("model: plugin or history state is not supported by the native backend")
        self.model = model
        self._base = copy.copy(model)
        # A lane that blows up must come back as it is, to be seen, and not silently reset.
        self._base.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET.value
        self.table = ModelTable(self._base)
        self._name = f"rdp_native_{digest(self._base)}"
        self._nparams = params_size(model)
        self._data: list[mujoco.MjData] = []
        self._buffers: dict[str, np.ndarray] = {}

    def nominal(self) -> ModelParams:
        """Model parameters that leave the model as it is."""
        return guard.nominal_params(self.model)

    def init(self, qpos: Array, qvel: Array, params: ModelParams | None = None) -> PhysicsState:
        """See `envs.physics.base.Physics.init`."""
        m = self.model

        def sense(qpos: Array, qvel: Array) -> Array:
            parts = [jnp.zeros(1, qpos.dtype), qpos, qvel, jnp.zeros(m.na, qpos.dtype)]
            if params is not None:
                parts.append(guard.flatten_params(params).astype(qpos.dtype))
            packed = jnp.concatenate(parts)
            return guard.vary_like(
                batched_callback(self._init_host, m.nsensordata, packed, f"{self._name}_init"), packed
            )

        return guard.guarded_init(m, sense, qpos, qvel)

    def step(
        self,
        state: PhysicsState,
        ctrl: Array,
        substeps: int,
        params: ModelParams | None = None,
        eq_active: Array | None = None,
    ) -> PhysicsState:
        """See `envs.physics.base.Physics.step`."""
        m = self.model
        nx = m.nq + m.nv + m.na

        def advance(qpos, qvel, act, time, ctrl, good):
            # One array in and one out: each argument of a callback costs a transfer.
            parts = [good[None].astype(qpos.dtype), time[None], qpos, qvel, act, ctrl]
            if eq_active is not None:
                parts.append(eq_active.astype(qpos.dtype))
            if params is not None:
                parts.append(guard.flatten_params(params).astype(qpos.dtype))
            packed = jnp.concatenate(parts)

            def host(packed):
                return self._step_host(packed, substeps, eq_active is not None)

            name = f"{self._name}_step_{substeps}_{eq_active is not None:d}"
            new = guard.vary_like(batched_callback(host, nx + m.nsensordata + 1, packed, name), packed)
            qpos, qvel, act, sensordata, ok = jnp.split(new, np.cumsum([m.nq, m.nv, m.na, m.nsensordata]))
            return qpos, qvel, act, sensordata, ok[0] > 0

        return guard.guarded_step(m, advance, state, ctrl, substeps, eq_active)

    # Host side: NumPy only, everything under the pool's lock.

    def _step_host(self, packed: np.ndarray, substeps: int, with_eq: bool) -> np.ndarray:
        """`(lanes, nin)` packed lanes -> `(lanes, nout)`: qpos, qvel, act, sensordata, ok; zeros, at no cost, of those that are
        not good."""
        m = self._base
        result = np.zeros((len(packed), m.nq + m.nv + m.na + m.nsensordata + 1), packed.dtype)
        good = np.flatnonzero(packed[:, 0])
        if len(good):
            result[good] = self._advance_host(packed[good, 1:], substeps, with_eq)
        return result

    def _advance_host(self, packed: np.ndarray, substeps: int, with_eq: bool) -> np.ndarray:
        """As `_step_host`, all of them good."""
        lanes, m = len(packed), self._base
        nx, ns = m.nq + m.nv + m.na, m.nsensordata
        nc = m.nu + (m.neq if with_eq else 0)
        result = np.empty((lanes, nx + ns + 1), packed.dtype)
        with POOL.lock:
            start = self._buffer("start", lanes, 1, 1 + nx)[:, 0]
            control = self._buffer("control", lanes, substeps, nc)
            states = self._buffer("states", lanes, substeps, 1 + nx)
            sensors = self._buffer("sensors", lanes, substeps, ns)
            start[:] = packed[:, : 1 + nx]
            control[:] = packed[:, None, 1 + nx : 1 + nx + nc]
            models = self._models(packed[:, 1 + nx + nc :])
            pool = POOL.get()
            with _quiet():
                pool.rollout(
                    models,
                    self._thread_data(pool.nthread),
                    start,
                    control if nc else None,
                    control_spec=_CTRL | _EQ_ACTIVE if with_eq else _CTRL,
                    skip_checks=True,
                    nstep=substeps,
                    state=states,
                    sensordata=sensors if ns else None,
                    chunk_size=max(1, lanes // (pool.nthread * 8)),
                )
            last = states[:, -1]
            with np.errstate(over="ignore", invalid="ignore"):
                result[:, :nx] = last[:, 1:]
                result[:, nx:-1] = sensors[:, -1]
                speed_ok = (np.abs(last[:, 1 + m.nq : 1 + m.nq + m.nv]) <= guard.MAX_SPEED).all(-1)
                # The engine stops a lane at its first warning (say, contact memory full): its clock then lags.
                elapsed = last[:, 0] - start[:, 0]
                on_time = np.abs(elapsed - substeps * m.opt.timestep) < 0.5 * m.opt.timestep
            ok = speed_ok & on_time & np.isfinite(result[:, :-1]).all(-1)
        result[:, -1] = ok
        result[~ok, :-1] = 0
        return result

    def _init_host(self, packed: np.ndarray) -> np.ndarray:
        """`(lanes, nin)` packed lanes -> `(lanes, nsensordata)`; a rollout cannot do zero steps, so mj_forward."""
        m = self._base
        nstate = 1 + m.nq + m.nv + m.na
        result = np.empty((len(packed), m.nsensordata), packed.dtype)
        with POOL.lock, _quiet():
            data = self._thread_data(1)[0]
            sensordata, warmstart = data.sensordata, data.qacc_warmstart
            data.ctrl[:] = 0
            data.eq_active[:] = m.eq_active0
            start = packed[:, :nstate].astype(np.float64)
            models = self._models(packed[:, nstate:])
            for lane, model in enumerate(models):
                warmstart[:] = 0
                mujoco.mj_setState(model, data, start[lane], _FULL)
                mujoco.mj_forward(model, data)
                result[lane] = sensordata
        result[~np.isfinite(result).all(-1)] = 0
        return result

    def _models(self, flat: np.ndarray) -> list[mujoco.MjModel]:
        """One model per lane, from `(lanes, params_size)`, or `(lanes, 0)` for nominal ones."""
        if not flat.shape[1]:
            return [self._base] * len(flat)
        return self.table.lookup(flat)

    def _thread_data(self, count: int) -> list[mujoco.MjData]:
        while len(self._data) < max(count, 1):
            self._data.append(mujoco.MjData(self._base))
        return self._data[: max(count, 1)]

    def _buffer(self, name: str, lanes: int, steps: int, width: int) -> np.ndarray:
        """A contiguous `(lanes, steps, width)` view of a buffer that only grows; valid until the lock is released."""
        size = lanes * steps * width
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.float64)
        return buffer[:size].reshape(lanes, steps, width)
