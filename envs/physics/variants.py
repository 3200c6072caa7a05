"""`ModelParams` applied to C models: a content-keyed table of `MjModel` copies.

Scaling a model is a handful of array writes, but a rollout needs one model per lane, so the copies are kept.  They are
found by the *bytes* of their parameters rather than by lane number: several callers (training, evaluation, one shard per
device) step different environments under the same lane numbers, and a table by lane would be rewritten at every call.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import mujoco
import numpy as np

# A model that no call used for this many calls belongs to an episode that is over, and may be overwritten.
STALE_CALLS = 64
# Bytes that the copies of one model may take before live entries are recycled too (slow, still correct).
MAX_BYTES = 2 << 30


def params_size(model: mujoco.MjModel) -> int:
    """Number of scalars in a flattened `ModelParams`: friction, body_mass, kp, kd."""
    return 1 + model.nbody + 2 * model.nu


def subtree_matrix(model: mujoco.MjModel) -> np.ndarray:
    """`(nbody, nbody)` 0/1 matrix, row b marks the bodies in the subtree of b (so that `S @ mass` = subtree mass)."""
    matrix = np.eye(model.nbody)
    for body in range(model.nbody - 1, 0, -1):
        matrix[model.body_parentid[body]] += matrix[body]
    return matrix


def writer(base: mujoco.MjModel, target: mujoco.MjModel) -> Callable[[np.ndarray], None]:
    """A function that writes `base` scaled by flat parameters `(params_size,)` into `target`.

    What follows from a mass and is *used by the dynamics* is kept consistent: inertia, subtree mass, the inertia that the
    engine takes for granted for simple bodies (a free box), and gravity compensation, which stays that of the nominal body
    (a robot compensates the arm it believes to have, not its payload).
    `*_invweight0` and `actuator_acc0` stay nominal, in both backends: recomputing them takes a factorisation per model
    (`mj_setConst`) that MJX cannot do, and they only set the softness of constraints (see `tests/envs/test_physics.py`
    for how little that changes).
    """
    nbody, nu = base.nbody, base.nu
    subtree = subtree_matrix(base)
    mass0, inertia0, gravcomp0 = base.body_mass.copy(), base.body_inertia.copy(), base.body_gravcomp.copy()
    pair0, geom0 = base.pair_friction[:, :2].copy(), base.geom_friction[:, 0].copy()
    gain0 = base.actuator_gainprm[:, 0].copy()
    bias1, bias2 = base.actuator_biasprm[:, 1:3].copy().T
    # A free body in its own principal frame has a constant, diagonal inertia, which `mj_crb` reads here instead of computing it:
    # scaled only elsewhere, twice the mass would fall twice as fast.
    simple = np.flatnonzero(base.dof_simplenum)
    simple_body, armature0 = base.dof_bodyid[simple], base.dof_armature[simple].copy()
    diagonal0 = base.dof_M0[simple] - armature0
    # Views made once: every attribute access of an MjModel builds a new array.
    mass, inertia, gravcomp = target.body_mass, target.body_inertia, target.body_gravcomp
    subtreemass, pair, geom = target.body_subtreemass, target.pair_friction, target.geom_friction
    gain, bias, diagonal = target.actuator_gainprm, target.actuator_biasprm, target.dof_M0

    def write(flat: np.ndarray) -> None:
        friction, scale = flat[0], flat[1 : 1 + nbody]
        kp, kd = flat[1 + nbody : 1 + nbody + nu], flat[1 + nbody + nu :]
        mass[:] = mass0 * scale
        inertia[:] = inertia0 * scale[:, None]
        gravcomp[:] = gravcomp0 / scale
        subtreemass[:] = subtree @ mass
        diagonal[simple] = armature0 + diagonal0 * scale[simple_body]
        pair[:, :2] = pair0 * friction
        geom[:, 0] = geom0 * friction
        gain[:, 0] = gain0 * kp
        bias[:, 1] = bias1 * kp
        bias[:, 2] = bias2 * kd

    return write


def scaled(base: mujoco.MjModel, flat: np.ndarray) -> mujoco.MjModel:
    """A new copy of `base` scaled by flat parameters `(params_size,)`."""
    target = copy.copy(base)
    writer(base, target)(np.asarray(flat, np.float64))
    return target


class ModelTable:
    """Copies of one base model, one per distinct `ModelParams` in use.  Not thread-safe: call under the engine's lock."""

    def __init__(self, base: mujoco.MjModel, max_bytes: int = MAX_BYTES):
        self.base = base
        self.max_entries = max(1, int(max_bytes // mujoco.mj_sizeModel(base)))
        self.writes = 0  # how often a model was (re)written; read by tests and benchmarks
        self._calls = 0
        # key -> [model, write function, call of last use]; least recently used first.
        self._entries: OrderedDict[bytes, list] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, flat: np.ndarray) -> list[mujoco.MjModel]:
        """One model per row of `flat (lanes, params_size)`; rows of ones get the base model itself."""
        flat = np.ascontiguousarray(flat)
        width = flat.shape[1] * flat.itemsize
        if not width or (flat == 1).all():
            return [self.base] * len(flat)
        self._calls += 1
        buffer, one = flat.tobytes(), np.ones_like(flat[0]).tobytes()
        models = []
        for lane in range(len(flat)):
            key = buffer[lane * width : (lane + 1) * width]
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry[2] = self._calls
                models.append(entry[0])
            elif key == one:
                models.append(self.base)
            else:
                models.append(self._write(key, flat[lane]))
        return models

    def _write(self, key: bytes, flat: np.ndarray) -> mujoco.MjModel:
        entry = self._recycled()
        if entry is None:
            target = copy.copy(self.base)
            entry = [target, writer(self.base, target), 0]
        entry[1](flat.astype(np.float64))
        entry[2] = self._calls
        self._entries[key] = entry
        self.writes += 1
        return entry[0]

    def _recycled(self) -> list | None:
        """The entry least recently used, if it may be overwritten (never one that this very call handed out)."""
        if not self._entries:
            return None
        oldest = next(iter(self._entries))
        age = self._calls - self._entries[oldest][2]
        full = len(self._entries) >= self.max_entries
        if age > STALE_CALLS or (full and age > 0):
            return self._entries.pop(oldest)
        return None
