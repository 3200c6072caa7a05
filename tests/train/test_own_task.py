"""A task from outside: the example of docs/tasks.md, by the name `MODULE:CLASS`, through the commands that ours go through."""

import json
import sys
from pathlib import Path

import pytest

from envs.physics.mjx import MjxPhysics
from envs.tasks.base import TaskDefaults
from envs.tasks.catalog import EXPERTS, TASKS, make_expert, make_task
from rdp_jax.config import ConfigError
from rdp_jax.data import episodes as E
from train.cli import main
from train.recipes import PASSES, PASSES_ELSEWHERE
from train.tasks import find_planner

NAME = "button:Button"


@pytest.fixture(autouse=True)
def beside_it(monkeypatch):
    """In the directory where the example lies, as an installed script would be: nothing of it on the path."""
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    monkeypatch.chdir(Path(__file__).parents[2] / "docs" / "examples")


def run(capsys, *words):
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_it_is_demonstrated_and_imitated(tmp_path, capsys):
    demos, out = tmp_path / "demos", tmp_path / "imitation"
    collected = run(
        capsys, "collect", "--task", NAME, "--episodes", "2", "--num-envs", "4", "--seed", "1", "--out", str(demos)
    )
    assert collected["task"] == NAME and collected["metrics"]["expert_success_rate"] >= 0.5
    found = E.load(demos / "episodes.safetensors")
    assert found.metadata["task"] == NAME
    layout = dict(map(tuple, found.metadata["observations"]))
    assert {name: layout[name] for name in ("post", "button", "travel")} == {"post": 4, "button": 3, "travel": 1}
    words = ["pretrain", "--data", str(demos), "--epochs", "1", "--bc.batch", "16", "--trials", "0"]
    words += ["--planner.net.width", "32", "--planner.net.depth", "1", "--planner.net.heads", "2"]
    run(capsys, *words, "--task", NAME, "--out", str(out))
    assert find_planner(out, NAME).dims.frame == sum(layout.values())
    assert main([*words, "--task", "door", "--out", str(tmp_path / "other")]) == 2
    assert f"{NAME!r}, the task of these demonstrations" in capsys.readouterr().err
    assert (
        main(["finetune", "--task", NAME, "--iterations", "1", "--out", str(tmp_path / "none")]) == 2
    )  # nothing of it is shipped
    assert "name your own planner" in capsys.readouterr().err


def test_its_world_is_one_for_both_engines():
    task = make_task(NAME)
    model = task.build().compile()
    task.bind(model)
    assert model.joint("button").qposadr[0] == task.joint
    MjxPhysics(model)  # refuses contacts that MJX does not know


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere:Button", "No module named 'nowhere'"),
        ("button:Knob", "a class of the module 'button'"),
        ("json:JSONDecoder", "no name, seconds, scene"),
        ("json:loads", "a class of the module 'json'"),
        ("button:ButtonExpert", "made without arguments"),
        ("button", "MODULE:CLASS"),
    ],
)
def test_what_is_no_task_is_named(name, told):
    with pytest.raises(ConfigError, match="task=") as caught:
        make_task(name)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["button", "but ton:Button", "button:", ":Button", "button:Button:x", "hopper"])
def test_other_words_are_refused_with_the_form_of_a_name(name, tmp_path, capsys):
    assert main(["teleop", "--task", name, "--out", str(tmp_path / "mine")]) == 2
    assert "pickup | transport | door | stairs | MODULE:CLASS" in capsys.readouterr().err


def test_without_an_expert_it_can_be_demonstrated_by_hand_only():
    class Silent:
        task = TaskDefaults()

    with pytest.raises(ConfigError, match="a method `expert`"):
        make_expert(NAME, Silent())
    assert set(EXPERTS) == set(TASKS) == set(PASSES)


@pytest.mark.parametrize("table", ["joint", "ood", "dsrl"])
def test_tables_that_start_from_what_is_shipped_are_refused(table, tmp_path, capsys):
    assert main(["reproduce", table, "--task", NAME, "--out", str(tmp_path / "out")]) == 2
    assert "--task" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_table_of_no_task_is_refused_before_its_directory_is_made(tmp_path, capsys):
    assert main(["reproduce", "success", "--task", "nowhere:Button", "--out", str(tmp_path / "out")]) == 2
    assert "--task" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_tables_know_no_passes_of_it(capsys):
    listed = run(capsys, "reproduce", "success", "--task", NAME, "--seeds", "1", "--only", "start", "--list")
    assert f"--task {NAME}" in listed["metrics"]["commands"][0]
    assert f"--epochs {PASSES_ELSEWHERE}" in listed["metrics"]["commands"][1]
