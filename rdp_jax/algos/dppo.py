"""DPPO: policy-gradient fine-tuning of a diffusion policy through its denoising chain (Ren et al. 2024, arXiv:2409.00588).

One outer step executes a chunk; inside it the last K' denoising steps are decisions of their own, each a Gaussian with a known
density.  PPO runs on pairs (outer step, inner step).  A Gaussian chunk policy is the case K' = 1, so fine-tuning that baseline is
this module too.  One call of `Update` is one iteration, compiled once, as in `rdp_jax.algos.ppo`.

Where DPPO's released code is mended, the field of `DPPOConfig` says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import guard, minibatch, normalize, parallel, rollout
from rdp_jax.algos.iteration import Iteration
from rdp_jax.config import ConfigError, chosen, left_out, ranged, validate
from rdp_jax.diffusion.policy import Pairs
from rdp_jax.gae import gae
from rdp_jax.nets.denoiser import ResidualCritic, check_residual
from rdp_jax.planner import Bundle, to_chunk, to_obs
from rdp_jax.starts import starts_of
from rdp_jax.types import Transition, VectorEnv

Array = jax.Array
MAX_LOG_RATIO = 20.0
LR_STEP = 1.5  # most by which an adapted learning rate changes from one iteration to the next


class ChainPolicy(Protocol):
    """What is fine-tuned: `rdp_jax.diffusion.policy.DiffusionPolicy`, or a Gaussian chunk policy with a chain of one step."""

    shape: tuple[int, int]

    def row_noise(self, keys: Array) -> Any: ...

    def sample_split(
        self, base: Any, tuned: Any, tuned_steps: int, obs: Array, noise: Any, explore: bool
    ) -> tuple[Array, Array]: ...

    def score(self, params: Any, tuned_steps: int, pairs: Pairs) -> tuple[Array, Array, Array]: ...

    def check_tuned(self, tuned_steps: int) -> int: ...

    def peak(self, tuned_steps: int, quiet_steps: int) -> float: ...


@dataclasses.dataclass(frozen=True)
class DPPOConfig:
    """Settings of DPPO; the defaults are those of its gym experiments."""

    num_envs: int = ranged(40, 1, 2**20, "environments, over all devices")
    unroll_length: int = ranged(500, 1, 100_000, "chunks per environment and iteration")
    epochs: int = ranged(5, 1, 100, "passes over a rollout")
    minibatches: int = ranged(4, 1, 65536, "minibatches per epoch, each a share of the (chunk, inner step) pairs")
    tuned_steps: int = ranged(10, 1, 1000, "last denoising steps K' that are fine-tuned")
    # Not in the reference, which has a floor of 0.1 under every step's std.  Where that is too much for the task, the last steps
    # are so quiet that their scores are nearly all of the gradient and of the KL, and there is nothing in them to learn from.
    quiet_steps: int = ranged(
        0,
        0,
        999,
        "last of the fine-tuned steps that are no decisions: they run on the tuned weights and are not scored",
    )
    gamma: float = ranged(0.99, 0.0, 1.0, "discount per chunk")
    gae_lambda: float = ranged(0.95, 0.0, 1.0, "lambda of GAE, per chunk: of the advantages")
    # One in the reference.  A small lambda makes advantages less noisy, and a critic that learns from such returns learns slowly.
    value_lambda: float = ranged(0.95, 0.0, 1.0, "lambda of the returns that the critic learns, per chunk")
    gamma_denoising: float = ranged(0.99, 0.0, 1.0, "discount of the advantage per inner step before the last")
    # Not in the reference.  Milder than `quiet_steps`: 1 makes the pull on a mean as large where noise is small as elsewhere.
    std_power: float = ranged(
        0.0, 0.0, 2.0, "weight of an inner step's advantage: its std over the loudest step's, to this power"
    )
    clip: float = ranged(0.01, 1e-6, 1.0, "PPO clip of the ratio at the last inner step")
    clip_base: float = ranged(0.01, 1e-6, 1.0, "PPO clip at the noisiest inner step")
    clip_rate: float = ranged(3.0, 1e-3, 100.0, "how late the clip grows from clip_base to clip, exponentially")
    log_prob: str = chosen(
        "mean", ("mean", "sum"), "of a chunk from its elements; a mean makes the ratio a geometric mean"
    )
    log_prob_max: float = ranged(2.0, -100.0, 1e6, "upper clamp of each element's log density")
    log_prob_min: float = ranged(-5.0, -1e6, 100.0, "lower clamp of each element's log density")
    scored: str = chosen("executed", ("executed", "all"), "actions of a chunk that the ratio sees")
    actor_lr: float = ranged(1e-4, 0.0, 1.0, "learning rate of the denoiser; where it starts if kl_goal adapts it")
    # Not in the reference.  A fixed rate that is safe on one task is a hundred times too large or small on another.
    kl_goal: float = ranged(
        0.0,
        0.0,
        100.0,
        "KL per inner step (weighed as by std_power) and iteration that the actor's rate is adapted to; 0: a constant rate",
        "nat",
    )
    critic_lr: float = ranged(1e-3, 0.0, 1.0, "learning rate of the critic")
    critic_warmup: int = ranged(0, 0, 10**6, "first iterations in which only the critic learns")
    value_coef: float = ranged(0.5, 0.0, 100.0, "weight of half the squared value error")
    max_grad_norm: float = ranged(
        1e6, 1e-6, 1e9, "largest gradient norm, actor and critic apart; the default clips nothing"
    )
    # The released code compares a KL of averaged log-densities with 1.0 and so never stops.
    target_kl: float = ranged(
        1.0,
        0.0,
        1e9,
        "KL per inner step, summed over the scored actions, beyond which the actor rests; 0: twice kl_goal",
        "nat",
    )
    # Not in the reference.  Where most of a gradient is noise, the weights wander about what they have learned.
    averaged: int = ranged(
        0,
        0,
        10**6,
        "iterations over which the denoiser that comes out is averaged, while the last one explores and learns; 0: the last one",
    )
    anchor_coef: float = ranged(
        0.0, 0.0, 1e3, "weight of the KL towards the pre-trained policy, per element; 0 for none"
    )
    # The released code treats time limits as terminal (gym) or bootstraps from the next episode's start (manipulation).
    truncation: str = chosen(
        "bootstrap", ("bootstrap", "terminal"), "a time limit bootstraps from the true final state, or not"
    )
    reward_scaling: bool = dataclasses.field(
        default=True, metadata={"help": "divide rewards by the running std of a discounted return"}
    )
    reward_clip: float = ranged(10.0, 1e-3, 1e9, "bound of a scaled reward")
    critic_sizes: tuple[int, ...] = ranged(
        (256, 256, 256), 1, 65536, "hidden widths of the critic: an odd number, all equal"
    )
    reset_pool: int = ranged(64, 1, 2**20, "fresh starts per iteration")
    shuffle_groups: int = ranged(
        4, 1, 4096, "blocks of environments shuffled apart; commands raise it to a multiple of the devices"
    )
    matmul_precision: str = chosen("highest", ("default", "high", "highest"), "precision of float32 products")

    @property
    def decisions(self) -> int:
        """Inner steps that are scored, the first of the fine-tuned ones."""
        return self.tuned_steps - self.quiet_steps

    @property
    def resting_kl(self) -> float:
        """KL beyond which the actor rests for the iteration."""
        return self.target_kl or 2.0 * self.kl_goal

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.num_envs % self.shuffle_groups:
            raise ConfigError("num_envs", self.num_envs, f"a multiple of shuffle_groups={self.shuffle_groups}")
        if self.quiet_steps >= self.tuned_steps:
            raise ConfigError("quiet_steps", self.quiet_steps, f"less than tuned_steps={self.tuned_steps}")
        pairs = self.unroll_length * self.num_envs // self.shuffle_groups * self.decisions
        if pairs % self.minibatches:
            raise ConfigError("minibatches", self.minibatches, f"a divisor of {pairs} pairs per shuffle group")
        if self.log_prob_min >= self.log_prob_max:
            raise ConfigError("log_prob_min", self.log_prob_min, f"less than log_prob_max={self.log_prob_max}")
        if self.resting_kl <= self.kl_goal:  # where both are 0, too
            allowed = f"more than kl_goal={self.kl_goal}" + (", or 0" if self.kl_goal else "")
            raise ConfigError("target_kl", self.target_kl, allowed)
        if self.kl_goal and self.epochs * self.minibatches == 1:  # the KL is seen before a step
            raise ConfigError(
                "kl_goal", self.kl_goal, "0 where an iteration is one gradient step (epochs, minibatches)"
            )
        if self.kl_goal and not self.actor_lr:
            raise ConfigError("actor_lr", self.actor_lr, f"more than 0 where kl_goal={self.kl_goal} adapts it")
        check_residual("critic_sizes", self.critic_sizes)
        left_out(self, "reward_clip", self.reward_scaling, "it is about reward_scaling")


@struct.dataclass
class LearnerState:
    """Everything a run consists of; a checkpoint holds all of it.

    Attributes:
      params: `{"actor": denoiser, "critic"}`.
      average: of the denoiser over its latest iterations, if the configuration averages; else nothing.
      base: the pre-trained planner: frozen weights of the first steps, and the bounds of observations and actions.
      opt_state: Adam moments, `{"actor", "critic"}`.
      normalizer: of the critic's observations; takes in a rollout before that is valued.
      scale: moments of the discounted return, for reward scaling; `running (B,)` that return.
      env, episode: environments and sums of their episodes, `(B, ...)`; with `running` the only sharded parts.
      key: random key of the run: iteration `i` folds `i` into it.
      iteration: `()` int32.
      actor_lr: `()` learning rate of the denoiser in the next iteration.
      skipped: `()` int32, gradient steps refused because they were not finite.
    """

    params: Mapping[str, Any]
    average: Any
    base: Bundle
    opt_state: Mapping[str, Any]
    normalizer: normalize.Normalizer
    scale: normalize.Normalizer
    running: Array
    env: Any
    episode: rollout.Episode
    key: Array
    iteration: Array
    actor_lr: Array
    skipped: Array

    @property
    def learned(self) -> Any:
        """Weights of the denoiser that comes out."""
        return self.average or self.params["actor"]


@struct.dataclass
class Batch:
    """A rollout as the loss reads it, `(N, ...)` outer steps.

    `obs` and `critic_obs` normalised, `chain (N, D + 1, Ta, Da)` up to the last of the D decisions, `advantage` raw, and per
    decision `log_prob (N, D)` and `mean (N, D, rows, Da)` of the scored actions at collection.
    """

    obs: Array
    critic_obs: Array
    chain: Array
    advantage: Array
    target: Array
    log_prob: Array
    mean: Array


def clip_schedule(config: DPPOConfig) -> Array:
    """`(K',)` clip of the ratio per inner step, noisiest first; constant for K' = 1 (0/0 in the released code)."""
    if config.tuned_steps == 1:
        return jnp.full((1,), config.clip, jnp.float32)
    s = jnp.arange(config.tuned_steps) / (config.tuned_steps - 1)
    growth = jnp.expm1(config.clip_rate * s) / math.expm1(config.clip_rate)
    return config.clip_base + (config.clip - config.clip_base) * growth


