"""Batches of environments that reset themselves from a pool of fresh starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from envs.core import Env, EnvSpec, State, whose_resets
from rdp_jax import guard
from rdp_jax.types import Stepped, Ticks

Array = jax.Array


def auto_reset_step(env: Env, pool: State, state: State, action: Array, params: Any) -> Stepped:
    """Steps `(B,)` environments with `action (B, Da)` and replaces the ended ones by entries of `pool`, fresh starts `(n, ...)`.

    A reset can cost far more than a step (kinematics, settling), and under `vmap` would be paid at every step by every
    environment; a pool pays it `n` times per rollout (`rdp_jax.starts`).

    An episode ends where it is terminated, truncated, or where the numbers broke (non-finite observation or reward, or
    `physics.diverged`); the last is masked, paid nothing, counted and terminated.  Physics, task state and observations are
    all taken from the pool; the key stays the environment's own, so that two copies of one entry part ways.
    """
    return settle(pool, jax.vmap(env.step, in_axes=(0, 0, None))(state, action, params))


def settle(pool: State, after: State) -> Stepped:
    """The part of `auto_reset_step` that follows the step; `after (B,)` are its states."""
    diverged = ~guard.finite_rows((after.obs, after.reward))
    flag = getattr(after.physics, "diverged", None)
    if flag is not None:
        diverged = diverged | flag
    terminated = after.terminated | diverged
    truncated = after.truncated & ~terminated
    return Stepped(
        state=_replace_rows(pool, after, terminated | truncated),
        final_obs=guard.mask_rows(~diverged, after.obs),
        reward=jnp.where(diverged, 0.0, after.reward),
        terminated=terminated,
        truncated=truncated,
        diverged=diverged,
        metrics=guard.mask_rows(~diverged, after.metrics),
    )


def _replace_rows(pool: State, state: State, ended: Array) -> State:
    """Rows of `state (B, ...)` where not `ended (B,)`, else random rows of `pool (n, ...)` under a new key."""
    n = pool.reward.shape[0]

    def draw(key):
        key, pick = jax.random.split(key)
        return key, jax.random.randint(pick, (), 0, n)

    keys, index = jax.vmap(draw)(state.key)

    def leaf(path, fresh, old):
        if fresh.shape[1:] != old.shape[1:] or fresh.dtype != old.dtype:
            name = jax.tree_util.keystr(path)
            raise TypeError(f"State{name}: reset gives {fresh.dtype}{fresh.shape[1:]}, step {old.dtype}{old.shape[1:]}")
        return guard.where_rows(ended, fresh[index], old)

    replaced = jax.tree_util.tree_map_with_path(leaf, pool.replace(key=()), state.replace(key=()))
    return replaced.replace(key=_where_keys(ended, keys, state.key))


def _where_keys(mask: Array, a: Array, b: Array) -> Array:
    """As `where_rows`, for typed or raw `uint32` keys."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jnp.where(mask, a, b)
    return guard.where_rows(mask, a, b)


class AutoReset:
    """An environment as `rdp_jax.types.VectorEnv`: the one object a learner is given."""

    def __init__(self, env: Env):
        self.env, self.resets = env, whose_resets(self, AutoReset, env)

    @property
    def spec(self) -> EnvSpec:
        """Static facts of the wrapped environment."""
        return self.env.spec

    def default_params(self) -> Any:
        """Parameters of the wrapped environment."""
        return self.env.default_params()

    def reset(self, keys: Array, params: Any) -> State:
        """`(B,)` keys -> batched state."""
        return jax.vmap(self.env.reset, in_axes=(0, None))(keys, params)

    def step(self, pool: State, state: State, action: Array, params: Any) -> Stepped:
        """See `auto_reset_step`."""
        return auto_reset_step(self.env, pool, state, action, params)


class LayeredAutoReset(AutoReset):
    """As `AutoReset`, for environments with a learning controller inside: `rdp_jax.types.LayeredEnv`.

    The environment has `parts`, `ticks` and `step_recorded`, as `envs.chunk.Chunked` of a hierarchy has.
    """

    env: Any

    @property
    def parts(self) -> Mapping[str, int]:
        """See `LayeredEnv`."""
        return self.env.parts

    @property
    def ticks(self) -> int:
        """See `LayeredEnv`."""
        return self.env.ticks

    def step_recorded(
        self, pool: State, state: State, action: Array, params: Any, noise: Mapping[str, Array]
    ) -> tuple[Stepped, Ticks]:
        """See `LayeredEnv`."""
        after, ticks = jax.vmap(self.env.step_recorded, in_axes=(0, 0, None, 0))(state, action, params, noise)
        return settle(pool, after), settle_ticks(ticks)


def settle_ticks(ticks: Ticks) -> Ticks:
    """`ticks (B, n, ...)` without the broken ones: from the first tick with a non-finite number on, an action's are not live.

    Each is replaced by the action's first tick, which began in a healthy state, so that running statistics of observations see no
    made-up numbers; what is not finite even there is zero.
    """
    lead = ticks.live.shape
    good = guard.finite_rows(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ticks)).reshape(lead)
    good = jnp.cumprod(good, axis=1).astype(bool)

    def leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        first = jnp.where(jnp.isfinite(x[:, :1]), x[:, :1], 0.0)
        return jnp.where(good.reshape(lead + (1,) * (x.ndim - 2)), x, first)

    return jax.tree.map(leaf, ticks.replace(live=ticks.live & good))
