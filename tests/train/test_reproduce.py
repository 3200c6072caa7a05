"""Tables: every command of every recipe is a command, results are pooled right, a table goes on where it stopped."""

import json
from pathlib import Path

import pytest

from train import cli, reproduce
from train.args import ReproduceArgs
from train.names import GYM_TASKS
from train.recipes import RECIPES


def plan(name, **more):
    args = ReproduceArgs(name=name, task="hopper" if name == "gym" else "pickup", **more)
    return args, reproduce.steps_of(args, 0)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_step_parses(name, tmp_path, monkeypatch):
    _, steps = plan(name)
    # Files that earlier steps write.
    for step in steps:
        for file in ("planner", "legs", "hands"):
            (tmp_path / step.name).mkdir(exist_ok=True)
            (tmp_path / step.name / f"{file}.safetensors").touch()
    names = set()
    for step in steps:
        words = reproduce.command(step, tmp_path)
        found, rest = cli._find(words)
        args = cli.parse(found, cli._load(found.args), rest)
        assert args.out == tmp_path / step.name and args.json
        # What a step refers to has run before it.
        for word in step.words:
            assert not word.startswith("{") or word[1:].partition("}")[0] in names
        names.add(step.name)
    assert any(step.row for step in steps)


def test_gym_is_about_gym_tasks(capsys):
    for words in (["gym", "--task", "pickup"], ["success", "--task", GYM_TASKS[0]]):
        assert cli.main(["reproduce", *words, "--list"]) == 2
        assert "--task" in capsys.readouterr().err


def test_rates_are_pooled_and_other_figures_averaged():
    cell = reproduce.cell([0.5, 1.0], 10, "success_rate_after")
    assert cell["value"] == 0.75 and cell["trials"] == 20 and cell["ci95"][0] < 0.75 < cell["ci95"][1]
    assert reproduce.cell([1.0, 3.0, None], 10, "return") == {"value": 2.0, "least": 1.0, "most": 3.0}
    assert reproduce.cell([None], 10, "return") == {"value": None}


def test_steps_that_are_done_are_not_run_again(tmp_path, monkeypatch):
    ran = []

    def fake(words):
        ran.append(words)
        if len(ran) == 3:  # interrupted, with something written
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "half").touch()
            return 1
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        record = {"wall_s": 2.0, "env_steps": 10, "metrics": {"success_rate": 0.5, "success_rate_after": 0.9}}
        (out / "summary.json").write_text(json.dumps(record))  # as the command itself does
        return 0

    monkeypatch.setattr(reproduce, "launch", fake)
    args = ReproduceArgs(name="dsrl", seeds=2, trials=10, out=tmp_path)
    with pytest.raises(RuntimeError, match="status 1"):
        reproduce.run_reproduce(args)
    record = reproduce.run_reproduce(args)
    assert len(ran) == 11  # ten steps, one of them twice
    assert [i for i, words in enumerate(ran) if "--resume" in words] == [3]
    table = record["metrics"]["table"]
    assert table["imitation"]["value"] == 0.5 and table["DSRL-NA"]["trials"] == 20
    assert record["metrics"]["seconds"]["na"] == 4.0 and record["env_steps"] == 100
