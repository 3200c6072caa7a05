"""Scenes with the T1 in them: the robot's MJCF plus ground, platforms, contact pairs and solver options.

A scene is fixed geometry in the world; environments place the robot somewhere in it, so one compiled model serves every
environment of a batch and no geometry needs randomising.
"""

from __future__ import annotations

import dataclasses
import functools
from importlib import resources

import mujoco
import numpy as np

PHYSICS_DT = 0.005
"""Physics step [s]; four of them make one 50 Hz control step."""

SIDES = ("left", "right")
PARKED = (0.0, 0.0, -5.0)
"""Where a box starts that nobody carries; it touches nothing and falls for as long as the episode lasts."""

# Frictionless pairs of the robot with itself: the ones a walking, reaching robot really brings together.
SELF_PAIRS = (
    ("left_foot", "right_foot"),
    ("left_shank", "right_shank"),
    ("left_foot", "right_shank"),
    ("right_foot", "left_shank"),
    ("left_thigh", "right_thigh"),
    ("left_hand", "right_hand"),
    ("left_forearm", "right_forearm"),
    ("left_hand", "right_forearm"),
    ("right_hand", "left_forearm"),
    *((f"{s}_{part}", other) for s in SIDES for part, other in (("forearm", "trunk_core"), ("hand", "trunk_core"))),
    *((f"{s}_hand", f"{s}_thigh") for s in SIDES),
)


@dataclasses.dataclass(frozen=True)
class Platform:
    """A box to step on: centre `(x, y)`, half sizes `(x, y)` and height of its top, metres."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A named world for the robot.

    Attributes:
      name: `flat`; `platforms`, three of 5, 10 and 12 cm; `step`, one of 10 cm.
      platforms: boxes standing on the ground plane.
      box: edge of a cube of one kilogram to carry [m]; None for none.
    """

    name: str
    platforms: tuple[Platform, ...] = ()
    box: float | None = None


SCENES = {
    "flat": Scene("flat"),
    # Three lanes, so that one batch sees several heights; deep enough for several steps on top, too wide to walk off sideways.
    "platforms": Scene(
        "platforms",
        tuple(Platform(1.0, y, 1.0, 3.0, h) for y, h in ((-8.0, 0.05), (0.0, 0.10), (8.0, 0.12))),
    ),
    "step": Scene("step", (Platform(2.0, 0.0, 2.0, 3.0, 0.10),)),
    "carry": Scene("carry", box=0.25),
}


def scene(name: str) -> Scene:
    """Scene by name; raises `ValueError` naming the known ones."""
    if name not in SCENES:
        raise ValueError(f"scene: {name!r} is unknown; allowed: {', '.join(SCENES)}")
    return SCENES[name]


def build_spec(scene_: Scene) -> mujoco.MjSpec:
    """Editable model specification of the robot in `scene_`; tasks add their own bodies to it."""
    spec = mujoco.MjSpec.from_file(str(resources.files("envs.t1") / "t1.xml"))
    spec.modelname = f"t1_{scene_.name}"
    option = spec.option
    option.timestep = PHYSICS_DT
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    # Four Newton iterations hold the feet as well as twenty do, at twice the speed (one iteration falls).
    option.iterations, option.ls_iterations = 4, 6
    world = spec.worldbody
    world.add_light(pos=[0, 0, 4], dir=[0.2, 0.2, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[0, 0, 0.05],
        rgba=[0.62, 0.66, 0.7, 1],
        contype=0,
        conaffinity=0,
    )
    ground = ["floor"]
    for i, p in enumerate(scene_.platforms):
        ground.append(f"platform_{i}")
        world.add_geom(
            name=ground[-1],
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[p.half_x, p.half_y, p.height / 2],
            pos=[p.x, p.y, p.height / 2],
            rgba=[0.45, 0.5, 0.58, 1],
            contype=0,
            conaffinity=0,
        )
    for side in SIDES:
        for i in range(4):
            for g in ground:
                spec.add_pair(
                    geomname1=f"{side}_foot_{i}", geomname2=g, condim=3, friction=[1, 1, 0.005, 0.0001, 0.0001]
                )
    for a, b in SELF_PAIRS:
        spec.add_pair(geomname1=a, geomname2=b, condim=1)
    if scene_.box:
        _add_box(spec, scene_.box)
    return spec


def _add_box(spec: mujoco.MjSpec, edge: float) -> None:
    """A cube that two palms can hold by friction."""
    body = spec.worldbody.add_body(name="box", pos=PARKED)
    body.add_freejoint(name="box")
    body.mass, body.inertia, body.explicitinertial = 1.0, [edge**2 / 6] * 3, True
    body.add_geom(
        name="box",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[edge / 2] * 3,
        rgba=[0.75, 0.55, 0.3, 1],
        mass=0,
        contype=0,
        conaffinity=0,
    )
    # Stiff contacts and torsional friction keep a squeezed box from creeping out of the palms.
    for side in SIDES:
        for i in range(4):
            spec.add_pair(
                geomname1=f"{side}_palm_{i}",
                geomname2="box",
                condim=4,
                friction=[1, 1, 0.05, 0.0001, 0.0001],
                solimp=[0.99, 0.995, 0.001, 0.5, 2],
            )
    spec.add_pair(geomname1="trunk_core", geomname2="box", condim=1)
    spec.option.iterations, spec.option.ls_iterations = 8, 12


@functools.cache
def load_model(scene_name: str = "flat", physics_dt: float = PHYSICS_DT) -> mujoco.MjModel:
    """Compiled model of a scene with physics steps of `physics_dt` seconds (cached: treat it as read-only)."""
    spec = build_spec(scene(scene_name))
    spec.option.timestep = physics_dt
    return spec.compile()


def ground_height(scene_: Scene, x, y):
    """Height of the ground under world points `x`, `y` (any equal shapes), metres; NumPy or JAX arrays."""
    h = 0.0 * x
    for p in scene_.platforms:
        inside = (abs(x - p.x) <= p.half_x) & (abs(y - p.y) <= p.half_y)
        h = h + inside * (p.height - h)
    return h


def objects_of(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the bodies that are not the robot's: those outside the subtree of its trunk."""
    root = int(model.jnt_bodyid[model.joint("root").id])
    return tuple(model.body(i).name for i in range(1, model.nbody) if model.body_rootid[i] != model.body_rootid[root])


def mass_of(model: mujoco.MjModel) -> float:
    """Total mass of all bodies [kg]."""
    return float(np.sum(model.body_mass))
