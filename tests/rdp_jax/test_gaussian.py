"""Gaussians against formulas in float64 and against sampling."""

import jax
import jax.numpy as jnp
import numpy as np

from rdp_jax.nets import gaussian, mlp

RNG = np.random.default_rng(0)
X, MEAN, OTHER = RNG.normal(size=(3, 20, 4))
LOG_STD, OTHER_LOG_STD = RNG.normal(size=(2, 4)) * 0.5


def density(x, mean, log_std):
    std = np.exp(log_std)
    return np.log(np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))).sum(-1)


def test_log_prob():
    np.testing.assert_allclose(gaussian.log_prob(X, MEAN, LOG_STD), density(X, MEAN, LOG_STD), rtol=1e-5)


def test_entropy_and_kl_are_expectations():
    x = MEAN[0] + np.exp(LOG_STD) * RNG.normal(size=(400_000, 4))
    p, q = density(x, MEAN[0], LOG_STD), density(x, OTHER[0], OTHER_LOG_STD)
    np.testing.assert_allclose(gaussian.entropy(LOG_STD), -p.mean(), rtol=1e-2)
    np.testing.assert_allclose(gaussian.kl(MEAN[0], LOG_STD, OTHER[0], OTHER_LOG_STD), (p - q).mean(), rtol=2e-2)


def test_kl_of_a_policy_to_itself_is_zero():
    assert float(jnp.abs(gaussian.kl(MEAN, LOG_STD, MEAN, LOG_STD)).max()) == 0.0


def test_actor_starts_near_zero_and_runs_from_weights_alone():
    actor = mlp.GaussianActor(3, sizes=(32, 16), init_std=0.4)
    obs = jnp.array(RNG.normal(size=(50, 6)), jnp.float32)
    params = actor.init(jax.random.key(0), obs)["params"]
    mean, log_std = actor.apply({"params": params}, obs)
    assert 0.0 < float(jnp.abs(mean).max()) < 0.1
    np.testing.assert_allclose(jnp.exp(log_std), 0.4, rtol=1e-6)
    np.testing.assert_array_equal(mlp.apply_actor(params, obs)[0], mean)
    critic = mlp.Critic((8,))
    params = critic.init(jax.random.key(0), obs)["params"]
    np.testing.assert_array_equal(mlp.apply_critic(params, obs), critic.apply({"params": params}, obs))
