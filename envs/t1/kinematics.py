"""Forward and inverse kinematics of the Booster T1's legs and arms: pure JAX, one robot at a time, batch by `jax.vmap`.

Frames: everything is expressed in the frame of the base body (the Trunk); +x forward, +y left, +z up. Units: metres,
radians.

A `Chain` holds the numbers of one limb as NumPy constants, so that zero offsets and identity rotations vanish when a
function is traced. All arithmetic is elementwise on scalars and short vectors, which `vmap` widens over the batch and
XLA fuses into few loops. Batched 3x3 products and LAPACK solves of 6x6 systems are several times slower on CPU.

The legs have a near-analytic inverse (`leg_ik`), the seven-joint arms a damped least-squares one (`arm_ik`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

LEG_JOINTS = ("Hip_Pitch", "Hip_Roll", "Hip_Yaw", "Knee_Pitch", "Ankle_Pitch", "Ankle_Roll")
ARM_JOINTS = ("Shoulder_Pitch", "Shoulder_Roll", "Elbow_Pitch", "Elbow_Yaw", "Wrist_Pitch", "Wrist_Yaw", "Hand_Roll")
LEFT_LEG, RIGHT_LEG = (tuple(f"{side}_{name}" for name in LEG_JOINTS) for side in ("Left", "Right"))
LEFT_ARM, RIGHT_ARM = (tuple(f"{side}_{name}" for name in ARM_JOINTS) for side in ("Left", "Right"))

# A reflection through the x-z plane keeps turns about y and reverses turns about x and z.
LEG_MIRROR = np.array([1, -1, -1, 1, 1, -1], np.float32)
ARM_MIRROR = np.array([1, -1, 1, -1, 1, -1, -1], np.float32)
POSITION_MIRROR = np.array([1, -1, 1], np.float32)


# --- chains ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: usable as a static argument and as a cache key
class Chain:
    """A serial limb: `n` hinges about coordinate axes, from the base frame to an end site. Fields are float64 NumPy.

    Attributes:
      joint_names: names of the hinges, base to tip.
      offset_pos: `(n, 3)` origin of each hinge's frame in the frame of the hinge before it (the base, for the first).
      offset_rot: `(n, 3, 3)` rotation of each hinge's frame at angle zero relative to the one before it.
      axis: `(n, 3)` unit hinge axes in their own frames; each is a coordinate axis up to sign.
      lower, upper: `(n,)` joint limits.
      end_pos, end_rot: `(3,)`, `(3, 3)` pose of the end site in the frame of the last hinge.
    """

    joint_names: tuple[str, ...]
    offset_pos: np.ndarray
    offset_rot: np.ndarray
    axis: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    end_pos: np.ndarray
    end_rot: np.ndarray

    @property
    def size(self) -> int:
        """Number of joints."""
        return len(self.joint_names)

    @classmethod
    def from_model(
        cls,
        model: mujoco.MjModel,
        joint_names: Sequence[str],
        base_body: str = "Trunk",
        end_site: str = "left_palm",
        held: Mapping[str, float] | None = None,
    ) -> Chain:
        """Reads a limb from a MuJoCo model.

        Args:
          model: compiled model.
          joint_names: the limb's hinges, base to tip, at most one per body.
          base_body: body whose frame poses are expressed in.
          end_site: site at the tip.
          held: angles of hinges between the base and the tip that are not in `joint_names` (default 0: the waist).

        Raises:
          ValueError: when the limb is not a chain of coordinate-axis hinges from the base to the site.
        """
        held = dict(held or {})
        site, base = model.site(end_site).id, model.body(base_body).id
        bodies = [int(model.site_bodyid[site])]
        while bodies[-1] != base:
            if bodies[-1] == 0:
                raise ValueError(f"{end_site} is not below {base_body}")
            bodies.append(int(model.body_parentid[bodies[-1]]))
        found, offsets_pos, offsets_rot, axes, limits = [], [], [], [], []
        pos, rot = np.zeros(3), np.eye(3)
        for body in reversed(bodies[:-1]):
            pos, rot = pos + rot @ model.body_pos[body], rot @ _np_mat(model.body_quat[body])
            start, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
            for joint in range(start, start + count):
                name = model.joint(joint).name
                if count > 1 or model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE or model.jnt_pos[joint].any():
                    raise ValueError(f"{name}: only single hinges at their body's origin are supported")
                axis = model.jnt_axis[joint]
                if name in joint_names:
                    if np.abs(axis).max() < 1 - 1e-9:
                        raise ValueError(f"{name}: the axis {axis} is no coordinate axis")
                    found.append(name)
                    offsets_pos.append(pos)
                    offsets_rot.append(rot)
                    axes.append(np.round(axis))
                    limits.append(model.jnt_range[joint] if model.jnt_limited[joint] else (-np.pi, np.pi))
                    pos, rot = np.zeros(3), np.eye(3)
                else:
                    half = 0.5 * held.get(name, 0.0)
                    rot = rot @ _np_mat(np.concatenate([[np.cos(half)], np.sin(half) * axis]))
        if tuple(found) != tuple(joint_names):
            raise ValueError(
                f"joints on the way from {base_body} to {end_site}: {found}, asked for {list(joint_names)}"
            )
        end_pos, end_rot = pos + rot @ model.site_pos[site], rot @ _np_mat(model.site_quat[site])
        lower, upper = np.array(limits).T
        return cls(
            tuple(found), np.array(offsets_pos), np.array(offsets_rot), np.array(axes), lower, upper, end_pos, end_rot
        )


def _np_mat(quat: np.ndarray) -> np.ndarray:
    mat = np.zeros(9)
    mujoco.mju_quat2Mat(mat, np.asarray(quat, float) / np.linalg.norm(quat))
    mat = mat.reshape(3, 3)
    return np.where(np.abs(mat) < 1e-9, 0.0, np.where(np.abs(mat - np.round(mat)) < 1e-9, np.round(mat), mat))


# --- scalar algebra that folds constants while tracing -------------------------------------------------------------
# Vectors are tuples of three and matrices tuples of nine (row-major) traced scalars or Python floats.


def _is(x, value: float) -> bool:
    return isinstance(x, float) and x == value


def _add(a, b):
    return b if _is(a, 0.0) else a if _is(b, 0.0) else a + b


def _times(a, b):
    if _is(a, 0.0) or _is(b, 0.0):
        return 0.0
    if _is(a, 1.0) or _is(b, 1.0):
        return b if _is(a, 1.0) else a
    if _is(a, -1.0) or _is(b, -1.0):
        return -(b if _is(a, -1.0) else a)
    return a * b


def _dot(a, b):
    return functools.reduce(_add, [_times(x, y) for x, y in zip(a, b, strict=True)])


def _sub3(a, b):
    return tuple(_add(x, _times(-1.0, y)) for x, y in zip(a, b, strict=True))


def _cross(a, b):
    pairs = ((1, 2), (2, 0), (0, 1))
    return tuple(_add(_times(a[i], b[j]), _times(-1.0, _times(a[j], b[i]))) for i, j in pairs)


def _mat_vec(m, v):
    return tuple(_dot(m[3 * i : 3 * i + 3], v) for i in range(3))


def _mat_mul(a, b):
    return tuple(_dot(a[3 * i : 3 * i + 3], b[j::3]) for i in range(3) for j in range(3))


def _floats(a: np.ndarray) -> tuple[float, ...]:
    return tuple(float(x) for x in np.ravel(a))


def _combine(columns, weights: np.ndarray) -> jax.Array:
    """Sum of `(3,)` vectors times constant weights, without the terms that vanish."""
    return functools.reduce(_add, [_times(float(w), c) for w, c in zip(weights, columns, strict=True)])


def _walk(chain: Chain, q: jax.Array):
    """End position `(3,)`, end rotation as 3 columns `(3,)`, joint axes and origins `(n, 3)`, all in the base frame.

    Rotations are kept as columns: a turn about a coordinate axis mixes two of them. The barriers stop XLA from
    recomputing the links nearer the base inside every output, which costs minutes of compile time and several times
    the run time.
    """
    cos, sin = jax.lax.optimization_barrier((jnp.cos(q), jnp.sin(q)))
    pos, columns = jnp.zeros(3, q.dtype), list(jnp.eye(3, dtype=q.dtype))
    axes, origins = [], []
    for n in range(chain.size):
        pos = _add(pos, _combine(columns, chain.offset_pos[n]))
        columns = [_combine(columns, chain.offset_rot[n][:, j]) for j in range(3)]
        k = int(np.argmax(np.abs(chain.axis[n])))
        sign = float(chain.axis[n, k])
        axes.append(_times(sign, columns[k]))
        origins.append(pos)
        i, j = (k + 1) % 3, (k + 2) % 3
        c, s = cos[n], _times(sign, sin[n])
        columns[i], columns[j] = c * columns[i] + s * columns[j], c * columns[j] - s * columns[i]
        pos, columns = jax.lax.optimization_barrier((pos, columns))
    pos = _add(pos, _combine(columns, chain.end_pos))
    columns = [_combine(columns, chain.end_rot[:, j]) for j in range(3)]
    return pos, columns, jnp.stack(axes), jnp.stack(origins)


def _cross_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cross products along the last axis, `(..., 3)`."""
    ax, ay, az = (a[..., i] for i in range(3))
    bx, by, bz = (b[..., i] for i in range(3))
    return jnp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def _scalars(x: jax.Array) -> tuple:
    flat = jnp.ravel(x)
    return tuple(flat[i] for i in range(flat.shape[0]))


