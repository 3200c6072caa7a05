"""Door traversal: press the lever, push the door open against its closer, walk through (REFINE-DP, section 2, task 3)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.physics.base import ModelParams
from envs.t1.model import SIDES, Scene, build_spec
from envs.tasks.base import TaskDefaults, View
from envs.tasks.objects import touch_robot
from envs.tasks.start import Start, place_robot

Array = jax.Array
HALF_WIDTH = 0.45  # of the opening; the hinge is at y = HALF_WIDTH [m]
HEIGHT, THICK = 1.3, 0.04  # of the door [m]
LEVER_Y, LEVER_Z = -0.37, 0.74  # its axle [m]
LEVER_LENGTH, LEVER_OFF = 0.13, 0.09  # from the axle towards the hinge, and off the panel [m]
LEVER_MAX = 0.7  # rad
RELEASE = 0.35  # the lever must be pressed that far [rad]
SHUT = 0.02  # the latch can catch below this angle of the door [rad]
MASS, CLOSER, DAMPING = 10.0, 1.2, 1.0  # kg, N m, N m s/rad
PAST = 0.3  # success: everything of the robot that far behind the frame [m]
FOOT_BACK, HAND_LENGTH = 0.12, 0.15  # what sticks out behind a foot's and a palm's point [m]
PLACE = (-0.50, -0.12, 0.0)  # x, y and heading of a trunk that can work the lever


@struct.dataclass
class DoorWorld:
    """All `()` bool: `latched`; `worked`, the lever has been pressed far enough since the start; `beyond`, the trunk is past the
    frame's plane, and `through`, it came there between the posts."""

    latched: Array
    worked: Array
    beyond: Array
    through: Array


