"""Imitation, then DPPO, on the toy environment; the exactness both promise."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from envs.chunk import Chunked
from envs.toy import Toy, optimal_action, optimal_return
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import bc, dppo
from rdp_jax.config import ConfigError
from rdp_jax.data import windows as W
from rdp_jax.data.episodes import DataError, from_lists
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.evaluate import first_episodes
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import Actor, Bundle, Dims, PlannerConfig, make_policy
from rdp_jax.types import Transition

TE, STEPS = 2, 24
CONFIG = PlannerConfig(
    net=NetConfig(kind="mlp", sizes=(64, 64, 64)),
    diffusion=DiffusionConfig(steps=8, correlation=0.5),
    horizon=2,
    executed=TE,
    history=1,
)
DPPO = dppo.DPPOConfig(
    num_envs=64,
    unroll_length=24,
    epochs=4,
    minibatches=4,
    tuned_steps=4,
    clip=0.1,
    clip_base=0.1,
    actor_lr=1e-3,
    gamma=0.95,
    critic_sizes=(64, 64, 64),
    reset_pool=64,
)


def clumsy_demonstrations(episodes=64):
    """A demonstrator that moves at half speed, with some noise: far from the best return, but in its support."""
    toy, rng = Toy(STEPS), np.random.default_rng(0)
    params = toy.default_params()
    reset, step = jax.jit(toy.reset), jax.jit(toy.step)
    obs, action, reward = [], [], []
    for i in range(episodes):
        state = reset(jax.random.key(i), params)
        rows = []
        for _ in range(STEPS):
            a = 0.4 * np.asarray(optimal_action(state.obs["actor"])) + 0.3 * rng.normal(size=2)
            rows.append((np.asarray(state.obs["actor"]), np.clip(a, -1, 1)))
            state = step(state, jnp.asarray(rows[-1][1], jnp.float32), params)
            if state.terminated:
                break
        obs.append(np.stack([r[0] for r in rows]))
        action.append(np.stack([r[1] for r in rows]))
        reward.append(np.zeros(len(rows)))
    return from_lists(obs, action, reward, [True] * episodes, range(episodes))


@pytest.fixture(scope="session")
def planner():
    """A planner that imitates the clumsy demonstrator, and its losses."""
    episodes = clumsy_demonstrations()
    table = W.windows(episodes, CONFIG.history, CONFIG.horizon)
    obs_bounds, action_bounds = W.bounds(episodes.obs), W.bounds(episodes.action)
    flat = obs_bounds.normalize(jnp.asarray(episodes.obs)), action_bounds.normalize(jnp.asarray(episodes.action))
    data = bc.Data(*W.gather(*flat, table))
    policy = make_policy(CONFIG, Dims(4, 2))
    config = bc.BCConfig(epochs_per_call=40, batch=256, total_steps=400, warmup_steps=10)
    state = bc.init(jax.random.key(0), config, policy, 4)
    update = bc.Update(config, policy)
    losses = []
    for _ in range(2):
        state, metrics = update(state, (data, jax.tree.map(lambda x: x[:256], data)))
        losses.append(float(metrics["loss/validation"]))
    assert update.cache_size() == 1
    return Bundle(state.ema, obs_bounds, action_bounds), losses


@pytest.fixture(scope="session")
def vector():
    return AutoReset(Chunked(Toy(STEPS), TE))


@pytest.fixture(scope="session")
def updated(planner, vector):
    """The update, a first state, the state and metrics after one iteration (all on the host)."""
    bundle, _ = planner
    update = dppo.Update(DPPO, make_policy(CONFIG, Dims(4, 2)), vector)

    def make():
        return dppo.init(jax.random.key(1), DPPO, update.policy, bundle, vector, vector.default_params())

    state, metrics = update(make(), vector.default_params())
    return update, make, jax.device_get(state), jax.device_get(metrics)


def regret(vector, bundle, base=None, tuned_steps=0):
    """Mean of (optimal return - return) over 256 episodes."""
    actor, params = Actor(CONFIG, Dims(4, 2), tuned_steps), vector.default_params()
    key = jax.random.key(99)

    @jax.jit
    def run(bundle, base):
        def act(obs, keys):
            return actor.act(bundle, base, obs["actor"], keys)

        return first_episodes(vector, act, key, jnp.arange(256), params, STEPS)

    starts = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key, 3)[1], jnp.arange(256))
    error = vector.reset(starts, params).obs["actor"][:, :2]
    result = run(bundle, base)
    assert bool(result.ended.all())
    return float((optimal_return(error, STEPS) - result.returns).mean())


def test_imitation_lowers_the_loss(planner):
    _, losses = planner
    assert losses[1] < losses[0] < 0.9


def test_first_ratio_is_exactly_one_and_compiles_once(updated, optimized):
    update, make, _, _ = updated
    state, params = make(), Toy(STEPS).default_params()
    pool = update.starts(state, params)
    _, metrics = optimized(update.compiled, state, params, pool)(state, params, pool)
    assert metrics["policy/first_ratio_error"] == 0.0
    state = make()
    for _ in range(2):
        state, _ = update(state, Toy(STEPS).default_params())
    assert update.cache_size() == 1


def test_resume_is_exact(updated):
    update, make, after_one, _ = updated
    params = Toy(STEPS).default_params()
    straight = make()
    for _ in range(2):
        straight, _ = update(straight, params)
    resumed, _ = update(jax.tree.map(jnp.asarray, after_one), params)
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dppo_comes_near_the_optimum(planner, vector, updated):
    update, make, _, _ = updated
    bundle, _ = planner
    before = regret(vector, bundle)
    state, params = make(), vector.default_params()
    for _ in range(40):
        state, metrics = update(state, params)
    after = regret(vector, bundle.replace(weights=state.params["actor"]), bundle.weights, DPPO.tuned_steps)
    assert before > 1.0  # the demonstrator is clumsy, and so is its imitator
    assert after < 0.35 * before
    assert metrics["guard/diverged"] == 0 and metrics["value/explained_variance"] > 0.5
    for a, b in zip(jax.tree.leaves(state.base.weights), jax.tree.leaves(bundle.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_comes_out_is_the_average_of_the_latest_iterations(planner, vector):
    bundle, _ = planner
    config = dataclasses.replace(DPPO, num_envs=16, unroll_length=8, critic_warmup=1)
    policy, params = make_policy(CONFIG, Dims(4, 2)), vector.default_params()

    def learned(config):
        """Weights after each of four iterations, those that explore and those that come out."""
        state = dppo.init(jax.random.key(1), config, policy, bundle, vector, params)
        update = dppo.Update(config, policy, vector)
        for _ in range(4):
            state, _ = update(state, params)
            yield tuple(ravel_pytree(x)[0] for x in jax.device_get((state.params["actor"], state.learned)))

    plain, plain_out = zip(*learned(config), strict=True)
    last, out = zip(*learned(dataclasses.replace(config, averaged=2)), strict=True)
    np.testing.assert_array_equal(plain, plain_out)
    np.testing.assert_allclose(plain, last, rtol=1e-3, atol=1e-5)  # averaging changes nothing of what is learned
    np.testing.assert_array_equal(last[0], ravel_pytree(bundle.weights)[0])  # the critic's own iteration
    assert np.abs(last[2] - last[1]).max() > 1e-3
    wanted = [last[0], last[1], (last[1] + last[2]) / 2]
    wanted.append((wanted[2] + last[3]) / 2)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_one_and_four_devices_agree(planner, vector):
    bundle, _ = planner
    config = dataclasses.replace(DPPO, num_envs=16, unroll_length=8)
    policy, params = make_policy(CONFIG, Dims(4, 2)), vector.default_params()
    results = []
    for devices in (1, 4):
        mesh = parallel.make_mesh(devices)
        state = dppo.init(jax.random.key(1), config, policy, bundle, vector, params, mesh)
        state, metrics = dppo.Update(config, policy, vector, mesh)(state, params)
        results.append(jax.device_get((state.params, metrics["policy/kl_last"])))
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_a_state_is_valued_once_however_many_of_its_steps_are_in_a_minibatch(updated):
    update, _, state, _ = updated
    rng = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    batch = dppo.Batch(None, draw(6, 5), None, None, draw(6), None, None)
    outer = jnp.asarray(rng.integers(0, 6, 16))  # more rows than states; then in parts that have fewer
    loss = jax.value_and_grad(lambda critic, rows: update._value_loss(critic, batch, rows))
    whole = loss(state.params["critic"], outer)
    parts = [loss(state.params["critic"], rows) for rows in outer.reshape(4, 4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 4.0, *parts)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert whole[0] > 0.0


def test_quiet_steps_are_run_and_not_scored(planner, vector, updated):
    """The loss without the quiet steps is that of the others' pairs; the chunk is the same, noise of the quiet steps included."""
    bundle, _ = planner
    whole, make, _, _ = updated
    quiet = dppo.Update(dataclasses.replace(DPPO, quiet_steps=1), whole.policy, vector)
    assert (whole.config.decisions, quiet.config.decisions) == (4, 3)
    state, rng = make(), np.random.default_rng(4)
    obs, keys = {"actor": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}, jax.random.split(jax.random.key(2), 6)
    (action, chain), (same, shorter) = (u.plan(state, obs, keys, True) for u in (whole, quiet))
    np.testing.assert_array_equal(action, same)
    np.testing.assert_array_equal(chain[:, :4], shorter)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    log_prob, mean = draw(6, 4), draw(6, 4, TE, 2)
    batch = dppo.Batch(obs["actor"], draw(6, 5), chain, draw(6), draw(6), log_prob, mean)
    cut = batch.replace(chain=shorter, log_prob=log_prob[:, :3], mean=mean[:, :3])
    scored = jnp.asarray([4 * outer + inner for outer in range(6) for inner in range(3)])
    params = {**state.params, "actor": jax.tree.map(lambda w: 1.1 * w, state.params["actor"])}
    want = jax.grad(lambda p: whole._loss(p, bundle.weights, batch, scored)[0])(params)
    got = jax.grad(lambda p: quiet._loss(p, bundle.weights, cut, jnp.arange(18))[0])(params)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(got["actor"])) > 1e-3


