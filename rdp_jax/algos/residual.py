"""Residual reinforcement learning: a frozen planner plus a small correction that PPO learns (a baseline of REFINE-DP).

The correction is one vector per chunk, in normalised action units, added to all executed actions of the chunk; the policy sees
the observation and the chunk that it corrects.  A wrapper makes of this an environment for `rdp_jax.algos.ppo`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax.algos import ppo
from rdp_jax.planner import Actor, Bundle, Planner, to_chunk
from rdp_jax.types import Stepped, VectorEnv

Array = jax.Array
STREAM = 0x2E51  # of plans, apart from what environments draw from the same keys


@struct.dataclass
class ResidualParams:
    """Attributes:
    env: parameters of the inner environments.
    bundle, base: of the frozen planner.
    scale: `()` largest correction, in normalised action units.
    """

    env: Any
    bundle: Bundle
    base: Any
    scale: Array


@struct.dataclass
class ResidualState:
    """Inner environments, what the policy sees, the planned chunk `(B, Te, Da)` (normalised), and a key per environment."""

    inner: Any
    obs: Mapping[str, Array]
    chunk: Array
    key: Array


class Plan:
    """Normalised chunks of a frozen planner, without exploration noise."""

    def __init__(self, planner: Planner):
        self.actor: Actor = planner.actor()
        self.executed, self.action_dim = planner.config.executed, planner.dims.action

    def chunk(self, bundle: Bundle, base: Any, obs: Array, keys: Array) -> Array:
        """Raw `obs (B, Do)`, `keys (B,)` -> `(B, Te, Da)`."""
        return self.actor.chunk(bundle, base, obs, self.actor.policy.row_noise(keys))

    def corrected(self, bundle: Bundle, chunk: Array, action: Array, scale: Array) -> Array:
        """Chunk `(B, Te, Da)` and correction `(B, Da)` -> the environment's action."""
        return to_chunk(bundle, chunk + scale * jnp.clip(action, -1.0, 1.0)[:, None])


class Residual:
    """`rdp_jax.types.VectorEnv` whose action is the correction.

    Args:
      env: chunked environments of the planner.
      planner: frozen.
      bootstrap: a time limit bootstraps from the true final state, with a plan of its own, as the critic does not see the time
        that is left; else it is an end.
    """

    def __init__(self, env: VectorEnv, planner: Planner, bootstrap: bool = False):
        self.env, self.plan, self.bootstrap = env, Plan(planner), bootstrap
        width = self.plan.executed * self.plan.action_dim
        dims = {name: env.spec.obs_dims[name] + width for name in ("actor", "critic")}
        self.spec = dataclasses.replace(env.spec, obs_dims=dims, action_dim=self.plan.action_dim)

    def reset(self, keys: Array, params: ResidualParams) -> ResidualState:
        """`(B,)` keys -> batched state."""
        inner = self.env.reset(keys, params.env)
        return self._state(inner, jax.vmap(lambda k: jax.random.fold_in(k, STREAM))(keys), params)

    def step(self, pool: ResidualState, state: ResidualState, action: Array, params: ResidualParams) -> Stepped:
        """Executes the corrected chunk, plans the next."""
        chosen = self.plan.corrected(params.bundle, state.chunk, action, params.scale)
        out = self.env.step(pool.inner, state.inner, chosen, params.env)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 2))(state.key)
        after = self._state(out.state, keys, params)
        if self.bootstrap:  # of an episode that goes on, what comes next
            return out.replace(state=after, final_obs=self._with_plan(out.final_obs, keys, params)[0])
        return out.replace(
            state=after,
            # Of an episode that goes on this is what comes next; of one that ended nobody asks.
            final_obs={name: after.obs[name] for name in ("actor", "critic")},
            terminated=out.terminated | out.truncated,
            truncated=jnp.zeros_like(out.truncated),
        )

    def _state(self, inner: Any, keys: Array, params: ResidualParams) -> ResidualState:
        return ResidualState(inner, *self._with_plan(inner.obs, keys, params), keys)

    def _with_plan(self, obs: Any, keys: Array, params: ResidualParams) -> tuple[dict[str, Array], Array]:
        """Observations of the planner's environments -> those of these, and the chunk that is planned there."""
        chunk = self.plan.chunk(params.bundle, params.base, obs["actor"], keys)
        flat = chunk.reshape(chunk.shape[0], -1)
        return {name: jnp.concatenate([obs[name], flat], axis=-1) for name in ("actor", "critic")}, chunk


class ResidualActor:
    """A corrected planner; runs where `rdp_jax.planner.Actor` runs.

    Its second argument is `(base, {"actor", "normalizer"}, scale)`, the middle one of `rdp_jax.algos.ppo`.
    """

    def __init__(self, planner: Planner):
        self.config, self.dims, self.plan = planner.config, planner.dims, Plan(planner)

    def act(self, bundle: Bundle, params: Any, obs: Array, keys: Array, explore: bool = False) -> Array:
        """`obs (B, H * frame)`, `keys (B,)` -> `(B, Te * Da)`."""
        del explore
        return self._correct(bundle, params, obs, self.plan.chunk(bundle, params[0], obs, keys))

    @property
    def draws(self) -> dict[str, tuple[int, ...]]:
        """See `rdp_jax.planner.Actor.draws`."""
        return self.plan.actor.draws

    def drawn(self, keys: Array) -> tuple[Array, ...]:
        """See `rdp_jax.planner.Actor.drawn`."""
        return self.plan.actor.drawn(keys)

    def act_on(self, bundle: Bundle, params: Any, obs: Array, *drawn: Array) -> Array:
        """See `rdp_jax.planner.Actor.act_on`."""
        actor = self.plan.actor
        noise = actor.policy.row_noise_of(obs.shape[0], *drawn)
        return self._correct(bundle, params, obs, actor.chunk(bundle, params[0], obs, noise))

    def _correct(self, bundle: Bundle, params: Any, obs: Array, chunk: Array) -> Array:
        _, weights, scale = params
        seen = jnp.concatenate([obs, chunk.reshape(chunk.shape[0], -1)], axis=-1)
        action = ppo.policy({"actor": weights["actor"]}, {"actor": weights["normalizer"]}, {"actor": seen})
        return self.plan.corrected(bundle, chunk, action, scale)
