"""DSRL: soft actor-critic over the initial noise of a frozen diffusion policy (Wagenmaker et al. 2025, arXiv:2506.15799).

The base policy is a function `(observation, noise w) -> chunk` that nobody looks into.  The actor chooses `w = b u` with `u` in
the box [-1, 1]^n.  Two variants:

| variant | critic of | how it learns |
|---|---|---|
| `sac` | `Q^W(s, u)` | temporal differences on noise |
| `na` | `Q^A(s, a)` on denoised chunks, and `Q^W(s, u)` | temporal differences on chunks; `Q^W` is distilled from `Q^A` |

Where the released code is mended or has a choice, the field of `DSRLConfig` says so.  One call of `Update` is one iteration: some
steps of all environments, N updates, M distillation steps, their denoising included, compiled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import guard, normalize, parallel, replay, rollout
from rdp_jax.algos.iteration import Iteration
from rdp_jax.config import ConfigError, chosen, left_out, ranged, validate
from rdp_jax.nets.squashed import SquashedActor, Values, squash
from rdp_jax.starts import starts_of
from rdp_jax.types import VectorEnv

Array = jax.Array


class BasePolicy(Protocol):
    """What is steered: frozen, pure, seen from outside only."""

    noise_shape: tuple[int, int]
    """`(Ta, Da)` of the noise."""
    noise_std: float
    """Std of the noise under which it is warmed up: that of the policy itself, where it has any."""
    chunk_dim: int
    """Numbers of an executed chunk."""

    def see(self, params: Any, obs: Array) -> Array:
        """Raw observation `(B, Do)` -> what the steering networks see of it `(B, D)`."""
        ...

    def sample(self, params: Any, obs: Array, noise: Array) -> Array:
        """Raw `obs (B, Do)`, `noise (B, Ta, Da)` -> executed chunk `(B, n)`, in units of order one."""
        ...

    def to_env(self, params: Any, chunk: Array) -> Array:
        """Executed chunk `(B, n)` -> the environment's action."""
        ...


