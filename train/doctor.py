"""`rdp doctor`: what works on this machine, found out by trying it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.physics import BACKENDS, available, make_physics
from rdp_jax.machine import machine
from train.args import DoctorArgs
from train.output import summary
from train.rays import Camera, picture

GRAVITY, DT, HEIGHT, STEPS = 10.0, 0.01, 1.0, 10
ONE_BODY = f"""
<mujoco>
  <option timestep="{DT}" gravity="0 0 -{GRAVITY}" integrator="Euler"/>
  <worldbody><body pos="0 0 {HEIGHT}"><freejoint/><geom size="0.1" mass="1" contype="0" conaffinity="0"/></body></worldbody>
</mujoco>
"""
_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 2"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the picture is black"
"""


def _try(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`{ok, error, ...}`: whatever goes wrong is the finding, not a failure of the command."""
    try:
        return {"ok": True, "error": None, **work()}
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"ok": False, "error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}


def _fall(backend: str, lanes: int) -> dict[str, Any]:
    """Let one body fall for `STEPS` steps in `lanes` environments; semi-implicit Euler says where it must be."""
    physics = make_physics(mujoco.MjModel.from_xml_string(ONE_BODY), backend)
    qpos = jnp.tile(jnp.array([0.0, 0.0, HEIGHT, 1.0, 0.0, 0.0, 0.0]), (lanes, 1))

    @jax.jit
    def fall(qpos):
        state = jax.vmap(physics.init)(qpos, jnp.zeros((lanes, 6)))
        return jax.vmap(lambda s: physics.step(s, jnp.zeros(0), STEPS))(state).qpos

    begin = time.monotonic()
    first = jax.block_until_ready(fall(qpos))
    compiled = time.monotonic()
    jax.block_until_ready(fall(qpos))
    ran = time.monotonic()
    expected = HEIGHT - GRAVITY * DT**2 * STEPS * (STEPS + 1) / 2
    error = float(jnp.abs(first[:, 2] - expected).max())
    if not error < 1e-4:
        raise ArithmeticError(f"a falling body is {error:.3g} m from where it must be")
    return {"compile_s": round(compiled - begin, 3), "run_s": round(ran - compiled, 5), "error_m": error}


def _backends(wanted: str, lanes: int) -> dict[str, Any]:
    names = [b for b in BACKENDS if b != "auto" and wanted in ("auto", b)]
    return {name: _try(lambda name=name: _fall(name, lanes)) for name in names}  # type: ignore[misc]


def _matmul(seed: int) -> dict[str, Any]:
    """Largest relative error of a float32 product against float64, per precision setting of JAX."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 256, 256)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)

    def error(precision: str) -> float:
        got = np.asarray(jnp.matmul(a, b, precision=precision), np.float64)
        return float(np.abs(got - exact).max() / np.abs(exact).max())

    return {
        "configured": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "relative_error": {name: error(name) for name in ("default", "highest")},
    }


def _rays() -> dict[str, Any]:
    """Whether a ball, drawn by casting rays, stands before the sky."""
    model = mujoco.MjModel.from_xml_string(ONE_BODY)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    drawn = picture(model, data, Camera(np.array([0.0, 0.0, HEIGHT]), distance=1.0), (33, 33)).astype(int)
    if np.abs(drawn[16, 16] - drawn[0, 0]).max() < 16:
        raise ArithmeticError("the ball looks like the sky")
    return {}


def _rendering() -> dict[str, Any]:
    """Whether MuJoCo can draw without a screen, by OpenGL in a process of its own each, and by casting rays."""
    ways = ("egl", "osmesa") if sys.platform == "linux" else ("cgl",)

    def draw(way: str) -> dict[str, Any]:
        run = subprocess.run(
            [sys.executable, "-c", _RENDER],
            env={**os.environ, "MUJOCO_GL": way, "PYOPENGL_PLATFORM": way},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if run.returncode:
            lines = [
                line for line in run.stderr.strip().splitlines() if line and not line.startswith(("Exception", " "))
            ]
            raise OSError(lines[-1] if lines else f"exit status {run.returncode}")
        return {}

    return {**{way: _try(lambda way=way: draw(way)) for way in ways}, "rays": _try(_rays)}  # type: ignore[misc]


def _device(device: jax.Device) -> dict[str, Any]:
    memory = (device.memory_stats() or {}).get("bytes_limit")
    gigabytes = None if memory is None else round(memory / 2**30, 1)
    return {"platform": device.platform, "kind": device.device_kind, "memory_gb": gigabytes}


def _programs() -> dict[str, Any]:
    """Where JAX keeps compiled programs (None: nowhere), and how much there is."""
    path = jax.config.values["jax_compilation_cache_dir"] or None
    files = [f for f in Path(path).rglob("*") if f.is_file()] if path else []
    return {"kept_in": path, "size_mb": round(sum(f.stat().st_size for f in files) / 1e6, 1)}


def run_doctor(args: DoctorArgs) -> dict[str, Any]:
    """Try everything; the summary's metrics hold `machine, devices, backends, matmul, rendering,
    programs`."""
    begin = time.monotonic()
    lanes = args.num_envs or 1
    metrics = {
        "machine": machine(),
        "devices": [_device(d) for d in jax.devices()],
        "backends": _backends(args.backend, lanes),
        "matmul": _matmul(args.seed),
        "rendering": _rendering(),
        "programs": _programs(),
    }
    backend = available()[0] if args.backend == "auto" else args.backend
    return summary(
        "doctor", seed=args.seed, backend=backend, num_envs=lanes, wall_s=time.monotonic() - begin, metrics=metrics
    )
