"""Schedule, samplers and likelihood against float64 oracles and against known distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_oracle import bars, betas, ddim_step, ddpm_step, log_prob

from rdp_jax.config import ConfigError, validate
from rdp_jax.diffusion import schedule
from rdp_jax.diffusion.policy import DiffusionPolicy, Pairs
from rdp_jax.diffusion.sample import step_mean
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.denoiser import DenoiserMLP, ResidualCritic

SHAPE, OBS = (4, 3), 11


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {
        "obs": jnp.asarray(rng.normal(size=(6, OBS)), jnp.float32),
        "x": jnp.asarray(rng.normal(size=(6, *SHAPE)), jnp.float32),
    }


def make(**kwargs):
    return DiffusionPolicy(DenoiserMLP((32, 32, 32)), DiffusionConfig(**kwargs), SHAPE)


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_schedule_equals_oracle(steps):
    np.testing.assert_allclose(schedule.cosine_betas(steps), betas(steps), rtol=1e-12)


def test_schedule_has_the_published_values():
    beta, bar = schedule.cosine_betas(20), schedule.alpha_bars(20)
    np.testing.assert_allclose(beta[[0, 1, 2, 18, 19]], [0.00799, 0.02008, 0.03225, 0.7485, 0.999], atol=1e-4)
    np.testing.assert_allclose(bar[[0, 9, 19]], [0.9920, 0.4938, 6.06e-6], rtol=2e-3)
    std = schedule._ddpm(DiffusionConfig())["std"][::-1][:10]
    np.testing.assert_allclose(std, [0, 0.076, 0.123, 0.162, 0.195, 0.226, 0.255, 0.283, 0.311, 0.339], atol=6e-4)
    std = schedule._ddim(DiffusionConfig(steps=100, sampler="ddim"), 1.0)["std"]
    np.testing.assert_allclose(std, [0.738, 0.514, 0.295, 0.025, 0], atol=6e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_step_equals_the_oracle(sampler):
    config = DiffusionConfig(steps=20, sampler=sampler, ddim_steps=4, min_std=1e-4, eta=0.7)
    table = schedule.explore(config)
    rng = np.random.default_rng(1)
    for i, t in enumerate(table.t):
        x, eps = rng.normal(size=(2, 5))
        if sampler == "ddpm":
            mean, std = ddpm_step(x, eps, int(t), 20, 1.0)
        else:
            before = int(table.t[i + 1]) if i + 1 < len(table) else None
            mean, std = ddim_step(x, eps, int(t), before, 20, 0.7, 1.0)
        x0 = np.clip(table.recip[i] * x - table.recip_m1[i] * eps, -1, 1)
        np.testing.assert_allclose(table.p[i] * x0 + table.q[i] * x, mean, atol=1e-5)
        np.testing.assert_allclose(table.std[i], max(std, 1e-4), rtol=1e-5)


def test_noise_rules_of_the_modes():
    explore, evaluate = schedule.explore(DiffusionConfig()), schedule.evaluate(DiffusionConfig())
    assert explore.std.min() == pytest.approx(0.1) and (explore.std == np.float32(0.1)).sum() == 2
    assert evaluate.std[-1] == 0.0 and evaluate.std[:-1].min() == pytest.approx(0.0758, abs=1e-4)
    ddim = DiffusionConfig(sampler="ddim")
    assert not schedule.evaluate(ddim).std.any() and schedule.explore(ddim).std.min() == pytest.approx(0.1)
    # The mean is that of the unfloored std, in both.
    np.testing.assert_array_equal(explore.q, evaluate.q)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_exploration_noise_may_stay_in_use_all_of_it_or_a_share(sampler):
    config = DiffusionConfig(steps=100, sampler=sampler, min_std=0.04, correlation=0.5)
    explore = schedule.explore(config)

    def used(share):
        return schedule.evaluate(dataclasses.replace(config, step_noise=share))

    jax.tree.map(np.testing.assert_array_equal, used(1.0), explore)
    half = used(0.5)
    assert half.std[-1] == pytest.approx(0.02) and half.rho[-1] == 0.5
    least = schedule.evaluate(config).std
    assert (half.std >= least).all() and (half.std <= explore.std).all()
    if sampler == "ddim":  # DDPM's own noise is no exploration
        np.testing.assert_allclose(half.std[:3], 0.5 * explore.std[:3])


def test_a_planner_that_keeps_its_noise_samples_as_while_exploring():
    kept, quiet = make(step_noise=1.0, correlation=0.5), make(correlation=0.5)
    params, obs, key = quiet.init(jax.random.key(0), OBS), jnp.ones((3, OBS)), jax.random.key(1)
    exploring = quiet.sample(params, obs, key, explore=True)
    np.testing.assert_array_equal(kept.sample(params, obs, key), exploring)
    assert float(jnp.abs(quiet.sample(params, obs, key) - exploring).max()) > 1e-3


def test_likelihood_equals_the_oracle(data):
    policy = make()
    params = policy.init(jax.random.key(0), OBS)
    k = jnp.array([0, 3, 9, 9, 5, 1])
    x_next = data["x"] * 0.9 + 0.05
    elements, mean, std = policy.score(params, 10, Pairs(obs=data["obs"], x=data["x"], x_next=x_next, k=k))
    t = 9 - np.asarray(k)
    eps = np.asarray(policy.predict(params, data["obs"])(data["x"], jnp.asarray(t)), np.float64)
    for i in range(6):
        want_mean, want_std = ddpm_step(np.asarray(data["x"][i], np.float64), eps[i], int(t[i]), 20, 1.0)
        want_std = max(want_std, 0.1)
        np.testing.assert_allclose(mean[i], want_mean, atol=1e-5)
        assert float(std[i]) == pytest.approx(want_std, rel=1e-5)
        want = log_prob(np.asarray(x_next[i], np.float64), want_mean, want_std)
        np.testing.assert_allclose(elements[i], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_have_the_right_moments(sampler):
    """With the exact noise predictor of Gaussian data, samples have the moments that the oracle's linear steps propagate."""
    mu, sigma, steps, every = 0.3, 0.2, 40, 2
    bar = bars(steps)

    def eps_of(x, t, bar=bar, sqrt=np.sqrt):
        return (x - sqrt(bar[t]) * mu) * sqrt(1 - bar[t]) / (bar[t] * sigma**2 + 1 - bar[t])

    class Exact:
        def apply(self, _, x, t, obs):
            return eps_of(x, t, jnp.asarray(bar, jnp.float32)[:, None, None], jnp.sqrt)

    mean, variance = 0.0, 1.0
    visited = range(steps - 1, -1, -1) if sampler == "ddpm" else range(steps - every, -1, -every)
    for t in visited:

        def step(x, t=t):
            if sampler == "ddpm":
                return ddpm_step(x, eps_of(x, t), t, steps, 50.0)
            return ddim_step(x, eps_of(x, t), t, t - every if t else None, steps, 1.0, 50.0)

        (low, std), (high, _) = step(0.0), step(1.0)
        mean, variance = low + (high - low) * mean, (high - low) ** 2 * variance + std**2
    # The oracle itself comes near the data: what is left is the discretisation.
    assert mean == pytest.approx(mu, abs=0.01) and variance**0.5 == pytest.approx(sigma, rel=0.25)
    config = DiffusionConfig(
        steps=steps, sampler=sampler, ddim_steps=steps // every, clip_x0=50.0, noise_clip=10.0, min_std=1e-4
    )
    policy = DiffusionPolicy(Exact(), config, (1, 2))
    x = policy.sample({}, jnp.zeros((20000, 1)), jax.random.key(3), explore=True)
    assert float(x.mean()) == pytest.approx(mean, abs=0.005)
    assert float(x.std()) == pytest.approx(variance**0.5, rel=0.02)


