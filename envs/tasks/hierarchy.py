"""The planner's environment: a task, the 50 Hz controller under it, one action every 0.1 s.

The controller's parameters are part of `params`, so joint training changes them without a new compile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.control import rewards
from envs.control.controller import ARMS, LEGS, Command
from envs.control.env import ControlConfig, ControlEnv, ControlParams, nominal_params
from envs.core import EnvSpec, State
from envs.t1 import gait, rotations
from envs.tasks.base import PLANNER_DT, Task, View
from envs.tasks.command import ACTION_DIM, TICKS, PlannedProcess, decode
from rdp_jax.config import ConfigError
from rdp_jax.types import Ticks

Array = jax.Array
Act = Callable[[Any, Mapping[str, Array]], Array]

ROBOT_LAYOUT = {
    "left_hand": 9,
    "right_hand": 9,
    "left_foot": 5,
    "right_foot": 5,
    "gripper": 2,
    "gravity": 3,
}
"""One frame: palm poses (position, 6-D rotation) and foot poses (position, cos and sin of the heading) in the trunk and heading
frame, gripper commands, gravity in the trunk frame.  The task's `object_layout` follows."""
PRIVILEGED_LAYOUT = {"base_velocity": 3, "gyro": 3, "command": 3, "gait": 4, "friction": 1, "time_left": 1, "stage": 1}


def frame_layout(task: Task) -> dict[str, int]:
    """Parts of an observation frame and their widths, in their order."""
    return {**ROBOT_LAYOUT, **task.object_layout}


@struct.dataclass
class PlannerParams:
    """Numbers that may change between calls without a new compile.

    Attributes:
      controller: `{"legs", "hands"}` parameters of the two policies.
      control: disturbances of robot and model (`ControlParams`); its `world` holds the task's own numbers.
      object_noise: `()` standard deviation added to what is seen of objects [m, and 6-D units].
      object_late: `()` share of episodes in which objects are seen one frame (0.1 s) late.
    """

    controller: Mapping[str, Any]
    control: ControlParams
    object_noise: Array
    object_late: Array


@struct.dataclass
class PlannerTask:
    """What the planner's environment remembers.

    Attributes:
      inner: state of the controller's environment, without physics and key: they come from the outer state.
      world: the task's own state.
      history: `(H, frame)` oldest first; seen `(objects,)` what was seen of objects last.
      late: `()` bool, objects are seen one frame late in this episode.
      step: `()` int32 actions since the start; stage `()` int32 furthest stage reached.
    """

    inner: State
    world: Any
    history: Array
    seen: Array
    late: Array
    step: Array
    stage: Array


@dataclasses.dataclass(frozen=True)
class HierarchyConfig:
    """Static settings: physics backend, seconds per physics step, observation frames H."""

    backend: str = "auto"
    physics_dt: float = 0.005
    history: int = 8


def equalities(task: Task, model: mujoco.MjModel) -> np.ndarray | None:
    """`(neq,)` which equality constraints are in force before the task's first `tick`; None if it switches none.

    Raises `ConfigError` if the task does not know how many there are.
    """
    if task.neq not in (0, model.neq):
        raise ConfigError("neq", task.neq, f"0, or all {model.neq} equality constraints of the model")
    return model.eq_active0.astype(np.float32) if task.neq else None


