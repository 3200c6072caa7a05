"""Embedding of the diffusion step."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
MAX_PERIOD = 1e4


def sinusoid(t: Array, dim: int) -> Array:
    """`(B,)` integer steps -> `(B, dim)`: sines, then cosines, of frequencies `10^4 ^ (-j / (dim / 2 - 1))`."""
    half = dim // 2
    frequency = jnp.exp(-math.log(MAX_PERIOD) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angle = t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids through two linear layers, Mish between (`dim` even, at least 4)."""

    dim: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """`(B,)` int32 -> `(B, dim)`."""
        hidden = jax.nn.mish(nn.Dense(2 * self.dim, name="hidden")(sinusoid(t, self.dim)))
        return nn.Dense(self.dim, name="out")(hidden)