def test_a_power_of_the_std_weighs_the_steps(planner, updated, vector):
    """The gradient is the sum of the steps' own, each over the loudest std to that power."""
    bundle, _ = planner
    whole, make, _, _ = updated
    weighed = dppo.Update(dataclasses.replace(DPPO, std_power=1.0), whole.policy, vector)
    state, rng, count = make(), np.random.default_rng(6), 6
    obs, keys = {"actor": jnp.asarray(rng.normal(size=(count, 4)), jnp.float32)}, jax.random.split(jax.random.key(3), 6)
    _, chain = jax.jit(lambda: whole.plan(state, obs, keys, True))()
    advantage = jnp.asarray(rng.normal(size=count), jnp.float32)
    scored = jax.jit(whole._score_all)(state.params["actor"], obs["actor"][None], chain[None])
    log_prob, mean = (x[0] for x in scored)
    batch = dppo.Batch(obs["actor"], jnp.zeros((count, 5)), chain, advantage, jnp.zeros(count), log_prob, mean)

    def gradient_of(update):
        loss = lambda p, index: update._loss(p, bundle.weights, batch, index)[0]  # noqa: E731
        return jax.jit(lambda index: ravel_pytree(jax.grad(loss)(state.params, index)["actor"])[0])

    std = np.asarray(whole.policy.exploring.std)[-4:]
    plain = gradient_of(whole)
    each = [plain(4 * jnp.arange(count) + k) / 4 for k in range(4)]
    want = sum(g * s / std.max() for g, s in zip(each, std, strict=True))
    np.testing.assert_allclose(gradient_of(weighed)(jnp.arange(4 * count)), want, rtol=1e-3, atol=1e-6)
    assert np.abs(want - sum(each)).max() > 1e-3

    # So is the KL by which the rate is set: a mean with these weights.
    moved = {**state.params, "actor": jax.tree.map(lambda w: 1.1 * w, state.params["actor"])}
    kl_of = lambda update, index: float(update._loss(moved, bundle.weights, batch, index)[1]["policy/kl"])  # noqa: E731
    kls = [kl_of(whole, 4 * jnp.arange(count) + k) for k in range(4)]
    found = kl_of(weighed, jnp.arange(4 * count))
    np.testing.assert_allclose(found, np.average(kls, weights=std), rtol=1e-4)
    assert abs(found - np.mean(kls)) > 0.05 * found


