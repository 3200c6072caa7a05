"""Our locomotion environments and Gymnasium's v5 side by side: the same observations, rewards and terminations."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.gym.locomotion import SPECS, Locomotion
from rdp_jax.config import ConfigError

THEIRS = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}


@pytest.fixture(scope="module", params=list(SPECS))
def pair(request):
    ours = Locomotion(request.param, "native")
    theirs = gymnasium.make(THEIRS[request.param]).unwrapped
    yield ours, theirs, jax.jit(ours.reset), jax.jit(ours.step)
    theirs.close()


def test_widths_and_time_steps_are_theirs(pair):
    ours, theirs, _, _ = pair
    assert ours.spec.obs_dims["actor"] == theirs.observation_space.shape[0]
    assert ours.spec.action_dim == theirs.action_space.shape[0]
    assert ours.dt == pytest.approx(theirs.dt)


def test_every_step_from_the_same_state_is_theirs(pair):
    """States from their own random rollouts, falls included; each is stepped once by both."""
    ours, theirs, reset, step = pair
    rng = np.random.default_rng(0)
    state, ended = reset(jax.random.key(0)), 0
    theirs.reset(seed=0)
    for t in range(150):
        qpos, qvel = (x.astype(np.float32).astype(np.float64) for x in (theirs.data.qpos, theirs.data.qvel))
        theirs.set_state(qpos, qvel)
        state = state.replace(physics=ours.physics.init(jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32)))
        action = rng.uniform(-1, 1, ours.spec.action_dim).astype(np.float32)
        state = step(state, jnp.asarray(action))
        # Theirs starts the solver warm, ours cold.
        theirs.data.qacc_warmstart[:] = 0.0
        obs, reward, terminated, _, _ = theirs.step(action)
        np.testing.assert_allclose(state.obs["actor"], obs, rtol=2e-3, atol=2e-3)
        assert float(state.reward) == pytest.approx(reward, abs=2e-3)
        assert bool(state.terminated) == terminated
        ended += terminated
        if terminated or t % 60 == 59:
            theirs.reset(seed=t)
    assert ended > 0 or ours.robot.healthy_reward == 0.0


def test_free_runs_stay_together(pair):
    ours, theirs, reset, step = pair
    state = reset(jax.random.key(1))
    theirs.reset(seed=0)
    theirs.set_state(np.asarray(state.physics.qpos, np.float64), np.asarray(state.physics.qvel, np.float64))
    rng = np.random.default_rng(1)
    for _ in range(15):
        action = (0.3 * rng.uniform(-1, 1, ours.spec.action_dim)).astype(np.float32)
        state = step(state, jnp.asarray(action))
        obs, *_ = theirs.step(action)
    np.testing.assert_allclose(state.obs["actor"], obs, atol=0.02)


def test_starts_are_spread_as_theirs(pair):
    ours, theirs, reset, _ = pair
    starts = jax.vmap(ours.reset)(jax.random.split(jax.random.key(2), 512))
    mine = np.asarray(starts.obs["actor"])
    other = np.stack([theirs.reset(seed=i)[0] for i in range(512)])
    np.testing.assert_allclose(mine.mean(0), other.mean(0), atol=0.25 * ours.robot.noise)
    np.testing.assert_allclose(mine.std(0), other.std(0), rtol=0.15)


def test_unknown_robots_are_refused():
    with pytest.raises(ConfigError, match="hopper"):
        Locomotion("ant")
