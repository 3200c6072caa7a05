"""Box pickup: walk to a table, lift a box with both palms, hold it (REFINE-DP, section 2, task 1)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
from flax import struct

from envs.t1.model import Platform, build_spec
from envs.tasks import objects
from envs.tasks.base import PLANNER_DT, View
from envs.tasks.box import EDGE, TABLE_HALF, TABLE_HEIGHT, BoxTask

Array = jax.Array
LIFT = 0.10  # the box must be that far above the table [m]
HOLD_S = 0.5


@struct.dataclass
class PickupWorld:
    """`held ()` int32 planner steps for which the box has been up, still, and between the hands."""

    held: Array


class Pickup(BoxTask):
    """See `envs.tasks.base.Task`."""

    name = "pickup"
    seconds = 20.0
    object_layout: ClassVar[dict[str, int]] = {"box": 9, "table": 4}
    privileged_layout: ClassVar[dict[str, int]] = {"box_motion": 8, "held": 1}
    stages: ClassVar[tuple[str, ...]] = ("start", "near", "touched", "lifted", "held")

    def __init__(self, platforms: tuple[Platform, ...] = (), top: float = TABLE_HEIGHT) -> None:
        super().__init__(self.name, platforms, top)

    def build(self) -> mujoco.MjSpec:
        """Table and box."""
        spec = build_spec(self.scene)
        objects.add_table(spec, "table", (TABLE_HALF[0], 0.0), TABLE_HALF, TABLE_HEIGHT)
        objects.add_box(spec, "box", EDGE, 1.0, ("table",))
        return spec

    def start(self, view: View, params: Any = None) -> PickupWorld:
        """Nothing held."""
        del view, params
        return PickupWorld(held=jnp.int32(0))

    def holds(self, view: View) -> Array:
        """The box is up, still, and between the hands; one flung into the air is not held."""
        still = jnp.linalg.norm(view.physics.qvel[self.box_vel[:3]]) < 0.5
        near = jnp.linalg.norm(view.local(self.box_pose(view)[:3]) - view.measured.hand_pos.mean(0)) < 0.15
        return (self.height(view) > LIFT) & still & near

    def advance(self, world: PickupWorld, view: View) -> PickupWorld:
        """Counts how long the box has been held."""
        return world.replace(held=jnp.where(self.holds(view), world.held + 1, 0))

    def objects(self, world: PickupWorld, view: View) -> Array:
        """Box pose, and the middle of the table's near edge."""
        del world
        return jnp.concatenate([view.local_pose(self.box_pose(view)), view.local_planar(0.0, 0.0, 0.0)])

    def privileged(self, world: PickupWorld, view: View) -> Array:
        """Motion of the box, time held."""
        return jnp.append(self.box_motion(view), world.held.astype(jnp.float32))

    def success(self, world: PickupWorld, view: View) -> Array:
        """Up for long enough."""
        del view
        return world.held >= round(HOLD_S / PLANNER_DT)

    def stage(self, world: PickupWorld, view: View) -> Array:
        """As `stages`."""
        return jnp.where(self.success(world, view), 4, self.until_lifted(view)).astype(jnp.int32)
