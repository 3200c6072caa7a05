"""A scripted course for the controller, and the driver that sends many robots through given commands side by side.

A course is a list of segments: a base velocity and, per arm, postures to go to one after the other.  As in
`envs.control.commands`, hand targets travel along minimum-jerk paths between arm postures and are handed out as palm poses.
The driver compiles one program; what varies between robots and runs (commands, pushes, disturbances, policies) is its input.

Shapes: T ticks of 20 ms, B robots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.control import observe
from envs.control.commands import CommandProcess, CommandRanges
from envs.control.controller import CONTROL_DT, Command, Controller
from envs.control.env import ControlConfig, ControlEnv, ControlParams
from envs.core import State
from envs.t1 import gait, rotations
from envs.t1.robot import ARM_MIRROR, STAND_ARM_LEFT

Array = jax.Array
Policy = Callable[[Any, Mapping[str, Array]], Array]
BLOCK = 50  # ticks per call of the compiled program
HAND_SPEED = 1.1  # fastest joint of an arm on its way [rad/s]
SHORTEST_MOVE = 0.7  # [s]

# Angles of the left arm; the right one takes the mirror image.
POSTURES: Mapping[str, Sequence[float]] = {
    "rest": STAND_ARM_LEFT.tolist(),
    "high": (-0.54, -0.75, 0.22, -1.86, -0.76, -0.45, 0.39),
    "low": (0.15, -1.25, 0.29, -1.09, -0.48, -0.43, 0.22),
    "front": (-0.27, -1.45, 0.09, -1.62, -0.29, 0.19, 0.01),
    "wave out": (-0.49, -0.95, -0.53, -1.70, -0.65, -0.14, -0.21),
    "wave in": (-0.47, -0.87, -0.16, -1.70, -0.44, -0.15, -0.37),
}
_WAVE = ("wave out", "wave in", "wave out")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of the course.

    Attributes:
      name: what the caption says; seconds: how long.
      velocity: base velocity command, forward and left [m/s], turn [rad/s].
      left, right: postures (keys of `POSTURES`) each arm goes to one after the other; none: it stays.
    """

    name: str
    seconds: float
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


SEGMENTS = (
    Segment("Stand", 1.5),
    Segment("Forward", 4.0, (0.3, 0.0, 0.0)),
    Segment("Sideways, left", 3.0, (0.0, 0.12, 0.0)),
    Segment("Sideways, right", 3.0, (0.0, -0.12, 0.0)),
    Segment("Turn in place", 3.5, (0.0, 0.0, 0.4)),
    Segment("Walk a curve", 4.5, (0.25, 0.0, -0.3)),
    Segment("Stop", 1.5),
    Segment("Reach high", 2.5, left=("high",), right=("high",)),
    Segment("Reach low", 2.5, left=("low",), right=("low",)),
    Segment("Wave, left hand", 3.5, left=_WAVE, right=("rest",)),
    Segment("Wave, right hand", 3.5, left=("rest",), right=_WAVE),
    Segment("Back, hands forward", 4.0, (-0.15, 0.0, 0.0), left=("front",), right=("front",)),
    Segment("Hands down", 3.0, left=("rest",), right=("rest",)),
)


@dataclasses.dataclass(frozen=True)
class Course:
    """Commands of a whole course; entry t is in force during tick t, the last entry after it.

    Attributes:
      segments: what it is made of; starts: when each begins [s].
      velocity: `(T + 1, 3)`; arm_q: `(T + 1, 14)` arm postures whose palm poses are the hand targets [rad].
    """

    segments: tuple[Segment, ...]
    starts: tuple[float, ...]
    velocity: np.ndarray
    arm_q: np.ndarray

    @property
    def ticks(self) -> int:
        """T."""
        return len(self.velocity) - 1

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.ticks * CONTROL_DT

    def commands(self, controller: Controller) -> Command:
        """The commands, `(T + 1, ...)`."""
        pos, rot = jax.jit(jax.vmap(controller.hands_at))(self.arm_q)
        gripper = np.zeros((self.ticks + 1, 2), np.float32)
        return Command(jnp.asarray(self.velocity), pos, rot, jnp.asarray(gripper))


