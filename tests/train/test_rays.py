"""Pictures without OpenGL: what is where, which side is lit, what throws a shadow."""

import mujoco
import numpy as np
import pytest

from train.rays import Camera, picture, sheet

GROUND = '<geom type="plane" size="0 0 0.1"/>'
BALL = '<body name="ball"><freejoint/><geom type="sphere" size="0.3" rgba="1 0 0 1"/></body>'
SIZE = (64, 48)


def scene(*parts):
    return mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{''.join(parts)}</worldbody></mujoco>")


def shot(model, height=1.0, lookat=(0.0, 0.0, 1.0), **camera):
    data = mujoco.MjData(model)
    if model.nq:
        data.qpos[:] = [0, 0, height, 1, 0, 0, 0]
    mujoco.mj_forward(model, data)
    return picture(model, data, Camera(np.array(lookat), **camera), SIZE).astype(int)


def red(image):
    return (image[..., 0] > 60) & (image[..., 1] < 20) & (image[..., 2] < 20)


def test_what_is_looked_at_is_in_the_middle_and_as_large_as_it_should_be():
    image = shot(scene(GROUND, BALL), distance=3.0, elevation=0.0)
    assert image.shape == (48, 64, 3) and red(image)[24, 32] and not red(image)[0, 0]
    # A ball of 0.3 m, 3 m away: its disc, in heights of the picture.
    wanted = np.pi * (0.3 / (2 * 3.0 * np.tan(np.radians(22.5))) * 48) ** 2
    assert red(image).sum() == pytest.approx(wanted, rel=0.08)


def test_left_is_left_and_up_is_up():
    aside = shot(scene(GROUND, BALL), azimuth=0.0, elevation=0.0, lookat=(0.0, -0.5, 0.6))  # looks along +x
    rows, columns = np.nonzero(red(aside))
    assert columns.mean() < 28 and rows.mean() < 20


def test_the_lamp_is_above_and_what_is_below_is_in_shadow():
    image = shot(scene(GROUND, BALL), azimuth=-50.0, elevation=0.0)  # the lamp is behind the camera
    rows, columns = np.nonzero(red(image))
    middle = image[:, round(columns.mean()), 0]
    assert middle[rows.min() + 2] > 1.3 * middle[rows.max() - 2]
    down = {"lookat": (0.0, 0.0, 0.0), "elevation": -89.0, "distance": 4.0}
    empty, below = shot(scene(GROUND), **down), shot(scene(GROUND, BALL), height=1.5, **down)
    darker = (below.sum(-1) < 0.8 * empty.sum(-1)) & ~red(below)
    assert darker.sum() > 20 and (np.abs(below - empty).sum(-1)[~darker & ~red(below)] == 0).mean() > 0.9


def test_a_robot_without_a_ground_gets_one():
    alone, grounded = shot(scene(BALL), elevation=-30.0), shot(scene(GROUND, BALL), elevation=-30.0)
    assert np.abs(alone - grounded).mean() < 3.0
    assert shot(scene(BALL), elevation=-30.0)[-1].std() > 1.0  # tiles


def test_a_sheet_is_read_row_by_row():
    model = scene(GROUND, BALL)
    heights = (1.0, 9.0, 9.0, 1.0, 9.0)
    qpos = np.array([[0, 0, z, 1, 0, 0, 0] for z in heights], float)
    found = sheet(model, qpos, 0, lambda middle: Camera(np.array([0.0, 0.0, 1.0])), SIZE, 3)
    assert found.shape == (2 * 48, 3 * 64, 3)
    seen = [red(found[y : y + 48, x : x + 64].astype(int)).any() for y in (0, 48) for x in (0, 64, 128)]
    assert seen == [True, False, False, True, False, False]
    assert (found[48:, 128:] == 255).all()
