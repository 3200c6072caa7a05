"""`rdp pretrain`, `finetune` and `dsrl` from end to end, tiny, on hopper: learn, stop, go on, judge what was written."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from rdp_jax.algos import bc
from rdp_jax.checkpoint import load_weights
from rdp_jax.data import episodes as E
from rdp_jax.planner import load, save
from train.actors import NOISE_ACTOR
from train.cli import main
from train.sampling import with_first_std
from train.task_args import TaskFlags
from train.tasks import GymStage, keep_planner

TINY_NET = ["--planner.net.sizes", "32", "32", "32"]


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    """Directory of a planner that imitates noise."""
    out = tmp_path_factory.mktemp("imitation")
    rng = np.random.default_rng(0)
    obs, action = [rng.normal(size=(40, 11))] * 8, [np.tanh(rng.normal(size=(40, 3)))] * 8
    found = E.from_lists(obs, action, [np.zeros(40)] * 8, [True] * 8, list(range(8)), metadata={"task": "hopper"})
    E.save(out / "episodes.safetensors", found)
    words = ["pretrain", "--preset", "gym", "--task", "hopper", "--data", str(out / "episodes.safetensors")]
    words += ["--epochs", "2", "--bc.batch", "32", "--trials", "0", *TINY_NET, "--out", str(out / "planner")]
    assert main(words) == 0
    return out / "planner"


def run(capsys, *words):
    """The summary that `rdp WORDS` prints."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def weights(directory):
    """All numbers of the planner in a run directory."""
    return [np.asarray(x) for x in jax.tree.leaves(load(directory / "planner.safetensors").bundle.weights)]


def test_no_passes_leave_random_weights_with_the_bounds_of_the_data(planner, tmp_path, capsys):
    words = ["pretrain", "--preset", "gym", "--task", "hopper", "--data", str(planner.parent / "episodes.safetensors")]
    words += ["--epochs", "0", "--trials", "0", *TINY_NET]
    record = run(capsys, *words, "--out", str(tmp_path / "blank"))
    assert record["metrics"]["gradient_steps"] == 0 and record["metrics"]["loss"] is None
    blank, taught = (load(place / "planner.safetensors") for place in (tmp_path / "blank", planner))
    for name in ("obs", "action"):
        mine, theirs = getattr(blank.bundle, name), getattr(taught.bundle, name)
        assert np.array_equal(mine.lo, theirs.lo) and np.array_equal(mine.hi, theirs.hi)
    assert any((a != b).any() for a, b in zip(weights(planner), weights(tmp_path / "blank"), strict=True))
    run(capsys, *words, "--seed", "1", "--out", str(tmp_path / "another"))
    pairs = zip(weights(tmp_path / "another"), weights(tmp_path / "blank"), strict=True)
    assert any((a != b).any() for a, b in pairs)


