"""Networks of planners by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from rdp_jax.config import ConfigError, chosen, ranged
from rdp_jax.nets.denoiser import DenoiserMLP, check_residual
from rdp_jax.nets.dit import DiT
from rdp_jax.nets.recurrent import ChunkMLP, LSTMChunk
from rdp_jax.nets.unet import GROUPS, UNet

KINDS = ("dit", "mlp", "unet", "lstm", "gaussian-mlp")
GAUSSIAN = ("lstm", "gaussian-mlp")
"""Kinds that predict a chunk, not noise."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


FIELDS = {
    "dit": ("width", "depth", "heads"),
    "mlp": ("sizes", "time_dim", "activation"),
    "unet": ("width", "depth", "time_dim"),
    "lstm": ("sizes",),
    "gaussian-mlp": ("sizes",),
}
"""What of a `NetConfig` each kind has, beside `dtype`."""


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """The network of a planner."""

    kind: str = chosen("dit", KINDS, "dit, mlp, unet denoise a chunk; lstm and gaussian-mlp predict it at once")
    sizes: tuple[int, ...] = ranged(
        (512, 512, 512), 1, 65536, "hidden widths of mlp and gaussian-mlp; of lstm the first"
    )
    time_dim: int = ranged(16, 4, 4096, "width of the step's embedding of mlp and unet")
    activation: str = chosen("relu", ("relu", "mish", "elu"), "of the mlp denoiser")
    width: int = ranged(128, 8, 8192, "token width of dit, channels of unet")
    depth: int = ranged(3, 1, 64, "blocks of dit, levels of unet")
    heads: int = ranged(4, 1, 256, "attention heads of dit")
    dtype: str = chosen("float32", tuple(DTYPES), "of the products; parameters and outputs are float32")

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.kind == "dit" and self.width % self.heads:
            raise ConfigError("heads", self.heads, f"a divisor of width={self.width}")
        if self.kind in ("mlp", "gaussian-mlp"):
            check_residual("sizes", self.sizes)
        if self.kind == "unet" and self.width % GROUPS:
            raise ConfigError("width", self.width, f"a multiple of {GROUPS} (groups that are normalised)")


def network(config: NetConfig, shape: tuple[int, int], history: int) -> Any:
    """The flax module for chunks `shape = (Ta, Da)` and `history` observation frames."""
    dtype = DTYPES[config.dtype]
    if config.kind == "mlp":
        return DenoiserMLP(config.sizes, config.time_dim, config.activation, dtype)
    if config.kind == "dit":
        return DiT(width=config.width, depth=config.depth, heads=config.heads, history=history, dtype=dtype)
    if config.kind == "unet":
        return UNet(width=config.width, depth=config.depth, time_dim=config.time_dim, dtype=dtype)
    if config.kind == "lstm":
        return LSTMChunk(sizes=config.sizes, shape=shape, history=history, dtype=dtype)
    return ChunkMLP(sizes=config.sizes, shape=shape, dtype=dtype)
