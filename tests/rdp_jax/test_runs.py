"""Runs: exact resume, signals, refusals, damaged files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from rdp_jax import checkpoint, config, metrics, parallel, runs
from rdp_jax.algos import loop, ppo
from rdp_jax.checkpoint import Checkpointer, CheckpointError
from rdp_jax.runs import Run, RunError


def numbers(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def assert_same_bits(a, b):
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_array_equal(x, y)


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.fixture
def go(tiny, tiny_update, env):
    """Runs the tiny PPO up to an iteration in a directory, resuming if told; returns the loop's result."""

    def run_to(out, iterations, resume=False, progress=None, evaluate=None, **settings):
        params = env.default_params()
        state = ppo.init(jax.random.key(3), tiny, env, params)
        settings = loop.LoopConfig(iterations=iterations, **settings)
        with Run(out, config.to_dict(tiny), resume=resume) as run:
            return loop.train(tiny_update, run.restore(state), params, settings, run, evaluate, progress)

    return run_to


def test_a_repository_around_an_installed_package_is_not_its_own(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, *who, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    package = tmp_path / "site-packages" / "runs.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr(runs, "__file__", str(package))
    assert runs.git_revision.__wrapped__() is None
    subprocess.run(["git", "-C", tmp_path, "add", package], check=True)
    assert len(runs.git_revision.__wrapped__().rstrip("+")) == 40


@pytest.fixture(scope="module")
def straight(tiny, tiny_update, env, tmp_path_factory):
    """Six iterations without a break: `(state, directory)`."""
    out, params = tmp_path_factory.mktemp("straight"), env.default_params()
    with Run(out, config.to_dict(tiny)) as run:
        state = ppo.init(jax.random.key(3), tiny, env, params)
        result = loop.train(tiny_update, state, params, loop.LoopConfig(iterations=6), run)
    return result.state, out


def test_three_and_three_are_six(go, straight, tmp_path):
    assert go(tmp_path, 3).stopped_by is None
    result = go(tmp_path, 6, resume=True)
    assert_same_bits(result.state, straight[0])
    assert timeless(lines(tmp_path)) == timeless(lines(straight[1]))
    assert [row["iteration"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_saving_logging_evaluating_change_no_number(tiny, tiny_update, env, straight, tmp_path):
    state, params = ppo.init(jax.random.key(3), tiny, env, env.default_params()), env.default_params()
    settings = loop.LoopConfig(iterations=6, save_every_s=0.0, eval_every=2)
    seen = []
    with Run(tmp_path, config.to_dict(tiny)) as run:
        evaluate = lambda s: seen.append(int(s.iteration)) or {"x": 1.0}  # noqa: E731
        result = loop.train(tiny_update, state, params, settings, run, evaluate)
    assert_same_bits(result.state, straight[0])
    assert [row["iteration"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert ["eval/x" in row for row in lines(tmp_path)] == [False, True] * 3
    assert seen == [2, 4, 6]


class Killed(Exception):
    pass


def test_killed_between_checkpoints(go, straight, tmp_path):
    """It dies after iteration 4, of which the log has lines, but the checkpoint is of iteration 2."""
    go(tmp_path, 2)

    def die(progress):
        if progress.iteration == 4:
            raise Killed

    with pytest.raises(Killed):
        go(tmp_path, 6, resume=True, progress=die)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "rew')  # a line cut short
    result = go(tmp_path, 6, resume=True)
    assert_same_bits(result.state, straight[0])
    assert timeless(lines(tmp_path)) == timeless(lines(straight[1]))


def test_where_saving_is_cheap_a_kill_loses_little(go, tmp_path, monkeypatch):
    """Saving takes 0.05 s here: with a share of 1 there is time for it every few iterations, with a tiny one after the first."""
    real, saved = Run.save, {}

    def slow(run, iteration, state):
        time.sleep(0.05)
        saved.setdefault(run.out.name, []).append(iteration)
        real(run, iteration, state)

    def die(progress):
        time.sleep(0.2)
        if progress.iteration == 6:
            raise Killed

    monkeypatch.setattr(Run, "save", slow)
    for name, share in (("often", 1.0), ("seldom", 1e-4)):
        with pytest.raises(Killed):
            go(tmp_path / name, 9, progress=die, save_share=share)
    assert saved["seldom"] == [1] and len(saved["often"]) >= 3


def test_a_state_that_goes_on_needs_no_program_of_its_own(go, tiny_update, tmp_path):
    """Arrays that are bound to a device are other arguments, for which all would be compiled once more."""
    go(tmp_path, 1)
    compiled = tiny_update.cache_size()
    state = go(tmp_path, 2, resume=True).state
    assert tiny_update.cache_size() == compiled
    with Run(tmp_path, read_config(tmp_path), resume=True) as run:
        assert not any(x.committed for x in jax.tree.leaves(run.restore(state)))


def read_config(out):
    return json.loads((out / "config.json").read_text())["config"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves_first(go, straight, tmp_path, number):
    ours, before = signal.signal(number, signal.default_int_handler), signal.default_int_handler  # nohup ignores SIGHUP
    result = go(tmp_path, 6, progress=lambda p: os.kill(os.getpid(), number) if p.iteration == 2 else None)
    assert result.stopped_by == number
    assert int(result.state.iteration) == 2
    assert signal.getsignal(number) is (
        signal.SIG_DFL if number == signal.SIGTERM else before
    )  # the next one is heeded
    signal.signal(number, ours)
    assert_same_bits(go(tmp_path, 6, resume=True).state, straight[0])


def test_directory_describes_itself(straight, tiny):
    saved = json.loads((straight[1] / "config.json").read_text())
    assert config.from_dict(ppo.PPOConfig, saved["config"]) == tiny
    assert saved["versions"]["jax"] == jax.__version__
    assert "git" in saved
    row = lines(straight[1])[0]  # after ten steps of 24 hardly an episode has ended, but none is silently a number
    assert row["episode/return"] is None or row["episode/finished"] > 0


def test_refusals(straight, tiny, tmp_path):
    saved = config.to_dict(tiny)
    with pytest.raises(RunError, match="not empty"):
        Run(straight[1], saved)
    with pytest.raises(RunError, match=r"gamma=0\.98, now 0\.5"):
        Run(straight[1], {**saved, "gamma": 0.5}, resume=True)
    with pytest.raises(RunError, match="not a run"):
        Run(tmp_path, saved, resume=True)


def test_one_process_at_a_time(straight, tiny, tmp_path):
    program = f"""
import json, sys
from rdp_jax.runs import Run, RunError
try:
    Run({str(tmp_path / "run")!r}, {{"a": 1}}, resume=True)
except RunError as error:
    sys.exit(str(error))
"""

    def another():
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    with Run(tmp_path / "run", {"a": 1}):
        held = another()
        assert held.returncode == 1 and "in use by another process" in held.stderr
    assert another().returncode == 0


def test_a_run_that_is_done_tells_its_last_metrics(go, straight, tmp_path):
    shutil.copytree(straight[1], tmp_path / "run")
    result = go(tmp_path / "run", 6, resume=True)
    told = {name: None if np.isnan(value) else value for name, value in timeless([result.metrics])[0].items()}
    assert {"iteration": 6, **told} == timeless(lines(straight[1]))[-1]


def test_checkpoint_of_another_config_or_network(straight, tiny, tiny_state):
    folder, saved = straight[1] / "checkpoints", config.to_dict(tiny)
    with pytest.raises(CheckpointError, match=r"config clip: now 0\.3, saved 0\.2"):
        Checkpointer(folder, {**saved, "clip": 0.3}).restore(tiny_state)
    with pytest.raises(CheckpointError, match=r"differs in array .*now None, saved"):
        Checkpointer(folder, saved).restore(tiny_state.replace(env=()))
    assert_same_bits(Checkpointer(folder, saved).restore(tiny_state), straight[0])


def test_empty_arrays_come_back(tmp_path):
    # A gym model has no sensors; Orbax refuses arrays without elements.
    spread = parallel.shardings(PartitionSpec(parallel.AXIS), parallel.make_mesh(2))
    state = {"sensors": jax.device_put(jnp.zeros((4, 0)), spread), "x": jnp.arange(3.0)}
    saver = Checkpointer(tmp_path, {})
    saver.save(1, state)
    found = saver.restore({**state, "x": jnp.zeros(3)})
    assert_same_bits(found, state)
    # The compiled iteration of several devices takes nothing else.
    assert found["sensors"].sharding == spread
    with pytest.raises(CheckpointError, match="sensors"):
        saver.restore({**state, "sensors": jnp.zeros((5, 0))})
    saver.close()


def test_two_parts_of_one_name_are_refused(tmp_path):
    """A dictionary of them would silently lose one."""
    with pytest.raises(CheckpointError, match="more than one part of the state is called reward_near"):
        Checkpointer(tmp_path / "c", {}).save(1, {"reward/near": jnp.zeros(1), "reward_near": jnp.zeros(1)})


def test_keeps_the_last(tmp_path):
    saver = Checkpointer(tmp_path, {}, keep=2)
    for i in range(5):
        saver.save(i, {"x": jnp.float32(i)})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["3", "4"]
    assert float(saver.restore({"x": jnp.float32(0)}, 3)["x"]) == 3.0


@pytest.mark.parametrize("how", ["truncate", "metadata"])
def test_damaged_checkpoint(tmp_path, how):
    state = {"x": jnp.arange(100_000.0)}
    Checkpointer(tmp_path, {}).save(1, state)
    if how == "metadata":
        next((tmp_path / "1" / "meta").glob("*")).unlink()
    else:
        for file in (tmp_path / "1" / "state").rglob("*"):
            if file.is_file() and "METADATA" not in file.name and "sharding" not in file.name:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        Checkpointer(tmp_path, {}).restore(state)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpointer(tmp_path / "empty", {}).restore(state)


def test_weights(tiny_state, tmp_path):
    tree, path = {"params": tiny_state.params, "normalizer": tiny_state.normalizer}, tmp_path / "w.safetensors"
    checkpoint.save_weights(path, tree, {"env": "toy", "sizes": [16]})
    loaded, metadata = checkpoint.load_weights(path, tree)
    assert_same_bits(loaded, tree)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert metadata == {"env": "toy", "sizes": [16]}
    obs = {"actor": jnp.ones((3, 4))}
    np.testing.assert_array_equal(
        ppo.policy(loaded["params"], loaded["normalizer"], obs), ppo.policy(*tree.values(), obs)
    )
    wrong = {**tree, "params": {**tree["params"], "critic": {"w": jnp.zeros(2)}}}
    with pytest.raises(CheckpointError, match=r"lack params/critic/w, of shape \[2\]"):
        checkpoint.load_weights(path, wrong)
    wide = {**tree, "normalizer": jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), tree["normalizer"])}
    with pytest.raises(CheckpointError, match=r"differ in shape of normalizer/actor/count: now \[2\], saved \[\]"):
        checkpoint.load_weights(path, wide)
    spoiled = tmp_path / "nan.safetensors"
    checkpoint.save_weights(spoiled, {"layer": {"w": jnp.array([1.0, jnp.nan])}})
    with pytest.raises(CheckpointError, match="layer/w does not hold finite numbers only"):
        checkpoint.load_weights(spoiled)
    save_file({"w": np.zeros(1)}, spoiled, metadata={"json": "[1]"})
    with pytest.raises(CheckpointError, match=r"metadata are \[1\], expected an object"):
        checkpoint.load_weights(spoiled)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load_weights(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load_weights(tmp_path / "none.safetensors")


def test_json_has_no_nan(tmp_path):
    sink = metrics.JsonlSink(tmp_path / "m.jsonl")
    sink.write(1, {"a": jnp.float32(jnp.nan), "b": np.float32(0.5), "c": np.int32(3)})
    assert lines_of(tmp_path / "m.jsonl") == [{"iteration": 1, "a": None, "b": 0.5, "c": 3}]  # flushed, not yet closed
    sink.close()


def test_tensorboard_where_it_is_asked_for(tmp_path):
    out = tmp_path / "run"
    for resume, iteration in ((False, 1), (True, 2)):
        with Run(out, {"a": 1}, resume, tensorboard=True) as run:
            run.log(iteration, {"loss/policy": 0.5, "loss/value": jnp.nan})
            run.save(iteration, {"x": jnp.zeros(1)})
    files = [path.read_bytes() for path in (out / "tensorboard").iterdir()]
    assert len(files) == 2
    assert all(b"loss/policy" in content and b"loss/value" not in content for content in files)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
