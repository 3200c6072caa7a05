"""Demonstrations with errors: what is executed errs as documented, what is recorded does not."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from envs.experts.clumsy import MEMORY, SLIP, STEPS, STUMBLE, STUMBLES, Clumsy
from envs.tasks.command import ACTION_DIM
from envs.tasks.hierarchy import METRICS
from train.rollouts import ClumsyPlayer, EpisodeRunner

MEANT = jnp.linspace(-1.0, 1.0, ACTION_DIM)


class Steady:
    """Counts its calls, and means the same whatever happens."""

    errors = 1.0

    def start(self, key, state):
        return jnp.int32(0)

    def act(self, memory, state):
        return memory + 1, MEANT


@struct.dataclass
class Plain:
    """As much of `envs.core.State` as a `EpisodeRunner` looks at."""

    physics: Any
    task: Any
    metrics: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class Seen:
    """A history of frames, or positions and whether they diverged."""

    history: Any = None
    qpos: Any = None
    diverged: Any = None


class Diary:
    """An environment whose `qpos` is the action that it has just executed."""

    spec = SimpleNamespace(episode_steps=200)

    def reset(self, key, params):
        return self.step(None, jnp.zeros(ACTION_DIM), params)

    def step(self, state, action, params):
        no, zero = jnp.bool_(False), jnp.float32(0.0)
        seen = Seen(qpos=action, diverged=no)
        return Plain(seen, Seen(history=jnp.zeros((1, 1))), dict.fromkeys(METRICS, zero), zero, no, no)


def play(scale: float, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Executed and recorded actions `(199, count, 23)`."""
    runner = EpisodeRunner(Diary(), ClumsyPlayer(Steady(), scale), record=True)
    played = runner.play(jax.random.key(3), np.arange(count), ())
    return played.qpos[1:], played.actions[:-1]


@pytest.fixture(scope="module")
def played():
    return play(1.0)


def test_what_was_meant_is_recorded(played):
    executed, recorded = played
    assert np.array_equal(recorded, np.broadcast_to(MEANT, recorded.shape))
    assert np.abs(executed - recorded).max() > 0.02


def test_both_hands_slip_together_and_slowly(played):
    error = played[0] - played[1]
    left, right = error[..., 3:6], error[..., 12:15]
    np.testing.assert_allclose(left, right, atol=1e-6)
    np.testing.assert_allclose(left[50:].std((0, 1)), SLIP, rtol=0.1)
    np.testing.assert_allclose(
        (left[51:] * left[50:-1]).mean((0, 1)) / (left[50:] ** 2).mean((0, 1)), MEMORY, atol=0.05
    )
    rest = np.delete(error, [0, 1, 2, 3, 4, 5, 12, 13, 14], axis=-1)
    assert np.all(rest == 0.0)


def test_stumbles_are_short_rare_and_bounded(played):
    stumble = (played[0] - played[1])[..., :3]
    assert np.all(np.abs(stumble).max((0, 1)) <= np.asarray(STUMBLE) + 1e-6)
    assert np.all(np.abs(stumble).max((0, 1)) > 0.8 * np.asarray(STUMBLE))
    share = np.any(stumble != 0.0, axis=-1).mean()
    assert share == pytest.approx(STUMBLES * STEPS / (1.0 + STUMBLES * STEPS), rel=0.25)


def test_errors_are_those_that_the_expert_can_bear():
    shaky = Steady()
    shaky.errors = 0.5
    assert Clumsy(shaky).scale == 0.5 and Clumsy(shaky, 3.0).scale == 1.5


def test_no_clumsiness_is_no_error():
    executed, recorded = play(0.0, count=4)
    np.testing.assert_allclose(executed, recorded, atol=1e-7)


def test_errors_are_drawn_apart_from_the_expert():
    """An expert splits the same key; one number of a stream must not decide over another's."""
    key = jax.random.key(5)
    own = jax.random.key_data(Clumsy(Steady()).start(key, None).key)
    for count in (2, 4, 8):
        assert not (jax.random.key_data(jax.random.split(key, count)) == own).all(axis=-1).any()
