"""Limb kinematics against MuJoCo and against themselves, on the model that is simulated."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from envs.t1 import kinematics as kin
from envs.t1 import rotations as rot3

MODEL_PATH = kin.__file__.replace("kinematics.py", "t1.xml")
LIMBS = {
    "left_arm": (kin.LEFT_ARM, "left_palm"),
    "right_arm": (kin.RIGHT_ARM, "right_palm"),
    "left_leg": (kin.LEFT_LEG, "left_sole"),
    "right_leg": (kin.RIGHT_LEG, "right_sole"),
}
STANDING = np.array([-0.43, 0, 0, 0.79, -0.35, 0], np.float32)
# Elbow bent by about a right angle, hand in front of the torso, every joint well inside its limits.
READY = np.array([0.3, -1.2, -0.5, -1.5, 0.3, 0.3, 0.3], np.float32)


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_path(MODEL_PATH)


@pytest.fixture(scope="module")
def chains(model):
    return {name: kin.Chain.from_model(model, joints, end_site=site) for name, (joints, site) in LIMBS.items()}


def uniform(chain, count, seed=0, inset=0.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(chain.lower + inset, chain.upper - inset, (count, chain.size)).astype(np.float32)


def batch_fk(chain, q):
    return jax.jit(jax.vmap(lambda x: kin.fk(chain, x)))(q)


def pose_error(chain, q, pos, rot):
    """Position (m) and rotation (rad) errors of configurations `(..., n)` against target poses."""
    p, r = batch_fk(chain, jnp.asarray(q))
    turn = rot3.mat_to_rotvec(jnp.einsum("bij,bkj->bik", rot, r))
    return np.linalg.norm(p - pos, axis=-1), np.linalg.norm(turn, axis=-1)


def within(chain, q, slack=1e-6):
    return np.all(np.isfinite(q)) and np.all(q >= chain.lower - slack) and np.all(q <= chain.upper + slack)


@pytest.mark.parametrize("limb", LIMBS)
def test_fk_matches_mujoco(model, chains, limb):
    chain, data = chains[limb], mujoco.MjData(model)
    q = uniform(chain, 50)
    pos, rot = batch_fk(chain, q)
    assert pos.dtype == rot.dtype == jnp.float32
    trunk, site = model.body("Trunk").id, model.site(LIMBS[limb][1]).id
    rng = np.random.default_rng(1)
    for i in range(len(q)):
        mujoco.mj_resetData(model, data)
        data.qpos[:7] = rng.normal(size=7)
        for name, angle in zip(chain.joint_names, q[i], strict=True):
            data.joint(name).qpos[0] = angle
        mujoco.mj_kinematics(model, data)
        base = data.xmat[trunk].reshape(3, 3)
        np.testing.assert_allclose(pos[i], base.T @ (data.site_xpos[site] - data.xpos[trunk]), atol=1e-5)
        np.testing.assert_allclose(rot[i], base.T @ data.site_xmat[site].reshape(3, 3), atol=1e-5)


def test_held_waist_is_part_of_the_chain(model):
    if "Waist" not in [model.joint(i).name for i in range(model.njnt)]:
        pytest.skip("the model has no waist joint")
    chain = kin.Chain.from_model(model, kin.LEFT_LEG, end_site="left_sole", held={"Waist": 0.4})
    data = mujoco.MjData(model)
    data.qpos[3] = 1.0
    data.joint("Waist").qpos[0] = 0.4
    for name, angle in zip(chain.joint_names, STANDING, strict=True):
        data.joint(name).qpos[0] = angle
    mujoco.mj_kinematics(model, data)
    pos, rot = kin.fk(chain, jnp.asarray(STANDING))
    np.testing.assert_allclose(pos, data.site("left_sole").xpos - data.body("Trunk").xpos, atol=1e-5)
    q = kin.leg_ik(chain, pos, rot, jnp.zeros(6))
    np.testing.assert_allclose(q, STANDING, atol=1e-3)


@pytest.mark.parametrize("limb", LIMBS)
def test_jacobian_matches_derivative(chains, limb):
    chain = chains[limb]
    q = uniform(chain, 20, seed=2)
    _, rot, jac = jax.vmap(lambda x: kin.fk_jac(chain, x))(q)
    dpos, drot = jax.vmap(jax.jacfwd(lambda x: kin.fk(chain, x)))(q)
    np.testing.assert_allclose(jac[:, :3], dpos, atol=1e-5)
    spin = np.einsum("bijn,bkj->bikn", drot, rot)  # skew matrix of the angular velocity per joint
    np.testing.assert_allclose(jac[:, 3:], np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], 1), atol=1e-5)
    step = 1e-3
    for j in range(chain.size):
        high, low = (batch_fk(chain, q + s * step * np.eye(chain.size, dtype=np.float32)[j])[0] for s in (1, -1))
        np.testing.assert_allclose(jac[:, :3, j], (high - low) / (2 * step), atol=1e-3)


@pytest.mark.parametrize("limb", ["left_leg", "right_leg"])
@pytest.mark.parametrize("start", ["near", "standing"])
def test_leg_ik_round_trip(chains, limb, start):
    chain = chains[limb]
    q = uniform(chain, 5000, seed=3)
    q = q[np.abs(q[:, 1]) < 1.2]  # a leg raised sideways to the horizontal has no unique hip pitch and yaw
    q[:, 3] = np.maximum(q[:, 3], 0.13)  # below, the other knee solution is the one the inverse returns
    pos, rot = batch_fk(chain, q)
    noise = np.random.default_rng(4).normal(0, 0.05, q.shape).astype(np.float32)
    q0 = q + noise if start == "near" else np.broadcast_to(STANDING, q.shape)
    solved = jax.jit(jax.vmap(lambda *a: kin.leg_ik(chain, *a)))(pos, rot, q0)
    assert solved.dtype == jnp.float32
    assert within(chain, solved)
    dp, dr = pose_error(chain, solved, pos, rot)
    print(f"{limb} {start}: max {dp.max():.1e} m, {dr.max():.1e} rad, joints {np.abs(solved - q).max():.1e} rad")
    assert dp.max() < (1e-5 if start == "near" else 5e-4)
    assert dr.max() < 1e-3


def test_leg_ik_near_the_stretched_knee(chains):
    """Straight knees lose at most the reach that the least bend costs; more reach than there is stays finite."""
    chain = chains["left_leg"]
    q = np.tile(STANDING, (400, 1))
    q[:, 3] = np.linspace(0, 0.3, 400)
    q[:, 4] = -0.1
    pos, rot = batch_fk(chain, q)
    solved = jax.jit(jax.vmap(lambda *a: kin.leg_ik(chain, *a)))(pos, rot, q)
    dp, dr = pose_error(chain, solved, pos, rot)
    assert dp.max() < 5e-4
    assert dr.max() < 1e-3
    assert solved[:, 3].min() > 0.1
    # A foot pulled straight down: the solution moves continuously into the stretched pose and stays there.
    drop = np.linspace(0, 0.2, 400)
    pos = np.asarray(kin.fk(chain, jnp.asarray(STANDING))[0])[None] - drop[:, None] * np.array([0, 0, 1])
    rot = np.tile(np.eye(3), (400, 1, 1))
    solved = jax.jit(jax.vmap(lambda *a: kin.leg_ik(chain, *a)))(
        pos.astype(np.float32), rot.astype(np.float32), np.tile(STANDING, (400, 1))
    )
    assert within(chain, solved)
    assert np.abs(np.diff(solved, axis=0)).max() < 0.08


@pytest.mark.parametrize("limb", LIMBS)
def test_unreachable_targets_stay_finite_and_within_limits(chains, limb):
    chain = chains[limb]
    rng = np.random.default_rng(5)
    pos = rng.normal(0, 1, (2000, 3)).astype(np.float32)
    pos[:10] = 0
    pos[10:20] = chain.offset_pos[0]
    pos[20:30] *= 1e4
    rot = rot3.quat_to_mat(rot3.quat_normalize(jnp.asarray(rng.normal(size=(2000, 4)), jnp.float32)))
    q0 = uniform(chain, 2000, seed=6)
    if limb.endswith("leg"):
        solved = jax.jit(jax.vmap(lambda *a: kin.leg_ik(chain, *a)))(pos, rot, q0)
        assert np.all(solved[:, 3] >= 0.1)
    else:
        solve = jax.jit(jax.vmap(lambda *a: kin.arm_ik(chain, *a, iterations=30)))
        solved = solve(pos, rot, q0, np.zeros_like(q0))
    assert within(chain, solved)


@pytest.mark.parametrize("limb", LIMBS)
def test_non_finite_target_keeps_the_start(chains, limb):
    chain = chains[limb]
    q0 = jnp.asarray(STANDING if limb.endswith("leg") else 0.5 * READY)
    bad = jnp.full(3, jnp.nan)
    if limb.endswith("leg"):
        q = jax.jit(lambda p: kin.leg_ik(chain, p, jnp.eye(3), q0))(bad)
    else:
        q = jax.jit(lambda p: kin.arm_ik(chain, p, jnp.eye(3), q0, q0))(bad)
    np.testing.assert_array_equal(q, q0)


def arm_targets(chain, side, count, seed=7):
    """Poses within reach, in front of the torso and not inside it."""
    q = uniform(chain, 40 * count, seed=seed, inset=0.1)
    pos, rot = batch_fk(chain, q)
    keep = (pos[:, 0] > 0.15) & (side * pos[:, 1] > -0.1) & (pos[:, 2] > -0.3) & (pos[:, 2] < 0.5)
    return pos[keep][:count], rot[keep][:count]


@pytest.mark.parametrize(("limb", "side"), [("left_arm", 1), ("right_arm", -1)])
def test_arm_ik_converges_from_far(chains, limb, side):
    chain = chains[limb]
    pos, rot = arm_targets(chain, side, 1000)
    ready = READY if side > 0 else READY * kin.ARM_MIRROR
    q0 = np.tile(ready, (len(pos), 1))
    solved = jax.jit(jax.vmap(lambda *a: kin.arm_ik(chain, *a, iterations=30)))(pos, rot, q0, q0)
    assert solved.dtype == jnp.float32
    assert within(chain, solved)
    dp, dr = pose_error(chain, solved, pos, rot)
    good = (dp < 0.01) & (dr < 0.05)
    print(limb, "converged", good.mean(), "p50", np.median(dp), np.median(dr), "p90", np.quantile(dp, 0.9))
    assert good.mean() > 0.85


def smooth_path(chain, ready, seed, ticks=150):
    """Targets moving at .2 m/s and 1 rad/s around the ready pose: `(ticks, 3)`, `(ticks, 3, 3)`."""
    rng = np.random.default_rng(seed)
    pos, rot = kin.fk(chain, jnp.asarray(ready))
    t = np.arange(ticks) / 50
    u, v, w = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    radius, swing = 0.04, 0.4
    path = np.asarray(pos) + radius * (
        np.sin(0.2 / radius * t)[:, None] * u + (1 - np.cos(0.2 / radius * t))[:, None] * v
    )
    turn = swing * np.sin(t / swing)[:, None] * w
    rots = rot3.mat_from_rotvec(jnp.asarray(turn, jnp.float32)) @ rot
    return jnp.asarray(path, jnp.float32), rots


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("limb", ["left_arm", "right_arm"])
def test_arm_ik_tracks_moving_targets(chains, limb, iterations):
    chain = chains[limb]
    ready = READY if limb == "left_arm" else READY * kin.ARM_MIRROR
    paths = [smooth_path(chains["left_arm"], READY, seed) for seed in range(20)]
    pos, rot = (jnp.stack([p[i] for p in paths], 1) for i in (0, 1))
    if limb == "right_arm":
        pos, rot = kin.mirror_pos(pos), kin.mirror_mat(rot)
    q0 = jnp.asarray(np.tile(ready, (len(paths), 1)))

    def tick(q, target):
        q = jax.vmap(lambda *a: kin.arm_ik(chain, *a, ready, iterations=iterations))(*target, q)
        return q, q

    _, q = jax.jit(lambda q0: jax.lax.scan(tick, q0, (pos, rot)))(q0)
    flat = (q.reshape(-1, 7), pos.reshape(-1, 3), rot.reshape(-1, 3, 3))
    dp, dr = pose_error(chain, *flat)
    print(
        limb, iterations, "p50", np.median(dp), np.median(dr), "p99", np.quantile(dp, 0.99), "max", dp.max(), dr.max()
    )
    print("  joint speed max", np.abs(np.diff(q, axis=0)).max() * 50)
    assert dp.max() < 2e-3
    assert dr.max() < 0.02


def test_arm_ik_limits_the_step(chains):
    chain = chains["left_arm"]
    pos, rot = kin.fk(chain, jnp.asarray(READY))
    q0 = jnp.asarray(0.2 * READY)
    q = kin.arm_ik(chain, pos, rot, q0, jnp.asarray(READY), max_step=0.05)
    assert 0.04 < float(jnp.abs(q - q0).max()) <= 0.05 + 1e-6


def test_arm_ik_uses_the_free_joint_for_the_nominal_posture(chains):
    chain = chains["left_arm"]
    start = jnp.asarray(READY)
    nominal = start.at[2].add(0.4)
    pos, rot = kin.fk(chain, start)
    q = kin.arm_ik(chain, pos, rot, start, nominal, iterations=60)
    dp, dr = pose_error(chain, q[None], pos[None], rot[None])
    assert dp[0] < 2e-3
    assert dr[0] < 0.02
    assert jnp.linalg.norm(q - nominal) < jnp.linalg.norm(start - nominal) - 1e-3


@pytest.mark.parametrize(("limb", "signs"), [("arm", kin.ARM_MIRROR), ("leg", kin.LEG_MIRROR)])
def test_mirror(chains, limb, signs):
    left, right = chains[f"left_{limb}"], chains[f"right_{limb}"]
    np.testing.assert_array_equal(np.where(np.abs(left.axis[:, 1]) > 0.5, 1, -1), signs)
    bounds = np.sort(np.stack([signs * left.lower, signs * left.upper]), axis=0)
    np.testing.assert_allclose(np.stack([right.lower, right.upper]), bounds, atol=1e-6)
    q = uniform(left, 100, seed=8)
    pos, rot = batch_fk(left, q)
    mirrored_pos, mirrored_rot = batch_fk(right, kin.mirror_joints(q, signs))
    np.testing.assert_allclose(mirrored_pos, kin.mirror_pos(pos), atol=1e-5)
    np.testing.assert_allclose(mirrored_rot, kin.mirror_mat(rot), atol=1e-5)
    turn = jnp.asarray(np.random.default_rng(9).normal(size=(10, 3)), jnp.float32)
    np.testing.assert_allclose(
        rot3.mat_from_rotvec(kin.mirror_rotvec(turn)), kin.mirror_mat(rot3.mat_from_rotvec(turn)), atol=1e-5
    )


def test_solver_against_numpy():
    rng = np.random.default_rng(10)
    a = rng.normal(size=(6, 7))
    a, b = a @ a.T + 0.1 * np.eye(6), rng.normal(size=6)
    x = jax.jit(kin._solve_spd)(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(np.array(x), np.linalg.solve(a, b), rtol=2e-4, atol=1e-4)


def test_from_model_rejects_what_is_no_chain(model):
    with pytest.raises(ValueError, match="asked for"):
        kin.Chain.from_model(model, kin.LEFT_ARM, end_site="right_palm")
    with pytest.raises(ValueError, match="not below"):
        kin.Chain.from_model(model, kin.LEFT_ARM, base_body="Waist", end_site="left_palm")
    arm = kin.Chain.from_model(model, kin.LEFT_ARM, end_site="left_palm")
    with pytest.raises(ValueError, match="leg of the T1"):
        kin.leg_ik(arm, jnp.zeros(3), jnp.eye(3), jnp.zeros(7))
