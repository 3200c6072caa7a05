"""`report.html` of a run that fine-tuned, refined or steered a planner on a T1 task: figures, curves, before and after in 3-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.tasks.hierarchy import Hierarchy
from rdp_jax.algos.joint import PHASES
from rdp_jax.machine import machine
from rdp_jax.metrics import read_rows
from train import output
from train.replay import Caption, Replay
from train.report import Metric, Report
from train.rollouts import Played

ROWS = (
    ("success_rate", "success", 3),
    ("falls", "falls", 0),
    ("drops", "drops", 0),
    ("timeouts", "time ran out", 0),
    ("completion_time_s", "time to success [s]", 2),
    ("hand_position_error_m", "hand position error [m]", 4),
    ("hand_orientation_error_rad", "hand orientation error [rad]", 4),
    ("hand_speed_mps", "hand speed [m/s]", 3),
)
CURVES = (
    ("eval/success_rate", "Success without exploration noise, judged on the way", "share of episodes"),
    ("policy/kl_last", "KL of the planner from the rollout's", "nat per denoising step"),
    ("value/explained_variance", "Variance of returns that the critic explains", ""),
    ("hands/reward", "Reward of the hands per tick", ""),
    ("legs/reward", "Reward of the legs per tick", ""),
    ("policy/entropy", "Entropy of the noise actor", "nat per number"),
    ("value/mean", "Value of what was done", ""),
)


MEANING = {
    "before": "the planner as it was",
    "untrained": "the same weights, sampled as fine-tuning starts (first sample, noise of the steps): nothing is learned yet",
    "untrained, sampled as after": "the same weights, sampled as what was learned: still nothing is learned",
    "planner alone": "the planner that was learned, under the controller as it was",
    "after": "what was learned: the last iteration, or the one that --keep best chose",
}
CHOSEN = {"final_std": "The std of the first sample", "final_noise": "The share of the exploration noise that stays"}


def read_curve(out: Path | None) -> list[dict[str, Any]]:
    """`metrics.jsonl` of a run directory; nothing without one."""
    return read_rows(out / "metrics.jsonl") if out else []


def a_pair(before: Played, after: Played) -> int:
    """An episode to show: lost before and won after, or else won by both, or else the first."""
    turned = np.flatnonzero(~before.success & after.success)
    both = np.flatnonzero(before.success & after.success)
    return int(next(iter([*turned, *both]), 0))


def replay_of(env: Hierarchy, played: Played, episode: int) -> Replay:
    """One recorded episode; its captions are the stages that it reached, and its end."""
    assert played.qpos is not None
    steps = int(played.steps[episode])
    dt = env.spec.control_dt
    end = max(steps - 5, 1)
    captions = [Caption(0.0, env.task.name)]
    if played.reached is not None:
        stage = np.concatenate([[0], played.reached[:end, episode]])
        captions += [
            Caption(float(t * dt), env.task.stages[stage[t]].replace("_", " "))
            for t in np.flatnonzero(np.diff(stage)) + 1
            if t < end
        ]
    captions.append(Caption(end * dt, played.ending(episode)))
    return Replay(env.control.model, played.qpos[:steps, episode], 1.0 / dt, captions=captions)


def interval(figures: Mapping[str, Any]) -> str:
    """`0.81 (0.76-0.85)`."""
    low, high = figures["success_ci95"]
    return f"{figures['success_rate']:.3f} ({low:.3f}-{high:.3f})"


def write(
    path: Path,
    env: Hierarchy,
    record: Mapping[str, Any],
    judgements: Mapping[str, Mapping[str, Any]],
    curve: Sequence[Mapping[str, Any]],
    played: Mapping[str, Played],
) -> Path:
    """Writes the page.

    Args:
      path: of the file.
      env: the task's environment.
      record: the command's summary.
      judgements: name ("before", ..., "after") -> figures of an evaluation; at least two, in order.
      curve: a row of metrics per iteration.
      played: name -> the recorded episodes of an evaluation; "before" and "after" are shown.
    """
    page = Report(
        f"{record['command']}: {record['task']}",
        f"seed {record['seed']}, {record['metrics'].get('iterations', 0)} iterations, "
        f"{output.count(record['metrics'].get('env_steps') or 0)} environment steps, "
        f"{record['wall_s'] / 60.0:.1f} minutes on {machine().get('cpu', record['device'])}",
    )
    _changed(page, judgements)
    for flag, meant in CHOSEN.items():
        scores = record["metrics"].get(f"{flag}_scores", {})
        if scores:
            said = ", ".join(f"{value}: {score:.3f}" for value, score in scores.items())
            page.add_text(f"{meant} was chosen by success on other starts ({said}).")
    _lost(page, env.task.stages, judgements)
    if curve:
        count = record["metrics"].get("iterations") or len(curve)
        _curves(page, curve, round((record["metrics"].get("env_steps") or 0) / count))
    if {"before", "after"} <= set(played) and played["before"].qpos is not None:
        page.add_section("One start, before and after")
        i = a_pair(played["before"], played["after"])
        page.add_replay(
            f"Start number {int(played['before'].seed[i])}",
            {name: replay_of(env, played[name], i) for name in ("before", "after")},
            text="Drag to turn, wheel to zoom.",
        )
    page.add_section("How this was made")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    page.add_text(
        f"`rdp {record['command']}` on `{record['task']}`, seed {record['seed']}; "
        "every setting is in `config.json` beside this page. "
        f"Commit `{record['git']}`; {versions}"
    )
    return page.write(path, overwrite=True)


def _changed(page: Report, judgements: Mapping[str, Mapping[str, Any]]) -> None:
    """What learning changed: the first judgement beside the last, and a column for each."""
    first, last = next(iter(judgements.values())), list(judgements.values())[-1]
    page.add_section("Before and after")
    page.add_metrics(
        {
            "success before": _rate(first),
            "success after": _rate(last),
            "time to success [s]": Metric(
                last["completion_time_s"], note=f"before {_said(first['completion_time_s'])}"
            ),
            "hand error [m]": Metric(
                last["hand_position_error_m"], note=f"before {_said(first['hand_position_error_m'], 4)}"
            ),
        }
    )
    rows = [
        {
            "": label,
            **{name: interval(f) if key == "success_rate" else _said(f[key], digits) for name, f in judgements.items()},
        }
        for key, label, digits in ROWS
    ]
    trials = {int(figures["trials"]) for figures in judgements.values()}
    page.add_table(
        rows,
        caption=f"{' / '.join(map(str, sorted(trials)))} fresh starts, the same ones in every column; 95 % intervals",
    )
    page.add_text("\n".join(f"- **{name}**: {MEANING[name]}" for name in judgements if name in MEANING))


def _lost(page: Report, stages: Sequence[str], judgements: Mapping[str, Mapping[str, Any]]) -> None:
    """Lost episodes by how far they came (`stages` of the task)."""
    page.add_section("Where episodes are lost")
    names = [name for name in stages if any(name in f["failures_by_stage"] for f in judgements.values())]
    lost = [
        {"furthest stage": name, **{k: f["failures_by_stage"].get(name, 0) for k, f in judgements.items()}}
        for name in names
    ]
    if lost:
        page.add_table(lost, caption="lost episodes by the furthest stage that they reached")


def controllers(row: Mapping[str, Any]) -> bool:
    """Whether the controller alone explored and learned in the iteration with these metrics."""
    return bool(row.get("phase") == PHASES.index("controller"))


def controllers_turns(curve: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Stretches of iterations in which the controller alone explores and learns, half an iteration around each."""
    turns: list[tuple[float, float]] = []
    for row in curve:
        if not controllers(row):
            continue
        start, end = row["iteration"] - 0.5, row["iteration"] + 0.5
        if turns and turns[-1][1] == start:
            start = turns.pop()[0]
        turns.append((start, end))
    return turns


