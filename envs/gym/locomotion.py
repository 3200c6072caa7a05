"""Hopper, Walker2d and HalfCheetah after Gymnasium's v5 environments, from its own MJCF files, on both physics backends.

The three differ in a table of numbers only.  Rewards, observations, terminations and starts are Gymnasium's defaults; the episode
is cut after a thousand steps.
"""

from __future__ import annotations

import dataclasses
import math
from importlib import resources

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct

from envs.core import EnvSpec, State
from envs.physics import make_physics
from rdp_jax.config import ConfigError

Array = jax.Array
EPISODE_STEPS = 1000
INF = math.inf


@dataclasses.dataclass(frozen=True)
class Spec:
    """What sets one robot apart.

    Attributes:
      xml: file among Gymnasium's assets.
      frame_skip: physics steps per environment step.
      control_cost: weight of the squared action.
      healthy_reward: paid per step while healthy.
      height, angle: open ranges of the torso's height [m] and pitch [rad] in which it is healthy.
      state_bound: bound of every other position and velocity in which it is healthy.
      velocity_clip: bound of observed velocities.
      noise: half range of the start's noise; `gaussian_velocity` draws velocities from a Gaussian of that std instead.
    """

    xml: str
    frame_skip: int
    control_cost: float
    healthy_reward: float = 0.0
    height: tuple[float, float] = (-INF, INF)
    angle: tuple[float, float] = (-INF, INF)
    state_bound: float = INF
    velocity_clip: float = INF
    noise: float = 5e-3
    gaussian_velocity: bool = False


SPECS = {
    "hopper": Spec("hopper.xml", 4, 1e-3, 1.0, (0.7, INF), (-0.2, 0.2), 100.0, 10.0),
    "walker2d": Spec("walker2d_v5.xml", 4, 1e-3, 1.0, (0.8, 2.0), (-1.0, 1.0), INF, 10.0),
    "halfcheetah": Spec("half_cheetah.xml", 5, 0.1, noise=0.1, gaussian_velocity=True),
}


@struct.dataclass
class Steps:
    """`step ()` int32, steps taken in this episode."""

    step: Array


class Locomotion:
    """`envs.core.Env`; `params` is unused.

    Args:
      name: key of `SPECS`.
      backend: physics backend.
    """

    def __init__(self, name: str, backend: str = "auto"):
        if name not in SPECS:
            raise ConfigError("task", name, " | ".join(SPECS))
        self.robot = SPECS[name]
        path = resources.files("gymnasium") / "envs" / "mujoco" / "assets" / self.robot.xml
        model = mujoco.MjModel.from_xml_path(str(path))
        self.physics = make_physics(model, backend)
        self.dt = float(model.opt.timestep) * self.robot.frame_skip
        self.low, self.high = (model.actuator_ctrlrange[:, i].astype(np.float32) for i in (0, 1))
        width = model.nq - 1 + model.nv
        self.spec = EnvSpec(name, {"actor": width, "critic": width}, model.nu, self.dt, EPISODE_STEPS)

    def default_params(self) -> tuple[()]:
        """None are needed."""
        return ()

    def reset(self, key: Array, params: tuple[()] = ()) -> State:
        """The model's initial state with a little noise."""
        del params
        key, kq, kv = jax.random.split(key, 3)
        model, noise = self.physics.model, self.robot.noise
        qpos = jnp.asarray(model.qpos0, jnp.float32) + jax.random.uniform(kq, (model.nq,), minval=-noise, maxval=noise)
        if self.robot.gaussian_velocity:
            qvel = noise * jax.random.normal(kv, (model.nv,))
        else:
            qvel = jax.random.uniform(kv, (model.nv,), minval=-noise, maxval=noise)
        physics = self.physics.init(qpos, qvel)
        no, zero = jnp.array(False), jnp.float32(0.0)
        metrics = {"velocity_mps": zero}
        return State(physics, self._observe(qpos, qvel), zero, no, no, metrics, key, Steps(jnp.int32(0)))

    def step(self, state: State, action: Array, params: tuple[()] = ()) -> State:
        """`action (nu,)`, clipped to the actuators' range as the simulator does; the cost is of the action as given, clipped."""
        del params
        action = jnp.clip(action, self.low, self.high)
        physics = self.physics.step(state.physics, action, self.robot.frame_skip)
        velocity = (physics.qpos[0] - state.physics.qpos[0]) / self.dt
        healthy = self._healthy(physics.qpos, physics.qvel)
        reward = velocity + self.robot.healthy_reward * healthy - self.robot.control_cost * jnp.sum(action**2)
        step = state.task.step + 1
        return State(
            physics=physics,
            obs=self._observe(physics.qpos, physics.qvel),
            reward=jnp.asarray(reward, jnp.float32),
            terminated=~healthy,
            truncated=step >= EPISODE_STEPS,
            metrics={"velocity_mps": jnp.asarray(velocity, jnp.float32)},
            key=state.key,
            task=Steps(step),
        )

    def _healthy(self, qpos: Array, qvel: Array) -> Array:
        robot = self.robot
        rest = jnp.concatenate([qpos[2:], qvel])

        def within(x, low, high):
            return (x > low) & (x < high)

        ok = within(qpos[1], *robot.height) & within(qpos[2], *robot.angle)
        return ok & jnp.all(within(rest, -robot.state_bound, robot.state_bound))

    def _observe(self, qpos: Array, qvel: Array) -> dict[str, Array]:
        """Positions without x, and velocities: the same for actor and critic."""
        clip = self.robot.velocity_clip
        obs = jnp.concatenate([qpos[1:], jnp.clip(qvel, -clip, clip)]).astype(jnp.float32)
        return {"actor": obs, "critic": obs}
