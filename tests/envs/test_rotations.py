"""Rotation helpers against MuJoCo's and against their own inverses, over random and extreme inputs."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.t1 import rotations as rot

TURN = st.floats(-3.0, 3.0, width=32)


def random_quats(count, seed=0):
    q = np.random.default_rng(seed).normal(size=(count, 4))
    return jnp.asarray(q / np.linalg.norm(q, axis=1, keepdims=True), jnp.float32)


def same_rotation(a, b, atol=1e-5):
    """Quaternions are equal up to sign."""
    np.testing.assert_allclose(np.abs(np.sum(np.asarray(a) * np.asarray(b), axis=-1)), 1.0, atol=atol)


def test_against_mujoco():
    a, b = random_quats(100, 1), random_quats(100, 2)
    v = np.random.default_rng(3).normal(size=(100, 3)).astype(np.float32)
    product, turned, mats = rot.quat_mul(a, b), rot.quat_rotate(a, v), rot.quat_to_mat(a)
    back, conj, rotvec = rot.quat_rotate_inv(a, v), rot.quat_conj(a), rot.quat_to_rotvec(a)
    for i in range(100):
        out4, out3, out9 = np.zeros(4), np.zeros(3), np.zeros(9)
        mujoco.mju_mulQuat(out4, np.float64(a[i]), np.float64(b[i]))
        np.testing.assert_allclose(product[i], out4, atol=1e-5)
        mujoco.mju_rotVecQuat(out3, np.float64(v[i]), np.float64(a[i]))
        np.testing.assert_allclose(turned[i], out3, atol=1e-5)
        mujoco.mju_quat2Mat(out9, np.float64(a[i]))
        np.testing.assert_allclose(mats[i].ravel(), out9, atol=1e-5)
        mujoco.mju_negQuat(out4, np.float64(a[i]))
        np.testing.assert_allclose(conj[i], out4, atol=1e-6)
        mujoco.mju_rotVecQuat(out3, np.float64(v[i]), out4)
        np.testing.assert_allclose(back[i], out3, atol=1e-5)
        mujoco.mju_quat2Vel(out3, np.float64(a[i]), 1.0)
        np.testing.assert_allclose(rotvec[i], out3, atol=2e-4)


def test_matrix_round_trip_at_every_angle():
    half_turns = jnp.asarray([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0], [1, 0, 0, 0]], jnp.float32)
    q = jnp.concatenate([random_quats(500), half_turns])
    back = rot.mat_to_quat(rot.quat_to_mat(q))
    same_rotation(back, q)
    assert np.all(back[:, 0] >= 0)
    same_rotation(rot.mat_to_quat(rot.mat_from_6d(rot.quat_to_6d(q))), q)


@settings(max_examples=100, deadline=None)
@given(st.tuples(TURN, TURN, TURN))
def test_rotation_vector_round_trip(turn):
    v = np.array(turn, np.float32)
    angle = np.linalg.norm(v)
    if angle > 3.1:
        v = v * np.float32(3.1 / angle)
    v = jnp.asarray(v)
    np.testing.assert_allclose(rot.quat_to_rotvec(rot.quat_from_rotvec(v)), v, atol=2e-5)
    np.testing.assert_allclose(rot.mat_to_rotvec(rot.mat_from_rotvec(v)), v, atol=2e-5)


def test_rotation_vector_of_tiny_and_half_turns():
    for size in (0.0, 1e-8, 1e-6, 1e-4, 1e-2):
        v = jnp.asarray([0.6 * size, 0.0, 0.8 * size], jnp.float32)
        np.testing.assert_allclose(rot.quat_to_rotvec(rot.quat_from_rotvec(v)), v, rtol=1e-3, atol=1e-9)
    v = rot.quat_to_rotvec(jnp.asarray([0.0, 0.0, 1.0, 0.0]))
    np.testing.assert_allclose(v, [0, np.pi, 0], atol=1e-6)
    np.testing.assert_allclose(rot.quat_to_rotvec(jnp.asarray([-1.0, 0, 0, 0])), 0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(TURN)
def test_yaw(yaw):
    q = rot.quat_from_yaw(jnp.float32(yaw))
    np.testing.assert_allclose(rot.yaw_of(q), yaw, atol=1e-5)
    np.testing.assert_allclose(rot.quat_to_mat(q), rot.mat_from_yaw(jnp.float32(yaw)), atol=1e-6)
    tilt = rot.quat_from_rotvec(jnp.asarray([0.3, 0.0, 0.0]))  # rolling about the own x axis keeps the heading
    np.testing.assert_allclose(rot.yaw_of(rot.quat_mul(q, tilt)), yaw, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1000.0, 1000.0, width=32))
def test_wrap_angle(angle):
    wrapped = float(rot.wrap_angle(jnp.float32(angle)))
    assert -np.pi - 1e-4 <= wrapped <= np.pi + 1e-4
    turns = (wrapped - angle) / (2 * np.pi)
    assert abs(turns - round(turns)) < 1e-4


def test_6d_layout_and_gram_schmidt():
    m = rot.quat_to_mat(random_quats(50))
    r = rot.mat_to_6d(m)
    np.testing.assert_array_equal(r[:, :3], m[:, :, 0])
    np.testing.assert_array_equal(r[:, 3:], m[:, :, 1])
    np.testing.assert_allclose(rot.mat_from_6d(r), m, atol=1e-5)
    raw = jnp.asarray(np.random.default_rng(4).normal(size=(500, 6)), jnp.float32)
    special = jnp.asarray(
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 2, 3, 2, 4, 6], [0, 1, 0, 0, -3, 0], [1e3, 0, 0, 1e3, 1, 0]],
        jnp.float32,
    )
    m = np.asarray(rot.mat_from_6d(jnp.concatenate([raw, 1e-3 * raw, 1e3 * raw, special])))
    np.testing.assert_allclose(m @ m.transpose(0, 2, 1), np.broadcast_to(np.eye(3), m.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(m), 1, atol=1e-5)


@pytest.mark.parametrize("flip", [1, -1])
def test_interpolation(flip):
    a, b = random_quats(100, 5), random_quats(100, 6)
    same_rotation(rot.quat_interpolate(a, flip * b, 0.0), a)
    same_rotation(rot.quat_interpolate(a, flip * b, 1.0), b)
    total = np.linalg.norm(rot.quat_to_rotvec(rot.quat_mul(rot.quat_conj(a), b)), axis=-1)
    part = rot.quat_interpolate(a, flip * b, jnp.full(100, 0.3))
    turned = np.linalg.norm(rot.quat_to_rotvec(rot.quat_mul(rot.quat_conj(a), part)), axis=-1)
    np.testing.assert_allclose(turned, 0.3 * total, atol=1e-3)


def test_degenerate_quaternion_and_dtype():
    np.testing.assert_array_equal(rot.quat_normalize(jnp.zeros(4)), [1, 0, 0, 0])
    q, v, f = random_quats(1)[0], jnp.ones(3), jnp.float32(0.5)
    outputs = [
        rot.quat_mul(q, q),
        rot.quat_rotate(q, v),
        rot.quat_to_mat(q),
        rot.quat_to_rotvec(q),
        rot.quat_from_rotvec(v),
        rot.mat_from_6d(jnp.ones(6)),
        rot.quat_interpolate(q, q, f),
        rot.wrap_angle(f),
        rot.yaw_of(q),
    ]
    assert all(x.dtype == jnp.float32 for x in outputs)


def test_gradients_are_finite_at_the_identity():
    grad = jax.grad(lambda v: rot.quat_to_rotvec(rot.quat_from_rotvec(v)).sum())(jnp.zeros(3))
    np.testing.assert_allclose(grad, 1, atol=1e-5)
