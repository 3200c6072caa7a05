"""`rdp bench` hands the right settings on and sums up what comes back."""

import json

import pytest

from benchmarks import command as bench
from benchmarks.args import BenchArgs
from rdp_jax.config import ConfigError
from train import cli


def test_flags_become_settings():
    args = BenchArgs(name="physics", num_envs=4, set=("steps=2", 'cases=["native"]', "noise=0.1"))
    assert bench.overrides(args) == {"lanes": 4, "steps": 2, "cases": ("native",), "noise": 0.1}


def test_a_backend_is_a_case_where_cases_are_backends():
    assert bench.overrides(BenchArgs(name="tasks", backend="native"))["cases"] == ("native",)
    assert bench.overrides(BenchArgs(name="physics", backend="mjx"))["cases"] == ("mjx",)


@pytest.mark.parametrize(
    "change",
    [
        {"set": ("speed=3",)},
        {"set": ("steps",)},
        {"backend": "mjx", "name": "chain"},
        {"backend": "mjx", "set": ("cases=native",)},
    ],
)
def test_a_setting_that_the_scenario_lacks_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        bench.overrides(BenchArgs(**{"name": "physics", **change}))


@pytest.mark.parametrize(
    ("pair", "allowed"),
    [
        ("lanes=abc", "an integer, 1 .. 1048576"),
        ("lanes=2.5", "an integer, 1 .. 1048576"),
        ("lanes=0", "an integer, 1 .. 1048576"),
        ("lanes=-1", "an integer, 1 .. 1048576"),
        ("lanes=1000000000000", "an integer, 1 .. 1048576"),
        ("lanes=null", "an integer, 1 .. 1048576"),
        ("steps=true", "an integer"),
        ('noise="0.1"', "a number, 0.0 .. 10.0"),
        ("noise=NaN", "a number, 0.0 .. 10.0"),
        ("noise=1e999", "a number, 0.0 .. 10.0"),
        ("threads=foo", "an integer, 1 .. 1024, or null"),
        ("threads=-5", "an integer, 1 .. 1024, or null"),
        ("cases=3", "one or more of native | "),
        ("cases=[]", "one or more of native | "),
        ('cases=["native","bullet"]', "one or more of native | "),
        ("cases=[[1]]", "one or more of native | "),
    ],
)
def test_a_setting_that_may_not_be_is_refused_before_anything_runs(pair, allowed, capfd, monkeypatch):
    monkeypatch.setattr(bench, "run", None)
    assert cli.main(["bench", "physics", "--set", pair]) == 2
    name = pair.partition("=")[0]
    assert f"--set: got '{pair}', allowed: {name}=VALUE with VALUE {allowed}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "num_envs=6"], "--set: got 'num_envs=6', allowed: num_envs=VALUE with VALUE a multiple of"),
        (["--num-envs", "6"], "--num-envs: got 6, allowed: a multiple of"),
        (["--num-envs", "8", "--set", "minibatches=3"], "--set: got 'minibatches=3', allowed: minibatches=VALUE with"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_said_as_the_flag_that_sets_them(words, told, capfd):
    assert cli.main(["bench", "controller", *words]) == 2
    assert told in capfd.readouterr().err


def test_what_is_left_out_may_be_left_out_by_name():
    changes = bench.overrides(BenchArgs(name="physics", set=("threads=null", "noise=1")))
    assert changes == {"threads": None, "noise": 1}


@pytest.mark.parametrize(
    "words",
    [["--set", "lanes=2", "steps=3"], ["--set", "lanes=2", "--set", "steps=3"], ["--set=lanes=2", "--set=steps=3"]],
)
def test_settings_of_every_occurrence_of_the_flag_count(words):
    command = next(c for c in cli.COMMANDS if c.name == "bench")
    assert cli.parse(command, BenchArgs, ["physics", *words]).set == ("lanes=2", "steps=3")


def test_a_result_is_not_overwritten(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(bench, "run", None)
    (tmp_path / "physics.json").write_text("{}")
    assert cli.main(["bench", "physics", "--out", str(tmp_path)]) == 2
    assert f"--out: got '{tmp_path}', allowed: a directory without a physics.json" in capfd.readouterr().err
    assert (tmp_path / "physics.json").read_text() == "{}"


def test_a_single_case_is_a_case():
    assert bench.overrides(BenchArgs(name="physics", set=("cases=native",)))["cases"] == ("native",)


def test_bench(capfd, tmp_path):
    words = [
        "bench",
        "physics",
        "--num-envs",
        "4",
        "--repeats",
        "2",
        "--set",
        "steps=1",
        'cases=["native","bare_rollout"]',
    ]
    assert cli.main([*words, "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capfd.readouterr().out)
    assert (record["command"], record["task"], record["num_envs"]) == ("bench", "physics", 4)
    found = record["metrics"]
    assert found["per_second"] > 0
    assert found["env_steps_per_s"] is None  # physics steps are not environment steps
    assert "native_over_bare_rollout" in found["ratios"]
    assert found["result"] == json.loads((tmp_path / "physics.json").read_text())
