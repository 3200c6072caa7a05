"""Scenario `dsrl`: the peer computes what ours computes, step after step; without PyTorch it is reported as missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dsrl, runner
from rdp_jax.algos.dsrl import DSRLConfig
from rdp_jax.config import ConfigError
from rdp_jax.planner import Dims
from rdp_jax.steer import PlannerBase
from train.presets import gym_planner

TINY = {"updates": 3, "distillations": 2, "batch": 8, "sizes": (16, 16), "rows": 64}


def test_our_side_runs_and_learns():
    result = runner.run("dsrl", out=None, repeats=1, cases=("jax",), **TINY)
    case = result["cases"]["jax"]
    assert case["work"] == 3 and case["unit"] == "updates" and case["per_second"] > 0
    assert result["settings"]["sizes"] == [16, 16]


def test_a_call_moves_every_network_once_per_step():
    config = DSRLConfig(num_envs=1, unroll_length=1, warmup=1, critic_warmup=0, capacity=64, reset_pool=1, batch=8)
    policy = PlannerBase(gym_planner(), Dims(dsrl.OBS, dsrl.ACTION), 5)
    _, before = dsrl.learner(config, policy, 0)
    after = dsrl.ours(config, policy, 0)()
    for name in ("actor", "values", "noise_values", "alpha"):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params[name], after[name])
        assert any(jax.tree.leaves(moved)), name


def test_missing_peer_is_said(monkeypatch):
    monkeypatch.setattr(dsrl, "torch_missing", lambda: "no torch here")
    settings = {**runner.SCENARIOS["dsrl"].defaults, **TINY}
    assert {case.name: case.missing for case in dsrl.setup(**settings)} == {"jax": None, "torch": "no torch here"}


def test_bad_settings_are_refused():
    def refused(match, **settings):
        with pytest.raises(ConfigError, match=match):
            runner.run("dsrl", out=None, repeats=1, **{**TINY, **settings})

    refused("cases='numpy'", cases=("numpy",))
    refused("distill_from='box'", distill_from="box")
    refused("variant='td3'", variant="td3")
    refused("updates=0", updates=0)
    refused("ddim_steps=21", ddim_steps=21)


@pytest.mark.parametrize(("variant", "distill_from"), [("na", "replay"), ("na", "normal"), ("sac", "replay")])
def test_the_peer_has_the_same_losses_step_after_step(variant, distill_from):
    """Each loss depends on the weights that the steps before left behind, so equal losses are equal gradients, too."""
    torch = pytest.importorskip("torch")
    from benchmarks.torch_dsrl import Learner, tensors

    config = DSRLConfig(
        variant=variant,
        num_envs=1,
        unroll_length=1,
        warmup=1,
        critic_warmup=0,
        batch=64,
        capacity=256,
        reset_pool=1,
        sizes=(32, 32),
        distill_from=distill_from,
        tau=0.05,
        target_entropy=-0.5,
        alpha=0.1,
    )
    policy = PlannerBase(gym_planner(), Dims(dsrl.OBS, dsrl.ACTION), 5)
    update, state = dsrl.learner(config, policy, 3)
    theirs = Learner(config, policy, state)
    inner = jax.jit(lambda carry, key: update._inner(state, carry, key, jnp.array(True)))
    carry = (state.params, state.target, state.opt_state, state.skipped)
    for i in range(6):
        key = jax.random.fold_in(jax.random.key(7), i)
        batch_key, *noise_keys = jax.random.split(key, 3)
        noise = (tensors(jax.random.normal(k, (64, update.nets.n))) for k in noise_keys)
        found = theirs.update(tensors(update._batch(state, batch_key)), *noise)
        carry, expected = inner(carry, key)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(float(value), rel=2e-3, abs=2e-4), (name, i)
    assert float(jnp.exp(carry[0]["alpha"])) != pytest.approx(0.1)
    target = [np.asarray(x) for x in jax.tree.leaves(carry[1]["heads"]["last"]["kernel"])]
    ours = np.stack([head.last.weight.detach().numpy().T for head in theirs.target.heads])
    np.testing.assert_allclose(ours, target[0], atol=1e-4)
    if variant == "sac":
        return
    distill = jax.jit(lambda carry, key: update._distill(state, carry, key))
    for i in range(6):
        key = jax.random.fold_in(jax.random.key(8), i)
        batch_key, noise_key = jax.random.split(key)
        noise = tensors(jax.random.normal(noise_key, (64, update.nets.n))) if distill_from == "normal" else None
        found = theirs.distill(tensors(update._batch(state, batch_key)), noise)
        carry, loss = distill(carry, key)
        assert found == pytest.approx(float(loss), rel=2e-3, abs=2e-4), i
    assert torch.isfinite(torch.tensor(found))