def _curves(page: Report, curve: Sequence[Mapping[str, Any]], steps: int) -> None:
    """Success with its interval against iterations of `steps` environment steps, and what else was logged."""
    page.add_section("While it learned")
    iteration = np.array([row["iteration"] for row in curve])
    finished = np.array([row["episode/finished"] or 0.0 for row in curve])
    returns = np.array([np.nan if row["episode/return"] is None else row["episode/return"] for row in curve])
    known = finished > 0
    won = np.rint(returns[known] * finished[known]).astype(int)
    bounds = np.array([output.wilson(int(w), int(n)) for w, n in zip(won, finished[known], strict=True)]).reshape(-1, 2)
    turns = controllers_turns(curve)
    page.add_plot(
        "Success with exploration noise",
        {"success": (iteration[known], returns[known])},
        "iteration",
        "share of episodes",
        bands={"success": (bounds[:, 0], bounds[:, 1])},
        y_range=(0.0, 1.0),
        note=f"episodes that ended in the iteration ({output.count(steps)} environment steps), at first those won quickly; "
        "exploration costs some success"
        + ("; where the controller learns its own noise is added" if any(row.get("phase") for row in curve) else "")
        + (" (shaded: its turn alone)" if turns else ""),
        shaded=turns,
    )
    for key, title, unit in CURVES:
        rows = [(row["iteration"], row[key]) for row in curve if row.get(key) is not None]
        if len(rows) > 1:
            x, y = np.array(rows).T
            page.add_plot(title, {"": (x, y)}, "iteration", unit, shaded=turns)


def _rate(figures: Mapping[str, Any]) -> Metric:
    low, high = (round(bound, 3) for bound in figures["success_ci95"])
    return Metric(round(figures["success_rate"], 3), ci95=(low, high))


def _said(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
