"""A trajectory as an MP4: MuJoCo's renderer, off screen, on EGL or OSMesa; without OpenGL ray by ray, smaller, fewer frames.

Drawing happens in a process of its own, one per way of drawing tried: the way is fixed by an environment variable before
MuJoCo is loaded, and a failed start of OpenGL may end the process. Where none works the result says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

RAYS = "rays"
BACKENDS = ("egl", "osmesa", RAYS)
RAYS_FPS, RAYS_HEIGHT = 10.0, 240  # at most: a frame of 320 x 240 takes a tenth of a second and more
TRACK_NAMES = ("Trunk", "trunk", "torso", "pelvis")


@dataclass(frozen=True)
class Video:
    """What came of it: the file and how it was drawn, or None and the reason; true when there is a file."""

    path: Path | None
    backend: str | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.path is not None


def write_video(
    path: str | os.PathLike[str],
    model: mujoco.MjModel,
    qpos: np.ndarray,
    fps: float,
    size: tuple[int, int] = (640, 480),
    *,
    track: str | None = None,
    max_fps: float = 30.0,
    timeout_s: float = 600.0,
    backends: tuple[str, ...] = BACKENDS,
) -> Video:
    """Draws `qpos` (T, nq) at `fps` as a video of `size` (width, height; even) with the camera on body `track`.

    Frames are thinned by a whole number to at most about `max_fps` (ray by ray: `RAYS_FPS`, of `RAYS_HEIGHT`).
    An existing file is replaced, and only by a whole video.
    """
    qpos = np.asarray(qpos, np.float64)
    if qpos.ndim != 2 or len(qpos) == 0 or qpos.shape[1] != model.nq:
        raise ValueError(f"qpos must be (T, {model.nq}) with T > 0, not {qpos.shape}")
    if any(s <= 0 or s % 2 for s in size):
        raise ValueError(f"size must be two even numbers, not {size}")
    tracked(model, track)
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons, stops = [], len(_stops)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        job = Path(folder)
        mujoco.mj_saveModel(model, str(job / "model.mjb"))
        for backend in backends:
            stride = max(1, round(fps / (min(max_fps, RAYS_FPS) if backend == RAYS else max_fps)))
            shrink = min(1.0, RAYS_HEIGHT / size[1]) if backend == RAYS else 1.0
            even = [max(2, 2 * round(shrink * side / 2)) for side in size]
            np.save(job / "qpos.npy", qpos[::stride])
            what = {"fps": fps / stride, "size": even, "track": track, "backend": backend}
            (job / "job.json").write_text(json.dumps(what))
            reason = _draw_apart(job, backend, timeout_s)
            if not reason:
                os.replace(job / "video.mp4", path)
                return Video(path, backend)
            if len(_stops) > stops:
                return Video(None, None, "stopped")
            reasons.append(f"{backend}: {reason}")
    return Video(None, None, "; ".join(reasons))


_drawing: set[subprocess.Popen[str]] = set()
_stops: list[None] = []  # an entry for each `stop_drawing`


def stop_drawing() -> None:
    """Ends what is being drawn, in whatever thread; there will be no video then, and no other way of drawing is tried."""
    _stops.append(None)
    for child in tuple(_drawing):
        _stop(child)


def _stop(child: subprocess.Popen[str]) -> None:
    """With the encoder that it has started: both are in a session of their own."""
    _drawing.discard(child)
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _draw_apart(job: Path, backend: str, timeout_s: float) -> str:
    """Runs `_draw` in another process; empty, or why there is no video."""
    env = dict(os.environ, MUJOCO_GL="disabled" if backend == RAYS else backend, PYOPENGL_PLATFORM=backend)
    command = [sys.executable, "-P", str(Path(__file__).resolve()), str(job)]
    child = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _drawing.add(child)
    try:
        _, told = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout_s:g} s"
    finally:
        _stop(child)
    if child.returncode == 0 and (job / "video.mp4").exists():
        return ""
    # The first error is the cause: those after it follow from it.
    error = re.search(r"^[\w.]*(?:Error|Exception): .*", told, re.MULTILINE)
    last = told.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
    return (error.group() if error else last[0])[:300]


def tracked(model: mujoco.MjModel, name: str | None = None) -> int:
    """The body that a camera follows: that of this name, or the trunk.  Raises `ValueError` if there is none of the name."""
    names = [model.body(i).name for i in range(model.nbody)]
    for candidate in (name,) if name is not None else TRACK_NAMES:
        if candidate in names:
            return names.index(candidate)
    if name is not None:
        raise ValueError(f"no body named {name!r} to track")
    return min(1, model.nbody - 1)


def _add_floor(scene: mujoco.MjvScene) -> None:
    """A grey ground at height 0 under a robot that comes without one."""
    if scene.ngeom < scene.maxgeom:
        plane, size, place = mujoco.mjtGeom.mjGEOM_PLANE, np.array([20.0, 20.0, 0.1]), np.zeros(3)
        color = np.array([0.55, 0.58, 0.62, 1.0], np.float32)
        mujoco.mjv_initGeom(scene.geoms[scene.ngeom], plane, size, place, np.eye(3).ravel(), color)
        scene.ngeom += 1


def _draw(job: Path) -> None:
    """Draws the job in this process; called with MUJOCO_GL set."""
    import imageio_ffmpeg

    sys.path.append(str(Path(__file__).resolve().parents[1]))  # this file is run as a script
    what = json.loads((job / "job.json").read_text())
    model, qpos = mujoco.MjModel.from_binary_path(str(job / "model.mjb")), np.load(job / "qpos.npy")
    size, body, data = tuple(what["size"]), tracked(model, what["track"]), mujoco.MjData(model)
    part = str(job / "part.mp4")
    writer = imageio_ffmpeg.write_frames(
        part, size, fps=what["fps"], codec="libx264", quality=7, macro_block_size=2, ffmpeg_log_level="error"
    )
    with (_with_rays if what["backend"] == RAYS else _with_opengl)(model, size, body) as draw:
        writer.send(None)
        for q in qpos:
            data.qpos[:] = q
            mujoco.mj_forward(model, data)
            writer.send(np.ascontiguousarray(draw(data)))
    writer.close()
    os.replace(part, job / "video.mp4")


Draw = Callable[[mujoco.MjData], np.ndarray]


@contextlib.contextmanager
def _with_opengl(model: mujoco.MjModel, size: tuple[int, int], body: int) -> Iterator[Draw]:
    """Draws with MuJoCo's renderer, from where rays would be cast."""
    from train.rays import Camera

    width, height = size
    model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(height, model.vis.global_.offheight)
    if model.nlight == 0:  # a model that was not lit to be looked at
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.35, 0.65
    floor = not (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE).any()
    camera = mujoco.MjvCamera()
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, body
    camera.distance, camera.azimuth, camera.elevation = Camera.distance, Camera.azimuth, Camera.elevation
    with mujoco.Renderer(model, height, width) as renderer:

        def draw(data: mujoco.MjData) -> np.ndarray:
            renderer.update_scene(data, camera)
            if floor:
                _add_floor(renderer.scene)
            return renderer.render()

        yield draw


@contextlib.contextmanager
def _with_rays(model: mujoco.MjModel, size: tuple[int, int], body: int) -> Iterator[Draw]:
    """Draws without OpenGL."""
    from train.rays import Camera, picture

    yield lambda data: picture(model, data, Camera(data.subtree_com[body]), size)


if __name__ == "__main__":
    _draw(Path(sys.argv[1]))
