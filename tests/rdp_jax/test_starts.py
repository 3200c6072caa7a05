"""Fresh starts: one program for everybody, rows that depend on their own key alone, the same on any devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layered_toy import DPPO, SCHEDULE, Made

from envs.chunk import Chunked
from envs.toy import Toy
from envs.wrappers import AutoReset, LayeredAutoReset
from rdp_jax import parallel
from rdp_jax.starts import BLOCK, Starts, starts_of


def rows(states):
    return np.asarray(states.obs["actor"])


@pytest.mark.parametrize("count", [1, BLOCK, BLOCK + 3])
def test_a_row_is_the_reset_of_its_key_whatever_stands_beside_it(count):
    env = AutoReset(Toy())
    keys, params = jax.random.split(jax.random.key(1), count), env.default_params()
    found = Starts(env)(keys, params)
    assert found.reward.shape == (count,)
    np.testing.assert_array_equal(rows(found), rows(env.reset(keys, params)))
    assert not any(getattr(leaf, "weak_type", False) for leaf in jax.tree.leaves(found))


def test_a_larger_pool_begins_like_a_smaller_one():
    env = AutoReset(Toy())
    starts, params = starts_of(env), env.default_params()
    small, large = (starts.pool(jax.random.key(2), n, params) for n in (5, BLOCK + 5))
    np.testing.assert_array_equal(rows(small), rows(large)[:5])
    assert len(np.unique(rows(large), axis=0)) == BLOCK + 5
    assert starts.compiled._cache_size() == 1


def test_wrappers_of_one_environment_share_one_program_and_others_do_not():
    env = Toy(episode_steps=12)
    chunked = Chunked(env, 2)
    first = starts_of(AutoReset(env))
    assert starts_of(AutoReset(chunked)) is first and starts_of(LayeredAutoReset(chunked)) is first
    assert starts_of(AutoReset(Toy(episode_steps=12))) is not first
    assert starts_of(AutoReset(env), parallel.make_mesh(2)) is not first


class Near(AutoReset):
    """Begins elsewhere."""

    def reset(self, keys, params):
        state = super().reset(keys, params)
        return state.replace(obs={name: x + 7.0 for name, x in state.obs.items()})


class Delegating:
    """A wrapper as others write them."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, keys, params):
        return Near.reset(self.env, keys, params)


def test_a_wrapper_that_resets_in_its_own_way_has_its_own_starts():
    env = AutoReset(Toy())
    usual = starts_of(env)
    for own in (Near(env.env), Delegating(Near(env.env))):
        assert starts_of(own) is not usual and starts_of(own) is starts_of(own)
        params, keys = env.default_params(), jax.random.split(jax.random.key(4), 3)
        np.testing.assert_array_equal(rows(starts_of(own)(keys, params)), rows(own.reset(keys, params)))


def test_devices_change_nothing():
    env, mesh = AutoReset(Toy()), parallel.make_mesh(4)
    alone, together = (Starts(env, m).pool(jax.random.key(3), 10, env.default_params()) for m in (None, mesh))
    np.testing.assert_array_equal(rows(alone), rows(together))
    assert together.reward.sharding.is_fully_replicated


def test_learners_get_new_starts_each_iteration_and_compile_no_reset_of_their_own(monkeypatch):
    toy = Made(dataclasses.replace(DPPO, unroll_length=2))
    update, state = toy.update(SCHEDULE), toy.start()
    resets = []
    real = toy.env.env.resets.reset
    monkeypatch.setattr(toy.env.env.resets, "reset", lambda *args: resets.append(1) or real(*args))
    seen = []
    inner = update.fresh

    def fresh(state, params):
        seen.append(inner(state, params))
        return seen[-1]

    for phase in update.phases.values():
        phase.starts = fresh
    for _ in range(2):  # a phase of the controller, one of the planner
        state, _ = update(state, toy.params)
    assert not resets  # the first state's program serves them all
    assert not np.array_equal(rows(seen[0]), rows(seen[1]))
    assert seen[0].reward.shape == (DPPO.reset_pool,)
    assert bool(jnp.isfinite(state.planner.env.reward).all())
