"""Environment contract: a typed state, pure `reset` and `step`, one environment at a time, batched by `jax.vmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class State:
    """Everything an environment carries from one step to the next.

    Attributes:
      physics: `envs.physics.base.PhysicsState`, or any pytree (the toy environment has a position).
      obs: observation groups, name -> `(dim,)` float32; at least `actor` and `critic`.
      reward: `()` float32 reward of the step just taken.
      terminated: `()` bool, the episode ended by its own rules (fall, success); no value beyond it.
      truncated: `()` bool, the episode was cut (time limit); its value must be bootstrapped.
      metrics: name -> `()` float32, same names in every step (`reward/NAME` weighted, `raw/NAME` unweighted, ...).
      key: this environment's random key; `step` splits it.
      task: the environment's own dataclass (commands, phase, last action, model parameters drawn at reset, ...).
    """

    physics: Any
    obs: Mapping[str, Array]
    reward: Array
    terminated: Array
    truncated: Array
    metrics: Mapping[str, Array]
    key: Array
    task: Any = ()


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Static facts a learner needs.

    Attributes:
      name: registry name.
      obs_dims: group name -> width.
      action_dim: width of the action.
      control_dt: seconds per `step`.
      episode_steps: steps after which an episode is truncated.
    """

    name: str
    obs_dims: Mapping[str, int]
    action_dim: int
    control_dt: float
    episode_steps: int


class Env(Protocol):
    """A pure environment.  `params` is a pytree of numbers that may change between calls without a new compile (reward
    weights of a curriculum, randomisation ranges, the parameters of a frozen policy inside the environment)."""

    spec: EnvSpec

    def default_params(self) -> Any: ...

    def reset(self, key: Array, params: Any) -> State: ...

    def step(self, state: State, action: Array, params: Any) -> State: ...


def whose_resets(wrapper: Any, kind: Any, env: Any) -> Any:
    """Whose fresh starts `wrapper`'s are (`rdp_jax.starts`): those of the `env` inside, as the class `kind` passes resets on;
    its own where a subclass resets in another way.
    """
    return vars(env).get("resets", env) if type(wrapper).reset is kind.reset else wrapper
