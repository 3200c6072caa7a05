"""Four virtual CPU devices, programs that compile fast, and an on-disk compilation cache; all must be set before JAX is imported."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

# The tests compile much and compute little: without optimisation a T1 program takes a quarter to a half of the time to compile.
FLAGS = {"xla_force_host_platform_device_count": "4", "xla_backend_optimization_level": "0"}
OPTIMIZED = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):  # later ones refuse this flag
    FLAGS["xla_cpu_use_fusion_emitters"], OPTIMIZED["xla_cpu_use_fusion_emitters"] = "false", True
given = os.environ.get("XLA_FLAGS", "")
flags = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whatever else the machine has: the virtual devices are CPUs
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session")
def optimized():
    """Compiles `(jitted, *arguments)` as users' programs are: what is to be exact to the bit has to be so there."""
    return lambda jitted, *args: jitted.lower(*args).compile(compiler_options=OPTIMIZED)
