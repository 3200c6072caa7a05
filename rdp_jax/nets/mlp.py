"""MLP policy and critic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class MLP(nn.Module):
    """Dense layers with ELU between them; the last layer is linear, its weights scaled by `last_scale`."""

    sizes: Sequence[int]
    out: int
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`(..., Do)` -> `(..., out)`."""
        hidden = nn.initializers.orthogonal(math.sqrt(2.0))
        for i, width in enumerate(self.sizes):
            x = nn.elu(nn.Dense(width, kernel_init=hidden, name=f"layer_{i}")(x))
        last = nn.initializers.orthogonal(self.last_scale)
        return nn.Dense(self.out, kernel_init=last, name="last")(x)


class GaussianActor(nn.Module):
    """Gaussian policy: mean from an MLP that starts near zero, a learnable log-std that does not see the observation."""

    action_dim: int
    sizes: Sequence[int] = (256, 128)
    init_std: float = 0.4

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        """Normalised `(..., Do)` -> mean `(..., Da)`, log-std `(Da,)`."""
        mean = MLP(self.sizes, self.action_dim, last_scale=0.01, name="mlp")(obs)
        init = nn.initializers.constant(math.log(self.init_std))
        return mean, self.param("log_std", init, (self.action_dim,), jnp.float32)


class Critic(nn.Module):
    """State value; its last weights are scaled by `last_scale`."""

    sizes: Sequence[int] = (256, 128)
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Normalised `(..., Do)` -> `(...)`."""
        return MLP(self.sizes, 1, self.last_scale, name="mlp")(obs)[..., 0]


def mlp_sizes(params: Mapping[str, Any]) -> tuple[int, ...]:
    """Hidden widths of an `MLP`, read from its parameters: weights alone then suffice to run a network."""
    return tuple(params[f"layer_{i}"]["kernel"].shape[1] for i in range(len(params) - 1))


def apply_actor(params: Mapping[str, Any], obs: Array) -> tuple[Array, Array]:
    """Runs a `GaussianActor` from its parameters alone: normalised `(..., Do)` -> mean `(..., Da)`, log-std `(Da,)`."""
    mean = MLP(mlp_sizes(params["mlp"]), params["log_std"].shape[0]).apply({"params": params["mlp"]}, obs)
    return mean, params["log_std"]


def apply_critic(params: Mapping[str, Any], obs: Array) -> Array:
    """Runs a `Critic` from its parameters alone: normalised `(..., Do)` -> `(...)`."""
    return MLP(mlp_sizes(params["mlp"]), 1).apply({"params": params["mlp"]}, obs)[..., 0]
