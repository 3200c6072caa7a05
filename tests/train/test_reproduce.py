"""Tables: every command of every recipe is a command, results are pooled right, a table goes on where it stopped."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.config import ConfigError, validate
from rdp_jax.runs import Run, RunError
from train import child, cli, reproduce
from train.args import ReproduceArgs
from train.names import GYM_TASKS
from train.output import Failed
from train.recipes import RECIPES


@struct.dataclass
class Count:
    """A learner that only counts."""

    iteration: jax.Array


def plan(name, task="pickup", **more):
    args = ReproduceArgs(name=name, task="hopper" if name == "gym" else task, **more)
    return args, reproduce.steps_of(args, 0)


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("name", "task"), [*((name, "pickup") for name in sorted(RECIPES)), ("success", "stairs"), ("success", "transport")]
)
def test_every_step_parses(name, task, preset, tmp_path):
    _, steps = plan(name, task, preset=preset)
    folder = tmp_path / "seed-0"
    # Files that earlier steps write.
    for step in steps:
        left = reproduce.place(step.name, folder)
        left.mkdir(parents=True, exist_ok=True)
        for file in ("planner", "legs", "hands"):
            (left / f"{file}.safetensors").touch()
    names = set()
    for step in steps:
        words = reproduce.command(step, folder)
        found, rest = cli._find(words)
        args = cli.parse(found, cli._load(found.args), rest)
        assert args.out == reproduce.place(step.name, folder) and args.json
        # What a step refers to has run before it.
        for word in step.words:
            assert not word.startswith("{") or word[1:].partition("}")[0] in names
        names.add(step.name)
    assert any(step.row for step in steps)


def test_the_backend_asked_for_is_every_command_s(capsys):
    assert all(step.words[-2:] == ("--backend", "mjx") for step in plan("scratch", backend="mjx")[1])
    assert not any("--backend" in step.words for step in plan("scratch")[1])
    assert cli.main(["reproduce", "scratch", "--num-envs", "64", "--list"]) == 2
    assert "--num-envs" in capsys.readouterr().err


def test_gym_is_about_gym_tasks(capsys):
    for words in (["gym", "--task", "pickup"], ["success", "--task", GYM_TASKS[0]]):
        assert cli.main(["reproduce", *words, "--list"]) == 2
        assert "--task" in capsys.readouterr().err


def test_the_gym_table_is_one_run_a_seed_judged_on_the_way():
    _, steps = plan("gym", iterations=50)
    learning = {step.words for step in steps if step.name == "dppo"}
    assert len(learning) == 1 and "--eval-every" in next(iter(learning))
    rows = {step.row: step for step in steps if step.name == "dppo"}
    assert set(rows) == {"iteration 0", "iteration 20", "iteration 50"}  # 100 is beyond the run
    summary = {"return_before": 1400.0, "evaluations": {"20": {"return": 2000.0}}}
    assert reproduce.look_up(summary, rows["iteration 0"].metric) == 1400.0
    assert reproduce.look_up(summary, rows["iteration 20"].metric) == 2000.0
    assert reproduce.look_up(summary, rows["iteration 50"].metric) is None


def test_steering_is_judged_by_what_its_task_pays():
    args = ReproduceArgs(name="dsrl", task="hopper")
    steps = reproduce.steps_of(args, 1)
    assert [step.name for step in steps[:2]] == ["demos", "medium"]  # hopper has no shipped planner
    for step in steps[2:]:
        assert step.words[step.words.index("--preset") + 1] == "gym" and "{medium}/planner.safetensors" in step.words
    rows = {step.row: step for step in steps if step.row}
    assert rows["imitation"].metric == "return_before" and rows["DPPO"].metric == "return_after"
    assert rows["no noise"].metric == "controls.zero.return" and "golden ticket" not in rows  # which only T1 tasks have
    assert "golden ticket" in {step.row for step in plan("dsrl")[1]}
    pooled = reproduce.cell([0.5, 1.0], 10, "controls.zero.success_rate")
    assert pooled["value"] == 0.75 and pooled["trials"] == 20


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("imitation", "minutes", 5.0),
        ("imitation", "preset", "gpu"),
        ("gym", "minutes", 5.0),
        ("gym", "preset", "gpu"),
        ("dsrl", "preset", "gpu"),
        ("data", "wide", 2.0),
    ],
)
def test_what_a_table_would_ignore_is_refused(name, field, value):
    task = "hopper" if name in ("gym", "dsrl") else "pickup"
    with pytest.raises(ConfigError, match=rf"{field}={value!r}, allowed: left out"):
        validate(ReproduceArgs(name=name, task=task, **{field: value}))


def test_data_are_collected_once_for_all_seeds():
    _, steps = plan("data")
    demos = next(step for step in steps if step.name == "demos")
    out = [reproduce.command(demos, Path("out") / f"seed-{seed}") for seed in (0, 1)]
    assert out[0] == out[1] and str(Path("out") / "shared" / "demos") in out[0]
    learns = next(step for step in steps if "{demos}" in step.words)
    assert str(Path("out") / "shared" / "demos") in reproduce.command(learns, Path("out") / "seed-1")


def test_from_scratch_every_seed_has_the_demonstrations_of_its_own_controller():
    _, steps = plan("scratch")
    collects = next(step for step in steps if step.words[0] == "collect")
    places = {str(reproduce.place(collects.name, Path("out") / f"seed-{seed}")) for seed in (0, 1)}
    assert len(places) == 2


def test_every_seed_fine_tunes_the_same_gym_planner():
    _, steps = plan("gym")
    tunes = next(step for step in steps if step.name == "dppo")
    planners = {reproduce.command(tunes, Path("out") / f"seed-{i}")[-4] for i in (0, 1)}  # before --out DIR --json
    assert planners == {str(Path("out") / "shared" / "medium" / "planner.safetensors")}


def test_rates_are_pooled_and_other_figures_averaged():
    cell = reproduce.cell([0.5, 1.0], 10, "success_rate_after")
    assert cell["value"] == 0.75 and cell["trials"] == 20 and cell["ci95"][0] < 0.75 < cell["ci95"][1]
    assert reproduce.cell([1.0, 3.0], 10, "return") == {"value": 2.0, "least": 1.0, "most": 3.0}
    two_of_three = {"value": 2.0, "least": 1.0, "most": 3.0, "seeds_with_a_figure": 2, "seeds": 3}
    assert reproduce.cell([1.0, 3.0, None], 10, "iterations_to_90") == two_of_three
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
        record = {"wall_s": 2.0, "env_steps": 10, "metrics": {"success_rate_before": 0.5, "success_rate_after": 0.9}}
        if "--resume" in words:  # what it had learned for before is in no summary
            (out / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "time/iteration_s": 7.0}) + "\n")
        (out / "summary.json").write_text(json.dumps(record))  # as the command itself does
        return 0

    monkeypatch.setattr(reproduce, "launch", fake)
    args = ReproduceArgs(name="dsrl", seeds=2, trials=10, out=tmp_path)
    with pytest.raises(Failed, match="status 1"):
        reproduce.run_reproduce(args)
    record = reproduce.run_reproduce(args)
    assert len(ran) == 9  # eight runs, one of them twice
    assert [i for i, words in enumerate(ran) if "--resume" in words] == [3]
    table = record["metrics"]["table"]
    assert table["imitation"]["value"] == 0.5 and table["DSRL-NA"]["trials"] == 20
    seconds = record["metrics"]["seconds"]
    assert sum(seconds.values()) == 7 * 2.0 + 7.0 and seconds["sac"] == 4.0
    assert record["env_steps"] == 60  # of this call


def test_a_table_is_made_of_steps_that_were_made_alike(tmp_path, monkeypatch):
    def fake(step, folder):
        record = {"wall_s": 1.0, "env_steps": 1, "metrics": {}}
        (folder / step.name).mkdir(parents=True, exist_ok=True)
        (folder / step.name / "summary.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(reproduce, "run_step", fake)
    args = ReproduceArgs(name="imitation", seeds=1, trials=10, out=tmp_path)
    reproduce.remember(
        dataclasses.replace(args, minutes=100.0), tmp_path
    )  # mistyped, interrupted before its first step
    reproduce.run_reproduce(args)
    reproduce.run_reproduce(dataclasses.replace(args, seeds=2))  # more of the same
    for name, value in (("task", "door"), ("trials", 20), ("minutes", 1.0), ("name", "success"), ("backend", "mjx")):
        with pytest.raises(ConfigError, match=rf"{name}="):
            reproduce.run_reproduce(dataclasses.replace(args, **{name: value}))
    (tmp_path / "table.json").unlink()
    with pytest.raises(ConfigError, match=r"out="):
        reproduce.run_reproduce(args)


def test_some_steps_of_a_table_run_with_what_they_start_from_and_the_rest_may_follow(tmp_path, monkeypatch, capsys):
    ran = []

    def fake(step, folder):
        out = reproduce.place(step.name, folder)
        if not (out / "summary.json").exists():
            ran.append(step.name)
            out.mkdir(parents=True)
            (out / "summary.json").write_text("{}")
        return {"wall_s": 1.0, "env_steps": 1, "metrics": {"success_rate_after": 0.9}}

    monkeypatch.setattr(reproduce, "run_step", fake)
    monkeypatch.setattr(reproduce, "done", lambda folder: None)
    args = ReproduceArgs(name="success", seeds=1, trials=10, out=tmp_path, only=("refine", "residual"))
    table = reproduce.run_reproduce(args)["metrics"]["table"]
    assert ran == ["demos", "start", "residual", "refine"]
    assert table["DiT, residual"]["value"] == 0.9 and "LSTM, imitation" not in table
    whole = reproduce.run_reproduce(dataclasses.replace(args, only=()))["metrics"]["table"]
    assert len(ran) == len(set(ran)) == 18 and set(table) < set(whole)
    assert cli.main(["reproduce", "success", "--only", "refine", "no-nois", "--list"]) == 2
    assert "--only: got 'no-nois', allowed: a step of the table: expert |" in capsys.readouterr().err


def test_a_step_cut_short_by_a_signal_is_not_done(tmp_path, monkeypatch):
    ran = []

    def fake(words):
        ran.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        rows = [{"iteration": i, "time/iteration_s": 90.0} for i in (1, 2)]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 3, "ti')
        stopped = 15 if len(ran) == 1 else None
        (out / "summary.json").write_text(json.dumps({"metrics": {"stopped_by": stopped}}))
        return 0

    monkeypatch.setattr(reproduce, "launch", fake)
    step = next(step for step in plan("joint", minutes=5.0)[1] if step.name == "planner-only")
    with pytest.raises(RuntimeError, match="was stopped"):
        reproduce.run_step(step, tmp_path)
    assert reproduce.run_step(step, tmp_path)["metrics"]["stopped_by"] is None
    reproduce.run_step(step, tmp_path)
    first, second = ran  # and no third
    assert "--resume" not in first and first[first.index("--minutes") + 1] == "5"
    assert "--resume" in second and second[second.index("--minutes") + 1] == "2"  # three of five were spent


def test_a_step_that_had_learned_all_learns_no_more(tmp_path):
    step = next(step for step in plan("joint", minutes=5.0)[1] if step.name == "planner-only")
    run = Run(tmp_path, {})
    train(
        lambda state, params: (Count(state.iteration + 1), {}), Count(jnp.int32(0)), (), LoopConfig(iterations=9), run
    )
    run.close()
    words = reproduce.going_on(reproduce.command(step, tmp_path), tmp_path)
    assert words[words.index("--iterations") + 1] == "9"


def test_a_step_has_the_package_that_the_table_has_whatever_lies_where_it_runs(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = subprocess.run(child.command(["--help"]), env=child.environment(), capture_output=True, text=True)
    assert found.returncode == 0 and "reproduce" in found.stdout


def test_a_summary_that_is_no_json_is_named(tmp_path):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"dit/summary\.json"):
        reproduce.done(tmp_path / "dit")


def test_signals_go_to_the_step_and_stop_the_table(tmp_path, monkeypatch):
    told = tmp_path / "told"
    program = f"""
