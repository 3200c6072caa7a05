"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) of a Gaussian MLP with an asymmetric critic.

One call of `update` is one iteration, compiled once: fresh reset pool -> rollout scan -> GAE -> epoch scan -> minibatch scan.
The learning rate follows the KL divergence of the policy, as in Rudin et al. 2022 (arXiv:2109.11978).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import guard, minibatch, normalize, parallel, rollout
from rdp_jax.algos.iteration import Iteration
from rdp_jax.config import ConfigError, chosen, ranged, validate
from rdp_jax.gae import gae
from rdp_jax.nets import gaussian, mlp
from rdp_jax.starts import starts_of
from rdp_jax.types import Transition, VectorEnv

Array = jax.Array
GROUPS = ("actor", "critic")
MAX_LOG_RATIO = 20.0  # e^20 is far beyond any clip, and far from overflow


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO."""

    num_envs: int = ranged(256, 1, 2**20, "environments, over all devices")
    unroll_length: int = ranged(32, 1, 4096, "environment steps per environment and iteration")
    epochs: int = ranged(4, 1, 100, "passes over a rollout")
    minibatches: int = ranged(4, 1, 4096, "minibatches per epoch")
    gamma: float = ranged(0.98, 0.0, 1.0, "discount per step")
    gae_lambda: float = ranged(0.95, 0.0, 1.0, "lambda of GAE")
    clip: float = ranged(0.2, 0.0, 1.0, "PPO clip of the ratio")
    entropy_coef: float = ranged(2e-4, 0.0, 1.0, "weight of the entropy bonus")
    value_coef: float = ranged(1.0, 0.0, 100.0, "weight of the value loss")
    max_grad_norm: float = ranged(1.0, 1e-6, 1e6, "largest gradient norm, actor and critic apart")
    lr: float = ranged(5e-4, 1e-8, 1.0, "first learning rate")
    lr_min: float = ranged(1e-4, 1e-8, 1.0, "least learning rate; equal to lr_max for a fixed one")
    lr_max: float = ranged(3e-3, 1e-8, 1.0, "largest learning rate")
    target_kl: float = ranged(0.02, 1e-6, 10.0, "KL per minibatch that the learning rate aims at", "nat")
    # A small policy rate is no reason for a slow critic, where returns are sparse and small.
    critic_lr: float = ranged(0.0, 0.0, 1.0, "learning rate of the critic; 0: the policy's")
    value_scale: float = ranged(1.0, 1e-6, 10.0, "scale of the critic's last weights at the start")
    init_std: float = ranged(0.4, 1e-3, 10.0, "first standard deviation of the policy")
    min_std: float = ranged(0.05, 1e-4, 10.0, "least standard deviation of the policy")
    max_std: float = ranged(2.0, 1e-3, 100.0, "largest standard deviation of the policy")
    actor_sizes: tuple[int, ...] = ranged((256, 128), 1, 65536, "hidden widths of the policy")
    critic_sizes: tuple[int, ...] = ranged((256, 128), 1, 65536, "hidden widths of the critic")
    critic_warmup: int = ranged(0, 0, 10**6, "first iterations in which the policy stays as it is")
    # A trained policy is another one under other statistics, and no gradient and no clip sees the difference.
    frozen_statistics: bool = dataclasses.field(
        default=False,
        metadata={"help": "keep the policy's statistics of its observations as they are (the critic's move)"},
    )
    reset_pool: int = ranged(64, 1, 2**20, "fresh starts per iteration")
    shuffle_groups: int = ranged(
        4, 1, 4096, "blocks of environments shuffled apart; commands raise it to a multiple of the devices"
    )
    matmul_precision: str = chosen("highest", ("default", "high", "highest"), "precision of float32 products")

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.num_envs % self.shuffle_groups:
            raise ConfigError("num_envs", self.num_envs, f"a multiple of shuffle_groups={self.shuffle_groups}")
        samples = self.unroll_length * self.num_envs // self.shuffle_groups
        if samples % self.minibatches:
            raise ConfigError("minibatches", self.minibatches, f"a divisor of {samples} samples per shuffle group")
        if not self.lr_min <= self.lr <= self.lr_max:
            raise ConfigError("lr", self.lr, f"{self.lr_min} .. {self.lr_max} (lr_min .. lr_max)")
        if self.epochs * self.minibatches == 1 and self.lr_min < self.lr_max:  # the KL is seen before a step
            allowed = f"lr_max={self.lr_max} where an iteration is one gradient step (epochs, minibatches)"
            raise ConfigError("lr_min", self.lr_min, allowed)
        if self.min_std > self.max_std:
            raise ConfigError("min_std", self.min_std, f"at most max_std={self.max_std}")
        if not self.min_std <= self.init_std <= self.max_std:
            raise ConfigError("init_std", self.init_std, f"{self.min_std} .. {self.max_std} (min_std .. max_std)")


@struct.dataclass
class LearnerState:
    """Everything a run consists of; a checkpoint holds all of it.

    Attributes:
      params: `{"actor", "critic"}` network parameters.
      opt_state: Adam moments.
      normalizer: group -> `Normalizer`; the actor's is frozen inside an iteration, and for good with `frozen_statistics`.
      env: environments, `(B, ...)`, the only part that is sharded, with `episode`.
      episode: running sums of their episodes.
      key: random key of the run, never consumed: iteration `i` folds `i` into it.
      iteration: `()` int32.  Environment steps follow from it, see `env_steps`: a counter of them would overflow.
      skipped: `()` int32, gradient steps refused so far because they were not finite.
      lr: `()` float32.
    """

    params: Mapping[str, Any]
    opt_state: Any
    normalizer: Mapping[str, normalize.Normalizer]
    env: Any
    episode: rollout.Episode
    key: Array
    iteration: Array
    skipped: Array
    lr: Array


@struct.dataclass
class Batch:
    """Samples of the loss, `(N, ...)`; observations normalised.  `live (N,)` marks those that count, None: all do."""

    actor_obs: Array
    critic_obs: Array
    action: Array
    log_prob: Array
    mean: Array
    advantage: Array
    target: Array
    live: Array | None = None


def state_spec() -> LearnerState:
    """Partition specs: a prefix tree of `LearnerState`."""
    specs: Any = [P()] * len(dataclasses.fields(LearnerState))
    replicated = LearnerState(*specs)
    return replicated.replace(env=P(parallel.AXIS), episode=P(parallel.AXIS))


def env_steps(config: PPOConfig, state: LearnerState) -> int:
    """Environment steps so far, as a Python integer without a limit."""
    return int(state.iteration) * config.unroll_length * config.num_envs


def check_layout(config: PPOConfig, mesh: Mesh | None) -> None:
    """Raises `ConfigError` if the config is wrong or its groups do not divide over the devices."""
    validate(config)
    if config.shuffle_groups % parallel.size(mesh):
        raise ConfigError("shuffle_groups", config.shuffle_groups, f"a multiple of {parallel.size(mesh)} devices")


def init(key: Array, config: PPOConfig, env: VectorEnv, env_params: Any, mesh: Mesh | None = None) -> LearnerState:
    """First state of a run; the same for any number of devices.  Raises `ConfigError`."""
    check_layout(config, mesh)
    actor_key, critic_key, env_key, run_key = jax.random.split(key, 4)
    fresh = starts_of(env, mesh).pool(env_key, config.num_envs, env_params)

    def local(actor_key, critic_key, run_key, fresh):
        dims = env.spec.obs_dims
        actor = mlp.GaussianActor(env.spec.action_dim, config.actor_sizes, config.init_std)
        params = {
            "actor": actor.init(actor_key, jnp.zeros((1, dims["actor"])))["params"],
            "critic": critic_of(config).init(critic_key, jnp.zeros((1, dims["critic"])))["params"],
        }
        indices = parallel.local_indices(config.num_envs, mesh)
        return parallel.strong(
            LearnerState(
                params=params,
                opt_state=optax.scale_by_adam().init(params),
                normalizer={name: normalize.create(dims[name]) for name in GROUPS},
                env=jax.tree.map(lambda x: x[indices], fresh),
                episode=rollout.begin(indices.shape[0]),
                key=run_key,
                iteration=jnp.int32(0),
                skipped=jnp.int32(0),
                lr=jnp.float32(config.lr),
            )
        )

    return parallel.jit(local, mesh, (P(), P(), P(), P()), state_spec())(actor_key, critic_key, run_key, fresh)


def critic_of(config: PPOConfig) -> mlp.Critic:
    """The critic that `config` describes, to be initialised."""
    return mlp.Critic(config.critic_sizes, config.value_scale)


def policy(params: Mapping, normalizer: Mapping, obs: Mapping[str, Array], key: Array | None = None) -> Array:
    """Action of the policy, from weights alone (no config); pure, for evaluation and inside other environments.

    Args:
      params: `LearnerState.params` (only `actor` is read).
      normalizer: `LearnerState.normalizer` (only `actor` is read).
      obs: observation groups; `actor` is `(..., Do)`.
      key: samples the action; `None` for the mean.

    Returns:
      `(..., Da)`.
    """
    mean, log_std = mlp.apply_actor(params["actor"], normalize.apply(normalizer["actor"], obs["actor"]))
    return mean if key is None else mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


class Update(Iteration):
    """One iteration, compiled at the first call: `(LearnerState, env_params) -> (LearnerState, metrics)`.

    The given state is donated: its buffers are gone afterwards.  `env_params` may change from call to call.
    """

    def __init__(self, config: PPOConfig, env: VectorEnv, mesh: Mesh | None = None):
        check_layout(config, mesh)
        starts = starts_of(env, mesh)
        super().__init__(
            lambda state, params, pool: iterate(config, env, mesh, state, params, pool),
            lambda state, params: starts.pool(keys(state)[0], config.reset_pool, params),
            state_spec(),
            mesh,
            config.matmul_precision,
        )


def make_update(config: PPOConfig, env: VectorEnv, mesh: Mesh | None = None) -> Update:
    """The update of this config; `mesh` as given to `init`.  Raises `ConfigError`."""
    return Update(config, env, mesh)


def keys(state: LearnerState) -> Array:
    """Three keys of this iteration: fresh starts, noise, shuffling."""
    return jax.random.split(jax.random.fold_in(state.key, state.iteration), 3)


class Rollout:
    """The rollout of an iteration that learns nothing: `(LearnerState, env_params) -> (env, episode, data, metrics)`.

    `env` and `episode` are those of the state, moved on; `data` has shape `(T, B, ...)`.  Compiled at the first call.
    """

    def __init__(self, config: PPOConfig, env: VectorEnv, mesh: Mesh | None = None):
        check_layout(config, mesh)
        self.config, self.starts = config, starts_of(env, mesh)

        def run(state, env_params, pool):
            with jax.default_matmul_precision(config.matmul_precision):
                return _roll_out(config, env, mesh, state, env_params, pool)

        out = (P(parallel.AXIS), P(parallel.AXIS), P(None, parallel.AXIS), P())
        self.compiled: Any = parallel.jit(run, mesh, (state_spec(), P(), P()), out)

    def __call__(
        self, state: LearnerState, env_params: Any
    ) -> tuple[Any, rollout.Episode, Transition, dict[str, Array]]:
        env_params = parallel.strong(env_params)
        pool = self.starts.pool(keys(state)[0], self.config.reset_pool, env_params)
        found: tuple[Any, rollout.Episode, Transition, dict[str, Array]] = self.compiled(state, env_params, pool)
        return found


def _roll_out(config: PPOConfig, env: VectorEnv, mesh: Mesh | None, state: LearnerState, env_params: Any, pool: Any):
    """Environments and episodes after a rollout, the rollout, what is worth logging; on one device's share."""
    noise_key = keys(state)[1]
    indices = parallel.local_indices(config.num_envs, mesh)
    shape = (config.unroll_length, env.spec.action_dim)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape), out_axes=1)(parallel.fold_each(noise_key, indices))

    def act(obs, eps):
        mean, log_std = mlp.apply_actor(state.params["actor"], normalize.apply(state.normalizer["actor"], obs["actor"]))
        return mean + jnp.exp(log_std) * eps, ()

    env_state, episode, data, stats = rollout.collect(env, act, state.env, state.episode, pool, noise, env_params)
    return env_state, episode, data, rollout.summarize(parallel.psum(stats, parallel.axis_of(mesh)))


