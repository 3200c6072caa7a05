"""Arguments of the commands: frozen dataclasses, every field a flag.  Loads neither JAX nor a simulator.

A field says its range, unit and meaning as in `rdp_jax.config`; `train.cli` makes flags of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rdp_jax.config import ConfigError, chosen, difference, left_out, ranged, span, to_dict
from train.names import OUTSIDE, PLANNER, T1_TASKS, TASKS, of_t1
from train.recipes import FRESH_STARTS, RECIPES

BACKENDS = ("auto", "native", "mjx", "warp")
SCENES = ("flat", "platforms", "step", "carry")


def said(default: Any, help: str) -> Any:
    """A field without a range."""
    return dataclasses.field(default=default, metadata={"help": help})


def optional(lo: float | None, hi: float | None, help: str, unit: str = "") -> Any:
    """A number within `[lo, hi]` that may be left out: `None`."""
    return dataclasses.field(default=None, metadata={"optional": (lo, hi), "help": help, "unit": unit})


def word(choices: tuple[str, ...], help: str) -> Any:
    """A required word without a flag, one of a few."""
    return dataclasses.field(metadata={"positional": True, "choices": choices, "help": help})


def any_task(help: str = "task") -> Any:
    """Any task, of the T1 or of Gymnasium."""
    return chosen("pickup", TASKS, help, also=OUTSIDE)


def t1_task() -> Any:
    """A task of the T1."""
    return chosen("pickup", T1_TASKS, "task", also=OUTSIDE)


def input_file(help: str) -> Any:
    """A file that must exist, or `None`."""
    return dataclasses.field(default=None, metadata={"file": True, "help": help})


def appended(help: str) -> Any:
    """Any number of words; a flag that is repeated adds to them."""
    return dataclasses.field(default=(), metadata={"appended": True, "help": help})


def planner_place(help: str, *aliases: str) -> Any:
    """A planner file, or a run directory that holds one, or `None`; `aliases` are other names of the flag."""
    return dataclasses.field(default=None, metadata={"planner": True, "aliases": aliases, "help": help})


def check_path(field: str, path: Path) -> None:
    """Raises `ConfigError` for a path whose very name cannot be used, whatever lies there."""
    try:
        str(path).encode()
        os.lstat(path)
    except UnicodeEncodeError:  # neither a page nor JSON can say it
        raise ConfigError(field, str(path), "a path that is valid UTF-8") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(field, str(path), "a path that is not too long for the file system") from None


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """Within it `path` is a directory; of what was not there before, nothing is left.  Raises `OSError`."""
    missing = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # somebody else has put something in it
                place.rmdir()


def as_usual(args: Any, name: str, unless: bool, why: str, only: Collection[str] = ()) -> None:
    """As `left_out`, of a field whose default is that of the preset; of a config (or of `only` some of it), naming the field
    in it."""
    given, usual = (to_dict(getattr(x, name)) for x in (args, type(args).defaults(args.preset)))
    for hidden in type(args).__dataclass_fields__[name].metadata.get("hidden", ()):  # no flags
        given, usual = ({k: v for k, v in config.items() if k != hidden} for config in (given, usual))
    if only:
        given, usual = ({k: config[k] for k in only} for config in (given, usual))
    found = None if unless else difference(given, usual, name)
    if found:
        raise ConfigError(found[0], found[1], f"left out ({why})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every command."""

    seed: int = ranged(0, 0, 2**31 - 1, "seed of every random draw")
    out: Path | None = said(None, "directory for what the command writes; summary.json is always among it")
    backend: str = chosen("auto", BACKENDS, "physics: auto takes native on a CPU, mjx on an accelerator")
    num_envs: int | None = optional(1, 2**20, "environments side by side; left out: the command's own choice")
    json: bool = said(False, "print the summary as one JSON object, last line of stdout; all else goes to stderr")

    def check(self) -> None:
        """What `rdp_jax.config.validate` cannot see: numbers left out, and files that must be there."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "optional" in field.metadata and value is not None:
                lo, hi = field.metadata["optional"]
                if not (lo is None or value >= lo) or not (hi is None or value <= hi):
                    raise ConfigError(field.name, value, span(lo, hi, field.metadata["unit"]))
            if field.metadata.get("file") and value is not None and not value.is_file():
                raise ConfigError(field.name, str(value), "an existing file")
            held = "planner" in field.metadata and value is not None
            if held and not (value.is_file() or (value / PLANNER).is_file()):
                allowed = f"a planner file, or a run directory with {PLANNER}"
                raise ConfigError(field.name, str(value), allowed)
        if self.out is not None:
            self._check_out(self.out)

    def check_paths(self) -> None:
        """What must hold before any path is looked at.  Raises `ConfigError`."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                check_path(field.name, value)

    @property
    def goes_on(self) -> bool:
        """Whether the command goes on with what `--out` holds."""
        return bool(getattr(self, "resume", False))

    @property
    def writes(self) -> bool:
        """Whether a `summary.json` goes into `--out`."""
        return True

    def _check_out(self, out: Path) -> None:
        """Before anything heavy starts: what is written in the end can be, and overwrites nothing."""
        if os.path.lexists(out) and not out.is_dir():
            raise ConfigError("out", str(out), "a directory, or a name not taken")
        try:  # permissions do not tell all: root may write everywhere, and yet not into /proc
            with _made(out.absolute()), tempfile.TemporaryFile(dir=out):
                pass
        except OSError as error:
            raise ConfigError("out", str(out), f"a place that can be written to ({error.strerror})") from None
        if self.goes_on:
            return
        resume = ", or with --resume" if hasattr(self, "resume") else ""
        for name in ("summary.json", "config.json", "checkpoints"):
            if (out / name).exists():
                raise ConfigError("out", str(out), f"a directory without a {name}{resume}: nothing is overwritten")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumable(Common):
    """Flags of commands that train."""

    preset: str = chosen("cpu", ("cpu", "gpu"), "defaults of all other flags, fit for such a machine")
    resume: bool = said(False, "go on from the newest checkpoint in --out")
    tensorboard: bool = said(
        False, "write what goes into --out/metrics.jsonl for TensorBoard, too, into --out/tensorboard"
    )

    def check(self) -> None:
        super().check()
        if self.resume and (self.out is None or not self.out.is_dir()):
            raise ConfigError("resume", self.resume, "only with --out naming an existing run directory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorArgs(Common):
    """Versions, devices, physics backends that work, matmul precision, rendering."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControllerDemoArgs(Common):
    """A short tour in one HTML report: the shipped controller on a scripted course, then a live training from scratch.

    `--num-envs` is about the training; without `--out` a new directory under `runs` is made.
    """

    learn_s: float = ranged(75.0, 0.0, 86400.0, "length of the live training, less on a slow machine; 0 for none", "s")
    legs: Path | None = input_file("weights of the leg policy (.safetensors); left out: the shipped ones")
    hands: Path | None = input_file("weights of the hand policy (.safetensors); left out: the shipped ones")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControllerEvalArgs(Common):
    """Evaluate the low-level controller with the weights shipped in the package, or with your own."""

    episodes: int = ranged(256, 1, 2**20, "episodes")
    episode_s: float = ranged(10.0, 0.1, 3600.0, "length of an episode", "s")
    scene: str = chosen("flat", SCENES, "ground")
    randomize: bool = said(False, "draw friction, masses and gains per episode instead of the nominal ones")
    legs: Path | None = input_file("weights of the leg policy (.safetensors); left out: the shipped ones")
    hands: Path | None = input_file("weights of the hand policy (.safetensors); left out: the shipped ones")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceArgs(Common):
    """A table of the papers, ours beside theirs.  Runs other commands, each in a directory of its own below `--out`, and goes on
    where it stopped when it is called again.
    """

    name: str = word(tuple(RECIPES), "table")
    task: str = any_task("task; a gym task for gym, either kind for dsrl")
    preset: str = chosen("cpu", ("cpu", "gpu"), "of the commands that learn")
    seeds: int = ranged(3, 1, 1000, "seeds, from --seed on")
    trials: int = ranged(256, 1, 10**7, "episodes per evaluation")
    minutes: float = ranged(25.0, 0.01, 1e5, "of each learning stage", "min")
    iterations: int = ranged(100, 1, 10**6, "of gym's fine-tuning; rows beyond it are left out")
    wide: float = ranged(3.0, 0.0, 10.0, "spread of the widest starts (ood)")
    only: tuple[str, ...] = said(
        (), "steps to run, by the names of their directories (--list), and what they start from"
    )
    list: bool = said(False, "print the commands instead of running them")

    def check(self) -> None:
        super().check()
        for name, table in (("wide", "ood"), ("iterations", "gym")):
            left_out(self, name, self.name == table, f"it is about the table {table}")
        for name, tables in (("minutes", ("gym", "imitation")), ("preset", ("gym", "imitation"))):
            left_out(self, name, self.name not in tables, f"it is not about the table {self.name}")
        left_out(self, "preset", of_t1(self.task), f"it is not about {self.task}")
        last = self.seed + self.seeds - 1 + FRESH_STARTS * (self.name == "scratch")
        if last >= 2**31:
            raise ConfigError(
                "seed", self.seed, f"0 .. {self.seed - (last - 2**31 + 1)} (its last command has --seed {last})"
            )

    @property
    def goes_on(self) -> bool:
        """A table does, where it is one."""
        return self.list or (self.out is not None and (self.out / "table.json").is_file())

    @property
    def writes(self) -> bool:
        """Not by showing its commands."""
        return not self.list
