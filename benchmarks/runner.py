"""Runs a scenario and writes what it found, with the machine it was found on, to `results/NAME.json`."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks.scenarios import SCENARIOS, Case, Scenario
from rdp_jax.config import ConfigError
from rdp_jax.machine import machine
from rdp_jax.runs import provenance, write_json
from train.output import plain

PEERS = ("brax", "playground", "torch")
RESULTS = Path(__file__).parent / "results"


def run(name: str, *, out: Path | str | None = RESULTS, repeats: int | None = None, **overrides: Any) -> dict[str, Any]:
    """Measure scenario `name`; returns the result and writes it to `out/NAME.json` (`out=None`: nowhere).

    Cases are timed in turns, and a ratio is the median over turns of the ratio within a turn: what else the machine does
    then disturbs numerator and denominator alike.

    Raises:
      ConfigError: unknown scenario or setting, a value that the setting may not have, or no case that this machine can measure.
    """
    if name not in SCENARIOS:
        raise ConfigError("scenario", name, " | ".join(SCENARIOS))
    scenario = SCENARIOS[name]
    settings = scenario.defaults
    for key, value in overrides.items():
        if key not in settings:
            raise ConfigError(key, value, f"a setting of {name}: {', '.join(settings)}, repeats")
        settings[key] = scenario.settings[key].check(key, value)
    if repeats is not None and repeats < 1:
        raise ConfigError("repeats", repeats, "1 .. inf")
    result = plain(measure(name, scenario, settings, repeats or scenario.repeats))
    if out is not None:
        path = Path(out) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return result


def measure(name: str, scenario: Scenario, settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """The measurement itself; see `run`."""
    module, function = scenario.setup.split(":")
    load_before = _load()
    cache = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)  # a compile time read from a cache would be none
    try:
        cases: list[Case] = getattr(importlib.import_module(module), function)(**settings)
        missing = {case.name: case.missing for case in cases if case.missing}
        cases = [case for case in cases if not case.missing]
        if not cases:
            reasons = "; ".join(f"{case}: {reason}" for case, reason in missing.items())
            raise ConfigError("cases", list(missing), f"at least one that can be measured here ({reasons})")
        calls, compile_s = {}, {}
        for case in cases:
            begin = time.perf_counter()
            calls[case.name] = case.build()
            calls[case.name]()
            compile_s[case.name] = time.perf_counter() - begin
            for _ in range(scenario.warmup - 1):
                calls[case.name]()
        seconds: dict[str, list[float]] = {case.name: [] for case in cases}
        for _ in range(repeats):
            for case in cases:
                begin = time.perf_counter()
                calls[case.name]()
                seconds[case.name].append(time.perf_counter() - begin)
    finally:
        jax.config.update("jax_enable_compilation_cache", cache)
    return {
        "scenario": name,
        "summary": scenario.summary,
        "settings": settings,
        "repeats": repeats,
        "cases": {case.name: _case_record(case, seconds[case.name], compile_s[case.name]) for case in cases},
        "missing": missing,
        "ratios": _ratios(scenario, {case.name: case for case in cases}, seconds),
        "shares": shares(cases, seconds),
        "peak_memory_bytes": peak_memory(),
        "machine": _circumstances(),
        "load_average": {"before": load_before, "after": _load()},
    }


def _case_record(case: Case, seconds: list[float], compile_s: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "median_s": round(median, 6),
        "all_s": [round(s, 6) for s in seconds],
        "compile_s": round(compile_s, 3),
        "work": case.work,
        "unit": case.unit,
        "per_second": round(case.work / median, 1),
        "per_second_best": round(case.work / min(seconds), 1),
        **(case.details() if case.details else {}),
    }


def _ratios(scenario: Scenario, cases: dict[str, Case], seconds: dict[str, list[float]]) -> dict[str, Any]:
    found = {}
    for name, ratio in scenario.ratios.items():
        top, bottom = ratio.over
        if top not in cases or bottom not in cases:
            continue
        work = cases[top].work / cases[bottom].work
        turns = [work * b / t for t, b in zip(seconds[top], seconds[bottom])]
        value = statistics.median(turns)
        target = ratio.target if ratio.where in (None, jax.default_backend()) else None
        found[name] = {
            "median": round(value, 3),
            "all": [round(x, 3) for x in turns],
            "target": target,
            "met": None if target is None else value >= target,
        }
    return found


def shares(cases: list[Case], seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Case -> part -> its share of the case's time, and their `sum`; medians over turns."""
    found = {}
    for whole in cases:
        parts = [case.name for case in cases if whole.name in case.part_of]
        turns = {name: [t / w for t, w in zip(seconds[name], seconds[whole.name])] for name in parts}
        if parts:
            turns["sum"] = [sum(turn) for turn in zip(*turns.values())]
            found[whole.name] = {name: round(statistics.median(values), 3) for name, values in turns.items()}
    return found


def peak_memory() -> dict[str, int]:
    """Peak bytes: of this process so far, and of each accelerator that tells."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for device in jax.local_devices():
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats and "peak_bytes_in_use" in stats:
            peak[f"{device.platform}:{device.id}"] = int(stats["peak_bytes_in_use"])
    return peak


def _circumstances() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        **machine(),
        "device_count": jax.device_count(),
        "platform": jax.default_backend(),
        **provenance(),
        "peers": peers(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def peers() -> dict[str, Any]:
    """Versions of the packages that others' figures come from, where they are installed; threads of a PyTorch that was used."""
    found: dict[str, Any] = {}
    for package in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if "torch" in sys.modules:
        found["torch_threads"] = sys.modules["torch"].get_num_threads()
    return found


def _load() -> float | None:
    """Load average of the last minute; well above what the benchmark itself needs, the numbers are pessimistic."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
