"""Learning curves of several runs in one figure and one small JSON file:

python -m train.curves docs/figures/legs runs/legs1 runs/legs2

Runs of one kind: `rdp controller train` of one part, or `rdp finetune` on one gym task, then beside a third party's reruns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rdp_jax.runs import write_json
from train.controller_metrics import progress_metrics
from train.learning_report import read_curve
from train.recipes import RERUNS

PLANNER = "planner"
PANELS = {
    PLANNER: ("return", "return_exploring"),
    "legs": ("falls_per_10s", "touchdown_error_m", "base_velocity_error_mps"),
    "hands": ("hand_position_error_m", "hand_orientation_error_rad", "falls_per_10s"),
}
POINTS = 120  # kept per curve


def read(run: Path) -> dict[str, Any]:
    """Curve of a run directory: settings, and points."""
    info = json.loads((run / "config.json").read_text())
    config = info["config"]
    rows = read_curve(run)
    kind = "part" if "part" in config else "task"
    return {
        "seed": config["seed"],
        kind: config[kind],
        "git": info["git"],
        "versions": info["versions"],
        "points": controller_points(config, rows) if kind == "part" else [*start_of(run), *planner_points(rows)],
    }


def start_of(run: Path) -> list[dict[str, Any]]:
    """The point before the first iteration of a planner's run that has come to its end."""
    path = run / "summary.json"
    if not path.is_file():
        return []
    before = json.loads(path.read_text())["metrics"].get("return_before")
    return [{"iteration": 0, "seconds": 0.0, "return_exploring": None, "return": before}]


def planner_points(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per iteration seconds so far, the return while exploring, and that of an evaluation, where there was one."""
    seconds = np.cumsum([row["time/iteration_s"] for row in rows])
    return [
        {
            "iteration": row["iteration"],
            "seconds": round(float(s), 1),
            "return_exploring": row["episode/return"],
            "return": row.get("eval/return"),
        }
        for row, s in zip(rows, seconds, strict=True)
    ]


def controller_points(config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per kept point steps, seconds and tracking errors (means of a block)."""
    per_iteration = config["ppo"]["num_envs"] * config["ppo"]["unroll_length"]
    seconds = np.cumsum([row["time/iteration_s"] for row in rows])
    points = []
    for indices in np.array_split(np.arange(len(rows)), min(POINTS, len(rows))):
        block = indices.tolist()
        sums = {k: float(np.mean([rows[i][k] for i in block])) for k in rows[0] if k.startswith("env/")}
        last = block[-1]
        points.append(
            {
                "env_steps": rows[last]["iteration"] * per_iteration,
                "seconds": round(float(seconds[last]), 1),
                "reward": float(np.mean([rows[i]["reward/mean"] for i in block])),
                **progress_metrics(sums),
            }
        )
    return points


def plot(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per figure, one line per seed, over environment steps (iterations of a planner's)."""
    planner = "part" not in curves[0]
    panels = PANELS[PLANNER if planner else curves[0]["part"]]
    x, unit, label = ("iteration", 1, "iteration") if planner else ("env_steps", 1e6, "million environment steps")
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, name in zip(axes, panels, strict=True):
        for curve in curves:
            points = [p for p in curve["points"] if p[name] is not None]
            minutes = curve["points"][-1]["seconds"] / 60
            axis.plot(
                [p[x] / unit for p in points],
                [p[name] for p in points],
                label=f"seed {curve['seed']}, {minutes:.0f} min",
            )
        axis.set(xlabel=label, ylabel=name, yscale="linear" if planner else "log")
        axis.grid(alpha=0.3, which="both")
    if planner and curves[0]["task"] in RERUNS:
        last = curves[0]["points"][-1]["iteration"]
        others = {i: level for i, level in RERUNS[curves[0]["task"]].items() if i <= last}
        axes[0].plot(list(others), list(others.values()), "k--", label="a third party's DPPO")
    axes[0].legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    """`OUT RUN [RUN ...]`: writes OUT.json and OUT.svg."""
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(argv[0])
    curves = [read(Path(run)) for run in argv[1:]]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), {"curves": curves})
    plot(curves, out.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
