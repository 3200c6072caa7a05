"""What a command tells: its summary and its progress.

Importing this module loads neither JAX nor a simulator.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

SUMMARY_KEYS = (
    "command",
    "task",
    "seed",
    "backend",
    "device",
    "num_envs",
    "wall_s",
    "env_steps",
    "steps_per_s",
    "versions",
    "git",
    "metrics",
)
Z_95 = 1.959963984540054  # 97.5 % point of the standard normal


class Failed(RuntimeError):
    """A command cannot do what it was asked for, and its message says why: no traceback would say more.  Exit status 1."""


# --- summary -----------------------------------------------------------------------------------------------------------


def device_name() -> str:
    """What JAX computes on: `cpu`, `NVIDIA H200`, `4 x cpu` (several, virtual ones too).  Starts JAX's backend."""
    import jax

    devices = jax.local_devices()
    kind = "cpu" if devices[0].platform == "cpu" else devices[0].device_kind
    return kind if len(devices) == 1 else f"{len(devices)} x {kind}"


def plain(value: Any) -> Any:
    """JSON types: arrays become lists, paths strings, NaN and infinities `None`."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a summary cannot hold a {type(value).__name__}: {value!r}")


def summary(
    command: str,
    *,
    seed: int,
    backend: str | None,
    num_envs: int,
    wall_s: float,
    metrics: Mapping[str, Any],
    task: str | None = None,
    env_steps: int = 0,
) -> dict[str, Any]:
    """The record every command ends with, made of JSON types only.

    Args:
      command: words of the command, e.g. `controller train`.
      seed: the seed it ran with.
      backend: the physics backend that really ran, never `auto`; None where none did.
      num_envs: environments stepped side by side.
      wall_s: seconds, compilation included.
      metrics: what docs/commands.md promises of the command.
      task: what it worked on, if that can be chosen.
      env_steps: environment steps simulated.
    """
    from rdp_jax import runs

    return {
        "command": command,
        "task": task,
        "seed": int(seed),
        "backend": backend,
        "device": device_name(),
        "num_envs": int(num_envs),
        "wall_s": round(float(wall_s), 3),
        "env_steps": int(env_steps),
        "steps_per_s": round(env_steps / wall_s, 1) if env_steps and wall_s > 0 else None,
        **runs.provenance(),
        "metrics": plain(metrics),
    }


def _leaf(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, list) and item and all(isinstance(x, float) for x in item):
        return f"[{', '.join(map(_leaf, item))}]"
    return "-" if item is None else str(item)


def _rows(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping) and item.get("trials") and "success_rate" in item:  # a whole judgement
            yield prefix + key, f"{item['success_rate']:.3f} of {item['trials']} (more in the JSON summary)"
        elif isinstance(item, Mapping) and item:
            yield from _rows(item, f"{prefix}{key}.")
        elif isinstance(item, list) and item and all(isinstance(line, str) for line in item):
            yield from ((prefix + key if i == 0 else "", line) for i, line in enumerate(item))
        else:
            yield prefix + key, _leaf(item)


def _headline(metrics: Mapping[str, Any]) -> list[str]:
    """What most people want to know of a command that learned: success before and after."""
    told = []
    for when in ("before", "after"):
        rate, span = (metrics.get(f"{name}_{when}") for name in ("success_rate", "success_ci95"))
        if rate is None or span is None:
            return []
        told.append(f"{rate:.3f} ({span[0]:.3f}-{span[1]:.3f})")
    where = f"; report: {metrics['report']}" if metrics.get("report") else ""
    return ["", f"success {' -> '.join(told)}{where}"]


def show(record: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print a summary for people: one line of circumstances, one row per metric, and what learning changed."""
    facts = [f"{k} {record[k]}" for k in ("task", "seed", "backend", "device", "num_envs") if record[k] is not None]
    rows = list(_rows(record["metrics"]))
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows] + _headline(record["metrics"])
    print(f"rdp {record['command']}: {', '.join(facts)}, {record['wall_s']:.1f} s", *lines, sep="\n", file=stream)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Everything written to stdout meanwhile, by Python, by C or by a child process, appears on stderr."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        # Closed when we began, descriptor 1 is nobody's, or by now that of any file.
        saved = None if sys.stdout is None else os.dup(1)
    except OSError:  # no descriptor 1: nothing but Python can write to stdout
        saved = None
    try:
        if saved is not None:
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


# --- statistics --------------------------------------------------------------------------------------------------------


def wilson(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a success rate; 95 % unless told.  `(0, 1)` without trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes={successes}, allowed: 0 .. trials={trials}")
    if trials == 0:
        return 0.0, 1.0
    rate, z2 = successes / trials, z * z
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    # The ends are exact at the ends; rounding must not say otherwise.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


# --- progress ----------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """`42s`, `3m12s`, `1h02m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(number: float) -> str:
    """`950`, `12.3k`, `4.5M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


class Progress:
    """Progress of long work: a bar when stderr is a terminal, a line every `every_s` seconds when it is not.

    Example:
      with Progress("train", total=iterations, budget_s=600) as progress:
          for i in range(iterations):
              ...
              progress.update(i + 1, env_steps=steps, note=f"return {ret:.1f}")
    """

    WINDOW = 20  # updates over which rates are measured

    def __init__(
        self,
        label: str,
        total: int,
        *,
        budget_s: float | None = None,
        unit: str = "env steps",
        every_s: float = 10.0,
        stream: TextIO | None = None,
        clock=time.monotonic,
    ):
        self.label, self.total, self.budget_s, self.every_s, self._clock = label, total, budget_s, every_s, clock
        self.unit = unit
        self._stream = stream or sys.stderr
        self._start = clock()
        self._printed: float | None = None
        self._line = self._last_line = ""
        self._points: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=self.WINDOW)
        self._bar: RichProgress | None = None
        if self._stream.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task(label, total=total, facts="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._line != self._last_line:
            self._print()

    def update(self, done: int, env_steps: int = 0, note: str = "", share: float | None = None) -> None:
        """`done` of `total` are finished, `env_steps` (or whatever `unit` names) so far; `note` is shown as it is.

        `share` is that of the time that has passed, where `done` does not tell (many end at once): the time left follows from it.
        """
        now = self._clock()
        passed = done if share is None else share * self.total
        # Rates run from the first update on: what came before it is compilation.
        self._points.append((now, passed, env_steps))
        began, passed0, steps0 = self._points[0]
        span = now - began
        facts = []
        if span > 0 and env_steps > steps0:
            facts.append(f"{count((env_steps - steps0) / span)} steps/s")
        left = self._left(passed, (passed - passed0) / span if span > 0 else 0.0, now)
        if left is not None:
            facts.append(f"{duration(left)} left")
        if note:
            facts.append(note)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, facts="  ".join(facts))
            return
        steps = [f"{count(env_steps)} {self.unit}"] if env_steps else []
        self._line = "  ".join([f"{self.label}  {done}/{self.total}", *steps, *facts])
        if self._printed is None or now - self._printed >= self.every_s:
            self._printed = now
            self._print()

    def _left(self, passed: float, rate: float, now: float) -> float | None:
        guesses = [(self.total - passed) / rate] if rate > 0 else []
        if self.budget_s is not None:
            guesses.append(self.budget_s - (now - self._start))
        return min(guesses, default=None)

    def _print(self) -> None:
        self._last_line = self._line
        print(self._line, file=self._stream, flush=True)