def state_spec() -> LearnerState:
    """Partition specs: a prefix tree of `LearnerState`."""
    specs: Any = [P()] * len(dataclasses.fields(LearnerState))
    sharded = P(parallel.AXIS)
    return LearnerState(*specs).replace(env=sharded, episode=sharded, running=sharded)


def env_steps(config: DPPOConfig, state: LearnerState, executed: int) -> int:
    """Environment steps so far, counting `executed` per chunk whether or not an episode ended within it."""
    return int(state.iteration) * config.unroll_length * config.num_envs * executed


def init(
    key: Array,
    config: DPPOConfig,
    policy: ChainPolicy,
    bundle: Bundle,
    env: VectorEnv,
    env_params: Any,
    mesh: Mesh | None = None,
) -> LearnerState:
    """First state of a run that fine-tunes the planner `bundle`.  Raises `ConfigError`."""
    check_layout(config, policy, mesh)
    executed_steps(policy, env)
    width = env.spec.obs_dims["actor"]
    if bundle.obs.lo.shape != (width,):
        raise ConfigError("bundle", f"width {bundle.obs.lo.shape[0]}", f"a planner for observations of width {width}")
    critic_key, env_key, run_key = jax.random.split(key, 3)
    fresh = starts_of(env, mesh).pool(env_key, config.num_envs, env_params)

    def local(critic_key, run_key, bundle, fresh):
        dim = env.spec.obs_dims["critic"]
        params = {
            "actor": bundle.weights,
            "critic": ResidualCritic(config.critic_sizes).init(critic_key, jnp.zeros((1, dim)))["params"],
        }
        indices = parallel.local_indices(config.num_envs, mesh)
        count = indices.shape[0]
        return parallel.strong(
            LearnerState(
                params=params,
                average=bundle.weights if config.averaged else {},
                base=bundle,
                opt_state={name: optax.scale_by_adam().init(p) for name, p in params.items()},
                normalizer=normalize.create(dim),
                scale=normalize.create(1),
                running=jnp.zeros(count),
                env=jax.tree.map(lambda x: x[indices], fresh),
                episode=rollout.begin(count),
                key=run_key,
                iteration=jnp.int32(0),
                actor_lr=jnp.float32(config.actor_lr),
                skipped=jnp.int32(0),
            )
        )

    return parallel.jit(local, mesh, (P(), P(), P(), P()), state_spec())(critic_key, run_key, bundle, fresh)


