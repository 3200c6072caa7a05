"""NumPy functions as targets of XLA: what they are given, what they raise, and that programs around them stay on disk."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.physics import ffi
from envs.physics.callback import batched_callback

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def only_on_a_cpu():
    if jax.default_backend() != ffi.PLATFORM:
        pytest.skip("CPU targets")


def test_all_lanes_arrive_at_once_and_come_back():
    seen = []

    def host(rows):
        seen.append((rows.shape, rows.dtype, rows.flags.writeable))
        return rows[:, :2] * 3

    both = jax.jit(jax.vmap(jax.vmap(lambda x: batched_callback(host, 2, x, "test_ffi_triple"))))
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(both(x), 3 * x[..., :2])
    assert seen == [((6, 4), np.float32, False)]
    assert both(jnp.zeros((0, 3, 4))).shape == (0, 3, 2)


def test_the_first_of_a_name_serves_all():
    assert ffi.register("test_ffi_name", lambda rows: rows + 1)
    assert ffi.register("test_ffi_name", lambda rows: rows + 2)
    found = jax.jit(lambda x: batched_callback(lambda rows: rows + 2, 1, x, "test_ffi_name"))(jnp.zeros(1))
    assert float(found[0]) == 1


def test_what_it_raises_xla_raises():
    def host(rows):
        raise ValueError(f"{len(rows)} lanes are too many")

    with pytest.raises(Exception, match="ValueError: 1 lanes are too many"):
        jax.block_until_ready(jax.jit(lambda x: batched_callback(host, 1, x, "test_ffi_raises"))(jnp.zeros(1)))


def test_where_it_cannot_be_had_a_callback_does_it(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("another version")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    assert not ffi.register("test_ffi_refused", lambda rows: rows)
    found = jax.jit(lambda x: batched_callback(lambda rows: rows * 2, 3, x, "test_ffi_refused"))(jnp.arange(3.0))
    np.testing.assert_array_equal(found, [0.0, 2.0, 4.0])


CODE = """
import sys
sys.path.insert(0, "tests/envs")
import jax, jax.numpy as jnp
from physics_models import small_model
from envs.physics.native import NativePhysics

counts = {"hits": 0, "misses": 0}
def listen(event, **kwargs):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(listen)
physics = NativePhysics(small_model())
start = physics.init(jnp.asarray(physics.model.qpos0, jnp.float32), jnp.zeros(physics.model.nv))
counts.update(hits=0, misses=0)
after = jax.jit(lambda s: physics.step(s, jnp.zeros(physics.model.nu), 3))(start)
print(counts["hits"], counts["misses"], after.qpos.tolist())
"""


def test_another_process_takes_the_program_from_disk(tmp_path):
    environ = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    environ["PYTHONPATH"] = str(ROOT)

    def run():
        done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hits, misses, *rest = done.stdout.split()
        return int(hits), int(misses), rest

    first, second = run(), run()
    assert first[:2] == (0, 1) and second[:2] == (1, 0)
    assert first[2] == second[2]
