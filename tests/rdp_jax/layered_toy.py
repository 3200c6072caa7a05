"""The toy under a controller of two parts: what joint learning is tested on, and what can break inside it."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from envs.chunk import Chunked
from envs.toy import Toy
from envs.wrappers import AutoReset, LayeredAutoReset
from rdp_jax import normalize
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
    epochs=8,
    minibatches=4,
    lr=1e-2,
    lr_min=1e-3,
    lr_max=1e-2,
    target_kl=0.1,
    actor_sizes=(16,),
    critic_sizes=(16,),
    frozen_statistics=True,
)
SCHEDULE = joint.Schedule(rounds=1, controller_iterations=1, planner_iterations=1, rehearsals=0)
RECORDED = 16


@struct.dataclass
class Params:
    """`fragile ()`: environments whose goal lies beyond it [m] return NaN in every step; `signal ()` int32: see `joint_run`."""

    controller: dict
    toy: object
    fragile: jax.Array
    signal: jax.Array


class Layered:
    """The toy under a controller of two parts, an axis each, that should always do `WISH`."""

    def __init__(self):
        self.toy = Toy(STEPS)
        self.spec, self.parts, self.ticks = self.toy.spec, {"x": 1, "y": 1}, TICKS

    def default_params(self):
        return Params(weights(jax.random.key(5)), self.toy.default_params(), jnp.float32(jnp.inf), jnp.int32(0))

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
        broken = fragile(state, params.fragile)
        return poison(after, broken), poison(ticks, broken)


def fragile(state, limit):
    """Environments that break down."""
    return state.task.goal[..., 0] > limit


def poison(tree, broken):
    """NaN for every float of the tree if `broken ()`."""

    def leaf(x):
        return jnp.where(broken, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)


def weights(key):
    """The same controller for both parts."""
    actor = GaussianActor(1, (16,), 0.4).init(key, jnp.zeros((1, 4)))["params"]
    return {n: {"actor": actor, "normalizer": normalize.create(4)} for n in ("x", "y")}


class Alone(Toy):
    """Where a part was trained at first: it should always do `wish`, its parameters."""

    def __init__(self):
        super().__init__(STEPS)
        self.spec = dataclasses.replace(self.spec, obs_dims={"actor": 4, "critic": 4}, action_dim=1)

    def default_params(self):
        return jnp.float32(WISH)

    def reset(self, key, params):
        return only_actor(super().reset(key, super().default_params()))

    def step(self, state, action, params):
        after = super().step(state, jnp.tile(action, 2), super().default_params())
        return only_actor(after.replace(reward=-jnp.square(action[0] - params)))


def only_actor(state):
    """With a critic that sees what the actor sees."""
    return state.replace(obs=dict.fromkeys(("actor", "critic"), state.obs["actor"]))


class Made:
    """The toy's environments and planner; updates and first states for them.

    Args:
      config: DPPO.
      recorded: environments that the controller learns from.
      rehearsed: what the first task of part `x` wants of it; left out: it is not rehearsed.
    """

    def __init__(self, config=DPPO, recorded=RECORDED, env=None, rehearsed=None):
        self.config, self.recorded, self.rehearsed = config, recorded, rehearsed
        self.own, self.alone = dataclasses.replace(PPO, num_envs=2 * RECORDED, unroll_length=8), AutoReset(Alone())
        self.env = LayeredAutoReset(Chunked(env or Layered(), TE))
        self.policy = make_policy(CONFIG, Dims(4, 2))
        bounds = MinMax(jnp.full(4, -1.0), jnp.full(4, 1.0)), MinMax(jnp.full(2, -1.0), jnp.full(2, 1.0))
        self.bundle = Bundle(self.policy.init(jax.random.key(0), 4), *bounds)
        self.params = self.env.default_params()

    def start(self, mesh=None):
        """First state of a run."""
        planner = dppo.init(jax.random.key(1), self.config, self.policy, self.bundle, self.env, self.params, mesh)
        dims = dict.fromkeys(("x", "y"), 4)
        first = {} if self.rehearsed is None else {"x": (self.own, self.alone, jnp.float32(self.rehearsed))}
        return joint.init(jax.random.key(2), PPO, planner, weights(jax.random.key(5)), dims, first, mesh)

    def update(self, schedule=SCHEDULE, mesh=None, learning=None):
        """One iteration."""
        rehearse = {}
        if self.rehearsed is not None:
            rehearse["x"] = ppo.Rollout(self.own, self.alone, mesh), lambda controller: jnp.float32(self.rehearsed)
        planner = dppo.Update(self.config, self.policy, self.env, mesh)
        return joint.Update(schedule, planner, PPO, self.recorded, rehearse, learning)
