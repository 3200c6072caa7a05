"""What is measured, as data.  A scenario names its set-up, its default settings, and the ratios it must reach."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rdp_jax.config import ConfigError
from train.names import T1_TASKS

BACKENDS = ("native", "mjx", "warp")
MANY = 2**20  # of anything that is laid side by side


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a setting is, and may be.

    Attributes:
      default: its value unless told; None: it may be left out.
      kind: type of a value; an integer is a float, too.
      lo, hi: range of a number, which is always finite.
      choices: of a word.
      many: the value is a tuple of one or more of such.
    """

    default: Any
    kind: type
    lo: float | None = None
    hi: float | None = None
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def allowed(self) -> str:
        """What `check` accepts, in words."""
        span = f"{self.lo} .. {self.hi}"
        kinds = {bool: "true | false", int: f"an integer, {span}", float: f"a number, {span}"}
        one = " | ".join(self.choices) or kinds[self.kind]
        return ("one or more of " if self.many else "") + one + (", or null" if self.default is None else "")

    def check(self, name: str, value: Any) -> Any:
        """The value, of a setting with `many` as a tuple; one alone may be given for it.  Raises `ConfigError`."""
        if value is None and self.default is None:
            return None
        is_list = self.many and isinstance(value, (list, tuple))
        items = tuple(value) if is_list else (value,)
        if not items:
            raise ConfigError(name, value, self.allowed)
        for item in items:
            if not self._fits(item):
                raise ConfigError(name, item, self.allowed)
        return items if self.many else value

    def _fits(self, value: Any) -> bool:
        if self.kind is str:
            return value in self.choices
        if self.kind is bool or type(value) not in (int, self.kind):
            return type(value) is self.kind
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (self.lo is None or value >= self.lo) and (self.hi is None or value <= self.hi)


def _count(default: int | None, hi: int = MANY, lo: int = 1) -> Setting:
    return Setting(default, int, lo, hi)


def _counts(*default: int, hi: int = MANY) -> Setting:
    return Setting(default, int, 1, hi, many=True)


def _word(default: str | None, choices: Sequence[str]) -> Setting:
    return Setting(default, str, choices=tuple(choices))


def _words(default: Sequence[str] | None, choices: Sequence[str]) -> Setting:
    return Setting(default and tuple(default), str, choices=tuple(choices), many=True)


def _physics_dt(default: float) -> Setting:
    return Setting(default, float, 0.002, 0.01)


def _cases(*names: str) -> Setting:
    """All of them unless told."""
    return _words(names, names)


