"""Recorded motion as a small JSON-able dictionary, for the viewer inside a report.

A `Replay` turns a model and a trajectory of generalised positions into what a viewer needs and nothing more: the visible
geoms (type, size, colour, place on their body) and, per frame, the world pose of every body that moves. Poses come from
`mj_kinematics` and are stored as 16-bit integers: positions against the range of the whole recording (10 m -> 0.15 mm),
quaternion components against [-1, 1]. Half a minute of a 31-body robot at 25 fps takes about 0.5 MB.

Shapes: T frames, B stored bodies, M moving bodies, K points of a marker.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

FORMAT = 1
LEVELS = 32767  # int16 codes run over [-LEVELS, LEVELS]
HIDDEN = -32768  # first coordinate of a marker point that is not shown in this frame
MARKER_KINDS = ("frame", "sphere", "outline", "path", "arrow")
TRACK_NAMES = ("Trunk", "trunk", "torso", "Torso", "pelvis", "Pelvis", "base", "base_link")
_GEOM = mujoco.mjtGeom
_TYPES = {
    int(_GEOM.mjGEOM_PLANE): "plane",
    int(_GEOM.mjGEOM_SPHERE): "sphere",
    int(_GEOM.mjGEOM_CAPSULE): "capsule",
    int(_GEOM.mjGEOM_ELLIPSOID): "ellipsoid",
    int(_GEOM.mjGEOM_CYLINDER): "cylinder",
    int(_GEOM.mjGEOM_BOX): "box",
}


@dataclass(frozen=True, eq=False)
class Marker:
    """Something drawn over the motion: a goal, a planned path, a commanded velocity.

    `kind` and the shape of `pos` [m, world]:
      `frame`, `sphere`: (T, 3), or (3,) for a fixed one; `frame` takes `quat` (w, x, y, z), `size` is length or radius [m];
      `outline`: a flat rectangle, (T, 3) with `quat`, `size` the full (length, width) [m], as for a foot's goal;
      `path`: (T, K, 3), a line through K points; `arrow`: (T, 2, 3), from the first point to the second.
    A point with NaN is not shown in that frame.
    """

    name: str
    kind: str
    pos: np.ndarray
    quat: np.ndarray | None = None
    size: float | tuple[float, float] = 0.05
    color: str = "#f59e0b"


@dataclass(frozen=True)
class Caption:
    """A named stretch of the timeline, from `start` [s] to `end` [s] (or to the next caption, or the end)."""

    start: float
    text: str
    end: float | None = None


class Replay:
    """A model and its trajectory `qpos` (T, nq) at `fps`, ready to be shown.

    Frames are thinned by a whole number so that at most about `max_fps` of them remain; marker arrays have the same T as
    `qpos` and are thinned with it. Geoms in `groups` are shown unless fully transparent. The camera follows body `track`
    (by default one with a trunk's name, else the first with a free joint); `ids` numbers the bodies stored.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        qpos: np.ndarray,
        fps: float,
        *,
        markers: Iterable[Marker] = (),
        captions: Iterable[Caption | tuple[float, str]] = (),
        groups: Sequence[int] = (0, 1, 2),
        track: str | None = None,
        max_fps: float = 25.0,
    ):
        qpos = np.asarray(qpos, np.float64)
        if qpos.ndim != 2 or qpos.shape[0] == 0 or qpos.shape[1] != model.nq:
            raise ValueError(f"qpos must be (T, {model.nq}) with T > 0, not {qpos.shape}")
        if not fps > 0.0 or not max_fps > 0.0:
            raise ValueError(f"fps and max_fps must be positive, not {fps} and {max_fps}")
        bad = ~np.isfinite(qpos).all(axis=1)
        if bad.any():
            raise ValueError(f"qpos is not finite at frame {int(bad.argmax())} ({int(bad.sum())} such frames)")
        total, stride = len(qpos), max(1, round(fps / max_fps))
        self.fps = float(fps) / stride
        self.frames = len(qpos[::stride])
        self.captions = _captions(captions, self.duration)
        self.markers = [_marker(m, total, stride) for m in markers]
        shown = [i for i in range(model.ngeom) if model.geom_group[i] in groups and _rgba(model, i)[3] > 0.0]
        track_id = _track_body(model, track)
        ids = sorted({int(model.geom_bodyid[i]) for i in shown} | {track_id})
        self.ids = ids
        self.bodies = [model.body(i).name or f"body{i}" for i in ids]
        self.track = ids.index(track_id)
        self.geoms = [_geom(model, i, ids.index(int(model.geom_bodyid[i]))) for i in shown]
        self.pos, self.quat = body_poses(model, qpos[::stride], ids)

    @property
    def duration(self) -> float:
        """Time from the first frame to the last [s]."""
        return (self.frames - 1) / self.fps

    def to_dict(self) -> dict[str, Any]:
        """The replay as plain JSON values; arrays are base64 of little-endian int16."""
        still = _still(self.pos, self.quat)
        moving = ~still
        clouds = [self.pos.reshape(-1, 3)] + [m.pos.reshape(-1, 3) for m in self.markers]
        cloud = np.concatenate(clouds)
        lo, hi = np.nanmin(cloud, axis=0), np.nanmax(cloud, axis=0)
        hi = np.maximum(hi, lo + 1e-3)
        bodies = []
        for i, name in enumerate(self.bodies):
            pose = np.concatenate([self.pos[0, i], self.quat[0, i]])
            bodies.append({"name": name, "pose": _short(pose, 7)} if still[i] else {"name": name})
        return {
            "format": FORMAT,
            "fps": self.fps,
            "frames": self.frames,
            "lo": lo.tolist(),
            "hi": hi.tolist(),
            "track": self.track,
            "bodies": bodies,
            "geoms": self.geoms,
            "pos": _pack(_quantise(self.pos[:, moving], lo, hi)),  # (T, M, 3)
            "quat": _pack(_quantise(self.quat[:, moving], -1.0, 1.0)),  # (T, M, 4)
            "captions": [{"start": c.start, "end": c.end, "text": c.text} for c in self.captions],
            "markers": [_marker_dict(m, lo, hi) for m in self.markers],
        }


