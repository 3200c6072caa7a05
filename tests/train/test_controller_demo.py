"""`rdp controller demo`: the course is one a robot can do, numbers are counted right, an interrupted demo still tells what it found."""

import json
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs.control.commands import CommandRanges
from envs.control.controller import CONTROL_DT, Command
from envs.control.env import nominal_params
from envs.t1.model import load_model
from envs.t1.robot import STAND_ARM_LEFT, Robot
from rdp_jax.runs import RunError, free_directory
from train import cli, controller_report, course
from train import controller_demo as demo
from train.args import ControllerDemoArgs

MODEL = load_model("flat")
ROBOT = Robot.from_model(MODEL)


def standing(ticks=100, robots=32):
    """A record of robots that stand still, hands on target, one of which steps and one of which falls."""
    shape = (ticks, robots)
    qpos = np.tile(ROBOT.stand_qpos.astype(np.float32), (*shape, 1))
    feet = np.zeros((*shape, 2, 4), np.float32)
    feet[..., 0, 1], feet[..., 1, 1] = 0.1, -0.1
    one = {"hand_pos": np.array([[0.3, 0.2, 0.1], [0.3, -0.2, 0.1]]), "hand_rot": np.tile(np.eye(3), (2, 1, 1))}
    commands = Command(
        velocity=np.zeros((ticks + 1, robots, 3)),
        gripper=np.zeros((ticks + 1, robots, 2)),
        **{k: np.tile(v, (ticks + 1, robots, *[1] * v.ndim)) for k, v in one.items()},
    )
    record = course.Record(
        commands=commands,
        kicks=np.zeros((*shape, 2), np.float32),
        up=np.ones(shape, bool),
        alive=np.ones(robots, bool),
        qpos=qpos,
        base=qpos[..., :4] * [1, 1, 1, 0],
        feet=feet,
        target=feet[:, :, 0].copy(),
        swing=np.zeros(shape, int),
        walking=np.zeros(shape, bool),
        landed=np.zeros(shape, bool),
        landing_error=np.zeros(shape),
        landing_yaw_error=np.zeros(shape),
        judged=np.zeros(shape, bool),
        velocity_error=np.zeros(shape),
        moved=np.zeros((*shape, 3)),
        window=np.full(shape, 0.5),
        hand_pos_error=np.full((*shape, 2), 0.01),
        hand_rot_error=np.full((*shape, 2), 0.1),
    )
    record.walking[:50, 0] = True
    for tick, error in ((24, 0.01), (49, 0.03)):
        record.landed[tick, 0], record.landing_error[tick, 0] = True, error
        record.judged[tick, 0], record.velocity_error[tick, 0] = True, 0.05
    record.kicks[10, 1] = 0.4, 0.0
    # Falls in tick 30; what comes later must not count.
    record.up[31:, 1] = record.alive[1] = False
    record.landed[40:, 1], record.landing_error[40:, 1], record.hand_pos_error[40:, 1] = True, 9.0, 9.0
    record.qpos[60:, 1] = np.nan
    return record


# --- course ------------------------------------------------------------------------------------------------------------