PHYSICS_CASES = ("native", "native_randomised", "bare_rollout", "mjx", "warp")
SEED = Setting(0, int, 0, 2**31 - 1)
CONTROLLER_CASES = tuple(f"{backend}_{kind}" for backend in BACKENDS for kind in ("train", "peer", "step"))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Rate of one case over another, measured next to each other in one run.

    Attributes:
      over: `(numerator, denominator)` case names.
      target: what the ratio must reach; None: only reported.
      where: JAX platform on which the target holds; None: on any.
    """

    over: tuple[str, str]
    target: float | None = None
    where: str | None = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A benchmark.

    Attributes:
      summary: one line for a listing.
      setup: `"module:function"`, called with the settings, returns a list of `Case`; imported at first use.
      settings: keyword arguments of `setup`, all of which a caller may override within what each of them allows.
      ratios: name -> `Ratio`.
      repeats: timed calls of every case, taken in turns so that a noisy machine hits all cases alike.
      warmup: calls before that (the first one compiles and is timed apart).
    """

    summary: str
    setup: str
    settings: Mapping[str, Setting]
    ratios: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)
    repeats: int = 7
    warmup: int = 2

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings' values unless told."""
        return {name: setting.default for name, setting in self.settings.items()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
      name: as in the ratios.
      build: returns the function to time, which must block until its work is done; building and the first call together
        count as compile time.
      work: units of work per call.
      unit: what a unit is.
      details: what else the record of the case should hold, asked for after the timing.
      missing: why the case cannot be measured on this machine; it is then reported, not built.
      part_of: cases of whose work this one's is a part, call by call: the result tells its share of their time, and the sum of
        the shares of all parts, which is one only if nothing was forgotten and nothing overlaps.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    work: int
    unit: str
    details: Callable[[], Mapping[str, Any]] | None = None
    missing: str | None = None
    part_of: tuple[str, ...] = ()


SCENARIOS: dict[str, Scenario] = {
    "physics": Scenario(
        summary="T1 physics steps per second: native backend, the same work by bare mujoco.rollout, and MJX",
        setup="benchmarks.physics:setup",
        settings={
            "lanes": _count(256),
            "substeps": _count(4, 1000),
            "steps": _count(10, 100_000),
            "noise": Setting(0.05, float, 0.0, 10.0),
            "threads": _count(None, 1024),
            "cases": _words(PHYSICS_CASES[:-1], PHYSICS_CASES),
        },
        ratios={
            "native_over_bare_rollout": Ratio(("native", "bare_rollout"), target=0.85),
            "native_randomised_over_bare_rollout": Ratio(("native_randomised", "bare_rollout")),
            "native_over_mjx": Ratio(("native", "mjx"), target=7.0, where="cpu"),
        },
    ),
    "controller": Scenario(
        summary="T1 control steps per second: PPO, Brax's PPO on the same environment, and stepping alone; native and MJX",
        setup="benchmarks.controller:setup",
        settings={
            "backend": _word(None, BACKENDS),
            "physics_dt": _physics_dt(0.01),
            "part": _word("legs", ("legs", "hands", "whole")),
            "num_envs": _count(256),
            "unroll_length": _count(32, 4096),
            "epochs": _count(4, 100),
            "minibatches": _count(4, 4096),
            "reset_pool": _count(64),
            "iterations": _count(2),
            "seed": SEED,
            "playground": Setting(False, bool),
            "cases": _words([name for name in CONTROLLER_CASES if not name.startswith("warp")], CONTROLLER_CASES),
        },
        ratios={
            "native_train_over_peer": Ratio(("native_train", "native_peer")),
            "mjx_train_over_peer": Ratio(("mjx_train", "mjx_peer")),
            "native_train_over_mjx_train": Ratio(("native_train", "mjx_train")),
            "native_train_over_step": Ratio(("native_train", "native_step")),
        },
        repeats=5,
    ),
    "chain": Scenario(
        summary="Denoising chains of DPPO's hopper policy (K = 20, K' = 10, [512] x 3), beside eager PyTorch",
        setup="benchmarks.diffusion:chain",
        settings={"envs": _counts(40, 1024), "cases": _cases("jax", "torch", "limit")},
        ratios={
            "jax_over_limit_40": Ratio(("jax_40", "limit_40")),
            "jax_over_limit_1024": Ratio(("jax_1024", "limit_1024")),
            "jax_over_torch_40": Ratio(("jax_40", "torch_40"), target=3.0, where="cpu"),
            "jax_over_torch_1024": Ratio(("jax_1024", "torch_1024"), target=2.0, where="cpu"),
        },
    ),
    "update": Scenario(
        summary="One gradient step of DPPO on 50,000 pairs, beside eager PyTorch",
        setup="benchmarks.diffusion:update",
        settings={"pairs": _count(50_000, 10**8), "cases": _cases("jax", "torch", "limit")},
        ratios={
            "jax_over_torch": Ratio(("jax", "torch"), target=2.5, where="cpu"),
            "jax_over_limit": Ratio(("jax", "limit")),
        },
        repeats=5,
    ),
    "dsrl": Scenario(
        summary="What DSRL learns per iteration on hopper (N critic and actor steps, M of distillation), beside eager PyTorch",
        setup="benchmarks.dsrl:setup",
        settings={
            "variant": _word("na", ("na", "sac")),
            "updates": _count(40, 10_000),
            "distillations": _count(20, 10_000, lo=0),
            "batch": _count(256),
            "distill_from": _word("replay", ("replay", "normal")),
            "ddim_steps": _count(5, 20),
            "sizes": _counts(128, 128, 128, hi=65536),
            "rows": _count(20_000, 10**8),
            "seed": SEED,
            "cases": _cases("jax", "torch"),
        },
        ratios={"jax_over_torch": Ratio(("jax", "torch"))},
        repeats=5,
    ),
    "tasks": Scenario(
        summary="Planner steps (0.1 s) per second of every T1 task under its planner; shares of physics, controller, denoising",
        setup="benchmarks.tasks:setup",
        settings={
            "tasks": _words(None, T1_TASKS),
            "cases": _words(None, BACKENDS),
            "num_envs": _count(64),
            "mjx_envs": _count(8),
            "chunks": _count(4),
            "physics_dt": _physics_dt(0.005),
            "seed": SEED,
        },
        repeats=3,
    ),
    "refine": Scenario(
        summary="Joint learning, an iteration of either phase; shares of physics, controller, denoising, updates",
        setup="benchmarks.refine:setup",
        settings={
            "task": _word("pickup", T1_TASKS),
            "backend": _word(None, BACKENDS),
            "num_envs": _count(64),
            "chunks": _count(4),
            "recorded": _count(64),
            "minibatches": _count(4, 4096),
            "physics_dt": _physics_dt(0.005),
            "seed": SEED,
        },
        repeats=3,
        warmup=1,
    ),
}
