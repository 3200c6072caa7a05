"""`rdp refine` from end to end, tiny: both learners move, what was learned can be judged, and there is a report."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from envs.tasks.command import TICKS
from rdp_jax.algos.joint import Schedule
from rdp_jax.checkpoint import load_weights
from rdp_jax.config import ConfigError, validate
from rdp_jax.planner import load
from train.cli import main
from train.controller_weights import load_part
from train.learning import Pace
from train.refine import Curriculum, check_parts, check_std, quieter, rehearsals
from train.task_args import RefineArgs
from train.tasks import shipped

WORDS = ["refine", "--task", "pickup", "--num-envs", "4", "--recorded", "4", "--trials", "2", "--seed", "1"]
WORDS += ["--dppo.unroll-length", "2", "--dppo.minibatches", "2", "--dppo.epochs", "1", "--dppo.critic-warmup", "0"]
WORDS += ["--dppo.reset-pool", "4", "--controller.minibatches", "4", "--controller.epochs", "1"]
WORDS += ["--controller.critic-warmup", "0", "--schedule.rehearsals", "0", "--controller-parts", "both"]
WORDS += ["--schedule.controller-iterations", "1", "--schedule.planner-iterations", "1"]


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs)


def test_both_learn_and_a_report_is_written(tmp_path, capsys):
    out = tmp_path / "refined"
    watched = ["--eval-every", "2", "--keep", "best", "--final-std", "0", "1"]
    assert main([*WORDS, *watched, "--iterations", "2", "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = record["metrics"]
    assert record["env_steps"] == metrics["env_steps"] == 2 * 4 * 2 * 8 and metrics["iterations"] == 2
    assert {"before", "after", "planner_alone", "success_rate_after", "hand_speed_mps_before"} <= set(metrics)
    assert set(metrics["evaluations"]) == {"2"} and metrics["kept_iteration"] == 2
    assert "success_rate_untrained" not in metrics  # --first-std was not asked for
    phases = [json.loads(line)["phase"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(set(phases)) == 2
    learned, given = load(out / "planner.safetensors"), load(shipped("pickup", "pretrained"))
    assert differ(learned.bundle.weights, given.bundle.weights)
    scores = metrics["final_std_scores"]  # of two, the better one comes out
    assert set(scores) == {"0", "1"}
    chosen = 1.0 if scores["1"] > scores["0"] else 0.0
    assert learned.config.diffusion.first_std == chosen and given.config.diffusion.first_std == 1.0
    assert ("success_rate_untrained_final" in metrics) == (chosen == 0.0)
    for part in ("legs", "hands"):
        assert differ(load_weights(out / f"{part}.safetensors")[0]["actor"], load_part(part)["actor"])
    kept = load_weights(out / "best.safetensors")[0]
    assert not differ(kept["controller"]["legs"]["actor"], load_weights(out / "legs.safetensors")[0]["actor"])
    assert "<html" in (out / "report.html").read_text()


PLANNERS, CONTROLLERS = 0.0, 1.0  # phases


def test_starts_widen_when_enough_episodes_succeed_and_a_resumed_run_knows_how_far_they_were(tmp_path):
    args, pace = RefineArgs(curriculum=True, curriculum_pass=0.8, out=tmp_path), Pace(steps=1, first=1)
    curriculum = Curriculum(args, None, pace)
    rows = []
    for success, finished, phase, scale in (
        (1.0, 200.0, PLANNERS, 1.0),  # of the first episodes those that were won quickly
        (0.79, 200.0, PLANNERS, 1.0),
        (0.8, 100.0, PLANNERS, 1.1),
        (None, 0.0, PLANNERS, 1.1),
        (0.95, 60.0, PLANNERS, 1.1),  # too few
        (1.0, 200.0, CONTROLLERS, 1.1),  # the planner does not explore
        (0.95, 60.0, PLANNERS, 1.21),
        (0.95, 200.0, PLANNERS, 1.21),  # begun on narrower starts
        (0.95, 200.0, PLANNERS, 1.331),
    ):
        named = {"episode/return": success, "episode/finished": finished, "phase": phase}
        rows.append({"iteration": len(rows) + 1, **named})
        curriculum.learn(rows[-1])
        assert curriculum.scale == pytest.approx(scale)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    resumed = Curriculum(dataclasses.replace(args, resume=True), None, pace)
    assert vars(resumed).items() >= {"scale": curriculum.scale, "since": 9, "rows": curriculum.rows}.items()
    assert Curriculum(args, None, pace).scale == 1.0
    assert Curriculum(dataclasses.replace(args, practice_range=1.5), None, pace).scale == 1.5
    without = Curriculum(dataclasses.replace(args, curriculum=False), None, pace)
    without.learn(rows[2])
    assert without.scale == 1.0
    alone = dataclasses.replace(args, schedule=Schedule(planner_iterations=0))
    with pytest.raises(ConfigError, match=r"curriculum=True, allowed: False where the planner learns nothing"):
        validate(alone)


def test_a_quieter_controller_differs_in_its_exploration_only():
    given = load_part("legs")
    found = quieter(given, 0.5)
    np.testing.assert_allclose(np.exp(found["actor"]["log_std"]), 0.5 * np.exp(given["actor"]["log_std"]), rtol=1e-6)
    assert not differ(found["actor"]["mlp"], given["actor"]["mlp"])
    assert not differ(found["normalizer"], given["normalizer"])


def test_parts_rehearse_where_they_were_trained():
    args = RefineArgs(task="stairs", backend="native", controller_parts="both")
    found = rehearsals(args, args.controller, platforms=True)
    assert {part: env.env.config.scene for part, (_, env, _) in found.items()} == {"legs": "platforms", "hands": "flat"}
    samples = [own.num_envs * own.unroll_length for own, _, _ in found.values()]
    recorded = args.recorded * args.dppo.unroll_length * 8 * TICKS  # a chunk is eight actions
    assert all(0.15 < n / (n + recorded) < 0.25 for n in samples)
    none = dataclasses.replace(args, schedule=Schedule(controller_iterations=0))
    assert not rehearsals(none, args.controller, platforms=True)
    hands = RefineArgs(task="stairs", backend="native")
    assert list(rehearsals(hands, args.controller, platforms=True)) == ["hands"]


def test_a_std_that_would_be_put_right_at_once_is_refused():
    controller = {part: load_part(part) for part in ("legs", "hands")}
    check_std(RefineArgs(controller_parts="both"), controller)
    check_std(RefineArgs(controller_std=0.05), controller)  # of the hands
    quiet = RefineArgs(controller_parts="both", controller_std=0.05)
    with pytest.raises(ConfigError, match=r"controller_std=0.05, allowed: 0.1"):
        check_std(quiet, controller)
    check_std(dataclasses.replace(quiet, controller=dataclasses.replace(quiet.controller, min_std=0.001)), controller)
    check_std(dataclasses.replace(quiet, schedule=Schedule(controller_iterations=0)), controller)


def test_what_the_controller_learns_from_must_divide_into_its_minibatches():
    args = RefineArgs()
    check_parts(args, 8, None)
    odd = dataclasses.replace(args, controller=dataclasses.replace(args.controller, minibatches=7))
    with pytest.raises(ConfigError, match=r"controller.minibatches=7, allowed: a divisor of 15360"):
        check_parts(odd, 8, None)
    unrehearsed = dataclasses.replace(args, controller=dataclasses.replace(args.controller, minibatches=60))
    with pytest.raises(ConfigError, match=r"controller.minibatches=60, allowed: a divisor of 4096"):
        check_parts(unrehearsed, 8, None)
    check_parts(dataclasses.replace(odd, schedule=Schedule(controller_iterations=0)), 8, None)
    grouped = dataclasses.replace(args, controller=dataclasses.replace(args.controller, shuffle_groups=3))
    with pytest.raises(ConfigError, match=r"recorded=64, allowed: a multiple of shuffle_groups=3"):
        check_parts(grouped, 8, None)
