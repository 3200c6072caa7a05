"""The T1 by name: every integer id, slice and constant that the rest of the code needs, resolved once from a model."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np

from envs.physics.base import sensor_slices

LEG_JOINTS = ("Hip_Pitch", "Hip_Roll", "Hip_Yaw", "Knee_Pitch", "Ankle_Pitch", "Ankle_Roll")
ARM_JOINTS = (
    "Shoulder_Pitch",
    "Shoulder_Roll",
    "Elbow_Pitch",
    "Elbow_Yaw",
    "Wrist_Pitch",
    "Wrist_Yaw",
    "Hand_Roll",
)

BASE_HEIGHT = 0.65
"""Height of the trunk frame above the soles when standing [m]; leaves the knees bent, hence reach in every direction."""

FOOT_AHEAD = 0.052
"""Soles' distance ahead of the trunk frame [m] that puts the centre of mass over mid-foot."""

FOOT_APART = 0.21
"""Lateral distance between the soles when standing [m]."""

# Standing: knees bent.  Arms: elbows bent, palms facing each other in front of the belly.
STAND_LEG = np.array([-0.43, 0.0, 0.0, 0.79, -0.35, 0.0], np.float32)
STAND_ARM_LEFT = np.array([0.3, -1.25, 0.0, -1.3, 0.0, 0.0, 0.0], np.float32)

# Sign of each joint under reflection in the robot's x-z plane: rotations about x and z change sign, about y do not.
LEG_MIRROR = np.array([1, -1, -1, 1, 1, -1], np.float32)
ARM_MIRROR = np.array([1, -1, 1, -1, 1, -1, -1], np.float32)


@dataclasses.dataclass(frozen=True)
class Robot:
    """Index arrays into `qpos`, `qvel`, `ctrl` and `sensordata` of one model (all NumPy, static under jit).

    Attributes:
      leg_qpos, leg_qvel, leg_ctrl: `(12,)` left leg then right leg, in `LEG_JOINTS` order.
      arm_qpos, arm_qvel, arm_ctrl: `(14,)` left arm then right arm, in `ARM_JOINTS` order.
      gripper_qpos, gripper_ctrl: `(2,)` left, right.
      stand_qpos: `(nq,)` standing at the world origin.
      stand_ctrl: `(nu,)` servo targets of that pose.
      leg_torque, arm_torque: `(12,)`, `(14,)` indices of joint torques in `sensordata`.
      leg_torque_limit, arm_torque_limit: torque limits [N m]; `leg_range`, `arm_range` `(n, 2)` joint ranges [rad].
      kp, kd: `(nu,)` servo gains [N m/rad, N m s/rad].
      sensors: sensor name -> slice of `sensordata`.
    """

    leg_qpos: np.ndarray
    leg_qvel: np.ndarray
    leg_ctrl: np.ndarray
    arm_qpos: np.ndarray
    arm_qvel: np.ndarray
    arm_ctrl: np.ndarray
    gripper_qpos: np.ndarray
    gripper_ctrl: np.ndarray
    stand_qpos: np.ndarray
    stand_ctrl: np.ndarray
    leg_torque: np.ndarray
    arm_torque: np.ndarray
    leg_torque_limit: np.ndarray
    arm_torque_limit: np.ndarray
    leg_range: np.ndarray
    arm_range: np.ndarray
    kp: np.ndarray
    kd: np.ndarray
    sensors: dict[str, slice]

    @classmethod
    def from_model(cls, model: mujoco.MjModel) -> Robot:
        """Resolve every name; raises `KeyError` if the model is not a T1."""
        legs = [f"{s}_{j}" for s in ("Left", "Right") for j in LEG_JOINTS]
        arms = [f"{s}_{j}" for s in ("Left", "Right") for j in ARM_JOINTS]
        grippers = ["Left_Gripper", "Right_Gripper"]

        def qpos(names):
            return np.array([model.joint(n).qposadr[0] for n in names])

        def qvel(names):
            return np.array([model.joint(n).dofadr[0] for n in names])

        def ctrl(names):
            return np.array([model.actuator(n).id for n in names])

        sensors = sensor_slices(model)

        def torque(names):
            return np.array([sensors[f"torque_{n}"].start for n in names])

        stand = model.qpos0.copy()
        root = model.joint("root").qposadr[0]
        stand[root : root + 7] = [-FOOT_AHEAD, 0, BASE_HEIGHT, 1, 0, 0, 0]
        stand[qpos(legs)] = np.concatenate([STAND_LEG, STAND_LEG * LEG_MIRROR])
        stand[qpos(arms)] = np.concatenate([STAND_ARM_LEFT, STAND_ARM_LEFT * ARM_MIRROR])
        stand_ctrl = np.zeros(model.nu)
        for i in range(model.nu):
            stand_ctrl[i] = stand[model.jnt_qposadr[model.actuator_trnid[i, 0]]]
        return cls(
            leg_qpos=qpos(legs),
            leg_qvel=qvel(legs),
            leg_ctrl=ctrl(legs),
            arm_qpos=qpos(arms),
            arm_qvel=qvel(arms),
            arm_ctrl=ctrl(arms),
            gripper_qpos=qpos(grippers),
            gripper_ctrl=ctrl(grippers),
            stand_qpos=stand,
            stand_ctrl=stand_ctrl,
            leg_torque=torque(legs),
            arm_torque=torque(arms),
            leg_torque_limit=np.array([model.jnt_actfrcrange[model.joint(n).id, 1] for n in legs]),
            arm_torque_limit=np.array([model.jnt_actfrcrange[model.joint(n).id, 1] for n in arms]),
            leg_range=np.array([model.joint(n).range for n in legs]),
            arm_range=np.array([model.joint(n).range for n in arms]),
            kp=model.actuator_gainprm[:, 0].copy(),
            kd=-model.actuator_biasprm[:, 2].copy(),
            sensors=sensors,
        )
