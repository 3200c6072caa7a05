"""Run directories that describe themselves: `config.json`, `metrics.jsonl`, `checkpoints/`, `summary.json`."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import platform
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

import jax

from rdp_jax.checkpoint import Checkpointer
from rdp_jax.config import difference
from rdp_jax.metrics import JsonlSink, TensorBoardSink, read_rows

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "mujoco", "mujoco-mjx")
LOCK = ".lock"
ENDED = "learned.json"
"""Of a run whose learning ended by itself: in which iteration."""


class RunError(RuntimeError):
    """A run directory that cannot be used as asked."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """What made something: `versions` and `git`, the commit."""
    return {"versions": versions(), "git": git_revision()}


@functools.cache
def git_revision() -> str | None:
    """Commit of the source tree, with `+` when there are local changes; `None` outside a repository, or in somebody else's.

    As it was when this was first asked: what a process runs does not change when the tree does.
    """
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        # Of an installed package the repository around it is the user's own.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes beside and renames: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """What a file holds.  Raises `RunError`, naming it, if that is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {error}") from error


def hold(path: Path) -> IO[str]:
    """An open file that no other process can hold; closing it lets it go.  Raises `BlockingIOError`."""
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise BlockingIOError(f"{path} is held by another process") from error
        # Some file systems know no locks.
    return file


def claim(out: Path) -> IO[str]:
    """An open file, its `.lock`, that keeps a directory from other processes until it is closed.  Raises `RunError`."""
    try:
        return hold(out / LOCK)
    except BlockingIOError as error:
        raise RunError(f"{out} is in use by another process") from error


def new_directory(name: str) -> Path:
    """Makes a directory under `runs`, so that no other process takes it; if nothing is in it in the end, it goes again."""
    base = Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S")
    for mark in ("", *(f"-{i}" for i in range(2, 1000))):
        found = base.with_name(f"{base.name}{mark}")
        try:
            found.mkdir(parents=True)
        except FileExistsError:
            continue
        atexit.register(_remove_empty, found.resolve())
        return found
    raise RunError(f"{base} and a thousand names like it are taken")


def _remove_empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # something is in it
        path.rmdir()


def free_directory(out: Path | None, name: str) -> Path:
    """`out` if nothing is in it, not made yet, or a `new_directory`.  Raises `RunError`: nothing is overwritten."""
    out = out or new_directory(name)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose another directory")
    return out


class Run:
    """An open run directory.

    Args:
      out: the directory.
      config: what a run and its resumption must agree on, plain JSON types (`config.to_dict`).
      resume: continue what is there; otherwise an existing non-empty directory is refused.
      asked: all that was asked for, written beside it; of a resumption it is added under `resumed`.
      keep: checkpoints kept.
      tensorboard: also write TensorBoard files.

    Raises:
      RunError: the directory is in use, is no run, or was made with another config (naming field and both values).
    """

    def __init__(
        self,
        out: Path | str,
        config: dict[str, Any],
        resume: bool = False,
        keep: int = 2,
        tensorboard: bool = False,
        asked: dict[str, Any] | None = None,
    ):
        self.out = Path(out)
        self.config = json.loads(json.dumps(config))
        exists = self.out.exists() and any(self.out.iterdir())
        if exists and not resume:
            raise RunError(f"{self.out} is not empty; choose another directory or resume")
        if resume:
            self._check_same()
        else:
            self.out.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.out)
        self._describe(asked or {}, resume)
        self.checkpoints = Checkpointer(self.out / "checkpoints", self.config, keep)
        first = self.checkpoints.latest() or 0
        known = first if resume else None
        self._sinks: list[Any] = [JsonlSink(self.out / "metrics.jsonl", known)]
        if tensorboard:
            self._sinks.append(TensorBoardSink(self.out / "tensorboard", known))

    def _describe(self, asked: dict[str, Any], resume: bool) -> None:
        """Writes `config.json`, or adds to it what a resumption was asked for."""
        path = self.out / "config.json"
        call = {
            "asked": asked,
            "versions": versions(),
            "git": git_revision(),
            "device": jax.devices()[0].device_kind,
        }
        if resume:
            saved = read_json(path)
            write_json(path, {**saved, "resumed": [*saved.get("resumed", []), call]})
        else:
            write_json(path, {"config": self.config, **call})

    def _check_same(self) -> None:
        path = self.out / "config.json"
        try:
            saved = json.loads(path.read_text())["config"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{self.out} is not a run to resume: {error}") from error
        found = difference(self.config, saved)
        if found:
            raise RunError(f"{self.out} was made with {found[0]}={found[2]!r}, now {found[1]!r}")

    def restore(self, template: Any) -> Any:
        """Newest checkpoint in the form of `template`, or `template` itself if there is none yet."""
        return template if self.checkpoints.latest() is None else self.checkpoints.restore(template)

    def latest(self) -> dict[str, Any]:
        """Metrics of the last iteration that was logged, NaN for what was not finite; none if there is none."""
        *_, row = ({}, *read_rows(self.out / "metrics.jsonl"))
        return {name: math.nan if value is None else value for name, value in row.items() if name != "iteration"}

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Writes metrics to every sink."""
        for sink in self._sinks:
            sink.write(iteration, metrics)

    def save(self, iteration: int, state: Any) -> None:
        """Writes a checkpoint."""
        self.checkpoints.save(iteration, state)

    def end(self, iteration: int) -> None:
        """Notes that learning came to its end in this iteration, uninterrupted: what follows it may still be."""
        write_json(self.out / ENDED, {"iteration": iteration})

    def close(self) -> None:
        """Closes files and threads."""
        for sink in self._sinks:
            sink.close()
        self.checkpoints.close()
        self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StopSignal:
    """Within it, SIGTERM, SIGINT and SIGHUP (a lost terminal) only set `received`, so that the iteration under way can finish and
    be saved.

    A second one acts as it did before, a second SIGTERM ends the process.  Works in the main thread only; elsewhere it changes
    nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        self._restore()
        if number == signal.SIGTERM:  # at once, and not only when a compiled call returns
            signal.signal(number, signal.SIG_DFL)

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def __enter__(self) -> StopSignal:
        try:
            heeded = [n for n in self.SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]  # nohup
            self._old = {number: signal.signal(number, self._handle) for number in heeded}
        except ValueError:  # not the main thread
            self._old = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
