"""Windows of demonstrations: `H` observation frames and the `Ta` actions from the newest of them on, never across an episode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rdp_jax.config import ConfigError
from rdp_jax.data.episodes import DataError, Episodes

Array = jax.Array
PAD_END = ("none", "repeat")
CONSTANT = 1e-3  # a column whose range is less than that carries no information


@struct.dataclass
class MinMax:
    """Bounds `lo`, `hi` of each column `(n,)`; normalised values lie in [-1, 1] on the data and are not clipped beyond it."""

    lo: Array
    hi: Array

    def normalize(self, x: Array) -> Array:
        """`(..., n)` environment units -> about [-1, 1]."""
        return 2.0 * (x - self.lo) / (self.hi - self.lo + 1e-6) - 1.0

    def unnormalize(self, x: Array) -> Array:
        """Inverse of `normalize` up to its 1e-6, as in the reference."""
        return (x + 1.0) / 2.0 * (self.hi - self.lo) + self.lo

    def tile(self, count: int) -> MinMax:
        """Bounds of `count` frames side by side."""
        return MinMax(jnp.tile(self.lo, count), jnp.tile(self.hi, count))


def bounds(x: np.ndarray) -> MinMax:
    """Bounds of the columns of `(N, n)`.  A constant column is widened by one to each side: it normalises to 0, and a value that
    strays later stays of order one instead of being divided by the smallest of numbers."""
    lo, hi = x.min(0).astype(np.float32), x.max(0).astype(np.float32)
    constant = hi - lo < CONSTANT
    return MinMax(jnp.asarray(np.where(constant, lo - 1.0, lo)), jnp.asarray(np.where(constant, hi + 1.0, hi)))


@struct.dataclass
class Windows:
    """Row numbers into the flat arrays: `obs (W, H)` oldest first, `action (W, Ta)`, int32."""

    obs: Array
    action: Array

    def __len__(self) -> int:
        return self.obs.shape[0]


def windows(
    episodes: Episodes, history: int, horizon: int, pad_end: str = "repeat", only: np.ndarray | None = None
) -> Windows:
    """All windows at stride one.

    Args:
      episodes: demonstrations.
      history: frames H; those before an episode's start repeat its first.
      horizon: actions Ta.
      only: numbers of the episodes to take windows of; all by default.
      pad_end: `none` keeps windows whose actions lie within the episode (DPPO); `repeat` goes on with the last action.

    Raises:
      DataError: there is no episode, or none is long enough.
    """
    if pad_end not in PAD_END:
        raise ConfigError("pad_end", pad_end, " | ".join(PAD_END))
    obs, action = [], []
    chosen = np.arange(len(episodes)) if only is None else only
    if not len(chosen):
        raise DataError("no episode to take windows of")
    for start, length in zip(episodes.starts[chosen], episodes.length[chosen]):
        count = length if pad_end == "repeat" else length - horizon + 1
        now = np.arange(max(count, 0))[:, None]
        obs.append(start + np.maximum(now + np.arange(1 - history, 1), 0))
        action.append(start + np.minimum(now + np.arange(horizon), length - 1))
    table = Windows(jnp.asarray(np.concatenate(obs), jnp.int32), jnp.asarray(np.concatenate(action), jnp.int32))
    if not len(table):
        raise DataError(f"no episode has {horizon} steps (the longest: {int(episodes.length.max())})")
    return table


def gather(obs: Array, action: Array, table: Windows) -> tuple[Array, Array]:
    """Flat `obs (N, frame)` and `action (N, Da)` -> `(W, H * frame)` and `(W, Ta, Da)`; works inside jit."""
    frames = obs[table.obs]
    return frames.reshape(frames.shape[0], -1), action[table.action]


def split(episodes: Episodes, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of training and validation episodes; a share of `validation` (rounded, never all) drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(episodes))
    count = min(round(validation * len(episodes)), len(episodes) - 1)
    return np.sort(order[count:]), np.sort(order[:count])
