"""Reports of runs that learn: which episode is shown, what the page says; the demo's settings; what bad flags get."""

import dataclasses
import json

import numpy as np
import pytest

from rdp_jax.algos.dppo import DPPOConfig
from rdp_jax.runs import RunError
from train import cli, demo, play
from train.learning import Pace, on_the_way, reached
from train.learning_report import a_pair, controllers_turns, read_curve, replay_of, write
from train.rollouts import MEANS, Played, report
from train.task_args import DemoArgs
from train.tasks import HumanoidStage


def played(stage, success, drop=None):
    """Recorded episodes of ten steps in which nothing moves."""
    count = len(success)
    qpos = np.tile(stage.env.control.controller.robot.stand_qpos.astype(np.float32), (10, count, 1))
    lost = ~np.array(success)
    return Played(
        success=np.array(success),
        fall=np.zeros(count, bool),
        drop=lost if drop is None else np.array(drop),
        steps=np.full(count, 10),
        stage=np.where(success, 4, 2).astype(np.int32),
        means=dict.fromkeys(MEANS, np.full(count, 0.02)),
        seed=np.arange(count),
        frames=qpos[..., :1],
        actions=qpos[..., :1],
        qpos=qpos,
    )


@pytest.fixture(scope="module")
def stage():
    return HumanoidStage(demo.RefineArgs(task="pickup"))


def test_the_start_shown_is_one_that_was_lost_and_is_won(stage):
    before, after = played(stage, [True, False, False]), played(stage, [True, False, True])
    assert a_pair(before, after) == 2
    assert a_pair(after, after) == 0


def test_a_replay_says_which_stages_it_reached(stage):
    one = played(stage, [True, False])
    reached = np.zeros((10, 2), np.int32)
    reached[2:, 0], reached[3:, 0], reached[7:, 0] = 1, 3, 4  # the last within the time of the ending's words
    shown = replay_of(stage.env, dataclasses.replace(one, reached=reached), 0)
    assert [(round(c.start, 3), c.text) for c in shown.captions] == [
        (0.0, "pickup"),
        (0.3, "near"),
        (0.4, "lifted"),
        (0.5, "won"),
    ]
    assert [c.text for c in replay_of(stage.env, one, 1).captions] == ["pickup", "dropped it"]


def test_the_page_holds_figures_curve_and_replay(stage, tmp_path):
    before, after = played(stage, [True, False, False]), played(stage, [True, True, True])
    figures = {"before": report(stage.env, before), "after": report(stage.env, after)}
    rows = [
        {"iteration": i, "episode/finished": 20.0, "episode/return": 0.5 + 0.1 * i, "policy/kl_last": 0.1}
        for i in range(1, 4)
    ]
    rows[0]["eval/success_rate"], rows[2]["eval/success_rate"] = 0.4, 0.9
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "command": "refine",
        "task": "pickup",
        "seed": 7,
        "metrics": {
            "iterations": 3,
            "env_steps": 480,
            "final_std_scores": {"0.5": 0.75, "0": 0.875},
            "final_noise_scores": {"1": 0.9},
        },
        "wall_s": 90.0,
        "device": "cpu",
        "versions": {"jax": "1"},
        "git": "abc",
    }
    path = write(
        tmp_path / "report.html", stage.env, record, figures, read_curve(tmp_path), {"before": before, "after": after}
    )
    page = path.read_text()
    for word in (
        "0.333",
        "1.000",
        "Start number 1",
        "touched",
        "(160 environment steps)",
        "Success with exploration noise",
        "judged on the way",
        "0.5: 0.750, 0: 0.875",
        "share of the exploration noise that stays was chosen by success on other starts (1: 0.900)",
        "rdp refine",
    ):
        assert word in page


def test_ninety_per_cent_are_not_a_few_lucky_episodes():
    def row(i, ended, rate):
        return {"iteration": i, "episode/finished": ended, "episode/return": rate}

    assert reached([row(1, 10.0, 1.0), row(2, 600.0, 0.8), row(3, 600.0, 0.91)]) == 3
    assert reached([row(1, 10.0, 1.0)] * 5) is None
    few = [row(i, 30.0, 0.95) for i in range(1, 6)]
    assert reached(few) == 4  # the first at which a hundred have ended
    assert reached([row(1, 0.0, None), row(2, 200.0, 0.9)]) == 2
    mixed = [row(1, 30.0, 1.0), row(2, 30.0, 0.6), row(3, 30.0, 1.0), row(4, 30.0, 0.8)]
    assert reached(mixed) is None


