"""What tasks share in which a box stands on a table: the start, the box, how far it has been lifted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.physics.base import ModelParams
from envs.t1 import gait, rotations
from envs.t1.model import Platform, Scene
from envs.tasks.base import TaskDefaults, View
from envs.tasks.start import Obstacle, Start, place_robot

Array = jax.Array
EDGE = 0.25  # of the box [m]
TABLE_HEIGHT = 0.5  # puts the box between the hands of a standing robot [m]
TABLE_HALF = (0.25, 0.6)
PALMS = 0.04  # by which the palms' points may be farther apart than the box is wide; squeezing, they are by 0.022 [m]
CLEAR = 0.45  # from the trunk to a table where a robot starts, or its hands would be inside the table [m]
REACH = 0.37  # from the trunk to the middle of a box that is about to be grasped [m]


@struct.dataclass
class BoxStart(Start):
    """Attributes:
    box_xy: `()` half range of the box's distance from the table's edge, five times that along it [m].
    box_yaw: `()` half range of its heading [rad]; box_mass `(2,)` [kg].
    """

    box_xy: Array
    box_yaw: Array
    box_mass: Array


def nominal_start() -> BoxStart:
    """The starts on which everything is judged unless said otherwise; distances are to where the robot grasps."""
    return BoxStart.nominal(
        0.3,
        0.8,
        box_xy=jnp.float32(0.015),
        box_yaw=jnp.float32(0.15),
        box_mass=jnp.array([0.5, 2.0]),
    )


class BoxTask(TaskDefaults):
    """The part of `envs.tasks.base.Task` that is about the box; the table's near edge lies along x = 0, the box near it.

    Args:
      name: of the scene.
      platforms: of the scene.
      top: height of the table, above the floor [m].
    """

    def __init__(self, name: str, platforms: tuple[Platform, ...] = (), top: float = TABLE_HEIGHT) -> None:
        self.scene = Scene(name, platforms)
        self.top = top
        self.box = np.zeros(0, int)

    def bind(self, model: mujoco.MjModel) -> None:
        """Addresses of the box."""
        self.box = model.joint("box").qposadr[0] + np.arange(7)
        self.box_vel = model.joint("box").dofadr[0] + np.arange(6)
        self.body = model.body("box").id
        self.mass = float(model.body_mass[self.body])

    def default_params(self) -> BoxStart:
        """Nominal starts."""
        return nominal_start()

    def arrange(self, key: Array, qpos: Array, params: BoxStart) -> Array:
        """Box near the table's edge, robot in front of it."""
        kb, kr = jax.random.split(key)
        u = jax.random.uniform(kb, (3,), minval=-1.0)
        # So far from the edge that all four corners are on the table: a diagonal of two would not carry it.
        x, y = 0.5 * EDGE + 0.04 + params.box_xy * u[0], 5.0 * params.box_xy * u[1]
        yaw = params.box_yaw * u[2]
        pose = jnp.concatenate([jnp.stack([x, y, self.top + 0.5 * EDGE]), rotations.quat_from_yaw(yaw)])
        qpos = qpos.at[self.box].set(pose)
        return place_robot(kr, qpos, params, self.first_place(pose), self.obstacles())

    def obstacles(self) -> tuple[Obstacle, ...]:
        """What the robot does not start at."""
        return (Obstacle((0.0, -TABLE_HALF[1]), (2.0 * TABLE_HALF[0], TABLE_HALF[1]), CLEAR),)

    def first_place(self, pose: Array) -> Array:
        """`(3,)` x, y and heading of the trunk where its work begins, for a box at `pose (7,)`: here, where it grasps."""
        return self.grasp_place(pose)

    def grasp_place(self, pose: Array) -> Array:
        """`(3,)` x, y and heading of a trunk that can grasp the box at `pose (7,)`."""
        yaw = rotations.yaw_of(pose[3:])
        xy = pose[:2] - gait.turn(yaw, jnp.array([REACH, 0.0]))
        return jnp.stack([xy[0], xy[1], yaw])

    def vary(self, key: Array, model: ModelParams, params: BoxStart) -> ModelParams:
        """Mass of the box, friction of everything."""
        km, kf = jax.random.split(key)
        mass = jax.random.uniform(km, minval=params.box_mass[0], maxval=params.box_mass[1])
        friction = jax.random.uniform(kf, minval=params.friction[0], maxval=params.friction[1])
        return model.replace(
            body_mass=model.body_mass.at[self.body].set(mass / self.mass), friction=model.friction * friction
        )

    def box_pose(self, view: View) -> Array:
        """`(7,)` world pose of the box."""
        return view.physics.qpos[self.box]

    def height(self, view: View) -> Array:
        """Lowest point of the box above the table [m], whatever its tilt."""
        pose = self.box_pose(view)
        rot = rotations.quat_to_mat(pose[3:])
        return pose[2] - 0.5 * EDGE * jnp.sum(jnp.abs(rot[2])) - self.top

    def failure(self, world: Any, view: View) -> Array:
        """The box has fallen off the table."""
        del world
        return self.height(view) < -0.05

    def box_motion(self, view: View) -> Array:
        """`(8,)` what a critic sees of the box: its velocity (linear in the trunk frame, angular in its own), mass, height."""
        linear = rotations.quat_rotate_inv(view.physics.qpos[3:7], view.physics.qvel[self.box_vel[:3]])
        mass = view.model.body_mass[self.body]
        return jnp.concatenate([linear, view.physics.qvel[self.box_vel[3:]], jnp.stack([mass, self.height(view)])])

    def grasped(self, view: View) -> Array:
        """The palms are on both sides of the box, as far apart as it is wide."""
        hands, box = view.measured.hand_pos, view.local(self.box_pose(view)[:3])
        middle = jnp.linalg.norm(hands.mean(0) - box) < 0.08
        return middle & (jnp.linalg.norm(hands[0] - hands[1]) < EDGE + PALMS)

    def until_lifted(self, view: View) -> Array:
        """Stage 0 to 3: start, near the box, palms at it, lifted clear."""
        pose = self.box_pose(view)
        place = self.grasp_place(pose)
        near = jnp.linalg.norm(view.measured.base[:2] - place[:2]) < 0.15
        lifted = self.height(view) > 0.02
        stage = jnp.where(near, 1, 0)
        stage = jnp.where(self.grasped(view), 2, stage)
        return jnp.where(lifted, 3, stage)
