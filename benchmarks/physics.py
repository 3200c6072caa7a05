"""Scenario `physics`: the T1, standing under small random servo targets, in every way this project can step it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np

from benchmarks.scenarios import Case
from envs.physics import make_physics
from envs.physics.mjx import widen_thread_pool
from envs.physics.native import POOL
from envs.randomize import Ranges, Targets, sample_model_params
from envs.t1.model import load_model
from envs.t1.robot import Robot


def setup(lanes: int, substeps: int, steps: int, noise: float, threads: int | None, cases: Sequence[str]) -> list[Case]:
    """Cases that all do the same work: `lanes` robots, `steps` control steps of `substeps` physics steps.

    Args:
      lanes: robots side by side.
      substeps: physics steps per control step.
      steps: control steps per timed call; every call starts from standing.
      noise: standard deviation of the servo targets around the standing pose [rad].
      threads: threads of the C engine; None: all usable cores.
      cases: which of `PHYSICS_CASES`.
    """
    if "mjx" in cases:
        widen_thread_pool()
    if threads is not None:
        POOL.resize(threads)
    model = load_model("flat")
    robot = Robot.from_model(model)
    rng = np.random.default_rng(0)
    qpos = np.tile(robot.stand_qpos, (lanes, 1)).astype(np.float32)
    qvel = np.zeros((lanes, model.nv), np.float32)
    ctrl = (robot.stand_ctrl + rng.normal(0, noise, (steps, lanes, model.nu))).astype(np.float32)

    def inside_jit(backend: str, randomised: bool) -> Callable[[], Callable[[], Any]]:
        def build():
            physics = make_physics(model, backend)
            params = None
            if randomised:
                targets = Targets.from_model(model, ("left_payload", "right_payload"))
                keys = jax.random.split(jax.random.key(0), lanes)
                params = jax.vmap(lambda key: sample_model_params(key, targets, Ranges()))(keys)

            @jax.jit
            def roll(state, ctrl, params):
                def body(state, ctrl):
                    step = jax.vmap(lambda s, c, p: physics.step(s, c, substeps, p))
                    return step(state, ctrl, params), None

                return jax.lax.scan(body, state, ctrl)[0]

            # States are exchangeable between backends, and MJX takes as long to compile `init` as `step`.
            start = jax.jit(jax.vmap(make_physics(model, "native").init))(qpos, qvel)
            device_ctrl = jnp.asarray(ctrl)
            return lambda: jax.block_until_ready(roll(start, device_ctrl, params))

        return build

    def bare() -> Callable[[], Any]:
        """The engine called as its documentation does, with reused buffers: the most one could hope for."""
        pool = mujoco.rollout.Rollout(nthread=POOL.threads)
        data = [mujoco.MjData(model) for _ in range(POOL.threads)]
        start = np.concatenate([np.zeros((lanes, 1)), qpos, qvel], 1)
        control = np.repeat(ctrl[:, :, None].astype(np.float64), substeps, 2)
        states = np.empty((lanes, substeps, start.shape[1]))
        sensors = np.empty((lanes, substeps, model.nsensordata))

        def roll():
            state = start
            for step in range(steps):
                pool.rollout(model, data, state, control[step], state=states, sensordata=sensors)
                state = states[:, -1].copy()
            return state

        return roll

    builds = {
        "native": inside_jit("native", False),
        "native_randomised": inside_jit("native", True),
        "bare_rollout": bare,
        "mjx": inside_jit("mjx", False),
        "warp": inside_jit("warp", False),
    }
    return [Case(name, builds[name], lanes * substeps * steps, "physics steps") for name in cases]
