"""What a task is: a world, what the planner sees of it, and when it has succeeded or failed."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import mujoco
from flax import struct

from envs.control.controller import Measured
from envs.physics.base import ModelParams, PhysicsState
from envs.t1 import rotations
from envs.t1.model import Scene

Array = jax.Array
PLANNER_DT = 0.1
"""Seconds per planner action."""


@struct.dataclass
class View:
    """The world at one instant: `physics`, what the robot `measured`, and the episode's `model` parameters."""

    physics: PhysicsState
    measured: Measured
    model: ModelParams

    def local(self, point: Array) -> Array:
        """World point `(3,)` -> trunk frame."""
        return rotations.quat_rotate_inv(self.physics.qpos[3:7], point - self.physics.qpos[:3])

    def world(self, point: Array) -> Array:
        """Inverse of `local`."""
        return self.physics.qpos[:3] + rotations.quat_rotate(self.physics.qpos[3:7], point)

    def local_pose(self, pose: Array) -> Array:
        """World pose `(7,)` (position, quaternion) -> `(9,)` position and 6-D rotation in the trunk frame."""
        quat = rotations.quat_mul(rotations.quat_conj(self.physics.qpos[3:7]), pose[3:])
        return jnp.concatenate([self.local(pose[:3]), rotations.quat_to_6d(quat)])

    def local_planar(self, x: Any, y: Any, yaw: Any) -> Array:
        """Fixed place in the world -> `(4,)` x, y, cos, sin of it as seen from the base's heading frame."""
        base = self.measured.base
        dx, dy, turn = x - base[0], y - base[1], yaw - base[3]
        c, s = jnp.cos(base[3]), jnp.sin(base[3])
        return jnp.stack([c * dx + s * dy, c * dy - s * dx, jnp.cos(turn), jnp.sin(turn)])


class Task(Protocol):
    """Static description of a task; methods are pure and unbatched.  `world` is the task's state, `params` its numbers."""

    name: str
    seconds: float
    scene: Scene
    object_layout: dict[str, int]
    privileged_layout: dict[str, int]
    stages: tuple[str, ...]
    neq: int

    def build(self) -> mujoco.MjSpec: ...

    def bind(self, model: mujoco.MjModel) -> None:
        """Resolves names, once, from the compiled model."""
        ...

    def default_params(self) -> Any:
        """A pytree with at least the `scale` of `envs.tasks.start.Start`."""
        ...

    def arrange(self, key: Array, qpos: Array, params: Any) -> Array:
        """Puts robot and objects where the episode starts."""
        ...

    def vary(self, key: Array, model: ModelParams, params: Any) -> ModelParams:
        """The episode's masses and friction."""
        ...

    def start(self, view: View, params: Any = None) -> Any:
        """Task state at the start; `params` left out: the default ones."""
        ...

    def tick(self, world: Any, view: View) -> tuple[Any, Array | None]:
        """After each controller tick: task state, and the equality constraints in force (None without any)."""
        ...

    def advance(self, world: Any, view: View) -> Any:
        """After each planner action."""
        ...

    def objects(self, world: Any, view: View) -> Array:
        """What the planner sees of objects and goal, in the order of `object_layout`."""
        ...

    def privileged(self, world: Any, view: View) -> Array:
        """What only the critic sees."""
        ...

    def success(self, world: Any, view: View) -> Array: ...

    def failure(self, world: Any, view: View) -> Array:
        """Beyond recovery (falls of the robot apart)."""
        ...

    def grasped(self, view: View) -> Array:
        """`()` bool, both palms are at one object: what squeezes it, the difference of their errors, is then no error."""
        ...

    def stage(self, world: Any, view: View) -> Array:
        """`()` int32 index into `stages` of what has been achieved so far."""
        ...


class TaskDefaults:
    """Members of `Task` as many tasks have them: nothing happens but physics, nothing is held, only a fall is beyond recovery."""

    neq = 0
    privileged_layout: ClassVar[dict[str, int]] = {}

    def tick(self, world: Any, view: View) -> tuple[Any, Array | None]:
        """Nothing happens between planner steps."""
        del view
        return world, None

    def advance(self, world: Any, view: View) -> Any:
        """Nothing is counted."""
        del view
        return world

    def privileged(self, world: Any, view: View) -> Array:
        """The critic sees what the planner sees."""
        del world, view
        return jnp.zeros(0)

    def failure(self, world: Any, view: View) -> Array:
        """Nothing but a fall is beyond recovery."""
        del world, view
        return jnp.array(False)

    def grasped(self, view: View) -> Array:
        """Nothing is held with both hands."""
        del view
        return jnp.array(False)
