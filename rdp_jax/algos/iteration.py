"""One iteration of an algorithm as a compiled program: what every `Update` of `rdp_jax.algos` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import parallel


class Iteration:
    """`(state, env_params) -> (state, metrics)`, compiled at the first call; the given state is donated: its buffers are gone.

    Args:
      body: `(state, env_params, fresh starts) -> (state, metrics)` on one device's share of the environments.
      starts: `(state, env_params) -> fresh starts` of this iteration.
      spec: partition specs of the state, a prefix tree.
      mesh: the devices.
      precision: of float32 products.
    """

    def __init__(
        self,
        body: Callable[[Any, Any, Any], tuple[Any, dict]],
        starts: Callable[[Any, Any], Any],
        spec: Any,
        mesh: Mesh | None,
        precision: str,
    ):
        def update(state, env_params, pool):
            with jax.default_matmul_precision(precision):
                return body(state, env_params, pool)

        self.starts = starts
        self.compiled: Any = parallel.jit(update, mesh, (spec, P(), P()), (spec, P()), donate=(0,))

    def __call__(self, state: Any, env_params: Any) -> tuple[Any, dict[str, Any]]:
        env_params = parallel.strong(env_params)
        return self.compiled(state, env_params, self.starts(state, env_params))

    def cache_size(self) -> int:
        """Compiled versions; one in a healthy run."""
        return self.compiled._cache_size()
