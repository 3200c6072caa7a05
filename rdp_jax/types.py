"""Vocabulary of the library.

Dimension glossary, used with these names in every docstring:

| symbol | meaning |
|---|---|
| `K`  | denoising steps of a diffusion policy |
| `K'` | the last of them, which are fine-tuned |
| `S`  | steps that a sampler takes: `K`, fewer with DDIM |
| `Ta` | predicted chunk length (actions per plan) |
| `Te` | executed steps of a chunk, `Te <= Ta` |
| `H`  | observation frames that a planner sees |
| `Do` | observation width; `D` of what a network sees of it |
| `Da` | action width |
| `T`  | rollout length (environment steps per environment and iteration) |
| `B`  | environments; inside a sharded function, the environments of this device |
| `G`  | shuffle groups: fixed blocks of environments, independent of the device count |
| `M`  | minibatches per epoch; in DSRL, as in its paper, steps of distillation |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class Transition:
    """One environment step as collected; a rollout stacks them to a leading `(T, B)`.

    Attributes:
      obs: observation groups seen by the networks, raw (not normalised), name -> `(Do,)`.
      action: `(Da,)` sampled action, as given to the environment.
      reward: `()` reward of the step.
      terminated: `()` bool; no value beyond.
      truncated: `()` bool; bootstrapped from `final_obs`.
      final_obs: `(Do,)` critic group after the step and *before* any reset.
      extras: what the policy wants remembered (the denoising chain of a diffusion policy), any pytree.
    """

    obs: Mapping[str, Array]
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    final_obs: Array
    extras: Any = ()


@struct.dataclass
class Stepped:
    """Result of one auto-reset step of a batch of environments.

    Attributes:
      state: the environments to step next, already reset where the episode ended.
      final_obs: name -> `(B, Do)` observation after the step, before the reset; finite everywhere.
      reward: `(B,)`, zero where the physics diverged.
      terminated: `(B,)` bool, true where the physics diverged.
      truncated: `(B,)` bool, never true together with `terminated`.
      diverged: `(B,)` bool, the step gave a non-finite observation or reward, or the physics flagged itself.
      metrics: name -> `(B,)` metrics of the step just taken (not of the fresh start).
    """

    state: Any
    final_obs: Mapping[str, Array]
    reward: Array
    terminated: Array
    truncated: Array
    diverged: Array
    metrics: Mapping[str, Array]


@struct.dataclass
class Ticks:
    """What happened below one action of a hierarchy: `n` steps of a low-level controller that consists of parts.

    Attributes:
      obs, critic, action: part -> `(n, width)` what its policy saw, what its critic sees, what it did.
      reward: part -> `(n,)` of its own task.
      terminated: `(n,)` bool, the low-level episode ended by its own rules (a fall).
      live: `(n,)` bool, the step happened; false beyond the end of an episode.
    """

    obs: Mapping[str, Array]
    critic: Mapping[str, Array]
    action: Mapping[str, Array]
    reward: Mapping[str, Array]
    terminated: Array
    live: Array


class VectorEnv(Protocol):
    """What a learner needs of a batch of environments; `envs.wrappers.AutoReset` is one.  All methods are pure."""

    @property
    def spec(self) -> Any:
        """Has `obs_dims: Mapping[str, int]` and `action_dim: int`."""
        ...

    def reset(self, keys: Array, params: Any) -> Any:
        """`(B,)` keys -> batched state with `.obs`."""
        ...

    def step(self, pool: Any, state: Any, action: Array, params: Any) -> Stepped:
        """Steps `(B,)` environments with `(B, Da)` actions; ended ones are replaced from `pool`, any states of `reset`."""
        ...


class LayeredEnv(VectorEnv, Protocol):
    """A batch of environments with a learning controller inside; its parameters are the field `controller` of `params`."""

    @property
    def parts(self) -> Mapping[str, int]:
        """Part of the controller -> width of its action."""
        ...

    @property
    def ticks(self) -> int:
        """Controller steps per action, `n`."""
        ...

    def step_recorded(
        self, pool: Any, state: Any, action: Array, params: Any, noise: Mapping[str, Array]
    ) -> tuple[Stepped, Ticks]:
        """As `step`, with `noise` (part -> `(B, n, width)`) added to what the controller does; ticks `(B, n, ...)`."""
        ...