def test_all_first_episodes_end_before_ninety_per_cent_count(stage):
    # 200 steps of an episode in chunks of 8: two iterations of 24 chunks (the last of 25 is in the second), 25 of one.
    long = DPPOConfig(num_envs=4, unroll_length=24, minibatches=4)
    assert Pace.of(long, stage.env.spec, 8) == Pace(steps=4 * 24 * 8, first=2)
    assert Pace.of(dataclasses.replace(long, unroll_length=1), stage.env.spec, 8) == Pace(steps=32, first=25)


def test_the_controllers_turns_are_stretches_of_iterations():
    def rows(*phases):
        return [{"iteration": i, "phase": float(p)} for i, p in enumerate(phases, 1)]

    assert controllers_turns(rows(1, 1, 0, 0, 1, 0)) == [(0.5, 2.5), (4.5, 5.5)]
    assert controllers_turns(rows(0, 2, 2)) == controllers_turns([{"iteration": 1}]) == []


def test_no_curve_is_no_error(tmp_path):
    assert read_curve(None) == [] and read_curve(tmp_path) == []


def test_the_demo_is_refine_with_other_settings(tmp_path):
    args = demo.refine_args(DemoArgs(num_envs=16, trials=4, seed=3, minutes=2.5), tmp_path / "run")
    assert args.dppo.num_envs == 16 and args.seed == 3 and args.trials == 4 and args.minutes == 2.5
    phases = [args.schedule.phase(i) for i in range(50)]
    assert phases == sorted(phases) and phases[1] == "controller" and phases[8] == "planner"  # the one, then the other
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RunError, match="not empty"):
        demo.run_demo(DemoArgs(out=tmp_path / "taken"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["refine", "--recorded", "6"], "--recorded: got 6, allowed: a multiple of shuffle_groups=4"),
        (["refine", "--task", "hopper"], "--task"),
        (
            ["refine", "--planner", "missing.safetensors"],
            "--planner: got 'missing.safetensors'",
        ),
        (["refine", "--resume"], "--resume"),
        (["dsrl", "--dsrl.capacity", "10"], "--dsrl.capacity: got 10, allowed: at least 256"),
        (["dsrl", "--dsrl.noise-bound", "-1"], "--dsrl.noise-bound: got -1"),
        (["demo", "--minutes", "0"], "--minutes: got 0"),
    ],
)
def test_bad_flags_are_refused(words, said, capsys):
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_play_shows_what_it_was_asked_for(stage):
    some = played(stage, [True, False, True, False, True])
    assert play.choose(some, "won", 2) == [0, 2]
    assert play.choose(some, "lost", 9) == [1, 3]
    assert play.choose(some, "mixed", 4) == [0, 2, 1, 3]
    assert play.choose(played(stage, [True] * 3), "mixed", 2) == [0, 1]


def test_frames_in_between_stay_rotations(stage):
    qpos = np.tile(stage.env.control.controller.robot.stand_qpos, (3, 1))
    qpos[1, 3:7], qpos[2, 3:7] = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [0, 0, 0, -1.0]  # a quarter turn, and a half
    qpos[:, 0] = [0.0, 1.0, 2.0]
    found = play.between(stage.env.control.model, qpos, 10.0, 40.0)
    np.testing.assert_allclose(found[:, 0], np.arange(8) / 4, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found[:, 3:7], axis=1), 1.0)
    assert np.abs(np.diff(found[:, 6])).max() < 0.3


def test_evaluations_on_the_way_are_found_in_the_log(tmp_path):
    assert on_the_way(None) == {} and on_the_way(tmp_path) == {}
    rows = [{"iteration": 1, "loss": 0.5}, {"iteration": 2, "loss": 0.4, "eval/return": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert on_the_way(tmp_path) == {"2": {"return": 3.0}}
