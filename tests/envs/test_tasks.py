"""Planner environments: the action's meaning, the observation's layout, success and near misses, the expert at work."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from box_views import placed

from envs.chunk import Chunked
from envs.t1.robot import Robot
from envs.tasks.box import EDGE, TABLE_HEIGHT
from envs.tasks.catalog import TASKS, make_expert, make_task
from envs.tasks.command import ACTION_DIM, HAND_HIGH, HAND_LOW, STAND, VELOCITY_HIGH, PlannedProcess, decode, encode
from envs.tasks.hierarchy import PRIVILEGED_LAYOUT, Hierarchy, equalities
from envs.tasks.objects import RIM
from envs.tasks.start import Obstacle, Start, place_robot
from envs.tasks.transport import GOAL_EDGE
from envs.toy import Toy
from rdp_jax.config import ConfigError
from train.controller_weights import act, load_part
from train.rollouts import EpisodeRunner, ExpertPlayer, Tally, report


@pytest.fixture(scope="session")
def controller():
    return {"legs": load_part("legs"), "hands": load_part("hands")}


@pytest.fixture(scope="session")
def pickup():
    return Hierarchy(make_task("pickup"), act)


@pytest.fixture(scope="session")
def start(pickup, controller):
    """A start and its parameters, computed once."""
    params = pickup.default_params(controller)
    return jax.jit(pickup.reset)(jax.random.key(0), params), params


def test_commands_survive_the_action_and_limits_hold():
    rng = np.random.default_rng(0)
    wild = decode(jnp.asarray(10.0 * rng.normal(size=ACTION_DIM), jnp.float32))
    assert (np.abs(wild.velocity) <= VELOCITY_HIGH + 1e-6).all()
    assert (wild.hand_pos[0] >= HAND_LOW).all() and (wild.hand_pos[0] <= HAND_HIGH).all()
    assert (-wild.hand_pos[1, 1] >= HAND_LOW[1]) and (-wild.hand_pos[1, 1] <= HAND_HIGH[1])
    for i in range(2):
        np.testing.assert_allclose(wild.hand_rot[i] @ wild.hand_rot[i].T, np.eye(3), atol=1e-5)
    again = decode(encode(wild))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(wild), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_a_velocity_near_zero_means_standing(axis):
    action = encode(decode(jnp.zeros(ACTION_DIM)))
    slow = action.at[:3].set(0.99 * STAND * np.array([1, -1, 1], np.float32))
    assert np.all(np.asarray(decode(slow).velocity) == 0.0)
    fast = slow.at[axis].set(1.01 * STAND[axis])
    np.testing.assert_array_equal(decode(fast).velocity, fast[:3])  # one axis is enough, and the others count then, too


def test_chunks_stop_at_the_end_of_an_episode():
    toy = Toy(5)
    chunked, params = Chunked(toy, 3), toy.default_params()
    assert chunked.spec.action_dim == 6 and chunked.spec.episode_steps == 2
    state = toy.reset(jax.random.key(0), params)
    once = chunked.step(state, jnp.zeros(6), params)
    single, paid = state, 0.0
    for _ in range(3):
        single = toy.step(single, jnp.zeros(2), params)
        paid += float(single.reward)
    assert float(once.reward) == pytest.approx(paid) and not bool(once.truncated)
    last = chunked.step(once, jnp.zeros(6), params)
    assert bool(last.truncated) and int(last.task.step) == 5  # two of the three actions, not three
    with pytest.raises(ConfigError, match="executed=6"):
        Chunked(toy, 6)


def test_the_rest_of_a_chunk_is_not_simulated(pickup, start, stepped, monkeypatch):
    monkeypatch.setattr(pickup.task, "success", lambda world, view: jnp.array(True))
    state, params = start
    chunk = jnp.tile(encode(decode(jnp.zeros(ACTION_DIM))), 3)
    after = jax.block_until_ready(jax.jit(lambda s: Chunked(pickup, 3).step(s, chunk, params))(state))
    assert bool(after.terminated) and not bool(after.physics.diverged)
    assert sum(stepped) == pickup.ticks


def test_observation_is_its_manifest(pickup, start):
    state, _ = start
    assert state.obs["actor"].shape == (8 * pickup.frame_dim,)
    privileged = {**PRIVILEGED_LAYOUT, **pickup.task.privileged_layout}
    assert state.obs["critic"].shape == (pickup.frame_dim + sum(privileged.values()),)
    frames = np.asarray(state.obs["actor"]).reshape(8, -1)
    assert (frames == frames[0]).all()  # the first frame stands for those before the start
    names = list(pickup.frame_layout)
    offset = sum(pickup.frame_layout[n] for n in names[: names.index("box")])
    view = pickup.view(state)
    np.testing.assert_allclose(frames[0, offset : offset + 3], view.local(pickup.task.box_pose(view)[:3]), atol=1e-5)


def test_starts_vary_and_nothing_moves_before_the_first_action(pickup, start):
    _, params = start
    states = jax.jit(jax.vmap(pickup.reset, (0, None)))(jax.random.split(jax.random.key(1), 16), params)
    base = np.asarray(states.physics.qpos[:, :2])
    assert base[:, 0].max() < -0.35 and base.std(0).min() > 0.05
    mass = np.asarray(states.task.inner.task.model.body_mass[:, pickup.task.body])
    assert mass.min() >= 0.5 and mass.max() <= 2.0 and mass.std() > 0.2
    box = np.asarray(states.physics.qpos[:, pickup.task.box])
    corner = 0.5 * EDGE * np.sqrt(2)
    assert (box[:, 0] > corner * 0.7).all() and (np.abs(box[:, 1]) < 0.5).all()


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("name", ["pickup", "transport", "stairs"])
def test_no_start_is_inside_a_table_or_a_platform(name, scale):
    task = make_task(name)
    model = task.build().compile()
    task.bind(model)
    stand = jnp.asarray(Robot.from_model(model).stand_qpos, jnp.float32)
    params = task.default_params().replace(scale=jnp.float32(scale))
    arrange = jax.jit(jax.vmap(lambda key: task.arrange(key, stand, params)))
    starts = np.asarray(arrange(jax.random.split(jax.random.key(2), 64)), np.float64)
    data, names = mujoco.MjData(model), [model.geom(i).name for i in range(model.ngeom)]
    robot = model.body_rootid[model.geom_bodyid] == model.body_rootid[model.jnt_bodyid[0]]
    things = [
        i for i, n in enumerate(names) if n in ("table", "goal_table", "shelf", "box") or n.startswith("platform")
    ]
    for qpos in starts:
        data.qpos[:] = qpos
        mujoco.mj_forward(model, data)
        distances = [
            mujoco.mj_geomDistance(model, data, i, j, 0.05, None) for i in np.flatnonzero(robot) for j in things
        ]
        assert min(distances) > 0.0
    assert starts[:, 0].std() > 0.08 * min(scale, 3.0)
    assert len(np.unique(starts[:, 0])) == 64  # none is moved to a line that others are moved to


def test_a_place_that_is_too_near_is_drawn_again():
    params, wall = Start.nominal(0.3, 0.8).replace(scale=jnp.float32(3.0)), Obstacle((-0.5, -9.0), (9.0, 9.0), 0.1)
    keys, still = jax.random.split(jax.random.key(0), 500), jnp.zeros(7)
    place = jax.vmap(lambda key, obstacles: place_robot(key, still, params, jnp.zeros(3), obstacles), (0, None))
    free, kept = np.asarray(place(keys, ())), np.asarray(place(keys, (wall,)))
    good = free[:, 0] <= -0.6
    assert 0.2 < good.mean() < 0.8 and (kept[:, 0] <= -0.6).all()
    np.testing.assert_array_equal(kept[good], free[good])
    # They are as those that were good at once.
    for of in (lambda q: q[:, 0], lambda q: q[:, 1] ** 2, lambda q: q[:, 6] ** 2):
        assert of(kept[~good]).mean() == pytest.approx(of(free[good]).mean(), rel=0.15)


def test_equality_constraints_begin_as_the_model_says(pickup):
    spec = mujoco.MjSpec.from_string(
        "<mujoco><worldbody><body name='a'><freejoint/><geom size='.1'/></body><body name='b'><freejoint/><geom size='.1'/>"
        "</body></worldbody><equality><weld body1='a' body2='b' active='false'/><weld body1='a' body2='b'/></equality></mujoco>"
    )
    model = spec.compile()

    class Switching:
        neq = 2

    held = equalities(Switching(), model)
    process = PlannedProcess(pickup.control.controller, equalities=held)
    state = process.start(jax.random.key(0), jnp.asarray(process.controller.stand_arm))
    np.testing.assert_array_equal(state.eq_active, [0.0, 1.0])
    assert equalities(pickup.task, model) is None
    Switching.neq = 1
    with pytest.raises(ConfigError, match="neq=1, allowed: 0, or all 2"):
        equalities(Switching(), model)


def test_a_world_s_box_is_the_world_s_own():
    """`Scene(box=...)` has the controller's environment hold it; a task does with it what it likes."""
    task = make_task("door")
    task.scene = dataclasses.replace(task.scene, box=0.25)
    control = Hierarchy(task, act).control
    assert control.carry is None and control.model.body("box").id > 0


