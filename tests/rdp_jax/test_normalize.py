"""The normaliser against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rdp_jax import normalize, parallel


def batches(mean=3.0, scale=2.0):
    rng = np.random.default_rng(0)
    return [mean + scale * rng.normal(size=(n, 3)) for n in (40, 8, 400, 16)]


def check(norm, data, rtol):
    np.testing.assert_allclose(norm.mean, data.mean(0), rtol=rtol)
    np.testing.assert_allclose(normalize.std(norm), data.std(0), rtol=rtol)
    assert float(norm.count) == len(data)


def test_merge_matches_float64():
    norm = normalize.create(3)
    for batch in batches():
        norm = normalize.merge(norm, jnp.array(batch))
    check(norm, np.concatenate(batches()), 1e-5)


def test_no_cancellation_far_from_zero():
    """`E[x^2] - E[x]^2` in float32 would lose every digit here: the mean is 4000 standard deviations."""
    norm = normalize.create(3)
    data = [x.astype(np.float32) for x in batches(mean=2000.0, scale=0.5)]
    for batch in data:
        norm = normalize.merge(norm, jnp.array(batch))
    check(norm, np.concatenate(data).astype(np.float64), 1e-3)


def test_std_does_not_shrink_over_many_merges():
    rng = np.random.default_rng(1)
    norm = normalize.create(2)
    merge = jax.jit(normalize.merge)
    for _ in range(200):
        norm = merge(norm, jnp.array(2.0 * rng.normal(size=(50, 2))))
    np.testing.assert_allclose(normalize.std(norm), 2.0, rtol=0.03)


def test_devices_sum():
    data = jnp.array(batches()[2])
    mesh = parallel.make_mesh(4)
    norm = normalize.merge(normalize.create(3), jnp.array(batches()[0]))
    merge = parallel.shard(lambda n, x: normalize.merge(n, x, parallel.AXIS), mesh, (P(), P(parallel.AXIS)), P())
    got, expected = jax.jit(merge)(norm, data), normalize.merge(norm, data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_only_rows_that_count_are_merged():
    data, where = batches()[2], np.random.default_rng(5).random(len(batches()[2])) < 0.5
    start = normalize.merge(normalize.create(3), jnp.array(batches()[0]))
    wild = jnp.where(where[:, None], data, jnp.nan)
    got, expected = normalize.merge(start, wild, where=where), normalize.merge(start, jnp.array(data[where]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)
    jax.tree.map(np.testing.assert_array_equal, normalize.merge(start, wild, where=np.zeros(len(data), bool)), start)


def test_apply_clips_and_survives_no_data_and_constants():
    empty = normalize.create(2)
    np.testing.assert_array_equal(normalize.apply(empty, jnp.array([50.0, -0.5])), [normalize.CLIP, -0.5])
    constant = normalize.merge(empty, jnp.full((100, 2), 7.0))
    np.testing.assert_array_equal(normalize.apply(constant, jnp.array([7.0, 7.0])), [0.0, 0.0])
