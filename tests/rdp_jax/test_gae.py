"""GAE against tables worked out by hand and against a float64 loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from rdp_jax.gae import gae

NONE = [False] * 4
SECOND = [False, True, False, False]
# gamma = lambda = 1/2, reward 1, V = 1 2 3 4, V(next) = 2 3 4 5: delta = 1, 1/2, 0, -1/2, and each step passes on a quarter.
TABLE = [
    pytest.param(NONE, NONE, [1.1171875, 0.46875, -0.125, -0.5], id="no end"),
    pytest.param(NONE, SECOND, [1.125, 0.5, -0.125, -0.5], id="truncated: bootstrapped, lambda cut"),
    pytest.param(SECOND, NONE, [0.75, -1.0, -0.125, -0.5], id="terminated: no value beyond, lambda cut"),
]


@pytest.mark.parametrize(("terminated", "truncated", "expected"), TABLE)
def test_golden(terminated, truncated, expected):
    value = jnp.array([1.0, 2.0, 3.0, 4.0])
    advantage, target = gae(jnp.ones(4), value, value + 1, jnp.array(terminated), jnp.array(truncated), 0.5, 0.5)
    np.testing.assert_array_equal(advantage, expected)
    np.testing.assert_array_equal(target, np.array(expected) + value)


def test_value_beyond_termination_is_never_read():
    bad = jnp.array([0.0, jnp.nan, 0.0, 0.0])
    advantage, _ = gae(jnp.ones(4), jnp.zeros(4), bad, jnp.array(SECOND), jnp.array(NONE), 0.9, 0.9)
    assert np.isfinite(advantage).all()


def oracle(reward, value, next_value, terminated, truncated, gamma, lam):
    advantage = np.zeros_like(reward)
    for b in range(reward.shape[1]):
        running = 0.0
        for t in reversed(range(reward.shape[0])):
            if terminated[t, b] or truncated[t, b]:
                running = 0.0
            beyond = 0.0 if terminated[t, b] else next_value[t, b]
            running = reward[t, b] + gamma * beyond - value[t, b] + gamma * lam * running
            advantage[t, b] = running
    return advantage


def test_against_float64_loop():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 50, 7))
    terminated = rng.random((50, 7)) < 0.1
    truncated = (rng.random((50, 7)) < 0.1) & ~terminated
    expected = oracle(reward, value, next_value, terminated, truncated, 0.98, 0.95)
    got, _ = gae(*(jnp.array(x) for x in (reward, value, next_value)), terminated, truncated, 0.98, 0.95)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
