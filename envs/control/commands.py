"""Random command sequences on which the controller trains and is judged: base velocities and moving hand targets.

Hand targets travel between reachable arm postures along minimum-jerk paths in joint space and are handed out as palm poses
only, so every target on the way is reachable and the controller still has to solve for the joints itself.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.control.controller import CONTROL_DT, Command, Controller
from envs.t1 import gait, kinematics
from envs.t1.robot import ARM_MIRROR, STAND_ARM_LEFT

Array = jax.Array

# Where the left palm goes, trunk frame [m]: in front of the trunk, not across it, from the hip to above the shoulder.
REACH_LOW = np.array([0.14, 0.05, -0.12], np.float32)
REACH_HIGH = np.array([0.46, 0.38, 0.36], np.float32)


STAND_FIRST = (0.5, 2.0)  # seconds that half of the episodes stand at first


@dataclasses.dataclass(frozen=True)
class CommandRanges:
    """Ranges of the command sequences.

    Attributes:
      vx, vy, yaw: base velocity [m/s, m/s, rad/s]; `stand` is the share of standing phases.
      hold: seconds between new velocity commands.
      hand_travel, hand_hold: seconds a hand target moves, then rests.
      hand_speed: fastest joint along a path [rad/s]; a longer path takes longer.
      together: share of moves that both hands make at once, mirrored, where one begins; what is shipped saw next to none.
    """

    vx: tuple[float, float] = (-0.2, 0.4)
    vy: tuple[float, float] = (-0.15, 0.15)
    yaw: tuple[float, float] = (-0.4, 0.4)
    stand: float = 0.2
    hold: tuple[float, float] = (1.5, 5.0)
    hand_travel: tuple[float, float] = (0.8, 2.0)
    hand_hold: tuple[float, float] = (0.3, 1.0)
    hand_speed: float = 1.2
    together: float = 0.0


@struct.dataclass
class CommandState:
    """Attributes:
    velocity: `(3,)` present base velocity command; `next_velocity ()` ticks until it is redrawn.
    start, goal: `(14,)` arm postures between which the hand targets travel.
    elapsed, travel, hold: `(2,)` ticks of each hand's move: since it began, of its travel, of its rest.
    """

    velocity: Array
    next_velocity: Array
    start: Array
    goal: Array
    elapsed: Array
    travel: Array
    hold: Array


def reach_pool(controller: Controller, size: int = 2048, seed: int = 0) -> np.ndarray:
    """`(size, 7)` postures of the left arm whose palm lies in the reach box and faces roughly inward.

    Rejection sampling around the standing posture; deterministic, a second at most.
    """
    rng = np.random.default_rng(seed)
    chain = controller.arm
    kept: list[np.ndarray] = []
    spread = np.array([0.9, 0.5, 0.6, 0.6, 0.8, 0.5, 0.6], np.float32)
    fk = jax.jit(jax.vmap(lambda q: kinematics.fk(chain, q)))
    while sum(map(len, kept)) < size:
        q = STAND_ARM_LEFT + spread * rng.uniform(-1, 1, (8192, 7)).astype(np.float32)
        inside = np.all((q > chain.lower + 0.1) & (q < chain.upper - 0.1), axis=1)
        pos, rot = (np.asarray(x) for x in fk(q))
        inside &= np.all((pos > REACH_LOW) & (pos < REACH_HIGH), axis=1)
        # Palm y axis within 60 degrees of the robot's left, fingers not pointing backward.
        inside &= (rot[:, 1, 1] > 0.5) & (rot[:, 0, 0] > 0.3)
        kept.append(q[inside])
    return np.concatenate(kept)[:size]


def _uniform(key: Array, bounds: tuple[float, float], shape=()) -> Array:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])


def _ticks(key: Array, bounds: tuple[float, float], shape=()) -> Array:
    return jnp.round(_uniform(key, bounds, shape) / CONTROL_DT).astype(jnp.int32)


class CommandProcess:
    """Draws and advances command sequences for one robot."""

    def __init__(self, controller: Controller, ranges: CommandRanges | None = None):
        self.controller = controller
        self.ranges = ranges or CommandRanges()
        self.pool = reach_pool(controller)

    def _velocity(self, key: Array) -> Array:
        r = self.ranges
        kx, ky, kw, ks, ka = jax.random.split(key, 5)
        velocity = jnp.stack([_uniform(kx, r.vx), _uniform(ky, r.vy), _uniform(kw, r.yaw)])
        # One in three is pure forward, sideways or turning: what planners command most.
        single = jax.nn.one_hot(jax.random.randint(ka, (), 0, 9), 3) * velocity
        velocity = jnp.where(jnp.any(single != 0.0), single, velocity)
        return jnp.where(jax.random.uniform(ks) < r.stand, 0.0, velocity)

    def _posture(self, key: Array, mirrored: Array | bool = False) -> Array:
        """`(14,)` random reachable posture of both arms."""
        kl, kr = jax.random.split(key)
        pool = jnp.asarray(self.pool)
        left = pool[jax.random.randint(kl, (), 0, pool.shape[0])]
        right = pool[jax.random.randint(kr, (), 0, pool.shape[0])]
        right = jnp.where(mirrored, left, right)
        return jnp.concatenate([left, right * ARM_MIRROR])

    def start(self, key: Array, arm_q: Array) -> CommandState:
        """First commands: stand for a moment with the hands where they are (`arm_q (14,)`)."""
        kv, kn, kw, kh = jax.random.split(key, 4)
        walk_at_once = jax.random.uniform(kw) < 0.5
        state = CommandState(
            velocity=jnp.where(walk_at_once, self._velocity(kv), 0.0),
            next_velocity=jnp.where(walk_at_once, _ticks(kn, self.ranges.hold), _ticks(kn, STAND_FIRST)),
            start=arm_q,
            goal=arm_q,
            elapsed=jnp.zeros(2, jnp.int32),
            travel=jnp.ones(2, jnp.int32),
            hold=_ticks(kh, (0.1, 0.6), (2,)),
        )
        return state

    def advance(self, state: CommandState, key: Array) -> CommandState:
        """One tick."""
        kv, kn, kp, kt, kh, kb = jax.random.split(key, 6)
        r = self.ranges
        count = state.next_velocity - 1
        redraw = count <= 0
        elapsed = state.elapsed + 1
        done = elapsed >= state.travel + state.hold
        both = jnp.any(done) & (jax.random.uniform(kb) < r.together)
        # A hand that is called away sets out from where it is.
        start = jnp.where(both, self._arms(state.replace(elapsed=elapsed)), state.start)
        start = jnp.where(jnp.repeat(done, 7), state.goal, start)
        done = done | both
        goal = jnp.where(jnp.repeat(done, 7), self._posture(kp, both), state.goal)
        # Minimum jerk peaks at 1.875 times its mean speed.
        distance = jnp.max(jnp.abs(goal - start).reshape(2, 7), axis=1)
        slowest = jnp.ceil(1.875 * distance / (r.hand_speed * CONTROL_DT)).astype(jnp.int32)
        travel = jnp.maximum(_ticks(kt, r.hand_travel, (2,)), slowest)
        rest = _ticks(kh, r.hand_hold, (2,))
        travel, rest = (jnp.where(both, x.max(), x) for x in (travel, rest))
        return CommandState(
            velocity=jnp.where(redraw, self._velocity(kv), state.velocity),
            next_velocity=jnp.where(redraw, _ticks(kn, r.hold), count),
            start=start,
            goal=goal,
            elapsed=jnp.where(done, 0, elapsed),
            travel=jnp.where(done, travel, state.travel),
            hold=jnp.where(done, rest, state.hold),
        )

    def _arms(self, state: CommandState) -> Array:
        """`(14,)` postures on the way."""
        progress = gait.quintic(state.elapsed.astype(jnp.float32) / state.travel)
        return state.start + jnp.repeat(progress, 7) * (state.goal - state.start)

    def command(self, state: CommandState) -> Command:
        """The present command."""
        pos, rot = self.controller.hands_at(self._arms(state))
        return Command(state.velocity, pos, rot, jnp.zeros(2))


# Where the middle of a carried box goes, trunk frame [m].
CARRY_LOW = np.array([0.27, -0.04, -0.06], np.float32)
CARRY_HIGH = np.array([0.33, 0.04, 0.16], np.float32)
CARRY_START = np.array([0.30, 0.0, 0.05], np.float32)
SQUEEZE = 0.03
"""How far inside the box's sides the palms are commanded [m]; the servos turn it into a grip of some 30 N."""


