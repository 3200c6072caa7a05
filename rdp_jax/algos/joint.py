"""Joint fine-tuning of a planner and the controller under it (REFINE-DP, Algorithm 1).

The planner learns by `rdp_jax.algos.dppo`; each part of the controller learns by `rdp_jax.algos.ppo`, from its own tracking
reward, under the commands that the planner gives.  Three kinds of iteration share one state, and each is compiled once, as
what the other learner has changed is data:

| phase | planner | controller |
|---|---|---|
| `planner` | explores, learns | as it is |
| `controller` | acts without exploration | explores, learns |
| `both` | explores, learns | explores, learns, from the same rollout |

`Schedule` says which comes when.  Where the controller learns, a share of its samples may come from the commands on which it was
trained at first (`rehearsals`), so that it forgets nothing.  They are part of the same minibatches: a gradient of their own, of
few samples and a step as large, was mostly noise, and undid what the task had taught (docs/refine_log.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import normalize, parallel, rollout
from rdp_jax.algos import dppo, ppo
from rdp_jax.algos.iteration import Iteration
from rdp_jax.config import ConfigError, chosen, ranged
from rdp_jax.starts import starts_of
from rdp_jax.types import LayeredEnv, Ticks, Transition, VectorEnv

Array = jax.Array
PHASES = ("planner", "controller", "both")
REHEARSAL_STEPS = 32  # of each rehearsal, per environment


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which phase comes when (REFINE-DP alternates, with two rounds)."""

    variant: str = chosen(
        "alternate", ("alternate", "simultaneous"), "one learner after the other, or both from the same rollout"
    )
    rounds: int = ranged(2, 1, 10**6, "rounds of alternation")
    controller_iterations: int = ranged(2, 0, 10**6, "iterations of the controller at the start of each round")
    planner_iterations: int = ranged(6, 0, 10**6, "iterations of the planner after those")
    rehearsals: int = ranged(
        4,
        0,
        1000,
        f"rollouts of {REHEARSAL_STEPS} steps on its first commands that each iteration of the controller learns from, too",
    )

    @property
    def iterations(self) -> int:
        """Of the whole schedule."""
        return self.rounds * (self.controller_iterations + self.planner_iterations)

    @property
    def moves_controller(self) -> bool:
        """Whether the controller learns at all."""
        return self.variant == "simultaneous" or self.controller_iterations > 0

    @property
    def moves_planner(self) -> bool:
        """Whether the planner learns at all."""
        return self.variant == "simultaneous" or self.planner_iterations > 0

    def phase(self, iteration: int) -> str:
        """Phase of this iteration; the rounds go on beyond the last."""
        if self.variant == "simultaneous":
            return "both"
        within = iteration % max(self.controller_iterations + self.planner_iterations, 1)
        return "controller" if within < self.controller_iterations else "planner"


def controller_ppo() -> ppo.PPOConfig:
    """PPO of a controller that is good already: small steps, inputs scaled as they were, and a critic that learns first.

    Its critics explain nearly all of the returns, and with a lambda of 0.8 four to ten times as much of the gradient is signal as
    with 0.95, with which the hands did not learn (docs/refine_log.md).
    """
    return ppo.PPOConfig(
        gae_lambda=0.8,
        epochs=3,
        minibatches=32,
        lr=1e-4,
        lr_min=1e-5,
        lr_max=3e-4,
        target_kl=0.01,
        critic_lr=1e-3,
        value_scale=0.01,
        critic_warmup=1,
        frozen_statistics=True,
        entropy_coef=0.0,
        min_std=0.01,
    )


@struct.dataclass
class JointState:
    """Attributes:
    planner: with the environments, which all phases share.
    parts: part of the controller -> its learner, `env` and `episode` empty.
    rehearsal: part -> `(env, episode)` of its first environments; empty without rehearsals.
    iteration: `()` int32, of any phase.
    """

    planner: dppo.LearnerState
    parts: Mapping[str, ppo.LearnerState]
    rehearsal: Mapping[str, Any]
    iteration: Array


