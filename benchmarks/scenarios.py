"""What is measured, as data.  A scenario names its set-up, its default settings, and the ratios it must reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


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
      settings: keyword arguments of `setup`, all of which a caller may override.
      ratios: name -> `Ratio`.
      repeats: timed calls of every case, taken in turns so that a noisy machine hits all cases alike.
      warmup: calls before that (the first one compiles and is timed apart).
    """

    summary: str
    setup: str
    settings: Mapping[str, Any]
    ratios: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)
    repeats: int = 7
    warmup: int = 2


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
            "lanes": 256,
            "substeps": 4,
            "steps": 10,
            "noise": 0.05,
            "threads": None,
            "cases": ("native", "native_randomised", "bare_rollout", "mjx"),
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
            "backend": None,
            "physics_dt": 0.01,
            "part": "legs",
            "num_envs": 256,
            "unroll_length": 32,
            "epochs": 4,
            "minibatches": 4,
            "reset_pool": 64,
            "iterations": 2,
            "seed": 0,
            "playground": False,
            "cases": tuple(f"{b}_{kind}" for b in ("native", "mjx") for kind in ("train", "peer", "step")),
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
        settings={"envs": (40, 1024), "cases": ("jax", "torch", "limit")},
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
        settings={"pairs": 50_000, "cases": ("jax", "torch", "limit")},
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
            "variant": "na",
            "updates": 40,
            "distillations": 20,
            "batch": 256,
            "distill_from": "replay",
            "ddim_steps": 5,
            "sizes": (128, 128, 128),
            "rows": 20_000,
            "seed": 0,
            "cases": ("jax", "torch"),
        },
        ratios={"jax_over_torch": Ratio(("jax", "torch"))},
        repeats=5,
    ),
    "tasks": Scenario(
        summary="Planner steps (0.1 s) per second of every T1 task under its planner; shares of physics, controller, denoising",
        setup="benchmarks.tasks:setup",
        settings={
            "tasks": None,
            "cases": None,
            "num_envs": 64,
            "mjx_envs": 8,
            "chunks": 4,
            "physics_dt": 0.005,
            "seed": 0,
        },
        repeats=3,
    ),
    "refine": Scenario(
        summary="Joint learning, an iteration of either phase; shares of physics, controller, denoising, updates",
        setup="benchmarks.refine:setup",
        settings={
            "task": "pickup",
            "backend": None,
            "num_envs": 64,
            "chunks": 4,
            "recorded": 64,
            "minibatches": 4,
            "physics_dt": 0.005,
            "seed": 0,
        },
        repeats=3,
        warmup=1,
    ),
}