def test_the_critic_has_a_lambda_of_its_own(vector, updated):
    whole, make, _, _ = updated
    state, rng, shape = make(), np.random.default_rng(5), (24, 4)
    draw = lambda *tail: jnp.asarray(rng.normal(size=(*shape, *tail)), jnp.float32)  # noqa: E731
    never = jnp.zeros(shape, bool)
    obs = {"actor": draw(4), "critic": draw(5)}
    data = Transition(obs, draw(4), draw(), never, never, draw(5), draw(5, *whole.policy.shape))
    prepared = []
    for own in (0.95, 0.0):
        update = dppo.Update(dataclasses.replace(DPPO, num_envs=4, value_lambda=own), whole.policy, vector)
        prepared.append(jax.jit(update.prepare)(state, data)[0])
    one, other = prepared
    np.testing.assert_array_equal(one.advantage, other.advantage)
    assert float(jnp.abs(one.target - other.target).max()) > 0.1
    np.testing.assert_allclose(one.target[-1], other.target[-1], rtol=1e-5)  # where nothing follows


def test_beyond_the_target_kl_the_actor_rests_and_the_critic_goes_on(vector, updated):
    whole, make, _, metrics = updated
    assert float(metrics["policy/resting"]) == 0.0
    update = dppo.Update(dataclasses.replace(DPPO, target_kl=1e-6), whole.policy, vector)
    before = jax.device_get(make().params)
    after, metrics = update(make(), vector.default_params())
    moved = {name: ravel_pytree(after.params[name])[0] - ravel_pytree(before[name])[0] for name in before}
    # The KL is zero before the first of the steps, and beyond the limit after it; a first step of Adam is no longer than its rate.
    assert float(metrics["policy/resting"]) == 1.0 - 1.0 / (DPPO.epochs * DPPO.minibatches)
    assert 0.5 * DPPO.actor_lr < float(jnp.abs(moved["actor"]).max()) < 1.01 * DPPO.actor_lr
    assert float(jnp.abs(moved["critic"]).max()) > 2.0 * DPPO.critic_lr
    following = dppo.Update(dataclasses.replace(DPPO, target_kl=0.0, kl_goal=100.0), whole.policy, vector)
    assert float(following(make(), vector.default_params())[1]["policy/resting"]) == 0.0


