"""`rdp reproduce`: a table of the papers, ours beside theirs, by running the commands that make it.

Every step has a directory of its own and is skipped once its `summary.json` says that it was done: a table that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from envs.physics import available
from envs.tasks.catalog import make_task
from rdp_jax.config import ConfigError, difference, to_dict
from rdp_jax.metrics import read_rows
from rdp_jax.runs import ENDED, new_directory, read_json, write_json
from train import child, output
from train.args import ReproduceArgs
from train.names import GYM_TASKS
from train.recipes import ON_GYM, RECIPES, SHARED, SHIPPED, Settings, Step

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAST_MINUTES = 0.01  # that a learning command takes


def steps_of(args: ReproduceArgs, seed: int) -> list[Step]:
    """The recipe for one seed, on the backend asked for, or of it what `args.only` names with all that this starts from.

    Raises `ConfigError` where the task has no such table, or the table no such step.
    """
    if args.num_envs is not None:
        raise ConfigError("num_envs", args.num_envs, "left out (every command of a table has its own number)")
    if (args.task in GYM_TASKS and args.name not in ON_GYM) or (args.name == "gym" and args.task not in GYM_TASKS):
        allowed = " | ".join(GYM_TASKS) if args.name == "gym" else "a task of the T1"
        raise ConfigError("task", args.task, allowed)
    if ":" in args.task and args.name in SHIPPED:
        raise ConfigError("task", args.task, "a task with shipped weights, from which this table starts")
    settings = Settings(args.task, seed, args.trials, args.minutes, args.wide, args.preset, args.iterations)
    more = () if args.backend == "auto" else ("--backend", args.backend)
    steps = [dataclasses.replace(step, words=(*step.words, *more)) for step in RECIPES[args.name](settings)]
    wanted = needed(steps, args.only) if args.only else {step.name for step in steps}
    return [step for step in steps if step.name in wanted]


def needed(steps: list[Step], names: tuple[str, ...]) -> set[str]:
    """These names of steps and of all that they refer to, and so on.  Raises `ConfigError` for one that no step has."""
    known = list(dict.fromkeys(step.name for step in steps))
    for name in names:
        if name not in known:
            raise ConfigError("only", name, f"a step of the table: {' | '.join(known)}")
    found = set(names)
    for step in reversed(steps):  # a step refers to earlier ones
        if step.name in found:
            found |= {_parts(word)[0] for word in step.words if word.startswith("{")}
    return found


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
    name, rest = _parts(word)
    return str(place(name, folder)) + rest


def _parts(word: str) -> tuple[str, str]:
    """Of `{NAME}rest`."""
    name, _, rest = word[1:].partition("}")
    return name, rest


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


def done(folder: Path) -> dict[str, Any] | None:
    """The summary in a step's directory; None if there is none, or a signal cut the step short."""
    path = folder / "summary.json"
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    metrics = found.get("metrics") if isinstance(found, dict) else None
    return found if isinstance(metrics, dict) and not metrics.get("stopped_by") else None


def going_on(words: list[str], left: Path) -> list[str]:
    """The words of a step of which an interruption left something behind, with what is left of its `--minutes`; of one that had
    learned all that it was to, with no more iterations than it has."""
    words = [*words, "--resume"]
    if "--minutes" in words:
        at = words.index("--minutes") + 1
        words[at] = f"{max(float(words[at]) - learned_for(left) / 60.0, LEAST_MINUTES):g}"
        ended = left / ENDED
        if ended.is_file():
            words += ["--iterations", str(read_json(ended)["iteration"])]
    return words


def learned_for(left: Path) -> float:
    """Seconds that a run has learned for, in all of its calls."""
    return sum(row.get("time/iteration_s") or 0.0 for row in read_rows(left / "metrics.jsonl"))


