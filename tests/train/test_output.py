"""Summaries, statistics and progress."""

import io
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train import output


def test_summary_has_the_promised_keys_and_is_json():
    metrics = {
        "rate": np.float32(0.5),
        "steps": jnp.int32(3),
        "nan": float("nan"),
        "pair": (1, np.inf),
        "where": Path("a/b"),
    }
    record = output.summary("x", seed=1, backend="native", num_envs=8, wall_s=2.0, env_steps=1000, metrics=metrics)
    assert tuple(record) == output.SUMMARY_KEYS
    assert record["steps_per_s"] == 500.0
    assert record["metrics"] == {"rate": 0.5, "steps": 3, "nan": None, "pair": [1, None], "where": "a/b"}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["versions"].keys() >= {"python", "jax", "mujoco"}


def test_summary_without_steps_has_no_rate():
    assert output.summary("x", seed=0, backend="mjx", num_envs=0, wall_s=0.0, metrics={})["steps_per_s"] is None


def test_summary_refuses_what_is_not_data():
    with pytest.raises(TypeError, match="object"):
        output.plain({"x": object()})


def test_show_lists_nested_metrics():
    stream = io.StringIO()
    record = output.summary("x", seed=0, backend="mjx", num_envs=2, wall_s=1.0, metrics={"a": {"b": 1 / 3}, "c": None})
    output.show(record, stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("rdp x: ")
    assert [line.split() for line in lines[1:]] == [["a.b", "0.333333"], ["c", "-"]]


def test_show_ends_with_what_learning_changed():
    judged = {"trials": 8, "success_rate": 0.5, "falls": 3}
    rates = {f"success_rate_{w}": x for w, x in (("before", 0.5), ("after", 1.0))}
    spans = {f"success_ci95_{w}": x for w, x in (("before", [0.2, 0.8]), ("after", [0.7, 1.0]))}
    metrics = {**rates, **spans, "before": judged, "report": "runs/a/report.html"}
    stream = io.StringIO()
    output.show(output.summary("x", seed=0, backend="mjx", num_envs=2, wall_s=1.0, metrics=metrics), stream)
    *rows, last = stream.getvalue().splitlines()
    assert last == "success 0.500 (0.200-0.800) -> 1.000 (0.700-1.000); report: runs/a/report.html"
    found = dict(row.split(maxsplit=1) for row in rows[1:] if row)
    assert found["before"] == "0.500 of 8 (more in the JSON summary)"
    assert found["success_ci95_before"] == "[0.2, 0.8]"


# --- Wilson --------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_are_z_deviations_from_the_rate(pair):
    """By its definition: at both ends the observed rate lies z standard errors (of the end) away."""
    successes, trials = pair
    rate = successes / trials
    low, high = output.wilson(successes, trials)
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(rate - end) == pytest.approx(output.Z_95 * math.sqrt(end * (1 - end) / trials), rel=1e-6)


def test_wilson_known_value():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263 and 0 of 20.
    assert output.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert output.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_wilson_without_trials_knows_nothing():
    assert output.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="allowed"):
        output.wilson(successes, trials)


# --- progress ------------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps(progress, clock, count, seconds):
    for i in range(1, count + 1):
        clock.now += seconds
        progress.update(i, env_steps=1000 * i, note=f"return {i}")


def test_progress_off_a_terminal_prints_a_line_now_and_then():
    clock, stream = Clock(), io.StringIO()
    with output.Progress("train", 50, stream=stream, clock=clock) as progress:
        steps(progress, clock, 50, 1.0)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/50", "11/50", "21/50", "31/50", "41/50", "50/50"]
    assert lines[2] == "train  21/50  21k env steps  1k steps/s  29s left  return 21"


def test_progress_rate_leaves_compilation_out():
    clock, stream = Clock(), io.StringIO()
    progress = output.Progress("train", 3, every_s=0, stream=stream, clock=clock)
    clock.now += 60
    progress.update(1, env_steps=10)
    clock.now += 1
    progress.update(2, env_steps=110)
    assert "steps/s" not in stream.getvalue().splitlines()[0]
    assert "100 steps/s  1s left" in stream.getvalue().splitlines()[1]


def test_progress_minds_the_time_budget():
    clock, stream = Clock(), io.StringIO()
    progress = output.Progress("train", 10**6, budget_s=90, every_s=0, stream=stream, clock=clock)
    steps(progress, clock, 2, 10.0)
    assert "1m10s left" in stream.getvalue().splitlines()[-1]


def test_progress_of_what_ends_all_at_once_goes_by_the_time_that_has_passed():
    clock, stream = Clock(), io.StringIO()
    progress = output.Progress("eval", 256, every_s=0, stream=stream, clock=clock)
    for i in range(1, 6):
        clock.now += 10
        progress.update(0 if i < 5 else 1, env_steps=100 * i, note="won 0", share=i / 10)
    assert "50s left  won 0" in stream.getvalue().splitlines()[-1]


def test_progress_on_a_terminal_is_a_bar():
    clock, stream = Clock(), Terminal()
    with output.Progress("train", 4, stream=stream, clock=clock) as progress:
        steps(progress, clock, 4, 1.0)
    assert "4/4" in stream.getvalue()
    assert "1k steps/s" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (42, "42s"), (192, "3m12s"), (3599.7, "1h00m"), (7320, "2h02m")]
)
def test_duration(seconds, text):
    assert output.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (12345, "12.3k"), (4.5e6, "4.5M"), (2e9, "2G"), (1e6, "1M")]
)
def test_count(number, text):
    assert output.count(number) == text
