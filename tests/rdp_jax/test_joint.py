"""Joint fine-tuning on a toy with a controller inside: phases, bookkeeping of ticks, what learns and what stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from envs.chunk import Chunked
from envs.toy import Toy
from envs.wrappers import LayeredAutoReset
from rdp_jax import normalize, parallel
from rdp_jax.algos import dppo, joint, ppo
from rdp_jax.data.windows import MinMax
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.build import NetConfig
from rdp_jax.nets.mlp import GaussianActor
from rdp_jax.planner import Bundle, Dims, PlannerConfig, make_policy
from rdp_jax.types import Ticks

STEPS, TE, TICKS, WISH = 6, 2, 2, 0.5
CONFIG = PlannerConfig(
    net=NetConfig(kind="mlp", sizes=(32, 32, 32)),
    diffusion=DiffusionConfig(steps=4),
    horizon=TE,
    executed=TE,
    history=1,
)
DPPO = dppo.DPPOConfig(
    num_envs=32,
    unroll_length=4,
    epochs=2,
    minibatches=4,
    tuned_steps=4,
    clip=0.1,
    clip_base=0.1,
    actor_lr=1e-3,
    critic_sizes=(32, 32, 32),
    reset_pool=16,
)
PPO = ppo.PPOConfig(
    epochs=8, minibatches=4, lr=1e-2, lr_min=1e-3, lr_max=1e-2, target_kl=0.1, actor_sizes=(16,), critic_sizes=(16,)
)
SCHEDULE = joint.Schedule(rounds=1, controller_iterations=1, planner_iterations=1, rehearsals=0)


@struct.dataclass
class Params:
    controller: dict
    toy: object


class Layered:
    """The toy under a controller of two parts, an axis each, that should always do `WISH`."""

    def __init__(self):
        self.toy = Toy(STEPS)
        self.spec, self.parts, self.ticks = self.toy.spec, {"x": 1, "y": 1}, TICKS

    def default_params(self):
        return Params(weights(jax.random.key(5)), self.toy.default_params())

    def reset(self, key, params):
        return self.toy.reset(key, params.toy)

    def step(self, state, action, params):
        return self.step_recorded(state, action, params, {n: jnp.zeros((TICKS, 1)) for n in self.parts})[0]

    def step_recorded(self, state, action, params, noise):
        obs = state.obs["actor"]
        done = {
            n: ppo.policy({"actor": w["actor"]}, {"actor": w["normalizer"]}, {"actor": obs}) + noise[n]
            for n, w in params.controller.items()
        }
        after = self.toy.step(state, action, params.toy)
        tiled = jnp.tile(obs, (TICKS, 1))
        ticks = Ticks(
            obs=dict.fromkeys(self.parts, tiled),
            critic=dict.fromkeys(self.parts, tiled),
            action=done,
            reward={n: -jnp.square(a[:, 0] - WISH) for n, a in done.items()},
            terminated=jnp.arange(TICKS) == jnp.where(after.terminated, TICKS - 1, -1),
            live=jnp.ones(TICKS, bool),
        )
        return after, ticks


def weights(key):
    actor = GaussianActor(1, (16,), 0.4).init(key, jnp.zeros((1, 4)))["params"]
    return {n: {"actor": actor, "normalizer": normalize.create(4)} for n in ("x", "y")}


@pytest.fixture(scope="module")
def made():
    """The update, and a function that makes a first state for a mesh."""
    env = LayeredAutoReset(Chunked(Layered(), TE))
    policy = make_policy(CONFIG, Dims(4, 2))
    bounds = MinMax(jnp.full(4, -1.0), jnp.full(4, 1.0)), MinMax(jnp.full(2, -1.0), jnp.full(2, 1.0))
    bundle = Bundle(policy.init(jax.random.key(0), 4), *bounds)
    params = env.env.env.default_params()

    def start(mesh=None):
        planner = dppo.init(jax.random.key(1), DPPO, policy, bundle, env, params, mesh)
        dims = dict.fromkeys(("x", "y"), 4)
        return joint.init(jax.random.key(2), PPO, planner, weights(jax.random.key(5)), dims, mesh=mesh)

    def update(schedule=SCHEDULE, mesh=None):
        return joint.Update(schedule, dppo.Update(DPPO, policy, env, mesh), PPO, 16)

    return update, start, params


def test_each_phase_moves_its_own_learner_only(made):
    make, start, params = made
    update = make()
    first = jax.device_get(start())
    second, metrics = update(start(), params)
    second = jax.device_get(second)
    assert metrics["x/policy/first_ratio_error"] == 0.0
    assert not np.allclose(
        second.parts["x"].params["actor"]["mlp"]["last"]["kernel"],
        first.parts["x"].params["actor"]["mlp"]["last"]["kernel"],
    )
    jax.tree.map(np.testing.assert_array_equal, second.planner.params, first.planner.params)
    third, metrics = update(jax.device_put(second), params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(third).parts["y"].params, second.parts["y"].params)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), third.planner.params["actor"], second.planner.params["actor"]
    )
    assert all(jax.tree.leaves(moved)) and metrics["policy/first_ratio_error"] == 0.0
    assert update.cache_size() == 1


def test_the_controller_learns_its_task_beside_the_planner(made):
    make, start, params = made
    update = make(joint.Schedule(variant="simultaneous", rehearsals=0))
    state, rewards = start(), []
    for _ in range(15):
        state, metrics = update(state, params)
        rewards.append(float(metrics["x/reward"]))
    assert int(state.planner.iteration) == int(state.parts["x"].iteration) == 15
    assert rewards[-1] > 0.6 * rewards[0] and rewards[0] < -0.3  # towards zero
    assert update.cache_size() == 1


def test_one_and_four_devices_agree(made):
    make, start, params = made
    schedule = joint.Schedule(variant="simultaneous", rehearsals=0)
    one, _ = make(schedule)(start(), params)
    mesh = parallel.make_mesh(4)
    four, _ = make(schedule, mesh)(start(mesh), params)
    for a, b in zip(jax.tree.leaves(one.parts), jax.tree.leaves(four.parts), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4)


def test_ticks_become_a_rollout_in_time_order():
    live = jnp.array([[[True, True], [True, False]], [[True, True], [True, True]]])  # (T, B, n)
    fell = jnp.zeros((2, 2, 2), bool).at[0, 1, 0].set(True)
    count = jnp.arange(8.0).reshape(2, 2, 2)
    column = {"p": count[..., None]}
    ticks = Ticks(column, column, column, {"p": count}, fell, live)
    done = jnp.array([[False, True], [True, False]])
    data, happened = joint.transition(ticks, done, "p")
    np.testing.assert_array_equal(data.reward, [[0, 2], [1, 3], [4, 6], [5, 7]])
    np.testing.assert_array_equal(happened, [[1, 1], [1, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(data.terminated[:, 1], [1, 0, 0, 0])
    np.testing.assert_array_equal(data.truncated, [[0, 0], [0, 0], [0, 0], [1, 0]])
    # The next observation, except where the planner's episode ended.
    np.testing.assert_array_equal(data.final_obs[:, 0, 0], [1, 4, 5, 5])


def test_schedule():
    schedule = joint.Schedule(rounds=2, controller_iterations=1, planner_iterations=2)
    assert [schedule.phase(i) for i in range(schedule.iterations)] == ["controller", "planner", "planner"] * 2
    assert joint.Schedule(variant="simultaneous").phase(3) == "both"
