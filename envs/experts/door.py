"""Expert of the door: walk up, put the right hand on the lever, press, push, walk through with the left hand on the panel."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import State
from envs.experts import base
from envs.experts.base import Memory
from envs.t1 import rotations
from envs.tasks.command import encode
from envs.tasks.door import PLACE
from envs.tasks.hierarchy import Hierarchy

Array = jax.Array
WALK, SETTLE, ABOVE, PRESS, PUSH, THROUGH = range(6)
TOLERANCE = (0.04, 0.04, 0.1)  # of the stance: ahead [m], aside [m], heading [rad]
OVER = 0.075  # palm above the lever before it presses [m]
UNDER = 0.09  # palm's target below the lever's place of rest while it presses [m]
BEHIND = 0.02  # palm behind the lever, so that the fingers are over it [m]
SLOW = (0.16, 0.08, 0.2)  # fastest while the hand is at the lever
AJAR = 0.25  # wide enough to let go of the lever [rad]
CARRIED = np.array([[0.26, 0.20, 0.02], [0.24, -0.19, 0.02]], np.float32)
"""Hands while walking up, trunk frame."""
SHOVE = np.array([[0.44, 0.20, 0.10], [0.30, -0.14, 0.06]], np.float32)
"""Left hand on the panel, right hand drawn in, while walking through."""
PALM_DOWN = 1.1  # turn of the right palm about its fingers [rad]


class DoorExpert:
    """See `envs.experts.base.Expert`."""

    errors = 1.0

    def __init__(self, env: Hierarchy):
        self.env = env
        self.task: Any = env.task

    def start(self, key: Array, state: State) -> Memory:
        """Hands where they are."""
        return base.begin(key, base.hand_positions(self.env, state))

    def act(self, memory: Memory, state: State) -> tuple[Memory, Array]:
        """One planner action."""
        task, view = self.task, self.env.view(state)
        memory = base.wander(memory)
        habits, at = memory.habits, view.measured.base
        door, lever = task.angles(view)
        world = state.task.world

        place = jnp.asarray(PLACE, jnp.float32)
        velocity, error = base.walk_to(place, at, memory)
        there = jnp.all(jnp.abs(error) < jnp.asarray(TOLERANCE))
        off = jnp.any(jnp.abs(error) > 2.5 * jnp.asarray(TOLERANCE))
        standing = ~base.walking(state)
        stage, clock = memory.stage, memory.clock
        open_ = ~world.latched & (door > AJAR)
        shut_again = world.latched & (door < 0.05)
        nxt = jnp.select(
            [
                (stage == WALK) & there,
                (stage == SETTLE) & off & (clock > 0.8),
                (stage == SETTLE) & standing & (clock > 0.2 + habits.pause),
                (stage == ABOVE) & (clock > 0.9 + habits.pause),
                (stage == PRESS) & (lever > 0.45),
                (stage == PRESS) & (clock > 2.0),
                (stage == PUSH) & open_,
                (stage == PUSH) & shut_again & (clock > 2.5),
                (stage == THROUGH) & shut_again & (at[0] < -0.3),
            ],
            [SETTLE, WALK, ABOVE, PRESS, PUSH, WALK, THROUGH, WALK, WALK],
            stage,
        )
        memory = base.enter(memory, nxt)

        rest = view.local(task.lever_at_rest(view))
        ahead = jnp.array([-BEHIND, 0.0, 0.0]) + jnp.array([0.3, 0.6, 0.0]) * habits.offset
        above = rest + ahead + jnp.array([0.0, 0.0, OVER])
        press = rest + ahead + jnp.array([0.0, 0.0, -UNDER])
        # Into the panel: the arm is soft, so the target leads.
        push = press + jnp.array([0.08, 0.0, 0.0])
        carried, shove = jnp.asarray(CARRIED), jnp.asarray(SHOVE)
        right = jnp.select(
            [nxt == ABOVE, nxt == PRESS, nxt == PUSH, nxt == THROUGH], [above, press, push, shove[1]], carried[1]
        )
        left = jnp.where(nxt == THROUGH, shove[0], carried[0])
        hands = base.toward(
            memory.hands, jnp.stack([left, right]), jnp.where(nxt == PRESS, 0.2, 1.5 * habits.hand_speed)
        )
        # Palms face each other at rest; a quarter turn about the fingers lays the right one on the lever.
        working = (nxt >= ABOVE) & (nxt <= PUSH)
        down = rotations.mat_from_rotvec(jnp.array([-PALM_DOWN, 0.0, 0.0]))
        rot = jnp.stack([jnp.eye(3), jnp.where(working, down, jnp.eye(3))])

        slow = jnp.asarray(SLOW)
        onward, _ = base.walk_to(jnp.array([1.2, -0.10, 0.0]), at, memory)
        pushing, _ = base.walk_to(jnp.array([0.3, PLACE[1], 0.0]), at, memory, slow)
        velocity = jnp.select([nxt == WALK, nxt == PUSH, nxt == THROUGH], [velocity, pushing, onward], 0.0)
        return memory.replace(hands=hands), encode(base.command(velocity, hands, rot))