@dataclasses.dataclass(frozen=True)
class DSRLConfig:
    """Settings of DSRL."""

    variant: str = chosen("na", ("na", "sac"), "noise-aliased, or soft actor-critic on the noise itself")
    num_envs: int = ranged(64, 1, 2**20, "environments, over all devices")
    unroll_length: int = ranged(4, 1, 10_000, "chunks per environment and iteration")
    warmup: int = ranged(
        8,
        1,
        10**6,
        "first iterations, which only collect, under the base policy's own noise (repeated where `noise` says so)",
    )
    critic_warmup: int = ranged(8, 0, 10**6, "iterations after those in which only the critics learn")
    updates: int = ranged(20, 1, 10_000, "critic and actor steps per iteration, N")
    distillations: int = ranged(10, 0, 10_000, "distillation steps per iteration, M (na)")
    batch: int = ranged(256, 1, 2**20, "rows of a step, over all devices")
    capacity: int = ranged(100_000, 1, 10**8, "chunks that the replay buffer holds, over all devices")
    # The released NA code ignores this and takes 1.
    noise_bound: float = ranged(1.5, 1e-3, 100.0, "bound b of each number of the noise")
    # An actor that may go anywhere goes where its critic errs most; one that starts close to no noise meets what it is told.
    widening: int = ranged(
        0,
        0,
        10**6,
        "iterations, from the actor's first on, over which its box grows to the bound; 0: it has it at once",
    )
    widen_from: float = ranged(0.5, 1e-3, 1.0, "share of the bound that a widening box begins with")
    noise: str = chosen(
        "auto",
        ("auto", "full", "repeated"),
        "an own noise vector for each action of a chunk, or one for all; auto: own in na, one in sac",
    )
    gamma: float = ranged(0.97, 0.0, 1.0, "discount")
    discount: str = chosen("chunk", ("chunk", "step"), "gamma counts once per chunk, or once per executed action")
    tau: float = ranged(0.005, 0.0, 1.0, "rate of the target networks")
    actor_lr: float = ranged(3e-4, 0.0, 1.0, "learning rate of the actor")
    critic_lr: float = ranged(3e-4, 0.0, 1.0, "learning rate of the critics")
    alpha_lr: float = ranged(3e-3, 0.0, 1.0, "learning rate of the temperature's logarithm")
    # One number in stated units: the released repositories measure entropy in different boxes.
    target_entropy: float = ranged(
        -1.0, -20.0, 0.693, "entropy per number of u that alpha aims at; 0.693 is uniform", "nat"
    )
    # Times the numbers of u it competes with the value: 0.01 times 276 drove the actor of a sparse task to uniform noise.
    alpha: float = ranged(1e-4, 1e-8, 100.0, "first temperature; the released code starts at 1")
    entropy_backup: bool = dataclasses.field(
        default=False, metadata={"help": "pay the entropy in the critics' targets, too"}
    )
    # Both released repositories disagree, and one lets time limits end the value.
    time_limit: str = chosen("terminal", ("bootstrap", "terminal"), "a time limit bootstraps, or ends the value")
    # Of a task that pays 1 at most once, the critic of `sac` came to promise 4; this alone did not help it (docs/dsrl.md).
    return_bound: float = ranged(
        0.0, 0.0, 1e9, "returns are known to lie between 0 and this, and targets are kept there; 0: not known"
    )
    # Distilling from fresh normal noise denoises a batch per step, and trains Q^W where the actor never is.
    distill_from: str = chosen(
        "replay",
        ("replay", "normal", "box"),
        "noise of the distillation: as executed, or fresh with its chunk denoised",
    )
    # At 1, as is usual, the first values are as large as what a sparse task pays; they outlast the critics' warm-up, and the
    # actor climbs them (docs/dsrl.md).
    value_scale: float = ranged(0.01, 1e-6, 10.0, "scale of the critics' last weights at the start")
    heads: int = ranged(2, 1, 64, "critics of an ensemble")
    reduce: str = chosen("min", ("min", "mean"), "of the ensemble, in targets and actor loss")
    sizes: tuple[int, ...] = ranged((256, 256, 256), 1, 65536, "hidden widths of actor and critics")
    init_std: float = ranged(0.3, 0.01, 7.0, "first std of the actor before the tanh: quiet noise from the start")
    max_grad_norm: float = ranged(10.0, 1e-6, 1e9, "largest gradient norm of each network")
    reset_pool: int = ranged(64, 1, 2**20, "fresh starts per iteration")
    matmul_precision: str = chosen("highest", ("default", "high", "highest"), "precision of float32 products")

    @property
    def repeats(self) -> bool:
        """Whether all actions of a chunk share a noise vector.

        The critic of `sac` has only rewards to tell it what of the noise matters: of 276 numbers it learned nothing, of 23 it
        learned `pickup` (docs/dsrl.md).
        """
        return self.noise == "repeated" or (self.noise == "auto" and self.variant == "sac")

    def check(self) -> None:
        """Fields that must fit each other."""
        left_out(self, "widen_from", self.widening > 0, "it is about widening")
        if self.variant == "na" and not self.distillations:
            raise ConfigError(
                "distillations", self.distillations, "at least 1 in na, whose actor climbs what they learn"
            )
        if self.num_envs * self.unroll_length > self.capacity:
            raise ConfigError(
                "capacity", self.capacity, f"at least {self.num_envs * self.unroll_length} (an iteration)"
            )
        if self.batch > self.capacity:
            raise ConfigError("batch", self.batch, f"at most capacity={self.capacity}")


@struct.dataclass
class Row:
    """A chunk as it is remembered, `(N, ...)`: what actor and critics saw before and after, `u (N, n)`, the executed
    chunk, its reward, and the discount `(N,)` of what follows (zero where nothing does)."""

    actor_obs: Array
    critic_obs: Array
    u: Array
    chunk: Array
    reward: Array
    discount: Array
    next_actor_obs: Array
    next_critic_obs: Array


@struct.dataclass
class LearnerState:
    """Everything a run consists of; a checkpoint holds all of it, the replay buffer included.

    Attributes:
      params: `actor`, `alpha`, `noise_values` and (na) `values` -> parameters; `alpha` is the logarithm of the temperature.
      target: Polyak average of the critic that is bootstrapped from.
      opt_state: Adam moments by name.
      base: parameters of the base policy; never written.
      normalizer: of the critics' observations, fed in the warm-up only.
      buffer: replay buffer; with `env` and `episode` the sharded parts.
      env, episode: environments and sums of their episodes.
      key, iteration, skipped: as in `rdp_jax.algos.dppo`.
    """

    params: Mapping[str, Any]
    target: Any
    opt_state: Mapping[str, Any]
    base: Any
    normalizer: normalize.Normalizer
    buffer: replay.Replay
    env: Any
    episode: rollout.Episode
    key: Array
    iteration: Array
    skipped: Array


