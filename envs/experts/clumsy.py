"""An expert whose hands slip and whose feet stumble: it acts with errors, and says what it had meant to do.

Demonstrations without errors never show how to get out of one: their hand targets hardly differ from where the hands are, and an
imitator learns to leave the hands there.  With errors that are executed but not recorded the targets are what they should be
from wherever the errors have led (noise injection as in DART, arXiv:1703.09327).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.core import State
from envs.experts.base import Expert
from envs.tasks.command import ACTION_DIM

Array = jax.Array
SLIP = (0.02, 0.012, 0.015)  # std of the error that both hands share: ahead, left, up [m]
MEMORY = 0.8  # of that error, from one planner step to the next: a time constant of half a second
STUMBLE = (0.15, 0.08, 0.2)  # largest error of the base velocity [m/s, m/s, rad/s]
STREAM = 0xC1A5  # what errors are drawn from, apart from what the expert draws from the same key
STUMBLES, STEPS = 0.02, 6  # probability per step that one begins, and how many steps it lasts


@struct.dataclass
class ClumsyMemory:
    """Attributes:
    expert: its own memory; intended: `(23,)` the action it meant last.
    slip: `(3,)` error of the hands [m]; stumble: `(3,)` error of the velocity [m/s, rad/s]; left `()` int32 steps of it.
    key: random key.
    """

    expert: Any
    intended: Array
    slip: Array
    stumble: Array
    left: Array
    key: Array


class Clumsy:
    """`expert` with `scale` times the errors that it can bear; see `envs.experts.base.Expert`."""

    def __init__(self, expert: Expert, scale: float = 1.0):
        self.expert, self.scale = expert, scale * expert.errors

    def start(self, key: Array, state: State) -> ClumsyMemory:
        """The expert's start, without an error yet."""
        own = jax.random.fold_in(key, STREAM)
        none = jnp.zeros(3)
        return ClumsyMemory(self.expert.start(key, state), jnp.zeros(ACTION_DIM), none, none, jnp.int32(0), own)

    def act(self, memory: ClumsyMemory, state: State) -> tuple[ClumsyMemory, Array]:
        """New memory and the action to execute `(23,)`; the memory holds the one intended."""
        expert, intended = self.expert.act(memory.expert, state)
        key, slip_key, begin_key, stumble_key = jax.random.split(memory.key, 4)
        kick = self.scale * (1.0 - MEMORY**2) ** 0.5 * jnp.asarray(SLIP)
        slip = MEMORY * memory.slip + kick * jax.random.normal(slip_key, (3,))
        begins = (memory.left == 0) & jax.random.bernoulli(begin_key, STUMBLES)
        drawn = self.scale * jnp.asarray(STUMBLE) * jax.random.uniform(stumble_key, (3,), minval=-1.0)
        left = jnp.where(begins, STEPS, jnp.maximum(memory.left - 1, 0))
        stumble = jnp.where(begins, drawn, jnp.where(left > 0, memory.stumble, 0.0))
        executed = intended.at[:3].add(stumble).at[3:6].add(slip).at[12:15].add(slip)
        return ClumsyMemory(expert, intended, slip, stumble, left, key), executed
