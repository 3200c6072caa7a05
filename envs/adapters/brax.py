"""Any environment of this project as a Brax environment, so that `brax.training` trains it unmodified.

    env = BraxEnv(registry.make("toy"))
    with jax_for_brax():
        ppo.train(env, ..., episode_length=env.episode_length, network_factory=functools.partial(
            ppo_networks.make_ppo_networks, value_obs_key="privileged_state"))

Brax's own wrappers batch it, count its steps and reset it.  What they do differently from `envs.wrappers` is theirs: an ended
episode returns to the first start of its environment, and a truncated step gets no advantage instead of a bootstrapped one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from envs.core import Env
from rdp_jax import guard

with contextlib.redirect_stdout(io.StringIO()):  # without Warp, which is optional, MJX prints an error at import
    from brax.envs import base

Array = jax.Array
GROUPS = MappingProxyType({"state": "actor", "privileged_state": "critic"})


class BraxEnv(base.Env):
    """A `brax.envs.Env` around an `envs.core.Env`; unbatched, as Brax wants it.

    `pipeline_state` is the whole inner state (what Brax restores at a reset), except for the random key: that one is in
    `info["key"]` and runs on, so that an environment which Brax puts back to its first start does not live the same life again.
    A step with non-finite numbers, or one that the physics calls diverged, is masked, paid nothing and ends the episode.

    Args:
      env: the environment.
      params: its parameters; None: its defaults.
      groups: Brax observation name -> observation group; or one group's name, for a flat observation.
      metrics: names of metrics to hand on, `diverged` is always among them; None: all.
      own_time_limit: false: `done` is termination alone, and Brax's `EpisodeWrapper` truncates (give it
        `episode_length`).  True: `done` includes the environment's own truncation, told in `info["time_out"]`, for Brax's
        `bootstrap_on_timeout=True`; Brax's `episode_length` should then be larger.

    Raises:
      ValueError: an unknown observation group.
    """

    def __init__(
        self,
        env: Env,
        params: Any = None,
        groups: Mapping[str, str] | str = GROUPS,
        metrics: Sequence[str] | None = None,
        own_time_limit: bool = False,
    ):
        self.env = env
        self.params = env.default_params() if params is None else params
        self.groups = groups if isinstance(groups, str) else dict(groups)
        self.metrics = None if metrics is None else tuple(metrics)
        self.own_time_limit = own_time_limit
        for group in [groups] if isinstance(groups, str) else groups.values():
            if group not in env.spec.obs_dims:
                raise ValueError(f"groups: {group!r} is no group of {env.spec.name}: {', '.join(env.spec.obs_dims)}")

    @property
    def observation_size(self) -> Any:
        """Name -> `(Do,)`, or `Do` of a flat observation."""
        dims = self.env.spec.obs_dims
        if isinstance(self.groups, str):
            return dims[self.groups]
        return {name: (dims[group],) for name, group in self.groups.items()}

    @property
    def action_size(self) -> int:
        """Width of the action."""
        return self.env.spec.action_dim

    @property
    def episode_length(self) -> int:
        """Steps after which the environment itself would truncate."""
        return self.env.spec.episode_steps

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.env.spec.control_dt

    @property
    def backend(self) -> str:
        """The physics backend; `none` without physics."""
        return getattr(getattr(self.env, "physics", None), "name", "none")

    def reset(self, rng: Array) -> base.State:
        """A fresh start."""
        inner = self.env.reset(rng, self.params)
        info = {"key": inner.key}
        if self.own_time_limit:
            info["time_out"] = jnp.float32(0.0)
        return base.State(
            pipeline_state=inner.replace(key=()),
            obs=self._obs(inner.obs),
            reward=jnp.float32(0.0),
            done=jnp.float32(0.0),
            metrics=self._metrics(inner.metrics, jnp.array(False)),
            info=info,
        )

    def step(self, state: base.State, action: Array) -> base.State:
        """One step; `info` of wrappers is handed on."""
        inner = self.env.step(state.pipeline_state.replace(key=state.info["key"]), action, self.params)
        diverged = ~guard.all_finite((inner.obs, inner.reward))
        flag = getattr(inner.physics, "diverged", None)
        if flag is not None:
            diverged = diverged | flag
        terminated = inner.terminated | diverged
        time_out = inner.truncated & ~terminated

        def mask(tree):
            return jax.tree.map(lambda x: jnp.where(diverged, jnp.zeros_like(x), x), tree)

        info = {**state.info, "key": inner.key}
        if self.own_time_limit:
            info["time_out"] = time_out.astype(jnp.float32)
        done = terminated | time_out if self.own_time_limit else terminated
        return state.replace(
            pipeline_state=inner.replace(key=()),
            obs=self._obs(mask(inner.obs)),
            reward=mask(inner.reward),
            done=done.astype(jnp.float32),
            metrics={**state.metrics, **self._metrics(mask(inner.metrics), diverged)},
            info=info,
        )

    def _obs(self, obs: Mapping[str, Array]) -> Any:
        if isinstance(self.groups, str):
            return obs[self.groups]
        return {name: obs[group] for name, group in self.groups.items()}

    def _metrics(self, metrics: Mapping[str, Array], diverged: Array) -> dict[str, Array]:
        names = metrics if self.metrics is None else self.metrics
        return {**{name: metrics[name] for name in names}, "diverged": diverged.astype(jnp.float32)}


@contextlib.contextmanager
def jax_for_brax() -> Iterator[None]:
    """While it lasts, JAX has (process-wide) what Brax 0.14 calls and JAX 0.10 dropped: `jax.device_put_replicated`.

    Nothing happens where JAX still has it, or for a Brax that no longer asks.
    """
    if hasattr(jax, "device_put_replicated"):
        yield
        return
    setattr(jax, "device_put_replicated", _device_put_replicated)  # noqa: B010  (mypy: the stub's names differ)
    try:
        yield
    finally:
        del jax.device_put_replicated


def _device_put_replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of every leaf on every device, stacked along a new first axis."""
    # The axis is called as in Brax's `pmap`, into which the copies go: JAX refuses to mix meshes of different names.
    sharding = NamedSharding(Mesh(np.array(devices), ("i",)), P("i"))

    def leaf(x):
        return jax.device_put(jnp.broadcast_to(x, (len(devices), *jnp.shape(x))), sharding)

    return jax.tree.map(leaf, tree)
