"""What a robot's software must know to feed an exported network and to use what comes out; JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.control import observe
from envs.control.controller import CONTROL_DT
from envs.t1.robot import ARM_JOINTS, LEG_JOINTS
from envs.tasks import command
from envs.tasks.base import PLANNER_DT
from envs.tasks.hierarchy import Hierarchy

FORMAT = 1
JOINTS = {part: [f"{s}_{j}" for s in ("Left", "Right") for j in names] for part, names in
          (("legs", LEG_JOINTS), ("hands", ARM_JOINTS))}  # fmt: skip
LAYOUTS = {"legs": observe.LEG_LAYOUT, "hands": observe.HAND_LAYOUT}


def sliced(layout: Mapping[str, int]) -> list[dict[str, Any]]:
    """A layout with the place of each part."""
    places = observe.manifest(dict(layout))
    return [{"name": name, "start": place.start, "stop": place.stop} for name, place in places.items()]


def planner(env: Hierarchy, executed: int) -> dict[str, Any]:
    """Of the planner's network."""
    return {
        "rate_hz": 1.0 / (PLANNER_DT * executed),
        "observation": {
            "frames": env.config.history,
            "order": "oldest first, one every 0.1 s; at the start the first one repeated",
            "frame": sliced(env.frame_layout),
            "frames_of_reference": "palms, objects and gravity in the trunk frame, feet and places in its heading frame; "
            "metres, 6-D rotations (the first two columns), cos and sin of headings",
        },
        "output": {
            "actions": executed,
            "seconds_per_action": PLANNER_DT,
            "action": sliced(command.ACTION_LAYOUT),
            "units": "velocity in the heading frame [m/s, m/s, rad/s]; palm poses in the trunk frame [m, 6-D]; grippers 0 open "
            "to 1 closed",
            "limits": {
                "velocity": [command.VELOCITY_LOW.tolist(), command.VELOCITY_HIGH.tolist()],
                "standing_below": command.STAND.tolist(),
                "left_hand_pos": [command.HAND_LOW.tolist(), command.HAND_HIGH.tolist()],
                "hand_speed_mps": command.HAND_SPEED,
                "hand_turn_rad_per_s": command.HAND_TURN,
            },
        },
    }


def part(env: Hierarchy, name: str) -> dict[str, Any]:
    """Of the network of the legs or the hands."""
    controller = env.control.controller
    config, robot = controller.config, controller.robot
    legs = name == "legs"
    ctrl = robot.leg_ctrl if legs else robot.arm_ctrl
    return {
        "rate_hz": 1.0 / CONTROL_DT,
        "observation": {
            "layout": sliced(LAYOUTS[name]),
            "computed_by": f"envs.control.observe.{'leg' if legs else 'hand'}_groups",
        },
        "output": {
            "joints": JOINTS[name],
            "radians_per_unit": config.leg_scale if legs else config.arm_scale,
            "added_to": "inverse kinematics of the references" if config.reference == "ik" else "the standing pose",
            "mirrored": "while the right foot swings (envs.control.observe.leg_action)" if legs else "never",
            "stand_rad": _numbers(controller.stand_leg if legs else controller.stand_arm),
            "range_rad": _numbers(controller.leg_range if legs else controller.arm_range),
            "kp": _numbers(robot.kp[ctrl]),
            "kd": _numbers(robot.kd[ctrl]),
            "torque_limit_nm": _numbers(robot.leg_torque_limit if legs else robot.arm_torque_limit),
        },
    }


def _numbers(x: Any) -> Any:
    return np.round(np.asarray(x, np.float64), 6).tolist()
