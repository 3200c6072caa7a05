"""A tiny PPO on the toy environment, compiled once for all tests that can share it."""

import jax
import pytest

from envs import registry
from envs.wrappers import AutoReset
from rdp_jax.algos import ppo


@pytest.fixture(scope="session")
def env():
    return AutoReset(registry.make("toy"))


@pytest.fixture(scope="session")
def tiny():
    return ppo.PPOConfig(
        num_envs=16,
        unroll_length=10,  # episodes last 24 steps, so they end inside rollouts and straddle them
        epochs=2,
        minibatches=2,
        actor_sizes=(16,),
        critic_sizes=(16,),
        reset_pool=8,
    )


@pytest.fixture(scope="session")
def tiny_update(tiny, env):
    return ppo.make_update(tiny, env)


@pytest.fixture
def tiny_state(tiny, env):
    return ppo.init(jax.random.key(3), tiny, env, env.default_params())
