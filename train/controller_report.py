"""What a report says about the controller: numbers with their targets, tracking plots, footsteps from above, replays.

Everything is made from `train.course.Record`s, whose shapes are T ticks, B robots.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import mujoco
import numpy as np

from envs.control.controller import CONTROL_DT
from envs.t1.model import build_spec, scene
from train.course import Record
from train.output import wilson
from train.replay import Caption, Marker, Replay
from train.report import Metric, Report

FOOT = (0.2, 0.096)  # sole, length and width [m]
FOOT_CENTRE = 0.01  # its middle ahead of the sole's site [m]
HELD = 1.2  # seconds of lying on the ground that a replay shows
PUSH_SHOWN = 0.5  # [s]
LEFT, RIGHT, GOAL, PUSH = "#2563c9", "#a93a86", "#f59e0b", "#dc2626"


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a number is called in a report, in which unit (`factor` times its own), and what it should be."""

    label: str
    unit: str
    target: float
    factor: float = 1.0
    lower: bool = True


AIMS: Mapping[str, Aim] = {
    "survival_rate": Aim("Stayed up", "%", 98.0, 100.0, lower=False),
    "touchdown_error_m": Aim("Touchdown error", "cm", 1.5, 100.0),
    "base_velocity_error_mps": Aim("Base velocity error", "m/s", 0.06),
    "hand_position_error_m": Aim("Hand position error", "cm", 2.0, 100.0),
    "hand_orientation_error_rad": Aim("Hand orientation error", "rad", 0.15),
}


# --- numbers -----------------------------------------------------------------------------------------------------------


