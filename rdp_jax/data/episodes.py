"""Demonstrations: flat arrays over all steps of all episodes, in one safetensors file that describes itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = 1
PER_STEP, PER_EPISODE = ("obs", "action", "reward"), ("length", "success", "seed")


class DataError(ValueError):
    """A data set that cannot be used; the message names file, episode, key, and what was expected."""


@dataclasses.dataclass(frozen=True)
class Episodes:
    """`E` episodes of `N` steps in all.

    Attributes:
      obs: `(N, frame)` float32, single frames, observed before the action of the same row.
      action: `(N, Da)` float32, environment units.
      reward: `(N,)` float32.
      length: `(E,)` int32 steps of each episode, in the order of the rows.
      success: `(E,)` bool; seed `(E,)` int64.
      extras: name -> `(N, ...)`, for replay (`qpos`) and analysis.
      metadata: task, observation and action manifests, recipe, versions; JSON types.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    length: np.ndarray
    success: np.ndarray
    seed: np.ndarray
    extras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def starts(self) -> np.ndarray:
        """`(E,)` first row of each episode."""
        return np.concatenate([[0], np.cumsum(self.length)[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.length)


def from_lists(
    obs: Sequence[np.ndarray],
    action: Sequence[np.ndarray],
    reward: Sequence[np.ndarray],
    success: Sequence[bool],
    seed: Sequence[int],
    extras: Mapping[str, Sequence[np.ndarray]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    where: str = "episodes",
) -> Episodes:
    """Episodes from one array per episode.  Raises `DataError`, which begins with `where`."""
    if not len(obs):
        raise DataError(f"{where}: no episodes, expected at least one")
    for name, parts in {"obs": obs, "action": action, **(extras or {})}.items():
        for i, part in enumerate(parts):
            wanted = (len(obs[i]), *np.shape(parts[0])[1:])
            if np.shape(part) != wanted:
                raise DataError(f"{where}: episode {i}, {name}: shape {np.shape(part)}, expected {wanted}")

    def join(parts):
        return np.concatenate([np.asarray(p, np.float32) for p in parts])

    return validate(
        Episodes(
            obs=join(obs),
            action=join(action),
            reward=join(reward),
            length=np.array([len(x) for x in obs], np.int32),
            success=np.asarray(success, bool),
            seed=np.asarray(seed, np.int64),
            extras={name: join(parts) for name, parts in (extras or {}).items()},
            metadata=dict(metadata or {}),
        ),
        where,
    )


def validate(episodes: Episodes, where: str = "episodes") -> Episodes:
    """Returns `episodes`, or raises `DataError` naming episode, key and the fault."""
    count, steps = len(episodes.length), int(np.sum(episodes.length))
    if count == 0:
        raise DataError(f"{where}: no episodes, expected at least one")
    if np.any(episodes.length < 1):
        bad = int(np.argmax(episodes.length < 1))
        raise DataError(f"{where}: episode {bad} has {int(episodes.length[bad])} steps, expected at least 1")
    for name, ndim in (("obs", 2), ("action", 2), ("reward", 1), *((k, None) for k in episodes.extras)):
        value = episodes.extras[name] if name in episodes.extras else getattr(episodes, name)
        if (ndim is not None and value.ndim != ndim) or value.shape[0] != steps:
            wanted = f"({steps}, width)" if ndim == 2 else f"({steps}{', ...' if ndim is None else ''})"
            raise DataError(f"{where}: {name} has shape {value.shape}, expected {wanted}")
        finite = np.isfinite(value).reshape(steps, -1).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            episode = int(np.searchsorted(np.cumsum(episodes.length), row, side="right"))
            step = row - int(episodes.starts[episode])
            raise DataError(f"{where}: episode {episode}, {name}, step {step}: not finite")
    for name in ("success", "seed"):
        if getattr(episodes, name).shape != (count,):
            raise DataError(f"{where}: {name} has shape {getattr(episodes, name).shape}, expected ({count},)")
    return episodes


def take(episodes: Episodes, index: Sequence[int] | np.ndarray) -> Episodes:
    """The episodes with these numbers, in this order."""
    index = np.asarray(index, np.int64)
    rows = np.concatenate([np.arange(s, s + n) for s, n in zip(episodes.starts[index], episodes.length[index])])
    return dataclasses.replace(
        episodes,
        **{name: getattr(episodes, name)[rows] for name in PER_STEP},
        **{name: getattr(episodes, name)[index] for name in PER_EPISODE},
        extras={name: x[rows] for name, x in episodes.extras.items()},
    )


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """All episodes of all parts; metadata of the first.  Raises `DataError` where widths differ."""
    first = parts[0]
    for i, part in enumerate(parts):
        for name in ("obs", "action"):
            ours, theirs = getattr(first, name).shape[1:], getattr(part, name).shape[1:]
            if ours != theirs:
                raise DataError(f"part {i}: {name} has width {theirs}, expected {ours}")
        if set(part.extras) != set(first.extras):
            raise DataError(f"part {i}: extras {sorted(part.extras)}, expected {sorted(first.extras)}")

    def join(arrays):
        return np.concatenate(list(arrays))

    return dataclasses.replace(
        first,
        **{name: join(getattr(p, name) for p in parts) for name in (*PER_STEP, *PER_EPISODE)},
        extras={name: join(p.extras[name] for p in parts) for name in first.extras},
    )


def save(path: Path | str, episodes: Episodes, overwrite: bool = False) -> None:
    """Writes one file, beside and renamed.  Raises `DataError` for bad episodes, and if the file exists already."""
    path = Path(path)
    validate(episodes, str(path))
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name")
    arrays = {name: getattr(episodes, name) for name in (*PER_STEP, *PER_EPISODE)}
    arrays |= {f"extras/{name}": x for name, x in episodes.extras.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    metadata = {"json": json.dumps({**episodes.metadata, "format": FORMAT}, sort_keys=True)}
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def load(path: Path | str) -> Episodes:
    """Reads and checks one file.  Raises `DataError`."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: format {found!r}, expected {FORMAT}")
    missing = [name for name in (*PER_STEP, *PER_EPISODE) if name not in arrays]
    if missing:
        raise DataError(f"{path}: no array {missing[0]!r}, expected {', '.join((*PER_STEP, *PER_EPISODE))}")
    extras = {name.removeprefix("extras/"): x for name, x in arrays.items() if name.startswith("extras/")}
    known = {name: arrays[name] for name in (*PER_STEP, *PER_EPISODE)}
    return validate(Episodes(**known, extras=extras, metadata=metadata), str(path))


def summary(episodes: Episodes) -> dict[str, Any]:
    """Counts and means worth printing."""
    returns = np.add.reduceat(episodes.reward, episodes.starts)
    return {
        "episodes": len(episodes),
        "steps": int(episodes.length.sum()),
        "mean_length": float(episodes.length.mean()),
        "mean_return": float(returns.mean()),
        "success_rate": float(episodes.success.mean()),
    }
