"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438), with the two ways to end kept apart."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def gae(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    gamma: float,
    lam: float,
) -> tuple[Array, Array]:
    """Advantages and lambda-returns of a rollout.

    `next_value[t]` must be the value of the *true* observation after step `t`, before any reset.  A terminated step has no
    value beyond it; a truncated step (or the last of the rollout) is bootstrapped from `next_value`.  Lambda is cut at both,
    because the step that follows belongs to another episode.

    Args:
      reward, value, next_value: `(T, ...)` float.
      terminated, truncated: `(T, ...)` bool.
      gamma: discount per step.
      lam: lambda of GAE.

    Returns:
      `(advantage, target)`, both `(T, ...)`; `target = advantage + value`.
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, truncated])
    # `where`, not a product: a value beyond a terminated step may be anything, even non-finite.
    delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
    decay = gamma * lam * (1.0 - (terminated | truncated).astype(reward.dtype))

    def backward(advantage, step):
        delta_t, decay_t = step
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    _, advantage = jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantage, advantage + value
