"""Bad input of the task commands: exit 2, the field, the value, what is allowed, and nothing written."""

import dataclasses

import numpy as np
import pytest

from envs.tasks.hierarchy import Hierarchy, PlannerParams
from rdp_jax.algos import dppo, dsrl, ppo
from rdp_jax.data import episodes as E
from train import cli
from train.cli import main
from train.dsrl import run_dsrl
from train.finetune import run_finetune
from train.refine import run_refine
from train.task_args import DSRLArgs, FinetuneArgs, RefineArgs
from train.tasks import HumanoidStage

BAD = (
    (["collect", "--task", "juggling", "--out", "OUT"], "--task"),
    (["collect", "--episodes", "0", "--out", "OUT"], "--episodes: got 0"),
    (["collect", "--episodes", "2"], "--out: got None"),
    (["teleop", "--task", "hopper", "--out", "OUT"], "--task"),
    (["teleop"], "--out: got None"),
    (["teleop", "--out", "OUT", "--resume"], "--resume: got True"),
    (["teleop", "--out", "OUT", "--port", "65536"], "--port: got 65536, allowed: 0 .. 65535"),
    (["teleop", "--out", "OUT", "--episodes", "0"], "--episodes: got 0"),
    (["teleop", "--out", "OUT", "--num-envs", "2"], "--num-envs: got 2, allowed: 1 .. 1"),
    (["eval", "--trials", "-1"], "--trials: got -1"),
    (["eval", "--start-range", "nan"], "--start-range"),
    (["eval", "--run", "nowhere"], "nowhere"),
    (["eval", "--which", "expert", "--first-std", "0.5"], "--which: got 'expert'"),
    (["eval", "--which", "expert", "--explore-std", "0.1"], "--which: got 'expert'"),
    (["eval", "--which", "pretrained", "--run", "DATA"], "--which: got 'pretrained', allowed: left out with --run"),
    (["eval", "--task", "hopper", "--physics-dt", "0.01"], "--physics-dt: got 0.01, allowed: left out"),
    (["play", "--run", "DATA", "--out", "OUT"], "no planner"),
    (["pretrain", "--data", "nowhere"], "--data: got 'nowhere'"),
    (["pretrain", "--data", "DATA", "--planner.executed", "13"], "--planner.executed: got 13"),
    (["pretrain", "--data", "DATA", "--demonstrations", "3"], "--demonstrations: got 3, allowed: 1 .. 2"),
    (["pretrain", "--data", "DATA", "--task", "transport"], "--task: got 'transport'"),
    (["finetune", "--planner", "nowhere"], "--planner: got 'nowhere'"),
    (["finetune", "--planner", "DATA", "--out", "OUT"], "no planner"),
    (["finetune", "--dppo.minibatches", "7"], "--dppo.minibatches: got 7"),
    (["finetune", "--algo", "residual", "--explore-std", "0.1"], "--algo: got 'residual'"),
    (["finetune", "--dppo.critic-sizes", "32", "32"], "--dppo.critic-sizes: got (32, 32), allowed: an odd number"),
    (["refine", "--task", "door", "--practice-radius", "0.05"], "--practice-radius: got 0.05, allowed: left out"),
    (["finetune", "--preset", "gym", "--practice-range", "2"], "--practice-range: got 2.0, allowed: left out"),
    (["refine", "--practice-dt", "0.003"], "--practice-dt: got 0.003, allowed: 0.002"),
    (["dsrl", "--preset", "gym", "--practice-dt", "0.01"], "--practice-dt: got 0.01, allowed: left out"),
    (["finetune", "--task", "transport", "--practice-radius", "0"], "--practice-radius: got 0.0, allowed: 0.01"),
    (["pretrain", "--data", "DATA", "--net", "mlp", "--planner.net.sizes", "8", "16", "8"], "--planner.net.sizes: got"),
)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "episodes.safetensors"
    rng = np.random.default_rng(0)
    E.save(
        path,
        E.from_lists(
            [rng.normal(size=(4, 46))] * 2,
            [rng.normal(size=(4, 23))] * 2,
            [np.zeros(4)] * 2,
            [True] * 2,
            [0, 1],
            metadata={"task": "pickup"},
        ),
    )
    return path


