"""From keys and sticks to the planner's action: directions, dead zone, rates, limits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.tasks.command import HAND_HIGH, HAND_LOW, VELOCITY_HIGH, VELOCITY_LOW, decode
from train import teleop_input as T

DT = 0.1
START = T.aim_from(np.array([[0.3, 0.2, 0.05], [0.3, -0.2, 0.05]]))


def moved(raw, aim=START, steps=1):
    """The aim after `steps` actions, and the last command."""
    for _ in range(steps):
        aim, action = T.to_action(aim, T.read(raw), DT)
    assert action.shape == (23,) and action.dtype == np.float32
    return aim, decode(jnp.asarray(action))


KEYS = [
    ("KeyW", "velocity", (0.35, 0, 0)),
    ("ArrowUp", "velocity", (0.35, 0, 0)),
    ("KeyS", "velocity", (-0.2, 0, 0)),
    ("KeyA", "velocity", (0, 0.14, 0)),
    ("ArrowRight", "velocity", (0, -0.14, 0)),
    ("KeyQ", "velocity", (0, 0, 0.35)),
    ("KeyE", "velocity", (0, 0, -0.35)),
    ("KeyI", "hands", ((0.025, 0, 0), (0.025, 0, 0))),
    ("KeyK", "hands", ((-0.025, 0, 0), (-0.025, 0, 0))),
    ("KeyJ", "hands", ((0, 0.025, 0), (0, 0.025, 0))),
    ("KeyL", "hands", ((0, -0.025, 0), (0, -0.025, 0))),
    ("KeyO", "hands", ((0, 0, 0.025), (0, 0, 0.025))),
    ("KeyU", "hands", ((0, 0, -0.025), (0, 0, -0.025))),
    ("KeyF", "hands", ((0, -0.012, 0), (0, 0.012, 0))),
    ("KeyG", "hands", ((0, 0.012, 0), (0, -0.012, 0))),
]


@pytest.mark.parametrize(("key", "what", "expected"), KEYS, ids=[key for key, _, _ in KEYS])
def test_keys(key, what, expected):
    aim, command = moved({"keys": [key]})
    velocity, hands = (expected, np.zeros((2, 3))) if what == "velocity" else (np.zeros(3), expected)
    np.testing.assert_allclose(command.velocity, velocity, atol=1e-6)
    np.testing.assert_allclose(command.hand_pos - START.hands, hands, atol=1e-6)
    np.testing.assert_allclose(aim.hands, command.hand_pos, atol=1e-6)
    np.testing.assert_allclose(command.hand_rot, np.stack([np.eye(3)] * 2), atol=1e-6)


def test_nothing_pressed_stands_still():
    aim, command = moved({}, steps=3)
    assert T.read({}).idle and T.read({"keys": ["ShiftLeft", "KeyW", "KeyS", "F12"]}).idle
    np.testing.assert_array_equal(aim.hands, START.hands)
    np.testing.assert_array_equal(command.velocity, 0.0)


def test_shift_is_slower():
    _, fast = moved({"keys": ["KeyW", "KeyI"]})
    _, slow = moved({"keys": ["KeyW", "KeyI", "ShiftRight"]})
    np.testing.assert_allclose(slow.velocity, T.SLOW * fast.velocity, atol=1e-6)
    np.testing.assert_allclose(slow.hand_pos - START.hands, T.SLOW * (fast.hand_pos - START.hands), atol=1e-6)


def test_palms_turn_down_and_stop_there():
    aim, command = moved({"keys": ["KeyZ"]}, steps=40)
    np.testing.assert_allclose(aim.roll, T.ROLL_LIMIT, atol=1e-6)
    # A palm's inward normal: -y of the left hand, +y of the right one.
    for i, inward in enumerate((-1.0, 1.0)):
        np.testing.assert_allclose(command.hand_rot[i] @ np.array([0, inward, 0]), [0, 0, -1], atol=1e-5)
    aim, _ = moved({"keys": ["KeyX"]}, steps=1)
    np.testing.assert_allclose(aim.roll, -0.1 * T.ROLL_RATE, atol=1e-6)


def test_grippers_close_and_open():
    aim, command = moved({"keys": ["KeyC"]}, steps=2)
    np.testing.assert_allclose(command.gripper, 0.4, atol=1e-6)
    aim, command = moved({"keys": ["KeyV"]}, aim, steps=9)
    np.testing.assert_array_equal(command.gripper, 0.0)


@pytest.mark.parametrize(("presses", "moving"), [(1, (True, False)), (2, (False, True)), (3, (True, True))])
def test_one_hand_at_a_time(presses, moving):
    aim = START
    for _ in range(presses):
        aim = T.next_hands(aim)
    after, _ = moved({"keys": ["KeyI", "KeyZ", "KeyC", "KeyF"]}, aim)
    for values in (
        after.hands[:, 0] - START.hands[:, 0],
        after.roll,
        after.grip,
        after.hands[:, 1] - START.hands[:, 1],
    ):
        np.testing.assert_array_equal(np.abs(values) > 1e-4, moving)


def test_hands_keep_their_distance_at_a_border():
    aim, _ = moved({"keys": ["KeyJ", "KeyO"]}, steps=100)
    np.testing.assert_allclose(aim.hands[0] - aim.hands[1], START.hands[0] - START.hands[1], atol=1e-5)
    assert aim.hands[0, 2] == pytest.approx(HAND_HIGH[2])


@pytest.mark.parametrize("hands", T.HANDS)
def test_hands_do_not_cross(hands):
    aim, command = moved({"keys": ["KeyF"]}, dataclasses.replace(START, active=hands), steps=200)
    gap = float(command.hand_pos[0, 1] - command.hand_pos[1, 1])
    assert gap >= T.LEAST_GAP - 1e-5
    if hands == "both":
        assert gap == pytest.approx(T.LEAST_GAP, abs=1e-5)


def test_dead_zone_is_round_and_the_rest_is_linear():
    for angle in np.linspace(0, 2 * np.pi, 9):
        direction = np.array([np.cos(angle), np.sin(angle)])
        assert T.released(*(0.99 * T.DEAD_ZONE * direction)) == (0.0, 0.0)
        half = T.DEAD_ZONE + 0.5 * (1 - T.DEAD_ZONE)
        np.testing.assert_allclose(T.released(*(half * direction)), 0.5 * direction, atol=1e-6)
        np.testing.assert_allclose(T.released(*(1.3 * direction)), direction, atol=1e-6)


def test_gamepad():
    _, command = moved({"axes": [0.0, -1.0, 0.0, 0.0]})
    np.testing.assert_allclose(command.velocity, [0.35, 0, 0], atol=1e-6)
    _, command = moved({"axes": [1.0, 0.0, 0.0, -1.0]})
    np.testing.assert_allclose(command.velocity, [0, -0.14, 0], atol=1e-6)
    np.testing.assert_allclose(command.hand_pos[:, 0], 0.325, atol=1e-6)
    buttons = [0.0] * 17
    buttons[4], buttons[7] = 1.0, T.DEAD_ZONE + 0.5 * (1 - T.DEAD_ZONE)
    _, command = moved({"buttons": buttons})
    np.testing.assert_allclose(command.velocity, [0, 0, 0.35], atol=1e-6)
    np.testing.assert_allclose(command.hand_pos[:, 1], [0.194, -0.194], atol=1e-6)
    _, command = moved({"keys": ["KeyW"], "axes": [0.0, -1.0]})
    np.testing.assert_allclose(command.velocity, [0.35, 0, 0], atol=1e-6)
    assert T.read({"axes": [0.1, -0.1, 0.1, 0.1]}).idle


unit = st.floats(-1, 1)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(st.sampled_from([k for axis in T.AXES.values() for k in (*axis.more, *axis.less)]), max_size=5),
    axes=st.lists(st.floats(-5, 5), max_size=4),
    buttons=st.lists(st.floats(0, 5), max_size=17),
    hands=st.lists(st.floats(-2, 2), min_size=6, max_size=6),
    active=st.sampled_from(T.HANDS),
)
def test_actions_are_within_limits_whatever_is_pressed(keys, axes, buttons, hands, active):
    aim = dataclasses.replace(T.aim_from(np.reshape(hands, (2, 3))), active=active)
    before = aim.hands
    inputs = T.read({"keys": keys, "axes": axes, "buttons": buttons})
    aim, action = T.to_action(aim, inputs, DT)
    assert (action[:3] >= VELOCITY_LOW).all() and (action[:3] <= VELOCITY_HIGH).all()
    command = decode(jnp.asarray(action))
    # Nothing is left for the environment to clip.
    np.testing.assert_allclose(command.hand_pos, action[3:21].reshape(2, 9)[:, :3], atol=1e-6)
    assert (aim.hands[0] >= HAND_LOW - 1e-6).all() and (aim.hands[0] <= HAND_HIGH + 1e-6).all()
    assert (np.abs(aim.hands - before)[:, [0, 2]] <= T.HAND_RATE * DT + 1e-6).all()
    assert ((aim.grip >= 0) & (aim.grip <= 1)).all() and (np.abs(aim.roll) <= T.ROLL_LIMIT + 1e-6).all()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"keys": "KeyW"}, "keys='KeyW'"),
        ({"keys": [1]}, "keys="),
        ({"axes": [float("nan")]}, "axes="),
        ({"axes": {"0": 1}}, "axes="),
        ({"buttons": [True]}, "buttons="),
        ({"buttons": ["1"]}, "buttons="),
    ],
)
def test_bad_input_names_the_field(raw, told):
    with pytest.raises(T.InputError, match="allowed") as error:
        T.read(raw)
    assert told in str(error.value)


def test_legend_tells_every_key_and_no_key_does_two_things():
    held = [key for axis in T.AXES.values() for key in (*axis.more, *axis.less)] + list(T.SLOW_KEYS)
    pressed = [key for _, key, _ in T.COMMANDS.values()]
    assert len({*held, *pressed}) == len(held) + len(pressed)
    buttons = [b for axis in T.AXES.values() for b in axis.buttons or ()] + [b for _, _, b in T.COMMANDS.values()]
    assert len({*buttons, T.SLOW_BUTTON}) == len(buttons) + 1
    shown = " ".join(keys for _, keys, _ in T.legend())
    for key in (*held, *pressed):
        name = T.NAMES.get(key, key.removeprefix("Key").replace("Left", "").replace("Right", ""))
        assert name in shown
