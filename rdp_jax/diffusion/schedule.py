"""Noise schedule and reverse steps of a denoising diffusion policy, as tables computed once in float64.

Both samplers, DDPM (Ho et al. 2020) and DDIM (Song et al. 2021), take reverse steps of one form: from the predicted noise
follows the clipped estimate `x0`, and the next sample is Gaussian with mean `p x0 + q x` and a known standard deviation.  A
`Table` holds `p`, `q` and the rest for each step that a sampler visits, so sampling and likelihood are written once.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from flax import struct

from rdp_jax.config import ConfigError, chosen, ranged

OFFSET = 0.008  # s of the cosine schedule
MAX_BETA = 0.999
EVEN = 0.75  # share of the process that the steps of ddim must reach over
EVALUATION_STD = 1e-3  # least std of a deterministic DDPM step other than the last


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process of a policy and how it is sampled."""

    steps: int = ranged(20, 1, 1000, "denoising steps K that the network is trained on")
    sampler: str = chosen("ddpm", ("ddpm", "ddim"), "ddpm visits all K steps, ddim an even selection of them")
    ddim_steps: int = ranged(5, 1, 1000, "steps that ddim visits")
    eta: float = ranged(
        1.0, 0.0, 1.0, "noise of ddim while exploring: 0 none, 1 as much as ddpm; evaluation takes step_noise of it"
    )
    clip_x0: float = ranged(1.0, 1e-3, 1e3, "bound of the estimated clean sample, in normalised action units")
    min_std: float = ranged(
        0.1, 1e-4, 1.0, "least std of a step while exploring, in sampling and log-probability alike"
    )
    noise_clip: float = ranged(
        3.0, 0.1, 1e3, "bound of the standard normal noise of each step (not of the first sample)"
    )
    # Not in the reference (`rdp_jax.diffusion.smooth`).  The network knows the sampler's own noise, which stays as it is.
    correlation: float = ranged(
        0.0, 0.0, 0.999, "correlation of two actions that follow each other in a chunk, where the noise is min_std's"
    )
    first_std: float = ranged(
        1.0, 0.0, 10.0, "std of the first sample; 1 is what imitation trains, less gives up variety for reliability"
    )
    # Not in the reference, where it is 0.  What learned with noise may have come to need it (docs/refine.md).
    step_noise: float = ranged(
        0.0, 0.0, 1.0, "share of the exploration noise (eta, min_std) of each step that is kept in evaluation and use"
    )

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.sampler == "ddim" and self.ddim_steps > self.steps:
            raise ConfigError("ddim_steps", self.ddim_steps, f"1 .. {self.steps} (steps)")
        # Of the noise that the first sample is, a selection that begins in the middle of the process takes too little away.
        if self.sampler == "ddim" and self.steps // self.ddim_steps * self.ddim_steps < EVEN * self.steps:
            allowed = f"a divisor of steps={self.steps}, or a number whose multiple ends in the last quarter of them"
            raise ConfigError("ddim_steps", self.ddim_steps, allowed)

    @property
    def visited(self) -> int:
        """Reverse steps of one sample."""
        return self.steps if self.sampler == "ddpm" else self.ddim_steps


@struct.dataclass
class Table:
    """Reverse steps in the order in which they are visited, noisiest first; each field `(S,)`.

    Attributes:
      t: int32 step index that the network is told.
      recip, recip_m1: `x0 = recip x - recip_m1 eps`.
      p, q: mean of the next sample, `p x0 + q x`.
      std: its standard deviation, floored as the mode demands.
      rho: correlation of the noise along a chunk.
    """

    t: np.ndarray
    recip: np.ndarray
    recip_m1: np.ndarray
    p: np.ndarray
    q: np.ndarray
    std: np.ndarray
    rho: np.ndarray

    def part(self, first: int | None = None, last: int | None = None) -> Table:
        """The steps `first:last`."""
        return Table(**{field.name: getattr(self, field.name)[first:last] for field in dataclasses.fields(self)})

    def __len__(self) -> int:
        return self.t.shape[0]


