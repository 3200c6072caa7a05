"""Networks that predict a chunk at once: the imitation baselines of REFINE-DP (MLP, LSTM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rdp_jax.nets.denoiser import ResidualMLP

Array = jax.Array


class ChunkMLP(nn.Module):
    """Chunk from the flattened history; `shape = (Ta, Da)`."""

    sizes: Sequence[int]
    shape: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """`(B, H * frame)` normalised -> `(B, Ta, Da)`."""
        out = ResidualMLP(self.sizes, self.shape[0] * self.shape[1], "mish", self.dtype, name="trunk")(obs)
        return out.reshape(-1, *self.shape)


class LSTMChunk(nn.Module):
    """An LSTM reads the `history` frames oldest first; its last output predicts the chunk.

    Attributes:
      sizes: the first is the LSTM's width.
      shape: `(Ta, Da)`.
      history: frames H.
      dtype: of the products.
    """

    sizes: Sequence[int]
    shape: tuple[int, int]
    history: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """`(B, H * frame)` normalised -> `(B, Ta, Da)`."""
        frames = obs.reshape(obs.shape[0], self.history, -1)
        cell = nn.OptimizedLSTMCell(self.sizes[0], dtype=self.dtype)
        out = nn.RNN(cell, name="lstm")(frames)[:, -1]
        chunk = nn.Dense(self.shape[0] * self.shape[1], dtype=self.dtype, name="last")(out)
        return chunk.reshape(-1, *self.shape).astype(jnp.float32)
