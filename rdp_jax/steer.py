"""Policies as functions of their initial noise, and actors that choose it: what DSRL steers, and what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rdp_jax.algos.dsrl import BasePolicy, DSRLConfig, Networks, to_noise
from rdp_jax.callback import on_host
from rdp_jax.config import ConfigError
from rdp_jax.diffusion.policy import DiffusionPolicy
from rdp_jax.nets import build
from rdp_jax.planner import Bundle, Dims, Planner, PlannerConfig, to_chunk, to_obs

Array = jax.Array


class PlannerBase:
    """A diffusion planner as `rdp_jax.algos.dsrl.BasePolicy`: deterministic DDIM from the noise to the chunk.

    Args:
      config, dims: of the planner.
      ddim_steps: steps of the grid; a planner sampled by DDPM is steered through that many of its own.

    Raises `ConfigError` for planners without noise.
    """

    def __init__(self, config: PlannerConfig, dims: Dims, ddim_steps: int | None = None):
        if config.net.kind in build.GAUSSIAN:
            raise ConfigError("planner", config.net.kind, "a diffusion planner: dit, mlp, unet")
        steps = ddim_steps or min(config.diffusion.ddim_steps, config.diffusion.steps)
        if steps > config.diffusion.steps:
            raise ConfigError("ddim_steps", steps, f"1 .. {config.diffusion.steps} (the planner's own steps)")
        diffusion = dataclasses.replace(config.diffusion, sampler="ddim", ddim_steps=steps, step_noise=0.0)
        self.config, self.dims = config, dims
        # A planner that acts without noise would have its critics learn from nothing else than that.
        self.noise_shape, self.noise_std = (config.horizon, dims.action), config.diffusion.first_std or 1.0
        self.chunk_dim = config.executed * dims.action
        net = build.network(config.net, self.noise_shape, config.history)
        self.policy = DiffusionPolicy(net, diffusion, self.noise_shape)

    def see(self, params: Bundle, obs: Array) -> Array:
        """The normalised observation."""
        return to_obs(params, obs)

    def sample(self, params: Bundle, obs: Array, noise: Array) -> Array:
        """Raw `obs (B, H * frame)`, `noise (B, Ta, Da)` -> normalised chunk `(B, Te * Da)`."""
        still = jnp.zeros((self.policy.config.visited, *noise.shape))
        chunk = self.policy.sample_from(params.weights, to_obs(params, obs), noise, still)
        return chunk[:, : self.config.executed].reshape(noise.shape[0], -1)

    def to_env(self, params: Bundle, chunk: Array) -> Array:
        """Undoes the normalisation."""
        return to_chunk(params, chunk.reshape(chunk.shape[0], self.config.executed, -1))


class FunctionBase:
    """Any function outside JAX as `BasePolicy`: an ONNX session, a process, a robot vendor's library.

    Args:
      function: `(obs (B, Do), noise (B, Ta, Da)) -> chunk (B, n)`, NumPy in and out, float32.
      noise_shape: `(Ta, Da)`.
      chunk_dim: n; the chunk is the environment's action.
      scale: what divides chunks before the critics see them.
    """

    noise_std = 1.0

    def __init__(
        self,
        function: Callable[[np.ndarray, np.ndarray], np.ndarray],
        noise_shape: tuple[int, int],
        chunk_dim: int,
        scale: float = 1.0,
    ):
        self.function, self.noise_shape, self.chunk_dim, self.scale = function, noise_shape, chunk_dim, scale

    def see(self, params: Any, obs: Array) -> Array:
        """The observation itself."""
        del params
        return obs

    def sample(self, params: Any, obs: Array, noise: Array) -> Array:
        """Calls the function on the host."""
        del params
        shape = jax.ShapeDtypeStruct((obs.shape[0], self.chunk_dim), jnp.float32)

        def call(obs, noise):
            return np.asarray(self.function(obs, noise), np.float32) / self.scale

        return on_host(call, shape, obs, noise)

    def to_env(self, params: Any, chunk: Array) -> Array:
        """Undoes the scale."""
        del params
        return chunk * self.scale


Choose = Callable[[Any, Array, Array], Array]
"""`(parameters, what is seen (B, D), keys (B,)) -> noise (B, Ta, Da)`."""


class NoiseActor:
    """A planner whose noise somebody chooses; runs where `rdp_jax.planner.Actor` runs.

    Args:
      planner: whose chunks; its weights come as the first argument of `act`.
      choose: the noise; its parameters come as the second one.
      ddim_steps: see `PlannerBase`.

    Raises `ConfigError` as that does, and for a planner that is fine-tuned in its last steps only.
    """

    def __init__(self, planner: Planner, choose: Choose, ddim_steps: int | None = None):
        if planner.tuned_steps:
            raise ConfigError(
                "planner", f"tuned_steps={planner.tuned_steps}", "one whose steps all run on the same weights"
            )
        self.config, self.dims, self.choose = planner.config, planner.dims, choose
        self.base = PlannerBase(planner.config, planner.dims, ddim_steps)

    def act(self, bundle: Bundle, params: Any, obs: Array, keys: Array, explore: bool = False) -> Array:
        """`obs (B, H * frame)`, `keys (B,)` -> `(B, Te * Da)`."""
        del explore
        noise = self.choose(params, self.base.see(bundle, obs), keys)
        return self.base.to_env(bundle, self.base.sample(bundle, obs, noise))

    @property
    def draws(self) -> dict[str, tuple[int, ...]]:
        """See `rdp_jax.planner.Actor.draws`; the noise is chosen, not drawn."""
        return {}

    def act_on(self, bundle: Bundle, params: Any, obs: Array) -> Array:
        """See `rdp_jax.planner.Actor.act_on`; for choices that draw nothing, as a learned one's mean does."""
        return self.act(bundle, params, obs, jnp.broadcast_to(jax.random.key(0), obs.shape[:1]))


@struct.dataclass
class Fixed:
    """A choice of noise that looks at nothing: `std f(eps) + constant`, f the identity or (`tanh ()` bool) the tanh.

    `constant` is `(Ta, Da)`, or `(B, Ta, Da)` for a row of its own in each environment.  All of them share one compiled program.
    """

    std: Array
    tanh: Array
    constant: Array


def fixed(shape: tuple[int, int], std: float = 1.0, tanh: bool = False, constant: Array | None = None) -> Fixed:
    """Standard normal noise by default, under which most planners act; shrunk noise; none at all (`std` 0); a golden ticket
    (2603.15757: a constant)."""
    return Fixed(jnp.float32(std), jnp.array(tanh), jnp.zeros(shape) if constant is None else constant)


def choose_fixed(params: Fixed, seen: Array, keys: Array) -> Array:
    """The `Choose` of `Fixed`."""
    shape = params.constant.shape[-2:]
    eps = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    noise = params.std * jnp.where(params.tanh, jnp.tanh(eps), eps)
    return noise + jnp.broadcast_to(params.constant, (seen.shape[0], *shape))


def learned(config: DSRLConfig, base: BasePolicy, critic_dim: int, stochastic: bool = False) -> Choose:
    """The actor of DSRL; its parameters are those of `rdp_jax.algos.dsrl.acting`."""
    nets = Networks(config, base, critic_dim)

    def choose(params: Any, seen: Array, keys: Array) -> Array:
        noise = jax.vmap(lambda k: jax.random.normal(k, (nets.n,)))(keys) if stochastic else None
        return to_noise(config, base, nets.act(params, seen, noise, params.get("share", 1.0))[0])

    return choose
