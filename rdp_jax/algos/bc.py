"""Imitation: a planner is trained on windows of demonstrations by its own loss (noise prediction, or squared error).

The data set lies on the device whole; one call of `Update` is a number of epochs, compiled once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import guard, parallel
from rdp_jax.config import ConfigError, chosen, ranged, validate
from rdp_jax.data.episodes import DataError

Array = jax.Array


class Imitator(Protocol):
    """What is trained: a `DiffusionPolicy` or a `GaussianPolicy`."""

    def init(self, key: Array, obs_dim: int) -> Any: ...

    def corruption(self, key: Array, rows: Array) -> tuple[Array, ...] | tuple[()]: ...

    def loss_at(self, params: Any, obs: Array, chunk: Array, *drawn: Array) -> Array: ...


@dataclasses.dataclass(frozen=True)
class BCConfig:
    """Settings of imitation."""

    epochs_per_call: int = ranged(5, 1, 10_000, "epochs per iteration, all in one compiled call")
    batch: int = ranged(256, 1, 1_000_000, "windows per gradient step, over all devices")
    lr: float = ranged(1e-3, 1e-8, 1.0, "first learning rate after the warm-up")
    lr_min: float = ranged(1e-4, 0.0, 1.0, "learning rate at the end of the cosine")
    warmup_steps: int = ranged(100, 0, 10**7, "gradient steps of linear warm-up")
    total_steps: int = ranged(20_000, 1, 10**9, "gradient steps over which the learning rate falls")
    weight_decay: float = ranged(1e-6, 0.0, 1.0, "decoupled weight decay")
    ema: float = ranged(
        0.995, 0.0, 1.0, "decay of the averaged weights per gradient step; shorter at first, see `ema_decay`"
    )
    max_grad_norm: float = ranged(1.0, 1e-6, 1e9, "largest gradient norm")
    matmul_precision: str = chosen("highest", ("default", "high", "highest"), "precision of float32 products")

    def check(self) -> None:
        """Fields that must fit each other."""
        if self.lr_min > self.lr:
            raise ConfigError("lr_min", self.lr_min, f"at most lr={self.lr}")


@struct.dataclass
class Data:
    """Windows as the loss reads them, on the device: `obs (N, Do)` and `chunk (N, Ta, Da)`, both normalised."""

    obs: Array
    chunk: Array


@struct.dataclass
class LearnerState:
    """Everything a run consists of.

    Attributes:
      params: weights that learn; ema: their average, which is what a planner acts with.
      opt_state: moments of AdamW.
      key: random key of the run: iteration `i` folds `i` into it.
      iteration: `()` int32; step `()` int32 gradient steps; skipped `()` int32 those refused because not finite.
    """

    params: Any
    ema: Any
    opt_state: Any
    key: Array
    iteration: Array
    step: Array
    skipped: Array


def ema_decay(config: BCConfig, step: Array) -> Array:
    """Decay after `step` gradient steps: `(1 + n) / (10 + n)` until that passes the configured one.

    The released DPPO code copies for 20 epochs and then averages every tenth batch; counting gradient steps from the first makes
    the average mean the same for any data size.
    """
    return jnp.minimum(config.ema, (1.0 + step) / (10.0 + step))


def _schedule(config: BCConfig):
    return optax.warmup_cosine_decay_schedule(
        init_value=config.lr_min,
        peak_value=config.lr,
        warmup_steps=min(config.warmup_steps, config.total_steps - 1),
        decay_steps=config.total_steps,
        end_value=config.lr_min,
    )


def _optimizer(config: BCConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(_schedule(config), weight_decay=config.weight_decay),
    )


def init(key: Array, config: BCConfig, policy: Imitator, obs_dim: int) -> LearnerState:
    """First state of a run.  Raises `ConfigError`."""
    validate(config)
    init_key, run_key = jax.random.split(key)
    params = policy.init(init_key, obs_dim)
    return parallel.strong(
        LearnerState(
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=_optimizer(config).init(params),
            key=run_key,
            iteration=jnp.int32(0),
            step=jnp.int32(0),
            skipped=jnp.int32(0),
        )
    )


class Update:
    """`epochs_per_call` epochs: `(LearnerState, (train, validation)) -> (LearnerState, metrics)`; the state is donated.

    An epoch is a fresh permutation of the training windows; its last, incomplete batch is dropped (all windows form one batch
    if there are fewer than `batch`).  The validation loss is that of the averaged weights, under the same noise at every
    iteration, so that its curve shows the weights and not the noise.

    Args:
      config: settings.
      policy: what is trained.
      mesh: devices; every batch is split over them.  Raises `ConfigError` where it does not divide.
    """

    def __init__(self, config: BCConfig, policy: Imitator, mesh: Mesh | None = None):
        validate(config)
        self.config, self.policy, self.mesh = config, policy, mesh
        self.axis = parallel.axis_of(mesh)
        if config.batch % parallel.size(mesh):
            raise ConfigError("batch", config.batch, f"a multiple of {parallel.size(mesh)} devices")

        def update(state, data):
            with jax.default_matmul_precision(config.matmul_precision):
                return self.iterate(state, *data)

        self.compiled: Any = parallel.jit(update, mesh, (P(), P()), (P(), P()), donate=(0,))

    def __call__(self, state: LearnerState, data: tuple[Data, Data]) -> tuple[LearnerState, dict[str, Array]]:
        return self.compiled(state, data)

    def cache_size(self) -> int:
        """Compiled versions; one in a healthy run."""
        return self.compiled._cache_size()

    def iterate(self, state: LearnerState, train: Data, validation: Data):
        size = train.obs.shape[0]
        devices = parallel.size(self.mesh)
        if size < devices:
            raise DataError(f"{size} windows of demonstrations for {devices} devices: at least one for each is needed")
        batch = min(self.config.batch, size - size % devices)
        key = jax.random.fold_in(state.key, state.iteration)

        def step(carry, inputs):
            index, step_key = inputs
            return self._step(carry, train, index, step_key)

        def epoch(carry, epoch_key):
            order_key, noise_key = jax.random.split(epoch_key)
            order = jax.random.permutation(order_key, size)[: size // batch * batch].reshape(-1, batch)
            carry, loss = jax.lax.scan(step, carry, (order, jax.random.split(noise_key, order.shape[0])))
            return carry, loss

        state, loss = jax.lax.scan(epoch, state, jax.random.split(key, self.config.epochs_per_call))
        state = state.replace(iteration=state.iteration + 1)
        metrics = {
            "loss/train": loss[-1].mean(),
            "loss/validation": self._mean_loss(state.ema, validation),
            "lr": jnp.asarray(_schedule(self.config)(state.step), jnp.float32),
            "guard/skipped_updates": state.skipped.astype(jnp.float32),
        }
        return state, metrics

    def _step(self, state: LearnerState, train: Data, index: Array, key: Array):
        """One gradient step on the windows `index (batch,)`, this device's share of them."""
        rows = parallel.local_indices(index.shape[0], self.mesh)
        mine = index[rows]
        drawn = self.policy.corruption(key, rows)

        def loss_fn(params):
            return self.policy.loss_at(params, train.obs[mine], train.chunk[mine], *drawn).mean()

        loss, grads = parallel.pmean(jax.value_and_grad(loss_fn)(state.params), self.axis)
        finite = guard.all_finite((loss, grads))
        updates, opt_state = _optimizer(self.config).update(grads, state.opt_state, state.params)
        params = guard.choose(finite, optax.apply_updates(state.params, updates), state.params)
        decay = ema_decay(self.config, state.step)
        new = state.replace(
            params=params,
            ema=jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params),
            opt_state=guard.choose(finite, opt_state, state.opt_state),
            step=state.step + 1,
            skipped=state.skipped + ~finite,
        )
        return new, loss

    def _mean_loss(self, params: Any, data: Data) -> Array:
        """Over at most `16 * batch` windows, in blocks of a batch; NaN without any."""
        size, batch = data.obs.shape[0], self.config.batch
        if size == 0:
            return jnp.float32(jnp.nan)
        block = min(size, batch)
        count = min(size // block, 16)
        rows = jnp.arange(count * block).reshape(count, block)
        key = jax.random.key(0)

        def one(index):
            drawn = self.policy.corruption(key, index)
            return self.policy.loss_at(params, data.obs[index], data.chunk[index], *drawn).mean()

        return jax.lax.map(one, rows).mean()
