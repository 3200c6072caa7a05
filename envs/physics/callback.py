"""NumPy functions of whole batches, called from inside jit."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from envs.physics import ffi
from rdp_jax.callback import on_host

Array = jax.Array


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
        return on_host(host, out, flat).reshape(*packed.shape[:-1], width)

    @call.def_vmap
    def _(axis_size, in_batched, packed):
        del axis_size
        return call(packed), in_batched[0]

    return call(packed)
