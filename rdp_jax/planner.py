"""Planners: a policy over chunks, its weights, and the bounds that connect it to an environment's units; all in one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rdp_jax.checkpoint import CheckpointError, load_weights, save_weights
from rdp_jax.config import ConfigError, from_dict, ranged, to_dict, validate
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.gaussian import GaussianConfig, GaussianPolicy
from rdp_jax.diffusion.policy import DiffusionPolicy
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets import build

Array = jax.Array
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    """What a planner is; with `Dims` it rebuilds the network."""

    net: build.NetConfig = dataclasses.field(default_factory=build.NetConfig)
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    gaussian: GaussianConfig = dataclasses.field(default_factory=GaussianConfig)
    horizon: int = ranged(12, 1, 256, "predicted actions per chunk, Ta")
    executed: int = ranged(8, 1, 256, "executed actions per chunk, Te")
    history: int = ranged(8, 1, 64, "observation frames the planner sees, H")

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.executed > self.horizon:
            raise ConfigError("executed", self.executed, f"1 .. {self.horizon} (horizon)")
        halvings = 2 ** (self.net.depth - 1)
        if self.net.kind == "unet" and self.horizon % halvings:
            raise ConfigError(
                "horizon", self.horizon, f"a multiple of {halvings} (net.depth={self.net.depth} of a unet)"
            )


@dataclasses.dataclass(frozen=True)
class Dims:
    """Widths of the data: one observation frame and one action."""

    frame: int
    action: int


@struct.dataclass
class Bundle:
    """Everything that changes by learning or comes from data.

    Attributes:
      weights: parameters of the network.
      obs: bounds of the observation, `(H * frame,)`.
      action: bounds of one action, `(Da,)`.
    """

    weights: Any
    obs: MinMax
    action: MinMax


def make_policy(config: PlannerConfig, dims: Dims) -> DiffusionPolicy | GaussianPolicy:
    """The policy of this config.  Raises `ConfigError`."""
    validate(config)
    shape = (config.horizon, dims.action)
    net = build.network(config.net, shape, config.history)
    if config.net.kind in build.GAUSSIAN:
        return GaussianPolicy(net, config.gaussian, shape)
    return DiffusionPolicy(net, config.diffusion, shape)


def to_obs(bundle: Bundle, obs: Array) -> Array:
    """Raw observation `(..., H * frame)` -> what the network sees."""
    return bundle.obs.normalize(obs)


def to_chunk(bundle: Bundle, chunk: Array) -> Array:
    """Normalised actions `(B, Te, Da)` -> the environment's flat action `(B, Te * Da)`."""
    return bundle.action.unnormalize(chunk).reshape(chunk.shape[0], -1)


class Actor:
    """A planner as evaluation and the environment want it: raw observations in, flat environment actions out.

    Args:
      config, dims: of the planner.
      tuned_steps: how many of the last denoising steps run on `weights` of a fine-tuned planner while the others run on `base`; 0
        for one set of weights.
    """

    def __init__(self, config: PlannerConfig, dims: Dims, tuned_steps: int = 0):
        self.config, self.dims, self.tuned_steps = config, dims, tuned_steps
        self.policy: Any = make_policy(config, dims)
        if tuned_steps:
            self.policy.check_tuned(tuned_steps)

    def act(
        self,
        bundle: Bundle,
        base: Any,
        obs: Array,
        keys: Array,
        explore: bool = False,
        first_std: Array | None = None,
    ) -> Array:
        """`obs (B, H * frame)`, `keys (B,)` -> `(B, Te * Da)`.

        `base` is read only if some steps are tuned; `first_std ()`, of a diffusion planner, stands for the configuration's.
        """
        noise = self.policy.row_noise(keys, *(() if first_std is None else (first_std,)))
        return to_chunk(bundle, self.chunk(bundle, base, obs, noise, explore))

    def chunk(self, bundle: Bundle, base: Any, obs: Array, noise: Any, explore: bool = False) -> Array:
        """As `act`, with `noise` of the policy's `row_noise`: normalised actions `(B, Te, Da)`."""
        seen = to_obs(bundle, obs)
        if self.tuned_steps:
            chunk, _ = self.policy.sample_split(base, bundle.weights, self.tuned_steps, seen, noise, explore)
        else:
            chunk = self.policy.sample_rows(bundle.weights, seen, noise, explore)
        return chunk[:, : self.config.executed]

    # What an exported network is (`rdp_jax.export`), of every class that acts.

    @property
    def draws(self) -> dict[str, tuple[int, ...]]:
        """Standard normal inputs of `act_on` beside the observation: name -> shape of one row."""
        drawn: dict[str, tuple[int, ...]] = self.policy.draws
        return drawn

    def drawn(self, keys: Array) -> tuple[Array, ...]:
        """What `act` draws from `keys (B,)`, as `act_on` wants it."""
        found: tuple[Array, ...] = self.policy.row_draws(keys)
        return found

    def act_on(self, bundle: Bundle, base: Any, obs: Array, *drawn: Array) -> Array:
        """As `act` without exploration, of standard normal `drawn (B, ...)` as `draws` names them."""
        return to_chunk(bundle, self.chunk(bundle, base, obs, self.policy.row_noise_of(obs.shape[0], *drawn)))


@dataclasses.dataclass(frozen=True)
class Planner:
    """A planner file in memory; `base` are the frozen weights of a fine-tuned one's first steps, else `None`."""

    config: PlannerConfig
    dims: Dims
    bundle: Bundle
    base: Any
    tuned_steps: int
    metadata: dict[str, Any]

    def actor(self) -> Actor:
        """The functions that run it."""
        return Actor(self.config, self.dims, self.tuned_steps)


def save(path: Path | str, planner: Planner) -> None:
    """Writes a planner file (safetensors); its metadata rebuilds the network."""
    tree = {"bundle": planner.bundle, "base": planner.base} if planner.tuned_steps else {"bundle": planner.bundle}
    described = {
        "format": FORMAT,
        "planner": to_dict(planner.config),
        "dims": dataclasses.asdict(planner.dims),
        "tuned_steps": planner.tuned_steps,
    }
    save_weights(path, tree, {**planner.metadata, **described})


def load(path: Path | str) -> Planner:
    """Reads a planner file.  Raises `CheckpointError` if it is missing, damaged, of another format, or not a planner."""
    tree, metadata = load_weights(path)
    if metadata.get("format") != FORMAT or "planner" not in metadata:
        raise CheckpointError(f"{path} is no planner of format {FORMAT}: metadata holds {sorted(metadata)}")
    try:
        config = from_dict(PlannerConfig, metadata["planner"])
        dims = Dims(**metadata["dims"])
        raw = tree["bundle"]
        bundle = Bundle(raw["weights"], MinMax(**raw["obs"]), MinMax(**raw["action"]))
        tuned_steps = int(metadata.get("tuned_steps", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged planner: {error}") from error
    wanted = jax.eval_shape(lambda: make_policy(config, dims).init(jax.random.key(0), config.history * dims.frame))
    shapes = jax.tree.map(lambda x: x.shape, wanted)
    for weights in (bundle.weights, *([tree.get("base")] if tuned_steps else [])):
        if jax.tree.map(jnp.shape, weights) != shapes:
            raise CheckpointError(f"{path}: weights do not fit the network that the file describes")
    return Planner(config, dims, bundle, tree.get("base"), tuned_steps, metadata)
