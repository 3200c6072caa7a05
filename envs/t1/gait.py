"""From a base velocity command to alternating foot placements, and from those to reference poses of feet and base.

The planner commands a velocity; the controller tracks **foot placements**, because velocity tracking drifts under the frequent
starts and stops of manipulation (REFINE-DP, section on the low-level controller).  This module is what lies between.

One step lasts `duration` ticks: double support first (weight shift), then the swing.  Placements are planned relative to the
*measured* stance foot when a step begins and are latched then; what may still move them is balance (`capture` below).  A zero
command squares the feet with one step and then stands without a clock.  All poses are `(x, y, z, yaw)` in the world frame;
on a robot the world is leg odometry, as everything here is relative to the feet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from envs.t1.robot import BASE_HEIGHT, FOOT_AHEAD, FOOT_APART
from envs.t1.rotations import wrap_angle

LEVEL = 0.02  # m: less than that is no step in the ground
Array = jax.Array
Ground = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class GaitConfig:
    """Shape of the gait (static).

    Attributes:
      double_support: ticks of double support at the start of each step.
      swing_height: apex of the swing foot above the line between its ends [m].
      apart: nominal lateral distance of the soles [m]; `min_apart` and `max_apart` bound every placement.
      reach: longest placement ahead of or behind the stance foot on the level [m]; `climb_reach` where a ledge demands it.
      sway: share of the way from the mid-point to the stance foot that the base moves to at mid-step.
      capture_gain: seconds of base velocity error added to the placement; the error counts beyond `capture_deadband`
        [m/s] only, and the shift is at most `capture_max` [m].
      hurry: base velocity error [m/s] beyond which the clock of the step runs twice as fast: a robot that falls sideways has
        no half second left.
      support: how far ahead and aside [m] a standing robot's capture point may be off before it starts to step; it goes on
        until a step has squared the feet with the capture point within `calm` times that.
      fall_time: seconds after which a body falling over its feet has doubled its offset and more, sqrt(height / g): the
        capture point is the base's offset plus this times its velocity.
      climb_slowdown: how much longer a step takes that changes level, or that starts with the feet on two levels.  It stays a
        dynamic step: standing on one foot for a second is a balancing act that a policy which walks does not know.
      climb_lift, climb_land: shares of such a step at which the foot lifts off and lands; climb_height: its apex [m].
      climb_ahead: how far the second foot lands beyond the first one on the new level [m].
      ledge_ahead, ledge_behind: how far a sole's centre stays before and beyond a ledge [m] (toe and heel clearance).
    """

    double_support: int = 5
    swing_height: float = 0.07
    apart: float = FOOT_APART
    min_apart: float = 0.15
    max_apart: float = 0.36
    reach: float = 0.23
    climb_reach: float = 0.27
    sway: float = 0.4
    capture_gain: float = 0.5
    capture_deadband: float = 0.2
    capture_max: float = 0.25
    hurry: float = 0.32
    support: tuple[float, float] = (0.07, 0.11)
    calm: float = 0.8
    fall_time: float = 0.24
    climb_slowdown: float = 1.7
    climb_height: float = 0.09
    climb_lift: float = 0.2
    climb_land: float = 0.95
    climb_ahead: float = 0.05
    ledge_ahead: float = 0.125
    ledge_behind: float = 0.105


@struct.dataclass
class GaitState:
    """Attributes:
    walking: `()` bool; false is the standing mode.
    tick: `()` int32 ticks of the step's clock since the step began; `pace ()` int32 by how many it advances next.
    duration: `()` int32 ticks of an ordinary step; `length ()` of this one.
    swing: `()` int32 index of the swing foot, 0 left, 1 right.
    anchor: `(2, 4)` pose of each foot when the step (or the standing) began.
    plan: `(4,)` placement latched when the step began; `shift (2,)` what balance added since [m].
    latched: `(3,)` velocity command that this step executes; `squaring` `()` bool, it is the step that squares the feet.
    """

    walking: Array
    tick: Array
    pace: Array
    duration: Array
    length: Array
    swing: Array
    anchor: Array
    plan: Array
    shift: Array
    latched: Array
    squaring: Array


@struct.dataclass
class References:
    """Attributes:
    feet: `(2, 4)` reference pose of each foot, world.
    base: `(4,)` reference pose of the trunk, world; `base_velocity (2,)` its horizontal velocity [m/s].
    target: `(4,)` where the swing foot will land (its present pose when standing).
    phase: `()` progress of the step in 0..1 (0 when standing); `contact (2,)` 1 where a foot should bear load.
    """

    feet: Array
    base: Array
    base_velocity: Array
    target: Array
    phase: Array
    contact: Array


def quintic(s: Array) -> Array:
    """Minimum-jerk blend of `s` in 0..1 (clipped)."""
    s = jnp.clip(s, 0.0, 1.0)
    return s * s * s * (10.0 + s * (6.0 * s - 15.0))


def turn(yaw: Array, xy: Array) -> Array:
    """Rotate `xy (2,)` by `yaw` [rad]."""
    c, s = jnp.cos(yaw), jnp.sin(yaw)
    return jnp.stack([c * xy[0] - s * xy[1], s * xy[0] + c * xy[1]])


def stand(feet: Array, duration: Array) -> GaitState:
    """Standing on `feet (2, 4)`."""
    return GaitState(
        walking=jnp.array(False),
        tick=jnp.array(0, jnp.int32),
        pace=jnp.array(1, jnp.int32),
        duration=jnp.asarray(duration, jnp.int32),
        length=jnp.asarray(duration, jnp.int32),
        swing=jnp.array(0, jnp.int32),
        anchor=feet,
        plan=feet[0],
        shift=jnp.zeros(2),
        latched=jnp.zeros(3),
        squaring=jnp.array(False),
    )


def _side(swing: Array) -> Array:
    return 1.0 - 2.0 * swing.astype(jnp.float32)


def _off_the_ledge(xy: Array, stance: Array, config: GaitConfig, platforms) -> Array:
    """Move a placement that would straddle a ledge: across it if the step goes that way and can reach, else back."""
    for p in platforms:
        x, y = xy
        beside = jnp.abs(y - p.y) <= p.half_y + 0.1
        for edge, outward in ((p.x - p.half_x, -1.0), (p.x + p.half_x, 1.0)):
            below = edge + outward * config.ledge_ahead
            above = edge - outward * config.ledge_behind
            straddles = (jnp.abs(x - 0.5 * (below + above)) < 0.5 * abs(below - above)) & beside
            onward = jnp.where((x - stance[0]) * outward > 0.0, below, above)
            back = below + above - onward
            reachable = jnp.abs(onward - stance[0]) <= config.climb_reach
            x = jnp.where(straddles, jnp.where(reachable, onward, back), x)
        xy = jnp.stack([x, y])
    return xy


def _place(
    state: GaitState, command: Array, noise: Array, config: GaitConfig, ground: Ground, platforms, dt: float
) -> Array:
    """Placement of the swing foot for `command`, relative to the stance foot at `anchor`."""
    stance = state.anchor[1 - state.swing]
    seconds = state.duration * dt
    side = _side(state.swing)
    ahead = jnp.clip(command[0] * seconds + noise[0], -config.reach, config.reach)
    if platforms:
        # From one level to the other the second foot only catches up: half the swing, and the weight has half as far to go.
        catch_up = jnp.abs(state.anchor[state.swing, 2] - stance[2]) > LEVEL
        ahead = jnp.where(catch_up, jnp.clip(ahead, -config.climb_ahead, config.climb_ahead), ahead)
    apart = jnp.clip(config.apart + side * command[1] * seconds + noise[1], config.min_apart, config.max_apart)
    turned = jnp.clip(command[2] * seconds, -0.3, 0.3)
    xy = stance[:2] + turn(stance[3] + 0.5 * turned, jnp.stack([ahead, side * apart]))
    if platforms:
        xy = _off_the_ledge(xy, stance, config, platforms)
    return jnp.stack([xy[0], xy[1], ground(xy[0], xy[1]), wrap_angle(stance[3] + turned)])


def landing(state: GaitState, config: GaitConfig, ground: Ground, platforms=()) -> Array:
    """`(4,)` placement with the balance shift, never nearer to the stance foot than `min_apart`."""
    stance = state.anchor[1 - state.swing]
    side = _side(state.swing)
    rel = turn(-stance[3], state.plan[:2] + state.shift - stance[:2])
    rel = jnp.stack([rel[0], side * jnp.clip(side * rel[1], config.min_apart, config.max_apart)])
    xy = stance[:2] + turn(stance[3], rel)
    # Clip only what balance moved, so that an undisturbed plan is reached exactly.
    xy = jnp.where(jnp.any(state.shift != 0.0), xy, state.plan[:2])
    if platforms:
        xy = _off_the_ledge(xy, stance, config, platforms)
    return jnp.stack([xy[0], xy[1], ground(xy[0], xy[1]), state.plan[3]])


def advance(
    state: GaitState,
    command: Array,
    feet: Array,
    velocity: Array,
    noise: Array,
    config: GaitConfig,
    ground: Ground,
    platforms=(),
    dt: float = 0.02,
    offset: Array | None = None,
) -> GaitState:
    """One tick.

    Args:
      state: gait state.
      command: `(3,)` base velocity command in the base's heading frame [m/s, m/s, rad/s].
      feet: `(2, 4)` measured sole poses.
      velocity: `(2,)` base velocity minus its reference, world [m/s]; zero switches the balance reaction off.
      noise: `(2,)` added to the placement (ahead, apart) if a step begins now [m].
      config: shape of the gait.
      ground: height of the ground at world `(x, y)`.
      platforms: boxes whose ledges no foot may straddle.
      dt: seconds per tick.
      offset: `(2,)` base position minus its reference, world [m]; zero if left out.

    Returns:
      The next state; a new step begins at `tick == 0`.
    """
    moving = jnp.any(jnp.abs(command) > 1e-3)
    one, other = state.anchor[:, 3]
    heading = one + 0.5 * wrap_angle(other - one)
    capture = velocity * config.fall_time + (0.0 if offset is None else offset)
    off = jnp.linalg.norm(turn(-heading, capture) / jnp.asarray(config.support))
    stumbling = ~state.walking & (off > 1.0)
    tick = state.tick + state.pace
    finished = state.walking & (tick >= state.length)
    halt = finished & ~moving & state.squaring & (off < config.calm)
    begins = (finished & ~halt) | (~state.walking & (moving | stumbling))

    # The first foot goes where the robot goes: sideways first, else with the turn.
    fall = turn(-heading, capture)[1]
    lateral = jnp.where(stumbling & ~moving, fall, command[1] + 0.1 * command[2])
    swing = jnp.where(finished, 1 - state.swing, (lateral < 0.0).astype(jnp.int32))

    flat = feet.at[:, 2].set(ground(feet[:, 0], feet[:, 1]))
    new = state.replace(
        walking=begins | (state.walking & ~finished),
        tick=jnp.where(begins | halt, 0, jnp.where(state.walking, tick, 0)),
        swing=jnp.where(begins, swing, state.swing),
        anchor=jnp.where(begins | halt, flat, state.anchor),
        shift=jnp.where(begins | halt, 0.0, state.shift),
        latched=jnp.where(begins, command, jnp.where(halt, 0.0, state.latched)),
        squaring=jnp.where(begins, ~moving & (finished | ~stumbling), state.squaring),
    )
    new = new.replace(plan=jnp.where(begins, _place(new, command, noise, config, ground, platforms, dt), new.plan))

    if platforms:
        heights = jnp.stack([new.plan[2], new.anchor[0, 2], new.anchor[1, 2]])
        climbs = jnp.max(heights) - jnp.min(heights) > LEVEL
        slow = jnp.round(config.climb_slowdown * new.duration).astype(jnp.int32)
        new = new.replace(length=jnp.where(begins, jnp.where(climbs, slow, new.duration), new.length))

    # Balance: step towards where the base drifts, at a bounded rate, until the foot is about to land.
    speed = jnp.linalg.norm(velocity)
    excess = velocity * jnp.maximum(speed - config.capture_deadband, 0.0) / (speed + 1e-6)
    wanted = config.capture_gain * excess
    wanted = wanted * jnp.minimum(1.0, config.capture_max / (jnp.linalg.norm(wanted) + 1e-6))
    early = new.walking & (new.tick < 0.7 * new.length)
    shift = new.shift + jnp.clip(wanted - new.shift, -0.02, 0.02)
    # A climbing step is never hurried: its swing is long and its feet are not level.
    hurried = new.walking & (speed > config.hurry) & (new.length == new.duration)
    pace = 1 + hurried.astype(jnp.int32)
    return new.replace(shift=jnp.where(early, shift, new.shift), pace=pace)


def references(
    state: GaitState, config: GaitConfig, ground: Ground, platforms=(), ahead: float = 0.0, dt: float = 0.02
) -> References:
    """Reference poses `ahead` control ticks after the state's."""
    walking = state.walking
    duration = state.length.astype(jnp.float32)
    t = jnp.minimum(state.tick + ahead * state.pace, duration)
    phase = jnp.where(walking, t / duration, 0.0)
    climbing = state.length > state.duration
    lift_off = jnp.where(climbing, config.climb_lift, config.double_support / duration)
    land = jnp.where(climbing, config.climb_land, 1.0)
    swing_phase = jnp.clip((phase - lift_off) / (land - lift_off), 0.0, 1.0)
    lift, stance = state.anchor[state.swing], state.anchor[1 - state.swing]
    target = jnp.where(walking, landing(state, config, ground, platforms), lift)

    # Climbing: up before forward; descending: forward before down.
    rise = target[2] - lift[2]
    up, down = jnp.clip(rise / 0.05, 0.0, 1.0), jnp.clip(-rise / 0.05, 0.0, 1.0)
    along = quintic((swing_phase - 0.25 * up) / (1.0 - 0.25 * (up + down)))
    vertical = quintic((swing_phase - 0.4 * down) / (1.0 - 0.4 * (up + down)))
    bump = 64.0 * (swing_phase * (1.0 - swing_phase)) ** 3
    apex = jnp.where(climbing, config.climb_height, config.swing_height)
    foot = jnp.concatenate(
        [
            lift[:2] + along * (target[:2] - lift[:2]),
            (lift[2] + vertical * rise + apex * bump)[None],
            (lift[3] + along * wrap_angle(target[3] - lift[3]))[None],
        ]
    )
    foot = jnp.where(walking, foot, lift)
    feet = jnp.where((jnp.arange(2) == state.swing)[:, None], foot, stance)

    # Base: from mid-point to mid-point at constant speed, over the stance foot in between.  Its height follows the lower foot,
    # since a leg has only some centimetres of stretch left.
    middle0 = 0.5 * (lift[:2] + stance[:2])
    middle1 = 0.5 * (target[:2] + stance[:2])
    middle = middle0 + phase * (middle1 - middle0)
    # Share of the way from the mid-point to the stance foot, and its derivative.
    pull, pull_rate = config.sway * jnp.sin(jnp.pi * phase), config.sway * jnp.pi * jnp.cos(jnp.pi * phase)
    yaw0 = lift[3] + 0.5 * wrap_angle(stance[3] - lift[3])
    yaw1 = target[3] + 0.5 * wrap_angle(stance[3] - target[3])
    yaw = yaw0 + phase * wrap_angle(yaw1 - yaw0)
    xy = middle + pull * (stance[:2] - middle) - turn(yaw, jnp.array([FOOT_AHEAD, 0.0]))
    low0, low1 = jnp.minimum(lift[2], stance[2]), jnp.minimum(target[2], stance[2])
    # Over the whole step: within the swing alone, one bent leg would have to push harder than its knee can.
    z = BASE_HEIGHT + low0 + quintic(phase) * (low1 - low0)
    rate = jnp.where(walking, state.pace / (duration * dt), 0.0)
    velocity = rate * ((1.0 - pull) * (middle1 - middle0) + pull_rate * (stance[:2] - middle))

    in_air = walking & (swing_phase > 0.0) & (swing_phase < 1.0)
    contact = 1.0 - (in_air & (jnp.arange(2) == state.swing)).astype(jnp.float32)
    return References(
        feet=feet,
        base=jnp.stack([xy[0], xy[1], z, yaw]),
        base_velocity=velocity,
        target=target,
        phase=phase,
        contact=contact,
    )
