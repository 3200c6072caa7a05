"""Numbers that must not lie: masks and counters for non-finite values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def _floats(tree: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def all_finite(tree: Any) -> Array:
    """`()` bool, every float of the tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in _floats(tree)] or [jnp.array(True)]))


def finite_rows(tree: Any) -> Array:
    """`(B,)` bool, for a tree of `(B, ...)`: every float of that row is finite."""
    leaves = _floats(tree)
    return jnp.stack([jnp.isfinite(x).reshape(x.shape[0], -1).all(1) for x in leaves]).all(0)


def mask_rows(mask: Array, tree: Any) -> Any:
    """Rows of a tree of `(B, ...)` where `mask (B,)` holds, zeros elsewhere (also where they were NaN)."""
    return jax.tree.map(lambda x: where_rows(mask, x, jnp.zeros_like(x)), tree)


def where_rows(mask: Array, a: Array, b: Array) -> Array:
    """`a` where `mask (B,)` holds, else `b`; both `(B, ...)`."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def choose(accept: Array, new: Any, old: Any) -> Any:
    """The tree `new` if `accept ()`, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)


def clip_norm(tree: Any, limit: float) -> tuple[Any, Array]:
    """Scales a gradient down to the norm `limit`; also its norm before."""
    norm = optax.tree.norm(tree)
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, tree), norm
