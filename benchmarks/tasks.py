"""Scenario `tasks`: planner steps (0.1 s) per second of every T1 task of the catalogue, and where the time goes.

A call is a rollout of the task's planner on one device, fresh starts for what ends included, as `rdp finetune` makes it.  The
parts are measured beside it in the same run (see `benchmarks.parts`); the result holds their shares and the sum of those.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import parts
from benchmarks.scenarios import Case
from envs.physics import available
from envs.physics.mjx import widen_thread_pool
from envs.tasks.catalog import TASKS
from envs.tasks.command import ACTION_DIM
from envs.tasks.hierarchy import Hierarchy
from rdp_jax.data.windows import MinMax
from rdp_jax.planner import Bundle, Dims, Planner, make_policy
from train.presets import task_planner
from train.task_args import TaskFlags
from train.tasks import HumanoidStage, find_planner, shipped, weights_of


def setup(
    tasks: Sequence[str] | None,
    cases: Sequence[str] | None,
    num_envs: int,
    mjx_envs: int,
    chunks: int,
    physics_dt: float,
    seed: int,
) -> list[Case]:
    """Cases `TASK_BACKEND` of `chunks` chunks in each environment per call, each followed by its parts.

    Args:
      tasks: names of the catalogue; None: all of it.
      cases: physics backends; None: the one that this machine takes by itself.
      num_envs: environments side by side.
      mjx_envs: the same for MJX on a CPU, where it is slow.
      chunks: per environment and call.
      physics_dt: seconds per physics step.
      seed: of starts and noise.
    """
    if cases is not None and "mjx" in cases:
        widen_thread_pool()  # before JAX is first used
    names = tuple(TASKS) if tasks is None else tasks
    backends = available()[:1] if cases is None else cases
    on_cpu = jax.default_backend() == "cpu"
    found: list[Case] = []
    for backend in backends:
        count = mjx_envs if backend == "mjx" and on_cpu else num_envs
        missing = None if backend in available() else f"on this machine: {' | '.join(available())}"
        for task in names:
            found += task_cases(task, backend, count, chunks, physics_dt, seed, missing)
    return found


def task_cases(
    task: str, backend: str, num_envs: int, chunks: int, physics_dt: float, seed: int, missing: str | None
) -> list[Case]:
    """The rollout of one task on one backend, and its parts.  What they share is made once, when the first is built."""
    name = f"{task}_{backend}"
    args = TaskFlags(task=task, backend=backend, physics_dt=physics_dt)

    @functools.cache
    def given() -> tuple[HumanoidStage, Planner, parts.Act, parts.Sizes]:
        history = planner_config(task).history
        stage = HumanoidStage(args, history)
        planner = planner_of(task, stage.env, seed)
        actor = planner.actor()

        def act(weights, obs, keys):
            bundle, base = weights
            return actor.act(bundle, base, obs, keys), ()

        return stage, planner, act, parts.Sizes(num_envs, chunks, planner.config.executed)

    @functools.cache
    def whole() -> parts.Rollout:
        stage, planner, act, sizes = given()
        return parts.Rollout(stage.env, act, sizes, stage.params, weights_of(planner), seed)

    tape = functools.cache(lambda: whole()())

    def physics():
        stage, _, _, sizes = given()
        return parts.physics(stage.env, sizes, tape())

    def controller():
        stage, planner, _, sizes = given()
        plan = parts.constant(planner.bundle, sizes.executed)
        env = parts.still_env(args, planner.config.history)
        return parts.Rollout(env, plan, sizes, stage.params, (), seed, whole().state)

    def denoising():
        _, planner, act, sizes = given()
        return parts.denoising(act, sizes, weights_of(planner), tape(), seed)

    def details() -> dict[str, Any]:
        return {
            "num_envs": num_envs,
            "planner": "shipped" if shipped(task, "pretrained").is_file() else "fresh",
            "diverged": int(whole().metrics["guard/diverged"]),
        }

    work = num_envs * chunks * planner_config(task).executed
    first = Case(name, whole, work, "env steps", details, missing)
    builds = {"physics": physics, "controller": controller, "denoising": denoising}
    others = [
        Case(f"{name}_{part}", build, work, "env steps", missing=missing, part_of=(name,))
        for part, build in builds.items()
    ]
    return [first, *others]


@functools.cache
def planner_config(task: str) -> Any:
    """Of the planner that is shipped for the task, or else of those that `rdp pretrain` makes."""
    return find_planner(None, task, "pretrained").config if shipped(task, "pretrained").is_file() else task_planner()


def planner_of(task: str, env: Hierarchy, seed: int) -> Planner:
    """The task's shipped planner; for a task without one a planner that has learned nothing, which takes as long."""
    if shipped(task, "pretrained").is_file():
        return find_planner(None, task, "pretrained")
    config, dims = planner_config(task), Dims(env.frame_dim, ACTION_DIM)
    width = config.history * dims.frame
    weights = make_policy(config, dims).init(jax.random.key(seed), width)
    one = {n: jnp.ones(n) for n in (width, dims.action)}
    bounds = {n: MinMax(-x, x) for n, x in one.items()}
    return Planner(config, dims, Bundle(weights, bounds[width], bounds[dims.action]), None, 0, {"task": task})