def _travel(start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """`(n, 7)` angles on the way from `start` (not included) to `goal (7,)`."""
    # Minimum jerk peaks at 1.875 times its mean speed.
    seconds = max(SHORTEST_MOVE, 1.875 * float(np.max(np.abs(goal - start))) / HAND_SPEED)
    ticks = int(np.ceil(seconds / CONTROL_DT))
    s = np.arange(1, ticks + 1) / ticks
    progress = s**3 * (10.0 + s * (6.0 * s - 15.0))  # in NumPy: a compiled `gait.quintic` per length would take seconds
    return start + progress[:, None] * (goal - start)


def _arm(segments: Sequence[Segment], side: str) -> np.ndarray:
    """`(T + 1, 7)` angles of one arm, as those of a left arm."""
    parts = [np.asarray(POSTURES["rest"], np.float32)[None]]
    for segment in segments:
        q, ticks = parts[-1][-1], round(segment.seconds / CONTROL_DT)
        path = [q[None][:0]]
        for name in getattr(segment, side):
            path.append(_travel(path[-1][-1] if len(path) > 1 else q, np.asarray(POSTURES[name], np.float32)))
        moves = np.concatenate(path)
        if len(moves) > ticks:
            need = len(moves) * CONTROL_DT
            raise ValueError(f"segment {segment.name!r}: the {side} arm needs {need:.2f} s, it has {segment.seconds} s")
        rest = np.repeat(moves[-1:] if len(moves) else q[None], ticks - len(moves), axis=0)
        parts += [moves, rest] if len(rest) else [moves]
    return np.concatenate(parts).astype(np.float32)


def make_course(segments: Sequence[Segment] = SEGMENTS) -> Course:
    """Lays the segments end to end.  Raises `ValueError` where an arm has too little time."""
    ticks = [round(s.seconds / CONTROL_DT) for s in segments]
    velocity = np.concatenate([np.tile(np.asarray(s.velocity, np.float32), (n, 1)) for s, n in zip(segments, ticks)])
    starts = np.concatenate([[0], np.cumsum(ticks)[:-1]]) * CONTROL_DT
    return Course(
        segments=tuple(segments),
        starts=tuple(starts.tolist()),
        velocity=np.concatenate([velocity, velocity[-1:]]),
        arm_q=np.concatenate([_arm(segments, "left"), _arm(segments, "right") * ARM_MIRROR], axis=1),
    )


def random_commands(controller: Controller, keys: Array, ticks: int) -> Command:
    """Commands `(T + 1, B, ...)` as `rdp controller eval` draws them, with the hands at rest first; one key per robot."""
    process = CommandProcess(controller)

    def one(key: Array) -> Command:
        first, rest = jax.random.split(key)
        state = process.start(first, jnp.asarray(controller.stand_arm))

        def advance(state, key):
            state = process.advance(state, key)
            return state, process.command(state)

        _, later = jax.lax.scan(advance, state, jax.random.split(rest, ticks))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), process.command(state), later)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one, out_axes=1))(keys))


def pushes(rng: np.random.Generator, ticks: int, speed: float, first_s: float = 3.0) -> np.ndarray:
    """`(T, 2)` sudden changes of the base velocity, world [m/s]: `speed` in a random direction every 3 to 5 s."""
    kicks = np.zeros((ticks, 2), np.float32)
    tick = round(first_s / CONTROL_DT)
    while tick < ticks:
        angle = rng.uniform(0.0, 2.0 * np.pi)
        kicks[tick] = speed * np.cos(angle), speed * np.sin(angle)
        tick += round(rng.uniform(3.0, 5.0) / CONTROL_DT)
    return kicks