def cosine_betas(steps: int) -> np.ndarray:
    """`(K,)` float64 betas of the cosine schedule (Nichol and Dhariwal 2021)."""
    f = np.cos((np.arange(steps + 1, dtype=np.float64) / steps + OFFSET) / (1.0 + OFFSET) * np.pi / 2.0) ** 2
    return np.clip(1.0 - f[1:] / f[:-1], 0.0, MAX_BETA)


def alpha_bars(steps: int) -> np.ndarray:
    """`(K,)` float64: share of the signal's variance left after each forward step."""
    return np.cumprod(1.0 - cosine_betas(steps))


def explore(config: DiffusionConfig) -> Table:
    """Steps with exploration noise: every one at least `min_std`, the last included."""
    table = _ddpm(config) if config.sampler == "ddpm" else _ddim(config, config.eta)
    # The mean keeps the unfloored std; only the noise grows (and with it the density: what is sampled is what is scored).
    floored = table["std"] < config.min_std
    return _pack(table, np.maximum(table["std"], config.min_std), np.where(floored, config.correlation, 0.0))


def evaluate(config: DiffusionConfig) -> Table:
    """Steps with the share `step_noise` of the exploration noise.  With none of it DDIM is deterministic given the first sample;
    DDPM is only in its last step.  With all of it they are those of `explore`."""
    if config.step_noise:
        share = config.step_noise
        return explore(dataclasses.replace(config, eta=share * config.eta, min_std=share * config.min_std))
    if config.sampler == "ddim":
        return _pack(_ddim(config, 0.0), np.zeros(config.ddim_steps))
    table = _ddpm(config)
    std = np.maximum(table["std"], EVALUATION_STD)
    std[-1] = 0.0
    return _pack(table, std)


def _pack(table: dict[str, np.ndarray], std: np.ndarray, rho: np.ndarray | None = None) -> Table:
    fields = {name: table[name].astype(np.float32) for name in ("recip", "recip_m1", "p", "q")}
    rho = np.zeros(std.shape) if rho is None else rho
    return Table(t=table["t"].astype(np.int32), std=std.astype(np.float32), rho=rho.astype(np.float32), **fields)


def _ddpm(config: DiffusionConfig) -> dict[str, np.ndarray]:
    """All steps, float64, latest first; `std` of the true posterior."""
    beta, bar = cosine_betas(config.steps), alpha_bars(config.steps)
    before = np.concatenate([[1.0], bar[:-1]])
    table = {
        "t": np.arange(config.steps),
        "recip": np.sqrt(1.0 / bar),
        "recip_m1": np.sqrt(1.0 / bar - 1.0),
        "p": beta * np.sqrt(before) / (1.0 - bar),
        "q": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - bar),
        "std": np.sqrt(beta * (1.0 - before) / (1.0 - bar)),
    }
    return {name: x[::-1].copy() for name, x in table.items()}


def _ddim(config: DiffusionConfig, eta: float) -> dict[str, np.ndarray]:
    """The `j floor(K / S)` selection, float64, latest first.

    The noise estimate is recomputed from the clipped `x0`, `eps = (x - sqrt(a) x0) / sqrt(1 - a)`; with it the mean is linear in
    `x0` and `x` again.
    """
    t = np.arange(config.ddim_steps) * (config.steps // config.ddim_steps)
    a = alpha_bars(config.steps)[t]
    before = np.concatenate([[1.0], a[:-1]])
    std = eta * np.sqrt((1.0 - before) / (1.0 - a) * (1.0 - a / before))
    along = np.sqrt(np.maximum(0.0, 1.0 - before - std**2))
    table = {
        "t": t,
        "recip": np.sqrt(1.0 / a),
        "recip_m1": np.sqrt(1.0 / a - 1.0),
        "p": np.sqrt(before) - along * np.sqrt(a / (1.0 - a)),
        "q": along / np.sqrt(1.0 - a),
        "std": std,
    }
    return {name: x[::-1].copy() for name, x in table.items()}
