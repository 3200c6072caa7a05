"""The stairs: the shelf is out of reach from the floor and within reach from the platform, what wins, the expert at work."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from box_views import placed

from envs.experts import base
from envs.experts.stairs import APPROACH, WALK, StairsExpert
from envs.t1 import gait, kinematics, rotations
from envs.t1.gait import GaitConfig
from envs.t1.model import ground_height
from envs.t1.robot import BASE_HEIGHT, FOOT_AHEAD, FOOT_APART
from envs.tasks.box import EDGE, REACH
from envs.tasks.catalog import make_expert, make_task
from envs.tasks.hierarchy import PRIVILEGED_LAYOUT, Hierarchy
from envs.tasks.pickup import LIFT
from envs.tasks.stairs import BEFORE, BETWEEN, HALF_WIDTH, LEDGE, RISE, SHELF_HALF, SHELF_HEIGHT, Stairs
from envs.tasks.start import place_robot
from train.controller_weights import act, load_part
from train.rollouts import EpisodeRunner, ExpertPlayer, report

GRASP = jnp.asarray([0.16, 0.0, SHELF_HEIGHT + 0.5 * EDGE, 1, 0, 0, 0], jnp.float32)


@pytest.fixture(scope="session")
def controller():
    return {"legs": load_part("legs", climbs=True), "hands": load_part("hands")}


@pytest.fixture(scope="session")
def stairs():
    return Hierarchy(make_task("stairs"), act)


@pytest.fixture(scope="session")
def start(stairs, controller):
    """A start and its parameters, computed once."""
    params = stairs.default_params(controller)
    return jax.jit(stairs.reset)(jax.random.key(0), params), params


@pytest.fixture(scope="session")
def starts(stairs, start):
    """64 starts of three times the nominal spread."""
    params = start[1]
    world = params.control.world.replace(scale=jnp.float32(3.0))
    wide = params.replace(control=params.control.replace(world=world))
    reset = jax.jit(jax.vmap(stairs.reset, (0, None)))
    return jax.device_get(reset(jax.random.split(jax.random.key(1), 64), wide))


# --- the world -----------------------------------------------------------------------------------------------------------


def test_the_box_rests_on_the_shelf():
    task = Stairs()
    model = task.build().compile()
    task.bind(model)
    data = mujoco.MjData(model)
    data.qpos[0] = -5.0
    pose = np.asarray(GRASP)
    data.qpos[task.box] = pose
    for _ in range(round(2.0 / model.opt.timestep)):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos[task.box], pose, atol=2e-3)


def from_rectangle(x, y, middle, half):
    """Distance of points from a rectangle, 0 inside."""
    return np.hypot(np.maximum(np.abs(x - middle[0]) - half[0], 0), np.maximum(np.abs(y - middle[1]) - half[1], 0))


def test_no_place_on_the_floor_is_within_reach_of_the_box(stairs, starts):
    chain, model = stairs.control.controller.arm, stairs.control.model
    # However it bends, an arm is no longer than its links; the shoulders are left and right of the trunk's collision capsule.
    core = model.geom("trunk_core")
    assert abs(core.pos[0] - chain.offset_pos[0, 0]) < 0.01
    length = sum(np.linalg.norm(link) for link in chain.offset_pos[1:]) + np.linalg.norm(chain.end_pos)
    platform = stairs.task.scene.platforms[0]
    x, y = np.meshgrid(np.linspace(-3, 3, 301), np.linspace(-3, 3, 301))
    # With both soles on the floor the trunk leans over the platform by no more than a foot's length.
    off_platform = from_rectangle(x, y, (platform.x, platform.y), (platform.half_x, platform.half_y)) > 0
    leaning = from_rectangle(x, y, (platform.x, platform.y), (platform.half_x - 0.15, platform.half_y - 0.15)) > 0
    beside = from_rectangle(x, y, (SHELF_HALF[0], 0.0), SHELF_HALF) > core.size[0]
    # The shelf's top is at the height of that capsule, whether the robot stands on the floor or not.
    for ground in (0.0, RISE):
        low, high = BASE_HEIGHT + ground + core.pos[2] + np.array([-1, 1]) * (core.size[1] + core.size[0])
        assert low < SHELF_HEIGHT < high
    boxes = starts.physics.qpos[:, stairs.task.box[:2]]
    far = np.min([np.hypot(x - bx, y - by) for bx, by in boxes], axis=0)
    assert far[beside & leaning].min() > length + BETWEEN + 0.02
    assert far[beside & ~off_platform].min() < REACH, "the test would pass with a shelf that nothing is near to"


@pytest.mark.parametrize("lifted", [-0.03, 0.0, 0.17, 0.20])
def test_from_the_platform_both_palms_reach_it(stairs, lifted):
    control = stairs.control.controller
    place = np.asarray(stairs.task.grasp_place(GRASP))
    trunk = np.array([place[0], place[1], RISE + BASE_HEIGHT])
    pos, rot = base.beside(
        jnp.asarray(GRASP[:3]) - trunk + jnp.array([0, 0, lifted]), 0.0, 0.5 * EDGE, 0.05, jnp.zeros(2)
    )
    nominal = jnp.asarray(control.stand_arm[:7])
    q = kinematics.arm_ik(control.arm, pos[0], rot[0], nominal, nominal, iterations=100)
    found, turned = kinematics.fk(control.arm, q)
    assert np.linalg.norm(found - pos[0]) < 0.005
    assert np.linalg.norm(rotations.mat_to_rotvec(turned @ rot[0].T)) < 0.05


# --- starts and observations ---------------------------------------------------------------------------------------------


def test_starts_are_on_the_floor_before_the_ledge(stairs, start, starts):
    qpos, feet = starts.physics.qpos, np.asarray(jax.vmap(stairs.view)(starts).measured.feet)
    assert np.abs(qpos[:, 2] - BASE_HEIGHT).max() < 1e-3
    assert np.abs(feet[..., 2]).max() < 0.02
    assert feet[..., 0].max() < LEDGE - 0.1  # toes do not touch the platform
    assert np.abs(qpos[:, 1]).max() < HALF_WIDTH
    assert qpos[:, :2].std(0).min() > 0.1
    mass = np.asarray(starts.task.inner.task.model.body_mass[:, stairs.task.body])
    assert mass.min() >= 0.3 and mass.max() <= 1.0 and mass.std() > 0.1
    nominal = start[1].control.world
    assert float(nominal.angle) <= 0.3  # ledges are crossed roughly head-on


def test_training_disturbances_do_not_start_in_the_air(stairs, start):
    """The controller's own starts at ledges are not this world's."""
    params = start[1]
    on_top = params.replace(control=params.control.replace(ledge=jnp.array([1.0, 0.0])))
    state = jax.jit(stairs.reset)(jax.random.key(0), on_top)
    assert abs(float(state.physics.qpos[2]) - BASE_HEIGHT) < 1e-3


def test_observation_is_its_manifest(stairs, start):
    state, _ = start
    privileged = {**PRIVILEGED_LAYOUT, **stairs.task.privileged_layout}
    assert state.obs["actor"].shape == (8 * stairs.frame_dim,)
    assert state.obs["critic"].shape == (stairs.frame_dim + sum(privileged.values()),)
    seen = np.asarray(state.obs["actor"]).reshape(8, -1)[0, -14:]
    view = stairs.view(state)
    np.testing.assert_allclose(seen[:3], view.local(stairs.task.box_pose(view)[:3]), atol=1e-5)
    at = np.asarray(view.measured.base)
    c, s = np.cos(at[3]), np.sin(at[3])
    back = at[:2] + np.array([c * seen[9] - s * seen[10], s * seen[9] + c * seen[10]])
    np.testing.assert_allclose([*back, at[2] + seen[13]], [LEDGE, 0.0, RISE], atol=1e-5)
    np.testing.assert_allclose(np.asarray(state.obs["critic"])[-2:], view.measured.feet[:, 2] - RISE, atol=1e-6)


# --- what wins -----------------------------------------------------------------------------------------------------------


def retrieved(stairs, state, feet=(RISE, RISE), ahead=(0.5, 0.5), lift=LIFT + 0.01, **changes):
    """A view of the robot at the shelf: heights of the feet and how far beyond the ledge they are [m], the box's lift [m]."""
    changes.setdefault("box", GRASP.at[2].add(lift))
    view = placed(stairs, state, **changes)
    soles = view.measured.feet.at[:, 2].set(jnp.asarray(feet)).at[:, 0].set(LEDGE + jnp.asarray(ahead))
    return view.replace(measured=view.measured.replace(feet=soles))


