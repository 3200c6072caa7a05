"""A learned correction of a frozen planner, on the toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.chunk import Chunked
from envs.toy import Toy
from envs.wrappers import AutoReset
from rdp_jax.algos import ppo
from rdp_jax.algos.residual import Residual, ResidualActor, ResidualParams
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import Bundle, Dims, Planner, PlannerConfig, make_policy

TE, STEPS = 2, 8
CONFIG = PlannerConfig(
    net=NetConfig(kind="mlp", sizes=(32, 32, 32)),
    diffusion=DiffusionConfig(steps=4, sampler="ddim", ddim_steps=2, first_std=0.0),
    horizon=TE,
    executed=TE,
    history=1,
)
PPO = ppo.PPOConfig(num_envs=64, unroll_length=8, lr=3e-3, actor_sizes=(64,), critic_sizes=(64,), gamma=0.9)


@pytest.fixture(scope="module")
def made():
    """A planner that knows nothing, the corrected environments and their parameters."""
    policy = make_policy(CONFIG, Dims(4, 2))
    bounds = MinMax(jnp.full(4, -1.0), jnp.full(4, 1.0)), MinMax(jnp.full(2, -1.0), jnp.full(2, 1.0))
    planner = Planner(CONFIG, Dims(4, 2), Bundle(policy.init(jax.random.key(0), 4), *bounds), None, 0, {})
    vector = AutoReset(Chunked(Toy(STEPS), TE))
    params = ResidualParams(vector.default_params(), planner.bundle, (), jnp.float32(2.0))
    return planner, Residual(vector, planner), params


def test_without_a_correction_it_is_the_planner(made):
    planner, env, params = made
    keys = jax.random.split(jax.random.key(1), 4)
    state = env.reset(keys, params)
    assert state.obs["actor"].shape == (4, 4 + 2 * TE) and env.spec.action_dim == 2
    np.testing.assert_array_equal(state.obs["actor"][:, 4:], state.chunk.reshape(4, -1))
    own = planner.actor().act(planner.bundle, (), state.inner.obs["actor"], state.key)
    np.testing.assert_allclose(
        env.plan.corrected(params.bundle, state.chunk, jnp.zeros((4, 2)), params.scale), own, atol=1e-6
    )
    moved = env.plan.corrected(params.bundle, state.chunk, jnp.full((4, 2), 9.0), jnp.float32(0.1))
    np.testing.assert_allclose(moved, own + 0.1, atol=1e-5)  # clipped, and the same for all actions of the chunk


def test_the_correction_learns(made):
    planner, env, params = made
    state, update = ppo.init(jax.random.key(0), PPO, env, params), ppo.Update(PPO, env)
    returns = []
    for _ in range(25):
        state, metrics = update(state, params)
        returns.append(float(metrics["episode/return"]))
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 1.0
    assert update.cache_size() == 1
    weights = {"actor": state.params["actor"], "normalizer": state.normalizer["actor"]}
    obs = jnp.array([[1.0, -1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0]])  # error and position
    keys = jax.random.split(jax.random.key(2), 2)
    action = ResidualActor(planner).act(planner.bundle, ((), weights, params.scale), obs, keys).reshape(2, TE, 2)
    assert (np.sign(action) == np.sign(np.asarray(obs)[:, None, :2])).all()


def test_a_time_limit_that_the_critic_does_not_see_bootstraps_from_a_plan_at_the_end(made):
    planner, plain, params = made
    env = Residual(plain.env, planner, bootstrap=True)
    keys = jax.random.split(jax.random.key(3), 3)
    state, pool = env.reset(keys, params), env.reset(jax.random.split(jax.random.key(4), 3), params)
    still = jnp.zeros((3, 2))
    for _ in range(STEPS // TE):
        out, as_end = env.step(pool, state, still, params), plain.step(pool, state, still, params)
        goes_on = ~np.asarray(out.truncated | out.terminated)
        for name in ("actor", "critic"):  # what comes next, where something does
            np.testing.assert_allclose(out.final_obs[name][goes_on], out.state.obs[name][goes_on], atol=1e-6)
        state = out.state
    assert out.truncated.any() and not as_end.truncated.any()
    np.testing.assert_array_equal(as_end.terminated, out.truncated | out.terminated)
    ended, begun = (x[out.truncated] for x in (out.final_obs["actor"], state.obs["actor"]))
    assert np.abs(ended[:, :4] - begun[:, :4]).max() > 0.1  # the next episode began elsewhere
    own = planner.actor().act(planner.bundle, (), ended[:, :4], state.key[out.truncated])
    np.testing.assert_allclose(ended[:, 4:], own, atol=1e-6)
