"""Environments as Brax environments: contract, ends of episodes, training by Brax's own PPO on both physics backends."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.envs.wrappers import training
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo
from flax import struct

from envs import toy
from envs.adapters.brax import BraxEnv, jax_for_brax
from envs.core import EnvSpec, State
from envs.physics import make_physics

KEY = jax.random.PRNGKey(0)  # raw, as Brax hands them out


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def put(state, position):
    """`state` with its point at `position`."""
    return state.replace(pipeline_state=state.pipeline_state.replace(physics=jnp.asarray(position, jnp.float32)))


def test_contract():
    env = BraxEnv(toy.Toy())
    assert (env.action_size, env.backend, env.dt, env.episode_length) == (2, "none", 0.1, 24)
    assert env.unwrapped is env
    state = env.reset(KEY)
    after = env.step(state, jnp.ones(2))
    assert env.observation_size == {name: x.shape for name, x in state.obs.items()}
    assert env.observation_size == {"state": (4,), "privileged_state": (5,)}
    assert shapes(state) == shapes(after)
    assert state.done.dtype == state.reward.dtype == jnp.float32
    # What the inner environment says, nothing else.
    inner = env.env.step(env.env.reset(KEY, env.params), jnp.ones(2), env.params)
    np.testing.assert_array_equal(after.obs["privileged_state"], inner.obs["critic"])
    np.testing.assert_array_equal(after.reward, inner.reward)
    assert after.metrics.keys() == {*inner.metrics, "diverged"}


def test_groups_metrics_and_params_can_be_chosen():
    params = toy.Toy().default_params().replace(reward=jnp.float32(3.0))
    env = BraxEnv(toy.Toy(), params, groups="actor", metrics=("raw/near",))
    after = env.step(env.reset(KEY), jnp.zeros(2))
    assert env.observation_size == 4
    assert after.obs.shape == (4,)
    assert after.metrics.keys() == {"raw/near", "diverged"}
    np.testing.assert_allclose(after.reward, 3.0 * after.metrics["raw/near"], rtol=1e-6)
    with pytest.raises(ValueError, match="groups: 'typo' is no group of toy: actor, critic"):
        BraxEnv(toy.Toy(), groups={"state": "typo"})


@pytest.mark.parametrize("own", [False, True])
def test_termination_and_truncation(own):
    env = BraxEnv(toy.Toy(episode_steps=3), own_time_limit=own)
    step = jax.jit(env.step)
    state = put(env.reset(KEY), [0.0, 0.0])
    for i in (1, 2, 3):
        state = step(state, jnp.zeros(2))
        assert float(state.done) == (1.0 if own and i == 3 else 0.0)
        if own:
            assert float(state.info["time_out"]) == (1.0 if i == 3 else 0.0)
    # Leaving the plane is termination, also when time is up with it.
    state = step(put(state, [toy.BOUND, 0.0]), jnp.ones(2))
    assert float(state.done) == 1.0
    assert float(state.info.get("time_out", 0.0)) == 0.0
    assert ("time_out" in state.info) == own


def test_divergence_is_masked_and_ends_the_episode():
    env = BraxEnv(toy.Toy())
    state = env.step(put(env.reset(KEY), [jnp.nan, 0.0]), jnp.ones(2))
    assert (float(state.done), float(state.reward), float(state.metrics["diverged"])) == (1.0, 0.0, 1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.obs, state.metrics)))


def test_under_the_wrappers_of_brax():
    params = toy.Toy().default_params().replace(noise=jnp.float32(0.01))
    env = training.wrap(BraxEnv(toy.Toy(episode_steps=100), params), episode_length=4)
    first = state = jax.jit(env.reset)(jax.random.split(KEY, 64))
    step = jax.jit(env.step)
    # Half of them stay where they are until time is up, the others run until they are out of bounds, or time is up.
    action = jnp.concatenate([jnp.zeros((32, 2)), jnp.ones((32, 2))])
    seen, early = [], 0
    for i in range(1, 9):
        state = step(state, action)
        done, truncated = np.asarray(state.done), np.asarray(state.info["truncation"])
        np.testing.assert_array_equal(done[:32], float(i % 4 == 0))
        np.testing.assert_array_equal(truncated[:32], done[:32])
        assert (truncated <= done).all()
        early += int((done > truncated).sum())
        # An ended episode is back at its environment's first start, task and all.
        np.testing.assert_array_equal(state.obs["state"][done > 0], first.obs["state"][done > 0])
        np.testing.assert_array_equal(state.pipeline_state.task.step[done > 0], 0)
        seen.append(np.asarray(state.obs["state"]))
    assert early > 8
    # The second episode starts where the first did, but its noise is another.
    assert (np.abs(seen[0] - seen[4])[:32].max(1) > 1e-4).all()


def small_ppo(env, **changes):
    """Trains `env` with Brax's PPO, as it is."""
    settings = {
        "num_envs": 64,
        "episode_length": env.episode_length,
        "unroll_length": 8,
        "batch_size": 16,
        "num_minibatches": 4,
        "num_updates_per_batch": 4,
        "discounting": 0.9,
        "learning_rate": 3e-3,
        "normalize_observations": True,
        "num_evals": 2,
        "num_eval_envs": 64,
        "deterministic_eval": True,
        "max_devices_per_host": 1,
        "network_factory": functools.partial(
            ppo_networks.make_ppo_networks,
            policy_hidden_layer_sizes=(32,),
            value_hidden_layer_sizes=(32,),
            value_obs_key="privileged_state",
        ),
    }
    with jax_for_brax():
        return ppo.train(env, **{**settings, **changes})


