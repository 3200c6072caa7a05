"""The peers of the diffusion benchmarks compute what ours compute; without PyTorch they are reported as missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import diffusion, runner
from rdp_jax.config import ConfigError


def test_cases_without_a_peer_still_run():
    cases = diffusion.chain(envs=(3,), cases=("jax", "limit")) + diffusion.update(pairs=20, cases=("jax", "limit"))
    for case in cases:
        case.build()()
        assert case.details()["flop_per_call"] > 0


def test_operations_are_counted_from_the_weights():
    _, params = diffusion.policy_and_params()
    assert diffusion.flops_per_row(params) == 2 * (39 * 512 + 2 * 512 * 512 + 512 * 12 + 16 * 32 + 32 * 16)
    assert [kernel.shape for kernel in diffusion.large(params)] == [(512, 512)] * 2


def test_the_limit_is_the_products_of_a_pass():
    _, params = diffusion.policy_and_params()
    a, b = diffusion.large(params)
    h = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    np.testing.assert_allclose(diffusion.forward_limit(params, 3, 2)(), h @ a @ b @ a @ b, rtol=1e-3, atol=1e-4)
    for (forward, back, weights), kernel in zip(diffusion.gradient_limit(params, 3)(), (a, b), strict=True):
        np.testing.assert_allclose(forward, h @ kernel, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(back, h @ kernel.T, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(weights, h.T @ h, rtol=1e-3, atol=1e-4)


def test_missing_peer_is_said(monkeypatch):
    monkeypatch.setattr(diffusion, "torch_missing", lambda: "no torch here")
    missing = {case.name: case.missing for case in diffusion.chain(envs=(2,), cases=("jax", "torch"))}
    assert missing == {"jax_2": None, "torch_2": "no torch here"}


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="pairs=15"):
        diffusion.update(pairs=15, cases=("jax",))
    with pytest.raises(ConfigError, match="cases='numpy'"):
        runner.run("chain", out=None, envs=(2,), cases=("numpy",))


def test_the_peer_is_the_same_network_and_step():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_peer import Denoiser, next_mean, table_of
    from rdp_jax.diffusion.policy import Pairs

    policy, params = diffusion.policy_and_params()
    rng = np.random.default_rng(0)
    x, obs = rng.normal(size=(5, 4, 3)).astype(np.float32), rng.normal(size=(5, 11)).astype(np.float32)
    k = np.array([0, 2, 5, 9, 9])
    _, mean, _ = policy.score(params, 10, Pairs(obs=jnp.asarray(obs), x=jnp.asarray(x), x_next=jnp.asarray(x), k=k))
    step = {name: value[-10:][torch.from_numpy(k)] for name, value in table_of(policy.exploring).items()}
    with torch.no_grad():
        theirs = next_mean(Denoiser(jax.device_get(params)), torch.from_numpy(x), torch.from_numpy(obs), step)
    np.testing.assert_allclose(mean, theirs.numpy(), atol=1e-4)
