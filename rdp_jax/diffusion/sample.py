"""Sampling and scoring of reverse steps: one formula for the mean, shared by both."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rdp_jax.diffusion.schedule import Table

Array = jax.Array
Predict = Callable[[Array, Array], Array]
"""`(x (B, Ta, Da), t (B,) int32) -> predicted noise (B, Ta, Da)`; the observation is bound already."""
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def step_mean(predict: Predict, step: Table, x: Array, clip_x0: float) -> Array:
    """Mean of the next sample.

    Args:
      predict: the denoising network.
      step: the step's constants; each field `()` for all rows alike, or `(B,)`.
      x: `(B, Ta, Da)`.
      clip_x0: bound of the clean estimate.
    """
    step = jax.tree.map(lambda field: jnp.broadcast_to(field, x.shape[:1]), step)
    eps = predict(x, step.t)
    step = jax.tree.map(lambda field: field[:, None, None], step)
    x0 = jnp.clip(step.recip * x - step.recip_m1 * eps, -clip_x0, clip_x0)
    return step.p * x0 + step.q * x


def denoise(
    predict: Predict, table: Table, x: Array, noise: Array, clip_x0: float, noise_clip: float
) -> tuple[Array, Array]:
    """Takes all steps of `table (S,)` from `x (B, Ta, Da)`.

    Args:
      predict: the denoising network.
      table: the steps.
      x: sample to start from.
      noise: `(S, B, Ta, Da)` standard normal; clamped to +-`noise_clip` here.  Densities ignore that clamp, as DPPO's do.
      clip_x0: bound of the clean estimate.
      noise_clip: see above.

    Returns:
      The last sample, and all of them `(S, B, Ta, Da)`.
    """

    def one(x, inputs):
        step, eps = inputs
        mean = step_mean(predict, step, x, clip_x0)
        x = mean + step.std * jnp.clip(eps, -noise_clip, noise_clip)
        return x, x

    if not len(table):
        return x, jnp.zeros((0, *x.shape), x.dtype)
    return jax.lax.scan(one, x, (jax.tree.map(jnp.asarray, table), noise))


def log_prob_elements(x_next: Array, mean: Array, std: Array) -> Array:
    """Log density of each element of `x_next (B, Ta, Da)` under `N(mean, std^2)`, `std (B,)`."""
    std = std[:, None, None]
    return -0.5 * jnp.square((x_next - mean) / std) - jnp.log(std) - HALF_LOG_2PI
