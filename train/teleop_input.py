"""What a person does with keys and sticks, turned into the planner's action.  Pure, NumPy only.

Frames: base velocities in the heading frame, hands in the trunk frame (x ahead, y left, z up), as in
`envs.tasks.command.ACTION_LAYOUT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.experts.base import FASTEST
from envs.tasks.command import HAND_HIGH, HAND_LOW, VELOCITY_HIGH, VELOCITY_LOW

DEAD_ZONE = 0.15
"""Share of a stick's way in which it counts as released."""
HAND_RATE = 0.25  # of a hand's target [m/s]
SQUEEZE_RATE = 0.12  # of each palm's target towards the other [m/s]
ROLL_RATE = 1.2  # of a palm about its fingers [rad/s]
GRIP_RATE = 2.0  # of a gripper [1/s]
ROLL_LIMIT = 0.5 * np.pi
LEAST_GAP = 0.06  # between the palms' targets, so that hands do not cross [m]
LARGEST = 1e30  # that is read as a number
SLOW = 0.4  # share of all rates while the slow key is held
HANDS = ("both", "left", "right")

MIRROR = np.array([1.0, -1.0, 1.0], np.float32)
LOW = np.stack([HAND_LOW, np.minimum(MIRROR * HAND_LOW, MIRROR * HAND_HIGH)])
HIGH = np.stack([HAND_HIGH, np.maximum(MIRROR * HAND_LOW, MIRROR * HAND_HIGH)])
INWARD = np.array([-1.0, 1.0], np.float32)  # along y, left and right hand


@dataclasses.dataclass(frozen=True)
class Axis:
    """What moves one number of `Inputs`.

    Attributes:
      means: the positive and the negative direction, in words.
      more, less: codes of keys (`KeyboardEvent.code`) for +1 and -1.
      stick: axis of a gamepad in the standard mapping, and its sign.
      buttons: gamepad buttons for + and -, by their analogue value.
    """

    means: tuple[str, str]
    more: tuple[str, ...]
    less: tuple[str, ...]
    stick: tuple[int, int] | None = None
    buttons: tuple[int, int] | None = None


AXES: Mapping[str, Axis] = {
    "forward": Axis(("walk ahead", "back"), ("KeyW", "ArrowUp"), ("KeyS", "ArrowDown"), stick=(1, -1)),
    "aside": Axis(("step left", "right"), ("KeyA", "ArrowLeft"), ("KeyD", "ArrowRight"), stick=(0, -1)),
    "turn": Axis(("turn left", "right"), ("KeyQ",), ("KeyE",), buttons=(4, 5)),
    "reach": Axis(("hands ahead", "back"), ("KeyI",), ("KeyK",), stick=(3, -1)),
    "across": Axis(("hands left", "right"), ("KeyJ",), ("KeyL",), stick=(2, -1)),
    "lift": Axis(("hands up", "down"), ("KeyO",), ("KeyU",), buttons=(12, 13)),
    "squeeze": Axis(("palms together", "apart"), ("KeyF",), ("KeyG",), buttons=(7, 6)),
    "roll": Axis(("palms down", "up"), ("KeyZ",), ("KeyX",), buttons=(15, 14)),
    "grip": Axis(("close grippers", "open"), ("KeyC",), ("KeyV",), buttons=(2, 1)),
}
SLOW_KEYS, SLOW_BUTTON = ("ShiftLeft", "ShiftRight"), 11
COMMANDS: Mapping[str, tuple[str, str, int]] = {
    "pause": ("pause, go on", "Space", 0),
    "keep": ("keep the episode, next start", "Enter", 9),
    "discard": ("discard it, next start", "Backspace", 8),
    "again": ("discard it, same start", "KeyR", 3),
    "hands": ("which hands move: both, left, right", "KeyH", 10),
}
"""What a press does once: in words, key, gamepad button."""
STICKS = ("left stick ↔", "left stick ↕", "right stick ↔", "right stick ↕")
BUTTONS = (
    "A", "B", "X", "Y", "LB", "RB", "LT", "RT", "back", "start", "left stick pressed", "right stick pressed",
    "pad ↑", "pad ↓", "pad ←", "pad →",
)  # fmt: skip
NAMES = {"ArrowUp": "↑", "ArrowDown": "↓", "ArrowLeft": "←", "ArrowRight": "→"}


class InputError(ValueError):
    """What a client sent is no input; the message names field, value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a person asks for at one moment, each within [-1, 1]; see `AXES` for the directions, `SLOW` for `slow`."""

    forward: float = 0.0
    aside: float = 0.0
    turn: float = 0.0
    reach: float = 0.0
    across: float = 0.0
    lift: float = 0.0
    squeeze: float = 0.0
    roll: float = 0.0
    grip: float = 0.0
    slow: bool = False

    @property
    def idle(self) -> bool:
        """Nothing moves."""
        return not any(getattr(self, name) for name in AXES)


@dataclasses.dataclass(frozen=True)
class Aim:
    """Where the hands have been sent, what a person's rates are integrated into.

    Attributes:
      hands: `(2, 3)` palm targets, left and right, trunk frame [m].
      roll: `(2,)` of the palms about the x axis, mirrored: 0 facing each other, positive facing down [rad].
      grip: `(2,)` 0 open .. 1 closed.
      active: which hands move, one of `HANDS`.
    """

    hands: np.ndarray
    roll: np.ndarray
    grip: np.ndarray
    active: str = "both"


def aim_from(hands: np.ndarray) -> Aim:
    """At the start of an episode: `hands (2, 3)` where they are, palms facing each other, open."""
    return Aim(np.clip(np.asarray(hands, np.float32), LOW, HIGH), np.zeros(2, np.float32), np.zeros(2, np.float32))


