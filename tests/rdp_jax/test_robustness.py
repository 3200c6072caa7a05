"""What goes wrong in long runs of the joint learner: environments that return NaN, and processes that are killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joint_run import Joint
from layered_toy import DPPO, TICKS, WISH, Made, fragile

from envs.wrappers import settle_ticks
from rdp_jax import guard, parallel
from rdp_jax.algos import joint
from rdp_jax.checkpoint import Checkpointer
from rdp_jax.gae import gae
from rdp_jax.types import Ticks

HERE = Path(__file__).parent
ENVS, LIMIT = 256, 0.98  # of goals uniform in [-1, 1]: one environment in a hundred
SIMULTANEOUS = joint.Schedule(variant="simultaneous", rehearsals=0)


@pytest.fixture(scope="module")
def made():
    """The toy, its update, and parameters with which an environment in a hundred breaks down."""
    toy = Made(dataclasses.replace(DPPO, num_envs=ENVS, unroll_length=2, reset_pool=64), recorded=ENVS)
    return toy, toy.update(SIMULTANEOUS), toy.params.replace(fragile=jnp.float32(LIMIT))


# --- NaN -----------------------------------------------------------------------------------------------------------------


def test_broken_environments_are_replaced_and_counted_and_others_do_not_notice(made):
    toy, _, broken = made
    states = toy.start().planner.env
    victims = np.asarray(fragile(states, LIMIT))
    assert 1 <= victims.sum() <= 10
    pool = toy.env.reset(jax.random.split(jax.random.key(8), 16), toy.params)
    action = jax.random.uniform(jax.random.key(9), (ENVS, 4), minval=-1.0)
    noise = {n: jnp.zeros((ENVS, toy.env.ticks, 1)) for n in toy.env.parts}
    step = jax.jit(toy.env.step_recorded)
    out, ticks = step(pool, states, action, broken, noise)
    healthy, healthy_ticks = step(pool, states, action, toy.params, noise)
    np.testing.assert_array_equal(out.diverged, victims)
    assert not healthy.diverged.any()
    np.testing.assert_array_equal(np.asarray(out.state.task.step)[victims], 0)  # a fresh start
    np.testing.assert_array_equal(np.asarray(out.reward)[victims], 0.0)
    assert bool(guard.all_finite((out, ticks)))
    np.testing.assert_array_equal(~ticks.live.any(1), victims)
    for a, b in zip(jax.tree.leaves((out, ticks)), jax.tree.leaves((healthy, healthy_ticks)), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(a)[~victims], np.asarray(b)[~victims])


def test_joint_learning_goes_on_among_broken_environments(made):
    toy, update, broken = made

    def learn(params):
        state, rewards, diverged = toy.start(), [], 0.0
        for _ in range(12):
            state, metrics = update(state, params)
            rewards.append(float(metrics["x/reward"]))
            diverged += float(metrics["guard/diverged"])
        assert bool(guard.all_finite((state.planner.params, state.parts, state.planner.env)))
        assert int(state.planner.skipped) == int(state.parts["x"].skipped) == int(state.parts["y"].skipped) == 0
        return rewards, diverged, state

    clean, none, _ = learn(toy.params)
    rewards, diverged, state = learn(broken)
    steps = 12 * ENVS * toy.config.unroll_length
    assert none == 0 and 0.002 * steps < diverged < 0.02 * steps
    assert clean[-1] > 0.5 * clean[0] and clean[0] < -0.3  # towards zero: it does learn
    assert rewards[-1] == pytest.approx(clean[-1], abs=0.1 * (clean[-1] - clean[0]))
    count = state.parts["x"].normalizer["actor"]
    assert (np.abs(count.mean) < 1.0).all()  # nothing made up has gone into the statistics
    assert update.cache_size() == 1


def test_no_advantage_reaches_across_an_action_that_broke_down():
    """Three actions of two ticks; the second is dead from its first tick on, or from its second."""
    rng = np.random.default_rng(0)
    for first_dead, cut in ((2, 1), (3, 2)):
        live = jnp.arange(6) < first_dead
        live = (live | (jnp.arange(6) >= 4)).reshape(3, 1, TICKS)
        column = {"p": jnp.asarray(rng.normal(size=(3, 1, TICKS, 1)), jnp.float32)}
        reward = jnp.asarray(rng.normal(size=(3, 1, TICKS)), jnp.float32)
        ticks = Ticks(column, column, column, {"p": reward}, jnp.zeros((3, 1, TICKS), bool), live)
        done = jnp.array([[False], [True], [False]])
        data, happened = joint.transition(ticks, done, "p")
        assert [int(i) for i in np.flatnonzero(data.truncated)] == [cut]
        value = jnp.asarray(rng.normal(size=(6, 1)), jnp.float32)

        def advantage(later, data=data, value=value, cut=cut):
            changed = jnp.where(jnp.arange(6)[:, None] > cut, later, data.reward)
            return gae(changed, value, value, data.terminated, data.truncated, 0.9, 0.9)[0][: cut + 1]

        np.testing.assert_array_equal(advantage(0.0), advantage(100.0))
        assert happened[:, 0].tolist() == live.reshape(-1).tolist()


def test_what_stands_in_for_a_broken_tick_is_the_first_of_its_action():
    x = jnp.array([[[1.0], [jnp.nan], [3.0]], [[4.0], [5.0], [6.0]], [[jnp.nan], [8.0], [9.0]]])
    live = jnp.ones((3, 3), bool)
    settled = settle_ticks(Ticks({"p": x}, {}, {}, {}, ~live, live))
    np.testing.assert_array_equal(settled.obs["p"][..., 0], [[1, 1, 1], [4, 5, 6], [0, 0, 0]])
    np.testing.assert_array_equal(settled.live, [[1, 0, 0], [1, 1, 1], [0, 0, 0]])


# --- signals -------------------------------------------------------------------------------------------------------------


def killed(out, *words):
    """Exit status of `joint_run` in a process of its own, and the iterations that it finished."""
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "joint_run.py"), str(out), *(str(int(word)) for word in words)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, [int(line) for line in done.stdout.split()]


def saved(out):
    """Newest iteration, and its state."""
    checkpoints = Checkpointer(out / "checkpoints", {"run": "joint_run"})
    return checkpoints.latest(), checkpoints.restore(Made(rehearsed=-WISH).start())


def logged(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.slow
def test_killed_in_the_middle_of_an_iteration_and_resumed(tmp_path):
    straight, broken, here = tmp_path / "straight", tmp_path / "broken", Joint()

    def run(out, *words):
        done = []
        here.run(out, *words, finished=done.append)
        return done

    assert run(straight, 6) == [1, 2, 3, 4, 5, 6]
    # The second iteration is finished and saved, although nothing was to be saved before the end.
    assert run(broken, 6, signal.SIGTERM, 1) == [1, 2]
    assert saved(broken)[0] == 2
    # No time to save anything: what came since the checkpoint is lost, and nothing else.
    assert killed(broken, 6, signal.SIGKILL, 4) == (-signal.SIGKILL, [3, 4])
    assert saved(broken)[0] == 2
    assert logged(broken) == logged(straight)[:4]
    assert run(broken, 6) == [3, 4, 5, 6]
    assert logged(broken) == logged(straight)
    (last, ours), (_, theirs) = saved(broken), saved(straight)
    assert last == 6
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_four_devices_go_on_from_a_checkpoint(tmp_path):
    mesh = parallel.make_mesh(4)
    toy = Made(rehearsed=-WISH)
    update = toy.update(joint.Schedule(variant="simultaneous"), mesh)
    state, _ = update(toy.start(mesh), toy.params)
    saved = Checkpointer(tmp_path / "c", {})
    saved.save(1, state)
    expected, _ = update(state, toy.params)
    found = Checkpointer(tmp_path / "c", {}).restore(toy.start(mesh))
    again, _ = update(found, toy.params)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(again), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
