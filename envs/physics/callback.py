"""NumPy functions of whole batches, called from inside jit."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from envs.physics import ffi

Array = jax.Array

# `jax.pure_callback` copies each argument to a JAX array first.  Up to 100 kB it does so at once; a larger one is queued
# to the very thread pool whose threads may all be inside callbacks, waiting for their arguments: a deadlock (seen with
# four virtual devices and 4096 lanes on each, and to be expected on one core).  So arguments go in pieces.
PIECE_BYTES = 64 << 10


def batched_callback(
    host: Callable[[np.ndarray], np.ndarray], width: int, packed: Array, name: str | None = None
) -> Array:
    """`host` on all lanes of a batch at once.

    On a CPU, one with a name is called without a copy, and the program around it can be kept on disk (`envs.physics.ffi`).

    Args:
      host: `(lanes, nin) -> (lanes, width)`, NumPy only, called from XLA's threads.
      width: scalars per lane that come back.
      name: says all that `host` depends on, the same in every process; the first of that name in a process serves all.
      packed: `(nin,)`; under (nested) `vmap` all lanes reach `host` flattened, in one call.

    Returns:
      `(width,)` of `packed`'s type.
    """

    @jax.custom_batching.custom_vmap
    def call(packed: Array) -> Array:  # (*batch, nin)
        flat = packed.reshape(-1, packed.shape[-1])
        out = jax.ShapeDtypeStruct((len(flat), width), flat.dtype)
        if name is not None and jax.default_backend() == ffi.PLATFORM and ffi.register(name, host):
            return jax.ffi.ffi_call(name, out)(flat).reshape(*packed.shape[:-1], width)
        lanes = max(1, PIECE_BYTES // max(1, flat.shape[1] * flat.dtype.itemsize))
        pieces = [flat[i : i + lanes] for i in range(0, len(flat), lanes)]
        result = jax.pure_callback(lambda *rows: host(np.concatenate([np.asarray(r) for r in rows])), out, *pieces)
        return result.reshape(*packed.shape[:-1], width)

    @call.def_vmap
    def _(axis_size, in_batched, packed):
        del axis_size
        return call(packed), in_batched[0]

    return call(packed)