# --- forward kinematics ---------------------------------------------------------------------------------------------


def fk(chain: Chain, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pose of the end site in the base frame: position `(3,)`, rotation `(3, 3)`, from joint angles `(n,)`."""
    pos, columns, _, _ = _walk(chain, q)
    return pos, jnp.stack(columns, axis=1)


def fk_jac(chain: Chain, q: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`fk` and the geometric Jacobian `(6, n)`: rows are linear (m/rad), then angular velocity, in the base frame."""
    pos, columns, axes, origins = _walk(chain, q)
    jac = jnp.concatenate([_cross_rows(axes, pos - origins), axes], axis=1).T
    return pos, jnp.stack(columns, axis=1), jac


# --- leg inverse ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leg:
    """Lengths the leg inverse needs (m, rad)."""

    hip: np.ndarray  # (3,) origin of the pitch hinge in the base frame
    hip_rot: np.ndarray  # (3, 3) rotation of the hip frame in the base frame (a held waist)
    drop: float  # pitch hinge to roll/yaw centre, downwards
    thigh: tuple[float, float]  # x, z from the roll/yaw centre to the knee, in the hip-yaw frame
    shank: float  # knee to ankle pitch hinge
    foot: tuple[float, float]  # y, z from the ankle pitch to the ankle roll hinge


@functools.lru_cache(maxsize=64)
def _leg(chain: Chain) -> _Leg:
    p, r = chain.offset_pos, chain.offset_rot
    expected = np.eye(3)[[1, 0, 2, 1, 1, 0]]
    zeros = [p[1, 0], p[1, 1], p[2, 0], p[2, 1], p[3, 1], p[4, 0], p[4, 1], p[5, 0]]
    same = chain.axis.shape == (6, 3) and np.array_equal(chain.axis, expected)
    if not same or np.abs(zeros).max() > 1e-9 or np.abs(r[1:] - np.eye(3)).max() > 1e-9:
        raise ValueError(f"{chain.joint_names}: not the hip pitch-roll-yaw, knee, ankle pitch-roll leg of the T1")
    thigh = (float(p[3, 0]), float(p[2, 2] + p[3, 2]))
    return _Leg(p[0], r[0], float(-p[1, 2]), thigh, float(-p[4, 2]), (float(p[5, 1]), float(p[5, 2])))


def _unit2(x, y):
    """(x, y) scaled to length one, and the length; (0, 0) gives (0, 0)."""
    square = jnp.maximum(x * x + y * y, 1e-12)
    inverse = jax.lax.rsqrt(square)
    return x * inverse, y * inverse, square * inverse


def leg_ik(
    chain: Chain, pos: jax.Array, rot: jax.Array, q0: jax.Array, *, iterations: int = 4, min_bend: float = 0.05
) -> jax.Array:
    """Joint angles `(6,)` that bring the sole to a pose given in the base frame, within the joint limits.

    The roll and yaw axes of the hip meet in a point; the pitch axis passes `drop` = 2 cm above it. Were that zero,
    the leg would have a closed-form inverse. So: guess the hip pitch, solve the rest exactly, read the hip pitch off
    the solution (a guess that is off by d comes back off by about d / 10), correct the guess by the secant rule,
    repeat. The rotation is exact after any round, the position off by `drop` times the last correction. No linear
    algebra, no step control, no trouble at a stretched knee, and the rounds need no trigonometry. Only a leg raised
    sideways by some 80 degrees or more (cos(hip roll) near 0, where hip pitch and yaw are one) defeats it; the answer
    is then finite but wrong.

    Out of reach, the foot keeps its orientation and stops on the line to the hip. Angles are clipped to their limits at
    the end. A non-finite target returns `q0`.

    Args:
      chain: a leg.
      pos, rot: `(3,)`, `(3, 3)` target of the sole site in the base frame.
      q0: `(6,)` angles of the previous tick; only the hip pitch matters, and only as the first guess.
      iterations: rounds; 4 bring the position within 2 um from a warm start (.05 rad off) and .2 mm from standing.
      min_bend: the knee stays at least this far (rad) from the angle of greatest reach, which for the T1 is .065 rad.
    """
    leg = _leg(chain)
    (tx, tz), shank, (fy, fz) = leg.thigh, leg.shank, leg.foot
    thigh, straight = float(np.hypot(tx, tz)), float(np.arctan2(-tx, -tz))
    least = max(straight + min_bend, float(chain.lower[3]))
    cos_least, cos_most = float(np.cos(least - straight)), float(np.cos(min(chain.upper[3] - straight, np.pi)))

    # Target of the last link and of its origin (the ankle roll centre) in the hip frame.
    to_hip = _floats(leg.hip_rot.T)
    sole_rot = _scalars(rot)
    foot = _mat_mul(_mat_mul(to_hip, sole_rot), _floats(chain.end_rot.T))
    centre = _mat_vec(to_hip, _sub3(_scalars(pos), _floats(leg.hip)))
    centre = _sub3(centre, _mat_vec(foot, _floats(chain.end_pos)))

    def solve(sin_p, cos_p):
        hip = (-leg.drop * sin_p, 0.0, -leg.drop * cos_p)
        vx, vy, vz = _mat_vec(tuple(foot[i] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)), _sub3(hip, centre))
        # Ankle roll: turns the hip centre into the plane in which the leg bends, which passes the roll centre at -fy.
        sy, sz, radius = _unit2(vy, vz)
        s = jnp.clip(-fy / radius, -1.0, 1.0)
        c = jnp.sqrt(1 - s * s)
        sin_b, cos_b = sy * c - sz * s, sz * c + sy * s
        # Knee, by the law of cosines in that plane, from the ankle pitch hinge to the hip centre.
        gx, gz, reach = _unit2(vx, radius * c + fz)
        cos_k = jnp.clip((reach * reach - thigh**2 - shank**2) / (2 * thigh * shank), cos_most, cos_least)
        sin_k = jnp.sqrt(1 - cos_k * cos_k)
        # Hip centre to ankle in the hip-yaw frame; the shank is turned by the knee angle = straight + the angle above.
        cs, sn = float(np.cos(straight)), float(np.sin(straight))
        ux, uz, _ = _unit2(tx - shank * (sin_k * cs + cos_k * sn), tz - shank * (cos_k * cs - sin_k * sn))
        # Knee plus ankle pitch: the turn m that takes (gx, gz) to (-ux, -uz).
        cos_m, sin_m = -(gx * ux + gz * uz), gx * uz - gz * ux
        # Columns of the hip rotation: foot Rx(-b) Ry(-m).
        col_x = _mat_vec(foot, (cos_m, sin_b * sin_m, cos_b * sin_m))
        col_y = _mat_vec(foot, (0.0, cos_b, -sin_b))
        col_z = _mat_vec(foot, (-sin_m, sin_b * cos_m, cos_b * cos_m))
        sin_p, cos_p, cos_r = _unit2(col_z[0], col_z[2])
        return sin_p, cos_p, (cos_r, cos_k, sin_k, cos_m, sin_m, sin_b, cos_b, col_x[1], col_y[1], col_z[1])

    guess_sin, guess_cos = jnp.sin(q0[0]), jnp.cos(q0[0])
    step: Any = None
    defect: Any = None
    for i in range(iterations):
        sin_p, cos_p, (cos_r, cos_k, sin_k, cos_m, sin_m, sin_b, cos_b, yx, yy, yz) = solve(guess_sin, guess_cos)
        if i == iterations - 1:
            break  # the solution is exact but for drop * (read-off pitch - guess)
        # Secant step on "read-off pitch minus guess", in sines of small angles so that it needs no trigonometry.
        last, defect = defect, sin_p * guess_cos - cos_p * guess_sin
        if i == 0:
            step, guess_sin, guess_cos = defect, sin_p, cos_p
            continue
        usable = (jnp.abs(step) > 1e-4) & (jnp.abs(step) < 0.7) & (jnp.abs(defect) < 0.35)
        slope = jnp.where(usable, 1 + (defect - last) / jnp.where(usable, step, 1.0), 0.0)
        excess = defect / (1 - jnp.clip(slope, -0.5, 0.5)) - defect  # beyond the plain step to the read-off pitch
        step = defect + excess
        guess_sin, guess_cos, _ = _unit2(sin_p + cos_p * excess, cos_p - sin_p * excess)
    knee = straight + jnp.arctan2(sin_k, cos_k)
    ankle = jnp.arctan2(sin_m, cos_m) - knee
    # m lies within +-pi, knee - m does not: bring the ankle back to the turn its limits are on.
    ankle = jnp.where(ankle < -np.pi, ankle + 2 * np.pi, ankle)
    q = jnp.stack(
        [
            jnp.arctan2(sin_p, cos_p),
            jnp.arctan2(-yz, cos_r),
            jnp.arctan2(yx, yy),
            knee,
            ankle,
            jnp.arctan2(sin_b, cos_b),
        ]
    )
    lower = np.where(np.arange(6) == 3, least, chain.lower)
    q = jnp.where(jnp.isfinite(jnp.sum(q)), q, q0)
    return jnp.clip(q, lower.astype(q0.dtype), chain.upper.astype(q0.dtype))