def test_won_by_holding_the_box_on_the_platform_and_by_nothing_less(stairs, start):
    task, (state, _) = stairs.task, start
    advance, success = jax.jit(task.advance), jax.jit(task.success)

    def won(**changes):
        view = retrieved(stairs, state, **changes)
        world = task.start(view)
        for _ in range(4):
            world = advance(world, view)
            assert not bool(success(world, view))  # 0.4 s are not enough
        return bool(success(advance(world, view), view))

    assert won()
    assert won(feet=(RISE + 0.03, RISE))  # a step on the spot
    assert not won(feet=(0.0, RISE)) and not won(feet=(RISE, 0.0))  # one foot on the floor
    assert not won(feet=(RISE, RISE), ahead=(0.5, -0.2))  # one foot in the air before the ledge
    assert not won(lift=LIFT - 0.01)
    assert not won(speed=1.0)  # thrown
    middle = retrieved(stairs, state).local(GRASP[:3].at[2].add(LIFT + 0.01))
    left, right = jnp.array([0.0, 0.125, 0.0]), jnp.array([0.0, -0.125, 0.0])
    assert won(hands=middle + jnp.stack([left, right]))
    assert not won(hands=middle + jnp.stack([left, 2.5 * right]))  # by one palm
    assert not won(hands=middle + jnp.stack([2.5 * left, right]))
    assert not won(hands=middle + jnp.stack([left, left]))  # both on one side
    assert not won(hands=middle + jnp.stack([left, right]) + jnp.array([0.0, 0.0, -0.14]))  # on the forearms


