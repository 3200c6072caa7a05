"""Planners on disk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdp_jax.checkpoint import CheckpointError, load_weights, save_weights
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import Bundle, Dims, Planner, PlannerConfig, load, make_policy, save

CONFIG = PlannerConfig(
    net=NetConfig(kind="mlp", sizes=(8, 8, 8)),
    diffusion=DiffusionConfig(steps=4, sampler="ddim", ddim_steps=2, first_std=0.5, step_noise=1.0),
    horizon=2,
    executed=2,
    history=1,
)


@pytest.fixture
def tuned():
    """A planner whose last step is fine-tuned, and whose first one still runs on the frozen weights."""
    policy = make_policy(CONFIG, Dims(4, 2))
    frozen, learned = (policy.init(jax.random.key(i), 4) for i in range(2))
    bounds = MinMax(jnp.full(4, -1.0), jnp.full(4, 1.0)), MinMax(jnp.full(2, -1.0), jnp.full(2, 1.0))
    return Planner(CONFIG, Dims(4, 2), Bundle(learned, *bounds), frozen, 1, {"task": "toy"})


def test_what_was_saved_is_what_is_loaded(tuned, tmp_path):
    save(tmp_path / "planner.safetensors", tuned)
    found = load(tmp_path / "planner.safetensors")
    assert (found.config, found.dims, found.tuned_steps) == (tuned.config, tuned.dims, 1)
    for a, b in zip(
        jax.tree.leaves((found.bundle, found.base)), jax.tree.leaves((tuned.bundle, tuned.base)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("missing", ["weights", "base", "a layer of the base"])
def test_a_file_without_the_weights_that_it_speaks_of_is_refused(missing, tuned, tmp_path):
    path = tmp_path / "planner.safetensors"
    save(path, tuned)
    tree, metadata = load_weights(path)
    if missing == "weights":
        del tree["bundle"]["weights"]
    elif missing == "base":
        del tree["base"]
    else:
        tree["base"].pop(next(iter(tree["base"])))
    save_weights(path, tree, metadata)
    with pytest.raises(CheckpointError, match=r"damaged planner|do not fit"):
        load(path)


def test_a_number_of_tuned_steps_that_is_none_is_refused(tuned, tmp_path):
    path = tmp_path / "planner.safetensors"
    save(path, dataclasses.replace(tuned, tuned_steps=0, base=None))
    tree, metadata = load_weights(path)
    save_weights(path, tree, {**metadata, "tuned_steps": "some"})
    with pytest.raises(CheckpointError, match="damaged planner"):
        load(path)
