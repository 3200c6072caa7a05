"""Each reward term alone: best where it should be, worse when its own quantity is off, deaf to everything else."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from envs.control import rewards
from envs.control.rewards import HAND_TERMS, LEG_TERMS, Outcome

TERMS = {**LEG_TERMS, **HAND_TERMS}


def perfect() -> Outcome:
    """Nothing to complain about, at the moment of a touchdown."""
    z = jnp.zeros
    return Outcome(
        foot_error=z(2),
        foot_yaw_error=z(2),
        landing_error=z(()),
        landing=jnp.float32(1.0),
        base_velocity_error=z(2),
        base_error=z(3),
        height_error=z(()),
        leg_q_error=z(12),
        tilt=z(2),
        contact_match=jnp.ones(2),
        foot_tilt=z(2),
        leg_action=z(12),
        leg_action_before=z(12),
        leg_torque=z(12),
        leg_qd=z(12),
        leg_over_limit=z(12),
        leg_over_torque=z(12),
        gyro=z(3),
        hand_pos_error=z(2),
        hand_rot_error=z(2),
        hand_acceleration=z((2, 3)),
        arm_action=z(14),
        arm_action_before=z(14),
        arm_qd=z(14),
        arm_qdd=z(14),
        arm_over_limit=z(14),
        arm_over_torque=z(14),
        alive=jnp.float32(1.0),
    )


# Term -> the field it must react to.
READS = {
    "foot_position": "foot_error",
    "foot_yaw": "foot_yaw_error",
    "touchdown": "landing_error",
    "base_velocity": "base_velocity_error",
    "base_position": "base_error",
    "base_yaw": "base_error",
    "joint_reference": "leg_q_error",
    "orientation": "tilt",
    "contact_schedule": "contact_match",
    "alive": "alive",
    "height": "height_error",
    "leg_action_rate": "leg_action",
    "leg_torque": "leg_torque",
    "leg_speed": "leg_qd",
    "leg_limits": "leg_over_limit",
    "leg_torque_limits": "leg_over_torque",
    "wobble": "gyro",
    "foot_tilt": "foot_tilt",
    "position_coarse": "hand_pos_error",
    "position_fine": "hand_pos_error",
    "position_precise": "hand_pos_error",
    "orientation_coarse": "hand_rot_error",
    "orientation_fine": "hand_rot_error",
    "orientation_precise": "hand_rot_error",
    "arm_action_rate": "arm_action",
    "arm_speed": "arm_qd",
    "arm_acceleration": "arm_qdd",
    "hand_acceleration": "hand_acceleration",
    "arm_limits": "arm_over_limit",
    "arm_torque_limits": "arm_over_torque",
}


def value(name, outcome):
    term = TERMS[name]
    return term.weight * float(term.function(outcome, **term.parameters))


def spoiled(outcome, field):
    x = getattr(outcome, field)
    worse = jnp.zeros_like(x) if field in ("contact_match", "alive") else x + 0.1
    return outcome.replace(**{field: worse})


def test_every_term_is_covered():
    assert set(READS) == set(TERMS)


@pytest.mark.parametrize("name", TERMS)
def test_term_falls_when_its_quantity_is_off(name):
    assert value(name, spoiled(perfect(), READS[name])) < value(name, perfect()) - 1e-8


@pytest.mark.parametrize("name", TERMS)
def test_term_is_deaf_to_the_rest(name):
    others = {f.name for f in dataclasses.fields(Outcome)} - {
        READS[name],
        "leg_action_before",
        "arm_action_before",
        "landing",
    }
    outcome = perfect()
    for field in others:
        assert value(name, spoiled(outcome, field)) == value(name, outcome)


@pytest.mark.parametrize("name", [n for n, t in TERMS.items() if t.weight > 0])
def test_positive_kernels_peak_at_one(name):
    term = TERMS[name]
    assert float(term.function(perfect(), **term.parameters)) == pytest.approx(1.0)


def test_kernels_against_plain_arithmetic():
    outcome = perfect().replace(foot_error=jnp.array([0.05, 0.2]), landing_error=jnp.float32(0.03))
    e = np.array([0.05, 0.2]) ** 2
    want = np.mean(0.6 * np.exp(-e / 0.05**2) + 0.4 * np.exp(-e / 0.2**2))
    assert float(rewards.foot_position(outcome, fine=0.05, coarse=0.2)) == pytest.approx(want, rel=1e-5)
    want = 0.5 * (np.exp(-1.0) + np.exp(-((0.03 / 0.08) ** 2)))
    assert float(rewards.touchdown(outcome, fine=0.03, coarse=0.08)) == pytest.approx(want, rel=1e-5)
    assert float(rewards.touchdown(outcome.replace(landing=jnp.float32(0.0)), fine=0.03, coarse=0.08)) == 0.0


def test_action_rate_counts_the_change_not_the_action():
    outcome = perfect().replace(leg_action=jnp.ones(12), leg_action_before=jnp.ones(12))
    assert float(rewards.leg_action_rate(outcome)) == 0.0
    assert float(rewards.leg_action_rate(outcome.replace(leg_action_before=jnp.zeros(12)))) == 12.0


def test_sum_log_and_curriculum():
    outcome = spoiled(perfect(), "tilt")
    total, log = rewards.evaluate(LEG_TERMS, {}, outcome)
    assert float(total) == pytest.approx(sum(float(log[f"reward/{n}"]) for n in LEG_TERMS), rel=1e-5)
    name = "orientation"
    assert float(log[f"reward/{name}"]) == pytest.approx(
        rewards.TICK_SCALE * LEG_TERMS[name].weight * float(log[f"raw/{name}"])
    )
    doubled, log2 = rewards.evaluate(LEG_TERMS, {name: jnp.float32(2.0)}, outcome)
    assert float(log2[f"raw/{name}"]) == float(log[f"raw/{name}"])
    assert float(doubled - total) == pytest.approx(float(log[f"reward/{name}"]), rel=1e-4)


def test_zero_weights_are_dropped():
    def broken(outcome):
        raise AssertionError("a term without weight must not be computed")

    total, log = rewards.evaluate({"off": rewards.Term(broken, 0.0)}, {}, perfect())
    assert float(total) == 0.0 and log == {}