# --- driving -----------------------------------------------------------------------------------------------------------


class GivenCommands:
    """Stands in for `CommandProcess` where commands come from outside: its state is the command to give next, and whoever
    steps the environment replaces it."""

    def __init__(self, controller: Controller, ranges: CommandRanges | None = None):
        del ranges
        self.controller = controller

    def _posture(self, key: Array) -> Array:
        """Arms at rest."""
        del key
        return jnp.asarray(self.controller.stand_arm)

    def start(self, key: Array, arm_q: Array) -> Command:
        """Stand, hands where they are."""
        del key
        pos, rot = self.controller.hands_at(arm_q)
        return Command(jnp.zeros(3), pos, rot, jnp.zeros(2))

    def advance(self, state: Command, key: Array) -> Command:
        """What was put there."""
        del key
        return state

    def command(self, state: Command) -> Command:
        """The present command."""
        return state


@dataclasses.dataclass(frozen=True)
class Record:
    """What happened, tick by tick; values are those after the physics of the tick, references those it was to follow.

    Attributes:
      commands: `Command` of `(T + 1, B, ...)`, entry t in force during tick t; kicks `(T, B, 2)` pushes [m/s].
      up: `(T, B)` the tick counts, no fall before it; alive `(B,)` no fall until the end.
      qpos: `(T, B, nq)`; base `(T, B, 4)` trunk position and heading.
      feet: `(T, B, 2, 4)` soles; target `(T, B, 4)` where the swing foot `swing (T, B)` is to land; walking `(T, B)`.
      landed: `(T, B)` a step ends; landing_error [m], landing_yaw_error [rad] `(T, B)`, zero but then.
      judged: `(T, B)` a step or half a second of standing ends, over which base velocity is judged: velocity_error
        [m/s], moved `(T, B, 3)` mean velocity in the heading frame and turn rate [m/s, rad/s], window `(T, B)` [s].
      hand_pos_error, hand_rot_error: `(T, B, 2)` [m], [rad].
    """

    commands: Command
    kicks: np.ndarray
    up: np.ndarray
    alive: np.ndarray
    qpos: np.ndarray
    base: np.ndarray
    feet: np.ndarray
    target: np.ndarray
    swing: np.ndarray
    walking: np.ndarray
    landed: np.ndarray
    landing_error: np.ndarray
    landing_yaw_error: np.ndarray
    judged: np.ndarray
    velocity_error: np.ndarray
    moved: np.ndarray
    window: np.ndarray
    hand_pos_error: np.ndarray
    hand_rot_error: np.ndarray

    @property
    def ticks(self) -> int:
        """T."""
        return len(self.up)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ticks * CONTROL_DT

    def fell_at(self, robot: int) -> float | None:
        """When a robot fell [s]; None if it did not."""
        return None if self.alive[robot] else float(self.up[:, robot].sum()) * CONTROL_DT


def _observed(before: State, after: State, env: ControlEnv) -> dict[str, Array]:
    """The record of one tick of one robot."""
    task, metrics = before.task, after.metrics
    measured = env.controller.measure(after.physics)
    pos, rot = observe.hand_error(task.command, measured)
    seconds = (task.mark_age + 1) * CONTROL_DT
    turned = rotations.wrap_angle(measured.base[3] - task.mark[3])
    moved = gait.turn(-(task.mark[3] + 0.5 * turned), measured.base[:2] - task.mark[:2])
    return {
        "qpos": after.physics.qpos,
        "base": measured.base,
        "feet": measured.feet,
        "target": task.controller.references.target,
        "swing": task.controller.gait.swing,
        "walking": task.controller.gait.walking,
        "landed": metrics["touchdown/count"] > 0.0,
        "landing_error": metrics["touchdown/error_m"],
        "landing_yaw_error": metrics["touchdown/yaw_error_rad"],
        "judged": metrics["velocity/count"] > 0.0,
        "velocity_error": metrics["velocity/error_mps"],
        "moved": jnp.append(moved, turned) / seconds,
        "window": seconds,
        "hand_pos_error": jnp.linalg.norm(pos, axis=1),
        "hand_rot_error": jnp.linalg.norm(rot, axis=1),
    }


