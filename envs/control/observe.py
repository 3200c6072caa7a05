"""Observation groups of the two policies, after the paper's table (REFINE-DP, appendix: controller observations).

The legs are canonicalised: whenever the right foot swings, robot and command are seen in the mirror, so that one policy
learns "left swings" only; its action is mirrored back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.control.controller import ARMS, LEGS, Command, Controller, ControllerState, Measured
from envs.t1 import gait, rotations
from envs.t1.robot import ARM_MIRROR, LEG_MIRROR

Array = jax.Array

_VECTOR = np.array([1, -1, 1], np.float32)
_AXIAL = np.array([-1, 1, -1], np.float32)
_POSE = np.array([1, -1, 1, -1], np.float32)  # x, y, z, yaw

LEG_LAYOUT = {
    "gyro": 3,
    "gravity": 3,
    "leg_q": LEGS,
    "leg_qd": LEGS,
    "last_action": LEGS,
    "leg_reference_error": LEGS,
    "leg_reference": LEGS,
    "clock": 5,
    "target_from_stance": 4,
    "target_from_base": 4,
    "stance_from_base": 4,
    "swing_reference": 4,
    "base_reference_error": 4,
    "base_reference_velocity": 2,
    "command": 3,
    "arm_q": ARMS,
}
LEG_PRIVILEGED_LAYOUT = {
    "base_velocity": 3,
    "feet_error": 8,
    "feet_up": 2,
    "touch": 2,
    "foot_force": 6,
    "payload": 2,
    "friction": 1,
    "latency": 1,
}
HAND_LAYOUT = {
    "gyro": 3,
    "gravity": 3,
    "arm_q": ARMS,
    "arm_qd": ARMS,
    "last_action": ARMS,
    "arm_reference_error": ARMS,
    "arm_reference_rate": ARMS,
    "hand_command": 18,
    "hand_pose": 18,
    "hand_error": 12,
}
HAND_PRIVILEGED_LAYOUT = {"base_velocity": 3, "payload": 2, "clock": 5, "command": 3, "latency": 1}


def manifest(layout: dict[str, int]) -> dict[str, slice]:
    """Name -> slice of the observation vector: the contract of an exported policy."""
    out, start = {}, 0
    for name, width in layout.items():
        out[name] = slice(start, start + width)
        start += width
    return out


def width(layout: dict[str, int]) -> int:
    """Length of the observation vector."""
    return sum(layout.values())


@struct.dataclass
class Privileged:
    """What only the critics see: `touch (2,)` normal force under each foot [N], `foot_force (2, 3)` [N], `payload (2,)` extra
    mass per hand [kg], `friction ()` multiplier, `latency ()` ticks."""

    touch: Array
    foot_force: Array
    payload: Array
    friction: Array
    latency: Array


def mirror_pairs(x: Array, signs: np.ndarray) -> Array:
    """Swap the left and right halves of `x (2n,)` and flip `signs (n,)`."""
    n = signs.shape[0]
    return jnp.concatenate([x[n:] * signs, x[:n] * signs])


def _pick(mirror: Array, x: Array, mirrored: Array) -> Array:
    return jnp.where(mirror, mirrored, x)


def leg_action(canonical: Array, swing: Array) -> Array:
    """Canonical action `(12,)` of the policy -> action of the robot's left and right leg."""
    return _pick(swing == 1, canonical, mirror_pairs(canonical, LEG_MIRROR))


def _relative(pose: Array, frame: Array) -> Array:
    """World pose `(4,)` seen from `frame (4,)` (heading only)."""
    xy = gait.turn(-frame[3], pose[:2] - frame[:2])
    return jnp.stack([xy[0], xy[1], pose[2] - frame[2], rotations.wrap_angle(pose[3] - frame[3])])


def _clock(state: ControllerState) -> Array:
    phase = 2.0 * jnp.pi * state.references.phase
    walking = state.gait.walking.astype(jnp.float32)
    seconds = (state.gait.length.astype(jnp.float32) - 25.0) * 0.1
    return jnp.stack([walking, state.references.phase, walking * jnp.sin(phase), walking * jnp.cos(phase), seconds])