class CarryProcess(CommandProcess):
    """Both hands move a box between them; the first three numbers of `start` and `goal` are its middle."""

    def __init__(self, controller: Controller, box: float, ranges: CommandRanges | None = None):
        super().__init__(controller, dataclasses.replace(ranges or CommandRanges(), hand_speed=0.2))
        self.half = 0.5 * box
        pos, rot = self.palms(jnp.asarray(CARRY_START), overlap=0.01)
        guess = jnp.asarray(STAND_ARM_LEFT)
        solve = jax.jit(lambda: kinematics.arm_ik(controller.arm, pos[0], rot[0], guess, guess, iterations=200))
        left = np.asarray(solve())
        self.arms = np.concatenate([left, left * ARM_MIRROR])

    def palms(self, middle: Array, overlap: float = SQUEEZE) -> tuple[Array, Array]:
        """Palm poses `(2, 3)`, `(2, 3, 3)` on either side of a box in the middle of `middle (3,)`."""
        aside = jnp.array([[0.0, self.half - overlap, 0.0], [0.0, overlap - self.half, 0.0]])
        return middle + aside, jnp.tile(jnp.eye(3), (2, 1, 1))

    def _posture(self, key: Array, mirrored: Array | bool = False) -> Array:
        del mirrored
        middle = CARRY_LOW + jax.random.uniform(key, (3,)) * (CARRY_HIGH - CARRY_LOW)
        return jnp.zeros(14).at[:3].set(middle)

    def start(self, key: Array, arm_q: Array) -> CommandState:
        """As in `CommandProcess`; the box is at `CARRY_START`."""
        del arm_q
        return super().start(key, jnp.zeros(14).at[:3].set(CARRY_START))

    def command(self, state: CommandState) -> Command:
        """The present command."""
        progress = gait.quintic(state.elapsed[0].astype(jnp.float32) / state.travel[0])
        pos, rot = self.palms(state.start[:3] + progress * (state.goal[:3] - state.start[:3]))
        return Command(state.velocity, pos, rot, jnp.zeros(2))
