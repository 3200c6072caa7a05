"""Physics-free toy: a point on a plane that must reach a goal.  Every algorithm must learn it within seconds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import EnvSpec, State

Array = jax.Array
START = 1.0  # starts and goals lie in [-START, START]^2 [m]
BOUND = 1.5  # beyond it the episode terminates [m]
STEP = 0.2  # largest displacement per axis and step [m]
SCALE = BOUND + START  # largest error per axis [m]


@struct.dataclass
class ToyParams:
    """Numbers that may change between calls: `reward` multiplies the reward, `noise` is the std of a disturbance [m]."""

    reward: Array
    noise: Array


@struct.dataclass
class ToyTask:
    """`goal (2,)` [m] and `step ()` int32, steps taken in this episode."""

    goal: Array
    step: Array


class Toy:
    """Point with position `(2,)`; action `(2,)` in [-1, 1] moves it by up to `STEP` per axis.

    The reward `1 - mean |goal - position| / SCALE` lies in [0, 1]; leaving the plane ends what could still be earned.  The best
    policy closes the error of each axis as fast as it can, see `optimal_action` and `optimal_return`.
    """

    def __init__(self, episode_steps: int = 24):
        self.spec = EnvSpec("toy", {"actor": 4, "critic": 5}, 2, 0.1, episode_steps)

    def default_params(self) -> ToyParams:
        """Unit reward, no disturbance."""
        return ToyParams(reward=jnp.float32(1.0), noise=jnp.float32(0.0))

    def reset(self, key: Array, params: ToyParams) -> State:
        """Start and goal uniform in the square."""
        del params
        key, start_key, goal_key = jax.random.split(key, 3)
        position = jax.random.uniform(start_key, (2,), minval=-START, maxval=START)
        goal = jax.random.uniform(goal_key, (2,), minval=-START, maxval=START)
        task = ToyTask(goal=goal, step=jnp.int32(0))
        zero, no = jnp.float32(0.0), jnp.array(False)
        return State(position, self._obs(position, task), zero, no, no, _metrics(zero, zero), key, task)

    def step(self, state: State, action: Array, params: ToyParams) -> State:
        """Moves, pays, and ends out of bounds (terminated) or after `episode_steps` (truncated)."""
        key, noise_key = jax.random.split(state.key)
        position = state.physics + STEP * jnp.clip(action, -1.0, 1.0)
        position = position + params.noise * jax.random.normal(noise_key, (2,))
        task = state.task.replace(step=state.task.step + 1)
        distance = jnp.mean(jnp.abs(task.goal - position))
        raw = 1.0 - distance / SCALE
        reward = params.reward * raw
        return State(
            physics=position,
            obs=self._obs(position, task),
            reward=reward,
            terminated=jnp.max(jnp.abs(position)) > BOUND,
            truncated=task.step >= self.spec.episode_steps,
            metrics=_metrics(reward, raw),
            key=key,
            task=task,
        )

    def _obs(self, position: Array, task: ToyTask) -> dict[str, Array]:
        """Actor: error and position (4); critic: the same and the elapsed fraction of the episode (5)."""
        actor = jnp.concatenate([task.goal - position, position])
        elapsed = task.step.astype(jnp.float32) / self.spec.episode_steps
        return {"actor": actor, "critic": jnp.concatenate([actor, elapsed[None]])}


def _metrics(reward: Array, raw: Array) -> dict[str, Array]:
    return {"reward/near": reward, "raw/near": raw}


def optimal_action(obs: Array) -> Array:
    """Best action for the actor group `(..., 4)` -> `(..., 2)`."""
    return jnp.clip(obs[..., :2] / STEP, -1.0, 1.0)


def optimal_return(error: Array, steps: int) -> Array:
    """Undiscounted return of the best policy, without noise, from the first error `(..., 2)` over `steps` -> `(...)`."""
    moved = STEP * jnp.arange(1, steps + 1)
    remaining = jnp.maximum(jnp.abs(error)[..., None] - moved, 0.0)
    return jnp.sum(1.0 - remaining.mean(-2) / SCALE, axis=-1)
