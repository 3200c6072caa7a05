"""A diffusion policy: a denoising network and the tables of its two ways to sample, frozen and fine-tuned steps kept apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax.config import ConfigError
from rdp_jax.diffusion import schedule, smooth
from rdp_jax.diffusion.sample import Predict, denoise, log_prob_elements, step_mean
from rdp_jax.diffusion.schedule import DiffusionConfig, Table

Array = jax.Array


@struct.dataclass
class Pairs:
    """Rows of the inner decision process: one fine-tuned step each.

    Attributes:
      obs: `(N, Do)` normalised observation.
      x: `(N, Ta, Da)` input of the step; x_next: `(N, Ta, Da)` what was sampled.
      k: `(N,)` int32 inner step, 0 the noisiest of the K' fine-tuned ones.
    """

    obs: Array
    x: Array
    x_next: Array
    k: Array


class DiffusionPolicy:
    """Pure functions over parameters; observations normalised, chunks in normalised action units (about [-1, 1]).

    Args:
      net: flax module `(x (B, Ta, Da), t (B,), obs (B, Do)) -> (B, Ta, Da)`.
      config: the diffusion process.
      shape: `(Ta, Da)`.
    """

    def __init__(self, net: Any, config: DiffusionConfig, shape: tuple[int, int]):
        self.net, self.config = net, config
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.exploring, self.evaluating = schedule.explore(config), schedule.evaluate(config)

    def init(self, key: Array, obs_dim: int) -> Any:
        """Fresh parameters for observations of width `obs_dim`."""
        return self.net.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1, jnp.int32), jnp.zeros((1, obs_dim)))[
            "params"
        ]

    def predict(self, params: Any, obs: Array) -> Predict:
        """The network at `obs (B, Do)`."""
        return lambda x, t: self.net.apply({"params": params}, x, t, obs)

    def loss(self, params: Any, obs: Array, chunk: Array, key: Array) -> Array:
        """Noise-prediction loss of each row, `(B,)`: mean square over the chunk at a random step (DPPO reference, section 1).

        Row `i` draws from `fold_in(key, i)`, so a row's noise does not depend on how many rows a device holds.
        """
        t, noise = self.corruption(key, jnp.arange(chunk.shape[0]))
        return self.loss_at(params, obs, chunk, t, noise)

    def corruption(self, key: Array, rows: Array) -> tuple[Array, Array]:
        """Steps `(B,)` and noise `(B, Ta, Da)` for the rows with these global indices."""

        def one(i):
            t_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
            return jax.random.randint(t_key, (), 0, self.config.steps), jax.random.normal(noise_key, self.shape)

        return jax.vmap(one)(rows)

    def loss_at(self, params: Any, obs: Array, chunk: Array, t: Array, noise: Array) -> Array:
        """As `loss`, with steps `t (B,)` and `noise (B, Ta, Da)` given."""
        bar = jnp.asarray(schedule.alpha_bars(self.config.steps), jnp.float32)[t][:, None, None]
        x = jnp.sqrt(bar) * chunk + jnp.sqrt(1.0 - bar) * noise
        return jnp.mean(jnp.square(self.predict(params, obs)(x, t) - noise), axis=(1, 2))

    # --- sampling --------------------------------------------------------------------------------------------------------

    def noise(self, key: Array, rows: int) -> tuple[Array, Array]:
        """First sample `(B, Ta, Da)`, normal with std `first_std`, and standard normal step noise `(S, B, Ta, Da)`."""
        x, rest = self._standard(key, rows)
        return self.config.first_std * x, rest

    def _standard(self, key: Array, rows: int) -> tuple[Array, Array]:
        """As `noise`, both standard normal."""
        first, rest = jax.random.split(key)
        x = jax.random.normal(first, (rows, *self.shape))
        return x, jax.random.normal(rest, (self.config.visited, rows, *self.shape))

    def sample(self, params: Any, obs: Array, key: Array, explore: bool = False) -> Array:
        """Chunks `(B, Ta, Da)` for `obs (B, Do)` with one set of parameters for all steps."""
        x, noise = self.noise(key, obs.shape[0])
        return self.sample_from(params, obs, x, noise, explore)

    def row_noise(self, keys: Array, first_std: Array | None = None) -> tuple[Array, Array]:
        """As `noise`, row `i` drawn from `keys[i]` alone: the same row on any number of devices.

        `first_std ()` stands for the configuration's, as data: one program then serves all of them.
        """
        x, noise = jax.vmap(lambda key: self._standard(key, 1))(keys)
        std = self.config.first_std if first_std is None else first_std
        return std * x[:, 0], jnp.moveaxis(noise[:, :, 0], 0, 1)

    @property
    def draws(self) -> dict[str, tuple[int, ...]]:
        """What a chunk without exploration is drawn from, standard normal: name -> shape of one row."""
        later = {"step_noise": (self.config.visited, *self.shape)} if self.evaluating.std.any() else {}
        return {"noise": self.shape, **later}

    def row_draws(self, keys: Array) -> tuple[Array, ...]:
        """What `draws` names, `(B, ...)`, drawn as `row_noise` draws it."""
        x, steps = jax.vmap(lambda key: self._standard(key, 1))(keys)
        return (x[:, 0], steps[:, :, 0])[: len(self.draws)]

    def row_noise_of(self, rows: int, noise: Array, step_noise: Array | None = None) -> tuple[Array, Array]:
        """As `row_noise`, of what `draws` names: `noise (B, Ta, Da)`, and `step_noise (B, S, Ta, Da)` where that is drawn."""
        if step_noise is None:
            return self.config.first_std * noise, jnp.zeros((self.config.visited, rows, *self.shape))
        return self.config.first_std * noise, jnp.moveaxis(step_noise, 0, 1)

    def sample_rows(self, params: Any, obs: Array, noise: tuple[Array, Array], explore: bool = False) -> Array:
        """As `sample`, with `noise` of `row_noise`."""
        return self.sample_from(params, obs, *noise, explore)

    def sample_from(self, params: Any, obs: Array, x: Array, noise: Array, explore: bool = False) -> Array:
        """As `sample`, from the given first sample and step noise."""
        table, noise = self._mode(explore, noise)
        return self._denoise(self.predict(params, obs), table, x, noise)[0]

    def sample_split(
        self, base: Any, tuned: Any, tuned_steps: int, obs: Array, noise: tuple[Array, Array], explore: bool
    ) -> tuple[Array, Array]:
        """The first `S - K'` steps by `base`, the last K' by `tuned`; each network runs only where it is meant to.

        `noise` as of `row_noise`.

        Returns:
          The chunk `(B, Ta, Da)`, and the chain `(B, K' + 1, Ta, Da)` from the first fine-tuned step's input to the chunk.
        """
        x, steps = noise
        table, steps = self._mode(explore, steps)
        first = len(table) - self.check_tuned(tuned_steps)
        x, _ = self._denoise(self.predict(base, obs), table.part(0, first), x, steps[:first])
        last, chain = self._denoise(self.predict(tuned, obs), table.part(first), x, steps[first:])
        return last, jnp.moveaxis(jnp.concatenate([x[None], chain]), 0, 1)

    def check_tuned(self, tuned_steps: int) -> int:
        """`tuned_steps` if this policy has that many; else raises `ConfigError`."""
        if not 1 <= tuned_steps <= self.config.visited:
            raise ConfigError("tuned_steps", tuned_steps, f"1 .. {self.config.visited} (visited denoising steps)")
        return tuned_steps

    def peak(self, tuned_steps: int, quiet_steps: int) -> float:
        """Largest log density that an element of a scored step can have."""
        scored = self.exploring.part(len(self.exploring) - tuned_steps, len(self.exploring) - quiet_steps)
        return max(map(smooth.peak, scored.std, scored.rho))

    def _mode(self, explore: bool, noise: Array) -> tuple[Table, Array]:
        """The steps of sampling with or without exploration, and their noise from independent `noise (S, B, Ta, Da)`."""
        table = self.exploring if explore else self.evaluating
        return table, smooth.colour(noise, table.rho) if table.rho.any() else noise

    def _denoise(self, predict: Predict, table: Table, x: Array, noise: Array) -> tuple[Array, Array]:
        return denoise(predict, table, x, noise, self.config.clip_x0, self.config.noise_clip)

    # --- likelihood ------------------------------------------------------------------------------------------------------

    def score(self, params: Any, tuned_steps: int, pairs: Pairs) -> tuple[Array, Array, Array]:
        """Log density of each element `(N, Ta, Da)` of what was sampled, its mean `(N, Ta, Da)` and std `(N,)`.

        Where exploration noise is correlated, an element's density is that given the earlier actions of its chunk, and means are
        whitened: divergences of two of them over the std are right as they stand.

        The one function behind sampling statistics and loss: with unchanged parameters it returns the same bits.
        """

        def rows(table: Any) -> Any:
            return jax.tree.map(lambda f: jnp.asarray(f)[pairs.k], table)

        step = rows(self.exploring.part(len(self.exploring) - tuned_steps))
        mean = step_mean(self.predict(params, pairs.obs), step, pairs.x, self.config.clip_x0)
        if not self.config.correlation:
            return log_prob_elements(pairs.x_next, mean, step.std), mean, step.std
        elements, mean = smooth.log_prob_elements(pairs.x_next, mean, step.std, step.rho)
        return elements, mean, step.std
