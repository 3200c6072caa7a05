"""Scenarios `chain` and `update`: DPPO's sampling and its gradient step, beside the same in eager PyTorch.

Sizes are those of DPPO's hopper: chunks of 4 x 3, 11 observations, K = 20, K' = 10, a residual MLP of three layers of 512.
The case `limit` is the large matrix products of either alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.scenarios import Case
from envs.chunk import Chunked
from envs.gym.locomotion import Locomotion
from envs.wrappers import AutoReset
from rdp_jax import normalize
from rdp_jax.algos import dppo
from rdp_jax.config import ConfigError
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.policy import DiffusionPolicy
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.denoiser import DenoiserMLP
from rdp_jax.planner import Bundle

SHAPE, OBS, TUNED = (4, 3), 11, 10


def torch_missing() -> str | None:
    """Why PyTorch cannot be timed beside JAX here; None where it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install '.[bench]')"
    if jax.default_backend() != "cpu":
        return f"the peer computes on a CPU, JAX here on a {jax.default_backend()}: a ratio would compare machines"
    return None


def policy_and_params() -> tuple[DiffusionPolicy, Any]:
    """The policy of every case, and its parameters."""
    policy = DiffusionPolicy(DenoiserMLP(), DiffusionConfig(), SHAPE)
    return policy, policy.init(jax.random.key(0), OBS)


def flops_per_row(params: Any) -> int:
    """Multiply-adds of one forward pass, counted as two operations each."""
    return sum(2 * x.size for x in jax.tree.leaves(params) if x.ndim == 2)


def large(params: Any) -> list[jax.Array]:
    """The kernels of hidden layers to hidden layers: all but a twentieth of a pass."""
    return [x for x in jax.tree.leaves(params) if x.ndim == 2 and min(x.shape) == max(x.shape)]


def counted(name: str, params: Any) -> int:
    """Operations of a forward pass per row that the case `name` is measured by."""
    return flops_per_row(large(params) if name == "limit" else params)


def forward_limit(params: Any, rows: int, steps: int) -> Callable[[], Any]:
    """The large products of `steps` forward passes one after the other, and nothing else: what no sampler can undercut."""
    kernels = large(params)
    h = jnp.asarray(np.random.default_rng(0).normal(size=(rows, kernels[0].shape[0])), jnp.float32)

    @jax.jit
    def products(kernels, h):
        def step(h, _):
            for kernel in kernels:
                h = h @ kernel
            return h, None

        return jax.lax.scan(step, h, None, length=steps)[0]

    return lambda: jax.block_until_ready(products(kernels, h))


def gradient_limit(params: Any, rows: int) -> Callable[[], Any]:
    """The large products of one pass forward and back."""
    kernels = large(params)
    h = jnp.asarray(np.random.default_rng(0).normal(size=(rows, kernels[0].shape[0])), jnp.float32)
    products = jax.jit(lambda kernels, h: [(h @ kernel, h @ kernel.T, h.T @ h) for kernel in kernels])
    return lambda: jax.block_until_ready(products(kernels, h))


def chain(envs: Sequence[int], cases: Sequence[str]) -> list[Case]:
    """Whole chains for `envs` observations at once: K - K' steps of the frozen network, K' of the trained one.

    Args:
      envs: batch sizes.
      cases: of `jax`, `torch`, `limit` (the large matrix products alone, in JAX).
    """
    policy, params = policy_and_params()
    steps = policy.config.visited

    def ours(count: int) -> Callable[[], Callable[[], Any]]:
        def build():
            obs = jnp.asarray(np.random.default_rng(0).normal(size=(count, OBS)), jnp.float32)

            @jax.jit
            def sample(base, tuned, obs, keys):
                noise = policy.row_noise(keys)
                return policy.sample_split(base, tuned, TUNED, obs, noise, True)

            keys = jax.random.split(jax.random.key(1), count)
            return lambda: jax.block_until_ready(sample(params, params, obs, keys))

        return build

    def peer(count: int) -> Callable[[], Callable[[], Any]]:
        def build():
            from benchmarks.torch_peer import Chain

            return Chain(policy, params, count, OBS, TUNED).sample

        return build

    def limit(count: int) -> Callable[[], Callable[[], Any]]:
        return lambda: forward_limit(params, count, steps)

    return [
        Case(
            f"{name}_{count}",
            {"jax": ours, "torch": peer, "limit": limit}[name](count),
            count,
            "chunks",
            lambda name=name, count=count: {  # type: ignore[misc]
                "flop_per_call": counted(name, params) * steps * count
            },
            torch_missing() if name == "torch" else None,
        )
        for count in envs
        for name in cases
    ]


def update(pairs: int, cases: Sequence[str]) -> list[Case]:
    """One gradient step of actor and critic on `pairs` (chunk, inner step) pairs, Adam included."""
    if pairs % TUNED:
        raise ConfigError("pairs", pairs, f"a multiple of {TUNED}")
    policy, params = policy_and_params()
    outer = pairs // TUNED
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    batch = dppo.Batch(
        obs=normal(outer, 1, OBS),
        critic_obs=normal(outer, 1, OBS),
        chain=0.5 * normal(outer, 1, TUNED + 1, *SHAPE),
        advantage=normal(outer, 1),
        target=normal(outer, 1),
        log_prob=normal(outer, 1, TUNED),
        mean=normal(outer, 1, TUNED, *SHAPE),
    )
    config = dppo.DPPOConfig(num_envs=1, unroll_length=outer, epochs=1, minibatches=1, shuffle_groups=1, target_kl=1e9)

    def ours():
        vector = AutoReset(Chunked(Locomotion("hopper", "native"), SHAPE[0]))
        learner = dppo.Update(config, policy, vector)
        one = jnp.ones(OBS)
        bundle = Bundle(params, MinMax(-one, one), MinMax(-jnp.ones(SHAPE[1]), jnp.ones(SHAPE[1])))
        state = dppo.init(jax.random.key(0), config, policy, bundle, vector, ())
        state = state.replace(env=(), episode=(), normalizer=normalize.create(OBS))
        step = jax.jit(lambda state, batch, key: learner.learn(state, batch, key)[:2])
        return lambda: jax.block_until_ready(step(state, batch, jax.random.key(1)))

    def peer():
        from benchmarks.torch_peer import Learner

        return Learner(policy, params, config, batch, TUNED).step

    builds = {"jax": ours, "torch": peer, "limit": lambda: gradient_limit(params, pairs)}
    return [
        Case(
            name,
            builds[name],
            pairs,
            "pairs",
            # Forward and backward of the actor; the critic is not counted.
            lambda name=name: {"flop_per_call": 3 * counted(name, params) * pairs},  # type: ignore[misc]
            torch_missing() if name == "torch" else None,
        )
        for name in cases
    ]
