"""Property tests of the gait: whatever the commands, feet never cross, steps stay within reach, references are continuous."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.t1 import gait
from envs.t1.gait import GaitConfig
from envs.t1.model import SCENES, ground_height
from envs.t1.robot import FOOT_APART

CONFIG = GaitConfig()
WALKS, TICKS = 48, 400


def flat(x, y):
    return 0.0 * x


def square_feet(yaw=0.0, x=0.0, y=0.0, z=0.0):
    left = np.array([x - np.sin(yaw) * FOOT_APART / 2, y + np.cos(yaw) * FOOT_APART / 2, z, yaw])
    right = np.array([x + np.sin(yaw) * FOOT_APART / 2, y - np.cos(yaw) * FOOT_APART / 2, z, yaw])
    return jnp.asarray(np.stack([left, right]), jnp.float32)


def random_commands(seed):
    """`(WALKS, TICKS, 3)`: redrawn every half second to two seconds, a quarter of them zero, beyond the trained range too."""
    rng = np.random.default_rng(seed)
    out = np.zeros((WALKS, TICKS, 3), np.float32)
    for w in range(WALKS):
        t = 0
        while t < TICKS:
            n = rng.integers(25, 100)
            velocity = rng.uniform([-0.5, -0.4, -1.0], [0.8, 0.4, 1.0])
            out[w, t : t + n] = velocity * (rng.uniform() > 0.25)
            t += n
    return jnp.asarray(out)


def perfect_walk(commands, drifts, config, ground, platforms, duration, feet):
    """A robot whose feet are always where the reference says; `(states, references)` over time."""

    def tick(carry, inputs):
        state, feet = carry
        command, drift = inputs
        state = gait.advance(state, command, feet, drift, jnp.zeros(2), config, ground, platforms)
        refs = gait.references(state, config, ground, platforms, 1.0)
        return (state, refs.feet), (state, refs)

    start = gait.stand(feet, duration)
    return jax.lax.scan(tick, (start, feet), (commands, drifts))[1]


@pytest.fixture(scope="module", params=[0.0, 0.6], ids=["calm", "shoved"])
def walk(request):
    """Random walks on the flat, without and with base velocity errors of up to 0.6 m/s."""
    drift = request.param * jax.random.uniform(jax.random.key(1), (WALKS, TICKS // 50, 1, 2), minval=-1.0)
    drift = jnp.broadcast_to(drift, (WALKS, TICKS // 50, 50, 2)).reshape(WALKS, TICKS, 2)
    durations = jnp.arange(WALKS) % 7 + 22
    run = jax.jit(jax.vmap(lambda c, v, d: perfect_walk(c, v, CONFIG, flat, (), d, square_feet()), in_axes=(0, 0, 0)))
    states, refs = run(random_commands(0), drift, durations)
    return request.param, jax.device_get(states), jax.device_get(refs), np.asarray(durations)


def placements(states, refs):
    """Placement of the swing foot seen from the stance foot, `(n, 2)` ahead and to the swing foot's side [m]."""
    stance = np.take_along_axis(states.anchor, (1 - states.swing)[..., None, None], axis=2)[:, :, 0]
    d = refs.target[..., :2] - stance[..., :2]
    yaw, side = stance[..., 3], 1.0 - 2.0 * states.swing
    ahead = np.cos(yaw) * d[..., 0] + np.sin(yaw) * d[..., 1]
    aside = side * (np.cos(yaw) * d[..., 1] - np.sin(yaw) * d[..., 0])
    return np.stack([ahead, aside], -1)[states.walking]


def test_feet_never_cross(walk):
    _, states, refs, _ = walk
    aside = placements(states, refs)[:, 1]
    # A placement is planned along the mean heading of the step, which is at most 0.15 rad off that of the stance foot.
    assert aside.min() > CONFIG.min_apart - 0.15 * CONFIG.reach - 0.01
    assert aside.max() < CONFIG.max_apart + 0.15 * CONFIG.reach + 0.01


def test_steps_stay_within_reach(walk):
    shoved, states, refs, _ = walk
    reach = np.linalg.norm(placements(states, refs), axis=-1)
    assert reach.max() < 0.44 + (CONFIG.capture_max if shoved else 0.0)
    assert reach.max() > 0.25, "the walks are no test if nobody walks"


def test_references_are_continuous_across_command_changes(walk):
    shoved, states, refs, _ = walk
    feet = np.abs(np.diff(refs.feet[..., :3], axis=1))
    # Fastest: 0.45 m of travel in 17 ticks of swing peaks at 5 cm a tick.  A shove doubles the pace and lengthens the step.
    assert feet.max() < (0.2 if shoved else 0.075)
    base = np.linalg.norm(np.diff(refs.base[..., :2], axis=1), axis=-1)
    assert base.max() < (0.12 if shoved else 0.06)
    yaw = np.abs((np.diff(refs.feet[..., 3], axis=1) + np.pi) % (2 * np.pi) - np.pi)
    assert yaw.max() < (0.2 if shoved else 0.1)


def test_one_foot_swings_at_a_time_and_stance_feet_rest(walk):
    _, states, refs, _ = walk
    moved = np.linalg.norm(np.diff(refs.feet, axis=1), axis=-1) > 1e-6
    assert not (moved[..., 0] & moved[..., 1]).any()
    assert (refs.contact.sum(-1) >= 1).all()