def test_brax_ppo_learns_the_toy():
    returns = []
    env = BraxEnv(toy.Toy(episode_steps=16))
    small_ppo(
        env,
        num_timesteps=64 * 8 * 40,
        progress_fn=lambda step, metrics: returns.append(float(metrics["eval/episode_reward"])),
    )
    states = jax.vmap(env.reset)(jax.random.split(KEY, 256))
    best = float(toy.optimal_return(states.obs["state"][:, :2], 16).mean())
    assert len(returns) == 2
    # Brax evaluates on a few episodes of its own, whose best return is only nearly the same.
    assert returns[0] < 0.9 * best < 0.95 * best < returns[1] < 1.05 * best


@struct.dataclass
class Angle:
    """`step ()` int32, steps taken in this episode."""

    step: jax.Array


class Pole:
    """A servo-driven pole that is paid for pointing forward; the least environment with physics."""

    XML = """
    <mujoco><option timestep="0.01"/><worldbody><body>
      <joint name="hinge" axis="0 1 0" damping="0.1"/><geom type="capsule" fromto="0 0 0 0 0 0.4" size="0.03" mass="0.5"/>
    </body></worldbody>
    <actuator><position joint="hinge" kp="5" kv="0.3"/></actuator></mujoco>
    """

    def __init__(self, backend):
        self.spec = EnvSpec("pole", {"actor": 2, "critic": 2}, 1, 0.02, 20)
        self.physics = make_physics(mujoco.MjModel.from_xml_string(self.XML), backend)

    def default_params(self):
        return ()

    def reset(self, key, params):
        key, start = jax.random.split(key)
        physics = self.physics.init(jax.random.uniform(start, (1,), minval=-1.0), jnp.zeros(1))
        no = jnp.array(False)
        return State(physics, self._obs(physics), jnp.float32(0.0), no, no, {}, key, Angle(jnp.int32(0)))

    def step(self, state, action, params):
        physics = self.physics.step(state.physics, action, 2)
        task = Angle(state.task.step + 1)
        reward, late = jnp.cos(physics.qpos[0] - 1.0), task.step >= self.spec.episode_steps
        return State(physics, self._obs(physics), reward, physics.diverged, late, {}, state.key, task)

    def _obs(self, physics):
        obs = jnp.concatenate([physics.qpos, 0.1 * physics.qvel])
        return {"actor": obs, "critic": obs}


@pytest.mark.parametrize(
    ("backend", "devices"), [("native", 1), ("native", 2), pytest.param("mjx", 1, marks=pytest.mark.slow)]
)
def test_brax_ppo_trains_on_physics(backend, devices):
    """Above all: a host callback inside Brax's pmap, scans and evaluation comes back."""
    env = BraxEnv(Pole(backend))
    assert env.backend == backend
    result = small_ppo(env, num_timesteps=64 * 8 * 4, num_envs=16, batch_size=8, max_devices_per_host=devices)
    assert np.isfinite(result[2]["eval/episode_reward"])
    assert result[2]["eval/avg_episode_length"] == env.episode_length


def test_jax_gets_back_only_for_a_while_what_brax_calls():
    had = hasattr(jax, "device_put_replicated")
    with jax_for_brax():
        copies = jax.device_put_replicated({"x": jnp.arange(3)}, jax.local_devices()[:2])
    np.testing.assert_array_equal(copies["x"], [[0, 1, 2]] * 2)
    assert len({shard.device for shard in copies["x"].addressable_shards}) == 2
    assert hasattr(jax, "device_put_replicated") == had


@pytest.mark.slow
def test_controller_environment_takes_a_step():
    from envs.control.env import ControlConfig, ControlEnv, training_params

    env = BraxEnv(ControlEnv(ControlConfig(backend="native", physics_dt=0.01)), training_params())
    assert env.backend == "native"
    assert env.action_size == 12
    wrapped = training.wrap(env, episode_length=env.episode_length)
    state = jax.jit(wrapped.reset)(jax.random.split(KEY, 2))
    after = jax.jit(wrapped.step)(state, jnp.zeros((2, 12)))
    assert shapes(state) == shapes(after)
    assert {name: x.shape[1:] for name, x in after.obs.items()} == env.observation_size
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.obs, after.reward)))
    assert not after.done.any()
    assert not after.metrics["diverged"].any()
    moved = np.asarray(after.pipeline_state.physics.qpos - state.pipeline_state.physics.qpos)
    assert 0 < np.abs(moved).max() < 0.2
