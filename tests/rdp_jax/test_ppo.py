"""PPO as a whole, on the toy environment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.toy import Toy, optimal_return
from envs.wrappers import AutoReset
from rdp_jax import guard, minibatch, parallel
from rdp_jax.algos import ppo
from rdp_jax.config import ConfigError
from rdp_jax.types import Transition


def copy(tree):
    """The update donates its state; keep one."""
    return jax.tree.map(lambda x: x.copy(), tree)


def numbers(tree):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def test_what_did_not_happen_counts_for_nothing(tiny, tiny_state):
    """Whatever stands there, and on however many devices.  Each step's end bootstraps, so that none reaches across one that
    did not happen."""
    rng = np.random.default_rng(0)
    shape = (tiny.unroll_length, tiny.num_envs)
    draw = lambda *tail: jnp.array(rng.normal(size=(*shape, *tail)), jnp.float32)  # noqa: E731
    widths = {name: norm.mean.shape[0] for name, norm in tiny_state.normalizer.items()}
    obs = {name: draw(width) for name, width in widths.items()}
    ends = jnp.ones(shape, bool)
    data = Transition(obs, draw(2), draw(), ~ends, ends, draw(widths["critic"]), ())
    live = jnp.array(rng.random(shape) < np.linspace(0.1, 1.0, tiny.num_envs))  # most of it on the last device
    config = dataclasses.replace(tiny, frozen_statistics=False, shuffle_groups=4)

    def learned(fill, devices):
        mesh = parallel.make_mesh(devices)
        there = jax.tree.map(lambda x: jnp.where(live.reshape(*shape, *[1] * (x.ndim - 2)), x, fill), data)
        there = there.replace(terminated=data.terminated, truncated=data.truncated)
        axis = parallel.P(None, parallel.AXIS)
        digest = parallel.shard(
            lambda s, d, m: ppo.digest(config, mesh, s, d, jax.random.key(1), m),
            mesh,
            (ppo.state_spec(), axis, axis),
            (ppo.state_spec(), parallel.P()),
        )
        return jax.jit(digest)(copy(tiny_state), there, live)

    state, metrics = learned(0.0, 1)
    assert float(state.normalizer["actor"].count) == float(live.sum())
    for fill, devices in ((1e3, 1), (0.0, 4), (1e3, 4)):
        other, same = learned(fill, devices)
        ours, theirs = (numbers((s.params, s.normalizer)) for s in (state, other))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
        for name in ("policy/kl_last", "value/target_mean", "value/explained_variance"):
            np.testing.assert_allclose(metrics[name], same[name], rtol=1e-3, atol=1e-6)


def test_first_ratio_is_exactly_one_and_later_ones_are_not(tiny, tiny_update, tiny_state, env):
    state, errors, kls = tiny_state, [], []
    for _ in range(4):
        state, metrics = tiny_update(state, env.default_params())
        errors.append(float(metrics["policy/first_ratio_error"]))
        kls.append(float(metrics["policy/kl_last"]))
    assert errors == [0.0] * 4
    assert min(kls) > 0.0  # the policy does move, so the zeros above say something


def test_score_at_the_parameters_of_collection_has_ratio_one(tiny, tiny_state):
    """The same through the loss itself, and a ratio that differs once the parameters do."""
    rng = np.random.default_rng(0)
    obs = jnp.array(rng.normal(size=(80, 4)), jnp.float32)
    action = jnp.array(rng.normal(size=(80, 2)), jnp.float32)
    log_prob, mean, log_std = ppo.score(tiny_state.params["actor"], obs, action)
    zeros = jnp.zeros(80)
    batch = ppo.Batch(obs, jnp.zeros((80, 5)), action, log_prob, mean, zeros, zeros)
    _, info = ppo.loss(tiny, log_std, tiny_state.params, batch)
    assert float(info["policy/ratio_error"]) == 0.0
    assert float(info["policy/kl"]) == 0.0
    moved = {**tiny_state.params, "actor": jax.tree.map(lambda x: x + 0.05, tiny_state.params["actor"])}
    assert float(ppo.loss(tiny, log_std, moved, batch)[1]["policy/ratio_error"]) > 1e-3


def test_one_compile_whatever_the_parameters_are(tiny, env):
    update = ppo.make_update(tiny, env)
    params = env.default_params()
    state = ppo.init(jax.random.key(0), tiny, env, params)
    means = []
    for reward in (1.0, 2.0, jnp.float32(3.0), np.float64(4.0), 5):
        state, metrics = update(state, params.replace(reward=float(reward) if isinstance(reward, int) else reward))
        means.append(float(metrics["env/reward/near"] / metrics["env/raw/near"]))
    np.testing.assert_allclose(means, [1, 2, 3, 4, 5], rtol=1e-5)
    assert update.cache_size() == 1


@pytest.fixture(scope="module")
def by_devices(tiny, env):
    """Three iterations on 1, 2 and 4 devices: `(state as numbers, metrics of each iteration, compilations after the first)`."""
    results = {}
    for devices in (1, 2, 4):
        mesh = parallel.make_mesh(devices)
        state = ppo.init(jax.random.key(3), tiny, env, env.default_params(), mesh)
        update, history, compiled = ppo.make_update(tiny, env, mesh), [], []
        state, metrics = update(state, env.default_params())
        history.append(jax.device_get(metrics))
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, found=compiled, **__: found.append(event) if "backend_compile" in event else None
        )
        for _ in range(2):
            state, metrics = update(state, env.default_params())
            history.append(jax.device_get(metrics))
        jax.monitoring.clear_event_listeners()
        results[devices] = (numbers(state), history, len(compiled))
    return results


@pytest.mark.parametrize("devices", [2, 4])
def test_device_count_changes_nothing(by_devices, devices):
    expected, got = by_devices[1], by_devices[devices]
    for a, b in zip(expected[1], got[1]):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for a, b in zip(expected[0], got[0]):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)
    assert got[2] == 0


def test_environments_are_sharded(tiny, env):
    mesh = parallel.make_mesh(4)
    state = ppo.init(jax.random.key(3), tiny, env, env.default_params(), mesh)
    assert state.env.reward.sharding.shard_shape((tiny.num_envs,)) == (tiny.num_envs // 4,)
    assert state.params["actor"]["log_std"].sharding.is_fully_replicated


def test_groups_must_divide_over_devices(tiny, env):
    config = dataclasses.replace(tiny, shuffle_groups=2)
    with pytest.raises(ConfigError, match="shuffle_groups=2, allowed: a multiple of 4 devices"):
        ppo.make_update(config, env, parallel.make_mesh(4))


def test_minibatches_are_a_partition_and_the_same_sets_on_any_device():
    data = jnp.arange(6 * 8).reshape(6, 8)  # (T, B)
    key, groups, count = jax.random.key(0), 4, 3
    grouped = minibatch.to_groups(data, groups)
    whole = minibatch.take(grouped, minibatch.permutations(key, jnp.arange(4), 12), count)
    assert sorted(np.ravel(whole)) == list(range(48))
    halves = []
    for device in range(2):
        local = minibatch.to_groups(data[:, 4 * device : 4 * device + 4], 2)
        order = minibatch.permutations(key, jnp.arange(2) + 2 * device, 12)
        halves.append(np.asarray(minibatch.take(local, order, count)))
    for m in range(count):
        assert set(np.ravel(whole[m])) == set(np.concatenate([h[m] for h in halves]))


def test_normaliser_is_frozen_inside_and_merged_after(tiny, tiny_update, tiny_state, env):
    assert float(tiny_state.normalizer["actor"].count) == 0
    state, _ = tiny_update(tiny_state, env.default_params())
    assert float(state.normalizer["actor"].count) == tiny.num_envs * tiny.unroll_length
    assert float(state.normalizer["critic"].count) == tiny.num_envs * tiny.unroll_length


def test_the_critic_never_sees_raw_observations(tiny, tiny_state):
    """The first rollout teaches it the same in whatever units it comes."""
    rng, shape = np.random.default_rng(0), (tiny.unroll_length, tiny.num_envs)
    seen = jnp.array(rng.normal(size=(*shape, 5)), jnp.float32)
    data = Transition(
        obs={"actor": jnp.array(rng.normal(size=(*shape, 4)), jnp.float32), "critic": seen},
        action=jnp.array(rng.normal(size=(*shape, 2)), jnp.float32),
        reward=jnp.array(rng.normal(size=shape), jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
        final_obs=seen,
    )
    digest = jax.jit(lambda state, data: ppo.digest(tiny, None, state, data, jax.random.key(0))[0].params["critic"])
    other = data.replace(obs={**data.obs, "critic": 30.0 * seen + 7.0}, final_obs=30.0 * seen + 7.0)
    first = digest(tiny_state, data)
    assert any(
        (np.asarray(a) != b).any() for a, b in zip(*map(numbers, (first, tiny_state.params["critic"])), strict=True)
    )
    for a, b in zip(numbers(first), numbers(digest(tiny_state, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_update_that_is_not_finite_changes_no_weight(tiny, tiny_update, tiny_state, env):
    state, _ = tiny_update(tiny_state, env.default_params())
    before = numbers((state.params, state.opt_state, state.lr))
    state, metrics = tiny_update(state, env.default_params().replace(reward=1e30))  # its square overflows
    for a, b in zip(before, numbers((state.params, state.opt_state, state.lr))):
        np.testing.assert_array_equal(a, b)
    assert int(metrics["guard/skipped_updates"]) == tiny.epochs * tiny.minibatches == int(state.skipped)
    state, metrics = tiny_update(state, env.default_params())  # and it goes on
    assert int(metrics["guard/skipped_updates"]) == 0
    assert not np.array_equal(before[1], numbers(state.params)[1])


class Broken(Toy):
    """Gives NaN on the fifth step of every episode that began on the right."""

    def step(self, state, action, params):
        after = super().step(state, action, params)
        bad = (after.task.step == 5) & (after.task.goal[0] > 0)
        spoil = lambda x: jnp.where(bad, jnp.nan, x)  # noqa: E731
        return after.replace(
            physics=spoil(after.physics), obs=jax.tree.map(spoil, after.obs), reward=spoil(after.reward)
        )


def test_broken_environments_are_masked_reset_and_counted(tiny):
    env = AutoReset(Broken())
    state = ppo.init(jax.random.key(0), tiny, env, env.default_params())
    right = int((state.env.task.goal[:, 0] > 0).sum())
    assert 0 < right < tiny.num_envs
    state, metrics = ppo.make_update(tiny, env)(state, env.default_params())
    # All who began on the right broke at step 5; those reset there had time for at most one more.
    assert right <= int(metrics["guard/diverged"]) <= 2 * right
    assert int(metrics["guard/skipped_updates"]) == 0
    assert all(np.isfinite(float(metrics[name])) for name in metrics if not name.startswith("episode/"))
    assert bool(guard.all_finite((state.params, state.normalizer, state.env.obs, state.env.physics)))


def test_adaptive_learning_rate(tiny):
    config = dataclasses.replace(tiny, lr_min=1e-4, lr_max=1e-2, target_kl=0.02)
    rate = lambda lr, kl: float(ppo.adapt_lr(config, jnp.float32(lr), jnp.float32(kl)))  # noqa: E731
    np.testing.assert_allclose(rate(1e-3, 0.05), 1e-3 / 1.5, rtol=1e-6)
    np.testing.assert_allclose(rate(1e-3, 0.005), 1.5e-3, rtol=1e-6)
    np.testing.assert_allclose(rate(1e-3, 0.02), 1e-3, rtol=1e-6)
    np.testing.assert_allclose([rate(1e-4, 1.0), rate(1e-2, 0.0)], [1e-4, 1e-2], rtol=1e-6)


def test_the_critic_has_a_rate_and_a_scale_of_its_own(tiny, tiny_update, tiny_state, env):
    params, before = env.default_params(), copy(tiny_state.params["critic"])
    own = ppo.make_update(dataclasses.replace(tiny, critic_lr=0.05), env)
    (one, _), (other, _) = (update(copy(tiny_state), params) for update in (tiny_update, own))
    for a, b in zip(jax.tree.leaves(one.params["actor"]), jax.tree.leaves(other.params["actor"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)  # two programs, which may round differently
    moved = [
        max(
            float(jnp.abs(a - b).max())
            for a, b in zip(*map(jax.tree.leaves, (s.params["critic"], before)), strict=True)
        )
        for s in (one, other)
    ]
    assert moved[1] > 2 * moved[0] > 0
    small = ppo.critic_of(dataclasses.replace(tiny, value_scale=0.01)).init(jax.random.key(1), jnp.ones((1, 5)))
    usual = ppo.critic_of(tiny).init(jax.random.key(1), jnp.ones((1, 5)))
    last = [p["params"]["mlp"]["last"]["kernel"] for p in (small, usual)]
    np.testing.assert_allclose(100 * last[0], last[1], rtol=1e-5)


def test_steps_do_not_overflow(tiny, tiny_state):
    state = tiny_state.replace(iteration=jnp.int32(2**31 - 1))
    assert ppo.env_steps(tiny, state) == (2**31 - 1) * 160


def test_policy_samples_around_its_mean(tiny_state):
    obs = {"actor": jnp.ones((20_000, 4))}
    mean = ppo.policy(tiny_state.params, tiny_state.normalizer, obs)
    sample = ppo.policy(tiny_state.params, tiny_state.normalizer, obs, jax.random.key(0))
    assert mean.shape == sample.shape == (20_000, 2)
    np.testing.assert_allclose((sample - mean).std(0), 0.4, rtol=0.03)


@pytest.mark.slow
def test_learns_the_toy(env):
    config = ppo.PPOConfig(num_envs=64, unroll_length=24, actor_sizes=(32, 32), critic_sizes=(32, 32))
    params = env.default_params()
    state, update = ppo.init(jax.random.key(0), config, env, params), ppo.make_update(config, env)
    fresh = env.reset(jax.random.split(jax.random.key(99), 256), params)

    @jax.jit
    def evaluate(learner):
        def one(envs, _):
            out = env.step(fresh, envs, ppo.policy(learner.params, learner.normalizer, envs.obs), params)
            return out.state, (out.reward, out.terminated)

        _, (rewards, terminated) = jax.lax.scan(one, fresh, length=env.spec.episode_steps)
        return rewards.sum(0).mean(), terminated.sum()

    best = optimal_return(fresh.obs["actor"][:, :2], env.spec.episode_steps).mean()
    gap_before = best - evaluate(state)[0]
    for _ in range(60):
        state, _ = update(state, params)
    after, fell = evaluate(state)
    assert int(fell) == 0
    assert 0.0 <= float(best - after) < 0.1 * float(gap_before)
    assert update.cache_size() == 1
