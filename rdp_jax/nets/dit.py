"""Diffusion transformer over an action chunk (Peebles and Xie 2023; the planner of REFINE-DP, section 1).

Tokens are the `Ta` actions of the noisy chunk.  The condition, step plus observation history, enters by adaLN-Zero alone: it is
one vector, so the transformer's cost does not grow with the history.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rdp_jax.nets.products import flat_dot_general
from rdp_jax.nets.time import sinusoid

Array = jax.Array


def _dense(features: int, dtype: Any, name: str, **more: Any) -> nn.Dense:
    """A linear layer over the last axis of tokens or frames."""
    return nn.Dense(features, dtype=dtype, name=name, dot_general=flat_dot_general, **more)


class Condition(nn.Module):
    """Step and observation history -> one vector `(B, width)`.

    Frames are embedded alike, and then mixed by a linear layer over all of them: order matters, and a frame more costs little.
    """

    width: int
    history: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Array, obs: Array) -> Array:
        """`t (B,)`, `obs (B, H * frame)` -> `(B, width)`."""
        frames = obs.reshape(obs.shape[0], self.history, -1)
        frames = nn.gelu(_dense(self.width, self.dtype, "frame")(frames))
        seen = nn.Dense(self.width, dtype=self.dtype, name="mix")(frames.reshape(obs.shape[0], -1))
        time = nn.Dense(self.width, dtype=self.dtype, name="time")(sinusoid(t, self.width))
        return nn.Dense(self.width, dtype=self.dtype, name="join")(nn.silu(seen + time))


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """`(B, Ta, width)` shifted and scaled by `(B, width)`."""
    return x * (1.0 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition; the gates start at zero."""

    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """`x (B, Ta, width)`, `condition (B, width)` -> `(B, Ta, width)`."""
        zeros = nn.initializers.zeros
        six = nn.Dense(6 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")(nn.silu(condition))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(six, 6, axis=-1)
        norm = nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=self.dtype)
        h = modulate(norm(x), shift_a, scale_a)
        flat = {"qkv_dot_general": flat_dot_general}
        h = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention", **flat)(h)
        x = x + gate_a[:, None] * h
        h = _dense(4 * self.width, self.dtype, "mlp_in")(modulate(norm(x), shift_m, scale_m))
        return x + gate_m[:, None] * _dense(self.width, self.dtype, "mlp_out")(nn.gelu(h))


class DiT(nn.Module):
    """Noise prediction for a chunk.

    Attributes:
      width: of tokens and condition; depth, heads of the transformer.
      history: observation frames H.
      dtype: of the products; parameters and output are float32.
    """

    width: int = 128
    depth: int = 3
    heads: int = 4
    history: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array, obs: Array) -> Array:
        """`x (B, Ta, Da)`, `t (B,)` int32, `obs (B, H * frame)` normalised -> `(B, Ta, Da)`."""
        condition = Condition(self.width, self.history, self.dtype, name="condition")(t, obs)
        h = _dense(self.width, self.dtype, "embed")(x)
        h = h + self.param("position", nn.initializers.normal(0.02), (x.shape[1], self.width))
        for i in range(self.depth):
            h = Block(self.width, self.heads, self.dtype, name=f"block_{i}")(h, condition)
        zeros = nn.initializers.zeros
        two = nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")(nn.silu(condition))
        h = nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-6, dtype=self.dtype)(h)
        h = modulate(h, *jnp.split(two, 2, axis=-1))
        return _dense(x.shape[2], self.dtype, "last", kernel_init=zeros)(h).astype(jnp.float32)
