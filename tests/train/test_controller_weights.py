"""Weights of the controller: those of a policy of the part that is meant, or refused by flag, file and fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from rdp_jax import normalize
from rdp_jax.algos import ppo
from rdp_jax.checkpoint import load_weights, save_weights
from rdp_jax.config import ConfigError
from rdp_jax.nets.mlp import GaussianActor
from train.cli import main
from train.controller_weights import act, load_part, shipped, start_from


def test_weights_of_the_other_part_are_refused_by_the_name_of_their_flag():
    hands = shipped("hands")
    with pytest.raises(ConfigError, match="partner=.*weights of part 'legs'; this file holds 'hands'"):
        load_part("legs", hands, field="partner")
    with pytest.raises(ConfigError, match="legs=.*weights of part 'legs'"):
        load_part("legs", hands)


def without(tree, *names):
    """A copy of nested dictionaries less the entry under `names`."""
    first, *below = names
    return {k: without(v, *below) if k == first else v for k, v in tree.items() if k != first or below}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: without(w, "normalizer"), "lack normalizer/count"),
        (lambda w: without(w, "actor"), "lack actor/log_std"),
        (lambda w: without(w, "actor", "mlp", "layer_0"), "differ in shape of actor/mlp/last/kernel"),
        (lambda w: {**w, "actor": np.zeros(3)}, "lack actor/log_std"),
        (lambda w: {**w, "normalizer": normalize.create(109)}, r"normalizer/mean: now \[110\], saved \[109\]"),
        (lambda w: {**w, "normalizer": jax.tree.map(lambda x: x * np.nan, w["normalizer"])}, "finite numbers"),
    ],
)
def test_weights_that_are_no_policy_of_the_part_are_refused(change, said, tmp_path):
    tree, metadata = load_weights(shipped("legs"))
    path = tmp_path / "legs.safetensors"
    save_weights(path, change(tree), metadata)
    with pytest.raises(ConfigError, match=f"legs='{path}', allowed: weights of part 'legs'; .*{said}"):
        load_part("legs", path)


@pytest.fixture
def small(tmp_path):
    """A file of legs with small hidden layers, and what is in it."""
    params = GaussianActor(12, (8, 4, 2)).init(jax.random.key(0), jnp.zeros(110))["params"]
    path, given = tmp_path / "w.safetensors", {"actor": params, "normalizer": normalize.create(110)}
    save_weights(path, given, {"part": "legs"})
    return path, given


def test_a_policy_may_have_other_hidden_widths(small):
    assert act(load_part("legs", small[0]), {"actor": jnp.zeros(110)}).shape == (12,)


def test_training_starts_from_the_policy_it_is_given_and_explores_afresh(small):
    path, given = small
    fresh = GaussianActor(12, (8, 4, 2), init_std=0.1).init(jax.random.key(1), jnp.zeros(110))["params"]
    fields = dict.fromkeys(ppo.LearnerState.__dataclass_fields__)
    params, told = (
        {"actor": fresh, "critic": jnp.ones(3)},
        {name: normalize.create(110) for name in ("actor", "critic")},
    )
    state = start_from(
        ppo.LearnerState(**{**fields, "params": params, "normalizer": told}), load_part("legs", path), path
    )
    np.testing.assert_array_equal(
        state.params["actor"]["mlp"]["last"]["kernel"], given["actor"]["mlp"]["last"]["kernel"]
    )
    np.testing.assert_array_equal(state.params["actor"]["log_std"], fresh["log_std"])
    np.testing.assert_array_equal(state.params["critic"], jnp.ones(3))


def test_weights_of_another_size_are_refused_before_a_directory_is_taken(small, tmp_path, capsys):
    words = ["controller", "train", "--part", "legs", "--init", str(small[0]), "--out", str(tmp_path / "out")]
    words += ["--backend", "native", "--num-envs", "4", "--ppo.reset-pool", "4", "--ppo.actor-sizes", "8", "8"]
    assert main(words) == 2
    assert "--init: got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # it may be named again


@pytest.mark.parametrize("words", [["eval", "--trials", "1"], ["controller", "eval", "--episodes", "1"]])
def test_bad_weights_are_refused_by_flag_and_file(words, tmp_path, capsys):
    path = tmp_path / "hands.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path, metadata={"json": "[1]"})
    assert main([*words, "--hands", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"--hands: got '{path}', allowed: weights of part 'hands'" in told and "metadata are [1]" in told
