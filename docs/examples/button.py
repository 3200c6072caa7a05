"""A task that is not part of the project: walk up to a post and press the button on it (docs/tasks.md)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
from flax import struct

from envs.core import State
from envs.experts import base
from envs.experts.base import Memory
from envs.physics.base import ModelParams
from envs.t1.model import Scene, build_spec
from envs.tasks.base import TaskDefaults, View
from envs.tasks.command import encode
from envs.tasks.hierarchy import Hierarchy
from envs.tasks.objects import touch_robot
from envs.tasks.start import Start, place_robot

Array = jax.Array
HEIGHT, RADIUS = 0.72, 0.04  # of the button [m]
TRAVEL, ENOUGH = 0.03, 0.02  # how far it can be pressed, and how far it must be [m]
HOLD = 3  # planner steps for which it must be held down
PLACE = (-0.45, 0.19, 0.0)  # x, y and heading of a trunk whose right hand can press


@struct.dataclass
class ButtonWorld:
    """`held ()` int32 planner steps for which the button has been down."""

    held: Array


class Button(TaskDefaults):
    """See `envs.tasks.base.Task`.  The button stands at the origin and gives way towards +x."""

    name = "button"
    seconds = 12.0
    object_layout: ClassVar[dict[str, int]] = {"post": 4, "button": 3, "travel": 1}
    stages = ("start", "near", "touched", "pressed")

    def __init__(self) -> None:
        self.scene = Scene(self.name)

    def build(self) -> mujoco.MjSpec:
        """A post, and a button on a spring."""
        spec = build_spec(self.scene)
        size = [0.04, 0.08, HEIGHT / 2 + 0.06]
        look = {"contype": 0, "conaffinity": 0, "rgba": [0.35, 0.36, 0.4, 1]}
        spec.worldbody.add_geom(name="post", type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=[0.09, 0, size[2]], **look)
        touch_robot(spec, "post")
        body = spec.worldbody.add_body(name="button", pos=[0, 0, HEIGHT])
        body.add_joint(
            name="button",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[1, 0, 0],
            range=[0, TRAVEL],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            stiffness=50.0,
            springref=-0.02,
            damping=5.0,
        )
        body.mass, body.inertia, body.explicitinertial = 0.2, [2e-4] * 3, True
        look = {"contype": 0, "conaffinity": 0, "rgba": [0.8, 0.2, 0.15, 1]}
        body.add_geom(name="button", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[RADIUS, 0, 0], **look)
        for side in ("left", "right"):
            for part in ("hand", "finger", "palm_0", "palm_1"):
                spec.add_pair(geomname1=f"{side}_{part}", geomname2="button", condim=1)
        return spec

    def bind(self, model: mujoco.MjModel) -> None:
        """Where the button's travel is in `qpos`."""
        self.joint = int(model.joint("button").qposadr[0])

    def default_params(self) -> Start:
        """Where the robot starts, seen from where it can press."""
        return Start.nominal(0.2, 0.9)

    def arrange(self, key: Array, qpos: Array, params: Start) -> Array:
        """Nobody presses, the robot stands in front of the post."""
        return place_robot(key, qpos.at[self.joint].set(0.0), params, jnp.asarray(PLACE, jnp.float32))

    def vary(self, key: Array, model: ModelParams, params: Start) -> ModelParams:
        """Friction of everything."""
        friction = jax.random.uniform(key, minval=params.friction[0], maxval=params.friction[1])
        return model.replace(friction=model.friction * friction)

    def start(self, view: View, params: Any = None) -> ButtonWorld:
        """Not held."""
        del view, params
        return ButtonWorld(held=jnp.int32(0))

    def travel(self, view: View) -> Array:
        """`()` how far the button is pressed [m]."""
        return view.physics.qpos[self.joint]

    def advance(self, world: ButtonWorld, view: View) -> ButtonWorld:
        """Counts how long the button has been down."""
        return ButtonWorld(held=jnp.where(self.travel(view) > ENOUGH, world.held + 1, 0))

    def objects(self, world: ButtonWorld, view: View) -> Array:
        """The post's place, the button, how far it is pressed."""
        del world
        button = view.local(jnp.array([-RADIUS, 0.0, HEIGHT]))
        return jnp.concatenate([view.local_planar(0.0, 0.0, 0.0), button, self.travel(view)[None]])

    def success(self, world: ButtonWorld, view: View) -> Array:
        """Down for long enough."""
        del view
        return world.held >= HOLD

    def stage(self, world: ButtonWorld, view: View) -> Array:
        """As `stages`."""
        near = jnp.linalg.norm(view.measured.base[:2] - jnp.asarray(PLACE[:2])) < 0.15
        stage = jnp.where(near, 1, 0)
        stage = jnp.where(self.travel(view) > 0.2 * ENOUGH, 2, stage)
        return jnp.where(self.success(world, view), 3, stage).astype(jnp.int32)

    def expert(self, env: Hierarchy) -> ButtonExpert:
        """Who demonstrates; leave it out and demonstrate yourself (`rdp teleop`)."""
        return ButtonExpert(env)


WALK, AIM, PRESS = range(3)
TOLERANCE = (0.04, 0.04, 0.1)  # of the stance: ahead [m], aside [m], heading [rad]
CARRIED = ((0.26, 0.20, 0.02), (0.24, -0.19, 0.02))  # hands while walking, trunk frame [m]
FINGERS = 0.12  # from the palm's point to the fingertips [m]
LEAD = 0.12  # of the target into the button: the arm is soft [m]


class ButtonExpert:
    """See `envs.experts.base.Expert`."""

    errors = 1.0

    def __init__(self, env: Hierarchy):
        self.env = env

    def start(self, key: Array, state: State) -> Memory:
        """Hands where they are."""
        return base.begin(key, base.hand_positions(self.env, state))

    def act(self, memory: Memory, state: State) -> tuple[Memory, Array]:
        """One planner action."""
        view = self.env.view(state)
        memory = base.wander(memory)
        velocity, error = base.walk_to(jnp.asarray(PLACE, jnp.float32), view.measured.base, memory)
        there = jnp.all(jnp.abs(error) < jnp.asarray(TOLERANCE))
        off = jnp.any(jnp.abs(error) > 2.5 * jnp.asarray(TOLERANCE))
        stage, clock = memory.stage, memory.clock
        nxt = jnp.select(
            [
                (stage == WALK) & there,
                (stage > WALK) & off & (clock > 1.0),
                (stage == AIM) & (clock > 1.0 + memory.habits.pause),
                (stage == PRESS) & (clock > 2.5),
            ],
            [AIM, WALK, PRESS, AIM],
            stage,
        )
        memory = base.enter(memory, nxt)
        button = view.local(jnp.array([-RADIUS, 0.0, HEIGHT])) - jnp.array([FINGERS, 0.0, 0.0])
        aim, press = button - jnp.array([0.05, 0.0, 0.0]), button + jnp.array([LEAD, 0.0, 0.0])
        carried = jnp.asarray(CARRIED)
        right = jnp.select([nxt == AIM, nxt == PRESS], [aim, press], carried[1])
        hands = base.toward(memory.hands, jnp.stack([carried[0], right]), memory.habits.hand_speed)
        velocity = jnp.where(nxt == WALK, velocity, 0.0)
        return memory.replace(hands=hands), encode(base.command(velocity, hands, jnp.asarray(base.STRAIGHT)))
