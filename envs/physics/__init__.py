"""Simulators behind one contract; see `envs.physics.base`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import mujoco

from envs.physics.base import WARP_DEVICES, ModelParams, Physics, PhysicsState, sensor_slices
from rdp_jax.config import ConfigError

__all__ = ["BACKENDS", "ModelParams", "Physics", "PhysicsState", "available", "make_physics", "sensor_slices"]

BACKENDS = ("auto", "native", "mjx", "warp")


def available() -> tuple[str, ...]:
    """Backends this machine can run, the default one first."""
    on_cpu = jax.default_backend() == "cpu"
    names = ["native"] if on_cpu else []
    if importlib.util.find_spec("mujoco.mjx") is not None:
        names.append("mjx")
    if jax.default_backend() in WARP_DEVICES and importlib.util.find_spec("warp") is not None:
        names.append("warp")
    return (*names, *(() if on_cpu else ("native",)))


def resolve(backend: str) -> str:
    """The backend that `auto` stands for, or `backend` itself.  Raises `ConfigError` if it is unknown or not on this machine."""
    usable = available()
    name = usable[0] if backend == "auto" else backend
    if name not in usable:
        raise ConfigError("backend", backend, f"on this machine: {' | '.join(('auto', *usable))}")
    return name


def make_physics(
    model: mujoco.MjModel | Mapping[str, mujoco.MjModel], backend: str = "auto", threads: int | None = None
) -> Physics:
    """A simulator of `model`.

    Args:
      model: an `MjModel`, or one per backend name (engines want different solver settings); `warp` falls back to the
        entry of `mjx`, any backend to that of `default`.
      backend: `native` (C engine on the host), `mjx` (JAX on any device), `warp` (NVIDIA), or `auto`: `native` on a CPU,
        `mjx` on an accelerator.
      threads: size of the native backend's thread pool; None: all usable cores.

    Raises:
      ConfigError: unknown backend, or one this machine lacks; says what there is.
    """
    name = resolve(backend)
    if not isinstance(model, mujoco.MjModel):
        model = _pick(model, name)
    if name == "native":
        from envs.physics.native import NativePhysics

        return NativePhysics(model, threads=threads)
    from envs.physics.mjx import MjxPhysics

    return MjxPhysics(model, impl="jax" if name == "mjx" else "warp")


def _pick(models: Mapping[str, Any], name: str) -> mujoco.MjModel:
    for key in (name, *(("mjx",) if name == "warp" else ()), "default"):
        if key in models:
            return models[key]
    raise ConfigError("backend", name, f"a model was given for: {' | '.join(models)}")
