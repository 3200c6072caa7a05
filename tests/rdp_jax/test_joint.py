"""Joint fine-tuning on a toy with a controller inside: phases, bookkeeping of ticks, what learns and what stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layered_toy import DPPO, PPO, SCHEDULE, WISH, Made

from rdp_jax import parallel
from rdp_jax.algos import dppo, joint, ppo
from rdp_jax.config import ConfigError
from rdp_jax.types import Ticks


@pytest.fixture(scope="module")
def made():
    """The update, a function that makes a first state for a mesh, and the parameters of the environments."""
    toy = Made()
    return toy.update, toy.start, toy.params


def test_each_phase_moves_its_own_learner_only(made):
    make, start, params = made
    update = make()
    first = jax.device_get(start())
    second, metrics = update(start(), params)
    second = jax.device_get(second)
    assert metrics["x/policy/first_ratio_error"] == 0.0
    assert not np.allclose(
        second.parts["x"].params["actor"]["mlp"]["last"]["kernel"],
        first.parts["x"].params["actor"]["mlp"]["last"]["kernel"],
    )
    jax.tree.map(np.testing.assert_array_equal, second.planner.params, first.planner.params)
    # Under other statistics of its observations a trained policy would be another one, whatever its weights.
    frozen, moving = ([state.parts["x"].normalizer[n] for state in (first, second)] for n in ("actor", "critic"))
    jax.tree.map(np.testing.assert_array_equal, *frozen)
    assert moving[1].count > moving[0].count
    third, metrics = update(jax.device_put(second), params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(third).parts["y"].params, second.parts["y"].params)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), third.planner.params["actor"], second.planner.params["actor"]
    )
    assert all(jax.tree.leaves(moved)) and metrics["policy/first_ratio_error"] == 0.0
    assert update.cache_size() == 1


def test_the_controller_learns_its_task_beside_the_planner(made):
    make, start, params = made
    update = make(joint.Schedule(variant="simultaneous", rehearsals=0))
    state, rewards = start(), []
    for _ in range(15):
        state, metrics = update(state, params)
        rewards.append(float(metrics["x/reward"]))
    assert int(state.planner.iteration) == int(state.parts["x"].iteration) == 15
    assert rewards[-1] > 0.6 * rewards[0] and rewards[0] < -0.3  # towards zero
    assert update.cache_size() == 1


def test_a_part_that_rehearses_learns_both_tasks():
    toy = Made(rehearsed=-WISH)  # the opposite of what it is to do now
    update, state = toy.update(joint.Schedule(variant="simultaneous")), toy.start()
    first = jax.device_get(state)
    for _ in range(15):
        state, metrics = update(state, toy.params)
    own, rehearsed = float(metrics["x/reward"]), float(metrics["x/rehearsal/reward"])
    # As many samples want +WISH as want -WISH; one that did all for either would have -1 on the other.
    assert own > -0.8 and rehearsed > -0.8 and own + rehearsed > -0.8
    assert "y/rehearsal/reward" not in metrics and float(metrics["y/reward"]) > own + 0.1
    assert metrics["x/policy/first_ratio_error"] == 0.0 and int(state.parts["x"].iteration) == 15
    assert update.cache_size() == 1
    moved = jax.device_get(state.rehearsal["x"][0].physics)
    assert jax.tree.structure(state) == jax.tree.structure(first)  # as a checkpoint needs it
    assert not np.array_equal(moved, first.rehearsal["x"][0].physics)


def test_a_part_that_does_not_learn_stays_as_it_is_and_does_not_explore(made):
    make, start, params = made
    with pytest.raises(ConfigError, match=r"learning=\('z',\), allowed: some of x, y"):
        make(learning=("z",))
    update = make(learning=("y",))
    first = jax.device_get(start())
    _, data, _ = jax.jit(lambda s: update.collect(s, params, update.fresh(s, params), False))(start())
    ticks = data.extras[1]
    mean = {n: ppo.policy(first.parts[n].params, first.parts[n].normalizer, {"actor": ticks.obs[n]}) for n in "xy"}
    np.testing.assert_allclose(ticks.action["x"], mean["x"], atol=1e-5)
    assert 0.3 < float(jnp.std(ticks.action["y"] - mean["y"])) < 0.5
    second, metrics = update(start(), params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(second).parts["x"].params, first.parts["x"].params)
    assert "x/reward" in metrics and "x/policy/kl" not in metrics and "y/policy/kl" in metrics
    assert int(second.parts["x"].iteration) == 0 and int(second.parts["y"].iteration) == 1


def test_one_and_four_devices_agree():
    toy = Made(rehearsed=-WISH)
    schedule = joint.Schedule(variant="simultaneous")
    one, _ = toy.update(schedule)(toy.start(), toy.params)
    mesh = parallel.make_mesh(4)
    four, _ = toy.update(schedule, mesh)(toy.start(mesh), toy.params)
    ones, fours = ((state.parts, state.rehearsal) for state in (one, four))
    for a, b in zip(jax.tree.leaves(ones), jax.tree.leaves(fours), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4)


@pytest.mark.parametrize("schedule", [joint.Schedule(variant="simultaneous"), joint.Schedule(controller_iterations=0)])
def test_the_planner_learns_as_precisely_as_its_own_config_says(schedule, monkeypatch):
    toy, seen = Made(dataclasses.replace(DPPO, matmul_precision="default")), {}
    for part, name in ((dppo.Update, "digest"), (dppo.Update, "plan"), (ppo, "digest")):
        real = getattr(part, name)

        def watched(*args, real=real, where=f"{part.__name__}.{name}", **more):
            seen[where] = jax.config.jax_default_matmul_precision
            return real(*args, **more)

        monkeypatch.setattr(part, name, watched)
    toy.update(schedule)(toy.start(), toy.params)
    controller = seen.pop("rdp_jax.algos.ppo.digest", "highest")
    assert (
        seen == {"Update.digest": "default", "Update.plan": "default"}
        and controller == PPO.matmul_precision == "highest"
    )


def test_the_controllers_groups_must_divide_over_devices_too():
    toy, mesh = Made(), parallel.make_mesh(4)
    planner = dppo.Update(toy.config, toy.policy, toy.env, mesh)
    with pytest.raises(ConfigError, match="controller.shuffle_groups=2, allowed: a multiple of 4 devices"):
        joint.Update(SCHEDULE, planner, dataclasses.replace(PPO, shuffle_groups=2), toy.recorded)


def test_the_controllers_phase_ends_the_planners_discounted_returns():
    toy = Made(dataclasses.replace(DPPO, reward_scaling=True))
    update, state = toy.update(), toy.start()
    state = state.replace(planner=state.planner.replace(running=state.planner.running + 100.0))
    state, _ = update(state, toy.params)
    assert (np.asarray(state.planner.running) == 0.0).all()
    state, _ = update(state, toy.params)  # the planner's
    assert (np.asarray(state.planner.running) != 0.0).any()


def test_ticks_become_a_rollout_in_time_order():
    live = jnp.array([[[True, True], [True, False]], [[True, True], [True, True]]])  # (T, B, n)
    fell = jnp.zeros((2, 2, 2), bool).at[0, 1, 0].set(True)
    count = jnp.arange(8.0).reshape(2, 2, 2)
    column = {"p": count[..., None]}
    ticks = Ticks(column, column, column, {"p": count}, fell, live)
    done = jnp.array([[False, True], [True, False]])
    data, happened = joint.transition(ticks, done, "p")
    np.testing.assert_array_equal(data.reward, [[0, 2], [1, 3], [4, 6], [5, 7]])
    np.testing.assert_array_equal(happened, [[1, 1], [1, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(data.terminated[:, 1], [1, 0, 0, 0])
    np.testing.assert_array_equal(data.truncated, [[0, 0], [0, 0], [0, 0], [1, 0]])
    # The next observation, except where the planner's episode ended.
    np.testing.assert_array_equal(data.final_obs[:, 0, 0], [1, 4, 5, 5])


def test_schedule():
    schedule = joint.Schedule(rounds=2, controller_iterations=1, planner_iterations=2)
    assert [schedule.phase(i) for i in range(schedule.iterations)] == ["controller", "planner", "planner"] * 2
    assert joint.Schedule(variant="simultaneous").phase(3) == "both"