def run_step(step: Step, folder: Path) -> dict[str, Any]:
    """The summary of a step, which is run unless it was done.  Raises `Failed` if it fails or is stopped."""
    left = place(step.name, folder)
    found = done(left)
    if found is not None:
        return found
    words = command(step, folder)
    # If only the first episodes of a collection.
    if words[0] != "eval" and left.is_dir() and any(left.iterdir()):
        words = going_on(words, left)
    said = f"rdp {shlex.join(words)}"
    print(f"--- {said}", file=sys.stderr, flush=True)
    status = launch(words)
    if status:
        raise output.Failed(f"{said} left with status {status}")
    found = done(left)
    if found is None:
        raise output.Failed(f"{said} was stopped; the same table called again goes on from there")
    return found


def launch(words: list[str]) -> int:
    """`rdp` with these words in a process of its own, its summary swallowed; the exit status.

    Signals that ask to stop are passed on, so that the step can save what it has, before `KeyboardInterrupt` is raised.  It would
    get some of them from the terminal, too, and takes a second one as an order to leave at once; so it has a session of its own.
    """
    with passed_on() as (received, children):
        process = subprocess.Popen(
            child.command(words), env=child.environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        for number in received:  # while it was being started
            process.send_signal(number)
        children.append(process)
        status = process.wait()
    if received:
        raise KeyboardInterrupt
    return status


@contextlib.contextmanager
def passed_on() -> Iterator[tuple[list[int], list[subprocess.Popen]]]:
    """Within it, signals that ask to stop only go into the first list that it gives, and to the processes in the second.

    Not those that are ignored (`nohup`).  In the main thread; elsewhere it changes nothing.
    """
    received: list[int] = []
    children: list[subprocess.Popen] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        for process in children:
            process.send_signal(number)

    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    old = {}
    try:
        with contextlib.suppress(ValueError):  # not the main thread
            old = {number: signal.signal(number, handle) for number in heard}
        yield received, children
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def cell(values: list[float | None], trials: int, metric: str) -> dict[str, Any]:
    """Over seeds: a success rate pools its trials, anything else gets mean and extremes, and how many seeds have a figure if some
    have none (90 % that were never reached)."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return {"value": None}
    if metric.rpartition(".")[2].startswith("success_rate"):
        won, count = sum(round(v * trials) for v in known), trials * len(known)
        return {"value": won / count, "ci95": list(output.wilson(won, count)), "trials": count}
    some = {} if len(known) == len(values) else {"seeds_with_a_figure": len(known), "seeds": len(values)}
    return {"value": float(np.mean(known)), "least": min(known), "most": max(known), **some}


def remember(args: ReproduceArgs, out: Path) -> None:
    """Notes in the directory what its steps are made with; more seeds and steps may follow.  Raises `ConfigError` where it holds
    steps that were made with something else, or nobody knows with what.
    """
    asked = to_dict(dataclasses.replace(args, seeds=1, out=None, list=False, json=False))
    del asked["only"]
    path = out / "table.json"
    if any(out.glob("*/*/summary.json")):
        if not path.is_file():
            raise ConfigError("out", str(out), "a new directory, or one with the table.json of its steps")
        found = difference(asked, read_json(path))
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
        listed = [f"rdp {shlex.join(command(s, out / f'seed-{seed}'))}" for seed, plan in plans.items() for s in plan]
        return _summary(args, start, {"commands": list(dict.fromkeys(listed))}, 0)
    if args.task not in GYM_TASKS:
        make_task(args.task)
    remember(args, out)
    rows: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, str], list[float | None]] = {}
    shares: dict[str, float] = {}
    env_steps = 0
    seen: set[Path] = set()
    for seed, plan in plans.items():
        for step in plan:
            folder = out / f"seed-{seed}"
            was_there = done(place(step.name, folder)) is not None
            record = run_step(step, folder)
            if place(step.name, folder) not in seen:
                seen.add(place(step.name, folder))
                spent = max(record["wall_s"], learned_for(place(step.name, folder)))  # the former of the last call only
                shares[step.name] = shares.get(step.name, 0.0) + spent
                env_steps += 0 if was_there else record["env_steps"] or 0
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
