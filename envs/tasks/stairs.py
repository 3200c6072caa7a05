"""Stair-assisted retrieval: step onto a platform, take a box from a shelf that is out of reach from the floor (REFINE-DP,
section 2, task 4)."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco

from envs.t1.model import Platform, build_spec
from envs.t1.robot import FOOT_AHEAD
from envs.tasks import objects
from envs.tasks.base import View
from envs.tasks.box import EDGE, BoxStart
from envs.tasks.pickup import Pickup, PickupWorld
from envs.tasks.start import Obstacle

Array = jax.Array
RISE = 0.10  # of the platform [m]
LEDGE = -0.8  # x of its front, from the shelf's near edge, which lies along x = 0 [m]
BACK = 0.2  # x of its back, beneath the shelf: no foot gets near that ledge [m]
HALF_WIDTH = 1.2  # of the platform [m]
FOOT_CLEAR = 0.3  # from the trunk to the platform where a robot starts: no nominal start is nearer [m]
SHELF_HEIGHT = 0.75  # puts the box 0.125 above the trunk's origin, seen from the platform, 0.225 from the floor [m]
SHELF_HALF = (0.4, 0.7)  # so large that arms do not reach the box from behind or from a side either [m]
BEFORE = 0.15  # from the soles' middle to the ledge, where the robot lines up before it climbs [m]
AT_LEDGE = 0.25  # a sole that near to the ledge counts as arrived [m]
SOLE_SLACK = 0.02  # by so much a sole may be below the platform's height: feet roll and sink a little [m]
AT_SIDE = 0.05  # a palm is at the box if it is no further from its middle than its side, by that much [m]
BETWEEN = 0.1  # the palms' middle is no further than that from the box's; of two palms on one side it would be half an edge [m]


class Stairs(Pickup):
    """See `envs.tasks.base.Task`.  What the robot has to do at the shelf is the pickup's, a step higher."""

    name = "stairs"
    seconds = 30.0
    object_layout: ClassVar[dict[str, int]] = {"box": 9, "ledge": 5}
    privileged_layout: ClassVar[dict[str, int]] = {"box_motion": 8, "held": 1, "soles": 2}
    stages: ClassVar[tuple[str, ...]] = ("start", "ledge", "foot_up", "climbed", "touched", "lifted", "held")

    def __init__(self) -> None:
        depth = BACK - LEDGE
        platform = Platform(LEDGE + 0.5 * depth, 0.0, 0.5 * depth, HALF_WIDTH, RISE)
        super().__init__((platform,), SHELF_HEIGHT)

    def build(self) -> mujoco.MjSpec:
        """Platform, shelf and box."""
        spec = build_spec(self.scene)
        objects.add_table(spec, "shelf", (SHELF_HALF[0], 0.0), SHELF_HALF, SHELF_HEIGHT)
        objects.add_box(spec, "box", EDGE, 1.0, ("shelf",))
        return spec

    def default_params(self) -> BoxStart:
        """Roughly head-on, as feet cross a ledge; distances are to where the robot lines up before it.  A light box."""
        return (
            super()
            .default_params()
            .replace(
                distance=jnp.array([0.2, 0.8]),
                angle=jnp.float32(0.25),
                heading=jnp.float32(0.2),
                box_mass=jnp.array([0.3, 1.0]),
            )
        )

    def first_place(self, pose: Array) -> Array:
        """In front of the ledge, in line with the box."""
        return jnp.stack([jnp.float32(LEDGE - BEFORE - FOOT_AHEAD), pose[1], jnp.float32(0.0)])

    def obstacles(self) -> tuple[Obstacle, ...]:
        """The platform, on which no foot starts."""
        return (Obstacle((LEDGE, -HALF_WIDTH), (BACK, HALF_WIDTH), FOOT_CLEAR),)

    def soles(self, view: View) -> Array:
        """`(2,)` height of the soles above the platform [m], negative on the floor."""
        return view.measured.feet[:, 2] - RISE

    def climbed(self, view: View) -> Array:
        """`(2,)` bool, which feet are up: beyond the ledge, at the platform's height or above."""
        return (self.soles(view) > -SOLE_SLACK) & (view.measured.feet[:, 0] > LEDGE)

    def holds(self, view: View) -> Array:
        """As the pickup's, with a palm at either side of the box and both feet up."""
        palms = view.measured.hand_pos - view.local(self.box_pose(view)[:3])
        either = jnp.all(jnp.linalg.norm(palms, axis=-1) < 0.5 * EDGE + AT_SIDE)
        opposite = jnp.linalg.norm(palms.mean(0)) < BETWEEN
        return super().holds(view) & either & opposite & jnp.all(self.climbed(view))

    def objects(self, world: PickupWorld, view: View) -> Array:
        """Box pose; the middle of the ledge, and its height above the trunk's origin."""
        del world
        height = RISE - view.measured.base[2]
        return jnp.concatenate([view.local_pose(self.box_pose(view)), view.local_planar(LEDGE, 0.0, 0.0), height[None]])

    def privileged(self, world: PickupWorld, view: View) -> Array:
        """Motion of the box, time held, heights of the soles."""
        return jnp.concatenate([super().privileged(world, view), self.soles(view)])

    def stage(self, world: PickupWorld, view: View) -> Array:
        """As `stages`."""
        up, at_box = self.climbed(view), self.until_lifted(view)
        stage = jnp.where(jnp.max(view.measured.feet[:, 0]) > LEDGE - AT_LEDGE, 1, 0)
        stage = jnp.where(jnp.any(up), 2, stage)
        stage = jnp.where(jnp.all(up), 3, stage)
        stage = jnp.where(at_box >= 2, at_box + 2, stage)
        return jnp.where(self.success(world, view), 6, stage).astype(jnp.int32)
