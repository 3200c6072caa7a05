"""Judging a policy: first episodes from fresh starts, never auto-reset ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax.types import VectorEnv

Array = jax.Array


@struct.dataclass
class Episodes:
    """Outcome of `(N,)` episodes.

    Attributes:
      returns: undiscounted sum of rewards; steps: int32 environment steps until the end.
      ended: bool, false where `max_steps` came first; diverged: bool, the physics broke.
      last: name -> metric of the last step; mean: name -> mean over the steps.
    """

    returns: Array
    steps: Array
    ended: Array
    diverged: Array
    last: Mapping[str, Array]
    mean: Mapping[str, Array]


def first_episodes(
    env: VectorEnv,
    act: Callable[[Mapping[str, Array], Array], Array],
    key: Array,
    indices: Array,
    params: Any,
    max_steps: int,
) -> Episodes:
    """Runs one episode per entry of `indices (N,)`; stops as soon as all have ended.

    Args:
      env: environments.
      act: `(obs groups (N, Do), keys (N,)) -> action (N, Da)`.
      key: start and noise of episode `i` depend on this key and `indices[i]` alone.
      indices: global episode numbers.
      params: parameters of the environments.
      max_steps: bound on the steps.
    """
    _, start_key, act_key = jax.random.split(key, 3)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    state = env.reset(fold(start_key, indices), params)
    pool = jax.tree.map(lambda x: x[:1], state)  # what follows a first episode is not looked at
    act_keys = fold(act_key, indices)
    count = indices.shape[0]
    after = jax.eval_shape(lambda s, k: env.step(pool, s, act(s.obs, k), params), state, act_keys)
    zeros = {name: jnp.zeros(count) for name in after.metrics}
    no = jnp.zeros(count, bool)
    result = Episodes(jnp.zeros(count), jnp.zeros(count, jnp.int32), no, no, zeros, zeros)

    def running(carry):
        _, result, t = carry
        return (t < max_steps) & ~jnp.all(result.ended)

    def step(carry):
        state, result, t = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(act_keys, t)
        out = env.step(pool, state, act(state.obs, keys), params)
        live = ~result.ended
        result = Episodes(
            returns=result.returns + jnp.where(live, out.reward, 0.0),
            steps=result.steps + live,
            ended=result.ended | out.terminated | out.truncated,
            diverged=result.diverged | (live & out.diverged),
            last={name: jnp.where(live, out.metrics[name], old) for name, old in result.last.items()},
            mean={name: old + jnp.where(live, out.metrics[name], 0.0) for name, old in result.mean.items()},
        )
        return out.state, result, t + 1

    _, result, _ = jax.lax.while_loop(running, step, (state, result, jnp.int32(0)))
    steps = jnp.maximum(result.steps, 1).astype(jnp.float32)
    return result.replace(mean={name: x / steps for name, x in result.mean.items()})
