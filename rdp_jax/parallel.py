"""Data parallelism over a one-axis mesh: environments and minibatches sharded, parameters replicated.

Every function takes the axis name, and `None` stands for one device: the same code then runs without `shard_map` and without
collectives.  The devices are those of one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"
Array = jax.Array
C = TypeVar("C")


def make_mesh(devices: int | None = None) -> Mesh | None:
    """Mesh over the first `devices` devices (all of them when `None`); `None` for a single one."""
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise ValueError(f"devices={count}, allowed 1..{len(available)}")
    return Mesh(np.array(available[:count]), (AXIS,)) if count > 1 else None


def over_devices(config: C, count: int | None = None) -> C:
    """`config` with its `shuffle_groups`, and those of configs in it, raised to a multiple of the devices (`count`, or all).

    One without any does not touch the devices.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            raised: Any = over_devices(value, count)
            if raised is not value:
                changes[field.name] = raised
        elif field.name == "shuffle_groups":
            devices = count or len(jax.devices())
            if value % devices:
                changes[field.name] = -(-value // devices) * devices
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def axis_of(mesh: Mesh | None) -> str | None:
    """Axis name for the reductions, `None` for one device."""
    return AXIS if size(mesh) > 1 else None


def size(mesh: Mesh | None) -> int:
    """Devices of the mesh."""
    return 1 if mesh is None else mesh.size


def shard(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable:
    """`jax.shard_map` over the mesh, or `function` itself on one device.

    Replication is not checked by type (`check_vma=False`): gradients stay local until `pmean`, as the code says.
    """
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def jit(function: Callable, mesh: Mesh | None, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()) -> Callable:
    """`jax.jit` of `shard`, with the placement of results pinned: what one call returns, the next takes without a compile."""
    sharded = shard(function, mesh, in_specs, out_specs)
    if mesh is None or mesh.size == 1:
        return jax.jit(sharded, donate_argnums=donate)
    return jax.jit(
        sharded,
        in_shardings=shardings(in_specs, mesh),
        out_shardings=shardings(out_specs, mesh),
        donate_argnums=donate,
    )


def shardings(specs: Any, mesh: Mesh) -> Any:
    """Prefix tree of partition specs -> the same of shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def put(tree: Any, specs: Any, mesh: Mesh | None) -> Any:
    """Places `tree` by the prefix tree of partition specs, as `shard` will want it."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.device_put(tree, shardings(specs, mesh))


def psum(x: Any, axis: str | None) -> Any:
    """Sum over devices."""
    return x if axis is None else jax.lax.psum(x, axis)


def pmean(x: Any, axis: str | None) -> Any:
    """Mean over devices."""
    return x if axis is None else jax.lax.pmean(x, axis)


def pmax(x: Any, axis: str | None) -> Any:
    """Maximum over devices."""
    return x if axis is None else jax.lax.pmax(x, axis)


def moments(x: Array, axis: str | None, where: Array | None = None) -> tuple[Array, Array]:
    """Mean and variance of all elements, or of those with `where`, over all devices, in two passes."""
    if where is None:
        mean = pmean(x.mean(), axis)
        return mean, pmean(jnp.square(x - mean).mean(), axis)
    count = jnp.maximum(psum(where.sum(dtype=jnp.float32), axis), 1.0)
    mean = psum(x.sum(where=where), axis) / count
    return mean, psum(jnp.square(x - mean).sum(where=where), axis) / count


def local_indices(total: int, mesh: Mesh | None) -> Array:
    """Global indices of this device's share of `total`, `(total / devices,)` int32; inside `shard` only."""
    share = total // size(mesh)
    start = 0 if size(mesh) == 1 else jax.lax.axis_index(AXIS) * share
    return (start + jnp.arange(share)).astype(jnp.int32)


def fold_each(key: Array, indices: Array) -> Array:
    """One key per global index: what is drawn does not depend on which device draws it."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def strong(tree: Any) -> Any:
    """Arrays without weak types, so that Python numbers among them never cause a second compile."""

    def leaf(x):
        if isinstance(x, jax.Array):
            return x.astype(x.dtype) if getattr(x, "weak_type", False) else x
        array = np.asarray(x)
        return jnp.asarray(array, dtype=jax.dtypes.canonicalize_dtype(array.dtype))

    return jax.tree.map(leaf, tree)