def test_a_box_off_the_shelf_is_lost(stairs, start):
    state, _ = start
    world = state.task.world
    assert not bool(stairs.task.failure(world, retrieved(stairs, state)))
    assert bool(stairs.task.failure(world, retrieved(stairs, state, lift=-0.06)))


def test_stages_come_in_their_order(stairs, start):
    task, (state, _) = stairs.task, start
    aside = jnp.array([[0.3, 0.25, 0.0], [0.3, -0.25, 0.0]])

    def reached(**changes):
        view = retrieved(stairs, state, **changes)
        return task.stages[int(task.stage(task.start(view), view))]

    floor = {"feet": (0.0, 0.0), "lift": 0.0, "hands": aside}
    assert reached(ahead=(-0.6, -0.6), **floor) == "start"
    assert reached(ahead=(-0.15, -0.15), **floor) == "ledge"
    assert reached(feet=(RISE, 0.0), ahead=(0.1, -0.15), lift=0.0, hands=aside) == "foot_up"
    assert reached(ahead=(0.1, 0.15), lift=0.0, hands=aside) == "climbed"
    assert reached(lift=0.0) == "touched"
    assert reached(lift=0.05) == "lifted"
    held = retrieved(stairs, state)
    world = task.start(held).replace(held=jnp.int32(5))
    assert task.stages[int(task.stage(world, held))] == "held"


# --- the expert ----------------------------------------------------------------------------------------------------------