# --- arm inverse ----------------------------------------------------------------------------------------------------


def _solve_spd(a: jax.Array, b: jax.Array) -> jax.Array:
    """Solves a x = b for a small symmetric positive definite `(n, n)` matrix and `(n,)` right-hand side.

    LDL^T unrolled into scalars, each of which `vmap` turns into a vector over the batch: a third of the time of a
    batched LAPACK solve on CPU. The barriers keep XLA from recomputing earlier rows inside later ones.
    """
    n = b.shape[0]
    low, scaled, inverse, y = [], [], [], []  # scaled: low times the pivots
    for i in range(n):
        new_low, new_scaled, pivot, value = [], [], a[i, i], b[i]
        for j in range(i):
            entry = a[i, j]
            for k in range(j):
                entry = entry - new_scaled[k] * low[j][k]
            new_scaled.append(entry)
            new_low.append(entry * inverse[j])
        for k in range(i):
            pivot = pivot - new_scaled[k] * new_low[k]
            value = value - new_low[k] * y[k]
        row = jax.lax.optimization_barrier((new_low, new_scaled, 1.0 / pivot, value))
        for store, new in zip((low, scaled, inverse, y), row, strict=True):
            store.append(new)
    x = [y[i] * inverse[i] for i in range(n)]
    for i in reversed(range(n)):
        for k in range(i + 1, n):
            x[i] = x[i] - low[k][i] * x[k]
        x[i] = jax.lax.optimization_barrier(x[i])
    return jnp.stack(x)