def test_finetune_learns_goes_on_and_can_be_judged(planner, tmp_path, capsys):
    words = ["finetune", "--preset", "gym", "--task", "hopper", "--planner", str(planner / "planner.safetensors")]
    words += ["--num-envs", "8", "--dppo.unroll-length", "4", "--dppo.minibatches", "2", "--dppo.epochs", "1"]
    words += ["--dppo.critic-warmup", "0", "--dppo.reset-pool", "8", "--trials", "0", "--out", str(tmp_path / "tuned")]
    words += ["--explore-std", "0.2", "--explore-correlation", "0.5"]
    first = run(capsys, *words, "--iterations", "1")
    # How it is sampled in the end does not matter to what is learned.
    again = run(capsys, *words, "--iterations", "2", "--resume", "--final-std", "0.25")
    assert first["metrics"]["success_rate_before"] is first["metrics"]["success_rate_after"] is None
    assert first["metrics"]["iterations"] == 1 and again["metrics"]["iterations"] == 2
    assert again["metrics"]["env_steps"] == 2 * first["metrics"]["env_steps"] == 2 * 8 * 4 * 4
    assert again["env_steps"] == first["env_steps"] == 8 * 4 * 4  # of one call, as wall_s is
    described = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert described["asked"]["iterations"] == 1 and described["asked"]["planner"] == words[6]
    (call,) = described["resumed"]
    assert call["asked"]["iterations"] == 2 and call["asked"]["final_std"] == [0.25]
    assert len((tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()) == 2
    before, after = weights(planner), weights(tmp_path / "tuned")
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    explored = load(tmp_path / "tuned" / "planner.safetensors").config.diffusion
    assert (explored.min_std, explored.correlation, explored.first_std) == (0.2, 0.5, 0.25)
    judged = run(capsys, "eval", "--task", "hopper", "--run", str(tmp_path / "tuned"), "--trials", "2")
    assert judged["metrics"]["trials"] == 2 and np.isfinite(judged["metrics"]["return"])


@pytest.fixture
def imitate(planner):
    """Words of `rdp pretrain` of the planner's demonstrations, tiny."""
    words = ["pretrain", "--preset", "gym", "--task", "hopper", "--bc.batch", "32", "--trials", "0", *TINY_NET]
    return [*words, "--data", str(planner.parent / "episodes.safetensors")]


def test_a_run_with_nothing_left_to_do_keeps_its_figures(imitate, tmp_path, capsys):
    words = [*imitate, "--epochs", "2", "--out", str(tmp_path / "run")]
    done, again = run(capsys, *words), run(capsys, *words, "--resume")
    assert done["metrics"]["loss"] > 0.0 and again["metrics"] == done["metrics"]


def test_passes_are_as_many_as_asked_for(imitate, tmp_path, capsys):
    found = {}
    for epochs in (3, 7):
        words = [*imitate, "--bc.epochs-per-call", "5", "--epochs", str(epochs), "--out", str(tmp_path / str(epochs))]
        found[epochs] = run(capsys, *words)["metrics"]["gradient_steps"]
    assert found[3] * 7 == found[7] * 3


def test_imitation_that_is_stopped_says_so(imitate, tmp_path, capsys, monkeypatch):
    update = bc.Update.__call__

    def interrupted(self, state, data):
        os.kill(os.getpid(), signal.SIGTERM)
        return update(self, state, data)

    monkeypatch.setattr(bc.Update, "__call__", interrupted)
    words = [*imitate, "--epochs", "4", "--bc.epochs-per-call", "1", "--out", str(tmp_path / "run")]
    first = run(capsys, *words)["metrics"]
    assert first["stopped_by"] == signal.SIGTERM
    monkeypatch.setattr(bc.Update, "__call__", update)
    again = run(capsys, *words, "--resume")["metrics"]
    assert again["stopped_by"] is None and again["gradient_steps"] == 4 * first["gradient_steps"]


def test_imitation_does_not_go_on_with_other_demonstrations(imitate, tmp_path, capsys):
    path = tmp_path / "episodes.safetensors"
    found = E.load(imitate[-1])
    words = [*imitate[:-1], str(path), "--epochs", "1", "--out", str(tmp_path / "run")]
    E.save(path, found)
    run(capsys, *words)
    E.save(path, dataclasses.replace(found, obs=found.obs * 2.0), overwrite=True)
    assert main([*words, "--resume"]) == 2
    assert "data=" in capsys.readouterr().err


def test_what_is_learned_is_kept_without_being_asked(imitate, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, *imitate, "--epochs", "1")
    (found,) = (tmp_path / "runs").iterdir()
    assert found.name.startswith("pretrain-") and load(found / "planner.safetensors")
    assert (found / "summary.json").is_file()


def test_a_directory_whose_planner_is_steered_is_no_start(planner, tmp_path, capsys):
    shutil.copy(planner / "planner.safetensors", tmp_path)
    (tmp_path / NOISE_ACTOR).touch()
    words = ["finetune", "--preset", "gym", "--task", "hopper", "--planner", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert NOISE_ACTOR in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_goes_on_from_what_it_began_with_wherever_that_is_now(planner, tmp_path, capsys):
    given, moved, other = (
        planner / "planner.safetensors",
        tmp_path / "moved.safetensors",
        tmp_path / "other.safetensors",
    )
    loaded = load(given)
    save(moved, loaded)
    weights = jax.tree.map(lambda x: x + 1e-6, loaded.bundle.weights)
    save(other, dataclasses.replace(loaded, bundle=loaded.bundle.replace(weights=weights)))
    words = [
        "finetune",
        "--preset",
        "gym",
        "--task",
        "hopper",
        "--algo",
        "residual",
        "--num-envs",
        "4",
        "--trials",
        "0",
    ]
    words += ["--residual.unroll-length", "4", "--residual.minibatches", "2", "--residual.reset-pool", "4"]
    words += ["--out", str(tmp_path / "run"), "--planner"]
    run(capsys, *words, str(given), "--iterations", "1")
    assert main([*words, str(other), "--iterations", "2", "--resume"]) != 0
    assert "weights.planner=" in capsys.readouterr().err
    assert run(capsys, *words, str(moved), "--iterations", "2", "--resume")["metrics"]["iterations"] == 2


def test_planners_that_could_not_be_judged_are_not_trained(planner, tmp_path, capsys):
    words = ["pretrain", "--task", "hopper", "--data", str(planner.parent / "episodes.safetensors")]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2  # without --preset gym, eight frames
    assert "--planner.history: got 8, allowed: 1 for hopper" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_the_planner_is_refused_before_there_is_a_directory(planner, tmp_path, capsys):
    words = ["finetune", "--preset", "gym", "--task", "hopper", "--planner", str(planner / "planner.safetensors")]
    assert main([*words, "--dppo.tuned-steps", "21", "--dppo.quiet-steps", "0", "--out", str(tmp_path / "run")]) == 2
    assert "tuned-steps" in capsys.readouterr().err and not (tmp_path / "run").exists()
    words = ["pretrain", "--task", "hopper", "--data", str(tmp_path), "--bc.lr", "1e-5", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert (
        "lr-min: got 0.0001, allowed: at most lr=1e-05" in capsys.readouterr().err and not (tmp_path / "run").exists()
    )


def test_planners_without_noise_are_no_start_where_there_is_nothing_else_to_choose(planner, capsys, monkeypatch):
    learned = load(planner / "planner.safetensors")
    gaussian = dataclasses.replace(learned.config.net, kind="gaussian-mlp")
    other = dataclasses.replace(learned, config=dataclasses.replace(learned.config, net=gaussian))
    monkeypatch.setattr("train.learning.find_planner", lambda *_: other)
    words = ["--preset", "gym", "--task", "hopper", "--planner", str(planner / "planner.safetensors")]
    for command in (["dsrl"], ["finetune", "--algo", "residual"]):
        assert main([*command, *words]) == 2
        assert "--planner: got" in (said := capsys.readouterr().err) and "a diffusion planner" in said
    assert main(["finetune", *words]) == 2
    assert "--algo: got 'dppo', allowed: gaussian-ppo" in capsys.readouterr().err


def test_the_controller_under_which_a_planner_learned_lies_beside_it(planner, tmp_path):
    given, out = tmp_path / "hands.safetensors", tmp_path / "out"
    out.mkdir()
    given.write_bytes(b"weights")
    learned = load(planner / "planner.safetensors")
    keep_planner(TaskFlags(hands=given), learned)  # nowhere to put anything
    assert not list(out.iterdir())
    keep_planner(TaskFlags(out=out, hands=given), learned)
    assert {place.name for place in out.iterdir()} == {"hands.safetensors", "planner.safetensors"}
    assert TaskFlags().under_controller_of(out).hands.read_bytes() == b"weights"
    keep_planner(TaskFlags(out=out, hands=out / "hands.safetensors"), learned)  # of a run that began from where it is
    assert (out / "hands.safetensors").read_bytes() == b"weights"


def test_a_correction_leaves_the_planner_alone_and_is_judged_with_it(planner, tmp_path, capsys):
    words = ["finetune", "--preset", "gym", "--task", "hopper", "--planner", str(planner / "planner.safetensors")]
    words += ["--algo", "residual", "--num-envs", "4", "--residual.unroll-length", "4", "--residual.minibatches", "2"]
    words += ["--residual.reset-pool", "4", "--trials", "0", "--iterations", "1", "--out", str(tmp_path / "residual")]
    assert run(capsys, *words)["env_steps"] == 4 * 4 * 4
    assert all((a == b).all() for a, b in zip(weights(planner), weights(tmp_path / "residual"), strict=True))
    judge = ["eval", "--task", "hopper", "--run", str(tmp_path / "residual"), "--trials", "2"]
    assert np.isfinite(run(capsys, *judge)["metrics"]["return"])
    # Exploring means sampling the planner, and would leave its correction out.
    assert main([*judge, "--explore-std", "0.1"]) == 2
    assert "--run: got" in capsys.readouterr().err


def test_dsrl_goes_on_and_leaves_the_planner_alone(planner, tmp_path, capsys):
    words = ["dsrl", "--preset", "gym", "--task", "hopper", "--planner", str(planner / "planner.safetensors")]
    words += ["--num-envs", "4", "--dsrl.updates", "1", "--dsrl.distillations", "1"]
    words += ["--dsrl.batch", "8", "--dsrl.capacity", "64", "--dsrl.warmup", "1", "--dsrl.critic-warmup", "0"]
    words += ["--dsrl.sizes", "16", "16", "--dsrl.reset-pool", "4", "--out", str(tmp_path / "steered")]
    run(capsys, *words, "--trials", "0", "--iterations", "2")
    steered = load_weights(tmp_path / "steered" / NOISE_ACTOR)[0]
    # What is asked of the judgement at the end is no setting of the run.
    more = ["--resume", "--trials", "2", "--eval-every", "3", "--controls", "--tickets", "4"]
    metrics = run(capsys, *words, "--iterations", "3", *more)["metrics"]
    moved = load_weights(tmp_path / "steered" / NOISE_ACTOR)[0]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(steered), jax.tree.leaves(moved), strict=True))
    assert metrics["iterations"] == 3 and metrics["base_unchanged"]
    assert metrics["evaluations"] == {"3": {"return": metrics["return_after"]}}
    assert all((a == b).all() for a, b in zip(weights(planner), weights(tmp_path / "steered"), strict=True))
    judge = ["eval", "--task", "hopper", "--run", str(tmp_path / "steered"), "--trials", "2", "--first-std", "0"]
    assert main(judge) == 2  # what its actor chooses would be what is judged all the same
    assert "--first-std: got 0.0" in capsys.readouterr().err


def test_a_stage_compiles_once_whatever_weights_it_judges(planner):
    stage, one = GymStage(TaskFlags(task="hopper", num_envs=2)), load(planner / "planner.safetensors")
    other = dataclasses.replace(one, bundle=jax.tree.map(lambda x: 0.5 * x, one.bundle))
    for given in (one, other, with_first_std(one, 0.5)):
        stage.judge(given, seed=0, trials=2)
    (play,) = stage._plays.values()
    assert play._cache_size() == 1