def state_spec() -> LearnerState:
    """Partition specs: a prefix tree of `LearnerState`."""
    specs: Any = [P()] * len(dataclasses.fields(LearnerState))
    sharded = P(parallel.AXIS)
    return LearnerState(*specs).replace(env=sharded, episode=sharded, buffer=sharded)


def noise_dim(config: DSRLConfig, policy: BasePolicy) -> int:
    """Numbers that the actor chooses."""
    horizon, action_dim = policy.noise_shape
    return action_dim if config.repeats else horizon * action_dim


def share(config: DSRLConfig, iteration: Array | int) -> Array:
    """`()` half-width of the box within which the actor moves in this iteration; 1 is the bound."""
    if not config.widening:
        return jnp.float32(1.0)
    grown = (iteration - config.warmup - config.critic_warmup) / config.widening
    return config.widen_from + (1.0 - config.widen_from) * jnp.clip(jnp.float32(grown), 0.0, 1.0)


def acting(config: DSRLConfig, state: LearnerState) -> Any:
    """The actor outside its learner: its parameters, with the width of its box (`share`) where that changes."""
    actor = state.params["actor"]
    return {**actor, "share": share(config, state.iteration)} if config.widening else actor


def to_noise(config: DSRLConfig, policy: BasePolicy, u: Array) -> Array:
    """Box `u (B, n)` -> noise `(B, Ta, Da)`."""
    w = config.noise_bound * u
    if config.repeats:
        return jnp.tile(w[:, None], (1, policy.noise_shape[0], 1))
    return w.reshape(-1, *policy.noise_shape)


class Networks:
    """The networks of a config for observations of these widths."""

    def __init__(self, config: DSRLConfig, policy: BasePolicy, critic_dim: int):
        self.config, self.policy, self.critic_dim = config, policy, critic_dim
        self.n = noise_dim(config, policy)
        self.actor = SquashedActor(config.sizes, self.n, config.init_std)
        self.values = Values(config.sizes, config.heads, config.value_scale)

    def init(self, key: Array, base: Any, obs_dim: int) -> dict[str, Any]:
        """Fresh parameters of all that the variant has, as in `LearnerState`."""
        ka, kv, kn = jax.random.split(key, 3)
        seen = self.policy.see(base, jnp.zeros((1, obs_dim)))
        critic, u = jnp.zeros((1, self.critic_dim)), jnp.zeros((1, self.n))
        found = {
            "actor": self.actor.init(ka, seen)["params"],
            "alpha": jnp.log(jnp.float32(self.config.alpha)),
            "noise_values": self.values.init(kn, critic, u)["params"],
        }
        if self.config.variant == "na":
            found["values"] = self.values.init(kv, critic, jnp.zeros((1, self.policy.chunk_dim)))["params"]
        return found

    def act(self, actor: Any, seen: Array, noise: Array | None, share: Any = 1.0) -> tuple[Array, Array]:
        """`u (B, n)` within +-`share`, and its log-density `(B,)` in the box so wide; without `noise` the middle of it."""
        mean, log_std = self.actor.apply({"params": actor}, seen)
        u, log_prob = squash(mean, log_std, jnp.zeros_like(mean) if noise is None else noise)
        return share * u, log_prob

    def value(self, params: Any, obs: Array, action: Array) -> Array:
        """`(heads, B)`."""
        return self.values.apply({"params": params}, obs, action)

    def reduced(self, values: Array) -> Array:
        """`(heads, B)` -> `(B,)`."""
        return values.min(0) if self.config.reduce == "min" else values.mean(0)


def check_layout(config: DSRLConfig, mesh: Mesh | None) -> None:
    """Raises `ConfigError` if the config is wrong or does not divide over the devices."""
    validate(config)
    for name in ("num_envs", "batch", "capacity"):
        if getattr(config, name) % parallel.size(mesh):
            raise ConfigError(name, getattr(config, name), f"a multiple of {parallel.size(mesh)} devices")