def part_state(key: Array, config: ppo.PPOConfig, weights: Mapping[str, Any], critic_dim: int) -> ppo.LearnerState:
    """A part's learner with the policy `{"actor", "normalizer"}` and a fresh critic."""
    params = {
        "actor": weights["actor"],
        "critic": ppo.critic_of(config).init(key, jnp.zeros((1, critic_dim)))["params"],
    }
    state = ppo.LearnerState(
        params=params,
        opt_state=optax.scale_by_adam().init(params),
        normalizer={"actor": weights["normalizer"], "critic": normalize.create(critic_dim)},
        env=(),
        episode=(),  # type: ignore[arg-type]
        key=key,
        iteration=jnp.int32(0),
        skipped=jnp.int32(0),
        lr=jnp.float32(config.lr),
    )
    copied: ppo.LearnerState = jax.tree.map(lambda x: jnp.array(x, copy=True), parallel.strong(state))
    return copied


def controller_of(state: JointState) -> dict[str, Any]:
    """`{part: {"actor", "normalizer"}}`: what the environments' field `controller` wants."""
    return {
        name: {"actor": part.params["actor"], "normalizer": part.normalizer["actor"]}
        for name, part in state.parts.items()
    }


def transition(ticks: Ticks, done: Array, part: str) -> tuple[Transition, Array]:
    """Rollout of one part, `(T * n, B)`, and which of its steps happened.

    Args:
      ticks: `(T, B, n, ...)`.
      done: `(T, B)` bool, the planner's episode ended with this action.
      part: whose.
    """

    def in_time(x: Array) -> Array:
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(-1, *x.shape[2:])

    live = in_time(ticks.live)
    count = ticks.live.shape[2]
    # What follows in time may have happened to nobody: the rest of an action that ended the episode, or a whole one that broke
    # down at once.  No advantage may reach back across either.
    followed = jnp.concatenate([live[1:], jnp.ones_like(live[:1])])
    over = in_time(done[:, :, None] & (jnp.arange(count) == count - 1))
    end = live & (~followed | over)
    fell = in_time(ticks.terminated & ticks.live)
    critic = in_time(ticks.critic[part])
    following = jnp.concatenate([critic[1:], critic[-1:]])
    cut = end & ~fell
    data = Transition(
        obs={"actor": in_time(ticks.obs[part]), "critic": critic},
        action=in_time(ticks.action[part]),
        reward=in_time(ticks.reward[part]),
        terminated=fell,
        truncated=cut,
        # An episode that the planner ended leaves no observation after its last tick; its own is one tick older.
        final_obs=jnp.where(cut[..., None], critic, following),
    )
    return data, live