@pytest.mark.parametrize(("words", "complaint"), BAD)
def test_bad_input_is_refused_before_anything_is_written(words, complaint, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = [{"OUT": str(out), "DATA": str(data)}.get(word, word) for word in words]
    assert main(words) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("command", "name"), [(c, n) for c in ("eval", "finetune", "refine", "dsrl") for n in ("run", "planner")]
)
def test_a_run_directory_brings_its_controller(command, name, tmp_path):
    for file in ("planner", "legs"):
        (tmp_path / f"{file}.safetensors").touch()
    found, _ = cli._find([command])
    cls = cli._load(found.args)
    assert cli.parse(found, cls, [f"--{name}", str(tmp_path)]).legs == tmp_path / "legs.safetensors"
    other = tmp_path / "other.safetensors"
    other.touch()
    assert cli.parse(found, cls, [f"--{name}", str(tmp_path), "--legs", str(other)]).legs == other
    assert cli.parse(found, cls, [f"--{name}", str(tmp_path / "planner.safetensors")]).legs is None


def test_stricter_goals_and_wider_starts_can_be_for_learning_only():
    stage = HumanoidStage(RefineArgs(task="transport", start_range=1.5, practice_radius=0.05, practice_range=2.5))
    worlds = [params.control.world for params in (stage.params, stage.practice)]
    assert [round(float(world.near), 6) for world in worlds] == [0.1, 0.05]
    assert [float(world.scale) for world in worlds] == [1.5, 2.5]
    assert all(bool((getattr(worlds[0], name) == getattr(worlds[1], name)).all()) for name in ("heading", "box_mass"))
    stage = HumanoidStage(RefineArgs(task="transport"))
    assert stage.practice is stage.params


def test_physics_may_be_coarser_while_learning():
    def steps(args):
        stage = HumanoidStage(args)
        return stage.env.config.physics_dt, stage.practice_env.config.physics_dt

    assert steps(RefineArgs(task="door", practice_dt=0.01)) == (0.005, 0.01)
    assert steps(RefineArgs(task="door", physics_dt=0.01)) == (0.01, 0.01)
    stage = HumanoidStage(RefineArgs(task="door", practice_dt=0.005))
    assert stage.practice_env is stage.env


@pytest.fixture
def given(monkeypatch):
    """What the learner of a command is begun with: `(run, args, learner's module) -> arguments of its init`."""

    class Begun(Exception):
        pass

    def begin(*words):
        raise Begun(*words)

    def of(run, args, learner):
        monkeypatch.setattr(learner, "init", begin)
        with pytest.raises(Begun) as begun:
            run(dataclasses.replace(args, trials=0).resolved())
        return begun.value.args

    return of


@pytest.mark.parametrize(
    ("run", "args", "learner"),
    [
        (run_finetune, FinetuneArgs(), dppo),
        (run_finetune, FinetuneArgs(algo="residual"), ppo),
        (run_refine, RefineArgs(), dppo),
        (run_dsrl, DSRLArgs(), dsrl),
    ],
)
def test_what_learns_has_the_physics_of_practice(run, args, learner, given):
    env = next(
        x for x in given(run, dataclasses.replace(args, task="door", practice_dt=0.01), learner) if hasattr(x, "env")
    )
    while not isinstance(env, Hierarchy):
        env = env.env
    assert env.config.physics_dt == 0.01


@pytest.mark.parametrize(("run", "args"), [(run_finetune, FinetuneArgs), (run_refine, RefineArgs)])
def test_what_learns_practises(run, args, given):
    asked = args(task="transport", practice_radius=0.05, practice_range=2.5)
    world = next(x for x in given(run, asked, dppo) if isinstance(x, PlannerParams)).control.world
    assert (round(float(world.near), 6), float(world.scale)) == (0.05, 2.5)


def test_demonstrations_are_never_overwritten(tmp_path, data, capsys):
    before = data.read_bytes()
    assert main(["collect", "--episodes", "2", "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["collect", "--episodes", "2", "--out", str(tmp_path), "--resume"]) == 2
    assert "recipe" in capsys.readouterr().err
    assert main(["teleop", "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["teleop", "--out", str(tmp_path), "--resume"]) == 2
    assert "recipe" in capsys.readouterr().err
    assert data.read_bytes() == before
