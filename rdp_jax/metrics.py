"""Where metrics go: a JSONL file always, TensorBoard where it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    """JSON numbers; what is not finite becomes `None`, since JSON has no NaN."""
    out = {}
    for name, value in metrics.items():
        value = np.asarray(value).item()
        out[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return out


class JsonlSink:
    """One JSON object a line, flushed at once.  Opened anew or, to resume, cut back to `keep_until` (an `iteration`)."""

    def __init__(self, path: Path, keep_until: int | None = None):
        if keep_until is None:
            path.unlink(missing_ok=True)
        elif path.exists():
            lines = [line for line in path.read_text().splitlines() if _iteration(line) <= keep_until]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in lines))
            temporary.replace(path)
        self._file = path.open("a")

    def write(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Appends `{"iteration": ..., **metrics}`."""
        self._file.write(json.dumps({"iteration": iteration, **plain(metrics)}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a `JsonlSink` wrote, oldest first, without a line that a crash has cut short; nothing where there is no file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if math.isfinite(_iteration(line))]


def _iteration(line: str) -> float:
    """Iteration of a line; infinity for one cut short by a crash, so that it is dropped."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError):
        return math.inf


class TensorBoardSink:
    """Scalars for TensorBoard; to resume, those after `keep_until` (an `iteration`) are no longer shown."""

    def __init__(self, folder: Path, keep_until: int | None = None):
        from tensorboardX import SummaryWriter

        purge = None if keep_until is None else keep_until + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{keep_until or 0}")

    def write(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        for name, value in plain(metrics).items():
            if value is not None:
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()