def test_chain_is_what_was_sampled_and_frozen_steps_run_on_the_base(data):
    policy = make()
    base, tuned = (policy.init(jax.random.key(i), OBS) for i in range(2))
    noise = policy.row_noise(jax.random.split(jax.random.key(2), 6))
    chunk, chain = policy.sample_split(base, tuned, 7, data["obs"], noise, True)
    assert chain.shape == (6, 8, *SHAPE)
    np.testing.assert_array_equal(chain[:, -1], chunk)
    same, _ = policy.sample_split(base, base, 7, data["obs"], noise, True)
    np.testing.assert_allclose(same, policy.sample_rows(base, data["obs"], noise, True), atol=1e-6)
    # The chain's first entry is the base's alone, later ones are not.
    _, other = policy.sample_split(base, base, 7, data["obs"], noise, True)
    np.testing.assert_array_equal(chain[:, 0], other[:, 0])
    assert float(jnp.abs(chain[:, 1] - other[:, 1]).max()) > 1e-4
    # Scoring the chain under the tuned weights finds residuals equal to the clipped noise.
    for k in (0, 6):
        pairs = Pairs(obs=data["obs"], x=chain[:, k], x_next=chain[:, k + 1], k=jnp.full(6, k))
        _, mean, std = policy.score(tuned, 7, pairs)
        residual = (chain[:, k + 1] - mean) / std[:, None, None]
        np.testing.assert_allclose(residual, jnp.clip(noise[1][13 + k], -3, 3), atol=2e-4)


