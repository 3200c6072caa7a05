"""Randomisation draws stay within their ranges, touch what they should, and are reproducible."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physics_models import small_model

from envs.physics.variants import params_size, scaled
from envs.randomize import NOTHING, Ranges, Targets, sample_model_params
from rdp_jax.config import ConfigError, validate

MODEL = small_model()
TARGETS = Targets.from_model(MODEL, payload_bodies=("payload",), fixed_bodies=("door",))
DRAW = jax.jit(jax.vmap(lambda key, ranges: sample_model_params(key, TARGETS, ranges), in_axes=(0, None)))
LANES = 64


def interval(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda pair: tuple(sorted(pair)))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    ranges=st.builds(
        Ranges,
        friction=interval(0.05, 3.0),
        mass=interval(0.2, 5.0),
        payload=interval(0.0, 10.0),
        gain=interval(0.2, 5.0),
    ),
)
def test_draws_stay_within_their_ranges(seed, ranges):
    validate(ranges)
    params = DRAW(jax.random.split(jax.random.key(seed), LANES), ranges)
    load = (params.body_mass[:, TARGETS.payload] - 1) * TARGETS.payload_mass
    values = {"friction": params.friction, "mass": params.body_mass[:, TARGETS.scaled], "payload": load}
    for name, value in {**values, "gain": jnp.stack([params.kp, params.kd])}.items():
        low, high = getattr(ranges, name)
        assert (value >= low - 1e-5 * (1 + low)).all()
        assert (value <= high + 1e-5 * (1 + high)).all()
    untouched = [0, MODEL.body("door").id]
    np.testing.assert_array_equal(params.body_mass[:, untouched], 1)
    assert params.body_mass.shape == (LANES, MODEL.nbody)
    assert params.kp.shape == params.kd.shape == (LANES, MODEL.nu)
    assert params.friction.shape == (LANES,)


def test_draws_differ_between_lanes_bodies_and_gains_and_repeat_with_the_key():
    keys = jax.random.split(jax.random.key(0), LANES)
    params = DRAW(keys, Ranges())
    assert len(set(np.asarray(params.friction).tolist())) == LANES
    assert len(set(np.asarray(params.body_mass[0, TARGETS.scaled]).tolist())) == TARGETS.scaled.sum()
    assert not np.array_equal(params.kp, params.kd)
    jax.tree.map(np.testing.assert_array_equal, params, DRAW(keys, Ranges()))


def test_nothing_is_nominal():
    params = DRAW(jax.random.split(jax.random.key(0), LANES), NOTHING)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 1), params)


def test_draws_are_uniform():
    params = DRAW(jax.random.split(jax.random.key(1), 4096), Ranges())
    low, high = Ranges().friction
    counts, _ = np.histogram(params.friction, bins=8, range=(low, high))
    assert (np.abs(counts - 512) < 5 * np.sqrt(512)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("friction", (0.0, 1.0)),
        ("friction", (1.2, 0.4)),
        ("mass", (0.9, float("inf"))),
        ("mass", (0.9, float("nan"))),
        ("payload", (-0.1, 1.0)),
        ("payload", (0.0, 100.0)),
        ("gain", (0.9, 1.0, 1.1)),
        ("gain", 1.0),
    ],
)
def test_bad_ranges_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=field):
        validate(Ranges(**{field: value}))


def test_bad_names_are_refused():
    with pytest.raises(KeyError, match="nobody"):
        Targets.from_model(MODEL, payload_bodies=("nobody",))
    with pytest.raises(ValueError, match="positive nominal mass"):
        Targets.from_model(MODEL, payload_bodies=("world",))


@pytest.mark.parametrize("armature", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_scaled_free_box_moves_as_one_that_was_built_that_heavy(scale, armature):
    """The engine reads the inertia of such a body from a constant of the model."""

    def box(mass):
        return mujoco.MjModel.from_xml_string(
            f"""<mujoco><worldbody><body name="box" pos="0 0 2"><joint type="free" armature="{armature}"/>
            <geom type="box" size="0.1 0.2 0.3" mass="{mass}"/></body></worldbody></mujoco>"""
        )

    def accelerations(model):
        data = mujoco.MjData(model)
        data.xfrc_applied[1] = 1.0, 2.0, 3.0, 0.1, 0.2, 0.3
        mujoco.mj_forward(model, data)
        return data.qacc.copy()

    base = box(1.0)
    assert (base.dof_simplenum > 0).all()
    flat = np.ones(params_size(base))
    flat[1 + base.body("box").id] = scale
    found = accelerations(scaled(base, flat))
    np.testing.assert_allclose(found, accelerations(box(scale)), rtol=1e-9)
    assert not np.allclose(found, accelerations(base))