def test_copies_of_one_start_are_disturbed_apart(pickup, start):
    state, params = start
    often = params.control.replace(push=jnp.full(2, 0.3), push_interval=jnp.float32(0.02))
    step, stand = jax.jit(pickup.step), encode(decode(jnp.zeros(ACTION_DIM)))
    copies = [step(state.replace(key=key), stand, params.replace(control=often)) for key in jax.random.split(state.key)]
    speeds = [np.asarray(copy.physics.qvel[:2]) for copy in copies]
    assert np.abs(speeds[0] - speeds[1]).max() > 0.05


def test_a_hand_s_speed_is_that_of_the_arm(pickup, start):
    state, params = start
    qvel = state.physics.qvel.at[:2].set(jnp.array([0.3, 0.4])).at[2:].set(0.0)  # the robot glides, its joints at rest
    moving = state.replace(physics=state.physics.replace(qvel=qvel))
    data = mujoco.MjData(pickup.control.model)
    data.qpos[:], data.qvel[:] = np.asarray(moving.physics.qpos), np.asarray(qvel)
    mujoco.mj_forward(pickup.control.model, data)
    seen = pickup.control._hand_velocity(moving.physics.replace(sensordata=jnp.asarray(data.sensordata, jnp.float32)))
    np.testing.assert_allclose(seen, 0.0, atol=1e-4)
    after = jax.jit(pickup.step)(moving, encode(decode(jnp.zeros(ACTION_DIM))), params)
    speed = np.linalg.norm(pickup.control._hand_velocity(after.physics), axis=-1).mean()
    assert float(after.metrics["hand_speed_mps"]) == pytest.approx(speed, abs=1e-5)
    assert np.linalg.norm(after.physics.qvel[:3]) > 0.05  # or it would be the same in the world


