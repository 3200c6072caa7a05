"""Open-loop execution of action chunks: one step of the wrapped environment is `Te` steps of the inner one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from envs.core import Env, State, whose_resets
from envs.physics.base import put_to_rest
from rdp_jax.config import ConfigError
from rdp_jax.types import Ticks

Array = jax.Array


class Chunked:
    """`envs.core.Env` whose action is a chunk `(Te, Da)`, flattened to `(Te * Da,)`.

    Rewards of the executed actions are summed, undiscounted (DPPO, section 4).  When the inner episode ends within a chunk, the
    rest of the chunk is neither paid nor seen: observation, metrics and the kind of end are those of the last live inner step.

    Args:
      env: inner environment.
      steps: `Te`, actions executed per chunk.  Raises `ConfigError` outside 1 .. the inner episode's length.
    """

    def __init__(self, env: Env, steps: int):
        if not 1 <= steps <= env.spec.episode_steps:
            raise ConfigError("executed", steps, f"1 .. {env.spec.episode_steps} (steps of an episode)")
        self.env, self.steps = env, steps
        self.resets = whose_resets(self, Chunked, env)
        self.spec = dataclasses.replace(
            env.spec,
            action_dim=steps * env.spec.action_dim,
            control_dt=steps * env.spec.control_dt,
            episode_steps=-(-env.spec.episode_steps // steps),
        )

    def default_params(self) -> Any:
        """Parameters of the inner environment."""
        return self.env.default_params()

    def reset(self, key: Array, params: Any) -> State:
        """As the inner environment."""
        return self.env.reset(key, params)

    def step(self, state: State, action: Array, params: Any) -> State:
        """Executes `action (Te * Da,)`."""

        return self._run(state, action, lambda state, a, _: (self.env.step(state, a, params), ()), None)[0]

    @property
    def parts(self) -> Mapping[str, int]:
        """Parts of the controller inside; hierarchies only."""
        return self.env.parts  # type: ignore[attr-defined]

    @property
    def ticks(self) -> int:
        """Controller steps per chunk; hierarchies only."""
        return self.steps * self.env.ticks  # type: ignore[attr-defined]

    def step_recorded(
        self, state: State, action: Array, params: Any, noise: Mapping[str, Array]
    ) -> tuple[State, Ticks]:
        """As `step`, with `noise` (part -> `(n, width)`) added to what the controller inside does; its ticks `(n, ...)`."""
        inner: Any = self.env
        split = {name: x.reshape(self.steps, -1, x.shape[-1]) for name, x in noise.items()}
        state, ticks = self._run(state, action, lambda s, a, eps: inner.step_recorded(s, a, params, eps), split)
        return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ticks)

    def _run(
        self, state: State, action: Array, step: Callable[[State, Array, Any], tuple[State, Any]], noise: Any
    ) -> tuple[State, Any]:
        """`step` for each action of the chunk until the episode ends; what it records, dead steps marked."""

        def one(carry, inputs):
            state, paid, over = carry
            after, seen = step(state.replace(physics=put_to_rest(state.physics, over)), *inputs)
            # A live step that diverged must not poison the sum of a chunk that was finite before: the outer guard sees the
            # state's own flags and observations.
            paid = paid + jnp.where(over, 0.0, after.reward)
            state = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state)
            if isinstance(seen, Ticks):
                seen = seen.replace(live=seen.live & ~over)
            return (state, paid, over | after.terminated | after.truncated), seen

        chunk = action.reshape(self.steps, -1)
        start = (state, jnp.float32(0.0), jnp.array(False))
        (state, paid, _), seen = jax.lax.scan(one, start, (chunk, noise))
        return state.replace(reward=paid), seen
