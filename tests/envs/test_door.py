"""The door: its latch, what wins, the expert at work."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs.tasks.catalog import make_expert, make_task
from envs.tasks.door import HALF_WIDTH, LEVER_MAX, PAST, RELEASE, THICK
from envs.tasks.hierarchy import Hierarchy
from train.controller_weights import act, load_part
from train.rollouts import EpisodeRunner, ExpertPlayer, report


@pytest.fixture(scope="session")
def door():
    return Hierarchy(make_task("door"), act)


@pytest.fixture(scope="session")
def start(door):
    """A start and its parameters, computed once."""
    params = door.default_params({"legs": load_part("legs"), "hands": load_part("hands")})
    return jax.jit(door.reset)(jax.random.key(0), params), params


def opened_to(latched, torque=30.0, seconds=1.0):
    """Angle of the door alone after a steady torque on its hinge [rad]."""
    model = make_task("door").build().compile()
    data = mujoco.MjData(model)
    # The robot is out of the way.
    data.qpos[0] = -5.0
    data.eq_active[:] = latched
    joint = model.joint("door")
    for _ in range(round(seconds / model.opt.timestep)):
        data.qfrc_applied[joint.dofadr[0]] = torque
        mujoco.mj_step(model, data)
    return float(data.qpos[joint.qposadr[0]])


def test_a_shove_does_not_open_a_latched_door():
    assert abs(opened_to(True)) < 0.05
    assert opened_to(False) > 0.5


def test_the_closer_shuts_the_door():
    model = make_task("door").build().compile()
    data = mujoco.MjData(model)
    data.qpos[0], data.eq_active[:] = -5.0, False
    joint = model.joint("door")
    data.qpos[joint.qposadr[0]] = 0.8
    for _ in range(round(4.0 / model.opt.timestep)):
        mujoco.mj_step(model, data)
    assert abs(data.qpos[joint.qposadr[0]]) < 0.1


def turned(door, state, angle, lever, **measured):
    """The view with door and lever at these angles [rad]."""
    view = door.view(state)
    qpos = view.physics.qpos.at[door.task.joints].set(jnp.array([angle, lever]))
    view = view.replace(physics=view.physics.replace(qpos=qpos))
    return view.replace(measured=view.measured.replace(**measured))


def test_the_latch_remembers(door, start):
    task, (state, _) = door.task, start
    world = task.start(door.view(state))
    assert bool(world.latched) and not bool(world.worked)

    def after(world, angle, lever):
        world, held = task.tick(world, turned(door, state, angle, lever))
        assert bool(held[0]) == bool(world.latched)
        return world

    assert bool(after(world, 0.0, RELEASE - 0.05).latched)  # not far enough
    free = after(world, 0.0, RELEASE + 0.05)
    assert not bool(free.latched) and bool(free.worked)
    ajar = after(free, 0.3, 0.0)
    assert not bool(ajar.latched)  # a lever let go of in an open door catches nothing
    shut = after(ajar, 0.0, 0.0)
    assert bool(shut.latched) and bool(shut.worked)


def test_won_only_when_all_of_the_robot_is_through_by_the_lever(door, start):
    task, (state, _) = door.task, start

    def won(x, y=0.0, worked=True, feet=None, by=None):
        view = door.view(state)
        world = task.start(view).replace(worked=jnp.array(worked))
        for way in ((-0.2, y), (0.1, y if by is None else by), (-0.1, 0.0), (0.1, y if by is None else by)):
            world, _ = task.tick(world, view.replace(physics=at(view, *way)))
        world, _ = task.tick(world, view.replace(physics=at(view, x, y)))
        both = jnp.full((2,), x) if feet is None else jnp.asarray(feet)
        placed = view.measured.feet.at[:, 0].set(both)
        view = view.replace(
            physics=at(view, x, y),
            measured=view.measured.replace(feet=placed, hand_pos=jnp.array([[0.3, 0.2, 0.0], [0.3, -0.2, 0.0]])),
        )
        return bool(task.success(world, view))

    def at(view, x, y):
        qpos = view.physics.qpos.at[:2].set(jnp.array([x, y])).at[3:7].set(jnp.array([1.0, 0, 0, 0]))
        return view.physics.replace(qpos=qpos)

    past = 0.5 * THICK + PAST + 0.13
    assert won(past)
    assert not won(past - 0.02)
    assert not won(past, worked=False)  # by another way
    assert not won(past, feet=[past, past - 0.2])  # one foot behind
    assert won(past, y=0.7, by=0.3)  # between the posts, then to the side
    assert not won(past, y=1.9 * HALF_WIDTH)  # around the frame
    assert not won(past, by=1.9 * HALF_WIDTH)  # and back behind it


def test_what_is_seen_of_the_door(door, start):
    task, (state, _) = door.task, start
    view = turned(door, state, 0.5, LEVER_MAX)
    seen = np.asarray(task.objects(task.start(view), view))
    np.testing.assert_allclose(seen[-2:], [0.5, LEVER_MAX], atol=1e-6)
    np.testing.assert_allclose(view.world(jnp.asarray(seen[4:7])), task.lever(view), atol=1e-5)
    assert state.obs["actor"].shape == (8 * door.frame_dim,)


def test_the_expert_goes_through(door, start):
    _, params = start
    runner = EpisodeRunner(door, ExpertPlayer(make_expert("door", door)), record=True)
    played = runner.play(jax.random.key(3), np.arange(6), params)
    found = report(door, played)
    assert found["success_rate"] >= 0.8
    i = int(np.argmax(played.success))
    angle, lever = (played.qpos[: played.steps[i], i, j] for j in door.task.joints)
    # The lever goes down before the door opens, and the door opens wide.
    assert np.argmax(lever > RELEASE) < np.argmax(angle > 0.1) and angle.max() > 0.6
