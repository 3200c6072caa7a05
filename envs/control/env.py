"""The environment on which the controller trains and is judged: random commands, disturbed physics, 50 Hz.

One environment serves both policies.  `part` says whose action the learner gives; the other part is driven by a frozen
partner policy (or, without one, by its references), so legs learn under moving arms and payload, hands on a walking base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.control import observe, rewards
from envs.control.commands import CARRY_START, CarryProcess, CommandProcess, CommandRanges, CommandState
from envs.control.controller import (
    ARMS,
    CONTROL_DT,
    LEGS,
    Command,
    Controller,
    ControllerConfig,
    ControllerState,
    Measured,
)
from envs.core import EnvSpec, State
from envs.physics import make_physics
from envs.physics.base import ModelParams, PhysicsState
from envs.randomize import NOTHING, Ranges, Targets, sample_model_params
from envs.t1 import gait, rotations
from envs.t1.model import PHYSICS_DT, Scene, load_model, objects_of, scene
from rdp_jax.config import ConfigError

Array = jax.Array
PHYSICS_DTS = (0.002, 0.004, 0.005, 0.01)
PARTS = ("legs", "hands", "whole")
OPEN_GROUND = np.array([-30.0, 0.0, 0.0], np.float32)  # far from every platform
DROPPED = 0.12  # m between the box and where it is wanted
STAND_WINDOW = 25  # ticks over which the drift of a standing robot is measured


@struct.dataclass
class ControlParams:
    """Numbers that may change between calls without a new compile.

    Attributes:
      ranges: physics randomisation; `share ()` of episodes that get it, the others are nominal.
      push: `(2,)` range of the speed of a push [m/s]; `push_interval ()` mean seconds between pushes.
      noise: `()` multiplier of sensor noise; `latency ()` share of episodes with one tick (20 ms) of action delay.
      placement_noise: `()` half range of random shifts of foot placements [m].
      duration: `(2,)` range of the ticks per step.
      ledge: `(2,)` in scenes with platforms: share of episodes that start at one of them, and share of those that start before
        its ledge rather than on top.
      carry: `()` in scenes with a box: share of episodes in which the hands hold it; box_mass `(2,)` range [kg].
      stagger: `()` largest age of a fresh episode, as a share of its length.
      weights: reward name -> multiplier (a curriculum's handle).
      partner: parameters of the other part's frozen policy, or None.
      world: parameters of the `World`, or None.
    """

    ranges: Ranges
    share: Array
    push: Array
    push_interval: Array
    noise: Array
    latency: Array
    placement_noise: Array
    duration: Array
    ledge: Array
    carry: Array
    box_mass: Array
    stagger: Array
    weights: Mapping[str, Array]
    partner: Any = None
    world: Any = None


def nominal_params(partner: Any = None) -> ControlParams:
    """Undisturbed: nominal model, no noise, no pushes, no delay, steps of 0.5 s."""
    return ControlParams(
        ranges=_arrays(NOTHING),
        share=jnp.float32(0.0),
        push=jnp.zeros(2),
        push_interval=jnp.float32(4.0),
        noise=jnp.float32(0.0),
        latency=jnp.float32(0.0),
        placement_noise=jnp.float32(0.0),
        duration=jnp.array([25.0, 25.0]),
        ledge=jnp.ones(2),
        carry=jnp.float32(1.0),
        box_mass=jnp.array([1.0, 1.0]),
        stagger=jnp.float32(0.0),
        weights={},
        partner=partner,
    )


def randomized_params(partner: Any = None) -> ControlParams:
    """The judged disturbances: friction 0.4-1.2, masses +-15 %, up to 2 kg in each hand, gains +-10 %, sensor noise, pushes of
    0.4 m/s in a random direction every 4 s on average, always 20 ms of delay."""
    return nominal_params(partner).replace(
        ranges=_arrays(Ranges()),
        share=jnp.float32(1.0),
        push=jnp.array([0.4, 0.4]),
        noise=jnp.float32(1.0),
        latency=jnp.float32(1.0),
    )


def training_params(partner: Any = None, weights: Mapping[str, Array] | None = None) -> ControlParams:
    """Everything varies, from the start; a quarter of the episodes has the nominal model."""
    return nominal_params(partner).replace(
        ranges=_arrays(Ranges()),
        share=jnp.float32(0.75),
        push=jnp.array([0.1, 0.5]),
        push_interval=jnp.float32(4.0),
        noise=jnp.float32(1.0),
        latency=jnp.float32(0.5),
        placement_noise=jnp.float32(0.04),
        duration=jnp.array([22.0, 28.0]),
        ledge=jnp.array([0.7, 0.75]),
        carry=jnp.float32(0.4),
        box_mass=jnp.array([0.3, 1.5]),
        stagger=jnp.float32(0.5),
        weights=dict(weights or {}),
    )


def _arrays(ranges: Ranges) -> Ranges:
    return jax.tree.map(jnp.float32, ranges)


def climb_velocity(velocity: Array) -> Array:
    """`velocity (3,)` of a walk, turned into one that goes forward and hardly turns; standing stays standing."""
    moves = jnp.any(jnp.abs(velocity) > 1e-3)
    forward = jnp.stack([0.12 + 0.7 * jnp.abs(velocity[0]), 0.3 * velocity[1], 0.2 * velocity[2]])
    return jnp.where(moves, forward, velocity)


class World(Protocol):
    """A scene of somebody else's making, with objects in it; `params` below is `ControlParams.world`."""

    scene: Scene

    def build(self) -> mujoco.MjSpec:
        """The scene's model, physics step and solver included."""
        ...

    def arrange(self, key: Array, qpos: Array, params: Any) -> Array:
        """Start of an episode: `qpos` (robot standing at the origin) -> robot and objects where they belong."""
        ...

    def vary(self, key: Array, model: ModelParams, params: Any) -> ModelParams:
        """Adds the objects' variation to an episode's physics parameters."""
        ...


@struct.dataclass
class ControlTask:
    """What the environment remembers besides the physics.

    Attributes:
      controller: controller state; commands: the command sequence; command: the present command.
      model: physics parameters of this episode; payload `(2,)` [kg].
      last_ctrl: `(nu,)` servo targets of the last tick; delayed: `()` bool, actions arrive one tick late.
      carrying: `()` bool, the hands hold the box (scenes with one).
      climbing: `()` bool, the episode began at a ledge (scenes with platforms) and walks towards it.
      step: `()` int32 ticks since the episode began.
      arm_qd: `(14,)` and hand_velocity: `(2, 3)` of the tick before, for accelerations.
      mark: `(4,)` base pose when the present step (or standing window) began; mark_age `()` ticks since.
      bias: `(k,)` sensor offsets of this episode (joint angles of legs and arms, gravity).
    """

    controller: ControllerState
    commands: CommandState
    command: Command
    model: ModelParams
    payload: Array
    last_ctrl: Array
    delayed: Array
    carrying: Array
    climbing: Array
    step: Array
    arm_qd: Array
    hand_velocity: Array
    mark: Array
    mark_age: Array
    bias: Array


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Static settings of the environment.

    Attributes:
      part: whose action is the environment's action: `legs` (12), `hands` (14) or `whole` (26).
      scene: see `envs.t1.model.SCENES`.
      backend: physics backend.
      physics_dt: seconds per physics step; 0.01 trains as well as 0.005 at three quarters of the cost.
      episode_s: seconds until truncation.
      controller, commands: settings of controller and command sequences.
    """

    part: str = "legs"
    scene: str = "flat"
    backend: str = "auto"
    physics_dt: float = PHYSICS_DT
    episode_s: float = 16.0
    controller: ControllerConfig = ControllerConfig()
    commands: CommandRanges = CommandRanges()

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError("part", self.part, ", ".join(PARTS))
        if not 0.1 <= self.episode_s <= 3600.0:
            raise ConfigError("episode_s", self.episode_s, "0.1 .. 3600 s")
        if self.physics_dt not in PHYSICS_DTS:
            raise ConfigError("physics_dt", self.physics_dt, ", ".join(map(str, PHYSICS_DTS)) + " s")


class ControlEnv:
    """See the module's docstring; `envs.core.Env`.

    Args:
      config: static settings.
      partner: `(partner parameters, {"actor": obs}) -> action` of the part that is not trained; unused for `whole` and while
        `ControlParams.partner` is None.
      process: makes what draws and advances the commands; its state, `ControlTask.commands`, is the process's own.
      world: takes the place of the config's scene.
    """

    def __init__(
        self,
        config: ControlConfig | None = None,
        partner: Callable[[Any, Mapping[str, Array]], Array] | None = None,
        process: Callable[[Controller, CommandRanges], Any] = CommandProcess,
        world: World | None = None,
    ):
        self.config = config or ControlConfig()
        self.world = world
        if world is None:
            self.scene = scene(self.config.scene)
            model = load_model(self.config.scene, self.config.physics_dt)
        else:
            self.scene = world.scene
            spec = world.build()
            spec.option.timestep = self.config.physics_dt
            model = spec.compile()
        self.substeps = round(CONTROL_DT / self.config.physics_dt)
        self.physics = make_physics(model, self.config.backend)
        self.controller = Controller(model, self.scene, self.config.controller)
        self.process = process(self.controller, self.config.commands)
        # Of a world's boxes the world takes care.
        carried = self.scene.box if world is None else None
        self.carry = CarryProcess(self.controller, carried, self.config.commands) if carried else None
        self.model = model
        self.targets = Targets.from_model(
            model, payload_bodies=("left_payload", "right_payload"), fixed_bodies=objects_of(model)
        )
        self.partner = partner
        self._range = np.concatenate([self.controller.leg_range, self.controller.arm_range]).astype(np.float32)
        if carried:
            self._box = model.joint("box").qposadr[0] + np.arange(7)
            self._box_body, self._box_mass = model.body("box").id, float(model.body("box").mass[0])
        legs, hands = observe.width(observe.LEG_LAYOUT), observe.width(observe.HAND_LAYOUT)
        legs_critic = legs + observe.width(observe.LEG_PRIVILEGED_LAYOUT)
        hands_critic = hands + observe.width(observe.HAND_PRIVILEGED_LAYOUT)
        actor, critic, action = {
            "legs": (legs, legs_critic, LEGS),
            "hands": (hands, hands_critic, ARMS),
            "whole": (legs + hands, legs_critic + hands_critic, LEGS + ARMS),
        }[self.config.part]
        self.critic_split = legs_critic  # of a whole controller's critic group: what follows is the hands'
        self.spec = EnvSpec(
            name=f"control_{self.config.part}_{self.scene.name}",
            obs_dims={"actor": actor, "critic": critic, "legs": legs, "hands": hands},
            action_dim=action,
            control_dt=CONTROL_DT,
            episode_steps=round(self.config.episode_s / CONTROL_DT),
        )

    def default_params(self) -> ControlParams:
        """Undisturbed physics."""
        return nominal_params()

    # --- reset -------------------------------------------------------------------------------------------------------

    def _place(self, key: Array, params: ControlParams) -> tuple[Array, Array]:
        """`(x, y, yaw)` of the trunk at the start, world, and whether that is at a ledge."""
        if self.world is not None:
            # The world moves it from there, at the height of the floor, and walks nobody towards a ledge.
            return jnp.asarray(OPEN_GROUND), jnp.array(False)
        if not self.scene.platforms:
            return jnp.zeros(3), jnp.array(False)
        ko, kl, kx, ky, kh, kt = jax.random.split(key, 6)
        lanes = jnp.array([[p.x - p.half_x, 2.0 * p.half_x, p.y] for p in self.scene.platforms])
        edge, depth, y = lanes[jax.random.randint(kl, (), 0, lanes.shape[0])]
        before = jax.random.uniform(kt) < params.ledge[1]
        u = jax.random.uniform(kx)
        x = edge + jnp.where(before, -0.75 + 0.5 * u, 0.3 + (depth - 0.6) * u)
        y = y + jax.random.uniform(ky, minval=-0.5, maxval=0.5)
        yaw = jax.random.uniform(kh, minval=-0.3, maxval=0.3)
        at_ledge = jax.random.uniform(ko) < params.ledge[0]
        return jnp.where(at_ledge, jnp.stack([x, y, yaw]), OPEN_GROUND), at_ledge

    def reset(self, key: Array, params: ControlParams) -> State:
        """Standing, with a little noise, arms in a random reachable posture."""
        key, kq, kp, km, ks, kc, kl, kd, ka, kb = jax.random.split(key, 10)
        robot = self.controller.robot
        place, climbing = self._place(kp, params)
        k1, k2, k3 = jax.random.split(kq, 3)
        qpos = jnp.asarray(robot.stand_qpos, jnp.float32)
        offset = gait.turn(place[2], qpos[:2])
        arms = self.process._posture(k2)
        still = (jax.random.uniform(k3) < 0.3) | (self.world is not None)
        arms = jnp.where(still, self.controller.stand_arm, arms)
        carrying = jnp.array(False)
        if self.carry is not None:
            carrying = jax.random.uniform(jax.random.fold_in(kq, 1)) < params.carry
            arms = jnp.where(carrying, self.carry.arms, arms)
        qpos = qpos.at[:2].set(place[:2] + offset)
        qpos = qpos.at[2].add(self.controller.ground(place[0], place[1]))
        qpos = qpos.at[3:7].set(rotations.quat_from_yaw(place[2]))
        qpos = qpos.at[robot.arm_qpos].set(arms)
        qpos = qpos.at[robot.leg_qpos].add(0.02 * jax.random.uniform(k1, (LEGS,), minval=-1.0))
        qvel = jnp.zeros(self.physics.model.nv)
        if self.carry is not None:
            held = qpos[:3] + jnp.append(gait.turn(place[2], jnp.asarray(CARRY_START[:2])), CARRY_START[2])
            pose = jnp.concatenate([held, qpos[3:7]])
            qpos = qpos.at[self._box].set(jnp.where(carrying, pose, qpos[self._box]))
        if self.world is not None:
            qpos = self.world.arrange(jax.random.fold_in(kp, 1), qpos, params.world)

        randomized = jax.random.uniform(ks) < params.share
        ranges = jax.tree.map(lambda r, n: jnp.where(randomized, r, n), params.ranges, _arrays(NOTHING))
        model = sample_model_params(km, self.targets, ranges)
        if self.carry is not None:
            heavy = jax.random.uniform(jax.random.fold_in(km, 1), minval=params.box_mass[0], maxval=params.box_mass[1])
            weight = jnp.where(carrying, heavy / self._box_mass, 1.0)
            model = model.replace(body_mass=model.body_mass.at[self._box_body].set(weight))
        if self.world is not None:
            model = self.world.vary(jax.random.fold_in(km, 2), model, params.world)
        physics = self.physics.init(qpos, qvel, model)
        measured = self.controller.measure(physics)
        commands, command = self._commanded(carrying, climbing, lambda process: process.start(kc, arms))
        duration = jnp.round(jax.random.uniform(kl, minval=params.duration[0], maxval=params.duration[1]))
        state = self.controller.start(measured, command, duration)
        nominal = jnp.asarray(self.targets.payload_mass, jnp.float32)
        delayed = jax.random.uniform(kd) < params.latency
        age = jax.random.uniform(ka) * params.stagger * self.spec.episode_steps
        task = ControlTask(
            controller=state,
            commands=commands,
            command=command,
            model=model,
            payload=(model.body_mass[self.targets.payload] - 1.0) * nominal,
            last_ctrl=self.controller.targets(state, jnp.zeros(LEGS), jnp.zeros(ARMS), command.gripper),
            delayed=delayed,
            carrying=carrying,
            climbing=climbing,
            step=age.astype(jnp.int32),
            arm_qd=measured.arm_qd,
            hand_velocity=jnp.zeros((2, 3)),
            mark=measured.base,
            mark_age=jnp.int32(0),
            bias=params.noise * jax.random.uniform(kb, (LEGS + ARMS + 3,), minval=-1.0) * 0.015,
        )
        key, noise_key = jax.random.split(key)
        obs = self._observe(task, measured, physics, params, noise_key)
        no = jnp.array(False)
        zero = jax.tree.map(
            jnp.zeros_like, jax.eval_shape(lambda: self._metrics_shape(task, measured, physics, params))
        )
        return State(physics, obs, jnp.float32(0.0), no, no, zero, key, task)

    def _metrics_shape(self, task, measured, physics, params):
        outcome = self._outcome(task, task, measured, physics, jnp.zeros(LEGS), jnp.zeros(ARMS), jnp.array(False))
        return self._score(outcome, task, measured, jnp.array(False), params)[1]

    def _commanded(
        self, carrying: Array, climbing: Array, draw: Callable[[CommandProcess], CommandState]
    ) -> tuple[CommandState, Command]:
        """Command sequence and present command of the process that rules this episode."""
        state = draw(self.process)
        command = self.process.command(state)
        if self.scene.platforms and self.world is None:
            # Random walks rarely meet a ledge, so these are made to: the same commands, turned forward.
            velocity = jnp.where(climbing, climb_velocity(command.velocity), command.velocity)
            command = command.replace(velocity=velocity)
        if self.carry is None:
            return state, command
        other = draw(self.carry)
        return jax.tree.map(
            lambda a, b: jnp.where(carrying, a, b), (other, self.carry.command(other)), (state, command)
        )

    def _dropped(self, task: ControlTask, physics: PhysicsState) -> Array:
        """Whether the box has left the hands."""
        if self.carry is None:
            return jnp.array(False)
        offset = rotations.quat_rotate_inv(physics.qpos[3:7], physics.qpos[self._box[:3]] - physics.qpos[:3])
        middle = jnp.mean(task.command.hand_pos, axis=0)
        return task.carrying & (jnp.linalg.norm(offset - middle) > DROPPED)

    # --- step --------------------------------------------------------------------------------------------------------

    def _actions(self, state: State, action: Array, params: ControlParams) -> tuple[Array, Array]:
        """Robot-side leg action `(12,)` and arm action `(14,)`."""
        part, swing = self.config.part, state.task.controller.gait.swing
        if part == "whole":
            legs, arms = action[:LEGS], action[LEGS:]
        else:
            width = ARMS if part == "legs" else LEGS
            if params.partner is None or self.partner is None:
                other = jnp.zeros(width)
            else:
                other = self.partner(params.partner, {"actor": state.obs["hands" if part == "legs" else "legs"]})
            legs, arms = (action, other) if part == "legs" else (other, action)
        legs, arms = jnp.clip(legs, -4.0, 4.0), jnp.clip(arms, -4.0, 4.0)
        return observe.leg_action(legs, swing), arms

    def step(self, state: State, action: Array, params: ControlParams) -> State:
        """One 20 ms tick; `action` is the (canonical) action of the trained part, in units of the controller's scales."""
        key, kpush, kpush2, kcommand, kplace, knoise = jax.random.split(state.key, 6)
        task, controller = state.task, self.controller
        legs, arms = self._actions(state, action, params)
        ctrl = controller.targets(task.controller, legs, arms, task.command.gripper)
        applied = jnp.where(task.delayed, task.last_ctrl, ctrl)

        pushed = jax.random.uniform(kpush) < CONTROL_DT / params.push_interval
        angle, speed = jax.random.uniform(kpush2, (2,))
        angle = 2.0 * jnp.pi * angle
        speed = params.push[0] + speed * (params.push[1] - params.push[0])
        kick = jnp.where(pushed, speed, 0.0) * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        physics = state.physics.replace(qvel=state.physics.qvel.at[:2].add(kick))
        held = getattr(task.commands, "eq_active", None)
        physics = self.physics.step(physics, applied, self.substeps, task.model, eq_active=held)

        measured = controller.measure(physics)
        lowest = jnp.min(measured.feet[:, 2])
        fell = (measured.gravity[2] > -0.707) | (measured.base[2] - lowest < 0.42) | self._dropped(task, physics)
        before = task
        task = task.replace(
            controller=task.controller.replace(leg_action=legs, arm_action=arms), last_ctrl=ctrl, step=task.step + 1
        )
        outcome = self._outcome(task, before, measured, physics, legs, arms, fell)
        reward, metrics = self._score(outcome, task, measured, fell, params)

        placement = params.placement_noise * jax.random.uniform(kplace, (2,), minval=-1.0)
        commands, command = self._commanded(
            task.carrying, task.climbing, lambda process: process.advance(task.commands, kcommand)
        )
        new_controller = controller.tick(task.controller, command, measured, placement)
        begins = (new_controller.gait.tick == 0) & (new_controller.gait.walking | task.controller.gait.walking)
        restart = begins | (~new_controller.gait.walking & (task.mark_age + 1 >= STAND_WINDOW))
        task = task.replace(
            controller=new_controller,
            commands=commands,
            command=command,
            arm_qd=measured.arm_qd,
            hand_velocity=self._hand_velocity(physics),
            mark=jnp.where(restart, measured.base, task.mark),
            mark_age=jnp.where(restart, 0, task.mark_age + 1),
        )
        return State(
            physics=physics,
            obs=self._observe(task, measured, physics, params, knoise),
            reward=reward,
            terminated=fell,
            truncated=task.step >= self.spec.episode_steps,
            metrics=metrics,
            key=key,
            task=task,
        )

    # --- what is seen ------------------------------------------------------------------------------------------------

    def _privileged(self, task: ControlTask, physics: PhysicsState) -> observe.Privileged:
        sensors, data = self.controller.robot.sensors, physics.sensordata
        return observe.Privileged(
            touch=jnp.stack([data[sensors[f"{s}_sole_touch"]][0] for s in ("left", "right")]),
            foot_force=jnp.stack([data[sensors[f"{s}_sole_force"]] for s in ("left", "right")]),
            payload=task.payload,
            friction=task.model.friction,
            latency=task.delayed.astype(jnp.float32),
        )

    def _observe(
        self, task: ControlTask, measured: Measured, physics: PhysicsState, params: ControlParams, key: Array
    ) -> dict[str, Array]:
        u = params.noise * jax.random.uniform(key, (3 + 3 + 2 * (LEGS + ARMS),), minval=-1.0)
        joints = LEGS + ARMS
        q = task.bias[:joints] + 0.01 * u[6 : 6 + joints]
        qd = u[6 + joints :]
        noise = {
            "gyro": 0.15 * u[:3],
            "gravity": task.bias[joints:] + 0.02 * u[3:6],
            "leg_q": q[:LEGS],
            "arm_q": q[LEGS:],
            "leg_qd": 0.5 * qd[:LEGS],
            "arm_qd": 0.3 * qd[LEGS:],
        }
        privileged = self._privileged(task, physics)
        legs, legs_critic = observe.leg_groups(
            self.controller, task.controller, task.command, measured, privileged, noise
        )
        hands, hands_critic = observe.hand_groups(
            task.controller, task.command, measured, privileged, self.controller.stand_arm, noise
        )
        actor, critic = {
            "legs": (legs, legs_critic),
            "hands": (hands, hands_critic),
            "whole": (jnp.concatenate([legs, hands]), jnp.concatenate([legs_critic, hands_critic])),
        }[self.config.part]
        return {"actor": actor, "critic": critic, "legs": legs, "hands": hands}

    # --- what it is worth --------------------------------------------------------------------------------------------

    def _hand_velocity(self, physics: PhysicsState) -> Array:
        sensors, data = self.controller.robot.sensors, physics.sensordata
        return jnp.stack([data[sensors[f"{s}_palm_linvel"]] for s in ("left", "right")])

    def _outcome(
        self,
        task: ControlTask,
        before: ControlTask,
        measured: Measured,
        physics: PhysicsState,
        legs: Array,
        arms: Array,
        fell: Array,
    ) -> rewards.Outcome:
        robot, state = self.controller.robot, task.controller
        refs, sensors, data = state.references, robot.sensors, physics.sensordata
        feet = refs.feet - measured.feet
        swing = state.gait.swing
        last_ticks = state.gait.walking & (state.gait.tick + 2 * state.gait.pace >= state.gait.length)
        touch = jnp.stack([data[sensors[f"{s}_sole_touch"]][0] for s in ("left", "right")])
        base = refs.base - measured.base
        leg_torque, arm_torque = data[robot.leg_torque], data[robot.arm_torque]
        over = jnp.maximum(self._range[:, 0] + 0.03 - jnp.concatenate([measured.leg_q, measured.arm_q]), 0.0)
        over += jnp.maximum(jnp.concatenate([measured.leg_q, measured.arm_q]) - self._range[:, 1] + 0.03, 0.0)
        pos, rot = observe.hand_error(before.command, measured)
        # Palms are commanded into a held box and cannot get there; what counts is where the box goes.
        pos = jnp.where(before.carrying, jnp.mean(pos, axis=0), pos)
        return rewards.Outcome(
            foot_error=jnp.linalg.norm(feet[:, :3], axis=1),
            foot_yaw_error=rotations.wrap_angle(feet[:, 3]),
            landing_error=jnp.linalg.norm(refs.target[:2] - measured.feet[swing, :2]),
            landing=last_ticks.astype(jnp.float32),
            base_velocity_error=refs.base_velocity - measured.base_velocity[:2],
            base_error=jnp.stack([base[0], base[1], rotations.wrap_angle(base[3])]),
            height_error=base[2],
            leg_q_error=state.leg_ref - measured.leg_q,
            tilt=measured.gravity[:2],
            contact_match=jnp.where((touch > 1.0) == (refs.contact > 0.5), 1.0, 0.0),
            foot_tilt=1.0 - measured.feet_up,
            leg_action=legs,
            leg_action_before=before.controller.leg_action,
            leg_torque=leg_torque,
            leg_qd=measured.leg_qd,
            leg_over_limit=over[:LEGS],
            leg_over_torque=jnp.maximum(jnp.abs(leg_torque) - 0.95 * robot.leg_torque_limit, 0.0),
            gyro=measured.gyro,
            hand_pos_error=jnp.linalg.norm(pos, axis=1),
            hand_rot_error=jnp.linalg.norm(rot, axis=1),
            hand_acceleration=(self._hand_velocity(physics) - before.hand_velocity) / CONTROL_DT,
            arm_action=arms,
            arm_action_before=before.controller.arm_action,
            arm_qd=measured.arm_qd,
            arm_qdd=(measured.arm_qd - before.arm_qd) / CONTROL_DT,
            arm_over_limit=over[LEGS:],
            arm_over_torque=jnp.maximum(jnp.abs(arm_torque) - 0.95 * robot.arm_torque_limit, 0.0),
            alive=1.0 - fell.astype(jnp.float32),
        )

    def _score(
        self, outcome: rewards.Outcome, task: ControlTask, measured: Measured, fell: Array, params: ControlParams
    ) -> tuple[Array, dict[str, Array]]:
        terms = {
            "legs": rewards.LEG_TERMS,
            "hands": rewards.HAND_TERMS,
            "whole": {**rewards.LEG_TERMS, **rewards.HAND_TERMS},
        }[self.config.part]
        reward, metrics = rewards.evaluate(terms, params.weights, outcome)
        fall = fell.astype(jnp.float32)
        # Touchdown and base velocity are judged once per step; sums and counts, so that averages come out right.
        g = task.controller.gait
        touchdown = g.walking & (g.tick + g.pace >= g.length)
        landed = touchdown.astype(jnp.float32)
        swing_yaw = outcome.foot_yaw_error[g.swing]
        window = touchdown | (~g.walking & (task.mark_age + 1 >= STAND_WINDOW))
        seconds = (task.mark_age + 1) * CONTROL_DT
        turned = rotations.wrap_angle(measured.base[3] - task.mark[3])
        moved = gait.turn(-(task.mark[3] + 0.5 * turned), measured.base[:2] - task.mark[:2]) / seconds
        velocity_error = jnp.linalg.norm(moved - jnp.where(g.walking, g.latched[:2], 0.0))
        judged = window.astype(jnp.float32)
        rise = jnp.abs(task.controller.references.target[2] - g.anchor[g.swing, 2]) > 0.02
        metrics |= {
            "fall": fall,
            "touchdown/count": landed,
            "touchdown/error_m": landed * outcome.landing_error,
            "touchdown/yaw_error_rad": landed * jnp.abs(swing_yaw),
            "ledge/count": landed * rise,
            "ledge/error_m": landed * rise * outcome.landing_error,
            "velocity/count": judged,
            "velocity/error_mps": judged * velocity_error,
            "hand/position_error_m": jnp.mean(outcome.hand_pos_error),
            "hand/orientation_error_rad": jnp.mean(outcome.hand_rot_error),
            "torque/saturated": jnp.mean(
                jnp.concatenate([outcome.leg_over_torque, outcome.arm_over_torque]) > 0.0, dtype=jnp.float32
            ),
        }
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return reward + rewards.FALL * fall, metrics
