"""DSRL on a bandit whose best noise is known; its parts; exactness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from envs.core import EnvSpec, State
from envs.wrappers import AutoReset
from rdp_jax import parallel, replay
from rdp_jax.algos import dsrl
from rdp_jax.config import ConfigError
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.squashed import squash
from rdp_jax.planner import Dims, Planner, PlannerConfig
from rdp_jax.steer import FunctionBase, NoiseActor, PlannerBase, choose_fixed, learned

GAIN, BOUND = 0.5, 1.5
CONFIG = dsrl.DSRLConfig(
    num_envs=32,
    unroll_length=2,
    warmup=6,
    critic_warmup=8,
    updates=8,
    distillations=8,
    batch=64,
    capacity=4096,
    noise_bound=BOUND,
    actor_lr=1e-3,
    critic_lr=3e-3,
    sizes=(64, 64),
    target_entropy=-1.5,
)


class Bandit:
    """One decision: the reward is how near the chunk comes to half the context."""

    spec = EnvSpec("bandit", {"actor": 2, "critic": 2}, 2, 0.1, 1)

    def default_params(self):
        return jnp.float32(0.0)

    def _state(self, key, reward, over):
        key, draw = jax.random.split(key)
        context = jax.random.uniform(draw, (2,), minval=-1.0)
        no = jnp.array(False)
        return State(context, {"actor": context, "critic": context}, reward, over, no, {"m": reward}, key)

    def reset(self, key, params):
        return self._state(key, jnp.float32(0.0), jnp.array(False))

    def step(self, state, action, params):
        reward = -jnp.sum(jnp.square(action - 0.5 * state.physics))
        return self._state(state.key, reward, jnp.array(True))


class Linear:
    """A frozen policy of one action: the noise, halved."""

    noise_shape, chunk_dim, noise_std = (1, 2), 2, 1.0

    def see(self, params, obs):
        return obs

    def sample(self, params, obs, noise):
        return params * noise[:, 0]

    def to_env(self, params, chunk):
        return chunk


def best(obs):
    """The noise that wins, in the box: `GAIN BOUND u = obs / 2`."""
    return 0.5 * obs / (GAIN * BOUND)


def make(config, policy=None, mesh=None):
    env, policy = AutoReset(Bandit()), policy or Linear()
    state = dsrl.init(jax.random.key(0), config, policy, jnp.float32(GAIN), env, jnp.float32(0.0), mesh)
    return state, dsrl.Update(config, policy, env, mesh=mesh)


@pytest.mark.parametrize(("variant", "widening"), [("na", 0), ("sac", 0), ("na", 10)])
def test_the_best_noise_is_found(variant, widening):
    config = dataclasses.replace(CONFIG, variant=variant, widening=widening)
    state, update = make(config)
    rewards = []
    for _ in range(60):
        state, metrics = update(state, jnp.float32(0.0))
        rewards.append(float(metrics["episode/return"]))
    obs = jax.random.uniform(jax.random.key(9), (256, 2), minval=-1.0)
    u, _ = update.nets.act(state.params["actor"], obs, None)
    assert float(jnp.abs(u - best(obs)).mean()) < 0.12
    warm, final = np.mean(rewards[:6]), np.mean(rewards[-5:])
    assert warm < -0.5 and final > -0.12
    # From the first steered iteration on it is no worse than the base: quiet noise to begin with, and critics that learn first.
    assert min(rewards[6:]) > warm
    assert float(state.base) == GAIN and update.cache_size() == 1 and int(state.skipped) == 0


def test_nobody_moves_before_it_is_time():
    state, update = make(CONFIG)
    first = jax.device_get(state.params)
    for i in range(CONFIG.warmup + CONFIG.critic_warmup):
        state, _ = update(state, jnp.float32(0.0))
        now = jax.device_get(state.params)
        same = jax.tree.map(np.array_equal, now["actor"], first["actor"])
        assert all(jax.tree.leaves(same))
        learned = not np.array_equal(now["values"]["heads"]["last"]["bias"], first["values"]["heads"]["last"]["bias"])
        assert learned == (i >= CONFIG.warmup)
    state, _ = update(state, jnp.float32(0.0))
    assert not np.array_equal(jax.device_get(state.params["alpha"]), first["alpha"])


def test_first_values_are_as_small_as_asked():
    obs, u = jax.random.normal(jax.random.key(0), (64, 2)), jax.random.uniform(jax.random.key(1), (64, 2))

    def first(scale):
        nets = dsrl.Networks(dataclasses.replace(CONFIG, value_scale=scale), Linear(), 2)
        params = nets.init(jax.random.key(2), jnp.float32(GAIN), 2)
        return np.abs(nets.value(params["noise_values"], obs, u)).mean()

    assert first(1.0) > 0.1
    np.testing.assert_allclose(first(0.01), 0.01 * first(1.0), rtol=1e-4)


def test_the_box_widens_as_the_critics_learn():
    config = dataclasses.replace(CONFIG, widening=10, widen_from=0.2, updates=2, distillations=2)
    begin = config.warmup + config.critic_warmup
    widths = [float(dsrl.share(config, i)) for i in (0, begin, begin + 5, begin + 10, begin + 99)]
    np.testing.assert_allclose(widths, [0.2, 0.2, 0.6, 1.0, 1.0], atol=1e-6)
    assert float(dsrl.share(CONFIG, 0)) == 1.0
    state, update = make(config)
    used = []
    for i in range(begin + 12):
        state, _ = update(state, jnp.float32(0.0))
        latest = jax.device_get(state.buffer.rows.u)[64 * i : 64 * (i + 1)]
        used.append(np.abs(latest).max() / float(dsrl.share(config, i)))
    steered = np.array(used[config.warmup :])
    assert steered.max() <= 1.0 and steered.min() > 0.3  # all of the box is in reach, from the first to the last
    # What is judged has the width of its iteration.
    choose, obs = learned(config, Linear(), 2), jax.random.uniform(jax.random.key(9), (256, 2), minval=-1.0)
    keys = jax.random.split(jax.random.key(0), 256)
    wide, narrow = (dsrl.acting(config, state.replace(iteration=jnp.int32(i))) for i in (begin + 10, 0))
    np.testing.assert_allclose(choose(narrow, obs, keys), 0.2 * choose(wide, obs, keys), rtol=1e-5)
    assert "share" not in dsrl.acting(CONFIG, make(CONFIG)[0])


class Endless(Bandit):
    """Nothing is ever paid, and no episode ends: what targets hold is what the target network says."""

    def step(self, state, action, params):
        return self._state(state.key, jnp.float32(0.0), jnp.array(False))


@pytest.mark.parametrize("variant", ["na", "sac"])
@pytest.mark.parametrize(("promise", "bound", "target"), [(10.0, 0.0, 9.7), (10.0, 1.0, 0.97), (-10.0, 1.0, 0.0)])
def test_targets_stay_where_returns_can_be(variant, promise, bound, target):
    config = dataclasses.replace(CONFIG, variant=variant, warmup=1, updates=1, tau=0.0, return_bound=bound)
    env = AutoReset(Endless())
    state = dsrl.init(jax.random.key(0), config, Linear(), jnp.float32(GAIN), env, jnp.float32(0.0))
    flat = jax.tree.map(jnp.zeros_like, state.target)
    flat["heads"]["last"]["bias"] += promise
    state, update = state.replace(target=flat), dsrl.Update(config, Linear(), env)
    for _ in range(2):
        state, metrics = update(state, jnp.float32(0.0))
    assert float(metrics["value/target"]) == pytest.approx(target, abs=1e-5)


def test_the_first_actor_is_quieter_than_the_base():
    state, update = make(CONFIG)
    obs = jnp.zeros((4096, 2))
    u, _ = update.nets.act(state.params["actor"], obs, jax.random.normal(jax.random.key(1), (4096, 2)))
    noise = dsrl.to_noise(CONFIG, Linear(), u)
    assert abs(float(noise.mean())) < 0.05 and 0.2 < float(noise.std()) < 0.6


def test_a_function_outside_jax_is_steered_alike():
    inside, update = make(CONFIG)
    outside = FunctionBase(lambda obs, noise: GAIN * noise[:, 0], (1, 2), 2)
    other, update_other = make(CONFIG, outside)
    for _ in range(2):
        inside, a = update(inside, jnp.float32(0.0))
        other, b = update_other(other, jnp.float32(0.0))
    assert float(a["reward/mean"]) == pytest.approx(float(b["reward/mean"]), abs=1e-6)


def test_a_quieter_policy_warms_up_as_quietly():
    class Quiet(Linear):
        noise_std = 0.5

    state, update = make(CONFIG, Quiet())
    replayed = update(state, jnp.float32(0.0))[0].buffer
    u = np.asarray(replayed.rows.u)[: int(replay.size(replayed))]
    assert np.std(BOUND * u) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(("first_std", "warm"), [(1.0, 1.0), (0.5, 0.5), (0.0, 1.0)])
def test_a_planner_warms_up_under_its_own_noise_or_under_some(first_std, warm):
    diffusion = DiffusionConfig(steps=8, ddim_steps=2, sampler="ddim", first_std=first_std)
    assert PlannerBase(PlannerConfig(diffusion=diffusion), Dims(5, 3)).noise_std == warm


def test_repeated_noise_is_one_vector_for_all_actions():
    class Long(Linear):
        noise_shape = (3, 2)

    config = dataclasses.replace(CONFIG, noise="repeated")
    assert dsrl.noise_dim(config, Long()) == 2 and dsrl.noise_dim(CONFIG, Long()) == 6
    steered = dataclasses.replace(CONFIG, variant="sac")
    assert dsrl.noise_dim(steered, Long()) == 2  # unless it is told otherwise
    assert dsrl.noise_dim(dataclasses.replace(steered, noise="full"), Long()) == 6
    noise = dsrl.to_noise(config, Long(), jnp.array([[0.5, -1.0]]))
    np.testing.assert_allclose(noise, [[[0.75, -1.5]] * 3])


def test_density_of_the_squashed_gaussian():
    mean, log_std = jnp.array([[0.3, -0.2]]), jnp.array([[-0.5, 0.1]])
    noise = jnp.array([[0.7, -1.1]])
    u, log_prob = squash(mean, log_std, noise)
    raw = np.arctanh(np.asarray(u, np.float64))
    z = (raw - np.asarray(mean)) / np.exp(np.asarray(log_std, np.float64))
    density = -0.5 * z**2 - np.asarray(log_std) - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(raw) ** 2)
    np.testing.assert_allclose(log_prob, density.sum(-1), rtol=1e-4)


def test_two_devices_learn_and_a_resumed_run_is_the_same(monkeypatch):
    real, asked = dsrl.Update._own, []
    monkeypatch.setattr(dsrl.Update, "_own", lambda self, key: asked.append(1) or real(self, key))
    mesh = parallel.make_mesh(2)
    state, update = make(CONFIG, mesh=mesh)
    for _ in range(CONFIG.warmup + 2):
        state, metrics = update(state, jnp.float32(0.0))
    assert float(metrics["buffer/rows"]) == 8 * 64 and np.isfinite(metrics["loss/critic"])

    # Each device has its own rows, and its own noise for them.
    added = dsrl.init(
        jax.random.key(0), CONFIG, Linear(), jnp.float32(GAIN), AutoReset(Bandit()), jnp.float32(0.0), mesh
    )
    assert added.buffer.added.shape == (2,) and make(CONFIG)[0].buffer.added.shape == (1,)
    own = parallel.shard(lambda key: real(update, key)[None], mesh, P(), P(parallel.AXIS))(jax.random.key(3))
    assert len(asked) == 2  # by a step and by a distillation
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(own))}) == 2

    def run(state, update, n):
        for _ in range(n):
            state, _ = update(state, jnp.float32(0.0))
        return jax.device_get(state.params)

    state, update = make(CONFIG)
    straight = run(state, update, 9)
    state, _ = make(CONFIG)
    for _ in range(7):
        state, _ = update(state, jnp.float32(0.0))
    keys = jax.random.key_data(state.key), jax.random.key_data(state.env.key)
    host = jax.device_get(state.replace(key=keys[0], env=state.env.replace(key=keys[1])))  # as a checkpoint does
    back = jax.device_put(host)
    back = back.replace(
        key=jax.random.wrap_key_data(back.key), env=back.env.replace(key=jax.random.wrap_key_data(back.env.key))
    )
    jax.tree.map(np.testing.assert_array_equal, run(back, update, 2), straight)


def test_replay_is_a_ring():
    ring = replay.create({"x": jnp.zeros(())}, 4)
    for start in (0, 3, 6):
        ring = replay.add(ring, {"x": jnp.arange(start, start + 3.0)})
    assert sorted(np.asarray(ring.rows["x"])) == [5, 6, 7, 8] and int(replay.size(ring)) == 4
    drawn = np.asarray(replay.sample(ring, jax.random.key(0), 200)["x"])
    assert set(drawn) == {5, 6, 7, 8}
    half = replay.add(replay.create({"x": jnp.zeros(())}, 8), {"x": jnp.ones(2)})
    assert (np.asarray(replay.sample(half, jax.random.key(0), 50)["x"]) == 1).all()  # never an empty row
    with pytest.raises(ValueError, match="capacity of 4"):
        replay.add(ring, {"x": jnp.zeros(5)})


def test_demonstrations_are_learned_from():
    config = dataclasses.replace(CONFIG, distill_from="box")
    state, update = make(config)
    n = 100
    obs = jnp.full((n, 2), 0.25)
    seeded = dsrl.Row(obs, obs, jnp.zeros((n, 2)), jnp.zeros((n, 2)), jnp.full(n, 7.0), jnp.zeros(n), obs, obs)
    state = dsrl.seed_buffer(state, seeded)
    assert int(replay.size(state.buffer)) == n
    state, metrics = update(state, jnp.float32(0.0))
    assert float(metrics["buffer/rows"]) == n + config.num_envs * config.unroll_length
    assert float((state.buffer.rows.reward == 7.0).sum()) == n


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="capacity=32, allowed: at least"):
        make(dataclasses.replace(CONFIG, capacity=32, batch=8))
    with pytest.raises(ConfigError, match="batch=8192, allowed: at most capacity=4096"):
        make(dataclasses.replace(CONFIG, batch=8192))
    with pytest.raises(ConfigError, match="variant"):
        make(dataclasses.replace(CONFIG, variant="td3"))
    with pytest.raises(ConfigError, match="distillations=0, allowed: at least 1 in na"):
        make(dataclasses.replace(CONFIG, variant="na", distillations=0))


def test_a_planner_of_which_only_the_last_steps_are_tuned_is_not_steered():
    """The first ones have other weights, which nobody would hand over."""
    planner = Planner(PlannerConfig(), Dims(3, 2), None, None, 2, {})
    with pytest.raises(ConfigError, match="tuned_steps=2"):
        NoiseActor(planner, choose_fixed)