def test_the_expert_climbs_on_feet_that_follow(stairs, start):
    """Gait and expert without physics: feet and trunk are where their references say."""
    task, config, ticks, steps = stairs.task, GaitConfig(), 5, 200
    expert = StairsExpert(SimpleNamespace(task=task))
    ground = lambda x, y: ground_height(task.scene, x, y)  # noqa: E731
    platforms = task.scene.platforms
    place = task.first_place(GRASP)

    def episode(key):
        at = place_robot(key, jnp.zeros(7), start[1].control.world, place)
        yaw = rotations.yaw_of(at[3:7])
        sides = jnp.array([[FOOT_AHEAD, 0.5 * FOOT_APART], [FOOT_AHEAD, -0.5 * FOOT_APART]])
        feet = jnp.stack([jnp.append(at[:2] + gait.turn(yaw, side), jnp.stack([0.0, yaw])) for side in sides])
        memory = base.begin(key, jnp.zeros((2, 3))).replace(stage=jnp.int32(APPROACH))

        def action(carry, _):
            memory, state, feet, trunk = carry
            memory = base.wander(memory)
            up = (feet[:, 2] > RISE - 0.02) & (feet[:, 0] > LEDGE)
            stage, velocity = expert.ascend(memory, place, trunk, up, ~state.walking)
            memory = base.enter(memory, stage)

            def tick(carry, _):
                state, feet, _ = carry
                state = gait.advance(state, velocity, feet, jnp.zeros(2), jnp.zeros(2), config, ground, platforms)
                refs = gait.references(state, config, ground, platforms, 1.0)
                return (state, refs.feet, refs.base), (refs.target, state.walking)

            (state, feet, trunk), (target, walking) = jax.lax.scan(tick, (state, feet, trunk), None, length=ticks)
            return (memory, state, feet, trunk), (stage, feet, target, walking)

        begin = (memory, gait.stand(feet, 25), feet, jnp.append(at[:3], yaw))
        return jax.lax.scan(action, begin, None, length=steps)[1]

    stage, feet, target, walking = jax.device_get(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 32)))
    assert (stage[:, -1] == WALK).all()
    seconds = np.argmax(stage == WALK, axis=1) * 0.1
    assert seconds.min() > 2.0 and seconds.max() < 18.0  # of thirty
    on_top = feet[:, -1]
    assert (np.abs(on_top[..., 2] - RISE) < 1e-5).all() and (on_top[..., 0] > LEDGE + 0.1).all()
    assert np.abs(on_top[..., 3]).max() < 0.25 and np.abs(on_top[..., 1].mean(-1)).max() < 0.15
    # No foot is ever put down across the ledge, whose clearance for toes and heels the gait knows.
    clear = (target[..., 0] < LEDGE - 0.12) | (target[..., 0] > LEDGE + 0.10)
    assert clear[walking].all()
    # From where it lines up one step crosses the ledge.
    assert BEFORE + GaitConfig().ledge_behind < GaitConfig().climb_reach


@pytest.mark.slow
def test_the_expert_retrieves_the_box(stairs, start):
    runner = EpisodeRunner(stairs, ExpertPlayer(make_expert("stairs", stairs)), record=True)
    played = runner.play(jax.random.key(3), np.arange(8), start[1])
    assert report(stairs, played)["success_rate"] >= 0.6
    i = int(np.argmax(played.success))
    qpos = played.qpos[: played.steps[i], i]
    box, trunk = qpos[:, stairs.task.box[:3]], qpos[:, :3]
    assert box[0, 2] == pytest.approx(SHELF_HEIGHT + 0.5 * EDGE, abs=0.005) and box[-1, 2] > box[0, 2] + LIFT
    assert trunk[0, 0] < LEDGE and trunk[0, 2] < 0.67
    assert trunk[-1, 0] > LEDGE + 0.3 and trunk[-1, 2] > BASE_HEIGHT + RISE - 0.03
    # Nobody touches the box before the robot is up, and it neither flies nor floats: it moves no faster than palms do.
    still = np.linalg.norm(box - box[0], axis=1) < 0.01
    assert still[: np.argmax(trunk[:, 2] > BASE_HEIGHT + RISE - 0.03)].all()
    assert np.linalg.norm(np.diff(box, axis=0), axis=1).max() < 0.1
