"""Functions of NumPy arrays, called from inside jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Array = jax.Array

# `jax.pure_callback` copies each argument to a JAX array first.  Up to 100 kB it does so at once; a larger one is queued
# to the very thread pool whose threads may all be inside callbacks, waiting for their arguments: a deadlock (seen with
# four virtual devices and 4096 lanes on each, and to be expected on one core).  So arguments go in pieces.
PIECE_BYTES = 64 << 10


def on_host(function: Callable[..., np.ndarray], out: jax.ShapeDtypeStruct, *arrays: Array) -> Array:
    """`function(*arrays)` of NumPy arrays, each with at least one axis; pure, and of the shape and type `out`."""
    counts, pieces = [], []
    for x in arrays:
        width = x.size // max(1, len(x)) * x.dtype.itemsize
        rows = max(1, PIECE_BYTES // max(1, width))
        cut = [x[i : i + rows] for i in range(0, len(x), rows)]
        counts.append(len(cut))
        pieces += cut

    def call(*parts: Any) -> np.ndarray:
        given, first = [], 0
        for count in counts:
            given.append(np.concatenate([np.asarray(p) for p in parts[first : first + count]]))
            first += count
        return function(*given)

    found: Array = jax.pure_callback(call, out, *pieces)
    return found