def leg_groups(
    controller: Controller,
    state: ControllerState,
    command: Command,
    measured: Measured,
    privileged: Privileged,
    noise: dict[str, Array] | None = None,
) -> tuple[Array, Array]:
    """Actor and critic observations of the legs, in the order of `LEG_LAYOUT` (+ `LEG_PRIVILEGED_LAYOUT`)."""
    noise = noise or {}
    refs, swing = state.references, state.gait.swing
    mirror = swing == 1
    gyro = measured.gyro + noise.get("gyro", 0.0)
    gravity = measured.gravity + noise.get("gravity", 0.0)
    leg_q = measured.leg_q + noise.get("leg_q", 0.0)
    leg_qd = measured.leg_qd + noise.get("leg_qd", 0.0)
    arm_q = measured.arm_q + noise.get("arm_q", 0.0)
    stance = measured.feet[1 - swing]

    def vector(x):
        return _pick(mirror, x, x * _VECTOR)

    def axial(x):
        return _pick(mirror, x, x * _AXIAL)

    def pose(x):
        return _pick(mirror, x, x * _POSE)

    def legs(x):
        return _pick(mirror, x, mirror_pairs(x, LEG_MIRROR))

    clock = _clock(state)
    actor = jnp.concatenate(
        [
            axial(gyro) * 0.5,
            vector(gravity),
            legs(leg_q - controller.stand_leg),
            legs(leg_qd) * 0.1,
            legs(state.leg_action),
            legs(state.leg_ref - leg_q) * 4.0,
            legs(state.leg_ref - controller.stand_leg),
            clock,
            pose(_relative(refs.target, stance)) * 4.0,
            pose(_relative(refs.target, measured.base)) * 4.0,
            pose(_relative(stance, measured.base)) * 4.0,
            pose(_relative(refs.feet[swing], measured.base)) * 4.0,
            pose(_relative(refs.base, measured.base)) * 8.0,
            vector(jnp.append(gait.turn(-measured.base[3], refs.base_velocity), 0.0))[:2] * 3.0,
            _pick(mirror, command.velocity, command.velocity * np.array([1, -1, -1], np.float32)) * 4.0,
            _pick(mirror, arm_q - controller.stand_arm, mirror_pairs(arm_q - controller.stand_arm, ARM_MIRROR)),
        ]
    )
    # Swing foot first, like everything else that is seen in the mirror.
    order = jnp.stack([swing, 1 - swing])
    error = jnp.stack([pose(_relative(refs.feet[i], measured.feet[i])) for i in range(2)])[order]
    force = jnp.stack([vector(privileged.foot_force[i]) for i in range(2)])[order]
    velocity = gait.turn(-measured.base[3], measured.base_velocity[:2])
    hidden = jnp.concatenate(
        [
            vector(jnp.append(velocity, measured.base_velocity[2])) * 2.0,
            error.reshape(-1) * 10.0,
            measured.feet_up[order],
            privileged.touch[order] / 170.0,
            force.reshape(-1) / 170.0,
            privileged.payload[order],
            privileged.friction[None],
            privileged.latency[None],
        ]
    )
    return actor, jnp.concatenate([actor, hidden])


def hand_groups(
    state: ControllerState,
    command: Command,
    measured: Measured,
    privileged: Privileged,
    stand_arm: np.ndarray,
    noise: dict[str, Array] | None = None,
) -> tuple[Array, Array]:
    """Actor and critic observations of the hands, in the order of `HAND_LAYOUT` (+ `HAND_PRIVILEGED_LAYOUT`)."""
    noise = noise or {}
    arm_q = measured.arm_q + noise.get("arm_q", 0.0)
    pos, rot = hand_error(command, measured)
    actor = jnp.concatenate(
        [
            (measured.gyro + noise.get("gyro", 0.0)) * 0.5,
            measured.gravity + noise.get("gravity", 0.0),
            arm_q - stand_arm,
            (measured.arm_qd + noise.get("arm_qd", 0.0)) * 0.2,
            state.arm_action,
            (state.arm_ref - arm_q) * 8.0,
            state.arm_ref_rate * 0.2,
            *(jnp.concatenate([command.hand_pos[i] * 3.0, rotations.mat_to_6d(command.hand_rot[i])]) for i in range(2)),
            *(
                jnp.concatenate([measured.hand_pos[i] * 3.0, rotations.mat_to_6d(measured.hand_rot[i])])
                for i in range(2)
            ),
            pos.reshape(-1) * 20.0,
            rot.reshape(-1) * 4.0,
        ]
    )
    # As the legs' critic has it: a heading is not among what these networks see.
    velocity = gait.turn(-measured.base[3], measured.base_velocity[:2])
    hidden = jnp.concatenate(
        [
            velocity,
            measured.base_velocity[2:],
            privileged.payload,
            _clock(state),
            command.velocity,
            privileged.latency[None],
        ]
    )
    return actor, jnp.concatenate([actor, hidden])


def hand_error(command: Command, measured: Measured) -> tuple[Array, Array]:
    """Tracking errors of the hands: positions `(2, 3)` [m] and rotation vectors `(2, 3)` [rad], trunk frame."""
    pos = command.hand_pos - measured.hand_pos
    rot = jnp.stack([rotations.mat_to_rotvec(command.hand_rot[i] @ measured.hand_rot[i].T) for i in range(2)])
    return pos, rot
