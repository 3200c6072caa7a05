"""The toy environment, auto-reset from a pool, and the registry."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import registry, toy
from envs.wrappers import AutoReset, auto_reset_step


@pytest.fixture(scope="module")
def env():
    return registry.make("toy", episode_steps=12)


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(lambda pool, state, action, params: auto_reset_step(env, pool, state, action, params))


def batch(env, n=32, seed=0):
    return AutoReset(env).reset(jax.random.split(jax.random.key(seed), n), env.default_params())


def test_optimal_return_is_what_the_optimal_action_earns_and_nothing_beats_it(env, step):
    state, params = batch(env), env.default_params()
    best = toy.optimal_return(state.obs["actor"][:, :2], 12)
    pool, earned, sluggish, slow = batch(env, 4, 9), 0.0, 0.0, state
    for _ in range(12):
        out = step(pool, state, toy.optimal_action(state.obs["actor"]), params)
        other = step(pool, slow, 0.7 * toy.optimal_action(slow.obs["actor"]), params)
        earned, sluggish, state, slow = earned + out.reward, sluggish + other.reward, out.state, other.state
    np.testing.assert_allclose(earned, best, rtol=1e-5)
    assert bool((sluggish < best).all())
    assert bool(out.truncated.all())


def test_termination_out_of_bounds_hands_out_the_true_last_observation(env, step):
    state, params = batch(env), env.default_params()
    pool = batch(env, 8, 5)
    ended = jnp.zeros(32, bool)
    for _ in range(11):
        before = state
        out = step(pool, before, jnp.ones((32, 2)), params)
        expected = before.physics + toy.STEP
        np.testing.assert_allclose(out.final_obs["actor"][:, 2:], expected, rtol=1e-6)
        done = out.terminated
        np.testing.assert_array_equal(done, jnp.abs(expected).max(1) > toy.BOUND)
        # Reset: the whole task state is new, position and observation are those of one pool entry.
        assert bool((jnp.where(done, out.state.task.step, 0) == 0).all())
        in_pool = (out.state.physics[:, None] == pool.physics[None]).all(-1).any(1)
        np.testing.assert_array_equal(in_pool, done)
        np.testing.assert_array_equal(out.state.obs["actor"][:, 2:], out.state.physics)
        state, ended = out.state, ended | done
    assert int(ended.sum()) > 16


def test_copies_of_one_fresh_start_part_ways(env, step):
    params = env.default_params().replace(noise=jnp.float32(0.1))
    state = batch(env)
    state = state.replace(task=state.task.replace(step=jnp.full(32, 11, jnp.int32)))  # all are about to be truncated
    pool = batch(env, 1, 5)
    out = step(pool, state, jnp.zeros((32, 2)), params)
    assert bool(out.truncated.all())
    assert len(np.unique(out.state.physics, axis=0)) == 1
    after = step(pool, out.state, jnp.zeros((32, 2)), params)
    assert len(np.unique(after.state.physics, axis=0)) == 32


def test_all_pool_entries_are_used(env, step):
    params, state = env.default_params(), batch(env, 256)
    state = state.replace(task=state.task.replace(step=jnp.full(256, 11, jnp.int32)))
    pool = batch(env, 8, 5)
    out = auto_reset_step(env, pool, state, jnp.zeros((256, 2)), params)
    counts = np.unique(out.state.physics, axis=0, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 10


def test_divergence_is_masked_and_terminated(env, step):
    params, state = env.default_params(), batch(env)
    state = state.replace(physics=state.physics.at[3].set(jnp.nan))
    pool = batch(env, 8, 5)
    out = step(pool, state, jnp.zeros((32, 2)), params)
    assert np.flatnonzero(out.diverged).tolist() == [3]
    assert bool(out.terminated[3])
    assert float(out.reward[3]) == 0.0
    for value in jax.tree.leaves((out.final_obs, out.state.obs, out.state.physics, out.metrics)):
        assert np.isfinite(value).all()


def test_divergence_flag_of_the_physics(env):
    """A backend that freezes a broken state keeps it finite; its flag must count all the same."""
    from flax import struct

    @struct.dataclass
    class Physics:
        position: jax.Array
        diverged: jax.Array

    class Flagged(toy.Toy):
        def reset(self, key, params):
            state = super().reset(key, params)
            return state.replace(physics=Physics(state.physics, jnp.array(False)))

        def step(self, state, action, params):
            after = super().step(state.replace(physics=state.physics.position), action, params)
            return after.replace(physics=Physics(after.physics, action[0] > 5))

    flagged = Flagged()
    params, state = flagged.default_params(), batch(flagged, 4)
    pool = batch(flagged, 4, 0)
    out = auto_reset_step(flagged, pool, state, jnp.zeros((4, 2)).at[2].set(9.0), params)
    assert out.diverged.tolist() == [False, False, True, False]
    assert not bool(out.state.physics.diverged.any())


def test_reset_and_step_must_agree(env):
    class Wrong(toy.Toy):
        def step(self, state, action, params):
            after = super().step(state, action, params)
            return after.replace(task=after.task.replace(step=after.task.step.astype(jnp.float32)))

    wrong = Wrong()
    pool = batch(wrong, 2, 0)
    with pytest.raises(TypeError, match=r"State\.task\.step: reset gives int32"):
        auto_reset_step(wrong, pool, batch(wrong, 2), jnp.zeros((2, 2)), wrong.default_params())


def test_registry():
    assert "toy" in registry.names()
    with pytest.raises(KeyError, match=r"unknown environment 'tyo'; known: .*toy"):
        registry.make("tyo")
    with pytest.raises(ValueError, match="already registered"):
        registry.register("toy", toy.Toy)
    registry.register("test-outside", lambda steps: toy.Toy(episode_steps=steps))
    assert registry.make("test-outside", steps=7).spec.episode_steps == 7
    with pytest.raises(ValueError, match="module:attribute"):
        registry.register("test-wrong", "envs.toy")


def test_registry_imports_no_environment():
    code = "import sys, envs.registry; assert 'envs.toy' not in sys.modules and 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
