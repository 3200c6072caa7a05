"""Pictures of a MuJoCo scene without OpenGL: one ray per pixel, and one from the lamp to what it hit, for shadows.

MuJoCo casts the rays; about a tenth of a second for 320 x 240 pixels of the T1.  For machines on which nothing else can draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

FIELD_OF_VIEW = 45.0  # vertical, as MuJoCo's own free camera [degrees]
GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # that MuJoCo's renderer shows
LAMP = np.array([-4.0, 5.0, 11.0])  # seen from what the camera looks at [m]
AMBIENT, HEAD, SUN = 0.35, 0.25, 0.5  # shares of light: from everywhere, from the camera, from the lamp
SKY, HORIZON = np.array([0.55, 0.67, 0.80]), np.array([0.88, 0.91, 0.94])
TILES = np.array([[0.60, 0.63, 0.66], [0.53, 0.56, 0.60]])  # of the ground, half a metre wide
FAR, HAZE = 60.0, 14.0  # what is farther away is not drawn; where two thirds have turned into horizon [m]


@dataclass(frozen=True)
class Camera:
    """Looks at a point from `distance` [m], at `azimuth` and `elevation` [degrees], as `mujoco.MjvCamera` means them."""

    lookat: np.ndarray
    distance: float = 2.8
    azimuth: float = 135.0
    elevation: float = -14.0

    def rays(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the camera is `(3,)`, and a unit vector per pixel `(height * width, 3)`, rows from above."""
        width, height = size
        turn, tilt = np.radians([self.azimuth, self.elevation])
        ahead = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
        right = np.array([np.sin(turn), -np.cos(turn), 0.0])
        half = np.tan(np.radians(FIELD_OF_VIEW) / 2.0)
        up = half * (1.0 - (2.0 * np.arange(height) + 1.0) / height)
        side = half * ((2.0 * np.arange(width) + 1.0) / width - 1.0) * width / height
        rays = ahead + up[:, None, None] * np.cross(right, ahead) + side[None, :, None] * right
        rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)
        return np.asarray(self.lookat, np.float64) - self.distance * ahead, rays


def picture(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, size: tuple[int, int]) -> np.ndarray:
    """`(height, width, 3)` uint8 of `size` (width, height).  `data` must be up to date (`mj_forward`).

    A model without a ground gets one at height 0.
    """
    eye, rays = camera.rays(size)
    geom, distance, normal = _cast(model, data, eye, rays)
    if not (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE).any():
        _add_ground(eye, rays, geom, distance, normal)
    hit = geom != SKY_ID
    point = eye + np.where(hit, distance, 0.0)[:, None] * rays
    lamp = np.asarray(camera.lookat) + LAMP
    # From so far away that it is the same direction everywhere, as the sun's.
    lit = SUN * np.clip(normal @ (LAMP / np.linalg.norm(LAMP)), 0.0, None) * ~_shadowed(model, data, lamp, point)
    light = AMBIENT + HEAD * np.clip(-(normal * rays).sum(-1), 0.0, None) + lit
    high = np.clip(rays[:, 2:] * 3.0, 0.0, 1.0)
    haze = 1.0 - np.exp(-((distance / HAZE) ** 2))[:, None]
    surface = _colours(model, geom, point) * light[:, None]
    colour = np.where(hit[:, None], surface + haze * (HORIZON - surface), HORIZON + high * (SKY - HORIZON))
    return (255.0 * np.clip(colour, 0.0, 1.0)).astype(np.uint8).reshape(size[1], size[0], 3)


def sheet(
    model: mujoco.MjModel,
    qpos: np.ndarray,
    body: int,
    camera: Callable[[np.ndarray], Camera],
    size: tuple[int, int],
    columns: int,
) -> np.ndarray:
    """Moments of a trajectory as one picture, row by row.

    Args:
      model: that is shown.
      qpos: `(N, nq)`, one a moment.
      body: whose centre of mass, with all that hangs on it, the camera looks at.
      camera: of that point `(3,)`.
      size: (width, height) of each.
      columns: of the sheet; a last row that is not full is filled with white.
    """
    data = mujoco.MjData(model)
    shown = np.full((-(-len(qpos) // columns) * columns, size[1], size[0], 3), 255, np.uint8)
    for i, q in enumerate(qpos):
        data.qpos[:] = q
        mujoco.mj_forward(model, data)
        shown[i] = picture(model, data, camera(data.subtree_com[body]), size)
    rows = shown.reshape(-1, columns, *shown.shape[1:])
    return rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0] * size[1], columns * size[0], 3)


SKY_ID, GROUND_ID = -1, -2  # where there is no geom


def _cast(model: Any, data: Any, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each ray the geom it hits (`SKY_ID`: none), how far away in lengths of the ray, and the surface's normal there."""
    n = len(rays)
    geom, distance, normal = np.full(n, SKY_ID, np.int32), np.zeros(n), np.zeros(3 * n)
    flat = np.ascontiguousarray(rays, np.float64).reshape(-1)
    mujoco.mj_multiRay(model, data, origin, flat, GROUPS, True, -1, geom, distance, normal, n, FAR)
    geom[distance < 0.0] = SKY_ID
    return geom, distance, normal.reshape(n, 3)


def _add_ground(eye: np.ndarray, rays: np.ndarray, geom: np.ndarray, distance: np.ndarray, normal: np.ndarray) -> None:
    """A ground at height 0 where nothing is in front of it; changes the arrays."""
    with np.errstate(divide="ignore"):
        down = -eye[2] / rays[:, 2]
    seen = (down > 0.0) & (down < FAR) & ((geom == SKY_ID) | (down < distance))
    geom[seen], distance[seen], normal[seen] = GROUND_ID, down[seen], (0.0, 0.0, 1.0)


def _shadowed(model: Any, data: Any, lamp: np.ndarray, point: np.ndarray) -> np.ndarray:
    """`(n,)` bool, something stands between the lamp and the point."""
    geom, share, _ = _cast(model, data, lamp, point - lamp)
    return (geom != SKY_ID) & (share < 0.995)


def _colours(model: Any, geom: np.ndarray, point: np.ndarray) -> np.ndarray:
    """`(n, 3)` of the surfaces; grounds are tiled."""
    material, known = model.geom_matid, np.maximum(geom, 0)
    own = np.array(model.geom_rgba, np.float64)
    own[material >= 0] = model.mat_rgba[material[material >= 0]]
    colour = own[known, :3]
    plane = (geom >= 0) & (model.geom_type[known] == mujoco.mjtGeom.mjGEOM_PLANE)
    flat = plane | (geom == GROUND_ID)
    colour[flat] = TILES[(np.floor(2.0 * point[flat, :2]).sum(-1) % 2).astype(int)]
    return colour