def _mean(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(values[where].mean()) if where.any() else None


def numbers(record: Record, robots: slice = slice(None)) -> dict[str, Any]:
    """Tracking metrics of some robots, in the names of `rdp controller eval`; what follows a fall counts for nothing."""
    up = record.up[:, robots]
    landed, judged = record.landed[:, robots] & up, record.judged[:, robots] & up
    alive = record.alive[robots]
    landing_error = record.landing_error[:, robots]
    seconds = float(up.sum()) * CONTROL_DT
    return {
        "episodes": len(alive),
        "survived": int(alive.sum()),
        "survival_rate": float(alive.mean()),
        "survival_ci95": list(wilson(int(alive.sum()), len(alive))),
        "upright_s": seconds / len(alive),
        "falls_per_10s": 10.0 * float((~alive).sum()) / max(seconds, CONTROL_DT),
        "touchdowns": int(landed.sum()),
        "touchdown_error_m": _mean(landing_error, landed),
        "touchdown_error_p90_m": float(np.quantile(landing_error[landed], 0.9)) if landed.any() else None,
        "touchdown_yaw_error_rad": _mean(record.landing_yaw_error[:, robots], landed),
        "base_velocity_error_mps": _mean(record.velocity_error[:, robots], judged),
        "hand_position_error_m": _mean(record.hand_pos_error[:, robots], up),
        "hand_orientation_error_rad": _mean(record.hand_rot_error[:, robots], up),
    }


def rounded(value: float | None, digits: int = 2) -> float | None:
    """To significant digits; more would be read as certainty."""
    return None if value is None else float(f"{value:.{digits}g}") if value < 100 else round(value)


def tiles(found: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> dict[str, Metric]:
    """The numbers that have a target, as tiles."""
    out = {}
    for name, aim in AIMS.items():
        value = found[name]
        note = (notes or {}).get(name, "")
        interval = None
        if name == "survival_rate":
            note = f"{found['survived']} of {found['episodes']} runs"
            low, high = found["survival_ci95"]
            interval = (round(100 * low), round(100 * high))
        value = None if value is None else rounded(aim.factor * value)
        better: Literal["higher", "lower"] = "lower" if aim.lower else "higher"
        out[aim.label] = Metric(value, aim.unit, aim.target, better, interval, note)
    return out


def table_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table that compares conditions."""

    def scaled(key: str, factor: float, digits: int) -> float | None:
        return None if found[key] is None else round(factor * found[key], digits)

    low, high = found["survival_ci95"]
    return {
        "condition": name,
        "stayed up": f"{found['survived']} of {found['episodes']} ({100 * low:.0f} to {100 * high:.0f} %)",
        "time up": f"{found['upright_s']:.1f} s",
        "touchdown, cm": scaled("touchdown_error_m", 100, 2),
        "90 % below": scaled("touchdown_error_p90_m", 100, 2),
        "base, m/s": scaled("base_velocity_error_mps", 1, 3),
        "hand, cm": scaled("hand_position_error_m", 100, 2),
        "hand, rad": scaled("hand_orientation_error_rad", 1, 3),
    }


# --- plots -------------------------------------------------------------------------------------------------------------


def _lasting(record: Record, robot: int) -> int:
    """Ticks until a robot fell, or all."""
    return int(record.up[:, robot].sum())


def measured_velocity(record: Record, robot: int) -> tuple[np.ndarray, np.ndarray]:
    """Times `(2 n,)` [s] and velocities `(2 n, 3)` of the n stretches over which velocity is judged, as a staircase."""
    ticks = np.flatnonzero(record.judged[:, robot] & record.up[:, robot])
    end = (ticks + 1) * CONTROL_DT
    begin = end - record.window[ticks, robot]
    return np.stack([begin, end], axis=1).ravel(), np.repeat(record.moved[ticks, robot], 2, axis=0)


def add_velocity(report: Report, record: Record, robot: int = 0) -> None:
    """Base velocity, asked and measured, one plot per direction."""
    n = _lasting(record, robot)
    time = np.arange(n) * CONTROL_DT
    asked = np.asarray(record.commands.velocity)[:n, robot]
    x, y = measured_velocity(record, robot)
    for axis, (name, unit) in enumerate((("forward", "m/s"), ("to the left", "m/s"), ("turning left", "rad/s"))):
        report.add_plot(
            f"Base velocity {name}",
            {"asked": (time, asked[:, axis]), "measured": (x, y[:, axis])},
            "s",
            unit,
            note="measured as the mean over each step, or over half a second of standing",
        )


def _smooth(values: np.ndarray, ticks: int = 10) -> np.ndarray:
    """Running mean over `ticks`, of `(T,)`."""
    kernel = np.ones(max(1, min(ticks, len(values))))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def add_hands(report: Report, record: Record, robots: Mapping[str, int]) -> None:
    """Hand errors over time of a few robots, the mean of both hands."""
    shown = {name: (robot, _lasting(record, robot)) for name, robot in robots.items()}
    note = "mean of both hands, running mean over 0.2 s"
    for key, errors in (
        ("hand_position_error_m", record.hand_pos_error),
        ("hand_orientation_error_rad", record.hand_rot_error),
    ):
        aim = AIMS[key]
        series = {
            name: (np.arange(n) * CONTROL_DT, _smooth(aim.factor * errors[:n, robot].mean(axis=1)))
            for name, (robot, n) in shown.items()
        }
        targets = {f"target {aim.target:g} {aim.unit}": aim.target}
        report.add_plot(aim.label, series, "s", aim.unit, targets=targets, note=note, y_range=(0.0, None))


def add_touchdowns(report: Report, record: Record, robots: Mapping[str, int]) -> None:
    """Touchdown error of each step of a few robots."""
    aim, series = AIMS["touchdown_error_m"], {}
    for name, robot in robots.items():
        ticks = np.flatnonzero(record.landed[:, robot] & record.up[:, robot])
        seconds, errors = ticks * CONTROL_DT, aim.factor * record.landing_error[ticks, robot]
        stood = np.flatnonzero(np.diff(seconds) > 1.0) + 1  # no line across a rest
        series[name] = (np.insert(seconds, stood, np.nan), np.insert(errors, stood, np.nan))
    report.add_plot(
        aim.label,
        series,
        "s",
        aim.unit,
        targets={f"target {aim.target:g} {aim.unit}": aim.target},
        note="horizontal distance of the foot to where it was to land, at the end of each step",
        y_range=(0.0, None),
    )


def _foot_path(pose: np.ndarray, place) -> str:
    """Outline of a sole at `pose (4,)` as the points of an SVG polygon."""
    half, wide = 0.5 * FOOT[0], 0.5 * FOOT[1]
    # A rectangle with cut corners reads as a foot, a bare one as a box.
    corners = np.array(
        [
            (half, 0.5 * wide),
            (0.75 * half, wide),
            (-0.8 * half, wide),
            (-half, 0.6 * wide),
            (-half, -0.6 * wide),
            (-0.8 * half, -wide),
            (0.75 * half, -wide),
            (half, -0.5 * wide),
        ]
    )
    corners[:, 0] += FOOT_CENTRE
    c, s = np.cos(pose[3]), np.sin(pose[3])
    world = pose[:2] + corners @ np.array([[c, s], [-s, c]])
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, world))


def _walks(record: Record, robot: int, captions: Iterable[Caption]) -> list[tuple[int, str]]:
    """Tick and text of the captions at which a velocity other than zero begins, before any fall."""
    begins = [(round(c.start / CONTROL_DT), c.text) for c in captions]
    velocity = np.asarray(record.commands.velocity)[:, robot]
    return [(tick, text) for tick, text in begins if tick < _lasting(record, robot) and velocity[tick].any()]


def footsteps(record: Record, robot: int = 0, captions: Iterable[Caption] = (), width: int = 1000) -> str:
    """Footsteps from above as an inline SVG: where feet were to land (dashed), where they did (filled), the trunk's path."""
    n = _lasting(record, robot)
    ticks = np.flatnonzero(record.landed[:n, robot])
    path = record.base[:n:5, robot, :2]
    swing = record.swing[ticks, robot]
    landed = record.feet[ticks, robot, swing]
    target = record.target[ticks, robot]
    cloud = np.concatenate([path, landed[:, :2], target[:, :2], record.feet[0, robot, :, :2]])
    lo, hi = cloud.min(axis=0) - 0.22, cloud.max(axis=0) + 0.22
    # The longer side lies flat.
    upright = (hi - lo)[1] > (hi - lo)[0]
    long, short = (hi - lo)[::-1] if upright else hi - lo
    scale = width / long

    def place(xy: np.ndarray) -> tuple[float, float]:
        """World to picture: x to the right and y up, or y to the left and x up."""
        if upright:
            return (hi[1] - xy[1]) * scale, (hi[0] - xy[0]) * scale
        return (xy[0] - lo[0]) * scale, (hi[1] - xy[1]) * scale

    color = ("var(--s0)", "var(--s3)")
    out = [f'<svg viewBox="0 0 {width} {short * scale:.0f}" role="img" aria-label="footsteps from above">']
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, path))
    out.append(f'<polyline points="{line}" fill="none" stroke="var(--ink-2)" stroke-width="1.6" opacity="0.7"/>')
    for side in range(2):
        out.append(
            f'<polygon points="{_foot_path(record.feet[0, robot, side], place)}" fill="var(--ink-2)" opacity="0.35"/>'
        )
    for pose, side in zip(landed, swing):
        out.append(f'<polygon points="{_foot_path(pose, place)}" fill="{color[side]}" fill-opacity="0.24"/>')
    for pose, side in zip(target, swing):
        out.append(
            f'<polygon points="{_foot_path(pose, place)}" fill="none" stroke="{color[side]}" stroke-width="1.3" '
            'stroke-dasharray="4 3"/>'
        )
    spots: list[tuple[float, float]] = []
    for number, (tick, _) in enumerate(_walks(record, robot, captions), 1):
        x, y = place(record.base[tick, robot, :2])
        while any(abs(x - a) < 19 and abs(y - b) < 19 for a, b in spots):
            y += 20
        spots.append((x, y))
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9.5" fill="var(--ink)"/>')
        out.append(
            f'<text x="{x:.1f}" y="{y + 4.5:.1f}" font-size="13" text-anchor="middle" fill="var(--card)">{number}</text>'
        )
    bar, low = 0.5 * scale, short * scale - 14
    out.append(f'<path d="M14 {low:.0f}h{bar:.0f}" stroke="var(--ink)" stroke-width="3"/>')
    out.append(f'<text x="14" y="{low - 8:.0f}" font-size="14" fill="var(--ink)">0.5 m</text></svg>')
    return "".join(out)


