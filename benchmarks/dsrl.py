"""Scenario `dsrl`: what DSRL learns in one iteration, beside the same in eager PyTorch.

The base is DPPO's hopper planner (chunks of 4 x 3, 11 observations, a residual MLP of three layers of 512) with fresh weights;
the replay buffer holds random numbers.  Neither changes how long an iteration takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diffusion import torch_missing
from benchmarks.scenarios import Case
from envs.chunk import Chunked
from envs.gym.locomotion import Locomotion
from envs.wrappers import AutoReset
from rdp_jax import replay
from rdp_jax.algos import dsrl
from rdp_jax.config import validate
from rdp_jax.data.windows import MinMax
from rdp_jax.planner import Bundle, Dims
from rdp_jax.steer import PlannerBase
from train.presets import gym_planner

OBS, ACTION = 11, 3


def setup(
    variant: str,
    updates: int,
    distillations: int,
    batch: int,
    distill_from: str,
    ddim_steps: int,
    sizes: Sequence[int],
    rows: int,
    seed: int,
    cases: Sequence[str],
) -> list[Case]:
    """Cases of `updates` steps of critic, actor and temperature, and `distillations` more, per call.

    Args:
      variant, updates, distillations, batch, sizes: as in `DSRLConfig`; the rest of it keeps its defaults.
      distill_from: `replay`, or `normal` (a batch is denoised in every step of the distillation).
      ddim_steps: denoising steps of the base.
      rows: of the replay buffer.
      seed: of weights, rows and noise.
      cases: of `jax`, `torch`.
    """
    config = dsrl.DSRLConfig(
        variant=variant,
        num_envs=1,
        unroll_length=1,
        warmup=1,
        critic_warmup=0,
        updates=updates,
        distillations=distillations,
        batch=batch,
        distill_from=distill_from,
        sizes=tuple(sizes),
        capacity=rows,
        reset_pool=1,
    )
    validate(config)
    policy = PlannerBase(gym_planner(), Dims(OBS, ACTION), ddim_steps)
    validate(policy.policy.config)
    builds = {"jax": lambda: ours(config, policy, seed), "torch": lambda: peer(config, policy, seed)}
    missing = {"jax": None, "torch": torch_missing()}
    return [Case(name, builds[name], updates, "updates", missing=missing[name]) for name in cases]


def learner(config: dsrl.DSRLConfig, policy: PlannerBase, seed: int) -> tuple[dsrl.Update, dsrl.LearnerState]:
    """Update and state past all warm-ups, the replay buffer full of random rows."""
    vector = AutoReset(Chunked(Locomotion("hopper", "native"), policy.config.executed))
    key = jax.random.key(seed)
    bound = jnp.ones(OBS), jnp.ones(ACTION)
    weights = policy.policy.init(key, OBS)
    bundle = Bundle(weights, MinMax(-bound[0], bound[0]), MinMax(-bound[1], bound[1]))
    update = dsrl.Update(config, policy, vector, policy.config.executed)
    state = dsrl.init(key, config, policy, bundle, vector, ())
    rng, n, count = np.random.default_rng(seed), update.nets.n, config.capacity

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)

    rows = dsrl.Row(
        actor_obs=normal(OBS),
        critic_obs=normal(OBS),
        u=jnp.tanh(normal(n)),
        chunk=normal(policy.chunk_dim),
        reward=normal(),
        discount=jnp.full(count, config.gamma),
        next_actor_obs=normal(OBS),
        next_critic_obs=normal(OBS),
    )
    full = replay.add(state.buffer, rows)
    return update, state.replace(buffer=full, iteration=jnp.int32(config.warmup))


def ours(config: dsrl.DSRLConfig, policy: PlannerBase, seed: int) -> Callable[[], Any]:
    """The learning of one iteration, at the precision of the products that it has in training."""
    update, state = learner(config, policy, seed)
    with jax.default_matmul_precision(config.matmul_precision):
        learn = jax.jit(lambda state, key: update.learn(state, key)[0])
        learn = learn.lower(state, jax.random.key(seed)).compile()
    key = jax.random.key(seed)

    def call() -> Any:
        nonlocal state, key
        key, now = jax.random.split(key)
        new = learn(state, now)
        state = state.replace(params=new.params, target=new.target, opt_state=new.opt_state, skipped=new.skipped)
        return jax.block_until_ready(state.params)

    return call


def peer(config: dsrl.DSRLConfig, policy: PlannerBase, seed: int) -> Callable[[], Any]:
    """The same from the same weights and rows."""
    import torch

    from benchmarks.torch_dsrl import Learner

    torch.manual_seed(seed)
    return Learner(config, policy, learner(config, policy, seed)[1])