def test_row_noise_does_not_depend_on_the_other_rows():
    policy, keys = make(), jax.random.split(jax.random.key(0), 4)
    all_rows, one = policy.row_noise(keys), policy.row_noise(keys[2:3])
    np.testing.assert_array_equal(all_rows[0][2], one[0][0])
    np.testing.assert_array_equal(all_rows[1][:, 2], one[1][:, 0])


def test_ddim_evaluation_depends_on_the_first_sample_alone(data):
    policy = make(sampler="ddim")
    params = policy.init(jax.random.key(0), OBS)
    x, noise = policy.noise(jax.random.key(1), 6)
    again = policy.sample_from(params, data["obs"], x, -noise)
    np.testing.assert_array_equal(policy.sample_from(params, data["obs"], x, noise), again)


def test_parameter_counts_are_those_of_dppo():
    def count(tree):
        return sum(x.size for x in jax.tree.leaves(tree))

    def denoiser(obs, action):
        net = DenoiserMLP()
        args = (jnp.zeros((1, 4, action)), jnp.zeros(1, jnp.int32), jnp.zeros((1, obs)))
        return count(jax.eval_shape(net.init, jax.random.key(0), *args))

    assert denoiser(11, 3) == 553_020
    assert denoiser(17, 6) == 568_392
    assert count(jax.eval_shape(ResidualCritic().init, jax.random.key(0), jnp.zeros((1, 11)))) == 134_913


def test_bf16_products_give_float32_output(data):
    net = DenoiserMLP((32, 32, 32), dtype=jnp.bfloat16)
    params = net.init(jax.random.key(0), data["x"], jnp.zeros(6, jnp.int32), data["obs"])
    out = net.apply(params, data["x"], jnp.zeros(6, jnp.int32), data["obs"])
    assert out.dtype == jnp.float32 and all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("ddim_steps", 21), ("eta", 1.5), ("min_std", 0.0), ("sampler", "euler")]
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        validate(DiffusionConfig(**{"sampler": "ddim", field: value}))


def test_a_selection_that_begins_in_the_middle_is_refused():
    for steps, few in ((100, 5), (100, 50), (100, 40), (20, 8), (7, 7)):
        validate(DiffusionConfig(steps=steps, sampler="ddim", ddim_steps=few))
    for steps, few in ((100, 51), (100, 60), (20, 11), (20, 12)):
        with pytest.raises(ConfigError, match=f"ddim_steps={few}, allowed: a divisor of steps={steps}"):
            validate(DiffusionConfig(steps=steps, sampler="ddim", ddim_steps=few))


@pytest.mark.parametrize(("std", "rho"), [(0.1, 0.0), (0.02, 0.0), (0.1, 0.9)])
def test_the_peak_is_the_log_density_at_the_mean(std, rho):
    config = DiffusionConfig(steps=20, sampler="ddim", ddim_steps=4, eta=0.0, min_std=std, correlation=rho)
    policy = DiffusionPolicy(DenoiserMLP((32, 32, 32)), config, (3, 2))
    params = policy.init(jax.random.key(0), 5)
    obs, x = jnp.zeros((1, 5)), jnp.zeros((1, 3, 2))
    pairs = Pairs(obs=obs, x=x, x_next=x, k=jnp.zeros(1, jnp.int32))
    mean = step_mean(policy.predict(params, obs), jax.tree.map(jnp.asarray, policy.exploring.part(3)), x, 1.0)
    elements, _, _ = policy.score(params, 1, pairs.replace(x_next=mean))
    assert float(elements.max()) == pytest.approx(policy.peak(1, 0), rel=1e-4)


def test_too_many_tuned_steps_are_refused(data):
    with pytest.raises(ConfigError, match="tuned_steps=21"):
        make().check_tuned(21)
