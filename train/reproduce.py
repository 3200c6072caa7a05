"""`rdp reproduce`: a table of the papers, ours beside theirs, by running the commands that make it.

Every step has a directory of its own and is skipped once its `summary.json` is there: a table that was interrupted goes on where
it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from envs.physics import available
from rdp_jax.config import ConfigError, difference, to_dict
from rdp_jax.runs import new_directory, write_json
from train import output
from train.args import ReproduceArgs
from train.names import GYM_TASKS
from train.recipes import ON_GYM, RECIPES, SHARED, Settings, Step


def steps_of(args: ReproduceArgs, seed: int) -> list[Step]:
    """The recipe for one seed, on the backend asked for.  Raises `ConfigError` where the task has no such table."""
    if args.num_envs is not None:
        raise ConfigError("num_envs", args.num_envs, "left out (every command of a table has its own number)")
    if (args.task in GYM_TASKS and args.name not in ON_GYM) or (args.name == "gym" and args.task not in GYM_TASKS):
        allowed = " | ".join(GYM_TASKS) if args.name == "gym" else "a task of the T1"
        raise ConfigError("task", args.task, allowed)
    settings = Settings(args.task, seed, args.trials, args.minutes, args.wide, args.preset, args.iterations)
    more = () if args.backend == "auto" else ("--backend", args.backend)
    return [dataclasses.replace(step, words=(*step.words, *more)) for step in RECIPES[args.name](settings)]


def command(step: Step, folder: Path) -> list[str]:
    """The words of a step, its references resolved, with its own directory."""
    words = [_resolved(word, folder) for word in step.words]
    return [*words, "--out", str(place(step.name, folder)), "--json"]


def place(name: str, folder: Path) -> Path:
    """Directory of the step of that name; `folder` is the seed's."""
    return folder.parent / "shared" / name if name in SHARED else folder / name


def _resolved(word: str, folder: Path) -> str:
    if not word.startswith("{"):
        return word
    name, _, rest = word[1:].partition("}")
    return str(place(name, folder)) + rest


def look_up(metrics: dict[str, Any], path: str) -> Any:
    """`metrics["a"]["b"]` for the path `a.b`, that of the first of several paths `a.b|c` that leads anywhere; else None."""
    for one in path.split("|"):
        found: Any = metrics
        for name in one.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return found
    return None


def shown(step: Step, metrics: dict[str, Any]) -> Any:
    """What the step's row shows of its summary's metrics: a figure, or its relative change."""
    value = look_up(metrics, step.metric)
    if not step.against:
        return value
    base = look_up(metrics, step.against)
    return None if value is None or not base else value / base - 1.0


def run_step(step: Step, folder: Path) -> dict[str, Any]:
    """The summary of a step, which is run unless it is there.  Raises `RuntimeError` if it fails."""
    left = place(step.name, folder)
    done = left / "summary.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    words = command(step, folder)
    # What an interruption left behind, if only the first episodes of a collection.
    if words[0] != "eval" and left.is_dir() and any(left.iterdir()):
        words.append("--resume")
    print(f"--- rdp {' '.join(words)}", file=sys.stderr, flush=True)
    status = launch(words)
    if status:
        raise RuntimeError(f"rdp {' '.join(words)} left with status {status}")
    found = json.loads(done.read_text())
    return found


def launch(words: list[str]) -> int:
    """`rdp` with these words in a process of its own, its summary swallowed; the exit status."""
    return subprocess.run([sys.executable, "-m", "train.cli", *words], stdout=subprocess.DEVNULL).returncode


def cell(values: list[float | None], trials: int, metric: str) -> dict[str, Any]:
    """Over seeds: a success rate pools its trials, anything else gets mean and extremes."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return {"value": None}
    if metric.rpartition(".")[2].startswith("success_rate"):
        won, count = sum(round(v * trials) for v in known), trials * len(known)
        return {"value": won / count, "ci95": list(output.wilson(won, count)), "trials": count}
    return {"value": float(np.mean(known)), "least": min(known), "most": max(known)}


def remember(args: ReproduceArgs, out: Path) -> None:
    """Notes in the directory what its steps are made with; more seeds may follow.  Raises `ConfigError` where it holds steps that
    were made with something else, or nobody knows with what.
    """
    asked = to_dict(dataclasses.replace(args, seeds=1, out=None, list=False, json=False))
    path = out / "table.json"
    if any(out.glob("*/*/summary.json")):
        if not path.is_file():
            raise ConfigError("out", str(out), "a new directory, or one with the table.json of its steps")
        found = difference(asked, json.loads(path.read_text()))
        if found:
            raise ConfigError(found[0], found[1], f"{found[2]!r}, with which the steps in {out} were made")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def run_reproduce(args: ReproduceArgs) -> dict[str, Any]:
    """Runs the recipe for every seed; the table is the summary's `metrics`."""
    start = time.monotonic()
    seeds = [args.seed + i for i in range(args.seeds)]
    plans = {seed: steps_of(args, seed) for seed in seeds}
    out = args.out or (new_directory(f"reproduce-{args.name}") if not args.list else Path("OUT"))
    if args.list:
        listed = [f"rdp {' '.join(command(s, out / f'seed-{seed}'))}" for seed, plan in plans.items() for s in plan]
        return _summary(args, start, {"commands": list(dict.fromkeys(listed))}, 0)
    remember(args, out)
    rows: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, str], list[float | None]] = {}
    shares: dict[str, float] = {}
    env_steps = 0
    seen: set[Path] = set()
    for seed, plan in plans.items():
        for step in plan:
            folder = out / f"seed-{seed}"
            record = run_step(step, folder)
            if place(step.name, folder) not in seen:
                seen.add(place(step.name, folder))
                shares[step.name] = shares.get(step.name, 0.0) + record["wall_s"]
                env_steps += record["env_steps"] or 0
            if step.row:
                found.setdefault((step.row, step.metric), []).append(shown(step, record["metrics"]))
                rows[step.row] = {"paper": step.paper}
    for (row, metric), values in found.items():
        rows[row] |= cell(values, args.trials, metric)
    metrics = {"table": rows, "seeds": seeds, "seconds": {name: round(s, 1) for name, s in shares.items()}}
    record = _summary(args, start, metrics, env_steps)
    write_json(out / "summary.json", record)
    return record


def _summary(args: ReproduceArgs, start: float, metrics: dict[str, Any], env_steps: int) -> dict[str, Any]:
    return output.summary(
        f"reproduce {args.name}",
        seed=args.seed,
        backend=available()[0] if args.backend == "auto" else args.backend,
        num_envs=args.num_envs or 0,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=env_steps,
    )
