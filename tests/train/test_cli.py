"""The command line contract: exit status, what goes where, flags from configs."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdp_jax.algos.ppo import PPOConfig
from rdp_jax.checkpoint import CheckpointError
from rdp_jax.config import ConfigError
from rdp_jax.runs import RunError
from train import cli
from train.args import Common
from train.controller_args import PRESETS, TrainArgs
from train.demo import refine_args
from train.output import SUMMARY_KEYS
from train.task_args import DemoArgs

ROOT = Path(__file__).parents[2]


def command(name):
    return next(c for c in cli.COMMANDS if c.name == name)


def parse(line):
    found, words = cli._find(shlex.split(line))
    return cli.parse(found, cli._load(found.args), words)


# --- a command for tests -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class EchoArgs(Common):
    """Says what it got, everywhere."""

    fail: str = ""


RECORD = {**dict.fromkeys(SUMMARY_KEYS), "command": "echo", "wall_s": 1.5, "metrics": {"answer": 42}}
FAILURES = {
    "bug": RuntimeError("a bug"),
    "config": ConfigError("num_envs", 7, "1 .. 3"),
    "elsewhere": ConfigError("mass", -1.0, "0 .. inf [kg]"),
    "no file": FileNotFoundError(2, "No such file or directory", "legs.safetensors"),
    "checkpoint": CheckpointError("weights legs.safetensors cannot be read"),
    "run": RunError("runs/x is not empty"),
    "interrupt": KeyboardInterrupt(),
}
calls = []


def run_echo(args):
    calls.append(args)
    print("from Python")
    os.write(1, b"from C\n")
    subprocess.run(["echo", "from a child"], check=True)
    if args.fail:
        raise FAILURES[args.fail]
    return RECORD


@pytest.fixture(autouse=True)
def echo(monkeypatch):
    calls.clear()
    echo = cli.Command("echo", "For tests.", f"{__name__}:EchoArgs", f"{__name__}:run_echo")
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, echo))


# --- exit status ---------------------------------------------------------------------------------------------------------

BAD = [
    ("controller train --ppo.gamma 1.5", ("--ppo.gamma", "1.5", "0.0 .. 1.0")),
    ("controller train --ppo.gamma=abc", ("--ppo.gamma", "abc")),
    ("controller train --ppo.gamma nan", ("--ppo.gamma", "nan", "0.0 .. 1.0")),
    ("controller train --ppo.actor-sizes 64 0", ("--ppo.actor-sizes", "1 .. 65536")),
    ("controller train --num-envs 0", ("--num-envs", "got 0", "1 .. 1048576")),
    ("controller train --num-envs 6", ("--num-envs", "got 6", "a multiple of")),
    ("controller train --ppo.lr 0.5", ("--ppo.lr:", "0.5", "lr_max")),
    ("controller train --preset big", ("--preset", "big", "cpu | gpu")),
    ("controller train --part arms", ("--part", "arms", "legs", "hands")),
    ("controller train --iterations 0", ("--iterations", "got 0", "1 .. ")),
    ("controller train --minutes -1", ("--minutes", "-1", "[min]")),
    ("controller train --resume", ("--resume", "--out")),
    ("controller eval --legs nowhere.safetensors", ("--legs", "nowhere.safetensors", "existing file")),
    ("controller eval --episodes 2.5", ("--episodes", "2.5")),
    ("controller eval --scene moon", ("--scene", "moon", "flat")),
    ("controller eval --out README.md", ("--out", "README.md", "directory")),
    ("eval --out README.md/below", ("--out", "README.md/below", "written to")),
    ("eval --run tests", ("--run", "tests", "planner.safetensors")),
    ("eval --checkpoint tests", ("--run", "tests", "planner.safetensors")),
    ("eval --which expert --run rdp_jax/assets/door_pretrained.safetensors", ("--which", "expert", "--run")),
    ("eval --which expert --first-std 0", ("--which", "expert", "flags of sampling")),
    ("eval --task hopper --start-range 2", ("--start-range", "2.0", "hopper")),
    ("finetune --run nowhere", ("--planner", "nowhere", "planner.safetensors")),
    ("finetune --eval-every 5 --trials 0", ("--eval-every", "5", "--trials above 0")),
    ("dsrl --controls --trials 0", ("--controls", "True", "--trials above 0")),
    ("pretrain --data README.md --planner.net.kind mlp", ("--planner.net.kind",)),
    ("reproduce success --wide 2", ("--wide", "2.0", "ood")),
    ("reproduce ood --iterations 5", ("--iterations", "5", "gym")),
    ("reproduce success --only", ("--only", "one value or more")),
    ("finetune --final-std --trials 3", ("--final-std", "one value or more")),
    ("pretrain --data README.md --planner.net.sizes 16", ("--planner.net.sizes", "(16,)", "no --net dit has it")),
    (
        "pretrain --data README.md --net lstm --planner.net.depth 8",
        ("--planner.net.depth", "8", "no --net lstm has it"),
    ),
    ("refine --controller.min-std 3", ("--controller.min-std", "3.0", "at most max_std=2.0")),
    ("refine --dppo.minibatches 7", ("--dppo.minibatches:", "got 7", "a divisor of")),
    ("bench nothing", ("nothing", "physics")),
    ("bench", ("scenario", "physics")),
    ("doctor --backend cuda", ("--backend", "cuda", "native", "mjx")),
    ("doctor --nope 3", ("--nope",)),
    ("doctor --seed -1", ("--seed", "-1", "0 .. ")),
    ("controller", ("train", "eval")),
    ("fly", ("fly", "doctor")),
    ("--json doctor", ("--json",)),
    ("", ("doctor",)),
]


@pytest.mark.parametrize(("line", "told"), BAD, ids=[line or "nothing" for line, _ in BAD])
def test_bad_arguments_exit_2_and_name_flag_value_and_range(line, told, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    ran = []
    monkeypatch.setattr(cli, "_load", lambda spec, load=cli._load: ran.append(spec) or load(spec))
    assert cli.main(line.split()) == 2
    assert not any(":run_" in spec for spec in ran)
    out, err = capfd.readouterr()
    assert out == ""
    flat = re.sub(r"[\s│]+", " ", err)  # tyro breaks lines inside its frames
    for text in told:
        assert text in flat or text in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--out", "", "--json"]])
def test_an_empty_path_is_not_the_current_directory(words, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["echo", *words]) == 2
    assert "--out: got '', allowed: a value that is not empty" in capfd.readouterr().err
    assert not calls and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--run", "--planner", "--legs", "--out"])
@pytest.mark.parametrize(
    ("name", "told"), [("a" * 300, "too long"), ("\udcff", "UTF-8"), ("b/\udcff.safetensors", "UTF-8")]
)
def test_a_path_that_cannot_be_is_refused_at_the_start(flag, name, told, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["play", flag, name]) == 2
    err = capfd.readouterr().err
    assert f"{flag.replace('planner', 'run')}: got {name!r}, allowed: a path that is" in err and told in err
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_found_before_anything_runs(capfd, tmp_path):
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere" / "below")
    (tmp_path / "file").touch()
    places = [dangling, dangling / "below", tmp_path / "file" / "below"]
    places += [Path("/proc"), Path("/proc/below")] if Path("/proc").is_dir() else []  # where even root cannot write
    for place in places:
        assert cli.main(["echo", "--out", str(place)]) == 2
        assert f"--out: got '{place}', allowed: a" in capfd.readouterr().err
    assert not calls


def test_a_look_whether_a_place_can_be_written_to_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new", "new/below", "a/../new"):
        EchoArgs(out=tmp_path / name).check()
    assert [place.name for place in tmp_path.rglob("*")] == ["there"]


def test_a_record_that_cannot_be_written_is_still_shown(capfd, tmp_path, monkeypatch):
    def taken(args):
        args.out.write_text("somebody else's")
        return RECORD

    monkeypatch.setattr(sys.modules[__name__], "run_echo", taken)
    assert cli.main(["echo", "--json", "--out", str(tmp_path / "out")]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == RECORD
    assert err.startswith("rdp echo: summary.json cannot be written: ") and "Traceback" not in err
    assert (tmp_path / "out").read_text() == "somebody else's"


@pytest.fixture
def heeds_interrupts():
    """As in a terminal; what a shell puts into the background ignores them."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def test_an_interrupt_while_modules_are_loaded_waits_until_they_are(capfd, monkeypatch, heeds_interrupts):
    loaded = []

    def load(name):
        os.kill(os.getpid(), signal.SIGINT)
        loaded.append(name)
        return sys.modules[__name__]

    monkeypatch.setattr(cli.importlib, "import_module", load)
    assert cli.main(["echo"]) == 1
    assert capfd.readouterr().err == "rdp echo: interrupted\n"
    assert loaded == [__name__] and not calls
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_ignored_stays_so(capfd, monkeypatch):
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: os.kill(os.getpid(), signal.SIGINT) or os)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert cli._load("os:sep") == os.sep
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("fail", "status", "told"),
    [
        ("bug", 1, "RuntimeError: a bug"),
        ("config", 2, "--num-envs: got 7, allowed: 1 .. 3"),
        ("elsewhere", 2, "mass: got -1.0, allowed: 0 .. inf [kg]"),
        ("no file", 2, "legs.safetensors"),
        ("checkpoint", 2, "cannot be read"),
        ("run", 2, "not empty"),
        ("interrupt", 1, "interrupted"),
    ],
)
def test_failures_while_running(fail, status, told, capfd):
    assert cli.main(["echo", "--fail", fail, "--json"]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert told in err
    assert ("Traceback" in err) == (fail == "bug")


def test_sigterm_is_an_interrupt_once(heeds_interrupts):
    """What is under way is cleared up; the second one does not wait for it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            cli._terminated(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_stderr_is_no_obstacle():
    code = "from train import cli, output; cli.main(['--help']); output.Progress('x', total=1); print('done')"
    call = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    done = subprocess.run(["sh", "-c", call], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done"


def test_process_exits_with_the_status():
    status = subprocess.run(
        [sys.executable, "-m", "train.cli", "doctor", "--nope"], cwd=ROOT, capture_output=True
    ).returncode
    assert status == 2


def test_only_a_process_of_our_own_keeps_its_memory_and_its_programs(monkeypatch, capfd):
    kept = []
    monkeypatch.setattr(cli, "keep_freed", lambda: kept.append("memory"))
    monkeypatch.setattr(cli, "keep_programs", lambda: kept.append("programs"))
    monkeypatch.setattr(cli, "exact_products", lambda: kept.append("products"))
    assert cli.main(["--help"]) == 0 and not kept
    monkeypatch.setattr(sys, "argv", ["rdp", "--help"])
    assert cli.main() == 0 and kept == ["memory", "programs", "products"]


# --- output --------------------------------------------------------------------------------------------------------------


def test_json_is_all_there_is_on_stdout(capfd):
    assert cli.main(["echo", "--json", "--seed", "5"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == RECORD
    assert out.count("\n") == 1
    for text in ("from Python", "from C", "from a child"):
        assert text in err
    assert calls[0].seed == 5


def test_a_closed_stdout_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    assert cli.main(["echo", "--json", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "summary.json").read_text()) == RECORD


def test_without_json_the_summary_is_for_people(capfd):
    assert cli.main(["echo"]) == 0
    out, _ = capfd.readouterr()
    assert "from C" in out
    assert out.splitlines()[-1].split() == ["answer", "42"]


def test_out_gets_the_summary(tmp_path):
    assert cli.main(["echo", "--out", str(tmp_path / "a" / "b")]) == 0
    assert json.loads((tmp_path / "a" / "b" / "summary.json").read_text()) == RECORD


def test_a_summary_is_not_overwritten_unless_a_command_goes_on(tmp_path, capfd):
    words = ["--out", str(tmp_path)]
    assert cli.main(["echo", *words]) == 0
    assert cli.main(["echo", *words, "--seed", "1"]) == 2
    assert "--out: got" in capfd.readouterr().err
    assert cli.main(["reproduce", "success", *words]) == 2
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()  # somebody learns there, and has no summary yet
    assert cli.main(["echo", "--out", str(tmp_path / "run")]) == 2
    assert "without a config.json" in capfd.readouterr().err
    (tmp_path / "table.json").touch()
    assert parse(f"reproduce success --out {tmp_path}").goes_on
    assert parse(f"refine --resume --out {tmp_path}").goes_on and not parse("refine").goes_on


def test_lines_of_text_are_shown_one_by_one(capfd):
    assert cli.main(["reproduce", "joint", "--seeds", "1", "--list"]) == 0
    told = [line.split("rdp ", 1)[1] for line in capfd.readouterr().out.splitlines() if " rdp " in line]
    assert len(told) == 4 and told[0].startswith("finetune") and told[1].startswith("refine")


@pytest.mark.parametrize(
    "words", [["--help"], ["controller", "--help"], ["doctor", "--help"], ["doctor", "--nope"], ["fly"]]
)
def test_help_and_mistakes_load_nothing_heavy(words):
    code = (
        "import sys; from train.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('jax', 'mujoco', 'flax', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(capfd):
    for words, below in (
        (["--help"], {c.name.split()[0] for c in cli.COMMANDS}),
        (["controller", "-h"], {"train", "eval"}),
    ):
        assert cli.main(words) == 0
        out = capfd.readouterr().out
        assert below <= set(re.findall(r"\w+", out))


# --- flags ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_command_exists(command):
    assert dataclasses.is_dataclass(cli._load(command.args))
    assert callable(cli._load(command.run))


def test_every_setting_of_ppo_is_a_flag_with_default_and_range(capfd):
    assert cli.main(["controller", "train", "--help"]) == 0
    text = re.sub(r"[\s│]+", " ", capfd.readouterr().out)
    for field in dataclasses.fields(PPOConfig):
        if field.name != "num_envs":
            assert f"--ppo.{field.name.replace('_', '-')}" in text
    assert "--ppo.num-envs" not in text
    assert "discount per step [0 .. 1] (default: 0.98)" in text
    assert "stop after this much wall clock even if iterations are left [0.01 .. 100000, in min]" in text


def test_what_no_flag_sets_stands_against_no_flag(tmp_path, capfd):
    """Of the controller's PPO only some is used, and only that is checked."""
    assert cli.main(["refine", "--controller.minibatches", "7", "--out", str(tmp_path / "out")]) == 2
    assert "--controller.minibatches: got 7, allowed: a divisor of 15360 samples" in capfd.readouterr().err
    groups = "--num-envs 260 --recorded 65 --dppo.shuffle-groups 5 --dppo.minibatches 5"
    found = parse(f"refine {groups} --controller.shuffle-groups 5 --controller.minibatches 5")
    assert found.controller.shuffle_groups == 5 and found.dppo.num_envs == 260
    assert parse("refine --controller.max-std 0.39").controller.max_std == 0.39
    assert parse("refine --controller.minibatches 3 --schedule.rehearsals 0").controller.minibatches == 3


@pytest.mark.parametrize(("devices", "groups"), [(1, 4), (2, 4), (4, 4), (8, 8), (3, 6)])
def test_defaults_divide_over_any_number_of_devices(devices, groups, monkeypatch, tmp_path):
    monkeypatch.setattr("jax.devices", lambda: [None] * devices)
    args = cli.placed(command("refine"), parse(f"refine --num-envs 240 --recorded 120 --out {tmp_path}"))
    assert args.dppo.shuffle_groups == args.controller.shuffle_groups == groups
    assert args == args.resolved()
    for line in (
        "finetune",
        "finetune --algo residual",
        "refine --schedule.controller-iterations 0",
        "controller train",
    ):
        name = " ".join(line.split()[:2]) if line.startswith("controller") else line.split()[0]
        spread = cli.placed(command(name), parse(f"{line} --out {tmp_path}"))
        used = spread.ppo if name == "controller train" else spread.residual if "residual" in line else spread.dppo
        assert used.shuffle_groups == groups
    assert refine_args(DemoArgs(num_envs=48), tmp_path).dppo.shuffle_groups == groups


def test_only_what_learns_asks_for_devices(monkeypatch, tmp_path):
    """A table must not hold them while its steps learn, nor a benchmark before it has set up its threads."""
    monkeypatch.setattr("jax.devices", lambda: pytest.fail("asked"))
    for line in ("reproduce success", "bench physics", "eval"):
        name = line.split()[0]
        assert cli.placed(command(name), parse(f"{line} --out {tmp_path}")).out == tmp_path


def test_num_envs_is_one_setting():
    args = parse("controller train --num-envs 64")
    assert (args.num_envs, args.ppo.num_envs) == (64, 64)
    args = parse("controller train")
    assert args.num_envs == args.ppo.num_envs == PPOConfig().num_envs


def test_a_preset_sets_defaults_that_flags_override():
    args = parse("controller train --ppo.minibatches 2 --preset=gpu")
    assert args.num_envs == args.ppo.num_envs == PRESETS["gpu"]["num_envs"]
    assert args.ppo.minibatches == 2
    assert args.preset == "gpu"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_valid(preset):
    assert parse(f"controller train --preset {preset}") == TrainArgs.defaults(preset)


@settings(max_examples=25, deadline=None)
@given(
    gamma=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 512), min_size=1, max_size=4),
    seed=st.integers(0, 2**31 - 1),
    minutes=st.none() | st.floats(0.01, 1e5),
    randomize=st.booleans(),
)
def test_flags_arrive_as_they_were_given(gamma, sizes, seed, minutes, randomize):
    words = [
        "controller train",
        f"--ppo.gamma {gamma!r}",
        f"--ppo.actor-sizes {' '.join(map(str, sizes))}",
        f"--seed {seed}",
    ]
    args = parse(" ".join([*words, *([f"--minutes {minutes!r}"] if minutes else [])]))
    ppo = dataclasses.replace(PPOConfig(), gamma=gamma, actor_sizes=tuple(sizes))
    assert args == dataclasses.replace(TrainArgs.defaults("cpu"), seed=seed, minutes=minutes, ppo=ppo)
    assert parse("controller eval" + " --randomize" * randomize).randomize is randomize