def add_footsteps(report: Report, record: Record, robot: int = 0, captions: Iterable[Caption] = ()) -> None:
    """The picture of `footsteps` with its legend."""
    legend = "".join(
        f'<span style="--c:var({color});--dash:{dash}">{name}</span>'
        for color, dash, name in (
            ("--s0", "dashed", "left foot, target"),
            ("--s0", "solid", "landed"),
            ("--s3", "dashed", "right foot, target"),
            ("--s3", "solid", "landed"),
            ("--ink-2", "solid", "trunk"),
        )
    )
    svg = footsteps(record, robot, captions).replace("<svg ", '<svg style="max-width:none" ', 1)
    walks = ", ".join(f"{i} {html.escape(text)}" for i, (_, text) in enumerate(_walks(record, robot, captions), 1))
    head = f"<figcaption>Footsteps from above<small>{walks}</small></figcaption>"
    report.add_text(f'<figure>{head}<div class="legend">{legend}</div>{svg}</figure>')


# --- replays -----------------------------------------------------------------------------------------------------------


def robot_model(loaded: bool = False) -> mujoco.MjModel:
    """The robot on flat ground as it is drawn; `loaded` puts a ball into each hand."""
    spec = build_spec(scene("flat"))
    if loaded:
        for side in ("left", "right"):
            spec.body(f"{side}_payload").add_geom(
                type=mujoco.mjtGeom.mjGEOM_SPHERE,
                size=[0.034, 0, 0],
                rgba=[0.83, 0.42, 0.1, 1],
                group=1,
                contype=0,
                conaffinity=0,
                mass=0.0,
            )
    return spec.compile()


def shown_qpos(record: Record, robot: int) -> np.ndarray:
    """`(T, nq)`: a robot's motion, still from a moment after a fall on."""
    qpos = record.qpos[:, robot].astype(np.float64)
    last = _lasting(record, robot) + round(HELD / CONTROL_DT)
    if last < len(qpos):
        qpos[last:] = qpos[last]
    bad = ~np.isfinite(qpos).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        qpos[first:] = qpos[max(0, first - 1)]
    return qpos