def iterate(config: PPOConfig, env: VectorEnv, mesh: Mesh | None, state: LearnerState, env_params: Any, pool: Any):
    """Body of `Update`, on one device's share of the environments."""
    env_state, episode, data, seen = _roll_out(config, env, mesh, state, env_params, pool)
    new, metrics = digest(config, mesh, state.replace(env=env_state, episode=episode), data, keys(state)[2])
    return new, {**seen, **metrics}


def digest(
    config: PPOConfig,
    mesh: Mesh | None,
    state: LearnerState,
    data: Transition,
    key: Array,
    live: Array | None = None,
    beside: Transition | None = None,
) -> tuple[LearnerState, dict[str, Array]]:
    """Learns from a rollout `(T, B, ...)` that `state.params` collected, wherever it came from; counts as one iteration.

    `live (T, B)` bool marks the steps that happened (all of them if left out); the others count for nothing.  `beside` is
    a rollout of other environments `(T', B', ...)`: every minibatch has its share of both, advantages are standardised in each
    apart.
    """
    axis = parallel.axis_of(mesh)
    # Nobody acts on the critic's statistics, so they take a rollout in before it is valued: else the first one would be seen raw.
    for seen in [data] if beside is None else [data, beside]:
        state = _observed(state, seen, "critic", axis, live if seen is data else None)
    batch, value_metrics = prepare(config, axis, state, data, live)
    batches = [batch]
    if beside is not None:
        other, metrics = prepare(config, axis, state, beside, None)
        batches.append(other if live is None else other.replace(live=jnp.ones(other.target.shape, bool)))
        value_metrics |= {name.replace("value/", "rehearsal/"): value for name, value in metrics.items()}
    params, opt_state, lr, skipped, loss_metrics = learn(config, mesh, state, batches, key)
    new = state if config.frozen_statistics else _observed(state, data, "actor", axis, live)
    new = new.replace(
        params=params,
        opt_state=opt_state,
        iteration=state.iteration + 1,
        skipped=state.skipped + skipped,
        lr=lr,
    )
    metrics = {
        **value_metrics,
        **loss_metrics,
        "policy/std": jnp.exp(params["actor"]["log_std"]).mean(),
        "guard/skipped_updates": skipped.astype(jnp.float32),
        "lr": lr,
    }
    return new, metrics


