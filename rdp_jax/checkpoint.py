"""Checkpoints (the whole learner state, Orbax) and weight files (parameters and normaliser, safetensors)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rdp_jax.config import difference


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, or of another run."""


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unwrap(tree: Any) -> list[jax.Array]:
    """Leaves, with typed random keys as the numbers they hold: a format that all versions of Orbax can write."""
    return [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]


def _names(tree: Any) -> list[str]:
    """A path for each leaf, as `params.actor.log_std`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".").replace("/", "_")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


class Checkpointer:
    """Checkpoints of one run: written beside and renamed when complete, the last `keep` of them kept.

    `config` is a `config.to_dict` result that goes into every checkpoint; one made under another is refused.
    """

    def __init__(self, folder: Path | str, config: dict[str, Any], keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._config = json.loads(json.dumps(config))

    def latest(self) -> int | None:
        """Iteration of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, iteration: int, state: Any) -> None:
        """Writes `state`; does nothing if this iteration is there already."""
        if iteration in self._manager.all_steps():
            return
        names = _names(state)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CheckpointError(f"{self.folder}: more than one part of the state is called {', '.join(twice)}")
        leaves = dict(zip(names, _unwrap(state), strict=True))
        shapes = {name: [list(x.shape), str(x.dtype)] for name, x in leaves.items()}
        meta = {"config": self._config, "leaves": shapes}
        # Orbax refuses empty arrays (the sensors of a model without any); their shape says all there is.
        leaves = {name: x for name, x in leaves.items() if x.size}
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
        self._manager.save(iteration, args=args, force=True)
        self._manager.wait_until_finished()

    def restore(self, template: Any, iteration: int | None = None) -> Any:
        """State like `template` (same structure, shapes and placement).

        Raises `CheckpointError` if there is none, if it was made with another config (naming field and both values) or
        network, or if its files are damaged.
        """
        iteration = self.latest() if iteration is None else iteration
        if iteration is None:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        where = f"checkpoint {self.folder / str(iteration)}"
        try:
            meta = self._manager.restore(iteration, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            saved_config, saved_leaves = meta["config"], meta["leaves"]
        except Exception as error:  # Orbax raises whatever its parts raise, at any length
            raise CheckpointError(f"{where} is damaged or incomplete: {_first_line(error)}") from error
        leaves = dict(zip(_names(template), _unwrap(template), strict=True))
        shapes = {name: [list(x.shape), str(x.dtype)] for name, x in leaves.items()}
        for what, ours, theirs in (("config", self._config, saved_config), ("array", shapes, saved_leaves)):
            found = difference(ours, theirs)
            if found:
                raise CheckpointError(f"{where} differs in {what} {found[0]}: now {found[1]!r}, saved {found[2]!r}")
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in leaves.items() if x.size
        }
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self._manager.restore(iteration, args=args)["state"]
        except Exception as error:
            raise CheckpointError(f"{where} is damaged or incomplete: {_first_line(error)}") from error
        return _rewrap([restored.get(name, x) for name, x in leaves.items()], template)

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _rewrap(leaves: list[Any], template: Any) -> Any:
    """Inverse of `_unwrap`.  Copies: a donated buffer must not belong to whoever read it."""
    old, structure = jax.tree.flatten(template)

    def placed(x: Any, like: Any) -> jax.Array:
        if not like.committed:  # to a device; programs are compiled for either, and this one's is there already
            return jnp.asarray(np.array(x))
        # A copy of an empty array forgets how it was spread over devices, and a compiled program refuses it.
        return jax.device_put(jnp.array(x, copy=True), x.sharding)

    copies = [placed(x, like) for x, like in zip(leaves, _unwrap(template), strict=True)]
    keys = [jax.random.wrap_key_data(n, impl=jax.random.key_impl(o)) if _is_key(o) else n for n, o in zip(copies, old)]
    return jax.tree.unflatten(structure, keys)


def fingerprint(tree: Any) -> str:
    """Sixteen hexadecimal digits that differ where names, shapes or bytes of the arrays of `tree` do."""
    digest = hashlib.sha256()
    for name, leaf in zip(_names(tree), jax.device_get(_unwrap(tree)), strict=True):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def save_weights(path: Path | str, tree: Any, metadata: dict[str, Any] | None = None) -> None:
    """One safetensors file with the arrays of `tree` (nested dictionaries and dataclasses), names joined by `/`.

    `metadata` is anything JSON can hold (config, versions).  Written beside and renamed.
    """
    flat = traverse_util.flatten_dict(serialization.to_state_dict(jax.device_get(tree)), sep="/")
    arrays = {name: np.array(value, order="C") for name, value in flat.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(arrays, temporary, metadata={"json": json.dumps(metadata or {}, sort_keys=True)})
    temporary.replace(path)


def load_weights(path: Path | str, template: Any = None) -> tuple[Any, dict[str, Any]]:
    """`(tree, metadata)` of a weight file: nested dictionaries, or the structure of `template`.

    Raises `CheckpointError` if the file is missing, damaged, holds numbers that are not finite, or (with `template`) names or
    shapes do not fit.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
        tree = traverse_util.unflatten_dict({name: jnp.asarray(x) for name, x in flat.items()}, sep="/")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"weights {path} cannot be read: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"weights {path} cannot be read: their metadata are {metadata!r}, expected an object")
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"weights {path} cannot be used: {name} does not hold finite numbers only")
    return (tree if template is None else fitted(tree, template, path)), metadata


def fitted(tree: Any, template: Any, path: Path | str) -> Any:
    """`tree`, nested dictionaries read from `path`, in the structure of `template` (arrays, or their shapes).

    Raises `CheckpointError` if names or shapes do not fit.
    """

    def shapes(nested: Any) -> dict[str, list[int]]:
        return {name: list(np.shape(x)) for name, x in traverse_util.flatten_dict(nested, sep="/").items()}

    found = difference(shapes(serialization.to_state_dict(template)), shapes(tree))
    if found:
        name, now, saved = found
        told = f"differ in shape of {name}: now {now}, saved {saved}"
        raise CheckpointError(f"weights {path} " + (f"lack {name}, of shape {now}" if saved is None else told))
    return serialization.from_state_dict(template, tree)