def test_physics_that_broke_down_wins_and_loses_nothing(pickup, start, monkeypatch):
    state, params = start
    action = encode(decode(jnp.zeros(ACTION_DIM)))
    for judged in ("success", "failure"):
        for name in ("success", "failure"):
            monkeypatch.setattr(pickup.task, name, lambda world, view, says=name == judged: jnp.array(says))
        step = jax.jit(lambda s: pickup.step(s, action, params))
        metric = {"success": "success", "failure": "drop"}[judged]
        assert float(step(state).metrics[metric]) == 1.0
        broken = step(state.replace(physics=state.physics.replace(diverged=jnp.array(True))))
        assert (float(broken.metrics[metric]), float(broken.reward)) == (0.0, 0.0)


def test_pickup_is_won_by_holding_and_by_nothing_less(pickup, start):
    task, (state, _) = pickup.task, start
    low = jnp.asarray([0.2, 0.0, TABLE_HEIGHT + 0.5 * EDGE + 0.09, 1, 0, 0, 0], jnp.float32)

    def won(**changes):
        view = placed(pickup, state, **changes)
        world = task.start(view)
        for _ in range(4):
            world = task.advance(world, view)
            assert not bool(task.success(world, view))  # 0.4 s are not enough
        return bool(task.success(task.advance(world, view), view))

    assert won()
    assert not won(box=low)
    assert not won(speed=1.0)  # thrown
    assert not won(hands=jnp.zeros((2, 3)))  # nobody holds it
    fallen = placed(pickup, state, box=jnp.asarray([0.2, 0.0, 0.3, 1, 0, 0, 0], jnp.float32))
    assert bool(task.failure(task.start(fallen), fallen))


