"""Temporal U-Net of DPPO's convolutional policies: FiLM residual blocks over the action axis (DPPO reference, section 4)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rdp_jax.nets.time import sinusoid

Array = jax.Array
KERNEL, GROUPS = 5, 8


class ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(B, T, in)` -> `(B, T, channels)`."""
        x = nn.Conv(self.channels, (KERNEL,), dtype=self.dtype, name="conv")(x)
        return jax.nn.mish(nn.GroupNorm(num_groups=min(GROUPS, self.channels), dtype=self.dtype, name="norm")(x))


class FiLMBlock(nn.Module):
    """Two convolution blocks; after the first `scale h + bias` from the condition; a 1x1 convolution where widths differ."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """`x (B, T, in)`, `condition (B, c)` -> `(B, T, channels)`."""
        h = ConvBlock(self.channels, self.dtype, name="first")(x)
        film = condition
        for i in range(2):
            film = jax.nn.mish(nn.Dense(2 * self.channels, dtype=self.dtype, name=f"film_{i}")(film))
        film = nn.Dense(2 * self.channels, dtype=self.dtype, name="film")(film)
        scale, bias = jnp.split(film[:, None], 2, axis=-1)
        h = ConvBlock(self.channels, self.dtype, name="second")(scale * h + bias)
        skip = x if x.shape[-1] == self.channels else nn.Conv(self.channels, (1,), dtype=self.dtype, name="skip")(x)
        return h + skip


class UNet(nn.Module):
    """Noise prediction for a chunk whose length is a multiple of `2 ** (depth - 1)`.

    Attributes:
      width: channels of the first level; level `i` has `2^i` times as many.
      depth: levels.
      time_dim: width of the step's embedding.
      dtype: of the products.
    """

    width: int = 64
    depth: int = 2
    time_dim: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array, obs: Array) -> Array:
        """`x (B, Ta, Da)`, `t (B,)` int32, `obs (B, Do)` normalised -> `(B, Ta, Da)`."""
        if x.shape[1] % 2 ** (self.depth - 1):
            raise ValueError(
                f"horizon={x.shape[1]}, allowed: a multiple of {2 ** (self.depth - 1)} for depth={self.depth}"
            )
        time = jax.nn.mish(nn.Dense(4 * self.time_dim, name="time_in")(sinusoid(t, self.time_dim)))
        condition = jnp.concatenate([nn.Dense(self.time_dim, name="time_out")(time), obs], axis=-1)
        widths = [self.width * 2**i for i in range(self.depth)]
        h, skips = x, []
        for i, width in enumerate(widths):
            for j in range(2):
                h = FiLMBlock(width, self.dtype, name=f"down_{i}_{j}")(h, condition)
            skips.append(h)
            if i + 1 < self.depth:
                h = nn.Conv(width, (3,), strides=(2,), dtype=self.dtype, name=f"shrink_{i}")(h)
        for j in range(2):
            h = FiLMBlock(widths[-1], self.dtype, name=f"middle_{j}")(h, condition)
        for i in reversed(range(self.depth)):
            h = jnp.concatenate([h, skips[i]], axis=-1)
            for j in range(2):
                h = FiLMBlock(widths[i], self.dtype, name=f"up_{i}_{j}")(h, condition)
            if i > 0:
                h = nn.ConvTranspose(widths[i - 1], (4,), strides=(2,), dtype=self.dtype, name=f"grow_{i}")(h)
        h = ConvBlock(self.width, self.dtype, name="final")(h)
        return nn.Conv(x.shape[2], (1,), dtype=self.dtype, name="last")(h).astype(jnp.float32)
