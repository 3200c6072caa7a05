"""Diagonal Gaussians."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array
LOG_2PI = math.log(2.0 * math.pi)


def log_prob(x: Array, mean: Array, log_std: Array) -> Array:
    """Log-density at `x (..., Da)`, summed over the last axis -> `(...)`."""
    z = (x - mean) * jnp.exp(-log_std)
    # A product with ones instead of `sum`: XLA's reduction adds in an order that depends on the number of rows, and the
    # log-probability of a sample must be the same bits in a rollout of B rows and in a minibatch of any other size.
    squares = jnp.square(z) @ jnp.ones((z.shape[-1],), z.dtype)
    return -0.5 * squares - jnp.sum(log_std + 0.5 * LOG_2PI, axis=-1)


def entropy(log_std: Array) -> Array:
    """Differential entropy in nats, `(..., Da)` -> `(...)`."""
    return jnp.sum(log_std + 0.5 * (1.0 + LOG_2PI), axis=-1)


def kl(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> Array:
    """KL(p || q) in nats, `(..., Da)` -> `(...)`."""
    ratio = jnp.exp(2.0 * (log_std_p - log_std_q))
    shift = jnp.square((mean_p - mean_q) * jnp.exp(-log_std_q))
    return jnp.sum(log_std_q - log_std_p + 0.5 * (ratio + shift - 1.0), axis=-1)