def test_the_course_is_continuous_and_within_what_the_controller_is_trained_for():
    c, ranges = course.make_course(), CommandRanges()
    assert 30 <= c.seconds <= 45
    assert c.ticks % course.BLOCK == 0
    speed = np.abs(np.diff(c.arm_q, axis=0)).max() / CONTROL_DT
    assert 0.9 * course.HAND_SPEED < speed < 1.01 * course.HAND_SPEED <= ranges.hand_speed
    low, high = np.transpose([ranges.vx, ranges.vy, ranges.yaw])
    assert (c.velocity >= low - 1e-6).all()
    assert (c.velocity <= high + 1e-6).all()
    assert not c.velocity[[0, -1]].any()
    np.testing.assert_allclose(c.arm_q[[0, -1], :7], np.tile(STAND_ARM_LEFT, (2, 1)), atol=1e-6)
    assert list(c.starts) == sorted(c.starts)
    moves = {tuple(np.sign(s.velocity)) for s in c.segments}
    assert {(1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (1, 0, -1), (-1, 0, 0), (0, 0, 0)} <= moves


def test_arms_stay_within_their_ranges_and_touch_nothing():
    c, data = course.make_course(), mujoco.MjData(MODEL)
    assert (c.arm_q >= ROBOT.arm_range[:, 0]).all()
    assert (c.arm_q <= ROBOT.arm_range[:, 1]).all()
    for arm_q in c.arm_q[::10]:
        data.qpos[:] = ROBOT.stand_qpos
        data.qpos[2] += 0.5  # off the ground: every contact is one with itself
        data.qpos[ROBOT.arm_qpos] = arm_q
        mujoco.mj_forward(MODEL, data)
        assert data.ncon == 0


def test_a_segment_too_short_for_its_moves_is_refused():
    with pytest.raises(ValueError, match="'Hurry'"):
        course.make_course([course.Segment("Hurry", 0.2, left=("high",))])


def test_pushes_have_the_speed_and_the_pace_asked_for():
    kicks = course.pushes(np.random.default_rng(0), 2000, 0.4)
    ticks = np.flatnonzero(kicks.any(axis=1))
    np.testing.assert_allclose(np.linalg.norm(kicks[ticks], axis=1), 0.4, rtol=1e-5)
    assert ticks[0] == 150
    assert ((np.diff(ticks) >= 150) & (np.diff(ticks) <= 250)).all()


@pytest.mark.slow
def test_the_driver_records_what_the_robots_do():
    driver = course.Driver(lambda weights, obs: jnp.zeros((obs["actor"].shape[0], weights.size)), 2, "native")
    c = course.make_course(
        [course.Segment("Stand", 0.5), course.Segment("Reach", 1.5, left=("front",), right=("front",))]
    )
    kicks = np.zeros((c.ticks, 2, 2), np.float32)
    kicks[5, 1] = 0.0, 0.3
    blocks = []
    record = driver.drive(
        np.zeros(12),
        np.zeros(14),
        course.stack_params([nominal_params()] * 2),
        c.commands(driver.env.controller),
        kicks,
        jax.random.split(jax.random.key(0), 2),
        lambda ticks: bool(blocks.append(ticks)) or len(blocks) < 2,
    )
    assert blocks == [50, 100]
    assert record.ticks == c.ticks == 100
    assert record.qpos.shape == (100, 2, MODEL.nq)
    assert record.up[:50].all()
    # The references alone stand, and bring the hands where they are to be.
    assert record.base[20, 0, 2] == pytest.approx(0.65, abs=0.03)
    assert record.hand_pos_error[:, 0].max() < 0.05
    assert record.commands.velocity.shape == (101, 2, 3)
    goal = np.asarray(record.commands.hand_pos)[-1, 0]
    np.testing.assert_allclose(goal, driver.env.controller.hands_at(c.arm_q[-1])[0], atol=1e-5)
    assert record.base[12, 1, 1] - record.base[12, 0, 1] > 0.02  # it was pushed to the left
    assert driver._advance._cache_size() == 1


# --- numbers and page --------------------------------------------------------------------------------------------------


def test_numbers_count_what_happened_before_a_fall():
    found = controller_report.numbers(standing(), slice(0, 2))
    assert (found["episodes"], found["survived"], found["survival_rate"]) == (2, 1, 0.5)
    assert found["touchdowns"] == 2
    assert found["touchdown_error_m"] == pytest.approx(0.02)
    assert found["base_velocity_error_mps"] == pytest.approx(0.05)
    assert found["hand_position_error_m"] == pytest.approx(0.01)
    assert found["upright_s"] == pytest.approx((100 + 31) * CONTROL_DT / 2)
    assert standing().fell_at(1) == pytest.approx(31 * CONTROL_DT)
    empty = controller_report.numbers(standing(), slice(2, 4))
    assert empty["touchdown_error_m"] is None


def test_a_replay_shows_targets_until_the_fall():
    record = standing()
    replay = controller_report.replay(record, 1, controller_report.robot_model(loaded=True), demo_captions())
    assert [c.text for c in replay.captions] == ["Stand", "Fell after 0.6 s"]
    by_name = {m.name: m for m in replay.markers}
    assert np.isfinite(by_name["left hand target"].pos[:15]).all()
    assert np.isnan(by_name["left hand target"].pos[17:]).all()
    goal = ROBOT.stand_qpos[:3] + np.array([0.3, 0.2, 0.1])
    np.testing.assert_allclose(by_name["left hand target"].pos[0], goal, atol=1e-6)
    assert np.isfinite(by_name["push"].pos).any()


def demo_captions():
    return [demo.Caption(0.0, "Stand"), demo.Caption(1.5, "Forward")]


def test_first_and_last_of_learning():
    curves = [
        {"seconds": i + 1.0, "reward": float(i), "falls_per_10s": 2.0, "touchdown_error_m": None, "episode_s": 1.0}
        for i in range(20)
    ]
    found = demo.learning_metrics(curves, 100)
    assert (found["reward_first"], found["reward_last"], found["falls_last"]) == (7.0, 17.0, 2.0)
    assert found["steps_per_s"] == 100.0
    assert demo.learning_metrics([], 100)["reward_last"] is None


# --- the command -------------------------------------------------------------------------------------------------------


class FakeDriver:
    """Instead of an environment that takes a minute to compile."""

    def __init__(self, act, robots, backend):
        del act, backend
        physics = type("physics", (), {"name": "native"})
        self.robots, self.env = robots, type("env", (), {"physics": physics})


@pytest.fixture
def quick(monkeypatch):
    """A demo whose stages do next to nothing; returns the names of those that ran."""
    ran = []

    def stage(name, find=lambda found: None):
        def run(self):
            ran.append(name)
            find(self.found)

        return run

    def learn(found):
        found.curves = [
            {"seconds": i + 1.0, "reward": 0.1 * i, "falls_per_10s": 2.0, "touchdown_error_m": 0.1, "episode_s": np.nan}
            for i in range(12)
        ]
        found.learner = {"untrained": standing(), "after 12 s": standing()}

    actor = {"mlp": {"layer_0": {"kernel": np.zeros((3, 8))}, "last": {}}}
    monkeypatch.setattr(demo, "load_part", lambda part, path=None: {"actor": actor})
    monkeypatch.setattr(demo, "Driver", FakeDriver)
    monkeypatch.setattr(demo.Demo, "compile", stage("compile"))
    monkeypatch.setattr(demo.Demo, "walk", stage("walk", lambda found: setattr(found, "course", standing())))
    monkeypatch.setattr(demo.Demo, "test", stage("test", lambda f: f.tests.update({"random commands": standing()})))
    monkeypatch.setattr(demo.Demo, "learn", stage("learn", learn))
    monkeypatch.setattr(
        demo.Demo, "film", stage("film", lambda f: setattr(f, "video", demo.Video(None, None, "no OpenGL")))
    )
    return ran


def test_demo_writes_a_page_and_says_where(quick, tmp_path, capsys):
    out = tmp_path / "new"
    assert cli.main(["controller", "demo", "--out", str(out)]) == 0
    assert quick == ["compile", "walk", "test", "learn", "film"]
    page = (out / "report.html").read_text()
    for text in ("Stayed up", "Footsteps from above", "Falls per 10 s", "after 12 s", "no OpenGL"):
        assert text in page
    assert str(out / "report.html") in capsys.readouterr().out.splitlines()[-1]
    found = json.loads((out / "summary.json").read_text())["metrics"]
    assert (found["survived"], found["course_s"], found["interrupted"]) == (True, 2.0, None)
    assert found["learning"]["falls_last"] == 2.0


@pytest.mark.parametrize("at", ["walk", "learn"])
def test_an_interrupted_demo_reports_what_it_found(quick, monkeypatch, tmp_path, at):
    stage = getattr(demo.Demo, at)

    def interrupted(self):
        stage(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(demo.Demo, at, interrupted)
    out = tmp_path / "new"
    record = demo.run_demo(ControllerDemoArgs(out=out))
    assert quick[-1] == at
    assert record["metrics"]["interrupted"] == {"walk": "course", "learn": "learning"}[at]
    assert "Interrupted" in (out / "report.html").read_text()


def test_an_interrupt_does_not_wait_for_the_compiler(quick, monkeypatch, tmp_path):
    release, finished = threading.Event(), []

    def slow(self):
        signal.raise_signal(signal.SIGINT)
        self._wait("compiling", lambda: release.wait(60.0) and finished.append(True))

    monkeypatch.setattr(demo.Demo, "compile", slow)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(ControllerDemoArgs(out=tmp_path / "new"))
    assert not finished
    release.set()
    assert not (tmp_path / "new").exists()


def test_a_directory_in_use_is_left_alone(quick, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        demo.run_demo(ControllerDemoArgs(out=tmp_path))
    assert cli.main(["controller", "demo", "--out", str(tmp_path)]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_default_directory_is_a_new_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first, second = (free_directory(None, "demo") for _ in range(2))  # within a second, by two processes as it were
    assert first.parent == Path("runs") and first.is_dir() and second.is_dir() and second != first


def test_settings_are_checked_before_anything_runs(quick, tmp_path):
    assert cli.main(["controller", "demo", "--num-envs", "6", "--out", str(tmp_path / "new")]) == 2
    assert quick == []
