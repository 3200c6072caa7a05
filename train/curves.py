"""Learning curves of several runs in one figure and one small JSON file:

python -m train.curves docs/figures/legs runs/legs1 runs/legs2
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

PANELS = {
    "legs": ("falls_per_10s", "touchdown_error_m", "base_velocity_error_mps"),
    "hands": ("hand_position_error_m", "hand_orientation_error_rad", "falls_per_10s"),
}
POINTS = 120  # kept per curve


def read(run: Path) -> dict[str, Any]:
    """Curve of a run directory: settings, and per kept point steps, seconds and tracking errors (means of a block)."""
    info = json.loads((run / "config.json").read_text())
    config = info["config"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    per_iteration = config["ppo"]["num_envs"] * config["ppo"]["unroll_length"]
    seconds = np.cumsum([row["time/iteration_s"] for row in rows])
    points = []
    for block in np.array_split(np.arange(len(rows)), min(POINTS, len(rows))):
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
    return {
        "seed": config["seed"],
        "part": config["part"],
        "git": info["git"],
        "versions": info["versions"],
        "points": points,
    }


def plot(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per error, one line per seed, over environment steps."""
    panels = PANELS[curves[0]["part"]]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), layout="constrained")
    for axis, name in zip(axes, panels, strict=True):
        for curve in curves:
            points = [p for p in curve["points"] if p[name] is not None]
            minutes = points[-1]["seconds"] / 60
            label = f"seed {curve['seed']}, {minutes:.0f} min"
            axis.plot([p["env_steps"] / 1e6 for p in points], [p[name] for p in points], label=label)
        axis.set(xlabel="million environment steps", ylabel=name, yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(path)


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
