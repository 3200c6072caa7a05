"""Sanity of tasks: extremes are what mechanics says, bounds are kept by random plans and broken by what should break them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sanity
from envs.physics.guard import flatten_params
from envs.tasks.box import EDGE, TABLE_HEIGHT
from envs.tasks.command import ACTION_DIM, HAND_HIGH, HAND_LOW, VELOCITY_HIGH, VELOCITY_LOW, decode, encode
from train.task_args import TaskFlags
from train.tasks import HumanoidStage


@pytest.fixture(scope="module")
def watched():
    """Watched physics of the pickup, its environment, and a row for `look` of standing beside the table, at rest."""
    env = HumanoidStage(TaskFlags(task="pickup", backend="native"), 1).env
    physics = sanity.Watched(env.control.physics)
    qpos = np.array(env.control.controller.robot.stand_qpos, np.float32)
    qpos[:2] = -2.0, 0.0
    resting = [0.2, 0.0, TABLE_HEIGHT + 0.5 * EDGE + 1e-4, 1, 0, 0, 0]
    qpos[env.task.box] = resting
    flat = np.asarray(flatten_params(physics.nominal()))

    def row(qvel=None, mass=None, **box):
        at, velocity, scale = qpos.copy(), np.zeros(physics.model.nv, np.float32), flat.copy()
        if qvel is not None:
            velocity[: len(qvel)] = qvel
        if "z" in box:
            at[env.task.box[2]] = box["z"]
        if "speed" in box:
            velocity[env.task.box_vel[0]] = box["speed"]
        if mass is not None:
            scale[1 + env.task.body] = mass
        return np.concatenate([at, velocity, scale])

    return physics, env, row


def test_extremes_are_what_mechanics_says(watched):
    physics, env, row = watched
    model = physics.model
    trunk = model.jnt_bodyid[model.joint("root").id]
    robot = float(model.body_mass[model.body_rootid == model.body_rootid[trunk]].sum())
    boxed = float(model.body_mass[env.task.body])
    depth = 0.02
    rows = [
        row(),
        row(qvel=[0.5, 0.0, 0.0]),
        row(speed=3.0),
        row(speed=3.0, mass=2.0),
        row(z=TABLE_HEIGHT + 0.5 * EDGE - depth),
    ]
    energy, sunk, speed = physics.look(np.stack(rows)).T
    assert energy[0] == pytest.approx(0.0, abs=1e-6) and speed[0] == 0.0
    assert energy[1] == pytest.approx(0.5 * robot * 0.25, rel=1e-3)
    assert energy[2] == pytest.approx(0.5 * boxed * 9.0, rel=1e-3) and speed[2] == pytest.approx(3.0, rel=1e-4)
    assert energy[3] == pytest.approx(boxed * 9.0, rel=1e-3)  # twice the mass
    assert sunk[4] - sunk[0] == pytest.approx(depth, abs=2e-3) and sunk[0] < 2e-3


def test_random_actions_cover_what_a_planner_may_ask_for():
    actions = jax.vmap(sanity.random_action)(jax.random.split(jax.random.key(0), 512))
    assert actions.shape == (512, ACTION_DIM)
    command = jax.vmap(decode)(actions)
    for found, low, high in (
        (command.velocity, VELOCITY_LOW, VELOCITY_HIGH),
        (command.hand_pos[:, 0], HAND_LOW, HAND_HIGH),
        (command.hand_pos[:, 1] * jnp.array([1, -1, 1]), HAND_LOW, HAND_HIGH),
    ):
        assert ((found.max(0) - found.min(0)) > 0.95 * (high - low)).all()
    moving = np.any(np.asarray(command.velocity) != 0.0, axis=-1)  # the others are asked to stand
    assert moving.mean() > 0.95
    again, actions = jax.vmap(encode)(command)[moving], actions[moving]
    unclipped = np.r_[0:6, 12:15, 21:23]  # all but rotations: decoding has changed nothing
    np.testing.assert_allclose(again[:, unclipped], actions[:, unclipped], atol=1e-6)


def test_what_is_broken_is_said():
    fine = {"kinetic_energy_j": 100.0, "penetration_m": 0.01, "object_speed_mps": 3.0, "diverged": 0}
    assert sanity.broken(fine) == []
    assert sanity.broken({**fine, "penetration_m": 0.2, "diverged": 2}) == [
        "penetration_m 0.2, allowed: up to 0.05",
        "diverged 2, allowed: 0",
    ]
    assert len(sanity.broken({**fine, "kinetic_energy_j": float("nan")})) == 1  # not a number is not within bounds

    def expert(rate, low, high):
        return {"success_rate": rate, "success_ci95": [low, high], "trials": 16}

    native, near, far = expert(0.9, 0.7, 0.97), expert(0.75, 0.5, 0.9), expert(0.2, 0.1, 0.5)
    assert sanity.disagreement({"native": native, "mjx": near}) == []
    assert sanity.disagreement({"native": native}) == []
    assert sanity.disagreement({"native": native, "mjx": far}) == ["expert wins 0.900 on native, 0.200 on mjx"]


@pytest.mark.slow
def test_random_plans_keep_the_bounds(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(sanity, "BACKENDS", ("native",))
    words = ["--task", "pickup", "--episodes", "8", "--num-envs", "8", "--agreement", "4", "--seed", "3"]
    assert sanity.main([*words, "--backend", "native", "--json", "--out", str(tmp_path)]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record == json.loads((tmp_path / "summary.json").read_text())
    found = record["metrics"]
    assert found["episodes"] == 8 and found["broken"] == [] and found["diverged"] == 0
    assert 8 <= record["env_steps"] <= 8 * 200
    # They did something: the robot moved, feet pressed on the floor.
    assert found["kinetic_energy_j"] > 1.0 and 0.0 < found["penetration_m"] < 0.05
    assert found["expert"]["native"]["trials"] == 4 and found["expert"]["native"]["success_rate"] > 0.3


def test_bad_input(capsys):
    assert sanity.main(["--episodes", "0"]) == 2
    assert "episodes=0" in capsys.readouterr().err
