"""Collecting experience: one scan over environment steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax.types import Stepped, Transition, VectorEnv

Array = jax.Array
Act = Callable[[Mapping[str, Array], Any], tuple[Array, Any]]
Step = Callable[[Any, Any, Array, Any, Any], tuple[Stepped, Any]]


@struct.dataclass
class Episode:
    """Running sums of the episodes under way: `returns (B,)` float32, `lengths (B,)` int32."""

    returns: Array
    lengths: Array


@struct.dataclass
class RolloutStats:
    """Sums over a rollout and this device's environments, all `()` float32 except `env`: name -> `()`.

    `finished` episodes, their summed `returns` and `lengths`, how many `terminated` and `diverged`; `env` sums the metrics
    of every step, `steps` counts those.
    """

    steps: Array
    reward: Array
    finished: Array
    returns: Array
    lengths: Array
    terminated: Array
    diverged: Array
    env: Mapping[str, Array]


def begin(num_envs: int) -> Episode:
    """Nothing earned yet."""
    return Episode(jnp.zeros((num_envs,), jnp.float32), jnp.zeros((num_envs,), jnp.int32))


def advance(episode: Episode, out: Stepped) -> tuple[Episode, RolloutStats]:
    """Adds one step; the sums of what ended with it."""
    returns, lengths = episode.returns + out.reward, episode.lengths + 1
    done = out.terminated | out.truncated
    stats = RolloutStats(
        steps=jnp.float32(done.shape[0]),
        reward=out.reward.sum(),
        finished=done.sum(dtype=jnp.float32),
        returns=jnp.where(done, returns, 0.0).sum(),
        lengths=jnp.where(done, lengths, 0).sum(dtype=jnp.float32),
        terminated=out.terminated.sum(dtype=jnp.float32),
        diverged=out.diverged.sum(dtype=jnp.float32),
        env={name: value.sum(dtype=jnp.float32) for name, value in out.metrics.items()},
    )
    return Episode(jnp.where(done, 0.0, returns), jnp.where(done, 0, lengths)), stats


def collect(
    env: VectorEnv,
    act: Act,
    state: Any,
    episode: Episode,
    pool: Any,
    noise: Any,
    env_params: Any,
    step: Step | None = None,
) -> tuple[Any, Episode, Transition, RolloutStats]:
    """Steps `(B,)` environments `T` times.

    Args:
      env: batch of environments.
      act: `(obs groups (B, Do), noise) -> action (B, Da), extras`; `noise` is one step of the argument below.
      state: environments to start from.
      episode: running sums that belong to them.
      pool: fresh starts.
      noise: `(T, B, ...)` standard normal (any pytree); drawn outside, so that it does not depend on the device count.
      env_params: parameters of the environments.
      step: takes the place of `env.step`, is also given this step's `noise`, and returns something more to remember: extras are
        then `(what act wants remembered, that)`.

    Returns:
      `(state, episode, transitions (T, B, ...), stats)`.
    """

    def one(carry, eps):
        state, episode = carry
        action, extras = act(state.obs, eps)
        if step is None:
            out = env.step(pool, state, action, env_params)
        else:
            out, seen = step(pool, state, action, env_params, eps)
            extras = (extras, seen)
        episode, stats = advance(episode, out)
        transition = Transition(
            obs={name: state.obs[name] for name in ("actor", "critic")},
            action=action,
            reward=out.reward,
            terminated=out.terminated,
            truncated=out.truncated,
            final_obs=out.final_obs["critic"],
            extras=extras,
        )
        return (out.state, episode), (transition, stats)

    (state, episode), (transitions, stats) = jax.lax.scan(one, (state, episode), noise)
    return state, episode, transitions, jax.tree.map(lambda x: x.sum(0), stats)


def summarize(stats: RolloutStats) -> dict[str, Array]:
    """Means, as logged; those over finished episodes are NaN (null in JSON) when none finished."""
    return {
        "reward/mean": stats.reward / stats.steps,
        "episode/finished": stats.finished,
        "episode/return": stats.returns / stats.finished,
        "episode/length": stats.lengths / stats.finished,
        "episode/terminated_fraction": stats.terminated / stats.finished,
        "guard/diverged": stats.diverged,
        **{f"env/{name}": value / stats.steps for name, value in stats.env.items()},
    }