def check_layout(config: DPPOConfig, policy: ChainPolicy, mesh: Mesh | None) -> None:
    """Raises `ConfigError` if the config is wrong, does not fit the policy, or does not divide over the devices."""
    validate(config)
    policy.check_tuned(config.tuned_steps)
    peak = policy.peak(config.tuned_steps, config.quiet_steps)
    if config.log_prob_max < peak:  # what is clamped has no gradient: of the likeliest actions nothing would be learned
        allowed = f"at least {peak:.3g}, what an element can have under exploration as quiet or as correlated as this"
        raise ConfigError("log_prob_max", config.log_prob_max, allowed)
    if config.shuffle_groups % parallel.size(mesh):
        raise ConfigError("shuffle_groups", config.shuffle_groups, f"a multiple of {parallel.size(mesh)} devices")


class Update(Iteration):
    """One iteration: `(LearnerState, env_params) -> (LearnerState, metrics)`; the given state is donated.

    Args:
      config: settings.
      policy: what is fine-tuned.
      env: chunked environments; their action is `(Te * Da,)`.
      mesh: as given to `init`.
    """

    def __init__(self, config: DPPOConfig, policy: ChainPolicy, env: VectorEnv, mesh: Mesh | None = None):
        check_layout(config, policy, mesh)
        self.config, self.policy, self.env, self.mesh = config, policy, env, mesh
        self.axis = parallel.axis_of(mesh)
        self.executed = executed_steps(policy, env)
        self.rows = self.executed if config.scored == "executed" else policy.shape[0]
        super().__init__(self.iterate, self.fresh, state_spec(), mesh, config.matmul_precision)

    def fresh(self, state: LearnerState, env_params: Any) -> Any:
        """Fresh starts of this iteration."""
        return starts_of(self.env, self.mesh).pool(self.keys(state)[0], self.config.reset_pool, env_params)

    def iterate(self, state: LearnerState, env_params: Any, pool: Any):
        """Body of one iteration, on one device's share of the environments."""
        env_state, episode, data, stats = self.collect(state, env_params, pool)
        state = state.replace(env=env_state, episode=episode)
        new, metrics = self.digest(state, data, self.keys(state)[2])
        return new, {**rollout.summarize(parallel.psum(stats, self.axis)), **metrics}

    def keys(self, state: LearnerState) -> Array:
        """Three keys of this iteration: fresh starts, noise, shuffling."""
        return jax.random.split(jax.random.fold_in(state.key, state.iteration), 3)

    def digest(
        self, state: LearnerState, data: Transition, shuffle_key: Array
    ) -> tuple[LearnerState, dict[str, Array]]:
        """Learns from a rollout `(T, B, ...)` of `plan`, chains in `extras`; counts as one iteration."""
        # The critic's statistics may move before they are used, as nobody acted on them; else the first iteration would train it
        # on raw observations and the second one on others.
        state = state.replace(normalizer=normalize.merge(state.normalizer, data.obs["critic"], self.axis))
        reward, scale, running = self._scale_rewards(state, data)
        batch, info = self.prepare(state, data.replace(reward=reward))
        params, opt_state, skipped, losses = self.learn(state, batch, shuffle_key)
        new = state.replace(
            params=params,
            average=self._averaged(state, params["actor"]),
            opt_state=opt_state,
            scale=scale,
            running=running,
            iteration=state.iteration + 1,
            actor_lr=self._adapt(state, losses["policy/kl_last"]),
            skipped=state.skipped + skipped,
        )
        metrics = {
            **info,
            **losses,
            "policy/lr": state.actor_lr,
            "guard/skipped_updates": skipped.astype(jnp.float32),
        }
        return new, metrics

    def _averaged(self, state: LearnerState, actor: Any) -> Any:
        """The average that follows `state` with the weights `actor`: the plain mean of as many iterations as it is to have,
        those of the critic alone left out; from then on an exponential one."""
        if not self.config.averaged:
            return state.average
        made = jnp.clip(state.iteration + 1 - self.config.critic_warmup, 1, self.config.averaged)
        return jax.tree.map(lambda mean, new: mean + (new - mean) / made.astype(mean.dtype), state.average, actor)

    def _adapt(self, state: LearnerState, kl: Array) -> Array:
        """Actor's rate after an iteration that ended with this `kl`, which grows as the square of the rate.

        The rate stays where `kl` says nothing about it: it is NaN after a gradient that was, and 0 where all were refused.
        """
        if not self.config.kl_goal:
            return state.actor_lr
        told = (kl > 0.0) & (state.iteration >= self.config.critic_warmup)
        factor = jnp.clip(jnp.sqrt(self.config.kl_goal / jnp.maximum(kl, 1e-12)), 1.0 / LR_STEP, LR_STEP)
        return jnp.where(told, state.actor_lr * factor, state.actor_lr)

    def collect(self, state: LearnerState, env_params: Any, pool: Any):
        """Rolls out with exploration noise; the chains go into `extras`."""

        def act(obs, keys):
            return self.plan(state, obs, keys, explore=True)

        keys = self.step_keys(self.keys(state)[1])
        return rollout.collect(self.env, act, state.env, state.episode, pool, keys, env_params)

    def step_keys(self, key: Array) -> Array:
        """`(T, B)` one key per step and environment: the noise of all chains at once would be the program's largest array."""
        env_keys = parallel.fold_each(key, parallel.local_indices(self.config.num_envs, self.mesh))
        steps = jnp.arange(self.config.unroll_length)
        return jax.vmap(lambda t: jax.vmap(lambda k: jax.random.fold_in(k, t))(env_keys))(steps)

    def plan(self, state: LearnerState, obs: Mapping[str, Array], keys: Array, explore: bool) -> tuple[Array, Array]:
        """`keys (B,)` -> the environment's action `(B, Te * Da)` and the chain up to its last decision, `(B, D + 1, Ta, Da)`."""
        seen, noise = to_obs(state.base, obs["actor"]), self.policy.row_noise(keys)
        chunk, chain = self.policy.sample_split(
            state.base.weights, state.params["actor"], self.config.tuned_steps, seen, noise, explore
        )
        return to_chunk(state.base, chunk[:, : self.executed]), chain[:, : self.config.decisions + 1]

    def _scale_rewards(self, state: LearnerState, data: Transition) -> tuple[Array, normalize.Normalizer, Array]:
        """Rewards over the running std of the discounted return (rate 0.99), its moments, and that return."""
        if not self.config.reward_scaling:
            return data.reward, state.scale, state.running
        ended = data.terminated | data.truncated

        def one(running, step):
            reward, done = step
            running = reward + 0.99 * running
            return jnp.where(done, 0.0, running), running

        running, returns = jax.lax.scan(one, state.running, (data.reward, ended))
        scale = normalize.merge(state.scale, returns[..., None], self.axis)
        std = jnp.sqrt(scale.m2[0] / jnp.maximum(scale.count, 1.0) + 1e-8)
        bound = self.config.reward_clip
        return jnp.clip(data.reward / std, -bound, bound), scale, running

    def prepare(self, state: LearnerState, data: Transition) -> tuple[Batch, dict[str, Array]]:
        """Advantages, normalised observations, and the log-densities before any gradient step."""
        config = self.config
        critic = ResidualCritic(config.critic_sizes)

        def value_of(raw):
            return critic.apply({"params": state.params["critic"]}, normalize.apply(state.normalizer, raw))

        value, next_value = value_of(data.obs["critic"]), value_of(data.final_obs)
        as_end = data.terminated | data.truncated if config.truncation == "terminal" else data.terminated
        ends = as_end, data.truncated & ~as_end
        advantage, _ = gae(data.reward, value, next_value, *ends, config.gamma, config.gae_lambda)
        _, target = gae(data.reward, value, next_value, *ends, config.gamma, config.value_lambda)
        obs = to_obs(state.base, data.obs["actor"])
        log_prob, mean = self._score_all(state.params["actor"], obs, data.extras)
        batch = Batch(
            obs=obs,
            critic_obs=normalize.apply(state.normalizer, data.obs["critic"]),
            chain=data.extras,
            advantage=advantage,
            target=target,
            log_prob=log_prob,
            mean=mean,
        )
        _, variance = parallel.moments(target, self.axis)
        _, unexplained = parallel.moments(target - value, self.axis)
        info = {
            "value/explained_variance": 1.0 - unexplained / jnp.maximum(variance, 1e-12),
            "value/target_mean": parallel.moments(target, self.axis)[0],
        }
        return batch, info

    def _score_all(self, actor: Any, obs: Array, chain: Array) -> tuple[Array, Array]:
        """Log-densities `(T, B, D)` and means `(T, B, D, rows, Da)` by the loss's own function.

        In blocks of a minibatch's size: another number of rows is another kernel, and the first ratio would be 1 +- 1e-6.
        """
        lead, inner = obs.shape[:2], self.config.decisions
        flat_obs, flat_chain = obs.reshape(-1, obs.shape[-1]), chain.reshape(-1, *chain.shape[2:])
        count = flat_obs.shape[0] * inner
        blocks = jnp.arange(count).reshape(self.config.minibatches, -1)

        def block(index):
            log_prob, mean, _ = self._score(actor, self._pairs(flat_obs, flat_chain, index))
            return log_prob, mean

        log_prob, mean = jax.lax.map(block, blocks)
        return log_prob.reshape(*lead, inner), mean.reshape(*lead, inner, *mean.shape[2:])

    def _pairs(self, obs: Array, chain: Array, index: Array) -> Pairs:
        """Rows `index = outer * D + inner` of `obs (N, Do)`, `chain (N, D + 1, Ta, Da)`."""
        outer, inner = jnp.divmod(index, self.config.decisions)
        return Pairs(obs=obs[outer], x=chain[outer, inner], x_next=chain[outer, inner + 1], k=inner)

    def _score(self, actor: Any, pairs: Pairs) -> tuple[Array, Array, Array]:
        """Log-density of the scored actions `(N,)`, their mean `(N, rows, Da)`, and the std `(N,)`."""
        config = self.config
        elements, mean, std = self.policy.score(actor, config.tuned_steps, pairs)
        elements = jnp.clip(elements[:, : self.rows], config.log_prob_min, config.log_prob_max)
        reduce = jnp.mean if config.log_prob == "mean" else jnp.sum
        return reduce(elements, axis=(1, 2)), mean[:, : self.rows], std

    def _loss(self, params: Mapping, base: Any, batch: Batch, index: Array) -> tuple[Array, dict[str, Array]]:
        """PPO loss of the pairs `index (n,)`, and what is worth logging about it."""
        config = self.config
        pairs = self._pairs(batch.obs, batch.chain, index)
        outer, inner = index // config.decisions, pairs.k
        log_prob, mean, std = self._score(params["actor"], pairs)
        old = batch.log_prob[outer, inner]
        chex.assert_equal_shape([log_prob, old])
        advantage = batch.advantage[outer]
        centre, variance = parallel.moments(advantage, self.axis)
        advantage = (advantage - centre) / (jnp.sqrt(variance) + 1e-8)
        # After normalisation, as in the reference: noisier steps get a weaker signal, not a rescaled one.
        advantage = advantage * config.gamma_denoising ** (config.tuned_steps - 1 - inner).astype(jnp.float32)
        weight = self._weight(std)
        advantage = advantage * weight
        ratio = jnp.exp(jnp.clip(log_prob - old, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        clip = clip_schedule(config)[inner]
        clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        value_loss = self._value_loss(params["critic"], batch, outer)
        kl = (weight * gaussian_kl(mean - batch.mean[outer, inner], std).sum((1, 2))).mean()
        kl = kl / parallel.pmean(jnp.mean(weight), self.axis)
        total = policy_loss + config.value_coef * value_loss
        info = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "policy/kl": kl,
            "policy/clip_fraction": (jnp.abs(ratio - 1.0) > clip).mean(dtype=jnp.float32),
            "policy/ratio_error": jnp.abs(ratio - 1.0).max(),
        }
        if config.anchor_coef:
            _, anchor, _ = self._score(jax.lax.stop_gradient(base), pairs)
            towards = gaussian_kl(mean - anchor, std).mean()
            total, info = total + config.anchor_coef * towards, {**info, "loss/anchor": towards}
        return total, info

    def _weight(self, std: Array) -> Array:
        """Weights of pairs whose steps have this `std (n,)`: in the loss, and in the KL by which its rate is set."""
        std = jax.lax.stop_gradient(std)
        return (std / parallel.pmax(std.max(), self.axis)) ** self.config.std_power

    def _value_loss(self, critic: Any, batch: Batch, outer: Array) -> Array:
        """Half the mean squared error of the states `outer (n,)`; where most occur several times, each is valued once."""
        if outer.shape[0] <= batch.target.shape[0]:
            obs, target, weight = batch.critic_obs[outer], batch.target[outer], jnp.float32(1.0)
        else:
            obs, target = batch.critic_obs, batch.target
            weight = jnp.zeros(target.shape).at[outer].add(1.0)
        value = ResidualCritic(self.config.critic_sizes).apply({"params": critic}, obs)
        return 0.5 * jnp.sum(weight * jnp.square(value - target)) / outer.shape[0]

    def learn(self, state: LearnerState, batch: Batch, key: Array):
        """Epochs of minibatches over the rollout `batch (T, B, ...)`."""
        config = self.config
        groups = parallel.local_indices(config.shuffle_groups, self.mesh)
        batch = minibatch.to_groups(batch, groups.shape[0])
        pairs = batch.target.shape[1] * config.decisions
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        warming = state.iteration < config.critic_warmup

        def step(carry, index):
            params, opt_state, resting, skipped = carry
            grad_fn = jax.value_and_grad(self._loss, has_aux=True)
            (total, info), grads = grad_fn(params, state.base.weights, batch, index)
            ratio_error = parallel.pmax(info.pop("policy/ratio_error"), self.axis)
            total, info, grads = parallel.pmean((total, info, grads), self.axis)
            finite = guard.all_finite((total, grads))
            resting = resting | (info["policy/kl"] > config.resting_kl)
            moves = {"actor": finite & ~warming & ~resting, "critic": finite}
            new, new_opt = {}, {}
            for name, lr in (("actor", state.actor_lr), ("critic", config.critic_lr)):
                grad, info[f"grad_norm/{name}"] = guard.clip_norm(grads[name], config.max_grad_norm)
                updates, opt = optax.scale_by_adam().update(grad, opt_state[name])
                moved = jax.tree.map(lambda p, u, lr=lr: p - lr * u, params[name], updates)
                new[name] = guard.choose(moves[name], moved, params[name])
                new_opt[name] = guard.choose(moves[name], opt, opt_state[name])
            info["policy/resting"] = resting.astype(jnp.float32)
            return (new, new_opt, resting, skipped + ~finite), (info, ratio_error)

        def epoch(carry, epoch_key):
            order = minibatch.permutations(epoch_key, groups, pairs)
            return jax.lax.scan(step, carry, minibatch.rows(order, config.minibatches))

        carry = (state.params, state.opt_state, jnp.array(False), jnp.int32(0))
        carry, (info, ratio_error) = jax.lax.scan(epoch, carry, jax.random.split(key, config.epochs))
        params, opt_state, _, skipped = carry
        metrics = {name: value.mean() for name, value in info.items()}
        metrics["policy/first_ratio_error"] = ratio_error[0, 0]
        metrics["policy/kl_last"] = info["policy/kl"][-1, -1]
        return params, opt_state, skipped, metrics


def executed_steps(policy: ChainPolicy, env: VectorEnv) -> int:
    """`Te` from the width of the environment's action.  Raises `ConfigError` if it does not fit the policy's chunks."""
    horizon, action_dim = policy.shape
    width = env.spec.action_dim
    if width % action_dim or not 1 <= width // action_dim <= horizon:
        allowed = f"a multiple of Da={action_dim} up to Ta * Da={horizon * action_dim}"
        raise ConfigError("executed", width, allowed)
    return width // action_dim


def gaussian_kl(difference: Array, std: Array) -> Array:
    """KL divergence per element `(N, rows, Da)` of two Gaussians with means apart by `difference` and one `std (N,)`."""
    return 0.5 * jnp.square(difference / std[:, None, None])