class Door(TaskDefaults):
    """See `envs.tasks.base.Task`.  The frame lies in the plane x = 0; the door opens towards +x, away from the robot.

    The latch is an equality constraint that holds the door shut, switched once per controller tick with memory: it lets go when
    the lever is pressed, and catches again when the door is shut and the lever is up.  So a shove does not open it.
    """

    name = "door"
    seconds = 30.0
    object_layout: ClassVar[dict[str, int]] = {"frame": 4, "lever": 3, "angles": 2}
    privileged_layout: ClassVar[dict[str, int]] = {"rates": 2, "latched": 1, "mass": 1}
    stages = ("start", "near", "touched", "unlatched", "opened", "through")
    neq = 1

    def __init__(self) -> None:
        self.scene = Scene(self.name)
        self.joints = np.zeros(0, int)

    def build(self) -> mujoco.MjSpec:
        """Frame, door and lever."""
        spec = build_spec(self.scene)
        world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
        look = {"contype": 0, "conaffinity": 0, "mass": 0}
        for side, sign in zip(SIDES, (1, -1), strict=True):
            name = f"post_{side}"
            world.add_geom(
                name=name,
                type=box,
                size=[0.05, 0.05, HEIGHT / 2],
                pos=[0, sign * (HALF_WIDTH + 0.055), HEIGHT / 2],
                rgba=[0.35, 0.36, 0.4, 1],
                **look,
            )
            touch_robot(spec, name)
        world.add_geom(
            type=box,
            size=[0.05, HALF_WIDTH + 0.105, 0.03],
            pos=[0, 0, HEIGHT + 0.03],
            rgba=[0.35, 0.36, 0.4, 1],
            **look,
        )
        door = world.add_body(name="door", pos=[0, HALF_WIDTH, 0])
        # Positive angles open: about -z from the hinge's side, the free edge moves towards +x.
        door.add_joint(
            name="door",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, 1],
            range=[-0.05, 1.9],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            damping=DAMPING,
            armature=0.05,
            # Nearly the same torque at every angle, as a closer gives it.
            stiffness=0.1,
            springref=-CLOSER / 0.1,
        )
        width = 2 * HALF_WIDTH - 0.01
        door.mass, door.ipos = MASS, [0, -HALF_WIDTH, HEIGHT / 2]
        door.inertia = [MASS * (width**2 + HEIGHT**2) / 12, MASS * HEIGHT**2 / 12, MASS * width**2 / 12]
        door.explicitinertial = True
        door.add_geom(
            name="door",
            type=box,
            size=[THICK / 2, width / 2, HEIGHT / 2 - 0.015],
            pos=[0, -HALF_WIDTH, HEIGHT / 2 + 0.005],
            rgba=[0.72, 0.68, 0.6, 1],
            **look,
        )
        touch_robot(spec, "door")
        for side in SIDES:
            spec.add_pair(geomname1=f"{side}_foot", geomname2="door", condim=1)
        lever = door.add_body(name="lever", pos=[-LEVER_OFF, LEVER_Y - HALF_WIDTH, LEVER_Z])
        lever.add_joint(
            name="lever",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[-1, 0, 0],
            range=[0, LEVER_MAX],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            damping=0.05,
            armature=0.005,
            stiffness=0.8,
            springref=-0.3,
        )
        lever.mass, lever.inertia, lever.explicitinertial = 0.2, [3e-4] * 3, True
        lever.ipos = [0, LEVER_LENGTH / 2, 0]
        capsule = mujoco.mjtGeom.mjGEOM_CAPSULE
        steel = [0.75, 0.76, 0.8, 1]
        lever.add_geom(
            name="lever", type=capsule, fromto=[0, 0, 0, 0, LEVER_LENGTH, 0], size=[0.013, 0, 0], rgba=steel, **look
        )
        lever.add_geom(type=capsule, fromto=[0, 0, 0, LEVER_OFF, 0, 0], size=[0.011, 0, 0], rgba=steel, **look)
        for side in SIDES:
            for part in ("hand", "finger", "palm_0", "palm_1"):
                spec.add_pair(geomname1=f"{side}_{part}", geomname2="lever", condim=1)
        spec.add_equality(
            name="latch",
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1="door",
            data=[0.0] * mujoco.mjNEQDATA,
            active=True,
        )
        spec.option.iterations, spec.option.ls_iterations = 6, 10
        return spec

    def bind(self, model: mujoco.MjModel) -> None:
        """Addresses of door and lever."""
        joints = [model.joint(name) for name in ("door", "lever")]
        self.joints = np.array([j.qposadr[0] for j in joints])
        self.rates = np.array([j.dofadr[0] for j in joints])
        self.body = model.body("door").id

    def default_params(self) -> Start:
        """Nominal starts; distances are to where the robot works the lever."""
        return Start.nominal(0.2, 0.9)

    def arrange(self, key: Array, qpos: Array, params: Start) -> Array:
        """Door shut, robot in front of it."""
        qpos = qpos.at[self.joints].set(0.0)
        return place_robot(key, qpos, params, jnp.asarray(PLACE, jnp.float32))

    def vary(self, key: Array, model: ModelParams, params: Start) -> ModelParams:
        """Mass of the door (7 to 13 kg), friction of everything."""
        km, kf = jax.random.split(key)
        mass = jax.random.uniform(km, minval=0.7, maxval=1.3)
        friction = jax.random.uniform(kf, minval=params.friction[0], maxval=params.friction[1])
        return model.replace(body_mass=model.body_mass.at[self.body].multiply(mass), friction=model.friction * friction)

    def start(self, view: View, params: Any = None) -> DoorWorld:
        """Latched."""
        del view, params
        no = jnp.array(False)
        return DoorWorld(latched=jnp.array(True), worked=no, beyond=no, through=no)

    def angles(self, view: View) -> Array:
        """`(2,)` of door and lever [rad]."""
        return view.physics.qpos[self.joints]

    def tick(self, world: DoorWorld, view: View) -> tuple[DoorWorld, Array]:
        """The latch's memory, and the robot's way."""
        door, lever = self.angles(view)
        pressed = lever > RELEASE
        latched = ~pressed & (world.latched | (door < SHUT))
        x, y = view.physics.qpos[:2]
        between = jnp.where(world.beyond, world.through, jnp.abs(y) < HALF_WIDTH)
        world = DoorWorld(latched, world.worked | pressed, beyond=x > 0.0, through=(x > 0.0) & between)
        return world, latched.astype(jnp.float32)[None]

    def lever(self, view: View) -> Array:
        """`(3,)` where a hand presses, world."""
        door, lever = self.angles(view)
        return _on_lever(door, lever)

    def lever_at_rest(self, view: View) -> Array:
        """As `lever`, as if nobody pressed."""
        return _on_lever(self.angles(view)[0], jnp.float32(0.0))

    def objects(self, world: DoorWorld, view: View) -> Array:
        """Middle of the frame, the lever, angles of door and lever."""
        del world
        lever = view.local(self.lever(view))
        return jnp.concatenate([view.local_planar(0.0, 0.0, 0.0), lever, self.angles(view)])

    def privileged(self, world: DoorWorld, view: View) -> Array:
        """Rates of door and lever, the latch, the door's mass."""
        rest = jnp.stack([world.latched.astype(jnp.float32), view.model.body_mass[self.body]])
        return jnp.concatenate([view.physics.qvel[self.rates], rest])

    def rear(self, view: View) -> Array:
        """Rearmost point of trunk, feet and hands along the way through [m]."""
        m = view.measured
        feet = m.feet[:, 0] - FOOT_BACK
        hands = jax.vmap(view.world)(m.hand_pos)[:, 0] - HAND_LENGTH
        return jnp.minimum(jnp.minimum(feet.min(), hands.min()), view.physics.qpos[0] - 0.1)

    def success(self, world: DoorWorld, view: View) -> Array:
        """The whole robot is past the frame, through which it went, by way of the lever."""
        return world.worked & world.through & (self.rear(view) > 0.5 * THICK + PAST)

    def stage(self, world: DoorWorld, view: View) -> Array:
        """As `stages`."""
        base, (door, lever) = view.measured.base, self.angles(view)
        stage = jnp.where(jnp.linalg.norm(base[:2] - jnp.asarray(PLACE[:2])) < 0.15, 1, 0)
        stage = jnp.where(lever > 0.1, 2, stage)
        stage = jnp.where(world.worked & ~world.latched, 3, stage)
        stage = jnp.where(door > 0.8, 4, stage)
        return jnp.where(self.success(world, view), 5, stage).astype(jnp.int32)


def _on_lever(door: Array, lever: Array) -> Array:
    """World point `(3,)` three quarters along the lever, for angles of door and lever."""
    along = 0.75 * LEVER_LENGTH
    # In the door's frame, hinge at the origin.
    x, y = -LEVER_OFF, LEVER_Y - HALF_WIDTH + along * jnp.cos(lever)
    c, s = jnp.cos(door), jnp.sin(door)
    return jnp.stack([c * x - s * y, HALF_WIDTH + s * x + c * y, LEVER_Z - along * jnp.sin(lever)])
