"""A replay buffer on the device: a ring of rows, any pytree.  Over several devices each holds a share of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Replay:
    """Attributes:
    rows: pytree of `(capacity, ...)`.
    added: `(1,)` int32 rows added so far, at most twice the capacity (what counts is whether it is full, and where it goes on).
      Of several devices `(devices,)`, so that a checkpoint of another number of them is refused by its shape: their rings would
      be read as one.
    """

    rows: Any
    added: Array


def create(row: Any, capacity: int) -> Replay:
    """Empty, for rows like `row` (one row without a leading axis; arrays or shapes)."""
    return Replay(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), row), jnp.zeros(1, jnp.int32))


def capacity(replay: Replay) -> int:
    """Rows it can hold."""
    return jax.tree.leaves(replay.rows)[0].shape[0]


def size(replay: Replay) -> Array:
    """`()` rows it holds."""
    return jnp.minimum(replay.added[0], capacity(replay))


def add(replay: Replay, rows: Any) -> Replay:
    """Appends `(n, ...)` rows, over the oldest ones once it is full.  `n` may not exceed the capacity."""
    room = capacity(replay)
    n = jax.tree.leaves(rows)[0].shape[0]
    if n > room:
        raise ValueError(f"{n} rows at once, allowed: up to the capacity of {room}")
    index = (replay.added + jnp.arange(n)) % room
    stored = jax.tree.map(lambda old, new: old.at[index].set(new), replay.rows, rows)
    added = replay.added + n
    # The remainder and "full" are all that is ever read of it: it must not overflow in a long run.
    return Replay(stored, jnp.where(added >= 2 * room, added - room, added))


def sample(replay: Replay, key: Array, n: int) -> Any:
    """`n` rows, uniformly with replacement; zeros from an empty one."""
    index = jax.random.randint(key, (n,), 0, jnp.maximum(size(replay), 1))
    return jax.tree.map(lambda x: x[index], replay.rows)