def init(
    key: Array,
    config: DSRLConfig,
    policy: BasePolicy,
    base: Any,
    env: VectorEnv,
    env_params: Any,
    mesh: Mesh | None = None,
) -> LearnerState:
    """First state of a run that steers `policy` with parameters `base`.  Raises `ConfigError`."""
    check_layout(config, mesh)
    dims = env.spec.obs_dims
    nets = Networks(config, policy, dims["critic"])

    net_key, env_key, run_key = jax.random.split(key, 3)
    fresh = starts_of(env, mesh).pool(env_key, config.num_envs, env_params)

    def local(net_key, run_key, base, fresh):
        params = nets.init(net_key, base, dims["actor"])
        indices = parallel.local_indices(config.num_envs, mesh)
        actor_obs, critic_obs = jnp.zeros(dims["actor"]), jnp.zeros(dims["critic"])
        one = jnp.float32(0.0)
        row = Row(
            actor_obs, critic_obs, jnp.zeros(nets.n), jnp.zeros(policy.chunk_dim), one, one, actor_obs, critic_obs
        )
        return parallel.strong(
            LearnerState(
                params=params,
                target=params["values" if config.variant == "na" else "noise_values"],
                opt_state={name: optax.scale_by_adam().init(p) for name, p in params.items()},
                base=base,
                normalizer=normalize.create(dims["critic"]),
                buffer=replay.create(row, config.capacity // parallel.size(mesh)),
                env=jax.tree.map(lambda x: x[indices], fresh),
                episode=rollout.begin(indices.shape[0]),
                key=run_key,
                iteration=jnp.int32(0),
                skipped=jnp.int32(0),
            )
        )

    return parallel.jit(local, mesh, (P(), P(), P(), P()), state_spec())(net_key, run_key, base, fresh)


def seed_buffer(state: LearnerState, rows: Row) -> LearnerState:
    """Demonstrations in chunk form into the buffer (one device).  Without their noise, `distill_from` must not be `replay`."""
    return state.replace(buffer=replay.add(state.buffer, rows))


def env_steps(config: DSRLConfig, state: LearnerState, executed: int) -> int:
    """Environment steps so far, warm-up included, `executed` per chunk."""
    return int(state.iteration) * config.unroll_length * config.num_envs * executed


class Update(Iteration):
    """One iteration: `(LearnerState, env_params) -> (LearnerState, metrics)`; the given state is donated.

    Args:
      config: settings.
      policy: what is steered.
      env: environments whose step is an executed chunk.
      executed: actions per chunk.
      mesh: as given to `init`.
    """

    def __init__(
        self, config: DSRLConfig, policy: BasePolicy, env: VectorEnv, executed: int = 1, mesh: Mesh | None = None
    ):
        check_layout(config, mesh)
        self.config, self.policy, self.env, self.mesh = config, policy, env, mesh
        self.axis = parallel.axis_of(mesh)
        self.nets = Networks(config, policy, env.spec.obs_dims["critic"])
        self.gamma = config.gamma**executed if config.discount == "step" else config.gamma
        super().__init__(self.iterate, self.fresh, state_spec(), mesh, config.matmul_precision)

    # --- collecting ------------------------------------------------------------------------------------------------------

    def keys(self, state: LearnerState) -> Array:
        """Three keys of this iteration: fresh starts, noise, learning."""
        return jax.random.split(jax.random.fold_in(state.key, state.iteration), 3)

    def fresh(self, state: LearnerState, env_params: Any) -> Any:
        """Fresh starts of this iteration."""
        return starts_of(self.env, self.mesh).pool(self.keys(state)[0], self.config.reset_pool, env_params)

    def iterate(self, state: LearnerState, env_params: Any, pool: Any):
        config = self.config
        _, noise_key, learn_key = self.keys(state)
        state, stats = self.collect(state, env_params, pool, noise_key)
        warming = state.iteration < config.warmup
        idle = {name: jnp.float32(0.0) for name in self._metric_names()}
        state, learned = jax.lax.cond(warming, lambda s: (s, idle), lambda s: self.learn(s, learn_key), state)
        state = state.replace(iteration=state.iteration + 1)
        metrics = {
            **rollout.summarize(parallel.psum(stats, self.axis)),
            **learned,
            "buffer/rows": parallel.psum(replay.size(state.buffer).astype(jnp.float32), self.axis),
            "guard/skipped_updates": state.skipped.astype(jnp.float32),
        }
        return state, metrics

    def collect(self, state: LearnerState, env_params: Any, pool: Any, noise_key: Array):
        """Steps the environments, under the policy's own noise while warming up, and remembers what happened."""
        config = self.config
        indices = parallel.local_indices(config.num_envs, self.mesh)
        env_keys = parallel.fold_each(noise_key, indices)
        draw = jax.vmap(lambda k: jax.random.normal(k, (config.unroll_length, self.nets.n)), out_axes=1)
        warming, width = state.iteration < config.warmup, share(config, state.iteration)

        def act(obs, noise):
            seen = self.policy.see(state.base, obs["actor"])
            steered, _ = self.nets.act(state.params["actor"], seen, noise, width)
            u = jnp.where(warming, self.policy.noise_std / config.noise_bound * noise, steered)
            chunk = self.policy.sample(state.base, obs["actor"], to_noise(config, self.policy, u))
            return self.policy.to_env(state.base, chunk), (u, chunk)

        def step(pool, env_state, action, params, noise):
            del noise
            out = self.env.step(pool, env_state, action, params)
            return out, out.final_obs["actor"]

        env, episode, data, stats = rollout.collect(
            self.env, act, state.env, state.episode, pool, draw(env_keys), env_params, step
        )
        (u, chunk), final_actor_obs = data.extras
        over = data.terminated | (data.truncated if config.time_limit == "terminal" else False)
        rows = Row(
            actor_obs=data.obs["actor"],
            critic_obs=data.obs["critic"],
            u=u,
            chunk=chunk,
            reward=data.reward,
            discount=jnp.where(over, 0.0, self.gamma),
            next_actor_obs=final_actor_obs,
            next_critic_obs=data.final_obs,
        )
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        merged = normalize.merge(state.normalizer, data.obs["critic"], self.axis)
        state = state.replace(
            env=env,
            episode=episode,
            buffer=replay.add(state.buffer, rows),
            # Later it would shift under critics that have learned.
            normalizer=guard.choose(warming, merged, state.normalizer),
        )
        return state, stats

    # --- learning --------------------------------------------------------------------------------------------------------

    def _metric_names(self) -> tuple[str, ...]:
        names = ("loss/critic", "loss/actor", "policy/entropy", "policy/alpha", "value/mean", "value/target")
        return (*names, "loss/distillation") if self.config.variant == "na" else names

    def learn(self, state: LearnerState, key: Array) -> tuple[LearnerState, dict[str, Array]]:
        config = self.config
        keys = jax.random.split(key, config.updates + config.distillations)
        moving = state.iteration >= config.warmup + config.critic_warmup

        def update(carry, key):
            return self._inner(state, carry, key, moving)

        carry = (state.params, state.target, state.opt_state, state.skipped)
        carry, info = jax.lax.scan(update, carry, keys[: config.updates])
        metrics = {name: value.mean() for name, value in info.items()}
        if config.variant == "na":
            metrics["loss/distillation"] = jnp.float32(0.0)
            if config.distillations:
                carry, loss = jax.lax.scan(lambda c, k: self._distill(state, c, k), carry, keys[config.updates :])
                metrics["loss/distillation"] = loss.mean()
        params, target, opt_state, skipped = carry
        return state.replace(params=params, target=target, opt_state=opt_state, skipped=skipped), metrics

    def _batch(self, state: LearnerState, key: Array) -> Row:
        """Rows of this device's share of a batch, the critics' observations normalised."""
        rows: Row = replay.sample(state.buffer, key, self.config.batch // parallel.size(self.mesh))
        return rows.replace(
            critic_obs=normalize.apply(state.normalizer, rows.critic_obs),
            next_critic_obs=normalize.apply(state.normalizer, rows.next_critic_obs),
        )

    def _own(self, key: Array) -> Array:
        """A key of this device's own: what is drawn for its rows is not drawn for another's."""
        return key if self.axis is None else jax.random.fold_in(key, jax.lax.axis_index(self.axis))

    def _step(self, name: str, grads: Any, params: dict, opt_state: dict, lr: float) -> Array:
        """Adam on one network, in place of the dictionaries' entries; refused if not finite."""
        grads = parallel.pmean(grads, self.axis)
        finite = guard.all_finite(grads)
        grads, _ = guard.clip_norm(grads, self.config.max_grad_norm)
        updates, opt = optax.scale_by_adam().update(grads, opt_state[name])
        moved = jax.tree.map(lambda p, u: p - lr * u, params[name], updates)
        params[name] = guard.choose(finite, moved, params[name])
        opt_state[name] = guard.choose(finite, opt, opt_state[name])
        return ~finite

    def _inner(self, state: LearnerState, carry: Any, key: Array, moving: Array):
        """One step of temperature, critic and actor on one minibatch; the order of DSRL's reference, section 3."""
        config, nets, policy = self.config, self.nets, self.policy
        params, target, opt_state, skipped = carry
        params, opt_state = dict(params), dict(opt_state)
        batch_key, now_key, next_key = jax.random.split(self._own(key), 3)
        batch = self._batch(state, batch_key)
        rows = batch.reward.shape[0]
        seen, seen_next = policy.see(state.base, batch.actor_obs), policy.see(state.base, batch.next_actor_obs)
        noise, next_noise = (jax.random.normal(k, (rows, nets.n)) for k in (now_key, next_key))
        alpha, width = jnp.exp(params["alpha"]), share(config, state.iteration)

        u_next, log_next = nets.act(params["actor"], seen_next, next_noise, width)
        if config.variant == "na":
            chunk_next = policy.sample(state.base, batch.next_actor_obs, to_noise(config, policy, u_next))
            following = nets.reduced(nets.value(target, batch.next_critic_obs, chunk_next))
            name, taken = "values", batch.chunk
        else:
            following = nets.reduced(nets.value(target, batch.next_critic_obs, u_next))
            name, taken = "noise_values", batch.u
        if config.return_bound:
            following = jnp.clip(following, 0.0, config.return_bound)
        if config.entropy_backup:
            following = following - alpha * log_next
        goal = jax.lax.stop_gradient(batch.reward + batch.discount * following)

        def critic_loss(p):
            values = nets.value(p, batch.critic_obs, taken)
            return 0.5 * jnp.square(values - goal).mean(1).sum(), values

        (critic, values), grads = jax.value_and_grad(critic_loss, has_aux=True)(params[name])

        def actor_loss(p):
            u, log_prob = nets.act(p, seen, noise, width)
            worth = nets.reduced(nets.value(params["noise_values"], batch.critic_obs, u))
            return (alpha * log_prob - worth).mean(), log_prob

        (actor, log_prob), actor_grads = jax.value_and_grad(actor_loss, has_aux=True)(params["actor"])
        surplus = parallel.pmean(log_prob.mean(), self.axis) + config.target_entropy * nets.n
        # Without a product with alpha: its logarithm moves at the same rate however small alpha is.
        alpha_grad = -surplus / nets.n

        bad = self._step(name, grads, params, opt_state, config.critic_lr)
        before = {n: (params[n], opt_state[n]) for n in ("actor", "alpha")}
        bad |= self._step("actor", actor_grads, params, opt_state, config.actor_lr)
        bad |= self._step("alpha", alpha_grad, params, opt_state, config.alpha_lr)
        for n, (p, o) in before.items():
            params[n], opt_state[n] = guard.choose(moving, params[n], p), guard.choose(moving, opt_state[n], o)
        target = jax.tree.map(lambda t, p: t + config.tau * (p - t), target, params[name])
        info = {
            "loss/critic": critic,
            "loss/actor": actor,
            "policy/entropy": -log_prob.mean() / nets.n,
            "policy/alpha": alpha,
            "value/mean": values.mean(),
            "value/target": goal.mean(),
        }
        return (params, target, opt_state, skipped + bad), parallel.pmean(info, self.axis)

    def _distill(self, state: LearnerState, carry: Any, key: Array):
        """One step of `Q^W` towards `Q^A` of what the noise denoises to; each head copies its own (section 3)."""
        config, nets, policy = self.config, self.nets, self.policy
        params, target, opt_state, skipped = carry
        params, opt_state = dict(params), dict(opt_state)
        batch_key, noise_key = jax.random.split(self._own(key))
        batch = self._batch(state, batch_key)
        if config.distill_from == "replay":
            u, chunk = batch.u, batch.chunk
        else:
            shape = (batch.reward.shape[0], nets.n)
            if config.distill_from == "normal":
                u = jax.random.normal(noise_key, shape) / config.noise_bound
            else:
                u = jax.random.uniform(noise_key, shape, minval=-1.0)
            chunk = policy.sample(state.base, batch.actor_obs, to_noise(config, policy, u))
        goal = jax.lax.stop_gradient(nets.value(params["values"], batch.critic_obs, chunk))

        def loss(p):
            return 0.5 * jnp.square(nets.value(p, batch.critic_obs, u) - goal).mean(1).sum()

        value, grads = jax.value_and_grad(loss)(params["noise_values"])
        bad = self._step("noise_values", grads, params, opt_state, config.critic_lr)
        return (params, target, opt_state, skipped + bad), parallel.pmean(value, self.axis)
