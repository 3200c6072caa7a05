"""The 26-joint, 50 Hz controller: foot placements and hand poses in, servo targets out.

Each tick it turns a `Command` into references (gait, inverse kinematics) and two policies add a residual to them: one for the
twelve leg joints, one for the fourteen arm joints.  The paper outputs offsets from a default pose instead; that is the
setting `reference="default"`.  With zero residual the references alone stand, but do not walk.

Everything here reads proprioception only (joint angles and velocities, orientation, angular rate, and the poses of feet and
hands that follow from them): no base velocity, no contact.  World positions are used relative to the feet, hence stand for
leg odometry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.physics.base import PhysicsState
from envs.t1 import gait, kinematics, rotations
from envs.t1.gait import GaitConfig, GaitState, References
from envs.t1.model import Scene, ground_height
from envs.t1.robot import ARM_MIRROR, LEG_MIRROR, Robot
from rdp_jax.config import ConfigError

Array = jax.Array
CONTROL_DT = 0.02
NEVER: Any = np.zeros(2, np.float32)
LEGS, ARMS = 12, 14


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """Static settings.

    Attributes:
      gait: shape of the gait.
      reference: `ik` adds the policies' residual to the inverse kinematics of the references; `default` adds it to the
        standing pose, as the paper does.
      leg_scale, arm_scale: radians per unit of action.
      ik_iterations: damped least squares steps of the arms per tick.
      hand_lead: seconds by which the servo target of the arms runs ahead of the reference; kd / kp cancels the lag of a
        servo that damps absolute velocity.
    """

    gait: GaitConfig = GaitConfig()
    reference: str = "ik"
    leg_scale: float = 0.25
    arm_scale: float = 0.15
    ik_iterations: int = 2
    hand_lead: float = 0.03

    def __post_init__(self) -> None:
        if self.reference not in ("ik", "default"):
            raise ConfigError("reference", self.reference, "ik, default")


@struct.dataclass
class Command:
    """What the planner asks for, once per tick.

    Attributes:
      velocity: `(3,)` base velocity in its heading frame: forward, left [m/s], turn [rad/s].
      hand_pos: `(2, 3)` palm positions (left, right) in the trunk frame [m].
      hand_rot: `(2, 3, 3)` palm rotations in the trunk frame.
      gripper: `(2,)` 0 open .. 1 closed.
    """

    velocity: Array
    hand_pos: Array
    hand_rot: Array
    gripper: Array


@struct.dataclass
class Measured:
    """Robot state in the terms of the controller (exact; noise is added to observations).

    Attributes:
      base: `(4,)` trunk position and heading in the world; `base_velocity (3,)` of the trunk, world [m/s].
      gyro: `(3,)` angular rate, trunk frame [rad/s]; `gravity (3,)` unit gravity in the trunk frame.
      leg_q, leg_qd: `(12,)`; arm_q, arm_qd: `(14,)` joint angles [rad] and velocities [rad/s].
      feet: `(2, 4)` sole positions and headings, world; `feet_up (2,)` vertical component of the sole normals.
      hand_pos, hand_rot: `(2, 3)`, `(2, 3, 3)` palms in the trunk frame.
    """

    base: Array
    base_velocity: Array
    gyro: Array
    gravity: Array
    leg_q: Array
    leg_qd: Array
    arm_q: Array
    arm_qd: Array
    feet: Array
    feet_up: Array
    hand_pos: Array
    hand_rot: Array


@struct.dataclass
class ControllerState:
    """What the controller remembers.

    Attributes:
      gait: the gait's state.
      references: references for the coming tick.
      leg_ref: `(12,)` reference leg angles for the coming tick [rad].
      arm_ref, arm_ref_rate: `(14,)` the same for the arms, and how fast it moves [rad/s].
      leg_action, arm_action: last actions.
      stance_from_base: `(2,)` stance foot minus base, world, of the tick before (leg odometry).
      base_speed: `(2,)` base velocity by leg odometry, low-passed [m/s].
    """

    gait: GaitState
    references: References
    leg_ref: Array
    arm_ref: Array
    arm_ref_rate: Array
    leg_action: Array
    arm_action: Array
    stance_from_base: Array
    base_speed: Array


def _as_left(q: Array, signs: np.ndarray) -> Array:
    """Joint angles `(2n,)` of left and right limb -> `(2, n)`, the right one as the left limb of the mirror image."""
    return jnp.stack([q[: signs.size], q[signs.size :] * signs])


def _from_left(q: Array, signs: np.ndarray) -> Array:
    """Inverse of `_as_left`."""
    return jnp.concatenate([q[0], q[1] * signs])


def _mirror_second(x: Array, mirror: Callable[[Array], Array]) -> Array:
    return jnp.stack([x[0], mirror(x[1])])


class Controller:
    """References and servo targets of one robot model; all methods are pure and unbatched."""

    def __init__(self, model: mujoco.MjModel, scene: Scene, config: ControllerConfig | None = None):
        self.config = config or ControllerConfig()
        self.model, self.robot = model, Robot.from_model(model)
        self.scene = scene
        # The right limbs are mirror images of the left ones: one chain each, mapped over both sides, halves the program.
        self.leg = kinematics.Chain.from_model(model, kinematics.LEFT_LEG, end_site="left_sole")
        self.arm = kinematics.Chain.from_model(model, kinematics.LEFT_ARM, end_site="left_palm")
        robot = self.robot
        self.stand_leg = robot.stand_qpos[robot.leg_qpos].astype(np.float32)
        self.stand_arm = robot.stand_qpos[robot.arm_qpos].astype(np.float32)
        self.leg_range = robot.leg_range.astype(np.float32)
        self.arm_range = robot.arm_range.astype(np.float32)

    def ground(self, x: Array, y: Array) -> Array:
        """Height of the ground at world `(x, y)` [m]."""
        return ground_height(self.scene, x, y)

    def measure(self, physics: PhysicsState) -> Measured:
        """Reads a physics state."""
        robot, sensors, data = self.robot, self.robot.sensors, physics.sensordata
        quat = physics.qpos[3:7]
        rot = rotations.quat_to_mat(quat)
        feet, up = [], []
        for side in ("left", "right"):
            pos, q = data[sensors[f"{side}_sole_pos"]], data[sensors[f"{side}_sole_quat"]]
            feet.append(jnp.concatenate([pos, rotations.yaw_of(q)[None]]))
            up.append(1.0 - 2.0 * (q[1] ** 2 + q[2] ** 2))
        return Measured(
            base=jnp.concatenate([physics.qpos[:3], rotations.yaw_of(quat)[None]]),
            base_velocity=physics.qvel[:3],
            gyro=physics.qvel[3:6],
            gravity=-rot[2],
            leg_q=physics.qpos[robot.leg_qpos],
            leg_qd=physics.qvel[robot.leg_qvel],
            arm_q=physics.qpos[robot.arm_qpos],
            arm_qd=physics.qvel[robot.arm_qvel],
            feet=jnp.stack(feet),
            feet_up=jnp.stack(up),
            hand_pos=jnp.stack([data[sensors[f"{s}_palm_pos"]] for s in ("left", "right")]),
            hand_rot=jnp.stack([rotations.quat_to_mat(data[sensors[f"{s}_palm_quat"]]) for s in ("left", "right")]),
        )

    def hands_at(self, arm_q: Array) -> tuple[Array, Array]:
        """Palm poses `(2, 3)`, `(2, 3, 3)` in the trunk frame for arm angles `(14,)`."""
        pos, rot = jax.vmap(lambda q: kinematics.fk(self.arm, q))(_as_left(arm_q, ARM_MIRROR))
        return _mirror_second(pos, kinematics.mirror_pos), _mirror_second(rot, kinematics.mirror_mat)

    def start(self, measured: Measured, command: Command, duration: Array) -> ControllerState:
        """Standing where the robot stands; `duration` is the length of a step in ticks."""
        state = gait.stand(measured.feet, duration)
        refs = gait.references(state, self.config.gait, self.ground, self.scene.platforms)
        zero = jnp.zeros(2)
        controller = ControllerState(
            gait=state,
            references=refs,
            leg_ref=measured.leg_q,
            arm_ref=measured.arm_q,
            arm_ref_rate=jnp.zeros(ARMS),
            leg_action=jnp.zeros(LEGS),
            arm_action=jnp.zeros(ARMS),
            stance_from_base=measured.feet[1 - state.swing, :2] - measured.base[:2],
            base_speed=zero,
        )
        return self._refer(controller, command, fresh=True)

    def tick(
        self, state: ControllerState, command: Command, measured: Measured, noise: Array = NEVER
    ) -> ControllerState:
        """Advances gait and references after a physics step; `noise (2,)` perturbs placements (training)."""
        stance = measured.feet[1 - state.gait.swing, :2] - measured.base[:2]
        speed = (state.stance_from_base - stance) / CONTROL_DT
        # What a foot measures in the tick in which it lands is left out; the low-pass bridges it.
        exchanged = state.gait.walking & (state.gait.tick == 0)
        speed = jnp.where(exchanged, state.base_speed, speed)
        speed = state.base_speed + 0.5 * (jnp.clip(speed, -2.0, 2.0) - state.base_speed)
        drift = speed - state.references.base_velocity
        new = gait.advance(
            state.gait,
            command.velocity,
            measured.feet,
            drift,
            noise,
            self.config.gait,
            self.ground,
            self.scene.platforms,
            CONTROL_DT,
            measured.base[:2] - state.references.base[:2],
        )
        stance = measured.feet[1 - new.swing, :2] - measured.base[:2]
        state = state.replace(gait=new, stance_from_base=stance, base_speed=speed)
        return self._refer(state, command)

    def _refer(self, state: ControllerState, command: Command, fresh: bool = False) -> ControllerState:
        """References for the coming tick: feet and base from the gait, joints by inverse kinematics."""
        refs = gait.references(state.gait, self.config.gait, self.ground, self.scene.platforms, 1.0, CONTROL_DT)
        yaw = refs.base[3]
        xy = jax.vmap(lambda foot: gait.turn(-yaw, foot[:2] - refs.base[:2]))(refs.feet)
        pos = jnp.concatenate([xy, (refs.feet[:, 2] - refs.base[2])[:, None]], axis=1)
        rot = jax.vmap(rotations.mat_from_yaw)(refs.feet[:, 3] - yaw)
        leg_ref = jax.vmap(lambda p, r, q: kinematics.leg_ik(self.leg, p, r, q))(
            _mirror_second(pos, kinematics.mirror_pos),
            _mirror_second(rot, kinematics.mirror_mat),
            _as_left(state.leg_ref, LEG_MIRROR),
        )
        leg_ref = _from_left(leg_ref, LEG_MIRROR)
        arm_ref = jax.vmap(
            lambda p, r, q: kinematics.arm_ik(
                self.arm,
                p,
                r,
                q,
                jnp.asarray(self.stand_arm[:7]),
                iterations=20 if fresh else self.config.ik_iterations,
                max_step=None if fresh else 0.12,
            )
        )(
            _mirror_second(command.hand_pos, kinematics.mirror_pos),
            _mirror_second(command.hand_rot, kinematics.mirror_mat),
            _as_left(state.arm_ref, ARM_MIRROR),
        )
        arm_ref = _from_left(arm_ref, ARM_MIRROR)
        rate = 0.0 if fresh else 1.0 / CONTROL_DT
        return state.replace(
            references=refs,
            leg_ref=leg_ref,
            arm_ref=arm_ref,
            arm_ref_rate=jnp.clip((arm_ref - state.arm_ref) * rate, -6.0, 6.0),
        )

    def targets(self, state: ControllerState, leg_action: Array, arm_action: Array, gripper: Array) -> Array:
        """Servo targets `(nu,)` [rad] from actions `(12,)` (legs) and `(14,)` (arms) and grippers `(2,)`."""
        config, robot = self.config, self.robot
        if config.reference == "ik":
            legs, arms = state.leg_ref, state.arm_ref + config.hand_lead * state.arm_ref_rate
        else:
            legs, arms = self.stand_leg, self.stand_arm
        legs = jnp.clip(legs + config.leg_scale * leg_action, self.leg_range[:, 0], self.leg_range[:, 1])
        arms = jnp.clip(arms + config.arm_scale * arm_action, self.arm_range[:, 0], self.arm_range[:, 1])
        ctrl = jnp.asarray(robot.stand_ctrl, jnp.float32)
        ctrl = ctrl.at[robot.leg_ctrl].set(legs).at[robot.arm_ctrl].set(arms)
        return ctrl.at[robot.gripper_ctrl].set(1.9 * jnp.clip(gripper, 0.0, 1.0))