def _quat_of(rot: np.ndarray) -> np.ndarray:
    """Rotation matrices `(T, 3, 3)` -> quaternions `(T, 4)`, w first."""
    out = np.empty((len(rot), 4))
    for i, matrix in enumerate(rot):
        mujoco.mju_mat2Quat(out[i], matrix.astype(np.float64).ravel())
    return out


def _world(qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position `(T, 3)` and rotation `(T, 3, 3)` of the trunk."""
    rot = np.empty((len(qpos), 9))
    for i, q in enumerate(qpos):
        mujoco.mju_quat2Mat(rot[i], q[3:7])
    return qpos[:, :3], rot.reshape(-1, 3, 3)


def markers(record: Record, robot: int, qpos: np.ndarray) -> list[Marker]:
    """Hand targets, the placement of the foot in the air, and pushes, as long as the robot is up."""
    n, ticks = _lasting(record, robot), record.ticks
    gone = np.arange(ticks) >= n
    pos, rot = _world(qpos)
    out = []
    hand_pos, hand_rot = (np.asarray(x)[:ticks, robot] for x in (record.commands.hand_pos, record.commands.hand_rot))
    for side, name in enumerate(("left hand target", "right hand target")):
        goal = pos + np.einsum("tij,tj->ti", rot, hand_pos[:, side])
        goal[gone] = np.nan
        out.append(Marker(name, "frame", goal, _quat_of(rot @ hand_rot[:, side]), 0.09, (LEFT, RIGHT)[side]))
    target = record.target[:, robot].astype(np.float64)
    c, s = np.cos(target[:, 3]), np.sin(target[:, 3])
    place = target[:, :3] + FOOT_CENTRE * np.stack([c, s, 0 * s], axis=1) + [0, 0, 0.004]
    place[gone | ~record.walking[:, robot]] = np.nan
    quat = np.stack([np.cos(0.5 * target[:, 3]), 0 * s, 0 * s, np.sin(0.5 * target[:, 3])], axis=1)
    out.append(Marker("foot target", "outline", place, quat, FOOT, GOAL))
    kicks = record.kicks[:, robot]
    if kicks.any():
        arrow = np.full((ticks, 2, 3), np.nan)
        for tick in np.flatnonzero(kicks.any(axis=1)):
            stretch = slice(tick, min(tick + round(PUSH_SHOWN / CONTROL_DT), n))
            push = np.append(kicks[tick] / np.linalg.norm(kicks[tick]), 0.0)
            head = pos[stretch] + [0, 0, 0.14] - 0.12 * push
            arrow[stretch, 1], arrow[stretch, 0] = head, head - 0.45 * push
        out.append(Marker("push", "arrow", arrow, size=0.03, color=PUSH))
    return out


def replay(
    record: Record, robot: int, model: mujoco.MjModel, captions: Iterable[Caption] = (), max_fps: float = 25.0
) -> Replay:
    """A robot's motion with its targets; a fall gets a caption of its own."""
    qpos = shown_qpos(record, robot)
    fell = record.fell_at(robot)
    shown = list(captions)
    if fell is not None:
        shown = [
            dataclasses.replace(c, end=fell if c.end is None else min(c.end, fell)) for c in shown if c.start < fell
        ]
        shown.append(Caption(fell, f"Fell after {fell:.1f} s"))
    return Replay(model, qpos, 1.0 / CONTROL_DT, markers=markers(record, robot, qpos), captions=shown, max_fps=max_fps)


# --- learning ----------------------------------------------------------------------------------------------------------


def add_learning(report: Report, curves: Sequence[Mapping[str, Any]]) -> None:
    """Curves of a training run.

    An entry of `curves` per iteration, with `seconds`, `reward`, `falls_per_10s`, `touchdown_error_m`, `episode_s`.
    """
    seconds = np.array([c["seconds"] for c in curves])
    for key, title, unit, factor in (
        ("reward", "Reward per tick", "", 1.0),
        ("falls_per_10s", "Falls per 10 s", "", 1.0),
        ("touchdown_error_m", "Touchdown error", "cm", 100.0),
        ("episode_s", "Length of an episode", "s", 1.0),
    ):
        values = np.array([np.nan if c[key] is None else factor * c[key] for c in curves])
        known = np.isfinite(values)
        if not known.any():
            continue
        smooth = _smooth(np.interp(seconds, seconds[known], values[known]), 7)
        report.add_plot(
            title,
            {"per iteration": (seconds, values), "running mean over 7": (seconds, smooth)},
            "s of training",
            unit,
            note="with exploration noise, every disturbance on",
        )
