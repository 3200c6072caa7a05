"""Exploration noise that lasts: correlated along a chunk, with a density as exact as that of independent noise.

Independent noise in ten targets a second jerks a hand to and fro and mostly cancels; noise that lasts moves the hand somewhere,
and what came of that can be learned.  An AR(1) process keeps each action's variance, is Gaussian, and factorises: action `t`
given those before it depends on `t - 1` alone, so the density of a chunk's first Te actions needs no others.  (Correlated action
noise in reinforcement learning: Lillicrap et al. 2016, arXiv:1509.02971, section 3; its use within a denoising chain is ours.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rdp_jax.diffusion import sample

Array = jax.Array


def peak(std: float, rho: float) -> float:
    """Largest log density that an element can have."""
    return float(-np.log(std) - 0.5 * np.log(2.0 * np.pi) - 0.5 * np.log1p(-np.square(rho)))


def colour(noise: Array, rho: np.ndarray) -> Array:
    """`noise (S, ..., Ta, Da)` standard normal -> the same shape, unit variance, neighbours along Ta correlated by `rho (S,)`."""
    horizon = noise.shape[-2]
    past = np.arange(horizon)[:, None] - np.arange(horizon)
    mixing = np.where(past < 0, 0.0, rho[:, None, None] ** np.maximum(past, 0))
    mixing[:, :, 1:] *= np.sqrt(1.0 - rho**2)[:, None, None]
    return jnp.einsum("kts,k...sd->k...td", jnp.asarray(mixing, noise.dtype), noise, precision="highest")


def whiten(x: Array, rho: Array) -> Array:
    """Inverse of `colour`, each row of `x (N, Ta, Da)` with its `rho (N,)`; linear: a difference of means whitens as they do."""
    rho = rho[:, None, None]
    rest = (x[:, 1:] - rho * x[:, :-1]) / jnp.sqrt(1.0 - rho**2)
    return jnp.concatenate([x[:, :1], rest], axis=1)


@jax.custom_vjp
def natural(mean: Array, rho: Array) -> Array:
    """`mean (N, Ta, Da)` itself; its gradient is multiplied by the correlations of the noise, as a natural gradient is.

    The gradient of a density grows where noise is small.  Correlated noise is small in all directions but the slow ones, so the
    plain gradient would be mostly the noise of directions in which nothing was tried.
    """
    del rho
    return mean


def _natural_forward(mean: Array, rho: Array) -> tuple[Array, Array]:
    return natural(mean, rho), rho


def _natural_backward(rho: Array, gradient: Array) -> tuple[Array, Array]:
    steps = np.arange(gradient.shape[1])
    correlations = rho[:, None, None] ** np.abs(steps[:, None] - steps)
    return jnp.einsum("nts,nsd->ntd", correlations, gradient, precision="highest"), jnp.zeros_like(rho)


natural.defvjp(_natural_forward, _natural_backward)


def log_prob_elements(x_next: Array, mean: Array, std: Array, rho: Array) -> tuple[Array, Array]:
    """As `sample.log_prob_elements`, under noise of `colour`: the log density of each element given the earlier actions.

    Args:
      x_next, mean: `(N, Ta, Da)`.
      std, rho: `(N,)`.

    Returns:
      The elements `(N, Ta, Da)`, and `mean` whitened: a difference of two such means over `std` gives their divergence.
      Gradients with respect to `mean` are `natural`.
    """
    white = whiten(natural(mean, rho), rho)
    elements = sample.log_prob_elements(whiten(x_next, rho), white, std)
    volume = -0.5 * jnp.log1p(-jnp.square(rho))  # what whitening does to it
    return elements.at[:, 1:].add(volume[:, None, None]), white