def _observed(state: LearnerState, data: Transition, group: str, axis: str | None, live: Array | None) -> LearnerState:
    """`state` with the rollout in the statistics of one group of observations."""
    merged = normalize.merge(state.normalizer[group], data.obs[group], axis, live)
    return state.replace(normalizer={**state.normalizer, group: merged})


def prepare(
    config: PPOConfig, axis: str | None, state: LearnerState, data: Transition, live: Array | None
) -> tuple[Batch, dict]:
    """Values, advantages and normalised observations of a rollout `(T, B, ...)`."""
    critic_obs = normalize.apply(state.normalizer["critic"], data.obs["critic"])
    # All values in two large products, after the rollout: small ones inside the scan would cost more.
    value = mlp.apply_critic(state.params["critic"], critic_obs)
    final = normalize.apply(state.normalizer["critic"], data.final_obs)
    next_value = mlp.apply_critic(state.params["critic"], final)
    advantage, target = gae(
        data.reward, value, next_value, data.terminated, data.truncated, config.gamma, config.gae_lambda
    )
    mean, variance = parallel.moments(advantage, axis, live)
    _, unexplained = parallel.moments(target - value, axis, live)
    target_mean, target_variance = parallel.moments(target, axis, live)
    actor_obs = normalize.apply(state.normalizer["actor"], data.obs["actor"])
    # Scored here, once, by the loss's own function and in blocks of a minibatch's size, not inside the rollout: XLA picks
    # another kernel for another number of rows, and the first ratio would be 1 +- 1e-6 instead of 1.
    log_prob, policy_mean = minibatch.in_blocks(
        lambda block: score(state.params["actor"], *block)[:2], (actor_obs, data.action), config.minibatches
    )
    standard = (advantage - mean) / (jnp.sqrt(variance) + 1e-8)
    batch = Batch(
        actor_obs=actor_obs,
        critic_obs=critic_obs,
        action=data.action,
        log_prob=log_prob,
        mean=policy_mean,
        # Whatever stands where nothing happened has no gradient either, not even one that is not finite.
        advantage=standard if live is None else jnp.where(live, standard, 0.0),
        target=target if live is None else jnp.where(live, target, value),
        live=live,
    )
    explained = 1.0 - unexplained / jnp.maximum(target_variance, 1e-12)
    return batch, {"value/explained_variance": explained, "value/target_mean": target_mean}


