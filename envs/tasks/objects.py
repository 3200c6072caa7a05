"""Furniture and boxes for task scenes, with the contact settings that hold a box without creep."""

from __future__ import annotations

import mujoco

from envs.t1.model import SIDES

GRIP = [1.0, 1.0, 0.05, 1e-4, 1e-4]
"""Friction of a palm: sliding, sliding, torsional (without the last the box swings), rolling."""
STIFF, SOFT = [0.99, 0.995, 0.001, 0.5, 2.0], [0.9, 0.95, 0.001, 0.5, 2.0]
"""Contact impedances of a palm: with pyramidal cones a squeezed box creeps out of anything softer than the first; with elliptic
ones the second (MuJoCo's default) holds, and the first now and then flings the box away."""
REST = [0.8, 0.8, 0.01, 1e-4, 1e-4]
CORNER = 0.006  # radius of the spheres a box stands on [m]
SLAB = 0.03  # thickness of a table top [m]
RIM = 0.01  # radius of a table top's edge [m]


def add_table(
    spec: mujoco.MjSpec, name: str, centre: tuple[float, float], half: tuple[float, float], height: float
) -> None:
    """A table: a top that collides with hands, forearms, trunk and thighs, and four legs to look at.

    Args:
      spec: scene to add to.
      name: of the top's geom.
      centre: `(x, y)` of the top, world [m].
      half: half sizes `(x, y)` [m].
      height: of the upper face [m].
    """
    world, box = spec.worldbody, mujoco.mjtGeom.mjGEOM_BOX
    look = {"type": box, "rgba": [0.55, 0.42, 0.3, 1], "contype": 0, "conaffinity": 0}
    world.add_geom(name=name, size=[*half, SLAB / 2], pos=[*centre, height - SLAB / 2], **look)
    for i, (sx, sy) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        foot = [centre[0] + sx * (half[0] - 0.03), centre[1] + sy * (half[1] - 0.03), (height - SLAB) / 2]
        world.add_geom(name=f"{name}_leg_{i}", size=[0.02, 0.02, (height - SLAB) / 2], pos=foot, **look)
    touch_robot(spec, name)


def add_rim(
    spec: mujoco.MjSpec, name: str, start: tuple[float, float], end: tuple[float, float], height: float
) -> None:
    """The rounded edge of a table top, on which a box can rest that juts out over it.

    A box meets a top with its corners alone: without a rim it would fall as soon as two of them are past the edge, wherever its
    middle is.

    Args:
      spec: scene to add to.
      name: of the geom.
      start, end: `(x, y)` of the ends of the edge, world [m].
      height: of the table's upper face [m].
    """
    z = height - RIM
    line = [start[0], start[1], z, end[0], end[1], z]
    spec.worldbody.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        size=[RIM, 0, 0],
        fromto=line,
        contype=0,
        conaffinity=0,
        rgba=[0.45, 0.34, 0.24, 1],
    )


def touch_robot(spec: mujoco.MjSpec, geom: str) -> None:
    """Contacts of an obstacle with what of the robot comes near it."""
    parts = [f"{s}_{part}" for s in SIDES for part in ("hand", "forearm", "thigh", "shank")]
    for part in [*parts, "trunk_core"]:
        spec.add_pair(geomname1=part, geomname2=geom, condim=1)


def add_box(
    spec: mujoco.MjSpec,
    name: str,
    edge: float,
    mass: float,
    rests_on: tuple[str, ...],
    rims: tuple[str, ...] = (),
    long: bool = False,
) -> None:
    """A free cube that two palms can hold by friction; it stands on its corners.

    Args:
      spec: scene to add to.
      name: of body, joint and geom.
      edge: length [m].
      mass: nominal [kg].
      rests_on: geoms it can stand on, the floor apart.
      rims: edges of those over which it may jut out, see `add_rim`.
      long: it is held for so long that it must not creep at all (elliptic cones, whose friction is stiffer than their normal
        force); otherwise it sinks by 3 mm a second, which is cheaper on MJX.
    """
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint(name=name)
    body.mass, body.inertia, body.explicitinertial = mass, [mass * edge**2 / 6] * 3, True
    half = edge / 2
    look = {"mass": 0, "contype": 0, "conaffinity": 0}
    box, sphere = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE
    body.add_geom(name=name, type=box, size=[half] * 3, rgba=[0.75, 0.55, 0.3, 1], **look)
    inset = half - CORNER
    for i, (x, y, z) in enumerate((x, y, z) for z in (-1, 1) for x in (-1, 1) for y in (-1, 1)):
        corner = f"{name}_corner_{i}"
        body.add_geom(name=corner, type=sphere, size=[CORNER, 0, 0], pos=[x * inset, y * inset, z * inset], **look)
        # The upper corners matter only to a box that has fallen, and only on the floor.
        for surface in ("floor", *(rests_on if z < 0 else ())):
            spec.add_pair(geomname1=corner, geomname2=surface, condim=3, friction=REST)
    for rim in rims:
        spec.add_pair(geomname1=rim, geomname2=name, condim=3, friction=REST)
    solimp = SOFT if long else STIFF
    for side in SIDES:
        for i in range(4):
            spec.add_pair(geomname1=f"{side}_palm_{i}", geomname2=name, condim=4, friction=GRIP, solimp=solimp)
        spec.add_pair(geomname1=f"{side}_forearm", geomname2=name, condim=1)
    spec.add_pair(geomname1="trunk_core", geomname2=name, condim=1)
    spec.option.iterations, spec.option.ls_iterations = 8, 12
    if long:
        spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10.0
        # The C engine's line search is cut short by less, and the box with it.
        spec.option.iterations, spec.option.ls_iterations = 10, 50
