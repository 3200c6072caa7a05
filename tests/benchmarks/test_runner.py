"""The benchmark runner: refuses nonsense by name, times in turns, writes a self-describing result."""

import json

import pytest

from benchmarks import runner
from benchmarks.scenarios import SCENARIOS, Case, Ratio, Scenario, Setting
from rdp_jax.config import ConfigError

ORDER: list[str] = []


def toy_setup(work, missing=None):
    def case(name):
        def build():
            ORDER.append(f"build {name}")
            return lambda: ORDER.append(name)

        return Case(name, build, work, "appends", details=lambda: {"odd": float("nan")}, missing=missing)

    return [case("a"), case("b")]


@pytest.fixture
def toy(monkeypatch):
    scenario = Scenario(
        summary="toy",
        setup=f"{__name__}:toy_setup",
        settings={"work": Setting(3, int, 1, 9)},
        ratios={
            "a_over_b": Ratio(("a", "b"), target=0.0),
            "never": Ratio(("a", "b"), target=0.0, where="abacus"),
            "absent": Ratio(("a", "c")),
        },
        repeats=2,
        warmup=1,
    )
    monkeypatch.setitem(SCENARIOS, "toy", scenario)
    ORDER.clear()


@pytest.mark.usefixtures("toy")
def test_cases_take_turns_and_the_result_is_written(tmp_path):
    result = runner.run("toy", out=tmp_path, work=5)
    assert ["build a", "a", "build b", "b", *["a", "b"] * 2] == ORDER
    assert result == json.loads((tmp_path / "toy.json").read_text(), parse_constant=pytest.fail)
    assert result["cases"]["a"]["odd"] is None  # JSON has no NaN
    assert result["settings"] == {"work": 5}
    assert result["cases"]["a"]["work"] == 5
    assert len(result["cases"]["b"]["all_s"]) == 2
    assert result["cases"]["a"]["compile_s"] >= 0
    assert set(result["ratios"]) == {"a_over_b", "never"}
    assert result["ratios"]["a_over_b"]["met"] is True
    assert result["ratios"]["never"]["met"] is None
    assert result["peak_memory_bytes"]["process"] > 1 << 20
    assert {"cpu", "cores", "versions", "git", "peers", "platform"} <= set(result["machine"])


@pytest.mark.usefixtures("toy")
def test_nonsense_is_refused_by_name():
    with pytest.raises(ConfigError, match="scenario='typo', allowed: physics"):
        runner.run("typo", out=None)
    with pytest.raises(ConfigError, match="typo=1, allowed: a setting of toy: work, repeats"):
        runner.run("toy", out=None, typo=1)
    with pytest.raises(ConfigError, match="repeats=0"):
        runner.run("toy", out=None, repeats=0)
    with pytest.raises(ConfigError, match="work=10, allowed: an integer, 1 .. 9"):
        runner.run("toy", out=None, work=10)
    with pytest.raises(ConfigError, match="cases='bullet'"):
        runner.run("physics", out=None, cases=("bullet",))


def test_a_scenario_of_which_nothing_can_be_measured_here_is_refused():
    settings = {"work": Setting(3, int), "missing": Setting("no abacus", str)}
    scenario = Scenario("toy", f"{__name__}:toy_setup", settings)
    with pytest.raises(ConfigError, match=r"cases=\['a', 'b'\].*no abacus"):
        runner.measure("toy", scenario, scenario.defaults, 1)


def test_every_setting_allows_its_default():
    for scenario in SCENARIOS.values():
        for name, setting in scenario.settings.items():
            assert setting.check(name, setting.default) == setting.default


def test_every_scenario_can_be_imported_and_its_ratios_name_cases():
    for scenario in SCENARIOS.values():
        module, function = scenario.setup.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
        known = scenario.defaults.get("cases")
        for ratio in scenario.ratios.values():
            # A case may come in sizes: `jax_40`.
            assert not known or all(any(f"{name}_".startswith(f"{case}_") for case in known) for name in ratio.over)


def test_physics_runs_small():
    result = runner.run(
        "physics", out=None, repeats=1, lanes=4, steps=2, cases=("native", "native_randomised", "bare_rollout")
    )
    assert all(case["per_second"] > 0 for case in result["cases"].values())
    assert result["ratios"]["native_over_bare_rollout"]["median"] > 0
