"""Running mean and variance of observations.

Statistics are frozen while an iteration collects and learns, and merged once after it: the observation that was scored at
collection is then the very one the loss sees, and the first ratio is one.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax import parallel

Array = jax.Array
CLIP = 10.0  # standard deviations
MIN_STD = 1e-2  # a constant input must not be blown up by its rounding noise


@struct.dataclass
class Normalizer:
    """Moments so far: `count ()`, `mean (Do,)`, `m2 (Do,)` (sum of squared deviations), all float32."""

    count: Array
    mean: Array
    m2: Array


def create(dim: int) -> Normalizer:
    """No data yet: `apply` only clips."""
    return Normalizer(jnp.zeros((), jnp.float32), jnp.zeros((dim,), jnp.float32), jnp.zeros((dim,), jnp.float32))


def std(norm: Normalizer) -> Array:
    """`(Do,)` standard deviation, one before any data, at least `MIN_STD`."""
    variance = norm.m2 / jnp.maximum(norm.count, 1.0)
    return jnp.where(norm.count > 0, jnp.maximum(jnp.sqrt(variance), MIN_STD), 1.0)


def apply(norm: Normalizer, x: Array) -> Array:
    """`(..., Do)` -> `(..., Do)`, zero mean and unit variance, clipped to +-`CLIP`."""
    chex.assert_equal(x.shape[-1], norm.mean.shape[-1])
    return jnp.clip((x - norm.mean) / std(norm), -CLIP, CLIP)


def merge(norm: Normalizer, x: Array, axis: str | None = None, where: Array | None = None) -> Normalizer:
    """Adds every row of `x (..., Do)`, or those with `where (...)` bool, over all devices of mesh axis `axis`.

    The batch's own moments take two passes (mean first, then deviations from it), and are merged by Chan, Golub and LeVeque
    (1983): float32 then loses nothing to the cancellation of `E[x^2] - E[x]^2`.
    """
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    rows = None if where is None else where.reshape(-1, 1)
    counted = jnp.float32(x.shape[0]) if rows is None else rows.sum(dtype=jnp.float32)
    count = parallel.psum(counted, axis)
    mean = parallel.psum(x.sum(0, where=rows), axis) / jnp.maximum(count, 1.0)
    m2 = parallel.psum(jnp.square(x - mean).sum(0, where=rows), axis)
    total = jnp.maximum(norm.count + count, 1.0)
    delta = mean - norm.mean
    return Normalizer(
        count=norm.count + count,
        mean=norm.mean + delta * (count / total),
        m2=norm.m2 + m2 + jnp.square(delta) * (norm.count * (count / total)),
    )
