"""Minibatches that are the same sets of samples on any number of devices.

Environments form `G` fixed groups; each device holds whole groups, each group is shuffled by its own key and
gives an equal share to every minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rdp_jax import parallel

Array = jax.Array


def to_groups(tree: Any, groups: int) -> Any:
    """`(T, B, ...)` -> `(groups, T * B / groups, ...)` for this device's `groups`."""

    def leaf(x):
        steps, envs = x.shape[:2]
        x = x.reshape(steps, groups, envs // groups, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0).reshape(groups, steps * (envs // groups), *x.shape[3:])

    return jax.tree.map(leaf, tree)


def permutations(key: Array, group_indices: Array, samples: int) -> Array:
    """`(groups, samples)` int32, one permutation for each global group index."""
    keys = parallel.fold_each(key, group_indices)
    return jax.vmap(lambda k: jax.random.permutation(k, samples))(keys)


def take(tree: Any, order: Array, minibatches: int) -> Any:
    """`(groups, N, ...)` in the order `(groups, N)` -> `(M, groups * N / M, ...)`."""
    # One gather per leaf, and no transpose of the data afterwards.
    flat = rows(order, minibatches)
    return jax.tree.map(lambda x: x.reshape(order.size, *x.shape[2:])[flat], tree)


def rows(order: Array, minibatches: int) -> Array:
    """`(M, groups * N / M)` row numbers of the flattened `(groups * N, ...)` data in the order `(groups, N)`."""
    groups, samples = order.shape
    flat = order + samples * jnp.arange(groups, dtype=order.dtype)[:, None]
    flat = flat.reshape(groups, minibatches, samples // minibatches)
    return flat.swapaxes(0, 1).reshape(minibatches, -1)


def in_blocks(function: Callable[[Any], Any], tree: Any, blocks: int) -> Any:
    """`function` of a tree of `(T, B, ...)`, run on `(T * B / blocks, ...)` at a time -> tree of `(T, B, ...)`."""
    lead = jax.tree.leaves(tree)[0].shape[:2]
    split = jax.tree.map(lambda x: x.reshape(blocks, -1, *x.shape[2:]), tree)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[2:]), jax.lax.map(function, split))
