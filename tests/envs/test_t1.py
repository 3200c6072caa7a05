"""Our T1 model against the published description, and whether it stands."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from published_t1 import JOINTS, LINKS, TOTAL_MASS

from envs.physics import make_physics
from envs.t1.model import PHYSICS_DT, SCENES, ground_height, load_model, mass_of, scene
from envs.t1.robot import Robot

PAYLOADS = 2 * 0.001


@pytest.fixture(scope="module")
def model():
    return load_model("flat")


def inertia(model, bodies):
    """Mass, centre of mass and inertia of rigidly joined `bodies` in the frame of the first, at the zero pose."""
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0
    mujoco.mj_kinematics(model, data)
    frame = data.body(bodies[0])
    to_local = frame.xmat.reshape(3, 3).T
    masses, centres, tensors = [], [], []
    for name in bodies:
        b = model.body(name).id
        rot = to_local @ data.ximat[b].reshape(3, 3)
        masses.append(model.body_mass[b])
        centres.append(to_local @ (data.xipos[b] - frame.xpos))
        tensors.append(rot @ np.diag(model.body_inertia[b]) @ rot.T)
    mass = sum(masses)
    centre = sum(m * c for m, c in zip(masses, centres, strict=True)) / mass
    total = np.zeros((3, 3))
    for m, c, t in zip(masses, centres, tensors, strict=True):
        d = c - centre
        total += t + m * (d @ d * np.eye(3) - np.outer(d, d))
    return mass, centre, total


@pytest.mark.parametrize("name", LINKS)
def test_link_inertia_is_the_published_one(model, name):
    bodies = [name]
    if name.endswith("_hand_link"):  # our finger is part of the published hand
        bodies.append(name.replace("_hand_link", "_finger"))
    mass, centre, tensor = inertia(model, bodies)
    want_mass, want_centre, (xx, yy, zz, xy, xz, yz) = LINKS[name]
    want = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    assert mass == pytest.approx(want_mass, rel=1e-5)
    np.testing.assert_allclose(centre, want_centre, atol=1e-6)
    np.testing.assert_allclose(tensor, want, atol=2e-5 * np.abs(want).max())


def test_total_mass(model):
    assert mass_of(model) - PAYLOADS == pytest.approx(TOTAL_MASS, abs=1e-5)


@pytest.mark.parametrize("name", JOINTS)
def test_joint_range_and_torque_limit(model, name):
    low, high, torque = JOINTS[name]
    joint, actuator = model.joint(name), model.actuator(name)
    np.testing.assert_allclose(joint.range, [low, high])
    np.testing.assert_allclose(model.jnt_actfrcrange[joint.id], [-torque, torque])
    np.testing.assert_allclose(actuator.forcerange, [-torque, torque])


def test_29_joints_and_two_grippers(model):
    assert len(JOINTS) == 29
    names = {model.actuator(i).name for i in range(model.nu)}
    assert names == {*JOINTS, "Left_Gripper", "Right_Gripper"}


def test_only_primitive_shapes(model):
    assert model.nmesh == 0 and model.nhfield == 0
    # Nothing collides unless a scene says so.
    assert not model.geom_contype.any() and not model.geom_conaffinity.any() and model.npair > 0


@pytest.mark.parametrize(("backend", "seconds"), [("native", 10.0), ("mjx", 4.0)])
def test_stands_at_zero_action(backend, seconds):
    model = load_model("flat", 0.01) if backend == "mjx" else load_model("flat")  # MJX is slow on a CPU
    robot = Robot.from_model(model)
    physics = make_physics(model, backend)
    ctrl = jnp.asarray(robot.stand_ctrl, jnp.float32)
    state = jax.jit(physics.init)(jnp.asarray(robot.stand_qpos, jnp.float32), jnp.zeros(model.nv))
    step = jax.jit(lambda s: physics.step(s, ctrl, 4))
    steps = round(seconds / (4 * model.opt.timestep))
    height = []
    for _ in range(steps):
        state = step(state)
        height.append(float(state.qpos[2]))
    assert min(height) > 0.6
    assert not bool(state.diverged)
    up = state.sensordata[robot.sensors["up"]]
    assert float(up[2]) > 0.99
    assert np.linalg.norm(np.asarray(state.qvel)) < 0.1


def test_the_gripper_closes_and_opens(model):
    robot, data = Robot.from_model(model), mujoco.MjData(model)
    data.qpos[:] = robot.stand_qpos
    data.ctrl[:] = robot.stand_ctrl
    for target in (1.5, 0.2):
        data.ctrl[robot.gripper_ctrl] = target
        for _ in range(round(1.0 / PHYSICS_DT)):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(data.qpos[robot.gripper_qpos], target, atol=0.05)


def test_arms_hold_their_own_weight(model):
    """Gravity compensation of the arms: an outstretched arm sags by less than a milliradian, within its torque limits."""
    robot, data = Robot.from_model(model), mujoco.MjData(model)
    data.qpos[:] = robot.stand_qpos
    reach = np.array([-0.6, -0.9, 0.0, -0.4, 0.0, 0.0, 0.0])
    data.qpos[robot.arm_qpos[:7]] = reach
    data.ctrl[:] = robot.stand_ctrl
    data.ctrl[robot.arm_ctrl[:7]] = reach
    mujoco.mj_forward(model, data)
    torque = data.qfrc_actuator[robot.arm_qvel[:7]]
    assert np.abs(torque).max() > 2.0, "the arm weighs something"
    assert (np.abs(torque) < robot.arm_torque_limit[:7]).all()
    bias = data.qfrc_bias[robot.arm_qvel[:7]] - data.qfrc_passive[robot.arm_qvel[:7]]
    np.testing.assert_allclose(torque, bias, atol=0.02)


def test_ground_height_of_the_platforms():
    platforms = SCENES["platforms"]
    x, y = np.array([-0.1, 0.5, 1.0, 1.0]), np.array([0.0, 0.0, 8.0, 4.0])
    np.testing.assert_allclose(ground_height(platforms, x, y), [0.0, 0.10, 0.12, 0.0])


def test_unknown_scene_names_the_known_ones():
    with pytest.raises(ValueError, match="moon.*flat"):
        scene("moon")
