"""Scenario `controller`: ours, Brax's PPO held between its epochs, stepping alone; on the toy, which compiles in seconds."""

import gc
import queue
import threading
import time

import pytest

from benchmarks import controller, runner
from envs.toy import Toy
from rdp_jax.config import ConfigError

TINY = {"num_envs": 16, "unroll_length": 8, "reset_pool": 4, "iterations": 2}


def brax_threads():
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == "brax"]


def ended(threads, seconds=30.0):
    """Whether no thread is left, after some patience."""
    until = time.monotonic() + seconds
    while threads() and time.monotonic() < until:
        time.sleep(0.05)
    return not threads()


def test_all_three_run_and_are_compared(monkeypatch, tmp_path):
    made = []

    def make_env(part, backend, physics_dt):
        made.append((part, backend, physics_dt))
        return Toy(), Toy().default_params()

    monkeypatch.setattr(controller, "make_env", make_env)
    result = runner.run(
        "controller", out=tmp_path, repeats=2, backend="native", physics_dt=0.005, playground=True, **TINY
    )
    assert made == [("legs", "native", 0.005)]
    cases = result["cases"]
    assert list(cases) == ["native_train", "native_peer", "native_step"]
    for case in cases.values():
        assert case["work"] == 2 * 16 * 8
        assert case["unit"] == "env steps"
        assert case["compile_s"] > case["median_s"]
    assert cases["native_train"]["diverged"] == cases["native_step"]["diverged"] == 0
    assert cases["native_peer"]["brax_sps"] > 0
    assert set(result["ratios"]) == {"native_train_over_peer", "native_train_over_step"}
    assert result["ratios"]["native_train_over_peer"]["median"] > 0
    assert result["missing"].keys() <= {"playground_peer"}
    assert (tmp_path / "controller.json").exists()
    assert ended(brax_threads)


def test_nonsense_is_refused_by_name():
    def refused(match, **settings):
        with pytest.raises(ConfigError, match=match):
            runner.run("controller", out=None, repeats=1, **{**TINY, **settings})

    refused("cases='bullet_train'", cases=("bullet_train",))
    refused("backend='bullet', allowed: native", backend="bullet")
    refused(r"cases=\['native_step'\]", backend="mjx", cases=("native_step",))
    refused("minibatches=3", minibatches=3)
    refused("minibatches=32", minibatches=32)
    refused("num_envs=15", num_envs=15)
    refused("iterations=0", iterations=0)


def fake_train(epochs, happened):
    """Calls back as Brax's `train` does."""

    def train(num_timesteps, num_evals, run_evals, policy_params_fn, progress_fn):
        assert (num_timesteps, num_evals, run_evals) == (7 * controller.EPOCHS, controller.EPOCHS + 1, False)
        policy_params_fn(0, None, None)
        for i in range(1, epochs + 1):
            happened.append(i)
            policy_params_fn(7 * i, None, None)
            progress_fn(7 * i, {"training/sps": 100.0 * i})
        raise RuntimeError("out of epochs")

    return train


def test_brax_works_only_while_it_is_called():
    happened, log = [], {}
    training = controller.BraxTraining(fake_train(3, happened), 7, log)
    assert happened == []
    for i in range(1, 4):
        training()
        assert happened == list(range(1, i + 1))
    assert log["brax_sps"] == [200.0]  # not the first epoch; the last one is told when the next begins
    with pytest.raises(RuntimeError, match="out of epochs"):
        training()
    assert log["brax_sps"] == [200.0, 300.0]
    del training
    assert ended(brax_threads)


def test_brax_ends_with_its_object():
    happened, log = [], {}
    training = controller.BraxTraining(fake_train(3, happened), 7, log)
    training()
    assert len(brax_threads()) == 1
    del training
    assert ended(brax_threads)
    assert happened == [1]


def test_an_error_while_brax_starts_reaches_the_caller():
    def train(**_):
        raise queue.Empty("no networks")

    with pytest.raises(queue.Empty, match="no networks"):
        controller.BraxTraining(train, 7, {})


def test_playground_is_never_imported_to_find_out(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert controller.playground_missing() == "the package mujoco_playground is not installed"
    package = tmp_path / "mujoco_playground"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr("sys.path", [str(package.parent), "elsewhere"])
    assert "without its robots" in controller.playground_missing()
    (package / "external_deps" / "mujoco_menagerie").mkdir(parents=True)
    assert controller.playground_missing() is None
