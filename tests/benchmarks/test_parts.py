"""Scenarios `tasks` and `refine`: the parts do what the whole does, neither more nor less; shares are shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import parts, refine, runner, tasks
from benchmarks.scenarios import SCENARIOS, Case
from envs.physics.base import PhysicsState
from envs.physics.native import NativePhysics
from envs.tasks.catalog import TASKS
from envs.tasks.command import TICKS
from rdp_jax.config import ConfigError
from train.task_args import TaskFlags

TINY_TASKS = {**SCENARIOS["tasks"].defaults, "tasks": ("pickup",), "num_envs": 2, "chunks": 1}
TINY_REFINE = {**SCENARIOS["refine"].defaults, "num_envs": 4, "chunks": 1, "recorded": 4, "minibatches": 5}
SUBSTEPS = 4  # of a controller's tick, at 5 ms


@pytest.fixture
def steps(monkeypatch):
    """Counts physics steps, all lanes together."""
    count = [0]
    real = NativePhysics._step_host

    def counting(self, packed, substeps, with_eq):
        count[0] += len(packed) * substeps
        return real(self, packed, substeps, with_eq)

    monkeypatch.setattr(NativePhysics, "_step_host", counting)
    return count


def measured(cases, count):
    """Case -> physics steps of its second call, as the benchmark's timed ones are."""
    found = {}
    for case in cases:
        call = case.build()
        call()
        count[0] = 0
        call()
        found[case.name] = count[0]
        if case.details:
            assert case.details()
    return found


@pytest.mark.slow
def test_physics_is_stepped_in_the_whole_and_in_its_part_and_nowhere_else(steps):
    found = measured(tasks.setup(**TINY_TASKS), steps)
    work = 2 * 8 * TICKS * SUBSTEPS
    assert found == {
        "pickup_native": work,
        "pickup_native_physics": work,
        "pickup_native_controller": 0,
        "pickup_native_denoising": 0,
    }


@pytest.mark.long  # compiles four programs of the whole joint learner
def test_an_iteration_of_joint_learning_and_its_parts(steps):
    cases = refine.setup(**TINY_REFINE)
    assert {case.work for case in cases} == {4 * 8}
    found = measured(cases, steps)
    work = 4 * 8 * TICKS * SUBSTEPS
    assert {name: count for name, count in found.items() if count} == {
        "planner_phase": work,
        "controller_phase": work,
        "physics": work,
    }
    names = [case.name for case in cases]
    for phase in ("planner_phase", "controller_phase"):
        of = {case.name for case in cases if phase in case.part_of}
        assert of == {"physics", "denoising", f"{phase}_controller", f"{phase}_updates"}
        assert of < set(names)


def test_physics_at_rest():
    env = parts.still_env(TaskFlags(task="pickup", backend="native"), 1)
    model = env.control.model
    qpos, qvel = jnp.asarray(model.qpos0, jnp.float32), jnp.zeros(model.nv)
    state = PhysicsState(qpos, qvel, jnp.float32(0.0), jnp.ones(model.nsensordata), jnp.array(False))
    after = env.control.physics.step(state, jnp.zeros(model.nu), 4)
    np.testing.assert_allclose(after.qpos, qpos, atol=1e-6)
    assert float(after.time) == pytest.approx(0.02)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_every_task_of_the_catalogue_is_measured():
    cases = tasks.setup(**{**TINY_TASKS, "tasks": None})
    assert [case.name for case in cases if not case.part_of] == [f"{name}_native" for name in TASKS]
    assert {case.missing for case in cases} == {None}


def test_a_task_without_a_shipped_planner_gets_a_fresh_one(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "shipped", lambda task, which: tmp_path / f"{task}_{which}")
    tasks.planner_config.cache_clear()
    env = parts.still_env(TaskFlags(task="door", backend="native"), tasks.planner_config("door").history)
    planner = tasks.planner_of("door", env, 0)
    assert planner.config.history * planner.dims.frame == env.spec.obs_dims["actor"]
    obs, keys = jnp.zeros((2, env.spec.obs_dims["actor"])), jax.random.split(jax.random.key(0), 2)
    action = planner.actor().act(planner.bundle, (), obs, keys)
    assert action.shape == (2, 8 * env.spec.action_dim) and bool(jnp.isfinite(action).all())
    tasks.planner_config.cache_clear()


def test_shares_are_medians_over_turns():
    def case(name, part_of=()):
        return Case(name, lambda: lambda: None, 1, "calls", part_of=part_of)

    cases = [case("whole"), case("a", ("whole",)), case("b", ("whole", "other")), case("other")]
    seconds = {"whole": [2.0, 4.0, 1.0], "a": [1.0, 1.0, 0.2], "b": [0.5, 2.0, 0.5], "other": [1.0, 2.0, 2.0]}
    assert runner.shares(cases, seconds) == {
        "whole": {"a": 0.25, "b": 0.5, "sum": 0.75},
        "other": {"b": 0.5, "sum": 0.5},
    }


def test_bad_settings_are_refused():
    def refused(scenario, match, **settings):
        with pytest.raises(ConfigError, match=match):
            runner.run(scenario, out=None, repeats=1, **settings)

    refused("tasks", "tasks='juggling', allowed: one or more of pickup", tasks=("juggling",))
    refused("tasks", r"cases='bullet', allowed: one or more of native \| mjx", cases="bullet")
    refused("tasks", "chunks=0", chunks=0)
    refused("refine", "task='hopper'", task="hopper")
    refused("refine", "recorded=3", recorded=3)
    refused("refine", "minibatches=7", minibatches=7)
