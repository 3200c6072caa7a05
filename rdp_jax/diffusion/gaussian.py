"""A Gaussian chunk policy with the interface of `DiffusionPolicy`: the baseline that DPPO is compared with.

Its chain has one step, from nothing to the chunk, so `rdp_jax.algos.dppo` fine-tunes it unchanged (`tuned_steps=1`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdp_jax.config import ConfigError, ranged
from rdp_jax.diffusion import smooth
from rdp_jax.diffusion.policy import Pairs
from rdp_jax.diffusion.sample import log_prob_elements

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """Standard deviation of a Gaussian chunk policy, per action in normalised units."""

    std: float = ranged(0.1, 1e-4, 1.0, "std while exploring")
    noise_clip: float = ranged(3.0, 0.1, 1e3, "bound of the standard normal noise")
    correlation: float = ranged(
        0.0, 0.0, 0.999, "correlation of the noise of two actions that follow each other in a chunk"
    )


class GaussianPolicy:
    """Mean chunk from a network, one fixed standard deviation.

    Args:
      net: flax module `obs (B, Do) -> (B, Ta, Da)`.
      config: its noise.
      shape: `(Ta, Da)`.
    """

    def __init__(self, net: Any, config: GaussianConfig, shape: tuple[int, int]):
        self.net, self.config = net, config
        self.shape: tuple[int, int] = (shape[0], shape[1])

    def init(self, key: Array, obs_dim: int) -> Any:
        """Fresh parameters for observations of width `obs_dim`."""
        return self.net.init(key, jnp.zeros((1, obs_dim)))["params"]

    def mean(self, params: Any, obs: Array) -> Array:
        """`(B, Do)` -> `(B, Ta, Da)`."""
        return self.net.apply({"params": params}, obs)

    def corruption(self, key: Array, rows: Array) -> tuple[()]:
        """Nothing is drawn for the loss."""
        del key, rows
        return ()

    def loss_at(self, params: Any, obs: Array, chunk: Array) -> Array:
        """Squared error of each row `(B,)`: the likelihood under a fixed std, up to constants."""
        return jnp.mean(jnp.square(self.mean(params, obs) - chunk), axis=(1, 2))

    def row_noise(self, keys: Array) -> Array:
        """Standard normal `(B, Ta, Da)`, one row per key."""
        return jax.vmap(lambda key: jax.random.normal(key, self.shape))(keys)

    @property
    def draws(self) -> dict[str, tuple[int, ...]]:
        """As of `DiffusionPolicy`: without exploration nothing is."""
        return {}

    def row_noise_of(self, rows: int) -> Array:
        """As `row_noise`, where it has no effect."""
        return jnp.zeros((rows, *self.shape))

    def sample(self, params: Any, obs: Array, key: Array, explore: bool = False) -> Array:
        """Chunks `(B, Ta, Da)`; the mean unless exploring."""
        mean = self.mean(params, obs)
        return mean + explore * self._noise(jax.random.normal(key, mean.shape))

    def sample_rows(self, params: Any, obs: Array, noise: Array, explore: bool = False) -> Array:
        """As `sample`, with `noise` of `row_noise`."""
        return self.mean(params, obs) + explore * self._noise(noise)

    def sample_split(
        self, base: Any, tuned: Any, tuned_steps: int, obs: Array, noise: Array, explore: bool
    ) -> tuple[Array, Array]:
        """The chunk, and the chain `(B, 2, Ta, Da)` whose first entry is empty."""
        del base
        self.check_tuned(tuned_steps)
        mean = self.mean(tuned, obs)
        chunk = mean + explore * self._noise(noise)
        return chunk, jnp.stack([jnp.zeros_like(chunk), chunk], axis=1)

    def _noise(self, noise: Array) -> Array:
        if self.config.correlation:
            noise = smooth.colour(noise[None], np.array([self.config.correlation]))[0]
        return self.config.std * jnp.clip(noise, -self.config.noise_clip, self.config.noise_clip)

    def check_tuned(self, tuned_steps: int) -> int:
        """1, the only chain there is; else raises `ConfigError`."""
        if tuned_steps != 1:
            raise ConfigError("tuned_steps", tuned_steps, "1 for a Gaussian policy")
        return tuned_steps

    def peak(self, tuned_steps: int, quiet_steps: int) -> float:
        """As of `DiffusionPolicy`."""
        del tuned_steps, quiet_steps
        return smooth.peak(self.config.std, self.config.correlation)

    def score(self, params: Any, tuned_steps: int, pairs: Pairs) -> tuple[Array, Array, Array]:
        """Log density of each element `(N, Ta, Da)`, mean (whitened, as of `DiffusionPolicy.score`), and std `(N,)`."""
        del tuned_steps
        mean = self.mean(params, pairs.obs)
        std = jnp.full(mean.shape[:1], self.config.std)
        if not self.config.correlation:
            return log_prob_elements(pairs.x_next, mean, std), mean, std
        rho = jnp.full(mean.shape[:1], self.config.correlation)
        elements, mean = smooth.log_prob_elements(pairs.x_next, mean, std, rho)
        return elements, mean, std
