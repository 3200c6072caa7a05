"""Demonstrations in other people's formats: robomimic-style HDF5 and LeRobot data sets.  Needs the extra `data`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdp_jax.data.episodes import DataError, Episodes, from_lists

LEROBOT_OBS = "observation.state"
Keys = Sequence[str] | Callable[[list[str]], Sequence[str]]


def is_lerobot(path: Path) -> bool:
    """Whether a directory is a LeRobot data set."""
    return (path / "meta" / "info.json").is_file()


def load_foreign(path: Path, keys: Keys = ()) -> Episodes:
    """Reads whichever of the formats below `path` is.  Raises `DataError`."""
    return load_lerobot(path) if path.is_dir() else load_robomimic(path, keys)


def _needs(module: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{path}: reading it needs the package {module.partition('.')[0]} (extra `data`)") from error


def load_robomimic(path: Path, keys: Keys = ()) -> Episodes:
    """`data/demo_N/{actions, rewards, obs/KEY}` of an HDF5 file, in the order of N.

    Args:
      path: the file.
      keys: low-dimensional observations to join, in this order, or a function that chooses them from the names of the file's
        one-dimensional ones; left out: all of those, sorted.

    Raises `DataError` naming file, episode, key and shape.
    """
    h5py = _needs("h5py", path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: no HDF5 file: {error}") from error
    try:
        with file:
            return _robomimic(file, path, keys)
    except (KeyError, RuntimeError, OSError) as error:  # of h5py, for what it finds inside
        raise DataError(f"{path}: a damaged HDF5 file: {error}") from error


def _robomimic(file: Any, path: Path, keys: Keys) -> Episodes:
    if not _is_group(file, "data") or not len(file["data"]):
        raise DataError(f"{path}: no group data/ with episodes in it")
    names = sorted(file["data"], key=lambda name: (len(name), name))
    for name in names:
        for group in (f"data/{name}", f"data/{name}/obs"):
            if not _is_group(file, group):
                raise DataError(f"{path}: episode {name}, {group}: no group")
    obs, action, reward, success = [], [], [], []
    found = [] if keys and not callable(keys) else _low_dimensional(path, names[0], file["data"][names[0]])
    chosen = list(keys(found) if callable(keys) else keys) or found
    for name in names:
        demo = file["data"][name]
        parts = [_array(path, name, demo, f"obs/{key}", 2) for key in chosen]
        acted = _array(path, name, demo, "actions", 2)
        for key, part in zip(chosen, parts, strict=True):
            if len(part) != len(acted):
                wanted = f"({len(acted)}, ...) as actions"
                raise DataError(f"{path}: episode {name}, obs/{key}: shape {part.shape}, expected {wanted}")
        paid = _array(path, name, demo, "rewards", 1) if "rewards" in demo else np.zeros(len(acted))
        if len(paid) != len(acted):
            raise DataError(f"{path}: episode {name}, rewards: shape {paid.shape}, expected ({len(acted)},)")
        obs.append(np.concatenate(parts, axis=1))
        action.append(acted)
        reward.append(paid)
        success.append(bool(paid.max() > 0.0) if "rewards" in demo else True)
    metadata = {"recipe": {"format": "robomimic", "file": path.name}, "observations": chosen}
    return from_lists(obs, action, reward, success, range(len(obs)), metadata=metadata, where=str(path))


def _is_group(file: Any, name: str) -> bool:
    """Whether an HDF5 file has a group of that name, and no array."""
    return hasattr(file.get(name), "keys")


def _low_dimensional(path: Path, name: str, demo: Any) -> list[str]:
    found = [key for key in sorted(demo["obs"]) if getattr(demo["obs"][key], "ndim", None) == 2]
    if not found:
        raise DataError(f"{path}: episode {name}, obs: no one-dimensional observation among {sorted(demo['obs'])}")
    return found


def _array(path: Path, episode: str, demo: Any, key: str, ndim: int) -> np.ndarray:
    if key not in demo:
        raise DataError(f"{path}: episode {episode}, {key}: missing")
    try:
        value = np.asarray(demo[key], np.float32)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: episode {episode}, {key}: not an array of numbers: {error}") from error
    if value.ndim != ndim or not len(value):
        wanted = "(steps, width)" if ndim == 2 else "(steps,)"
        raise DataError(f"{path}: episode {episode}, {key}: shape {value.shape}, expected {wanted}")
    return value


def load_lerobot(path: Path) -> Episodes:
    """State observations and actions of a LeRobot data set (versions 2 and 3): `meta/info.json`, `data/**/*.parquet`.

    Raises `DataError` naming file, episode, key and shape.
    """
    parquet = _needs("pyarrow.parquet", path)
    info, features = _described(path / "meta" / "info.json")
    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise DataError(f"{path / 'data'}: no .parquet files")
    rows: dict[int, list[tuple[int, Any, Any, float]]] = {}
    for file in files:
        try:
            table = parquet.read_table(file).to_pydict()
            columns = [table[key] for key in ("episode_index", "frame_index", LEROBOT_OBS, "action")]
            columns.append(table.get("next.reward", [0.0] * len(columns[0])))
            for episode, frame, seen, acted, paid in zip(*columns, strict=True):
                rows.setdefault(int(episode), []).append((int(frame), seen, acted, float(np.ravel(paid)[0])))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{file}: cannot be read: {error!r}") from error
    obs, action, rewards = [], [], []
    for episode in sorted(rows):
        steps = sorted(rows[episode], key=lambda row: row[0])
        obs.append(_stack(path, episode, LEROBOT_OBS, [row[1] for row in steps], features))
        action.append(_stack(path, episode, "action", [row[2] for row in steps], features))
        rewards.append(np.array([row[3] for row in steps], np.float32))
    success = [bool(r.max() > 0.0) or not any(x.any() for x in rewards) for r in rewards]
    metadata = {
        "recipe": {"format": "lerobot", "version": info.get("codebase_version"), "fps": info.get("fps")},
        "observations": features[LEROBOT_OBS].get("names"),
        "actions": features["action"].get("names"),
    }
    return from_lists(obs, action, rewards, success, sorted(rows), metadata=metadata, where=str(path / "data"))


def _described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that `info.json` says, and the features that are read, each with its shape.  Raises `DataError`."""
    try:
        info = json.loads(path.read_text())
        features = info["features"]
        names = sorted(features)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {error!r}") from error
    for key in (LEROBOT_OBS, "action"):
        if key not in names:
            raise DataError(f"{path}: feature {key}: missing among {names}")
        shape = features[key].get("shape") if isinstance(features[key], dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
            raise DataError(f"{path}: feature {key}: shape {shape!r}, expected a list of positive integers")
    return info, features


def _stack(path: Path, episode: int, key: str, values: list[Any], features: dict[str, Any]) -> np.ndarray:
    width = int(np.prod(features[key]["shape"]))
    for step, value in enumerate(values):
        if np.size(value) != width:
            raise DataError(
                f"{path}: episode {episode}, {key}, step {step}: {np.size(value)} numbers, expected {width}"
            )
    try:
        return np.asarray(values, np.float32).reshape(len(values), width)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: episode {episode}, {key}: no numbers: {error}") from error