def body_poses(model: mujoco.MjModel, qpos: np.ndarray, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """World positions (T, B, 3) [m] and quaternions (T, B, 4) of the bodies `ids` along `qpos` (T, nq)."""
    data = mujoco.MjData(model)
    pos, quat = np.empty((len(qpos), len(ids), 3)), np.empty((len(qpos), len(ids), 4))
    for t, q in enumerate(qpos):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        pos[t], quat[t] = data.xpos[ids], data.xquat[ids]
    return pos, quat


def decode(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The poses in a replay's dictionary: positions (T, B, 3) [m] and unit quaternions (T, B, 4). What the viewer does."""
    frames, bodies = data["frames"], data["bodies"]
    lo, hi = np.asarray(data["lo"]), np.asarray(data["hi"])
    moving = np.array(["pose" not in b for b in bodies], bool)
    pos, quat = np.empty((frames, len(bodies), 3)), np.empty((frames, len(bodies), 4))
    pos[:, moving] = _restore(_unpack(data["pos"]).reshape(frames, -1, 3), lo, hi)
    quat[:, moving] = _restore(_unpack(data["quat"]).reshape(frames, -1, 4), -1.0, 1.0)
    for i in np.flatnonzero(~moving):
        pos[:, i], quat[:, i] = bodies[i]["pose"][:3], bodies[i]["pose"][3:]
    return pos, quat / np.linalg.norm(quat, axis=-1, keepdims=True)


def _quantise(x: np.ndarray, lo: Any, hi: Any) -> np.ndarray:
    """Int16 codes of `x` within [lo, hi]; a NaN becomes HIDDEN."""
    code = np.rint((x - lo) / (np.asarray(hi) - lo) * (2 * LEVELS)) - LEVELS
    return np.where(np.isfinite(code), np.clip(code, -LEVELS, LEVELS), HIDDEN).astype("<i2")


def _restore(code: np.ndarray, lo: Any, hi: Any) -> np.ndarray:
    return lo + (code.astype(np.float64) + LEVELS) / (2 * LEVELS) * (np.asarray(hi) - lo)


def _pack(code: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(code, "<i2").tobytes()).decode("ascii")


def _unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i2")


def _still(pos: np.ndarray, quat: np.ndarray) -> np.ndarray:
    """(B,) whether a body never moves."""
    return (np.ptp(pos, axis=0).max(axis=-1) < 1e-9) & (np.ptp(quat, axis=0).max(axis=-1) < 1e-9)


def _short(x: np.ndarray, digits: int = 5) -> list[float]:
    return [round(float(v), digits) for v in x]


def _rgba(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """A geom's colour: its material's, unless it has a colour of its own (MuJoCo's rule)."""
    material, own = int(model.geom_matid[geom]), model.geom_rgba[geom]
    default = np.allclose(own, (0.5, 0.5, 0.5, 1.0))
    return model.mat_rgba[material] if material >= 0 and default else own


def _geom(model: mujoco.MjModel, geom: int, body: int) -> dict[str, Any]:
    """One geom; a type the viewer does not draw (a mesh, a height field) is shown as its bounding box."""
    kind, size = _TYPES.get(int(model.geom_type[geom])), model.geom_size[geom].copy()
    pos, quat = model.geom_pos[geom].copy(), model.geom_quat[geom]
    if kind is None:
        kind, size = "box", np.maximum(model.geom_aabb[geom, 3:], 1e-3)
        offset = np.empty(3)
        mujoco.mju_rotVecQuat(offset, model.geom_aabb[geom, :3], quat)
        pos += offset
    out = {"type": kind, "body": body, "size": _short(size), "pos": _short(pos), "quat": _short(quat, 6)}
    return out | {"rgba": _short(_rgba(model, geom), 3)}


def _track_body(model: mujoco.MjModel, name: str | None) -> int:
    """The body the camera follows."""
    names = [model.body(i).name for i in range(model.nbody)]
    if name is not None:
        if name not in names:
            raise ValueError(f"no body named {name!r} to track")
        return names.index(name)
    for candidate in TRACK_NAMES:
        if candidate in names:
            return names.index(candidate)
    free = np.flatnonzero(model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE))
    return int(model.jnt_bodyid[free[0]]) if len(free) else min(1, model.nbody - 1)


def _captions(captions: Iterable[Caption | tuple[float, str]], duration: float) -> list[Caption]:
    """Captions in order of time, each with its end."""
    given = sorted((c if isinstance(c, Caption) else Caption(*c) for c in captions), key=lambda c: c.start)
    ends = [c.start for c in given[1:]] + [duration]
    return [Caption(float(c.start), c.text, float(e if c.end is None else c.end)) for c, e in zip(given, ends)]


def _marker(marker: Marker, total: int, stride: int) -> Marker:
    """A marker checked, its arrays spread over time where fixed, and thinned with the frames."""
    if marker.kind not in MARKER_KINDS:
        raise ValueError(f"marker {marker.name!r}: kind must be one of {', '.join(MARKER_KINDS)}, not {marker.kind!r}")
    inner = 2 if marker.kind in ("path", "arrow") else 1
    pos = _over_time(marker.pos, total, inner)
    if pos.ndim != inner + 1 or pos.shape[0] != total or pos.shape[-1] != 3:
        raise ValueError(f"marker {marker.name!r}: pos of kind {marker.kind!r} cannot be {np.shape(marker.pos)}")
    if marker.kind == "arrow" and pos.shape[1] != 2:
        raise ValueError(f"marker {marker.name!r}: an arrow has two points, not {pos.shape[1]}")
    quat = None
    if marker.kind in ("frame", "outline"):
        quat = _over_time((1.0, 0.0, 0.0, 0.0) if marker.quat is None else marker.quat, total, 1)
        if quat.shape != (total, 4):
            raise ValueError(f"marker {marker.name!r}: quat must be ({total}, 4), not {quat.shape}")
        quat = quat[::stride]
    return Marker(marker.name, marker.kind, pos[::stride], quat, marker.size, marker.color)


def _over_time(x: Any, total: int, inner: int) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = np.where(np.isfinite(x), x, np.nan)
    return np.broadcast_to(x, (total, *x.shape)) if x.ndim == inner else x


def _marker_dict(marker: Marker, lo: np.ndarray, hi: np.ndarray) -> dict[str, Any]:
    pos = _quantise(marker.pos, lo, hi)
    pos[~np.isfinite(marker.pos).all(axis=-1)] = HIDDEN
    size = [float(s) for s in np.broadcast_to(marker.size, (2,))]
    out: dict[str, Any] = {
        "name": marker.name,
        "kind": marker.kind,
        "color": marker.color,
        "size": size,
        "pos": _pack(pos),
    }
    out["points"] = marker.pos.shape[1] if marker.pos.ndim == 3 else 1
    if marker.quat is not None:
        out["quat"] = _pack(_quantise(marker.quat, -1.0, 1.0))
    return out
