"""Networks of soft actor-critic: a tanh-squashed Gaussian and an ensemble of action values.

Layers as in DSRL's released code: linear, layer norm, tanh.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from rdp_jax.nets import gaussian

Array = jax.Array
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class NormMLP(nn.Module):
    """Hidden layers `tanh(norm(linear))`, a linear output whose weights are scaled by `last_scale`."""

    sizes: Sequence[int]
    out: int
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(..., in)` -> `(..., out)`."""
        for i, width in enumerate(self.sizes):
            x = jnp.tanh(nn.LayerNorm(name=f"norm_{i}")(nn.Dense(width, name=f"layer_{i}")(x)))
        last = nn.initializers.variance_scaling(self.last_scale**2, "fan_in", "truncated_normal")
        return nn.Dense(self.out, kernel_init=last, name="last")(x)


class SquashedActor(nn.Module):
    """Distribution over the box [-1, 1]^n; it starts around zero with standard deviation `init_std` before the tanh."""

    sizes: Sequence[int]
    action_dim: int
    init_std: float = 0.3

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """`(B, Do)` -> mean and log-std before the tanh, `(B, n)`."""
        out = NormMLP(self.sizes, 2 * self.action_dim, 0.01, name="trunk")(obs)
        mean, log_std = jnp.split(out, 2, axis=-1)
        return mean, jnp.clip(log_std + jnp.log(self.init_std), LOG_STD_MIN, LOG_STD_MAX)


class Values(nn.Module):
    """`heads` independent action values."""

    sizes: Sequence[int]
    heads: int = 2
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        """`(B, Do)`, `(B, n)` -> `(heads, B)`."""
        ensemble = nn.vmap(
            NormMLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=self.heads
        )
        return ensemble(self.sizes, 1, self.last_scale, name="heads")(jnp.concatenate([obs, action], axis=-1))[..., 0]


def squash(mean: Array, log_std: Array, noise: Array) -> tuple[Array, Array]:
    """A sample `(B, n)` in (-1, 1) from standard normal `noise`, and its log-density `(B,)` there."""
    raw = mean + jnp.exp(log_std) * noise
    # log(1 - tanh(x)^2), without the cancellation.
    stretch = 2.0 * (jnp.log(2.0) - raw - jax.nn.softplus(-2.0 * raw))
    return jnp.tanh(raw), gaussian.log_prob(raw, mean, log_std) - stretch.sum(-1)
