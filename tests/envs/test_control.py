"""The control environment: observations seen in the mirror, episodes, disturbances, both parts and their partners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.control import observe
from envs.control.commands import REACH_HIGH, REACH_LOW, CommandProcess, CommandRanges
from envs.control.controller import Command, Controller, ControllerConfig, Measured
from envs.control.env import ControlConfig, ControlEnv, nominal_params, randomized_params
from envs.t1 import gait, kinematics
from envs.t1.model import SCENES, load_model
from envs.t1.robot import ARM_MIRROR, LEG_MIRROR
from rdp_jax.config import ConfigError

LANES = 4


@pytest.fixture(scope="module")
def controller():
    return Controller(load_model("flat"), SCENES["flat"])


# --- canonicalisation ----------------------------------------------------------------------------------------------------


def mirrored_poses(x):
    """World poses `(..., 4)` in the mirror of the x-z plane."""
    return x * np.array([1, -1, 1, -1], np.float32)


def mirrored(measured: Measured) -> Measured:
    both = lambda f, x: jnp.stack([f(x[1]), f(x[0])])  # noqa: E731
    return Measured(
        base=mirrored_poses(measured.base),
        base_velocity=kinematics.mirror_pos(measured.base_velocity),
        gyro=kinematics.mirror_rotvec(measured.gyro),
        gravity=kinematics.mirror_pos(measured.gravity),
        leg_q=observe.mirror_pairs(measured.leg_q, LEG_MIRROR),
        leg_qd=observe.mirror_pairs(measured.leg_qd, LEG_MIRROR),
        arm_q=observe.mirror_pairs(measured.arm_q, ARM_MIRROR),
        arm_qd=observe.mirror_pairs(measured.arm_qd, ARM_MIRROR),
        feet=mirrored_poses(measured.feet[::-1]),
        feet_up=measured.feet_up[::-1],
        hand_pos=both(kinematics.mirror_pos, measured.hand_pos),
        hand_rot=both(kinematics.mirror_mat, measured.hand_rot),
    )


def random_scene(controller, seed):
    """A measured state, command, controller state in the middle of a left step, and privileged numbers."""
    rng = np.random.default_rng(seed)
    f = lambda *shape: jnp.asarray(0.1 * rng.standard_normal(shape), jnp.float32)  # noqa: E731
    feet = jnp.array([[0.05, 0.1, 0, 0.1], [0.0, -0.11, 0, 0.0]], jnp.float32)
    measured = Measured(
        base=jnp.array([-0.05, 0.0, 0.65, 0.05]) + 0.1 * f(4),
        base_velocity=f(3),
        gyro=f(3),
        gravity=jnp.array([0.0, 0.0, -1.0]) + f(3),
        leg_q=controller.stand_leg + f(12),
        leg_qd=f(12),
        arm_q=controller.stand_arm + f(14),
        arm_qd=f(14),
        feet=feet,
        feet_up=1.0 - jnp.abs(f(2)),
        hand_pos=f(2, 3),
        hand_rot=jnp.tile(jnp.eye(3), (2, 1, 1)),
    )
    pos, rot = controller.hands_at(measured.arm_q)
    command = Command(jnp.array([0.2, 0.1, 0.2]), pos, rot, jnp.zeros(2))
    privileged = observe.Privileged(jnp.abs(f(2)), f(2, 3), jnp.abs(f(2)), jnp.float32(0.8), jnp.float32(1.0))
    return measured, command, privileged


def mirrored_command(command):
    both = lambda g, x: jnp.stack([g(x[1]), g(x[0])])  # noqa: E731
    return Command(
        command.velocity * np.array([1, -1, -1], np.float32),
        both(kinematics.mirror_pos, command.hand_pos),
        both(kinematics.mirror_mat, command.hand_rot),
        command.gripper[::-1],
    )


def test_legs_see_the_same_in_the_mirror(controller):
    """A right swing in the mirrored world is, observation for observation, the left swing of the original one."""
    measured, command, privileged = random_scene(controller, 0)
    other = observe.Privileged(
        privileged.touch[::-1],
        privileged.foot_force[::-1] * np.array([1, -1, 1], np.float32),
        privileged.payload[::-1],
        privileged.friction,
        privileged.latency,
    )

    @jax.jit
    def walk(measured, command, action):
        state = controller.start(measured, command, jnp.int32(25))
        state = jax.lax.fori_loop(0, 9, lambda _, s: controller.tick(s, command, measured), state)
        return state.replace(leg_action=action)

    action = jnp.linspace(-1, 1, 12)
    left = walk(measured, command, action)
    right = walk(mirrored(measured), mirrored_command(command), observe.mirror_pairs(action, LEG_MIRROR))
    assert int(left.gait.swing) == 0 and int(right.gait.swing) == 1
    seen = observe.leg_groups(controller, left, command, measured, privileged)
    seen_mirrored = observe.leg_groups(controller, right, mirrored_command(command), mirrored(measured), other)
    for a, b in zip(seen, seen_mirrored, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    assert float(jnp.abs(seen[0]).max()) > 0.1


def test_a_standing_robot_notices_that_it_is_shoved(controller):
    """Odometry runs while standing too, from the stance foot on: nothing at rest, and a step once the base drifts away."""
    measured, command, _ = random_scene(controller, 0)
    feet = jnp.array([[0.0, 0.105, 0.0, 0.0], [0.0, -0.105, 0.0, 0.0]])
    measured = measured.replace(feet=feet, base=jnp.array([-0.052, 0.0, 0.65, 0.0]))
    command = command.replace(velocity=jnp.zeros(3))

    @jax.jit
    def wait(speed):
        def tick(state, t):
            moved = measured.replace(base=measured.base.at[0].add(speed * 0.02 * (t + 1)))
            state = controller.tick(state, command, moved)
            return state, (state.base_speed, state.gait.walking)

        return jax.lax.scan(tick, controller.start(measured, command, jnp.int32(25)), jnp.arange(12.0))[1]

    speed, walking = wait(0.0)
    assert not bool(walking.any()) and float(jnp.abs(speed).max()) < 1e-5
    speed, walking = wait(0.4)
    np.testing.assert_allclose(speed[1], [0.3, 0.0], atol=1e-3)  # a low-pass of 0.4
    assert not bool(walking[0]) and bool(walking[-1])


def test_leg_action_is_mirrored_back():
    action = jnp.arange(12.0)
    np.testing.assert_array_equal(observe.leg_action(action, jnp.int32(0)), action)
    swapped = observe.leg_action(action, jnp.int32(1))
    np.testing.assert_array_equal(swapped[6:], action[:6] * LEG_MIRROR)
    np.testing.assert_array_equal(observe.mirror_pairs(swapped, LEG_MIRROR), action)


def test_manifest_matches_the_observation(controller):
    measured, command, privileged = random_scene(controller, 1)
    state = jax.jit(controller.start)(measured, command, jnp.int32(25))
    actor, critic = observe.leg_groups(controller, state, command, measured, privileged)
    slices = observe.manifest(observe.LEG_LAYOUT)
    assert list(slices.values())[-1].stop == actor.shape[0] == observe.width(observe.LEG_LAYOUT)
    assert critic.shape[0] == actor.shape[0] + observe.width(observe.LEG_PRIVILEGED_LAYOUT)
    np.testing.assert_allclose(actor[slices["gyro"]], 0.5 * measured.gyro, atol=1e-6)
    np.testing.assert_allclose(actor[slices["leg_q"]], measured.leg_q - controller.stand_leg, atol=1e-6)
    np.testing.assert_allclose(actor[slices["command"]], 4.0 * command.velocity, atol=1e-6)
    actor, critic = observe.hand_groups(state, command, measured, privileged, controller.stand_arm)
    assert actor.shape[0] == observe.width(observe.HAND_LAYOUT)
    assert critic.shape[0] == actor.shape[0] + observe.width(observe.HAND_PRIVILEGED_LAYOUT)


# --- commands ------------------------------------------------------------------------------------------------------------


def test_commands_stay_in_range_and_hand_targets_move_smoothly(controller):
    process = CommandProcess(controller)

    def tick(state, key):
        state = process.advance(state, key)
        return state, (state.velocity, process.command(state).hand_pos)

    arms = jnp.asarray(controller.stand_arm)
    run = jax.jit(
        jax.vmap(
            lambda k: jax.lax.scan(tick, process.start(k, arms), jax.random.split(jax.random.fold_in(k, 1), 800))[1]
        )
    )
    velocity, hands = jax.device_get(run(jax.random.split(jax.random.key(0), 16)))
    for i, (low, high) in enumerate(((-0.2, 0.4), (-0.15, 0.15), (-0.4, 0.4))):
        assert velocity[..., i].min() >= low - 1e-6 and velocity[..., i].max() <= high + 1e-6
    standing = (np.abs(velocity).max(-1) == 0).mean()
    assert 0.1 < standing < 0.45
    assert np.abs(np.diff(hands, axis=1)).max() < 0.025, "at most 1.25 m/s"
    left = hands[:, :, 0]
    assert (left.std(axis=(0, 1)) > 0.03).all(), "targets really move"
    rests = hands[:, 100:, 0].reshape(-1, 3)
    assert (rests > REACH_LOW - 0.12).all() and (rests < REACH_HIGH + 0.12).all()


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_hands_move_together_as_often_as_asked(controller, share):
    process = CommandProcess(controller, CommandRanges(together=share))

    def tick(state, key):
        new = process.advance(state, key)
        began = new.elapsed == 0
        alike = jnp.all(new.goal[:7] * ARM_MIRROR == new.goal[7:]) & jnp.all(began) & (new.travel[0] == new.travel[1])
        return new, (jnp.any(began), alike, process.command(new).hand_pos)

    arms = jnp.asarray(controller.stand_arm)
    run = jax.vmap(lambda k: jax.lax.scan(tick, process.start(k, arms), jax.random.split(k, 800))[1])
    began, alike, hands = jax.device_get(jax.jit(run)(jax.random.split(jax.random.key(1), 32)))
    assert alike.sum() / began.sum() == pytest.approx(share, abs=0.07)
    # Who is called away in mid-move goes on from where the hand is.
    assert np.abs(np.diff(hands, axis=1)).max() < 0.025


def test_parameterisation_is_a_setting(controller):
    measured, command, _ = random_scene(controller, 2)
    state = jax.jit(controller.start)(measured, command, jnp.int32(25))
    legs, arms, grip = jnp.full(12, 0.1), jnp.zeros(14), jnp.array([0.0, 1.0])
    residual = controller.targets(state, legs, arms, grip)
    robot = controller.robot
    np.testing.assert_allclose(residual[robot.leg_ctrl], state.leg_ref + 0.025, atol=1e-5)
    np.testing.assert_allclose(residual[robot.gripper_ctrl], [0.0, 1.9], atol=1e-6)
    default = Controller(load_model("flat"), SCENES["flat"], ControllerConfig(reference="default"))
    offset = default.targets(state, legs, arms, grip)
    np.testing.assert_allclose(offset[robot.leg_ctrl], default.stand_leg + 0.025, atol=1e-5)
    with pytest.raises(ConfigError, match="reference"):
        ControllerConfig(reference="magic")


# --- episodes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """The environment of the evaluation, its jitted reset and step, on `LANES` lanes."""
    env = ControlEnv(ControlConfig(part="whole", episode_s=0.5))
    return env, jax.jit(jax.vmap(env.reset, (0, None))), jax.jit(jax.vmap(env.step, (0, 0, None)))


@pytest.fixture(scope="module")
def start(whole):
    _, reset, _ = whole
    return reset(jax.random.split(jax.random.key(0), LANES), nominal_params())


def test_first_state(whole, start):
    env, _, _ = whole
    for name, dim in env.spec.obs_dims.items():
        assert start.obs[name].shape == (LANES, dim)
        assert np.isfinite(start.obs[name]).all()
    assert env.spec.action_dim == 26
    assert not start.terminated.any() and not start.truncated.any()


def test_episode_runs_and_is_truncated_not_terminated(whole, start):
    env, _, step = whole
    state = start
    for _ in range(env.spec.episode_steps):
        assert not state.truncated.any()
        state = step(state, jnp.zeros((LANES, 26)), nominal_params())
        assert jax.tree.structure(state) == jax.tree.structure(start)
    assert state.truncated.all() and not state.terminated.any()
    assert float(state.metrics["hand/position_error_m"].max()) < 0.03
    rewards = [k for k in state.metrics if k.startswith("reward/")]
    total = sum(state.metrics[k] for k in rewards)
    np.testing.assert_allclose(state.reward, total, rtol=1e-4)


def test_a_thrown_robot_is_terminated_and_pays(whole, start):
    env, _, step = whole
    physics = start.physics
    lying = physics.qpos.at[:, 3:7].set(jnp.array([0.7071, 0.0, 0.7071, 0.0]))
    state = step(start.replace(physics=physics.replace(qpos=lying)), jnp.zeros((LANES, 26)), nominal_params())
    assert state.terminated.all() and not state.truncated.any()
    assert (state.reward < -0.5).all() and (state.metrics["fall"] == 1.0).all()


def test_pushes_noise_delay_and_payload_do_something(whole):
    env, reset, step = whole
    keys = jax.random.split(jax.random.key(1), LANES)
    calm, rough = nominal_params(), randomized_params()
    a, b = reset(keys, calm), reset(keys, rough)
    assert not a.task.delayed.any() and b.task.delayed.all()
    assert (a.task.payload == 0).all() and (b.task.payload > 0).all() and (b.task.payload < 2.01).all()
    assert float(a.task.model.friction.std()) == 0 and float(b.task.model.friction.std()) > 0
    # Delay: the first tick applies the targets of the reset whatever the action.
    kick = jnp.ones((LANES, 26))
    one, two = step(b, kick, rough), step(b, -kick, rough)
    np.testing.assert_array_equal(one.physics.qpos, two.physics.qpos)
    one, two = step(a, kick, calm), step(a, -kick, calm)
    assert float(jnp.abs(one.physics.qvel - two.physics.qvel).max()) > 0.1
    # A push every tick changes the base velocity by its speed.
    shove = calm.replace(push=jnp.array([0.4, 0.4]), push_interval=jnp.float32(0.02))
    pushed, still = step(a, 0 * kick, shove), step(a, 0 * kick, calm)
    dv = jnp.linalg.norm(pushed.physics.qvel[:, :2] - still.physics.qvel[:, :2], axis=1)
    assert (dv > 0.2).all() and (dv < 0.6).all()


def test_same_key_same_episode(whole):
    _, reset, step = whole
    keys = jax.random.split(jax.random.key(2), LANES)
    runs = []
    for _ in range(2):
        state = reset(keys, randomized_params())
        for _ in range(5):
            state = step(state, jnp.zeros((LANES, 26)), randomized_params())
        runs.append(state)
    np.testing.assert_array_equal(runs[0].physics.qpos, runs[1].physics.qpos)
    np.testing.assert_array_equal(runs[0].obs["actor"], runs[1].obs["actor"])


def test_foot_placement_plan_reads_from_the_state(whole, start):
    """Touchdowns are counted once per step, on its last tick."""
    _, _, step = whole
    commands = start.task.commands.replace(velocity=jnp.tile(jnp.array([0.2, 0.0, 0.0]), (LANES, 1)))
    state = start.replace(task=start.task.replace(commands=commands))
    counts = []
    for _ in range(30):
        gait_before = state.task.controller.gait
        state = step(state, jnp.zeros((LANES, 26)), nominal_params())
        last = gait_before.walking & (gait_before.tick + gait_before.pace >= gait_before.length)
        np.testing.assert_array_equal(state.metrics["touchdown/count"] > 0, last)
        counts.append(float(state.metrics["touchdown/count"].sum()))
    assert sum(counts) > 0


def test_bad_settings_name_field_value_and_range():
    for bad, words in (
        ({"part": "tail"}, "part.*tail.*legs"),
        ({"episode_s": 0.0}, "episode_s.*0.1"),
        ({"physics_dt": 0.003}, "physics_dt.*0.003.*0.005"),
    ):
        with pytest.raises(ConfigError, match=words):
            ControlConfig(**bad)


def test_quintic_is_smooth():
    s = jnp.linspace(-0.2, 1.2, 141)
    y = gait.quintic(s)
    assert float(y[0]) == 0.0 and float(y[-1]) == 1.0
    assert float(jnp.diff(y).min()) >= 0.0
