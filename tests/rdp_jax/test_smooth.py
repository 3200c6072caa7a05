"""Correlated exploration noise against multivariate normals in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdp_jax.algos.dppo import gaussian_kl
from rdp_jax.config import ConfigError, validate
from rdp_jax.diffusion import smooth
from rdp_jax.diffusion.gaussian import GaussianConfig, GaussianPolicy
from rdp_jax.diffusion.policy import DiffusionPolicy, Pairs
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.denoiser import DenoiserMLP

HORIZON, WIDTH, OBS = 5, 3, 7


def correlation(rho):
    past = np.abs(np.arange(HORIZON)[:, None] - np.arange(HORIZON))
    return np.where(past == 0, 1.0, rho**past)


def normal_log_density(x, mean, covariance):
    """Of `x (n,)`, from the definition."""
    d = x - mean
    _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (d @ np.linalg.solve(covariance, d) + logdet)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.97])
def test_colour_has_the_covariance_of_ar1(rho):
    x = np.asarray(smooth.colour(jax.random.normal(jax.random.key(0), (1, 100_000, HORIZON, 2)), np.array([rho])))[0]
    np.testing.assert_allclose(np.cov(x[:, :, 0].T), correlation(rho), atol=0.02)
    assert abs(np.corrcoef(x[:, 2, 0], x[:, 2, 1])[0, 1]) < 0.02


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.97])
def test_whiten_undoes_colour(rho):
    noise = jax.random.normal(jax.random.key(1), (2, 4, HORIZON, WIDTH))
    coloured = smooth.colour(noise, np.array([rho, 0.3]))
    for i, r in enumerate((rho, 0.3)):
        np.testing.assert_allclose(smooth.whiten(coloured[i], jnp.full(4, r)), noise[i], atol=2e-5)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.97])
@pytest.mark.parametrize("executed", [1, 3, HORIZON])
def test_density_and_divergence_of_the_executed_actions(rho, executed):
    rng = np.random.default_rng(2)
    x, mean, other = rng.normal(size=(3, 2, HORIZON, WIDTH))
    std, rhos = np.array([0.3, 1.1]), np.array([rho, 0.2])
    elements, white = smooth.log_prob_elements(*map(jnp.asarray, (x, mean, std, rhos)))
    _, other_white = smooth.log_prob_elements(*map(jnp.asarray, (x, other, std, rhos)))
    kl = gaussian_kl(white - other_white, jnp.asarray(std))[:, :executed].sum((1, 2))
    for row in range(2):
        covariance = (std[row] ** 2 * correlation(rhos[row]))[:executed, :executed]
        expected = sum(
            normal_log_density(x[row, :executed, j], mean[row, :executed, j], covariance) for j in range(WIDTH)
        )
        assert float(elements[row, :executed].sum()) == pytest.approx(expected, rel=1e-4)
        apart = (mean - other)[row, :executed]
        expected = 0.5 * sum(apart[:, j] @ np.linalg.solve(covariance, apart[:, j]) for j in range(WIDTH))
        assert float(kl[row]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.97])
def test_gradient_is_the_densitys_times_the_covariance(rho):
    """Which is the noise itself over the variance: what was tried, and nothing where nothing was."""
    x, mean = (jax.random.normal(jax.random.key(i), (2, HORIZON, WIDTH)) for i in range(2))
    std = jnp.array([0.3, 1.1])
    gradient = jax.grad(lambda m: smooth.log_prob_elements(x, m, std, jnp.full(2, rho))[0].sum())(mean)
    np.testing.assert_allclose(gradient, (x - mean) / jnp.square(std)[:, None, None], rtol=2e-3, atol=1e-3)


def test_a_chain_explores_with_it_where_noise_was_added_and_judges_without():
    config = DiffusionConfig(steps=20, sampler="ddim", ddim_steps=4, min_std=0.35, correlation=0.9, noise_clip=10.0)
    policy = DiffusionPolicy(DenoiserMLP((32, 32, 32)), config, (HORIZON, WIDTH))
    np.testing.assert_allclose(policy.exploring.rho, [0.0, 0.0, 0.9, 0.9])  # the first two have more noise of their own
    params = policy.init(jax.random.key(0), OBS)
    obs = jax.random.normal(jax.random.key(1), (6, OBS))
    noise = policy.row_noise(jax.random.split(jax.random.key(2), 6))
    chunk, chain = policy.sample_split(params, params, 3, obs, noise, True)
    np.testing.assert_allclose(chunk, policy.sample_rows(params, obs, noise, True), atol=1e-6)
    for k in range(3):
        pairs = Pairs(obs=obs, x=chain[:, k], x_next=chain[:, k + 1], k=jnp.full(6, k))
        _, white, std = policy.score(params, 3, pairs)
        rho = jnp.full(6, policy.exploring.rho[1 + k])
        residual = (smooth.whiten(chain[:, k + 1], rho) - white) / std[:, None, None]
        np.testing.assert_allclose(residual, noise[1][1 + k], atol=2e-3)
    plain = DiffusionPolicy(DenoiserMLP((32, 32, 32)), DiffusionConfig(sampler="ddim", ddim_steps=4), (HORIZON, WIDTH))
    judged, _ = policy.sample_split(params, params, 3, obs, noise, False)
    np.testing.assert_array_equal(judged, plain.sample_split(params, params, 3, obs, noise, False)[0])


def test_a_gaussian_policy_has_it_too():
    class Zero:
        def apply(self, _, obs):
            return jnp.zeros((obs.shape[0], HORIZON, WIDTH))

    policy = GaussianPolicy(Zero(), GaussianConfig(std=0.2, noise_clip=10.0, correlation=0.8), (HORIZON, WIDTH))
    noise = policy.row_noise(jax.random.split(jax.random.key(0), 50_000))
    chunk, _ = policy.sample_split({}, {}, 1, jnp.zeros((50_000, OBS)), noise, True)
    np.testing.assert_allclose(np.cov(np.asarray(chunk)[:, :, 1].T) / 0.04, correlation(0.8), atol=0.03)
    pairs = Pairs(obs=jnp.zeros((50_000, OBS)), x=chunk, x_next=chunk, k=jnp.zeros(50_000, jnp.int32))
    elements, _, _ = policy.score({}, 1, pairs)
    expected = np.mean([normal_log_density(c, np.zeros(HORIZON), 0.04 * correlation(0.8)) for c in chunk[:200, :, 0]])
    assert float(elements[:200, :, 0].sum(1).mean()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_bad_correlations_are_refused(value):
    with pytest.raises(ConfigError, match="correlation"):
        validate(DiffusionConfig(correlation=value))
