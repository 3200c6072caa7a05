"""Matrix products of layers that act on the last axis."""

from __future__ import annotations

import math
from typing import Any

import jax

Array = jax.Array


def flat_dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, **more: Any) -> Array:
    """`jax.lax.dot_general` with the leading axes of `lhs` folded into one; for flax's `dot_general=` arguments.

    The result is the same.  What differs is the gradient with respect to `rhs`: XLA's CPU backend takes longer to contract two
    axes than one.  Products that are not `(..., in) x (in, ...)` are handed on as they are.
    """
    (over_lhs, over_rhs), batch = dimension_numbers
    plain = not any(batch) and tuple(over_lhs) == (lhs.ndim - 1,) and tuple(over_rhs) == (0,)
    if not plain or lhs.ndim < 3:
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, **more)
    lead = lhs.shape[:-1]
    flat = jax.lax.dot_general(lhs.reshape(math.prod(lead), -1), rhs, (((1,), (0,)), ((), ())), **more)
    return flat.reshape(*lead, *rhs.shape[1:])