def _rotation_error(target: jax.Array, current: jax.Array) -> jax.Array:
    """Rotation vector `(3,)` in the base frame that turns `current` into `target`; both have their axes as *rows*."""
    # The sum of the cross products of the axes is 2 sin(angle) * rotation axis; no matrix product is needed.
    v = 0.5 * jnp.sum(_cross_rows(current, target), axis=0)
    cosine = 0.5 * (jnp.sum(current * target) - 1.0)
    sine = jnp.sqrt(jnp.maximum(jnp.sum(v * v), 1e-12))
    return jnp.where(sine > 1e-4, jnp.arctan2(sine, cosine) / sine, 1.0) * v


def _shorten(v: jax.Array, longest: float) -> jax.Array:
    """`v` scaled down to length `longest` if it is longer."""
    return v * jnp.minimum(1.0, longest * jax.lax.rsqrt(jnp.maximum(jnp.sum(v * v), 1e-12)))


def arm_ik(
    chain: Chain,
    pos: jax.Array,
    rot: jax.Array,
    q0: jax.Array,
    q_nominal: jax.Array,
    *,
    iterations: int = 2,
    max_step: float | None = None,
    margin: float = 0.02,
    nominal_gain: float = 0.05,
    rotation_length: float = 0.2,
    damping: float = 1e-4,
) -> jax.Array:
    """Joint angles `(n,)` that move the palm towards a pose given in the base frame; keep calling it, warm-started.

    Damped least squares. The redundant joint drifts towards `q_nominal` in the null space. Joints that come near a
    limit and would be pushed further give way to the others. Long errors are shortened, so that a far target is
    approached step by step: 30 iterations reach nine in ten poses in front of the torso from a ready posture, the
    rest end in a joint limit. Where a moving target leaves the workspace, joints can move fast; bound them by
    `max_step`. A non-finite result returns `q0`.

    Args:
      chain: an arm of any number of joints.
      pos, rot: `(3,)`, `(3, 3)` target of the end site in the base frame.
      q0: `(n,)` start, normally the previous tick's result.
      q_nominal: `(n,)` posture to prefer.
      iterations: steps; 1 or 2 follow a moving target at 50 Hz.
      max_step: largest change (rad) of any joint relative to `q0`.
      margin: distance (rad) kept to the joint limits.
      nominal_gain: share of the way to `q_nominal` taken per iteration, as far as the target pose leaves it free.
      rotation_length: one radian of rotation error weighs as much as this many metres.
      damping: least squares damping (m^2 per rad^2) at the target; it grows with the squared error.
    """
    lower = (chain.lower + margin).astype(q0.dtype)
    upper = (chain.upper - margin).astype(q0.dtype)
    target_axes = rot.T

    def step(_, q):
        end, end_axes, axes, origins = _walk(chain, q)
        turn = _rotation_error(target_axes, jnp.stack(end_axes))
        error = jnp.concatenate([_shorten(pos - end, 0.15), _shorten(rotation_length * turn, 0.15)])
        columns = jnp.concatenate([_cross_rows(axes, end - origins), rotation_length * axes], axis=1)
        error, columns = jax.lax.optimization_barrier((error, columns))
        uphill = jnp.sum(columns * error, axis=1)
        # A joint that the error pushes towards a limit gives way over the last .3 rad, and the others take over:
        # smooth, so that it does not chatter. The pull fades too, else it would free the joint again in the next
        # step.
        free = jnp.clip(jnp.where(uphill > 0, upper - q, q - lower) / 0.3, 0.0, 1.0)
        usable = columns * free[:, None]
        pull = nominal_gain * (q_nominal - q) * free
        ridge = damping + 0.1 * jnp.sum(error * error)
        gram = jnp.sum(usable[:, :, None] * columns[:, None, :], axis=0) + ridge * np.eye(6, dtype=q.dtype)
        wanted = error - jnp.sum(columns * pull[:, None], axis=0)
        gram, wanted = jax.lax.optimization_barrier((gram, wanted))
        moved = q + pull + jnp.sum(usable * _solve_spd(gram, wanted), axis=1)
        return jnp.clip(moved, lower, upper)

    q = jax.lax.fori_loop(0, iterations, step, jnp.clip(q0, lower, upper))
    if max_step is not None:
        change = jnp.max(jnp.abs(q - q0))
        q = q0 + (q - q0) * jnp.minimum(1.0, max_step / jnp.maximum(change, 1e-9))
    return jnp.where(jnp.isfinite(jnp.sum(q)), q, q0)


# --- mirror images --------------------------------------------------------------------------------------------------


def mirror_joints(q: jax.Array, signs: np.ndarray) -> jax.Array:
    """Angles `(..., n)` of the opposite limb in the mirror image; `signs` is `LEG_MIRROR` or `ARM_MIRROR`."""
    return q * signs


def mirror_pos(pos: jax.Array) -> jax.Array:
    """Position(s) `(..., 3)` reflected through the x-z plane; also right for linear velocities and forces."""
    return pos * POSITION_MIRROR


def mirror_rotvec(v: jax.Array) -> jax.Array:
    """Rotation vector(s), angular velocities or torques `(..., 3)` reflected through the x-z plane."""
    return v * -POSITION_MIRROR


def mirror_mat(rot: jax.Array) -> jax.Array:
    """Rotation(s) `(..., 3, 3)` reflected through the x-z plane: both the base and the moving frame are mirrored."""
    return rot * np.outer(POSITION_MIRROR, POSITION_MIRROR)