class Update:
    """One iteration of any phase: `(JointState, env_params) -> (JointState, metrics)`; the given state is donated.

    Args:
      schedule: which phase comes when.
      planner: of the planner; its environment has a controller inside.
      config: PPO of the controller's parts.
      recorded: environments (of this many, over all devices) whose ticks the controller learns from.
      rehearse: part -> rollout in the environments of its first training, and a function from the present controller to their
        parameters; empty for none.
      learning: parts of the controller that explore and learn; the others stay as they are.  None: all.
    """

    def __init__(
        self,
        schedule: Schedule,
        planner: dppo.Update,
        config: ppo.PPOConfig,
        recorded: int,
        rehearse: Mapping[str, tuple[ppo.Rollout, Callable[[Mapping[str, Any]], Any]]] | None = None,
        learning: Collection[str] | None = None,
    ):
        self.schedule, self.planner, self.config, self.rehearse = schedule, planner, config, rehearse or {}
        self.mesh, self.axis = planner.mesh, planner.axis
        self.env: LayeredEnv = planner.env  # type: ignore[assignment]
        self.learning = tuple(self.env.parts if learning is None else learning)
        if not self.learning or not set(self.learning) <= set(self.env.parts):
            raise ConfigError("learning", self.learning, f"some of {', '.join(self.env.parts)}")
        groups = planner.config.shuffle_groups
        if recorded % groups or recorded > planner.config.num_envs:
            allowed = f"a multiple of shuffle_groups={groups} up to num_envs={planner.config.num_envs}"
            raise ConfigError("recorded", recorded, allowed)
        if schedule.moves_controller and config.shuffle_groups % parallel.size(self.mesh):
            allowed = f"a multiple of {parallel.size(self.mesh)} devices"
            raise ConfigError("controller.shuffle_groups", config.shuffle_groups, allowed)
        self.groups, self.each = groups // parallel.size(self.mesh), recorded // groups
        self.phases = {
            phase: Iteration(self._phase(phase), self.fresh, state_spec(), self.mesh, config.matmul_precision)
            for phase in PHASES
        }

    def __call__(self, state: JointState, env_params: Any) -> tuple[JointState, dict[str, Array]]:
        phase = self.schedule.phase(int(state.iteration))
        places, rehearsed, metrics = dict(state.rehearsal), {}, {"phase": jnp.float32(PHASES.index(phase))}
        if phase != "planner":
            controller = controller_of(state)
            for name, (roll_out, params_for) in self.rehearse.items():
                env, episode = places[name]
                learner = state.parts[name].replace(env=env, episode=episode)
                env, episode, rehearsed[name], seen = roll_out(learner, params_for(controller))
                places[name] = (env, episode)
                metrics[f"{name}/rehearsal/reward"] = seen["reward/mean"]
        state, learned = self.phases[phase](state.replace(rehearsal=rehearsed), env_params)
        return state.replace(rehearsal=places), {**metrics, **learned}

    def cache_size(self) -> int:
        """Compiled versions of the phase that has most; one in a healthy run."""
        return max(phase.cache_size() for phase in self.phases.values())

    def watched(self, x: Array) -> Array:
        """Rows `(B, ...)` of the recorded environments: the first of each shuffle group, so the same ones on any device."""
        grouped = x.reshape(self.groups, -1, *x.shape[1:])[:, : self.each]
        return grouped.reshape(-1, *x.shape[1:])

    def keys(self, state: JointState) -> Array:
        """Three keys of this iteration: fresh starts, noise, shuffling.

        Phases count together: the planner's own count stands still while only the controller learns.
        """
        return jax.random.split(jax.random.fold_in(state.planner.key, state.iteration + 2**30), 3)

    def fresh(self, state: JointState, env_params: Any) -> Any:
        """Fresh starts of this iteration."""
        params = env_params.replace(controller=controller_of(state))
        return starts_of(self.env, self.mesh).pool(self.keys(state)[0], self.planner.config.reset_pool, params)

    def _phase(self, phase: str) -> Callable[[JointState, Any, Any], tuple[JointState, dict[str, Array]]]:
        def run(state: JointState, env_params: Any, pool: Any) -> tuple[JointState, dict[str, Array]]:
            params = env_params.replace(controller=controller_of(state))
            if phase == "planner":
                with self._as_planner():
                    planner, metrics = self.planner.iterate(state.planner, params, pool)
                parts = state.parts
            else:
                planner, parts, metrics = self._both(state, params, pool, plan_learns=phase == "both")
            return JointState(planner, parts, state.rehearsal, state.iteration + 1), metrics

        return run

    def _as_planner(self) -> AbstractContextManager[Any]:
        """Products as precise as the planner's own config says; outside it they are as the controller's."""
        return jax.default_matmul_precision(self.planner.config.matmul_precision)

    def _both(self, state: JointState, env_params: Any, pool: Any, plan_learns: bool):
        """A rollout in which the controller explores, and what is learned from it."""
        planner, data, metrics = self.collect(state, env_params, pool, plan_learns)
        shuffle_key = self.keys(state)[2]
        if plan_learns:
            plan_key, shuffle_key = jax.random.split(shuffle_key)
            with self._as_planner():
                planner, learned = self.planner.digest(planner, data.replace(extras=data.extras[0]), plan_key)
            metrics |= learned
        parts, learned = self.digest(state.parts, data, shuffle_key, state.rehearsal)
        return planner, parts, {**metrics, **learned}

    def collect(
        self, state: JointState, env_params: Any, pool: Any, plan_explores: bool
    ) -> tuple[dppo.LearnerState, Transition, dict[str, Array]]:
        """Rollout in which the controller explores, the planner too if it is to learn.

        Returns:
          The planner's learner with its environments moved on, transitions `(T, B, ...)` with extras (chains, ticks of the
          recorded environments), and metrics.
        """
        planner = state.planner
        stds = {
            name: jnp.exp(part.params["actor"]["log_std"]) * (name in self.learning)
            for name, part in state.parts.items()
        }
        widths, ticks = self.env.parts, self.env.ticks

        def act(obs, keys):
            with self._as_planner():
                return self.planner.plan(planner, obs, keys, plan_explores)

        def step(pool, env_state, action, params, keys):
            noise = {}
            for i, (name, width) in enumerate(widths.items()):
                draw = jax.vmap(lambda k, i=i, w=width: jax.random.normal(jax.random.fold_in(k, 1000 + i), (ticks, w)))
                noise[name] = stds[name] * draw(keys)
            out, seen = self.env.step_recorded(pool, env_state, action, params, noise)
            return out, jax.tree.map(self.watched, seen)

        keys = self.planner.step_keys(self.keys(state)[1])
        env, episode, data, stats = rollout.collect(
            self.env, act, planner.env, planner.episode, pool, keys, env_params, step
        )
        metrics = rollout.summarize(parallel.psum(stats, self.axis))
        if not plan_explores:  # nobody adds these rewards to the planner's discounted returns, so those begin anew
            planner = planner.replace(running=jnp.zeros_like(planner.running))
        return planner.replace(env=env, episode=episode), data, metrics

    def digest(
        self,
        parts: Mapping[str, ppo.LearnerState],
        data: Transition,
        key: Array,
        rehearsed: Mapping[str, Transition] | None = None,
    ) -> tuple[dict[str, ppo.LearnerState], dict[str, Array]]:
        """What each part of the controller learns from a rollout of `collect`, and from those `rehearsed` (part -> rollout)."""
        seen = data.extras[1]
        done = jax.vmap(self.watched)(data.terminated | data.truncated)
        learners, metrics = {}, {}
        for i, (name, part) in enumerate(parts.items()):
            rollout_of_part, live = transition(seen, done, name)
            paid = (rollout_of_part.reward.sum(where=live), live.sum(dtype=jnp.float32))
            total, count = parallel.psum(paid, self.axis)
            metrics[f"{name}/reward"] = total / jnp.maximum(count, 1.0)
            if name not in self.learning:
                learners[name] = part
                continue
            learners[name], learned = ppo.digest(
                self.config,
                self.mesh,
                part,
                rollout_of_part,
                jax.random.fold_in(key, i),
                live,
                (rehearsed or {}).get(name),
            )
            metrics |= {f"{name}/{k}": v for k, v in learned.items()}
        return learners, metrics


