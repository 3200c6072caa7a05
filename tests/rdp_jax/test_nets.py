"""Networks of planners: shapes, first outputs, gradients, what may depend on what."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdp_jax.config import ConfigError, validate
from rdp_jax.nets.build import GAUSSIAN, KINDS, NetConfig, network
from rdp_jax.nets.products import flat_dot_general
from rdp_jax.nets.time import sinusoid

B, TA, DA, H, FRAME = 3, 4, 2, 2, 5


def small(kind, dtype="float32"):
    config = NetConfig(kind=kind, sizes=(16, 16, 16), width=16, depth=2, heads=2, dtype=dtype)
    return network(config, (TA, DA), H)


def inputs(kind):
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(B, H * FRAME)), jnp.float32)
    if kind in GAUSSIAN:
        return (obs,)
    return jnp.asarray(rng.normal(size=(B, TA, DA)), jnp.float32), jnp.array([0, 3, 7]), obs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_output_has_the_chunks_shape_in_float32(kind, dtype):
    net, args = small(kind, dtype), inputs(kind)
    params = net.init(jax.random.key(0), *args)
    out = jax.jit(net.apply)(params, *args)
    assert out.shape == (B, TA, DA) and out.dtype == jnp.float32 and bool(jnp.isfinite(out).all())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    """Zero-initialised gates hold gradients back at first, so a step is taken before looking."""
    net, args = small(kind), inputs(kind)
    params = net.init(jax.random.key(0), *args)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(B, TA, DA)), jnp.float32)
    grad = jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, *args) - target).mean()))
    for _ in range(3):
        gradient = grad(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grad(params))
        if not np.abs(np.asarray(g)).max() > 0
    ]
    # A bias added to all keys of an attention changes no weight of it.
    assert not [name for name in dead if "['key']['bias']" not in name]


def test_dit_predicts_nothing_at_first_and_sees_each_action_of_the_chunk():
    net, (x, t, obs) = small("dit"), inputs("dit")
    params = net.init(jax.random.key(0), x, t, obs)
    np.testing.assert_array_equal(net.apply(params, x, t, obs), 0.0)
    noisy = jax.tree.map(lambda p: p + 0.1, params)
    moved = net.apply(noisy, x.at[:, 0].add(1.0), t, obs) - net.apply(noisy, x, t, obs)
    assert float(jnp.abs(moved[:, -1]).max()) > 0  # attention reaches from the first action to the last
    swapped = net.apply(noisy, x, t, jnp.roll(obs, FRAME, axis=1)) - net.apply(noisy, x, t, obs)
    assert float(jnp.abs(swapped).max()) > 0  # the order of frames matters


def test_sinusoid_equals_its_formula():
    t, dim = np.array([0, 1, 19]), 16
    frequency = np.exp(-np.arange(8) * np.log(1e4) / 7)
    want = np.concatenate([np.sin(t[:, None] * frequency), np.cos(t[:, None] * frequency)], axis=1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(t), dim), want, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="heads=3"):
        validate(NetConfig(kind="dit", width=16, heads=3))
    net = network(NetConfig(kind="unet", width=8, depth=3), (6, DA), 1)
    with pytest.raises(ValueError, match="horizon=6"):
        net.init(jax.random.key(0), jnp.zeros((1, 6, DA)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3)))
    net = network(NetConfig(kind="mlp", sizes=(16, 8, 16)), (TA, DA), 1)
    with pytest.raises(ConfigError, match="odd number of equal widths"):
        net.init(jax.random.key(0), jnp.zeros((1, TA, DA)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3)))


def test_folded_products_are_the_products():
    key = jax.random.key(0)
    inputs, kernel = jax.random.normal(key, (3, 4, 5)), jax.random.normal(key, (5, 2, 6))
    last = (((2,), (0,)), ((), ()))

    def out(product):
        value, pull = jax.vjp(lambda x, w: product(x, w, last), inputs, kernel)
        return value, *pull(jnp.cos(value))

    chex.assert_trees_all_close(out(flat_dot_general), out(jax.lax.dot_general), rtol=1e-5)
    # Anything else is handed on: over the first axis, and batched.
    for other, w in (((((0,), (0,)), ((), ())), kernel[:3]), ((((2,), (2,)), ((0,), (0,))), jnp.ones((3, 7, 5)))):
        chex.assert_trees_all_equal(flat_dot_general(inputs, w, other), jax.lax.dot_general(inputs, w, other))
