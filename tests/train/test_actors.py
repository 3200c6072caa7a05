"""Run directories act as what they hold."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.core import EnvSpec
from rdp_jax import normalize
from rdp_jax.algos import dsrl
from rdp_jax.algos.residual import ResidualActor
from rdp_jax.checkpoint import CheckpointError, save_weights
from rdp_jax.config import ConfigError, to_dict
from rdp_jax.nets.mlp import GaussianActor
from rdp_jax.planner import Dims, save
from rdp_jax.steer import NoiseActor, PlannerBase, learned
from train.actors import CORRECTION, NOISE_ACTOR, find_actor
from train.presets import task_dsrl
from train.sampling import with_first_std
from train.task_args import EvalArgs
from train.tasks import check_fits, find_planner, weights_of, with_std_as_data


@pytest.fixture(scope="module")
def planner():
    return find_planner(None, "pickup", "pretrained")


def chunk(actor, weights, planner):
    obs = jnp.zeros((2, planner.config.history * planner.dims.frame))
    return np.asarray(actor.act(*weights, obs, jax.random.split(jax.random.key(0), 2)))


def test_a_planner_alone_acts_itself(planner, tmp_path):
    save(tmp_path / "planner.safetensors", planner)
    own = chunk(planner.actor(), weights_of(planner), planner)
    for run in (None, tmp_path, tmp_path / "planner.safetensors"):
        np.testing.assert_array_equal(chunk(*find_actor(run, planner), planner), own)


def test_the_std_of_the_first_sample_may_be_data(planner):
    quiet = with_first_std(planner, 0.25)
    shared, weights = with_std_as_data(quiet)
    assert shared.config == with_std_as_data(planner)[0].config  # one program for both
    obs = jnp.zeros((2, planner.config.history * planner.dims.frame))
    keys = jax.random.split(jax.random.key(0), 2)
    got = shared.actor().act(weights[0], weights[1], obs, keys, False, weights[2])
    np.testing.assert_array_equal(got, chunk(quiet.actor(), weights_of(quiet), planner))
    assert (np.asarray(got) != chunk(planner.actor(), weights_of(planner), planner)).any()


def test_steering_comes_back(planner, tmp_path):
    config = task_dsrl("cpu")
    base = PlannerBase(planner.config, planner.dims)
    nets = dsrl.Networks(config, base, 5)
    obs_dim = planner.config.history * planner.dims.frame
    actor = nets.init(jax.random.key(1), planner.bundle, obs_dim)["actor"]
    save_weights(tmp_path / NOISE_ACTOR, {"actor": actor}, {"config": {"dsrl": to_dict(config), "ddim_steps": None}})
    found, weights = find_actor(tmp_path, planner)
    assert isinstance(found, NoiseActor)
    direct = NoiseActor(planner, learned(config, base, 5))
    np.testing.assert_allclose(
        chunk(found, weights, planner), chunk(direct, (planner.bundle, actor), planner), atol=1e-6
    )


def test_what_was_learned_for_another_planner_is_refused(planner, tmp_path):
    obs_dim = planner.config.history * planner.dims.frame
    width = obs_dim + planner.config.executed * planner.dims.action
    net = GaussianActor(planner.dims.action, (8,)).init(jax.random.key(0), jnp.zeros((1, width + 1)))["params"]
    save_weights(tmp_path / CORRECTION, {"actor": net, "normalizer": normalize.create(width + 1)}, {"scale": 0.1})
    with pytest.raises(CheckpointError, match=r"residual.safetensors does not fit the planner beside it: "):
        find_actor(tmp_path, planner)
    (tmp_path / CORRECTION).unlink()
    config, base = task_dsrl("cpu"), PlannerBase(planner.config, planner.dims)
    actor = dsrl.Networks(config, base, 5).init(jax.random.key(1), planner.bundle, obs_dim)["actor"]
    cut = jax.tree.map(lambda x: x[:-1] if x.ndim == 2 else x, actor)
    save_weights(tmp_path / NOISE_ACTOR, {"actor": cut}, {"config": {"dsrl": to_dict(config), "ddim_steps": None}})
    with pytest.raises(CheckpointError, match=r"noise_actor.safetensors does not fit the planner beside it: "):
        find_actor(tmp_path, planner)


def test_a_correction_comes_back(planner, tmp_path):
    width = planner.config.history * planner.dims.frame + planner.config.executed * planner.dims.action
    net = GaussianActor(planner.dims.action, (8,)).init(jax.random.key(0), jnp.zeros((1, width)))["params"]
    weights = {"actor": net, "normalizer": normalize.create(width)}
    save_weights(tmp_path / CORRECTION, weights, {"scale": 0.1})
    found, given = find_actor(tmp_path, planner)
    assert isinstance(found, ResidualActor)
    assert chunk(found, given, planner).shape == (2, planner.config.executed * planner.dims.action)
    save_weights(tmp_path / CORRECTION, {"actor": net}, {})
    with pytest.raises(CheckpointError, match="no correction"):
        find_actor(tmp_path, planner)


def test_a_run_is_judged_with_its_own_controller(tmp_path):
    (tmp_path / "legs.safetensors").touch()
    assert EvalArgs(run=tmp_path).resolved().legs == tmp_path / "legs.safetensors"
    assert EvalArgs(run=tmp_path).resolved().hands is None
    other = tmp_path / "other.safetensors"
    assert EvalArgs(run=tmp_path, legs=other).resolved().legs == other
    assert EvalArgs().resolved().legs is None


def test_more_denoising_steps_than_the_planner_has_are_refused(planner):
    assert PlannerBase(planner.config, planner.dims, planner.config.diffusion.steps).policy
    with pytest.raises(ConfigError, match=r"ddim_steps=101, allowed: 1 \.\. 100"):
        PlannerBase(planner.config, planner.dims, 101)


def test_a_planner_of_infinite_numbers_is_refused(planner, tmp_path):
    save(
        tmp_path / "planner.safetensors",
        dataclasses.replace(planner, bundle=jax.tree.map(lambda x: x / 0.0, planner.bundle)),
    )
    with pytest.raises(CheckpointError, match="planner.safetensors cannot be used: .* finite numbers"):
        find_planner(tmp_path, "pickup")


@pytest.mark.parametrize(("frame", "action", "said"), [(0, 2, "actions of width 23; its actions have width 25"),
                                                       (1, 0, "observations of width 368; its observations have width 376")])  # fmt: skip
def test_a_planner_for_other_widths_is_refused(frame, action, said, planner):
    spec = EnvSpec("pickup", {"actor": 368}, 23, 0.1, 100)
    env = SimpleNamespace(spec=spec)
    check_fits(planner, env)
    dims = Dims(planner.dims.frame + frame, planner.dims.action + action)
    with pytest.raises(ConfigError, match=f"planner='this planner', allowed: one for pickup, with {said}"):
        check_fits(dataclasses.replace(planner, dims=dims), env)
