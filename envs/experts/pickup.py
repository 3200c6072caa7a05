"""Expert of the box pickup: walk up, settle, close the palms, lift, hold; open and try again when the box slips."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.control.controller import Command
from envs.core import State
from envs.experts import base
from envs.experts.base import Memory
from envs.t1 import rotations
from envs.tasks.box import EDGE
from envs.tasks.command import encode
from envs.tasks.hierarchy import Hierarchy

Array = jax.Array
WALK, SETTLE, CLOSE, LIFT = range(4)
HALF = 0.5 * EDGE
RISE = 0.17  # how far the hands go up [m]
TOLERANCE = (0.035, 0.03, 0.08)  # of the stance: ahead [m], aside [m], heading [rad]


class PickupExpert:
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
        memory, command = self.grasp(base.wander(memory), state)
        return memory, encode(command)

    def patience(self, memory: Memory) -> Array:
        """Multiplier of the tolerance with which a place counts as reached."""
        del memory
        return jnp.float32(1.0)

    def grasp(self, memory: Memory, state: State) -> tuple[Memory, Command]:
        """The stages up to `LIFT`; in later ones of a longer task it keeps holding, and stays out of the transitions."""
        task, habits = self.task, memory.habits
        view = self.env.view(state)
        pose = task.box_pose(view)
        box = view.local(pose[:3])
        yaw = rotations.wrap_angle(rotations.yaw_of(pose[3:]) - view.measured.base[3])

        # Where to stand; while badly aligned, a hand's breadth further back, so that no hand knocks the box over.
        place = task.grasp_place(pose)
        _, error = base.walk_to(place, view.measured.base, memory)
        aligned = (jnp.abs(error[1]) < 0.06) & (jnp.abs(error[2]) < 0.15)
        behind = base.behind(place, jnp.where(aligned, 0.0, 0.14))
        velocity, _ = base.walk_to(behind, view.measured.base, memory)

        there = jnp.all(jnp.abs(error) < self.patience(memory) * jnp.asarray(TOLERANCE))
        off = jnp.any(jnp.abs(error) > 2.5 * jnp.asarray(TOLERANCE))
        middle = box + habits.offset
        open_pos, open_rot = base.beside(middle, yaw, HALF, -base.READY_APART, jnp.zeros(2))

        stage, clock = memory.stage, memory.clock
        standing = ~base.walking(state)
        slipped = (stage == LIFT) & (clock > 1.5) & (task.height(view) < 0.015)
        nxt = jnp.select(
            [
                (stage == WALK) & there,
                (stage == SETTLE) & off & (clock > 0.8),
                (stage == SETTLE) & standing & (clock > 0.3 + habits.pause),
                (stage == CLOSE) & (clock > 0.5 + habits.pause),
                slipped,
            ],
            [SETTLE, WALK, CLOSE, LIFT, SETTLE],
            stage,
        )
        # Latched when the palms close: following the box from then on would be chasing what the hands themselves do to it.
        latch = (nxt == CLOSE) & (stage != CLOSE)
        memory = base.enter(memory, nxt)
        memory = memory.replace(anchor=jnp.where(latch, jnp.append(middle, yaw), memory.anchor))

        far = jnp.linalg.norm(error[:2]) > 0.25
        before = jnp.where(far, base.ready(middle[2], HALF), open_pos)
        rise = jnp.minimum(RISE, habits.hand_speed * memory.clock) + 0.02 * jnp.clip(memory.clock - 1.5, 0.0, 4.0)
        lifted = memory.anchor[:3] + jnp.stack([0.0, 0.0, jnp.where(nxt == LIFT, rise, 0.0)])
        shut_pos, shut_rot = base.beside(lifted, memory.anchor[3], HALF, habits.squeeze, habits.inward)
        holding = nxt >= CLOSE
        goal = jnp.where(holding, shut_pos, before)
        rot = jnp.where(holding, shut_rot, jnp.where((nxt == WALK) & far, base.STRAIGHT, open_rot))
        hands = base.toward(memory.hands, goal, 1.5 * habits.hand_speed)
        velocity = jnp.where(nxt == WALK, velocity, 0.0)
        return memory.replace(hands=hands), base.command(velocity, hands, rot)
