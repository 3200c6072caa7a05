"""`rdp controller train` and `eval` from end to end, on a tiny scale."""

import json

import jax
import numpy as np
import pytest

from rdp_jax.checkpoint import load_weights
from train.cli import main

TINY = [
    "--num-envs",
    "4",
    "--ppo.unroll-length",
    "4",
    "--ppo.reset-pool",
    "4",
    "--ppo.minibatches",
    "2",
    "--ppo.epochs",
    "2",
]
TRAIN = ["controller", "train", "--part", "hands", "--backend", "native", "--seed", "3", *TINY]


def called(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two iterations at once, and one and one."""
    out = tmp_path_factory.mktemp("controller")
    assert main([*TRAIN, "--iterations", "2", "--out", str(out / "straight")]) == 0
    assert main([*TRAIN, "--iterations", "1", "--out", str(out / "parts"), "--tensorboard"]) == 0
    assert main([*TRAIN, "--iterations", "2", "--out", str(out / "parts"), "--resume"]) == 0
    return out


def test_one_and_one_iteration_are_two(trained):
    straight, parts = (load_weights(trained / name / "hands.safetensors")[0] for name in ("straight", "parts"))
    jax.tree.map(np.testing.assert_array_equal, straight, parts)
    told = json.loads((trained / "parts" / "summary.json").read_text())["metrics"]
    assert any((trained / "parts" / "tensorboard").iterdir()) and not (trained / "straight" / "tensorboard").exists()
    assert told["iterations"] == 2 and told["total_env_steps"] == 2 * 4 * 4


def test_a_last_batch_that_is_not_full_counts_as_it_is(trained, capsys):
    words = ["controller", "eval", "--backend", "native", "--hands", trained / "straight" / "hands.safetensors"]
    words += ["--episodes", "3", "--episode-s", "0.2", "--seed", "1"]
    whole, parts = (called(capsys, *words, "--num-envs", n) for n in (3, 2))
    assert whole["metrics"]["episodes"] == parts["metrics"]["episodes"] == 3
    assert whole["metrics"]["survival_rate"] == parts["metrics"]["survival_rate"] == 1.0
    for name in ("hand_position_error_m", "hand_orientation_error_rad"):
        assert parts["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-3)
    assert parts["env_steps"] == 3 * 10


def test_hands_of_other_widths_are_refused_before_anything_is_compiled(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train.controller_train.ppo.init", lambda *_: pytest.fail("compiled"))
    words = [*TRAIN, "--init", str(trained / "straight" / "hands.safetensors"), "--ppo.actor-sizes", "8", "8"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "hidden widths (8, 8)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    other = [*TRAIN, "--seed", "4", "--out", str(trained / "straight"), "--resume"]
    assert main(other) == 2
    assert "seed" in capsys.readouterr().err