class Driver:
    """Sends B robots through given commands, all in one program that is compiled once.

    Args:
      act: `(weights, {"actor": obs}) -> action` of both policies.
      robots: B.
      backend: physics backend.
    """

    def __init__(self, act: Policy, robots: int, backend: str = "auto"):
        self.env = ControlEnv(ControlConfig(part="whole", backend=backend, episode_s=3600.0), process=GivenCommands)
        self.robots = robots
        self._act = act
        self._reset = jax.jit(jax.vmap(self.env.reset))
        self._advance = jax.jit(self._block, donate_argnums=(0,))

    def _block(self, carry, legs, hands, params, commands, kicks):
        def tick(carry, given):
            state, alive = carry
            command, kick = given
            physics = state.physics.replace(qvel=state.physics.qvel.at[:, :2].add(kick))
            state = state.replace(physics=physics, task=state.task.replace(commands=command))
            action = jnp.concatenate(
                [self._act(legs, {"actor": state.obs["legs"]}), self._act(hands, {"actor": state.obs["hands"]})],
                axis=-1,
            )
            after = jax.vmap(self.env.step)(state, action, params)
            broken = after.physics.diverged | ~jnp.isfinite(after.reward)
            seen = jax.vmap(lambda a, b: _observed(a, b, self.env))(state, after)
            return (after, alive & ~after.terminated & ~broken), seen | {"up": alive & ~broken}

        return jax.lax.scan(tick, carry, (commands, kicks))

    def drive(
        self,
        legs: Any,
        hands: Any,
        params: ControlParams,
        commands: Command,
        kicks: np.ndarray,
        keys: Array,
        after_block: Callable[[int], bool] = lambda ticks: True,
    ) -> Record:
        """Drives the robots from fresh starts.

        Args:
          legs, hands: weights of the policies.
          params: environment parameters `(B, ...)`, see `stack_params`.
          commands: `(T + 1, ...)` the same for all, or `(T + 1, B, ...)`; T a multiple of `BLOCK`.
          kicks: `(T, B, 2)` added to the base velocity [m/s].
          keys: `(B,)` of the starts and of everything random.
          after_block: called with the ticks done; False ends the drive there.

        Returns:
          The record, shorter than T if `after_block` ended it.
        """
        ticks = len(kicks)
        if ticks % BLOCK or kicks.shape[1] != self.robots:
            raise ValueError(f"kicks must be (a multiple of {BLOCK}, {self.robots}, 2), not {kicks.shape}")
        if np.ndim(commands.velocity) == 2:
            commands = jax.tree.map(lambda x: np.repeat(x[:, None], self.robots, axis=1), commands)
        carry = (self._reset(keys, params), jnp.ones(self.robots, bool))
        seen: list[dict[str, np.ndarray]] = []
        for done in range(0, ticks, BLOCK):
            given = jax.tree.map(lambda x, i=done: x[i + 1 : i + 1 + BLOCK], commands)
            carry, block = self._advance(carry, legs, hands, params, given, kicks[done : done + BLOCK])
            seen.append(jax.device_get(block))
            if not after_block(done + BLOCK):
                break
        whole = {name: np.concatenate([block[name] for block in seen]) for name in seen[0]}
        driven = len(whole["up"])
        commands = jax.tree.map(lambda x: x[: driven + 1], commands)
        return Record(commands=commands, kicks=kicks[:driven], alive=np.asarray(carry[1]), **whole)


def stack_params(params: Sequence[ControlParams]) -> ControlParams:
    """One set of parameters per robot, as `Driver.drive` takes them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
