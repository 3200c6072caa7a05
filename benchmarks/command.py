"""`rdp bench NAME`: a scenario of `benchmarks.scenarios`, told as a summary."""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks.args import BenchArgs
from benchmarks.runner import run
from benchmarks.scenarios import SCENARIOS
from envs.physics import available
from rdp_jax.config import ConfigError
from train.output import summary


def _value(text: str) -> Any:
    """A JSON value, or else the word itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _complaint(name: str, text: str, allowed: str) -> ConfigError:
    """Of `--set NAME=TEXT`."""
    return ConfigError("set", f"{name}={text}", f"{name}=VALUE with VALUE {allowed}")


def overrides(args: BenchArgs) -> dict[str, Any]:
    """Settings of the scenario that `args` change.  Raises `ConfigError` for a flag that it has no use for."""
    settings = SCENARIOS[args.name].settings
    changes: dict[str, Any] = {}
    if args.num_envs is not None:
        name = next((n for n in ("num_envs", "lanes") if n in settings), None)
        if name is None:
            raise ConfigError("num_envs", args.num_envs, f"not given: {args.name} has no such setting")
        changes[name] = args.num_envs
    if args.backend != "auto":
        if "backend" in settings:
            changes["backend"] = args.backend
        elif any(pair.startswith("cases=") for pair in args.set):
            raise ConfigError("backend", args.backend, "auto, with cases that are named")
        elif "cases" in settings and args.backend in settings["cases"].choices:
            changes["cases"] = (args.backend,)
        else:
            raise ConfigError("backend", args.backend, f"auto: {args.name} chooses by itself")
    if "seed" in settings:
        changes["seed"] = args.seed
    for pair in args.set:
        name, equals, text = pair.partition("=")
        if not equals or name not in settings:
            raise ConfigError("set", pair, f"KEY=VALUE with KEY one of {', '.join(settings)}")
        try:
            changes[name] = settings[name].check(name, _value(text))
        except ConfigError as error:
            raise _complaint(name, text, error.allowed) from None
    return changes


def _measured(args: BenchArgs) -> dict[str, Any]:
    """The result.  Raises `ConfigError`; where settings do not fit each other, it names the flag that sets them."""
    try:
        return run(args.name, out=args.out, repeats=args.repeats, **overrides(args))
    except ConfigError as error:
        name = error.field.rpartition(".")[2]
        typed = {pair.partition("=")[0] for pair in args.set}
        if name in SCENARIOS[args.name].settings and (name in typed or not hasattr(args, name)):
            raise _complaint(name, error.value, error.allowed) from None
        raise


def run_bench(args: BenchArgs) -> dict[str, Any]:
    """Run a scenario; the metrics are those of its first case, the ratios between cases, and the whole result."""
    begin = time.monotonic()
    result = _measured(args)
    name, first = next(iter(result["cases"].items()))
    settings = result["settings"]
    metrics = {
        "case": name,
        "unit": first["unit"],
        "per_second": first["per_second"],
        "env_steps_per_s": first["per_second"] if first["unit"].startswith("env") else None,
        "compile_s": first["compile_s"],
        "peak_memory_mb": {k: round(v / 2**20, 1) for k, v in result["peak_memory_bytes"].items()},
        "seconds": {k: v["median_s"] for k, v in result["cases"].items()},
        "ratios": {k: v["median"] for k, v in result["ratios"].items()},
        "shares": result["shares"],
        "result": result,
    }
    return summary(
        "bench",
        task=args.name,
        seed=args.seed,
        backend=settings.get("backend") or (args.backend if args.backend != "auto" else available()[0]),
        num_envs=settings.get("num_envs", settings.get("lanes", 0)),
        wall_s=time.monotonic() - begin,
        metrics=metrics,
    )