def state_spec() -> JointState:
    """Partition specs: a prefix tree of `JointState`."""
    # Inside an iteration `rehearsal` holds rollouts, `(T, B, ...)`.
    specs: Any = (dppo.state_spec(), P(), P(None, parallel.AXIS), P())
    return JointState(*specs)


def init(
    key: Array,
    config: ppo.PPOConfig,
    planner: dppo.LearnerState,
    controller: Mapping[str, Any],
    critic_dims: Mapping[str, int],
    rehearsal: Mapping[str, tuple[ppo.PPOConfig, VectorEnv, Any]] | None = None,
    mesh: Mesh | None = None,
) -> JointState:
    """First state of a run.

    Args:
      key: random key of the controller's critics.
      config: PPO of the controller's parts.
      planner: of `dppo.init`.
      controller: part -> `{"actor", "normalizer"}`.
      critic_dims: part -> width of its critic's observation.
      rehearsal: part -> config, environments and parameters of its first training.
      mesh: as given to `dppo.init`.
    """
    parts = {
        name: part_state(jax.random.fold_in(key, i), config, weights, critic_dims[name])
        for i, (name, weights) in enumerate(controller.items())
    }
    places = {}
    for i, (name, (own, env, params)) in enumerate((rehearsal or {}).items()):
        first = ppo.init(jax.random.fold_in(key, 100 + i), own, env, params, mesh)
        places[name] = (first.env, first.episode)
    count = jnp.int32(0)
    if mesh is not None:  # all of it: what is restored lies where this lies
        parts, count = parallel.put((parts, count), P(), mesh)
    return JointState(planner, parts, places, count)
