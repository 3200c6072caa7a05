"""`rdp play`: episodes of a planner or of the expert as a 3-D page, as a video, and one of them as a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from matplotlib.image import imsave

from envs.tasks.catalog import make_expert
from rdp_jax.planner import Planner
from rdp_jax.runs import free_directory, write_json
from train import output
from train.actors import find_actor
from train.learning_report import replay_of
from train.rays import Camera, sheet
from train.report import Report
from train.rollouts import ExpertPlayer, Played
from train.task_args import PlayArgs
from train.tasks import HumanoidStage, check_fits, find_planner
from train.video import Video, tracked, write_video

FPS = 30.0


def run_play(args: PlayArgs) -> dict[str, Any]:
    """Plays `--trials` episodes and shows some of them.  Raises `RunError` if `--out` is not empty."""
    start = time.monotonic()
    out = free_directory(args.out, "play")
    planner: Planner | None = None
    if args.run is not None or args.which != "expert":
        planner = find_planner(args.run, args.task, args.which)
    stage = HumanoidStage(args, planner.config.history if planner else 8, record=True)
    if planner:
        check_fits(planner, stage.env)
        actor, weights = find_actor(args.run, planner)
    out.mkdir(parents=True, exist_ok=True)
    if planner:
        figures = stage.judge_actor(actor, weights, args.seed, args.trials, args.num_envs)
    else:
        player = ExpertPlayer(make_expert(args.task, stage.env))
        figures = stage.judge_player(player, None, args.seed, args.trials, args.num_envs)
    played = stage.last
    assert played is not None
    shown = choose(played, args.show, args.episodes)
    what = str(args.run) if args.run else args.which
    page = Report(f"{args.task}: {what}", f"seed {args.seed}, success {figures['success_rate']:.3f} of {args.trials}")
    page.add_section("Episodes")
    for i in shown:
        page.add_replay(f"Start number {int(played.seed[i])}", replay_of(stage.env, played, i))
    page.write(out / "replay.html")
    picture = photograph(stage, played, shown[0], out) if shown else None
    video = film(stage, played, shown, out)
    record = output.summary(
        "play",
        seed=args.seed,
        backend=stage.env.physics.name,
        num_envs=args.num_envs or args.trials,
        wall_s=time.monotonic() - start,
        metrics={
            "trials": args.trials,
            "success_rate": figures["success_rate"],
            "shown": [int(played.seed[i]) for i in shown],
            "report": str(out / "replay.html"),
            "picture": str(picture) if picture else None,
            "video": str(video.path) if video else None,
            "no_video_because": video.reason or None,
        },
        task=args.task,
        env_steps=int(played.steps.sum()),
    )
    if args.out is None:
        write_json(out / "summary.json", record)
    return record


def choose(played: Played, show: str, count: int) -> list[int]:
    """Numbers of up to `count` episodes: won ones, lost ones, or both in turns."""
    won, lost = list(np.flatnonzero(played.success)), list(np.flatnonzero(~played.success))
    if show == "won":
        found = won
    elif show == "lost":
        found = lost
    else:
        half = min(len(lost), count // 2)
        found = [*won[: count - half], *lost[:half]] if won else lost
    return [int(i) for i in found[:count]]


def film(stage: HumanoidStage, played: Played, shown: list[int], out: Any) -> Video:
    """The shown episodes one after the other."""
    if not shown:
        return Video(None, None, "no such episode")
    assert played.qpos is not None
    model, dt = stage.env.control.model, stage.env.spec.control_dt
    parts = [between(model, played.qpos[: int(played.steps[i]), i], 1.0 / dt, FPS) for i in shown]
    return write_video(out / "play.mp4", model, np.concatenate(parts), FPS, max_fps=FPS)


MOMENTS, COLUMNS, SIZE = 6, 3, (400, 300)  # of the picture
BESIDE = 50.0  # azimuth of its camera: behind the robot, on its right [degrees]


def photograph(stage: HumanoidStage, played: Played, episode: int, out: Path) -> Path:
    """Moments of an episode at equal distances, its first and its last among them."""
    assert played.qpos is not None
    model = stage.env.control.model
    when = np.linspace(0, int(played.steps[episode]) - 1, MOMENTS).round().astype(int)

    def camera(middle: np.ndarray) -> Camera:
        return Camera(middle, azimuth=BESIDE)

    found = sheet(model, played.qpos[when, episode], tracked(model), camera, SIZE, COLUMNS)
    imsave(out / "play.png", found)
    return out / "play.png"


def between(model: mujoco.MjModel, qpos: np.ndarray, fps: float, wanted: float) -> np.ndarray:
    """`(T, nq)` at `fps` -> `(T', nq)` at `wanted`, interpolated; quaternions of free joints stay of unit length."""
    if len(qpos) < 2:
        return np.asarray(qpos, np.float64)
    times = np.arange(0.0, (len(qpos) - 1) / fps, 1.0 / wanted) * fps
    first = np.minimum(times.astype(int), len(qpos) - 2)
    share = (times - first)[:, None]
    low, high = qpos[first].astype(np.float64), qpos[first + 1].astype(np.float64)
    free = [model.jnt_qposadr[j] + 3 for j in range(model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE]
    for a in free:
        # The same rotation has two quaternions.
        flip = np.sum(low[:, a : a + 4] * high[:, a : a + 4], axis=1) < 0.0
        high[flip, a : a + 4] *= -1.0
    found = (1.0 - share) * low + share * high
    for a in free:
        found[:, a : a + 4] /= np.linalg.norm(found[:, a : a + 4], axis=1, keepdims=True)
    return found