def test_the_target_kl_may_follow_the_goal():
    config = dppo.DPPOConfig(target_kl=0.0, kl_goal=0.04)
    config.check()
    assert config.resting_kl == pytest.approx(0.08)
    assert dppo.DPPOConfig(target_kl=0.3, kl_goal=0.04).resting_kl == 0.3


def test_clip_schedule():
    config = dppo.DPPOConfig(clip_base=0.001, clip=0.01, tuned_steps=10)
    want = [0.0010, 0.0012, 0.0015, 0.0018, 0.0023, 0.0030, 0.0040, 0.0054, 0.0073, 0.0100]
    np.testing.assert_allclose(dppo.clip_schedule(config), want, atol=6e-5)
    np.testing.assert_allclose(dppo.clip_schedule(dataclasses.replace(config, tuned_steps=1)), [0.01])


def test_the_rate_follows_a_kl_only_where_there_is_one(vector):
    config = dataclasses.replace(DPPO, kl_goal=0.1, target_kl=1.0, critic_warmup=2)
    update = dppo.Update(config, make_policy(CONFIG, Dims(4, 2)), vector)

    def factor(kl, iteration=2):
        state = types.SimpleNamespace(iteration=jnp.int32(iteration), actor_lr=jnp.float32(2.0))
        return float(update._adapt(state, jnp.float32(kl))) / 2.0

    assert factor(0.1 / 1.44) == pytest.approx(1.2)
    assert factor(1e-9) == factor(1e-4) == pytest.approx(dppo.LR_STEP)
    assert factor(np.inf) == pytest.approx(1.0 / dppo.LR_STEP)
    # The last gradient was not finite; every one was refused; the critic is still being warmed up.
    assert factor(np.nan) == factor(0.0) == factor(0.01, iteration=1) == 1.0


