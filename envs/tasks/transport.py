"""Long-horizon transport: pick a box up, carry it to another table, set it down, step clear (REFINE-DP, section 2, task 2)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco
from flax import struct

from envs.t1 import gait
from envs.t1.model import build_spec
from envs.tasks import objects
from envs.tasks.base import PLANNER_DT, View
from envs.tasks.box import CLEAR as FREE
from envs.tasks.box import EDGE, REACH, TABLE_HALF, TABLE_HEIGHT, BoxStart, BoxTask
from envs.tasks.start import Obstacle

Array = jax.Array
GOAL_EDGE = 1.6  # the second table's near edge lies along y = 1.6, to the left of the first [m]
GOAL_X = (-0.75, -0.15)  # where along that edge the box may have to go [m]
GOAL_INSET = 0.5 * EDGE + 0.065  # of the goal from the edge [m]
NEAR = 0.10  # how near to the goal is good enough [m]
CLEAR = 0.06  # the palms must be that far from the box's sides [m]
REST_S = 0.5


@struct.dataclass
class TransportStart(BoxStart):
    """`near ()`: how near to the goal is good enough [m]."""

    near: Array


@struct.dataclass
class TransportWorld:
    """`goal ()` x of the goal on the second table and `near ()` how near to it is good enough [m]; `rested ()` int32 planner
    steps at rest there; `carried ()` bool."""

    goal: Array
    near: Array
    rested: Array
    carried: Array


class Transport(BoxTask):
    """See `envs.tasks.base.Task`; the first table and the start are the pickup's."""

    name = "transport"
    seconds = 45.0
    object_layout: ClassVar[dict[str, int]] = {"box": 9, "table": 4, "goal": 4}
    privileged_layout: ClassVar[dict[str, int]] = {"box_motion": 8, "goal_distance": 1, "rested": 1}
    stages = ("start", "near", "touched", "lifted", "carried", "placed", "released")

    def __init__(self) -> None:
        super().__init__(self.name)

    def build(self) -> mujoco.MjSpec:
        """Two tables and a box."""
        spec = build_spec(self.scene)
        objects.add_table(spec, "table", (TABLE_HALF[0], 0.0), TABLE_HALF, TABLE_HEIGHT)
        middle = (0.5 * (GOAL_X[0] + GOAL_X[1]), GOAL_EDGE + TABLE_HALF[0])
        objects.add_table(spec, "goal_table", middle, (TABLE_HALF[1], TABLE_HALF[0]), TABLE_HEIGHT)
        # Goals lie near the edge, as arms are short: a box that is near enough to one may jut out by a few centimetres.
        left, right = ((middle[0] + side * TABLE_HALF[1], GOAL_EDGE + objects.RIM) for side in (-1, 1))
        objects.add_rim(spec, "goal_rim", left, right, TABLE_HEIGHT)
        objects.add_box(spec, "box", EDGE, 1.0, ("table", "goal_table"), ("goal_rim",), long=True)
        return spec

    def obstacles(self) -> tuple[Obstacle, ...]:
        """Both tables."""
        x, (depth, half) = 0.5 * (GOAL_X[0] + GOAL_X[1]), TABLE_HALF
        return (*super().obstacles(), Obstacle((x - half, GOAL_EDGE), (x + half, GOAL_EDGE + 2.0 * depth), FREE))

    def goal_pose(self, world: TransportWorld) -> Array:
        """`(3,)` x, y and heading (of a robot in front of it) of the goal."""
        return jnp.stack([world.goal, jnp.float32(GOAL_EDGE + GOAL_INSET), jnp.float32(0.5 * jnp.pi)])

    def place_place(self, world: TransportWorld) -> Array:
        """`(3,)` x, y and heading of a trunk that can set the box down at the goal."""
        goal = self.goal_pose(world)
        xy = goal[:2] - gait.turn(goal[2], jnp.array([REACH, 0.0]))
        return jnp.stack([xy[0], xy[1], goal[2]])

    def start(self, view: View, params: TransportStart | None = None) -> TransportWorld:
        """The goal follows from where the box happens to stand: no key is needed, and the two are independent enough."""
        pose = self.box_pose(view)
        share = jnp.mod(997.0 * (pose[0] + 3.0 * pose[1]), 1.0)
        goal = GOAL_X[0] + share * (GOAL_X[1] - GOAL_X[0])
        near = (params or self.default_params()).near
        return TransportWorld(goal=goal, near=near, rested=jnp.int32(0), carried=jnp.array(False))

    def distance(self, world: TransportWorld, view: View) -> Array:
        """From the box to the goal, horizontally [m]."""
        return jnp.linalg.norm(self.box_pose(view)[:2] - self.goal_pose(world)[:2])

    def released(self, view: View) -> Array:
        """Both palms are off the box's sides."""
        pose = self.box_pose(view)
        hands = view.measured.hand_pos - view.local(pose[:3])
        return jnp.all(jnp.linalg.norm(hands, axis=-1) > 0.5 * EDGE + CLEAR)

    def on_goal(self, world: TransportWorld, view: View) -> Array:
        """The box stands on the second table near the goal."""
        return (self.distance(world, view) < world.near) & (jnp.abs(self.height(view)) < 0.015)

    def advance(self, world: TransportWorld, view: View) -> TransportWorld:
        """Counts how long the box has rested at the goal with nobody touching it."""
        still = jnp.linalg.norm(view.physics.qvel[self.box_vel]) < 0.1
        rests = self.on_goal(world, view) & still & self.released(view)
        lifted = self.height(view) > 0.05
        return world.replace(
            rested=jnp.where(rests, world.rested + 1, 0),
            carried=world.carried | (lifted & (self.distance(world, view) < 0.8)),
        )

    def objects(self, world: TransportWorld, view: View) -> Array:
        """Box pose, the middle of the first table's near edge, the goal."""
        goal = self.goal_pose(world)
        return jnp.concatenate(
            [
                view.local_pose(self.box_pose(view)),
                view.local_planar(0.0, 0.0, 0.0),
                view.local_planar(goal[0], goal[1], goal[2]),
            ]
        )

    def privileged(self, world: TransportWorld, view: View) -> Array:
        """Motion of the box, its distance to the goal, time at rest."""
        rest = jnp.stack([self.distance(world, view), world.rested.astype(jnp.float32)])
        return jnp.concatenate([self.box_motion(view), rest])

    def success(self, world: TransportWorld, view: View) -> Array:
        """At rest for long enough."""
        del view
        return world.rested >= round(REST_S / PLANNER_DT)

    def stage(self, world: TransportWorld, view: View) -> Array:
        """As the pickup's up to lifted; then carried near the goal, placed, released."""
        stage = self.until_lifted(view)
        stage = jnp.where(world.carried, 4, stage)
        placed = world.carried & self.on_goal(world, view)
        stage = jnp.where(placed, 5, stage)
        return jnp.where(placed & self.released(view), 6, stage).astype(jnp.int32)

    def default_params(self) -> TransportStart:
        """The pickup's starts, with boxes that arms can carry for long."""
        nominal = {**vars(super().default_params()), "box_mass": jnp.array([0.5, 1.5])}
        return TransportStart(**nominal, near=jnp.float32(NEAR))