def next_hands(aim: Aim) -> Aim:
    """The same aim, the next of `HANDS` moving."""
    return dataclasses.replace(aim, active=HANDS[(HANDS.index(aim.active) + 1) % len(HANDS)])


def released(x: float, y: float) -> tuple[float, float]:
    """A stick's deflection `(x, y)` beyond its dead zone, at most 1 long; a round zone, so that no direction snaps to an axis."""
    length = float(np.hypot(x, y))
    if length <= DEAD_ZONE:
        return 0.0, 0.0
    scale = (min(length, 1.0) - DEAD_ZONE) / (1.0 - DEAD_ZONE) / length
    return x * scale, y * scale


def read(raw: Mapping[str, Any]) -> Inputs:
    """Pressed keys and the state of a gamepad -> what is asked for.

    Args:
      raw: `keys`, codes of the keys held down; `axes` (4) and `buttons` (up to 17), values of a gamepad in the standard mapping,
        left out without one.

    Raises:
      InputError: a field has another shape or values that are not numbers.
    """
    keys = raw.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"keys={keys!r}, allowed: a list of key codes")
    axes, buttons = _numbers(raw, "axes", 4), _numbers(raw, "buttons", 17)
    sticks = (*released(*axes[:2]), *released(*axes[2:4]))
    found = {}
    for name, axis in AXES.items():
        value = float(any(k in keys for k in axis.more)) - float(any(k in keys for k in axis.less))
        if axis.stick:
            value += axis.stick[1] * sticks[axis.stick[0]]
        if axis.buttons:
            # Triggers have a dead zone of their own; on a plain button it changes nothing.
            value += released(buttons[axis.buttons[0]], 0.0)[0] - released(buttons[axis.buttons[1]], 0.0)[0]
        found[name] = float(np.clip(value, -1.0, 1.0))
    return Inputs(**found, slow=any(k in keys for k in SLOW_KEYS) or buttons[SLOW_BUTTON] > 0.5)


def to_action(aim: Aim, inputs: Inputs, dt: float) -> tuple[Aim, np.ndarray]:
    """The aim after `dt` seconds of `inputs`, and the action `(23,)` float32 that goes there, within all limits.

    Velocities are as fast as the experts walk, hand targets stay in their boxes (both hands keep their distance at a border), and
    palms at least `LEAST_GAP` apart.
    """
    pace = SLOW if inputs.slow else 1.0
    velocity = pace * np.array([inputs.forward, inputs.aside, inputs.turn], np.float32) * np.array(FASTEST, np.float32)
    moves = np.array([aim.active in ("both", side) for side in ("left", "right")])
    shift = pace * HAND_RATE * dt * np.array([inputs.reach, inputs.across, inputs.lift], np.float32)
    room = LOW - aim.hands, HIGH - aim.hands
    shift = np.clip(shift, room[0][moves].max(0), room[1][moves].min(0))
    hands = aim.hands + moves[:, None] * shift
    hands[:, 1] += moves * INWARD * pace * SQUEEZE_RATE * dt * inputs.squeeze
    lacking = max(0.0, LEAST_GAP - float(hands[0, 1] - hands[1, 1]))
    hands[:, 1] -= moves * INWARD * lacking / moves.sum()
    hands = np.clip(hands, LOW, HIGH)
    roll = np.clip(aim.roll + moves * pace * ROLL_RATE * dt * inputs.roll, -ROLL_LIMIT, ROLL_LIMIT)
    grip = np.clip(aim.grip + moves * GRIP_RATE * dt * inputs.grip, 0.0, 1.0)
    aim = dataclasses.replace(aim, hands=hands, roll=roll, grip=grip)
    velocity = np.clip(velocity, VELOCITY_LOW, VELOCITY_HIGH)
    poses = np.concatenate([hands, _columns(roll)], axis=1)
    return aim, np.concatenate([velocity, poses.reshape(-1), grip]).astype(np.float32)


def legend() -> list[tuple[str, str, str]]:
    """Rows for a person: what, keys, gamepad."""
    rows = []
    for axis in AXES.values():
        keys = " / ".join(" ".join(_name(key) for key in side) for side in (axis.more, axis.less))
        pad = STICKS[axis.stick[0]] if axis.stick else " / ".join(BUTTONS[i] for i in axis.buttons or ())
        rows.append((" / ".join(axis.means), keys, pad))
    rows.append(("slower", "Shift", BUTTONS[SLOW_BUTTON]))
    return rows + [(what, _name(key), BUTTONS[button]) for what, key, button in COMMANDS.values()]


def numbers(values: Any, name: str) -> list[float]:
    """`values`, if they are a list of numbers that float32 can hold.  Raises `InputError`."""
    good = isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < LARGEST for v in values
    )
    if not good:
        raise InputError(f"{name}={values!r:.200}, allowed: a list of finite numbers")
    return values


def _name(code: str) -> str:
    return NAMES.get(code, code.removeprefix("Key"))


def _columns(roll: np.ndarray) -> np.ndarray:
    """`(2, 6)` the first two columns of rotations about x: by `roll` for the left palm, by its mirror image for the right one."""
    angle = roll * -INWARD
    zero, one = np.zeros(2), np.ones(2)
    return np.stack([one, zero, zero, zero, np.cos(angle), np.sin(angle)], axis=1)


def _numbers(raw: Mapping[str, Any], name: str, count: int) -> Sequence[float]:
    """`count` numbers within [-1, 1]; those that a device does not have are 0."""
    values = numbers(raw.get(name, []), name)
    return [*(float(np.clip(v, -1.0, 1.0)) for v in values[:count]), *[0.0] * (count - len(values))]
