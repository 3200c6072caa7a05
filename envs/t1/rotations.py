"""Rotation helpers: quaternions are w-first, matrices act on column vectors, angles are radians.

Every function takes any leading batch shape `...`, stays in the dtype of its input, and returns finite numbers for
finite inputs (a zero quaternion or a degenerate 6-D representation gives *some* rotation rather than NaN). Components
are written out one by one: under `vmap` that fuses into elementwise loops over the batch, which on CPU beats many
tiny matrix products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_TINY = 1e-12


def wrap_angle(angle: jax.Array) -> jax.Array:
    """Angle(s) wrapped to [-pi, pi)."""
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


def quat_normalize(q: jax.Array) -> jax.Array:
    """Unit quaternion `(..., 4)`; the zero quaternion becomes the identity."""
    square = jnp.sum(q * q, axis=-1, keepdims=True)
    identity = jnp.zeros_like(q).at[..., 0].set(1)
    return jnp.where(square > _TINY, q * jax.lax.rsqrt(jnp.maximum(square, _TINY)), identity)


def quat_mul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Hamilton product `(..., 4)`: the rotation b followed by a."""
    aw, ax, ay, az = (a[..., i] for i in range(4))
    bw, bx, by, bz = (b[..., i] for i in range(4))
    return jnp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def quat_conj(q: jax.Array) -> jax.Array:
    """Conjugate `(..., 4)`: the inverse of a unit quaternion."""
    return jnp.concatenate([q[..., :1], -q[..., 1:]], axis=-1)


def _cross(a: jax.Array, b: jax.Array) -> jax.Array:
    ax, ay, az = (a[..., i] for i in range(3))
    bx, by, bz = (b[..., i] for i in range(3))
    return jnp.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)


def quat_rotate(q: jax.Array, v: jax.Array) -> jax.Array:
    """Vector(s) `(..., 3)` rotated by unit quaternion(s) `(..., 4)`: body to world for a body's quaternion."""
    w, u = q[..., :1], q[..., 1:]
    t = 2 * _cross(u, v)
    return v + w * t + _cross(u, t)


def quat_rotate_inv(q: jax.Array, v: jax.Array) -> jax.Array:
    """Vector(s) `(..., 3)` rotated by the inverse of `q`: world frame to body frame for a body's quaternion."""
    w, u = q[..., :1], q[..., 1:]
    t = 2 * _cross(u, v)
    return v - w * t + _cross(u, t)


def quat_to_mat(q: jax.Array) -> jax.Array:
    """Rotation matrix `(..., 3, 3)` of unit quaternion(s) `(..., 4)`."""
    w, x, y, z = (q[..., i] for i in range(4))
    rows = [
        jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=-1),
        jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=-1),
        jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1),
    ]
    return jnp.stack(rows, axis=-2)


def mat_to_quat(m: jax.Array) -> jax.Array:
    """Unit quaternion `(..., 4)` with w >= 0 of rotation matrices `(..., 3, 3)`, accurate at every angle."""
    xx, xy, xz = (m[..., 0, i] for i in range(3))
    yx, yy, yz = (m[..., 1, i] for i in range(3))
    zx, zy, zz = (m[..., 2, i] for i in range(3))
    # 4 q q^T, row by row; the row with the largest diagonal entry loses no precision to cancellation.
    rows = [
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx),
        (xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy),
        (yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz),
    ]
    best, largest = rows[0], rows[0][0]
    for i in (1, 2, 3):
        better = rows[i][i] > largest
        best = tuple(jnp.where(better, new, old) for new, old in zip(rows[i], best, strict=True))
        largest = jnp.where(better, rows[i][i], largest)
    q = quat_normalize(jnp.stack(best, axis=-1))
    return jnp.where(q[..., :1] < 0, -q, q)


def quat_from_yaw(yaw: jax.Array) -> jax.Array:
    """Quaternion `(..., 4)` of a turn by `yaw` (...) about +z."""
    half = 0.5 * yaw
    zero = jnp.zeros_like(half)
    return jnp.stack([jnp.cos(half), zero, zero, jnp.sin(half)], axis=-1)


def yaw_of(q: jax.Array) -> jax.Array:
    """Heading (...): the angle of the rotated x axis in the horizontal plane (z-y-x Euler yaw)."""
    w, x, y, z = (q[..., i] for i in range(4))
    return jnp.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))