def test_bad_layouts_are_refused(planner, vector):
    policy = make_policy(CONFIG, Dims(4, 2))
    with pytest.raises(ConfigError, match="tuned_steps=9"):
        dppo.Update(dataclasses.replace(DPPO, tuned_steps=9), policy, vector)
    with pytest.raises(ConfigError, match="quiet_steps=4"):
        dppo.Update(dataclasses.replace(DPPO, quiet_steps=4), policy, vector)
    with pytest.raises(ConfigError, match="minibatches=7"):
        dppo.Update(dataclasses.replace(DPPO, minibatches=7), policy, vector)
    with pytest.raises(ConfigError, match="target_kl"):
        dppo.Update(dataclasses.replace(DPPO, kl_goal=1.0), policy, vector)
    with pytest.raises(ConfigError, match="more than kl_goal=0.0$"):
        dppo.Update(dataclasses.replace(DPPO, target_kl=0.0), policy, vector)
    with pytest.raises(ConfigError, match="executed"):
        dppo.Update(DPPO, policy, AutoReset(Chunked(Toy(STEPS), 3)))
    quiet = dataclasses.replace(CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, min_std=0.02))
    with pytest.raises(ConfigError, match=r"log_prob_max=2\.0, allowed: at least 3\.14, "):
        dppo.Update(DPPO, make_policy(quiet, Dims(4, 2)), vector)


def test_imitation_needs_a_window_for_each_device(planner):
    data, mesh = bc.Data(obs=jnp.zeros((3, 4)), chunk=jnp.zeros((3, 2, 2))), parallel.make_mesh(4)
    policy = make_policy(CONFIG, Dims(4, 2))
    config = bc.BCConfig(epochs_per_call=1, batch=8)
    with pytest.raises(DataError, match="3 windows of demonstrations for 4 devices"):
        bc.Update(config, policy, mesh)(bc.init(jax.random.key(0), config, policy, 4), (data, data))


def test_a_bimodal_target_keeps_both_modes():
    """From one observation the demonstrations go left or right; so does the imitator, and never straight on."""
    rng = np.random.default_rng(0)
    side = rng.choice([-0.7, 0.7], size=1024)
    chunk = jnp.asarray(side[:, None, None] + 0.03 * rng.normal(size=(1024, 2, 2)), jnp.float32)
    data = bc.Data(obs=jnp.zeros((1024, 4)), chunk=chunk)
    policy = make_policy(CONFIG, Dims(4, 2))
    config = bc.BCConfig(epochs_per_call=400, batch=256, total_steps=1600, warmup_steps=10)
    state, _ = bc.Update(config, policy)(bc.init(jax.random.key(0), config, policy, 4), (data, data))
    sample = np.asarray(policy.sample(state.ema, jnp.zeros((512, 4)), jax.random.key(1))).mean((1, 2))
    assert 0.3 < (sample > 0).mean() < 0.7
    assert (np.abs(np.abs(sample) - 0.7) < 0.2).mean() > 0.9
