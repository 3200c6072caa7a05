"""Fresh starts of environments, by a program of their own.

A reset is as large a program as a step (kinematics, and on MJX a whole forward pass), and every learner needs it twice: for its
first state and for the pool from which ended episodes are replaced.  Inlined there it would be compiled anew in each; here it is
compiled once per environment, for blocks of a fixed size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rdp_jax import parallel
from rdp_jax.types import VectorEnv

Array = jax.Array
BLOCK = 64


class Starts:
    """Batched states of `env`, `BLOCK` at a time; the same on every device of `mesh`."""

    def __init__(self, env: VectorEnv, mesh: Mesh | None = None):
        def fresh(keys, params):
            # Kinematics, whatever the precision of a learner's products.
            with jax.default_matmul_precision("highest"):
                return parallel.strong(env.reset(keys, params))

        self.compiled: Any = parallel.jit(fresh, mesh, (P(), P()), P())

    def __call__(self, keys: Array, params: Any) -> Any:
        """`(n,)` keys -> states `(n, ...)`."""
        count, params = keys.shape[0], parallel.strong(params)
        keys = keys[jnp.arange(-(-count // BLOCK) * BLOCK) % count]  # whole blocks
        parts = [self.compiled(keys[i : i + BLOCK], params) for i in range(0, keys.shape[0], BLOCK)]
        return jax.tree.map(lambda *xs: (xs[0] if len(xs) == 1 else jnp.concatenate(xs))[:count], *parts)

    def pool(self, key: Array, n: int, params: Any) -> Any:
        """`n` states; entry `i` depends on `key` and `i` alone."""
        return self(parallel.fold_each(key, jnp.arange(n)), params)


def starts_of(env: VectorEnv, mesh: Mesh | None = None) -> Starts:
    """The one `Starts` of an environment on these devices, whoever asks; it lives as long as the environment does.

    Wrappers that leave resets alone name in an attribute `resets` of their own whose they are.
    """
    known = vars(vars(env).get("resets", env)).setdefault("_starts", {})
    if mesh not in known:
        known[mesh] = Starts(env, mesh)
    found: Starts = known[mesh]
    return found
