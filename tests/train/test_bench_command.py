"""`rdp bench` hands the right settings on and sums up what comes back."""

import json

import pytest

from rdp_jax.config import ConfigError
from train import bench, cli
from train.args import BenchArgs


def test_flags_become_settings():
    args = BenchArgs(name="physics", num_envs=4, set=("steps=2", 'cases=["native"]', "noise=0.1"))
    assert bench.overrides(args) == {"lanes": 4, "steps": 2, "cases": ("native",), "noise": 0.1}


@pytest.mark.parametrize("change", [{"set": ("speed=3",)}, {"set": ("steps",)}, {"backend": "mjx"}])
def test_a_setting_that_the_scenario_lacks_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        bench.overrides(BenchArgs(name="physics", **change))


@pytest.mark.parametrize("pair", ["lanes=abc", "lanes=2.5", "steps=true", 'noise="0.1"', "cases=3"])
def test_a_setting_of_another_type_is_refused(pair, capfd):
    assert cli.main(["bench", "physics", "--set", pair]) == 2
    assert f"--set: got '{pair}'" in capfd.readouterr().err


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
