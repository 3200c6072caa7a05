"""Reward terms of the two policies: small pure functions in named tables, after the paper's reward tables.

Where our weights differ from the paper's (foot placement policy) they follow a prototype that learned in minutes: the residual
formulation needs less regularisation and a bonus for the touchdown itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Outcome:
    """What reward terms may look at; everything after the physics step, errors in the units of the name.

    Attributes:
      foot_error: `(2,)` horizontal-and-vertical distance of each sole to its reference [m]; foot_yaw_error `(2,)` [rad].
      landing_error: `()` horizontal distance of the swing foot to its placement [m]; landing `()` 1 on the last two ticks.
      base_velocity_error: `(2,)` [m/s]; base_error `(3,)` x, y, yaw [m, m, rad]; height_error `()` [m].
      leg_q_error: `(12,)` [rad]; tilt `(2,)` horizontal components of gravity in the trunk frame.
      contact_match: `(2,)` 1 where a foot bears load exactly if it should; foot_tilt `(2,)` 1 - vertical component.
      leg_action, leg_action_before: `(12,)`; leg_torque, leg_qd `(12,)`; leg_over_limit, leg_over_torque `(12,)`.
      gyro: `(3,)` [rad/s].
      hand_pos_error, hand_rot_error: `(2,)` norms [m, rad]; hand_acceleration `(2, 3)` [m/s^2].
      arm_action, arm_action_before, arm_qd, arm_qdd `(14,)`;
        arm_over_limit, arm_over_torque `(14,)`.
      alive: `()` 1 unless the robot fell in this step.
    """

    foot_error: Array
    foot_yaw_error: Array
    landing_error: Array
    landing: Array
    base_velocity_error: Array
    base_error: Array
    height_error: Array
    leg_q_error: Array
    tilt: Array
    contact_match: Array
    foot_tilt: Array
    leg_action: Array
    leg_action_before: Array
    leg_torque: Array
    leg_qd: Array
    leg_over_limit: Array
    leg_over_torque: Array
    gyro: Array
    hand_pos_error: Array
    hand_rot_error: Array
    hand_acceleration: Array
    arm_action: Array
    arm_action_before: Array
    arm_qd: Array
    arm_qdd: Array
    arm_over_limit: Array
    arm_over_torque: Array
    alive: Array


def gaussian(squared: Array, sigma: float) -> Array:
    """exp(-squared / sigma^2)."""
    return jnp.exp(-squared / sigma**2)


def foot_position(o: Outcome, *, fine: float, coarse: float) -> Array:
    """Mean over feet of a fine and a coarse kernel (the coarse one still pulls from 20 cm away)."""
    e = o.foot_error**2
    return jnp.mean(0.6 * gaussian(e, fine) + 0.4 * gaussian(e, coarse))


def foot_yaw(o: Outcome, *, sigma: float) -> Array:
    return jnp.mean(gaussian(o.foot_yaw_error**2, sigma))


def touchdown(o: Outcome, *, fine: float, coarse: float) -> Array:
    """Closeness to the placement in the last ticks of a step."""
    e = o.landing_error**2
    return o.landing * 0.5 * (gaussian(e, fine) + gaussian(e, coarse))


def base_velocity(o: Outcome, *, sigma: float) -> Array:
    return gaussian(jnp.sum(o.base_velocity_error**2), sigma)


def base_position(o: Outcome, *, sigma: float) -> Array:
    return gaussian(jnp.sum(o.base_error[:2] ** 2), sigma)


def base_yaw(o: Outcome, *, sigma: float) -> Array:
    return gaussian(o.base_error[2] ** 2, sigma)


def joint_reference(o: Outcome, *, sigma: float) -> Array:
    return gaussian(jnp.sum(o.leg_q_error**2), sigma)


def orientation(o: Outcome, *, sigma: float) -> Array:
    return gaussian(jnp.sum(o.tilt**2), sigma)


def contact_schedule(o: Outcome) -> Array:
    """Instead of the paper's air time: load on the feet exactly when the gait says so."""
    return jnp.mean(o.contact_match)


def alive(o: Outcome) -> Array:
    return o.alive


def height(o: Outcome, *, slack: float) -> Array:
    """Squared excess over `slack`, in units of 10 cm."""
    return jnp.square(jnp.maximum(jnp.abs(o.height_error) - slack, 0.0) * 10.0)


def leg_action_rate(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.leg_action - o.leg_action_before))


def leg_torque(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.leg_torque))


def leg_speed(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.leg_qd))


def leg_limits(o: Outcome) -> Array:
    return jnp.sum(o.leg_over_limit)


def leg_torque_limits(o: Outcome) -> Array:
    return jnp.sum(o.leg_over_torque)


def wobble(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.gyro[:2]))


