"""Residual MLPs: the denoiser of DPPO's state-based policies, and the critic beside it (DPPO reference, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rdp_jax.config import ConfigError
from rdp_jax.nets.time import TimeEmbedding

Array = jax.Array
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"relu": nn.relu, "mish": jax.nn.mish, "elu": nn.elu}


class UniformDense(nn.Module):
    """Linear layer whose weights and biases start uniform within `1 / sqrt(fan in)`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(..., in)` -> `(..., features)`."""
        bound = 1.0 / math.sqrt(x.shape[-1])

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(self.features, kernel_init=uniform, bias_init=uniform, dtype=self.dtype, name="dense")(x)


def check_residual(field: str, sizes: Sequence[int]) -> None:
    """Raises `ConfigError` naming `field` where `sizes` are no hidden widths of a `ResidualMLP`."""
    if len(sizes) % 2 == 0 or len(set(sizes)) != 1:
        raise ConfigError(field, tuple(sizes), "an odd number of equal widths")


class ResidualMLP(nn.Module):
    """`h = W u`; for each pair of further hidden layers `h + W2 f(W1 f(h))`; a linear output.

    Attributes:
      sizes: hidden widths, all equal and an odd number of them.
      out: width of the output.
      activation: name in `ACTIVATIONS`.
      dtype: of the products; parameters and output are float32.
    """

    sizes: Sequence[int]
    out: int
    activation: str = "mish"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(..., in)` -> `(..., out)` float32."""
        check_residual("sizes", self.sizes)
        act = ACTIVATIONS[self.activation]
        width = self.sizes[0]
        h = UniformDense(width, self.dtype, name="first")(x)
        for i in range((len(self.sizes) - 1) // 2):
            inner = UniformDense(width, self.dtype, name=f"block_{i}_a")(act(h))
            h = h + UniformDense(width, self.dtype, name=f"block_{i}_b")(act(inner))
        return UniformDense(self.out, self.dtype, name="last")(h).astype(jnp.float32)


class DenoiserMLP(nn.Module):
    """Noise prediction from the flattened chunk, the step's embedding and the observation, concatenated.

    Attributes:
      sizes: hidden widths, see `ResidualMLP`.
      time_dim: width of the step's embedding.
      activation: DPPO takes `relu` for gym tasks, `mish` elsewhere.
      dtype: of the products.
    """

    sizes: Sequence[int] = (512, 512, 512)
    time_dim: int = 16
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, t: Array, obs: Array) -> Array:
        """`x (B, Ta, Da)` noisy chunk, `t (B,)` int32 step, `obs (B, Do)` normalised -> `(B, Ta, Da)` predicted noise."""
        flat = x.reshape(x.shape[0], -1)
        time = TimeEmbedding(self.time_dim, name="time")(t)
        inputs = jnp.concatenate([flat, time, obs], axis=-1)
        out = ResidualMLP(self.sizes, flat.shape[-1], self.activation, self.dtype, name="trunk")(inputs)
        return out.reshape(x.shape)


class ResidualCritic(nn.Module):
    """State value of a planner."""

    sizes: Sequence[int] = (256, 256, 256)

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Normalised `(..., Do)` -> `(...)`."""
        return ResidualMLP(self.sizes, 1, "mish", name="trunk")(obs)[..., 0]
