"""Names and arithmetic of the tracking errors that training, evaluation and reports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def progress_metrics(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Tracking errors of a batch of ticks, from sums and counts, in the names of the evaluation."""

    def ratio(a: str, b: str) -> float | None:
        return float(metrics[a]) / float(metrics[b]) if float(metrics.get(b, 0.0)) > 0 else None

    if not metrics:
        return {}
    prefix = "env/" if "env/fall" in metrics else ""
    return {
        "falls_per_10s": 500.0 * float(metrics[f"{prefix}fall"]),
        "touchdown_error_m": ratio(f"{prefix}touchdown/error_m", f"{prefix}touchdown/count"),
        "touchdown_yaw_error_rad": ratio(f"{prefix}touchdown/yaw_error_rad", f"{prefix}touchdown/count"),
        "base_velocity_error_mps": ratio(f"{prefix}velocity/error_mps", f"{prefix}velocity/count"),
        "hand_position_error_m": float(metrics[f"{prefix}hand/position_error_m"]),
        "hand_orientation_error_rad": float(metrics[f"{prefix}hand/orientation_error_rad"]),
    }