def foot_tilt(o: Outcome) -> Array:
    return jnp.sum(o.foot_tilt)


def hand_position(o: Outcome, *, sigma: float) -> Array:
    return jnp.mean(gaussian(o.hand_pos_error**2, sigma))


def hand_orientation(o: Outcome, *, sigma: float) -> Array:
    return jnp.mean(gaussian(o.hand_rot_error**2, sigma))


def arm_action_rate(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.arm_action - o.arm_action_before))


def arm_speed(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.arm_qd))


def arm_acceleration(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.arm_qdd))


def hand_acceleration(o: Outcome) -> Array:
    return jnp.sum(jnp.square(o.hand_acceleration))


def arm_limits(o: Outcome) -> Array:
    return jnp.sum(o.arm_over_limit)


def arm_torque_limits(o: Outcome) -> Array:
    return jnp.sum(o.arm_over_torque)


@dataclasses.dataclass(frozen=True)
class Term:
    """A named reward term: `function(outcome, **parameters)` times `weight`."""

    function: Callable[..., Array]
    weight: float
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


LEG_TERMS: Mapping[str, Term] = {
    "foot_position": Term(foot_position, 5.0, {"fine": 0.05, "coarse": 0.2}),
    "foot_yaw": Term(foot_yaw, 3.0, {"sigma": 0.2}),
    "touchdown": Term(touchdown, 10.0, {"fine": 0.02, "coarse": 0.07}),
    "base_velocity": Term(base_velocity, 1.5, {"sigma": 0.25}),
    "base_position": Term(base_position, 0.75, {"sigma": 0.08}),
    "base_yaw": Term(base_yaw, 0.75, {"sigma": 0.15}),
    "joint_reference": Term(joint_reference, 0.5, {"sigma": 0.5}),
    "orientation": Term(orientation, 3.0, {"sigma": 0.2}),
    "contact_schedule": Term(contact_schedule, 2.0),
    "alive": Term(alive, 1.0),
    "height": Term(height, -3.0, {"slack": 0.04}),
    "leg_action_rate": Term(leg_action_rate, -0.05),
    "leg_torque": Term(leg_torque, -2e-5),
    "leg_speed": Term(leg_speed, -5e-4),
    "leg_limits": Term(leg_limits, -1.0),
    "leg_torque_limits": Term(leg_torque_limits, -0.02),
    "wobble": Term(wobble, -0.05),
    "foot_tilt": Term(foot_tilt, -4.0),
}

HAND_TERMS: Mapping[str, Term] = {
    "position_coarse": Term(hand_position, 4.0, {"sigma": 0.1}),
    "position_fine": Term(hand_position, 4.0, {"sigma": 0.03}),
    "position_precise": Term(hand_position, 4.0, {"sigma": 0.01}),
    "orientation_coarse": Term(hand_orientation, 2.0, {"sigma": 0.5}),
    "orientation_fine": Term(hand_orientation, 2.0, {"sigma": 0.15}),
    "orientation_precise": Term(hand_orientation, 2.0, {"sigma": 0.05}),
    "arm_action_rate": Term(arm_action_rate, -0.1),
    "arm_speed": Term(arm_speed, -1e-3),
    "arm_acceleration": Term(arm_acceleration, -3e-6),
    "hand_acceleration": Term(hand_acceleration, -2e-3),
    "arm_limits": Term(arm_limits, -4.0),
    "arm_torque_limits": Term(arm_torque_limits, -0.1),
}

TICK_SCALE = 0.005
"""Common factor that brings the sum of a tick to about 0.1."""

FALL = -1.0
"""Paid once when the robot falls."""


def evaluate(
    terms: Mapping[str, Term], weights: Mapping[str, Array], outcome: Outcome
) -> tuple[Array, dict[str, Array]]:
    """Sum of weighted terms and the log: `raw/NAME`, `reward/NAME`.

    Args:
      terms: table of terms; zero weights are dropped while tracing.
      weights: name -> multiplier of the table's weight, a curriculum's handle; missing names count 1.
      outcome: what happened in this tick.
    """
    total, log = jnp.float32(0.0), {}
    for name, term in terms.items():
        if term.weight == 0.0:
            continue
        raw = term.function(outcome, **term.parameters)
        weighted = TICK_SCALE * term.weight * weights.get(name, 1.0) * raw
        log[f"raw/{name}"], log[f"reward/{name}"] = raw, weighted
        total = total + weighted
    return total, log


def of_part(part: str, log: Mapping[str, Array]) -> Array:
    """A part's own reward `()`, from the log of a tick in which both parts were scored."""
    terms = {"legs": LEG_TERMS, "hands": HAND_TERMS}[part]
    paid = [log[f"reward/{name}"] for name, term in terms.items() if term.weight]
    return jnp.stack(paid).sum() + FALL * log["fall"]