import os, signal, sys, time
def heard(number, frame):
    open({str(told)!r}, "a").write(f"{{number}} ")
    sys.exit(0)
signal.signal(signal.SIGTERM, heard)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
"""
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **more: real([sys.executable, "-c", program], **more))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        reproduce.launch(["eval"])
    assert told.read_text() == f"{int(signal.SIGTERM)} " and signal.getsignal(signal.SIGTERM) is before


def test_a_last_seed_beyond_the_range_is_refused_at_once(capsys):
    for words in (["scratch", "--seed", str(2**31 - 1), "--seeds", "1"], ["joint", "--seed", str(2**31 - 2)]):
        assert cli.main(["reproduce", *words, "--list"]) == 2
        assert "--seed:" in capsys.readouterr().err
    listed = reproduce.run_reproduce(plan("scratch", minutes=0.01, list=True)[0])["metrics"]["commands"]
    assert not any("0.002" in line for line in listed)  # less than a learning command takes


def test_a_table_shown_as_commands_leaves_no_trace(tmp_path):
    args = ReproduceArgs(name="joint", seeds=1, list=True, out=tmp_path / "table")
    assert reproduce.run_reproduce(args)["metrics"]["commands"] and not args.out.exists()


def test_joint_learning_is_compared_with_the_imitation_sampled_either_way():
    steps = {step.row: step for step in plan("joint")[1]}
    change = steps["joint, alternating: hand_position_error_m against the imitation"]
    alike = steps["joint, alternating: hand_position_error_m against the imitation sampled as it"]
    metrics = {"hand_position_error_m_before": 0.02, "hand_position_error_m_untrained": 0.016}
    metrics["hand_position_error_m_after"] = 0.012
    assert reproduce.shown(change, metrics) == pytest.approx(-0.4) and change.paper == "up to -50 %"
    assert reproduce.shown(alike, metrics) == pytest.approx(-0.25)  # the quieter sample is its own
    metrics["hand_position_error_m_untrained_final"] = 0.01
    assert reproduce.shown(alike, metrics) == pytest.approx(0.2)
    assert reproduce.shown(change, {}) is None
    assert steps["planner only: iterations to 90 %, exploring"].metric == "iterations_to_90"


def test_gradient_steps_grow_with_the_data_but_slower():
    _, steps = plan("data")
    learn = [step.words for step in steps if "--demonstrations" in step.words]
    spent = [int(w[w.index("--demonstrations") + 1]) * int(w[w.index("--epochs") + 1]) for w in learn]
    assert len(spent) == 6 and spent == sorted(spent) and len(set(spent)) == 6
    assert spent[-1] < 5 * spent[1]  # 1000 demonstrations against 50


def test_success_contains_the_imitators():
    assert plan("success")[1][:5] == plan("imitation")[1]


@pytest.mark.parametrize("task", ["pickup", "transport", "door", "stairs"])
def test_every_method_on_a_diffusion_planner_starts_from_the_same_one(task):
    steps = reproduce.steps_of(ReproduceArgs(name="success", task=task), 0)
    learning = [
        step for step in steps if step.row.startswith("DiT,") and step.words[0] in ("finetune", "refine", "dsrl")
    ]
    on_top = learning.pop([step.name for step in learning].index("corrected"))
    assert on_top.words.count("{refine}") == 1
    assert len({step.name for step in learning}) == 6
    assert {step.words[step.words.index("--planner") + 1] for step in learning} == {"{start}/planner.safetensors"}
    passes = {
        step.name: int(step.words[step.words.index("--epochs") + 1]) for step in steps if "--epochs" in step.words
    }
    assert passes["start"] < passes["dit"]
    controls = [step for step in steps if step.metric == "success_rate_untrained"]
    assert [step.name for step in controls] == ["dppo"]  # what quieter sampling does by itself
    silent = next(step for step in steps if step.name == "no-noise")
    assert "{start}/planner.safetensors" in silent.words and silent.words[silent.words.index("--first-std") + 1] == "0"


def test_from_scratch_legs_learn_on_the_ground_of_their_task():
    for task, scene in (("stairs", "platforms"), ("door", "flat")):
        args = ReproduceArgs(name="scratch", task=task)
        legs = next(step for step in reproduce.steps_of(args, 0) if step.name == "legs")
        assert legs.words[legs.words.index("--scene") + 1] == scene


@pytest.mark.parametrize("task", ["stairs", "transport"])
def test_the_planner_learns_at_another_pace(task):
    words = {step.name: step.words for step in plan("success", task)[1]}
    for name in ("dppo", "refine"):
        assert words[name][words[name].index("--dppo.kl-goal") + 1] == "0.04"
    assert "--dppo.kl-goal" not in {w for step in plan("success")[1] for w in step.words}


@pytest.mark.parametrize(("task", "rounds"), [("pickup", ["5", "5"]), ("stairs", ["2", "15"]), ("door", [])])
def test_rounds_of_joint_learning_are_the_tasks_own_and_the_controller_alone_stays_alone(task, rounds):
    def asked(words):
        flags = ("--schedule.controller-iterations", "--schedule.planner-iterations")
        return [b for flag in flags for a, b in itertools.pairwise(words) if a == flag]

    found = {step.name: asked(step.words) for step in plan("success", task)[1]}
    assert found["refine"] == rounds and found["controller"] == ["5", "0"]