def test_feet_alternate(walk):
    _, states, _, _ = walk
    begins = states.walking & (states.tick == 0)
    before = states.walking[:, :-1] & begins[:, 1:]  # a step follows a step at once
    assert before.sum() > WALKS
    assert (states.swing[:, 1:][before] != states.swing[:, :-1][before]).all()


def test_calm_walks_follow_the_command(walk):
    shoved, states, refs, durations = walk
    if shoved:
        pytest.skip("a shoved robot steps where it must")
    commands = jnp.tile(jnp.array([0.3, 0.1, 0.0]), (200, 1))
    _, refs = perfect_walk(commands, jnp.zeros((200, 2)), CONFIG, flat, (), jnp.int32(25), square_feet())
    moved = (refs.base[150, :2] - refs.base[50, :2]) / (100 * 0.02)
    np.testing.assert_allclose(moved, [0.3, 0.1], atol=0.01)


def test_zero_command_squares_the_feet_and_stands():
    commands = jnp.concatenate([jnp.tile(jnp.array([0.3, 0.0, 0.3]), (120, 1)), jnp.zeros((120, 3))])
    states, refs = perfect_walk(commands, jnp.zeros((240, 2)), CONFIG, flat, (), jnp.int32(25), square_feet())
    assert not bool(states.walking[-1]) and bool(states.walking[100])
    d = refs.feet[-1, 0] - refs.feet[-1, 1]
    yaw = refs.feet[-1, 1, 3]
    np.testing.assert_allclose(gait.turn(-yaw, d[:2]), [0.0, FOOT_APART], atol=1e-4)
    np.testing.assert_allclose(d[3], 0.0, atol=1e-4)
    assert float(jnp.abs(refs.base_velocity[-1]).max()) == 0.0


def test_a_shove_makes_a_standing_robot_step_in_its_direction():
    drift = jnp.zeros((40, 2)).at[5:12].set(jnp.array([0.5, 0.0]))
    states, refs = perfect_walk(jnp.zeros((40, 3)), drift, CONFIG, flat, (), jnp.int32(25), square_feet())
    assert not bool(states.walking[4]) and bool(states.walking[6])
    assert float(refs.target[12, 0]) > 0.04


@pytest.mark.parametrize("heading", [0.0, 3.0, np.pi, -3.0])
@pytest.mark.parametrize("side", [0.5, -0.5])
def test_it_steps_to_that_side_whichever_way_it_faces(heading, side):
    feet = square_feet(heading)
    feet = feet.at[:, 3].set(gait.wrap_angle(heading + jnp.array([-0.01, 0.01])))
    push = side * jnp.array([-np.sin(heading), np.cos(heading)])
    drift = jnp.zeros((20, 2)).at[5:12].set(push)
    states, _ = perfect_walk(jnp.zeros((20, 3)), drift, CONFIG, flat, (), jnp.int32(25), feet)
    assert bool(states.walking[6]) and int(states.swing[6]) == (0 if side > 0 else 1)  # left is the first foot


def test_balance_reaction_can_be_switched_off():
    config = GaitConfig(capture_gain=0.0, support=(1e9, 1e9))
    drift = jnp.full((60, 2), 0.8)
    states, _ = perfect_walk(jnp.zeros((60, 3)), drift, config, flat, (), jnp.int32(25), square_feet())
    assert not bool(states.walking.any()) and float(jnp.abs(states.shift).max()) == 0.0


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_climbs_the_platform_without_straddling_its_ledges(lane):
    scene = SCENES["platforms"]
    platform = scene.platforms[lane]
    edges = (platform.x - platform.half_x, platform.x + platform.half_x)
    run = jax.jit(
        jax.vmap(
            lambda feet, speed: perfect_walk(
                jnp.broadcast_to(jnp.stack([speed, 0.0, 0.0]), (900, 3)),
                jnp.zeros((900, 2)),
                CONFIG,
                lambda x, y: ground_height(scene, x, y),
                scene.platforms,
                jnp.int32(25),
                feet,
            )
        )
    )
    starts = jnp.stack([square_feet(x=-0.5 - 0.02 * i, y=platform.y) for i in range(8)])
    states, refs = jax.device_get(run(starts, jnp.linspace(0.2, 0.4, 8)))
    landed = states.walking & (states.tick == 0)
    for foot in range(2):
        x, z = states.anchor[..., foot, 0][landed], states.anchor[..., foot, 2][landed]
        for edge, inward in zip(edges, (1.0, -1.0), strict=True):
            d = (x - edge) * inward
            assert not ((d > -CONFIG.ledge_ahead + 1e-3) & (d < CONFIG.ledge_behind - 1e-3)).any()
        on_top = (x > edges[0]) & (x < edges[1])
        np.testing.assert_allclose(z, platform.height * on_top, atol=1e-6)
    assert (refs.feet[:, -1, :, 0] > edges[0]).all(), "everybody got up"
    # Over the ledge the sole is already as high as the platform.
    over = (refs.feet[..., 0] > edges[0] - 0.08) & (refs.feet[..., 0] < edges[1])
    assert refs.feet[..., 2][over].min() > platform.height - 0.03
    base_above_lower_foot = refs.base[..., 2] - refs.feet[..., 2].min(-1)
    assert base_above_lower_foot.max() < 0.68, "a leg cannot stretch further"
