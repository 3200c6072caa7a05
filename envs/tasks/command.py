"""The planner's action, and the process that turns it into 50 Hz commands of the controller."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.control.commands import CommandRanges
from envs.control.controller import CONTROL_DT, Command, Controller
from envs.t1 import rotations

Array = jax.Array
TICKS = 5
"""Controller ticks per planner action (0.1 s)."""
HAND_SPEED = 0.6  # fastest a hand target moves [m/s]
HAND_TURN = 2.5  # fastest it turns [rad/s]

ACTION_LAYOUT = {
    "velocity": 3,
    "left_hand_pos": 3,
    "left_hand_rot": 6,
    "right_hand_pos": 3,
    "right_hand_rot": 6,
    "gripper": 2,
}
"""Base velocity in the heading frame [m/s, m/s, rad/s]; palm poses in the trunk frame [m, 6-D]; grippers 0 open .. 1 closed."""
ACTION_DIM = sum(ACTION_LAYOUT.values())

VELOCITY_LOW = np.array([-0.2, -0.15, -0.4], np.float32)
VELOCITY_HIGH = np.array([0.4, 0.15, 0.4], np.float32)
STAND = np.array([0.03, 0.025, 0.06], np.float32)
"""A velocity with all three components below these means standing [m/s, m/s, rad/s]."""
# Left palm, trunk frame; the right one's box is the mirror image.
HAND_LOW = np.array([0.10, -0.08, -0.20], np.float32)
HAND_HIGH = np.array([0.52, 0.42, 0.45], np.float32)


def decode(action: Array) -> Command:
    """Any `(23,)` numbers -> a command within limits; rotations by Gram-Schmidt.

    A velocity within `STAND` is zero: the gait steps on the spot for any other, and what a planner samples never is exactly that.
    """
    velocity, hands, gripper = action[:3], action[3:21].reshape(2, 9), action[21:]
    mirror = np.array([1, -1, 1], np.float32)
    left = jnp.clip(hands[0, :3], HAND_LOW, HAND_HIGH)
    right = mirror * jnp.clip(mirror * hands[1, :3], HAND_LOW, HAND_HIGH)
    moving = jnp.any(jnp.abs(velocity) >= STAND)
    return Command(
        velocity=jnp.where(moving, jnp.clip(velocity, VELOCITY_LOW, VELOCITY_HIGH), 0.0),
        hand_pos=jnp.stack([left, right]),
        hand_rot=rotations.mat_from_6d(hands[:, 3:]),
        gripper=jnp.clip(gripper, 0.0, 1.0),
    )


def encode(command: Command) -> Array:
    """Inverse of `decode` for a command within limits: `(23,)`."""
    hands = jnp.concatenate([command.hand_pos, rotations.mat_to_6d(command.hand_rot)], axis=-1)
    return jnp.concatenate([command.velocity, hands.reshape(-1), command.gripper])


@struct.dataclass
class PlannedState:
    """Attributes:
    now: command of the present tick; target: what the planner asked for last.
    left: `()` int32 ticks until the target should be reached.
    eq_active: `(neq,)` equality constraints in force (a latch), or None in scenes without any.
    """

    now: Command
    target: Command
    left: Array
    eq_active: Any = None


class PlannedProcess:
    """Commands that come from outside; hand targets move to theirs within one planner step, at bounded speed.

    `envs.control.env.ControlEnv` asks it as it asks the random process on which the controller trained.
    """

    def __init__(
        self, controller: Controller, ranges: CommandRanges | None = None, equalities: np.ndarray | None = None
    ):
        del ranges
        self.controller, self.equalities = controller, equalities

    def _posture(self, key: Array) -> Array:
        """Arms at the start: as standing."""
        del key
        return jnp.asarray(self.controller.stand_arm)

    def start(self, key: Array, arm_q: Array) -> PlannedState:
        """Standing still, hands where they are."""
        del key
        pos, rot = self.controller.hands_at(arm_q)
        now = Command(jnp.zeros(3), pos, rot, jnp.zeros(2))
        return PlannedState(now, now, jnp.int32(1), None if self.equalities is None else jnp.asarray(self.equalities))

    def ask(self, state: PlannedState, target: Command) -> PlannedState:
        """A new planner action."""
        return state.replace(target=target, left=jnp.int32(TICKS))

    def advance(self, state: PlannedState, key: Array) -> PlannedState:
        """One tick."""
        del key
        now, target = state.now, state.target
        share = 1.0 / jnp.maximum(state.left, 1).astype(jnp.float32)
        move = share * (target.hand_pos - now.hand_pos)
        length = jnp.linalg.norm(move, axis=-1, keepdims=True)
        move = move * jnp.minimum(1.0, HAND_SPEED * CONTROL_DT / (length + 1e-9))
        turn = share * rotations.mat_to_rotvec(target.hand_rot @ jnp.swapaxes(now.hand_rot, -1, -2))
        angle = jnp.linalg.norm(turn, axis=-1, keepdims=True)
        turn = turn * jnp.minimum(1.0, HAND_TURN * CONTROL_DT / (angle + 1e-9))
        now = Command(
            velocity=target.velocity,
            hand_pos=now.hand_pos + move,
            hand_rot=rotations.mat_from_rotvec(turn) @ now.hand_rot,
            gripper=target.gripper,
        )
        return state.replace(now=now, left=jnp.maximum(state.left - 1, 0))

    def command(self, state: PlannedState) -> Command:
        """The present command."""
        return state.now