def score(actor: Mapping, obs: Array, action: Array) -> tuple[Array, Array, Array]:
    """Log-probability `(...)` of `action (..., Da)` at the normalised `obs (..., Do)`; also mean and log-std."""
    mean, log_std = mlp.apply_actor(actor, obs)
    return gaussian.log_prob(action, mean, log_std), mean, log_std


def loss(
    config: PPOConfig, old_log_std: Array, params: Mapping, batch: Batch, axis: str | None = None
) -> tuple[Array, dict[str, Array]]:
    """PPO loss of a minibatch `(N, ...)`, and what is worth logging about it.

    The mean of the losses on all devices of mesh axis `axis` is that of the samples that count.
    """
    log_prob, mean, log_std = score(params["actor"], batch.actor_obs, batch.action)

    def average(x: Array) -> Array:
        if batch.live is None:
            return x.mean(dtype=jnp.float32)
        count, devices = parallel.psum((batch.live.sum(dtype=jnp.float32), jnp.float32(1.0)), axis)
        return x.sum(where=batch.live, dtype=jnp.float32) * devices / jnp.maximum(count, 1.0)

    chex.assert_equal_shape([log_prob, batch.log_prob, batch.advantage])
    ratio = jnp.exp(jnp.clip(log_prob - batch.log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    policy_loss = -average(jnp.minimum(ratio * batch.advantage, clipped * batch.advantage))
    value_loss = average(jnp.square(mlp.apply_critic(params["critic"], batch.critic_obs) - batch.target))
    entropy = gaussian.entropy(log_std)
    total = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    return total, {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "policy/entropy": entropy,
        "policy/kl": average(gaussian.kl(batch.mean, old_log_std, mean, log_std)),
        "policy/clip_fraction": average(jnp.abs(ratio - 1.0) > config.clip),
        "policy/ratio_error": jnp.abs(ratio - 1.0).max(),
    }


def adapt_lr(config: PPOConfig, lr: Array, kl: Array) -> Array:
    """Learning rate after a minibatch with this `kl`: down above twice the target, up below half of it."""
    lr = jnp.where(kl > 2.0 * config.target_kl, lr / 1.5, jnp.where(kl < 0.5 * config.target_kl, lr * 1.5, lr))
    return jnp.clip(lr, config.lr_min, config.lr_max)


def learn(config: PPOConfig, mesh: Mesh | None, state: LearnerState, batches: list[Batch], key: Array):
    """Epochs of minibatches over all of the rollouts, each `(T, B, ...)` of its own."""
    axis = parallel.axis_of(mesh)
    group_ids = parallel.local_indices(config.shuffle_groups, mesh)
    grouped = [minibatch.to_groups(batch, group_ids.shape[0]) for batch in batches]
    batch = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *grouped)
    samples = batch.log_prob.shape[1]
    old_log_std = state.params["actor"]["log_std"]
    low, high = math.log(config.min_std), math.log(config.max_std)
    warming = state.iteration < config.critic_warmup

    def step(carry, minibatch_data):
        params, opt_state, lr, skipped = carry
        grad_fn = jax.value_and_grad(lambda p: loss(config, old_log_std, p, minibatch_data, axis), has_aux=True)
        (total, info), grads = grad_fn(params)
        ratio_error = parallel.pmax(info.pop("policy/ratio_error"), axis)
        total, info, grads = parallel.pmean((total, info, grads), axis)
        finite = guard.all_finite((total, grads))
        clipped = {name: guard.clip_norm(grads[name], config.max_grad_norm) for name in GROUPS}
        grads = {name: clipped[name][0] for name in GROUPS}
        adapted = finite if not config.critic_warmup else finite & ~warming
        if minibatch_data.live is not None:  # of a minibatch in which nothing happened the KL says nothing
            adapted &= parallel.psum(minibatch_data.live.sum(), axis) > 0
        lr = jnp.where(adapted, adapt_lr(config, lr, info["policy/kl"]), lr)
        updates, new_opt_state = optax.scale_by_adam().update(grads, opt_state)
        rates = {"actor": lr, "critic": config.critic_lr or lr}
        new_params = {
            name: jax.tree.map(lambda p, u, rate=rates[name]: p - rate * u, params[name], updates[name])
            for name in GROUPS
        }
        new_params["actor"]["log_std"] = jnp.clip(new_params["actor"]["log_std"], low, high)
        # Adam's moments of the actor go on meanwhile: they know the gradient's scale when it begins to move.
        if config.critic_warmup:
            new_params["actor"] = guard.choose(warming, params["actor"], new_params["actor"])
        # A gradient that is not finite changes nothing, not even Adam's moments.
        params = guard.choose(finite, new_params, params)
        opt_state = guard.choose(finite, new_opt_state, opt_state)
        info |= {f"grad_norm/{name}": clipped[name][1] for name in GROUPS}
        return (params, opt_state, lr, skipped + ~finite), (info, ratio_error)

    def epoch(carry, epoch_key):
        order = minibatch.permutations(epoch_key, group_ids, samples)
        return jax.lax.scan(step, carry, minibatch.take(batch, order, config.minibatches))

    carry = (state.params, state.opt_state, state.lr, jnp.int32(0))
    carry, (info, ratio_error) = jax.lax.scan(epoch, carry, jax.random.split(key, config.epochs))
    metrics = {name: value.mean() for name, value in info.items()}
    # The first minibatch comes before any gradient step: its ratios are one.
    metrics["policy/first_ratio_error"] = ratio_error[0, 0]
    metrics["policy/kl_last"] = info["policy/kl"][-1, -1]
    return *carry, metrics
