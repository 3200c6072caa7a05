"""Share of signal in DPPO's gradient: what is in common counts, what is not does not; values come from the other half."""

import dataclasses

import numpy as np
import pytest

from benchmarks import gradient
from rdp_jax.algos.dppo import DPPOConfig


@pytest.mark.parametrize("level", [0.0, 0.1, 0.5])
def test_share(level):
    rng = np.random.default_rng(0)
    signal, size = rng.normal(size=4000), 16
    rows = np.sqrt(level) * signal + np.sqrt(1.0 - level) * rng.normal(size=(size, 4000))
    found, error = gradient.share(rows)
    assert abs(found - level) < 0.02
    assert 0.0 < error < 0.02


def test_a_part_that_knows_goes_farther_than_one_that_does_not():
    rng = np.random.default_rng(0)
    weights = {"knows": {"kernel": np.zeros((20, 20))}, "guesses": np.zeros(800)}
    rows = rng.normal(size=(12, 1200))
    rows[:, 800:] += 0.25 * rng.normal(size=400)
    rows[:, :800] *= 100.0  # Adam does not care
    found = gradient.by_part(rows, weights)
    assert set(found) == {"all", "knows", "guesses"}
    for figure in ("share", "reach"):
        (knows, error), (everything, _), (guesses, wide) = (found[p][figure] for p in ("knows", "all", "guesses"))
        assert knows - 2.0 * error > everything > guesses
        assert abs(guesses) < 3.0 * wide
    assert gradient.reach(np.ones((4, 3)))[0] == pytest.approx(1.0)


def test_values_come_from_the_other_half(monkeypatch):
    """Environments of even number win at once, those of odd number never: each half is valued by what the other one got."""
    monkeypatch.setattr(gradient, "FITS", 1)
    monkeypatch.setattr(gradient, "FIT_STEPS", 200)
    shape = (20, 32)
    rng = np.random.default_rng(1)
    critic = rng.normal(size=(*shape, 3)).astype(np.float32)
    reward = np.broadcast_to(np.arange(32) % 2 == 0, shape).astype(np.float32)
    seen = gradient.Seen(critic, critic, critic, critic, reward, np.ones(shape, bool))
    value, _ = gradient.values(DPPOConfig(critic_sizes=(16, 16, 16)), seen, gradient.jax.random.key(0))
    assert abs(value[:, ::2].mean()) < 0.1
    assert abs(value[:, 1::2].mean() - 1.0) < 0.1
    advantage, target = gradient.returns(seen, value, value, 0.9, 0.5)
    np.testing.assert_allclose(target, reward, atol=1e-6)
    np.testing.assert_allclose(advantage, reward - value, atol=1e-6)


def test_as_many_environments_as_fine_tuning():
    """What the command line leaves of a hidden field is the class's own default."""
    parsed = gradient.GradientArgs(dppo=dataclasses.replace(gradient.task_dppo("cpu"), num_envs=40))
    assert parsed.resolved().dppo.num_envs == gradient.task_dppo("cpu").num_envs != 40


def test_bad_input(capsys):
    assert gradient.main(["--num-envs", "4", "--dppo.minibatches", "1"]) == 2
    assert "num_envs=4" in capsys.readouterr().err