def test_transport_is_won_by_letting_go_at_the_goal():
    env = Hierarchy(make_task("transport"), act)
    task = env.task
    view = env.view
    del view
    controller = {"legs": load_part("legs"), "hands": load_part("hands")}
    state = env.reset(jax.random.key(0), env.default_params(controller))
    world = state.task.world
    goal = task.goal_pose(world)
    at_goal = jnp.concatenate([goal[:2], jnp.array([TABLE_HEIGHT + 0.5 * EDGE, 1.0, 0, 0, 0])])
    away = placed(env, state, box=at_goal, hands=jnp.array([[0.3, 0.4, 0.0], [0.3, -0.4, 0.0]]))

    def won(view):
        now = world
        for _ in range(5):
            now = task.advance(now, view)
        return bool(task.success(now, view))

    assert won(away)
    assert not won(placed(env, state, box=at_goal))  # still in the hands
    assert not won(placed(env, state, box=at_goal.at[0].add(0.11), hands=away.measured.hand_pos))
    assert not won(placed(env, state, box=at_goal.at[2].add(0.05), hands=away.measured.hand_pos))
    first_table = jnp.asarray([0.17, 0.0, TABLE_HEIGHT + 0.5 * EDGE, 1, 0, 0, 0], jnp.float32)
    assert not won(placed(env, state, box=first_table, hands=away.measured.hand_pos))
    near = placed(env, state, box=at_goal.at[0].add(0.06), hands=away.measured.hand_pos)
    assert won(near)
    stricter = task.start(away, task.default_params().replace(near=jnp.float32(0.05))).near
    world = world.replace(near=stricter)
    assert float(stricter) == pytest.approx(0.05) and won(away) and not won(near)


@pytest.mark.parametrize(("inside", "stays"), [(0.15, True), (0.06, True), (-0.02, False)])
def test_a_box_that_juts_out_over_the_goal_table_falls_only_past_its_middle(inside, stays):
    task = make_task("transport")
    model = task.build().compile()
    task.bind(model)
    data = mujoco.MjData(model)
    data.qpos[:2] = -1.5  # the robot collapses elsewhere
    turned = 0.5 * (0.5 * np.pi + 0.1)
    place = np.array([-0.4, GOAL_EDGE + RIM + inside, task.top + 0.5 * EDGE])
    data.qpos[task.box] = [*place, np.cos(turned), 0, 0, np.sin(turned)]
    mujoco.mj_step(model, data, nstep=round(1.0 / model.opt.timestep))
    moved = np.linalg.norm(data.qpos[task.box[:3]] - place)
    assert (moved < 0.003) == stays


def test_the_expert_picks_the_box_up(pickup, start, stepped):
    _, params = start
    runner = EpisodeRunner(pickup, ExpertPlayer(make_expert("pickup", pickup)), record=True)
    told: list[Tally] = []
    played = runner.play(jax.random.key(7), np.arange(8), params, progress=told.append)
    found = report(pickup, played)
    assert sum(stepped) == pickup.ticks * played.steps.sum()  # who has ended is not simulated while others go on
    assert len(set(played.steps)) > 1
    assert told[-1] == (8, played.success.sum(), played.steps.sum(), 1.0)
    assert all(a.share < b.share and a.ended <= b.ended for a, b in itertools.pairwise(told))
    assert found["success_rate"] >= 0.6 and found["trials"] == 8
    assert played.frames.shape[1:] == (8, pickup.frame_dim) and played.actions.shape[2] == ACTION_DIM
    i = int(np.argmax(played.success))
    track = played.reached[: played.steps[i], i]
    assert (np.diff(track) >= 0).all() and track[0] < track[-1] == played.stage[i]  # what replays are labelled by
    lifted = played.qpos[: played.steps[i], i, pickup.task.box[2]]
    assert lifted[0] < TABLE_HEIGHT + 0.5 * EDGE + 0.01 and lifted[-1] > TABLE_HEIGHT + 0.5 * EDGE + 0.09
    # No box flies: between two frames it moves no faster than the hands can.
    assert (
        np.abs(
            np.diff(played.qpos[: played.steps[i], i, pickup.task.box[:3][0] : pickup.task.box[2] + 1], axis=0)
        ).max()
        < 0.15
    )


def test_unknown_tasks_are_refused():
    with pytest.raises(ConfigError, match="pickup"):
        make_task("juggling")
    assert set(TASKS) >= {"pickup", "transport"}


def test_grasped_means_both_palms_at_the_box(pickup, start):
    state, _ = start
    at_sides = jnp.array([[0.0, 0.125, 0.0], [0.0, -0.125, 0.0]])
    held = placed(pickup, state)
    assert bool(pickup.task.grasped(held))
    middle = held.local(pickup.task.box_pose(held)[:3])
    squeezing = at_sides * (0.272 / 0.25)  # the widest that palms at a held box were seen
    assert bool(pickup.task.grasped(placed(pickup, state, hands=middle + squeezing)))
    assert not bool(pickup.task.grasped(placed(pickup, state, hands=middle + 1.25 * at_sides)))
    assert not bool(pickup.task.grasped(placed(pickup, state, hands=middle + 2.0 * at_sides)))  # palms too far apart
    assert not bool(pickup.task.grasped(placed(pickup, state, hands=middle + at_sides + 0.1)))  # beside it