def mat_from_yaw(yaw: jax.Array) -> jax.Array:
    """Rotation matrix `(..., 3, 3)` of a turn by `yaw` (...) about +z."""
    c, s = jnp.cos(yaw), jnp.sin(yaw)
    zero, one = jnp.zeros_like(c), jnp.ones_like(c)
    rows = [jnp.stack([c, -s, zero], -1), jnp.stack([s, c, zero], -1), jnp.stack([zero, zero, one], -1)]
    return jnp.stack(rows, axis=-2)


def quat_to_rotvec(q: jax.Array) -> jax.Array:
    """Log map: rotation vector `(..., 3)` (axis times angle, angle in [0, pi]) of unit quaternion(s) `(..., 4)`."""
    q = jnp.where(q[..., :1] < 0, -q, q)  # q and -q are one rotation; take the shorter way round
    w, u = q[..., :1], q[..., 1:]
    square = jnp.sum(u * u, axis=-1, keepdims=True)
    sine = jnp.sqrt(jnp.maximum(square, _TINY))
    # angle / sin(angle / 2) tends to 2 at the identity, where the quotient itself is 0 / 0.
    scale = jnp.where(square > 1e-10, 2 * jnp.arctan2(sine, w) / sine, 2.0)
    return scale * u


def quat_from_rotvec(v: jax.Array) -> jax.Array:
    """Exponential map: unit quaternion `(..., 4)` of rotation vector(s) `(..., 3)`."""
    square = jnp.sum(v * v, axis=-1, keepdims=True)
    angle = jnp.sqrt(jnp.maximum(square, _TINY))
    scale = jnp.where(square > 1e-10, jnp.sin(0.5 * angle) / angle, 0.5)
    return jnp.concatenate([jnp.cos(0.5 * jnp.where(square > 1e-10, angle, 0.0)), scale * v], axis=-1)


def mat_to_rotvec(m: jax.Array) -> jax.Array:
    """Log map `(..., 3)` of rotation matrices `(..., 3, 3)`, through the quaternion so that half turns are safe."""
    return quat_to_rotvec(mat_to_quat(m))


def mat_from_rotvec(v: jax.Array) -> jax.Array:
    """Exponential map: rotation matrix `(..., 3, 3)` of rotation vector(s) `(..., 3)`."""
    return quat_to_mat(quat_from_rotvec(v))


def mat_to_6d(m: jax.Array) -> jax.Array:
    """6-D representation `(..., 6)`: the first, then the second column of `(..., 3, 3)`. Continuous, so learnable."""
    return jnp.concatenate([m[..., :, 0], m[..., :, 1]], axis=-1)


def mat_from_6d(r: jax.Array) -> jax.Array:
    """Rotation matrix `(..., 3, 3)` of any 6 numbers by Gram-Schmidt, so that any network output is a rotation.

    A vanishing first vector is read as x; a second vector (nearly) parallel to the first is replaced by a coordinate
    axis.
    """
    a, b = r[..., :3], r[..., 3:]
    unit = jnp.eye(3, dtype=r.dtype)
    square = jnp.sum(a * a, axis=-1, keepdims=True)
    x = jnp.where(square > _TINY, a * jax.lax.rsqrt(jnp.maximum(square, _TINY)), unit[0])
    b = b * jax.lax.rsqrt(jnp.maximum(jnp.sum(b * b, axis=-1, keepdims=True), _TINY))
    y = b - jnp.sum(x * b, axis=-1, keepdims=True) * x
    square = jnp.sum(y * y, axis=-1, keepdims=True)
    spare = jnp.where(jnp.abs(x[..., 1:2]) < 0.8, unit[1], unit[2])
    spare = spare - jnp.sum(x * spare, axis=-1, keepdims=True) * x
    y = jnp.where(square > 1e-9, y, spare)
    y = y - jnp.sum(x * y, axis=-1, keepdims=True) * x  # a second pass: float32 cancellation when b is close to a
    y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), _TINY))
    return jnp.stack([x, y, _cross(x, y)], axis=-1)


def quat_to_6d(q: jax.Array) -> jax.Array:
    """6-D representation `(..., 6)` of unit quaternion(s) `(..., 4)`."""
    return mat_to_6d(quat_to_mat(q))


def quat_interpolate(a: jax.Array, b: jax.Array, fraction: jax.Array) -> jax.Array:
    """Spherical interpolation `(..., 4)` at constant turning speed on the shorter arc: `a` at 0, `b` at 1.

    `fraction` has shape (...) or is a scalar.
    """
    step = quat_to_rotvec(quat_mul(quat_conj(a), b))
    return quat_normalize(quat_mul(a, quat_from_rotvec(jnp.asarray(fraction)[..., None] * step)))