class Hierarchy:
    """`envs.core.Env` of a planner.

    Args:
      task: see `envs.tasks.base.Task`.
      act: `(parameters, {"actor": obs}) -> action` of a controller policy.
      config: static settings.
    """

    def __init__(self, task: Task, act: Act, config: HierarchyConfig | None = None):
        self.task, self.act, self.config = task, act, config or HierarchyConfig()
        if not 1 <= self.config.history <= 64:
            raise ConfigError("history", self.config.history, "1 .. 64")
        self.control = ControlEnv(
            ControlConfig(
                part="whole", backend=self.config.backend, physics_dt=self.config.physics_dt, episode_s=3600.0
            ),
            process=lambda controller, ranges: PlannedProcess(controller, ranges, equalities(task, controller.model)),
            world=task,
        )
        self.physics, self.process = self.control.physics, self.control.process
        self.task.bind(self.control.model)
        self.frame_layout = frame_layout(task)
        self.frame_dim = sum(self.frame_layout.values())
        privileged = sum(PRIVILEGED_LAYOUT.values()) + sum(task.privileged_layout.values())
        self.spec = EnvSpec(
            name=task.name,
            obs_dims={"actor": self.config.history * self.frame_dim, "critic": self.frame_dim + privileged},
            action_dim=ACTION_DIM,
            control_dt=PLANNER_DT,
            episode_steps=round(task.seconds / PLANNER_DT),
        )

    def default_params(self, controller: Mapping[str, Any]) -> PlannerParams:
        """Nominal robot, the task's nominal starts and objects; `controller` as in `PlannerParams`."""
        control = nominal_params().replace(world=self.task.default_params())
        return PlannerParams(controller, control, jnp.float32(0.0), jnp.float32(0.0))

    # --- reset and step --------------------------------------------------------------------------------------------------

    def reset(self, key: Array, params: PlannerParams) -> State:
        """Standing somewhere in front of the task."""
        key, inner_key, late_key, noise_key = jax.random.split(key, 4)
        inner = self.control.reset(inner_key, params.control)
        view = self._view(inner)
        world = self.task.start(view, params.control.world)
        seen = self._see(world, view, params, noise_key)
        frame = jnp.concatenate([self._robot_frame(view, inner.task.command), seen])
        task = PlannerTask(
            inner=inner.replace(physics=(), key=()),
            world=world,
            history=jnp.tile(frame, (self.config.history, 1)),
            seen=seen,
            late=jax.random.uniform(late_key) < params.object_late,
            step=jnp.int32(0),
            stage=jnp.int32(0),
        )
        no, zero = jnp.array(False), jnp.float32(0.0)
        metrics = dict.fromkeys(METRICS, zero)
        return State(inner.physics, self._observe(task, view), zero, no, no, metrics, key, task)

    def step(self, state: State, action: Array, params: PlannerParams) -> State:
        """Executes `action (23,)` for 0.1 s; see `envs.tasks.command.ACTION_LAYOUT`."""
        return self.step_recorded(
            state, action, params, {name: jnp.zeros((TICKS, n)) for name, n in self.parts.items()}
        )[0]

    @property
    def parts(self) -> Mapping[str, int]:
        """Parts of the controller and the widths of their actions."""
        return {"legs": LEGS, "hands": ARMS}

    @property
    def ticks(self) -> int:
        """Controller steps per action."""
        return TICKS

    def step_recorded(
        self, state: State, action: Array, params: PlannerParams, noise: Mapping[str, Array]
    ) -> tuple[State, Ticks]:
        """As `step`, with `noise` (part -> `(TICKS, width)`) added to the controller's actions; also its ticks `(TICKS, ...)`."""
        key, noise_key, inner_key = jax.random.split(state.key, 3)
        inner = state.task.inner.replace(physics=state.physics, key=inner_key)
        commands = self.process.ask(inner.task.commands, decode(action))
        # The controller refers to it from the end of this first tick on: an action is felt 20 ms after it was chosen.
        inner = inner.replace(task=inner.task.replace(commands=commands))

        def tick(carry, deviation):
            inner, world = carry
            chosen = {
                name: self.act(params.controller[name], {"actor": inner.obs[name]}) + deviation[name]
                for name in self.parts
            }
            after = self.control.step(inner, jnp.concatenate([chosen["legs"], chosen["hands"]]), params.control)
            view = self._view(after)
            world, held = self.task.tick(world, view)
            # Rewarded for reaching into what it holds, a controller would learn to squeeze (docs/refine.md).
            inner_task = after.task.replace(carrying=self.task.grasped(view))
            if held is not None:
                inner_task = inner_task.replace(commands=inner_task.commands.replace(eq_active=held))
            after = after.replace(task=inner_task)
            critic = jnp.split(inner.obs["critic"], [self.control.critic_split])
            record = Ticks(
                obs={name: inner.obs[name] for name in self.parts},
                critic={"legs": critic[0], "hands": critic[1]},
                action=chosen,
                reward={name: rewards.of_part(name, after.metrics) for name in self.parts},
                terminated=after.terminated,
                # A state that diverged is frozen: nothing is to be learned from what it says.
                live=~after.physics.diverged,
            )
            kept = {name: after.metrics[name] for name in TRACKING}
            return (after, world), (record, kept, after.terminated)

        (inner, world), (record, tracking, fell) = jax.lax.scan(tick, (inner, state.task.world), dict(noise))
        # Within one action the ticks after a fall are nobody's.
        record = record.replace(live=record.live & (jnp.cumsum(fell) - fell == 0))
        view = self._view(inner)
        world = self.task.advance(world, view)
        seen = self._see(world, view, params, noise_key)
        shown = jnp.where(state.task.late, state.task.seen, seen)
        frame = jnp.concatenate([self._robot_frame(view, inner.task.command), shown])
        stage = jnp.maximum(state.task.stage, self.task.stage(world, view))
        task = PlannerTask(
            inner=inner.replace(physics=(), key=()),
            world=world,
            history=jnp.concatenate([state.task.history[1:], frame[None]]),
            seen=seen,
            late=state.task.late,
            step=state.task.step + 1,
            stage=stage,
        )
        fall = jnp.any(fell)
        # Physics that broke down stands still, and what is read off it once more says nothing.
        valid = ~fall & ~inner.physics.diverged
        success = self.task.success(world, view) & valid
        drop = self.task.failure(world, view) & valid & ~success
        speed = jnp.linalg.norm(self.control._hand_velocity(inner.physics), axis=-1).mean()  # relative to the trunk
        metrics = {
            "success": success,
            "fall": fall,
            "drop": drop,
            "stage": stage,
            "hand_speed_mps": speed,
            **{TRACKING[name]: tracking[name].mean() for name in TRACKING},
        }
        after = State(
            physics=inner.physics,
            obs=self._observe(task, view),
            reward=success.astype(jnp.float32),
            terminated=success | fall | drop,
            truncated=task.step >= self.spec.episode_steps,
            metrics={name: jnp.asarray(metrics[name], jnp.float32) for name in METRICS},
            key=key,
            task=task,
        )
        return after, record

    # --- what is seen ----------------------------------------------------------------------------------------------------

    def _view(self, inner: State) -> View:
        return View(inner.physics, self.control.controller.measure(inner.physics), inner.task.model)

    def view(self, state: State) -> View:
        """The world of an outer state, exact (for experts and reports)."""
        return self._view(state.task.inner.replace(physics=state.physics))

    def _see(self, world: Any, view: View, params: PlannerParams, key: Array) -> Array:
        exact = self._told("objects", self.task.objects(world, view), self.task.object_layout)
        return exact + params.object_noise * jax.random.normal(key, exact.shape)

    def _told(self, method: str, x: Array, layout: Mapping[str, int]) -> Array:
        """What a method of the task returned.  Raises `ConfigError` if its width is not what its layout says."""
        width = sum(layout.values())
        if x.shape != (width,):
            raise ConfigError(f"{self.task.name}.{method}", f"shape {x.shape}", f"({width},), the sum of its layout")
        return x

    def _robot_frame(self, view: View, command: Command) -> Array:
        """One frame of the robot, in the order of `ROBOT_LAYOUT`."""
        m = view.measured
        hands = jnp.concatenate([m.hand_pos, rotations.mat_to_6d(m.hand_rot)], axis=-1)

        def foot(pose):
            xy = gait.turn(-m.base[3], pose[:2] - m.base[:2])
            yaw = pose[3] - m.base[3]
            return jnp.stack([xy[0], xy[1], pose[2] - m.base[2], jnp.cos(yaw), jnp.sin(yaw)])

        feet = [foot(m.feet[i]) for i in range(2)]
        return jnp.concatenate([hands.reshape(-1), *feet, command.gripper, m.gravity])

    def _observe(self, task: PlannerTask, view: View) -> dict[str, Array]:
        g = task.inner.task.controller.gait
        velocity = gait.turn(-view.measured.base[3], view.measured.base_velocity[:2])
        left = 1.0 - task.step.astype(jnp.float32) / self.spec.episode_steps
        phase = task.inner.task.controller.references.phase
        clock = jnp.stack([g.walking.astype(jnp.float32), g.swing.astype(jnp.float32), phase, phase * (1.0 - phase)])
        privileged = [
            velocity,
            view.measured.base_velocity[2:],
            view.measured.gyro,
            task.inner.task.command.velocity,
            clock,
            view.model.friction[None],
            left[None],
            task.stage.astype(jnp.float32)[None],
            self._told("privileged", self.task.privileged(task.world, view), self.task.privileged_layout),
        ]
        return {"actor": task.history.reshape(-1), "critic": jnp.concatenate([task.history[-1], *privileged])}


TRACKING = {
    "hand/position_error_m": "hand_position_error_m",
    "hand/orientation_error_rad": "hand_orientation_error_rad",
}
METRICS = ("success", "fall", "drop", "stage", "hand_speed_mps", *TRACKING.values())
