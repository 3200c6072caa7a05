"""Scenario `controller`: control steps per second of the T1 controller's environment, stepped only, and with PPO learning.

The peer is Brax's PPO (unmodified) on the same environment through `envs.adapters.brax`, with the same sizes, in the same run.
Where the two differ, they differ by design: ours draws fresh starts (robots, commands, models) for its resets and logs the sum
of every metric, Brax returns to an environment's first start and keeps metrics per episode.
"""

from __future__ import annotations

import functools
import importlib.util
import queue
import statistics
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

from benchmarks.scenarios import BACKENDS, Case
from envs.control.env import ControlConfig, ControlEnv, training_params
from envs.core import Env
from envs.physics import available
from envs.physics.mjx import widen_thread_pool
from envs.wrappers import AutoReset
from rdp_jax import parallel, rollout
from rdp_jax.algos import ppo
from rdp_jax.config import ConfigError
from rdp_jax.starts import starts_of

EPOCHS = 10**6  # more calls than anybody will make of a `BraxTraining`
PLAYGROUND = "T1JoystickFlatTerrain"


def setup(
    backend: str | None,
    physics_dt: float,
    part: str,
    num_envs: int,
    unroll_length: int,
    epochs: int,
    minibatches: int,
    reset_pool: int,
    iterations: int,
    seed: int,
    playground: bool,
    cases: Sequence[str],
) -> list[Case]:
    """Cases of `iterations` times `num_envs * unroll_length` control steps per call.

    Args:
      backend: only the cases of this physics backend; None: of every one that this machine has.
      physics_dt: seconds per physics step; a control step is 0.02 s.
      part: `legs`, `hands` or `whole`; whose action is learned.
      num_envs, unroll_length, epochs, minibatches, reset_pool: as in `PPOConfig`; the rest of it keeps its defaults.
      iterations: PPO iterations per timed call.
      seed: of networks, starts and actions.
      playground: also Brax's PPO on MuJoCo Playground's T1 joystick task, if it is installed with its assets.
      cases: of `CONTROLLER_CASES`: `BACKEND_train` (our PPO), `BACKEND_peer` (Brax's), `BACKEND_step` (random actions only).
    """
    if backend in (None, "mjx") and any(name.startswith("mjx") for name in cases):
        widen_thread_pool()
    config = parallel.over_devices(
        ppo.PPOConfig(
            num_envs=num_envs,
            unroll_length=unroll_length,
            epochs=epochs,
            minibatches=minibatches,
            reset_pool=reset_pool,
        )
    )
    ppo.check_layout(config, parallel.make_mesh())
    if num_envs % minibatches:
        raise ConfigError(
            "minibatches", minibatches, f"a divisor of num_envs={num_envs}: the peer splits whole unrolls"
        )
    names = _choose(cases, backend)
    make = functools.cache(lambda name: make_env(part, name, physics_dt))
    work = iterations * num_envs * unroll_length
    found = []
    for name in names:
        physics, kind = name.split("_")
        begin = {"train": our_training, "peer": brax_training, "step": stepping}[kind]
        log: dict[str, Any] = {}
        build = functools.partial(_build, begin, make, physics, config, iterations, seed, log)
        found.append(Case(name, build, work, "env steps", details=functools.partial(_details, log)))
    return [*found, _playground(config, iterations, seed, work)] if playground else found


def _choose(cases: Sequence[str], backend: str | None) -> list[str]:
    """Those of `cases` that `backend`, or else this machine, can run.  Raises `ConfigError`."""
    here = [name for name in BACKENDS if name in available()]
    if backend is not None and backend not in here:
        raise ConfigError("backend", backend, f"on this machine: {' | '.join(here)}")
    names = [name for name in cases if name.split("_")[0] in ([backend] if backend else here)]
    if not names:
        raise ConfigError("cases", list(cases), f"at least one of {backend or ' | '.join(here)}")
    return names


def _build(begin, make, physics, config, iterations, seed, log):
    env, params = make(physics)
    return begin(env, params, config, iterations, seed, log)


def make_env(part: str, backend: str, physics_dt: float) -> tuple[Env, Any]:
    """The environment as the controller trains in it, all its disturbances on; the untrained part follows its references."""
    env = ControlEnv(ControlConfig(part=part, backend=backend, physics_dt=physics_dt))
    return env, training_params()


def _details(log: Mapping[str, Any]) -> dict[str, Any]:
    """What a case noted about itself while it ran; medians of what it noted once per call."""
    return {
        name: round(statistics.median(value), 4) if isinstance(value, list) else value
        for name, value in log.items()
        if value != []
    }


# --- ours ----------------------------------------------------------------------------------------------------------------


def our_training(
    env: Env, params: Any, config: ppo.PPOConfig, iterations: int, seed: int, log: dict
) -> Callable[[], Any]:
    """`iterations` of our PPO per call, metrics fetched after each as `rdp_jax.algos.loop` does."""
    mesh, vector = parallel.make_mesh(), AutoReset(env)
    update = ppo.make_update(config, vector, mesh)
    state = ppo.init(jax.random.key(seed), config, vector, params, mesh)

    def call():
        nonlocal state
        for _ in range(iterations):
            state, metrics = update(state, params)
            metrics = jax.device_get(metrics)
            log["diverged"] = log.get("diverged", 0) + int(metrics["guard/diverged"])
        log["skipped_updates"] = int(jax.device_get(state.skipped))

    return call


def stepping(env: Env, params: Any, config: ppo.PPOConfig, iterations: int, seed: int, log: dict) -> Callable[[], Any]:
    """The rollouts of `our_training` under uniformly random actions in [-1, 1], without networks or learning."""
    mesh, vector, axis = parallel.make_mesh(), AutoReset(env), parallel.axis_of(parallel.make_mesh())
    shape = (config.unroll_length, env.spec.action_dim)
    sharded = (P(parallel.AXIS), P(parallel.AXIS))

    def begin(fresh):
        indices = parallel.local_indices(config.num_envs, mesh)
        return jax.tree.map(lambda x: x[indices], fresh), rollout.begin(indices.shape[0])

    def roll(carry, pool, key, params):
        keys = parallel.fold_each(key, parallel.local_indices(config.num_envs, mesh))
        actions = jax.vmap(lambda k: jax.random.uniform(k, shape, minval=-1.0), out_axes=1)(keys)
        state, episode, _, stats = rollout.collect(
            vector, lambda obs, action: (action, ()), carry[0], carry[1], pool, actions, params
        )
        return (state, episode), rollout.summarize(parallel.psum(stats, axis))

    key, params = jax.random.key(seed), parallel.strong(params)
    starts = starts_of(vector, mesh)
    carry = parallel.jit(begin, mesh, (P(),), sharded)(starts.pool(key, config.num_envs, params))
    compiled = parallel.jit(roll, mesh, (sharded, P(), P(), P()), (sharded, P()), donate=(0,))
    count = 0

    def call():
        nonlocal carry, count
        for _ in range(iterations):
            count += 1
            pool_key, action_key = jax.random.split(jax.random.fold_in(key, count))
            pool = starts.pool(pool_key, config.reset_pool, params)
            carry, metrics = compiled(carry, pool, action_key, params)
            metrics = jax.device_get(metrics)
            log["diverged"] = log.get("diverged", 0) + int(metrics["guard/diverged"])

    return call


# --- the peer ------------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """Ends a training from inside its callback."""


class BraxTraining:
    """Brax's training loop, made to wait after every epoch: each call of this object is one of them.

    Brax has no such handle, but it calls `policy_params_fn` between epochs, and that may wait.  So the loop runs in a thread
    of its own while the caller waits for it; they never work at the same time.  The first call compiles.

    Args:
      train: `brax.training.agents.ppo.train.train` with all arguments but callbacks, `num_evals` and `num_timesteps`.
      steps: environment steps per epoch.
      log: gets Brax's own steps per second, `brax_sps`, one entry per epoch but the first.
    """

    def __init__(self, train: Callable[..., Any], steps: int, log: dict[str, Any]):
        go: queue.SimpleQueue = queue.SimpleQueue()
        self._go, self._done = go, queue.SimpleQueue()
        # The thread knows the queues but not this object, whose end is then also the thread's.
        work = functools.partial(_train_in_turns, train, steps, go, self._done, log.setdefault("brax_sps", []))
        weakref.finalize(self, go.put, False)
        threading.Thread(target=work, daemon=True, name="brax").start()
        self._wait()

    def __call__(self) -> None:
        """One epoch."""
        self._go.put(True)
        self._wait()

    def _wait(self) -> None:
        said = self._done.get()
        if isinstance(said, BaseException):
            raise said


def _train_in_turns(train, steps: int, go: queue.SimpleQueue, done: queue.SimpleQueue, sps: list[float]) -> None:
    from envs.adapters.brax import jax_for_brax

    def wait(*_):
        done.put(None)
        if not go.get():
            raise _Enough

    def progress(step, metrics):
        if step > steps:  # the first epoch compiles
            sps.append(float(metrics["training/sps"]))

    try:
        with jax_for_brax():
            train(
                num_timesteps=EPOCHS * steps,
                num_evals=EPOCHS + 1,
                run_evals=False,
                policy_params_fn=wait,
                progress_fn=progress,
            )
    except _Enough:
        pass
    except BaseException as error:  # whatever it is, the caller waits for an answer
        done.put(error)


def brax_settings(config: ppo.PPOConfig) -> dict[str, Any]:
    """Arguments of Brax's `ppo.train` that make it do what our PPO does with `config`."""
    from brax.training.agents.ppo import networks

    return {
        "num_envs": config.num_envs,
        "unroll_length": config.unroll_length,
        "num_updates_per_batch": config.epochs,
        "num_minibatches": config.minibatches,
        "batch_size": config.num_envs // config.minibatches,
        "discounting": config.gamma,
        "gae_lambda": config.gae_lambda,
        "clipping_epsilon": config.clip,
        "entropy_cost": config.entropy_coef,
        "vf_loss_coefficient": 2.0 * config.value_coef,  # Brax halves the squared error
        "max_grad_norm": config.max_grad_norm,
        "normalize_observations": True,
        "learning_rate": config.lr,
        "learning_rate_schedule": "ADAPTIVE_KL",
        "learning_rate_schedule_min_lr": config.lr_min,
        "learning_rate_schedule_max_lr": config.lr_max,
        "desired_kl": config.target_kl,
        "network_factory": functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=config.actor_sizes,
            value_hidden_layer_sizes=config.critic_sizes,
            activation=nn.elu,
            value_obs_key="privileged_state",
            distribution_type="normal",
            noise_std_type="log",
            init_noise_std=config.init_std,
        ),
    }


def brax_training(
    env: Env, params: Any, config: ppo.PPOConfig, iterations: int, seed: int, log: dict
) -> Callable[[], Any]:
    """`iterations` of Brax's PPO per call, on `env` through the adapter."""
    from envs.adapters.brax import BraxEnv

    adapted = BraxEnv(env, params)
    return _brax(config, iterations, seed, log, environment=adapted, episode_length=adapted.episode_length)


def _brax(config: ppo.PPOConfig, iterations: int, seed: int, log: dict, **arguments: Any) -> BraxTraining:
    from brax.training.agents.ppo import train as ppo_train

    settings = {**brax_settings(config), "seed": seed, **arguments}

    def train(**more):
        with jax.default_matmul_precision(config.matmul_precision):
            return ppo_train.train(**settings, **more)

    return BraxTraining(train, iterations * config.num_envs * config.unroll_length, log)


# --- MuJoCo Playground ---------------------------------------------------------------------------------------------------


def playground_missing() -> str | None:
    """Why MuJoCo Playground cannot be measured here, or `None`.  Never imports it: it would download its robots."""
    spec = importlib.util.find_spec("mujoco_playground")
    if spec is None or not spec.submodule_search_locations:
        return "the package mujoco_playground is not installed"
    if not (Path(next(iter(spec.submodule_search_locations))) / "external_deps" / "mujoco_menagerie").exists():
        return "mujoco_playground is installed without its robots (mujoco_menagerie)"
    return None


def _playground(config: ppo.PPOConfig, iterations: int, seed: int, work: int) -> Case:
    """Brax's PPO on Playground's own T1 task: another environment (12-DoF gait, its own physics step), same learner sizes."""
    log: dict[str, Any] = {"environment": PLAYGROUND}

    def build():
        from mujoco_playground import registry, wrapper

        settings = registry.get_default_config(PLAYGROUND)
        if "impl" in settings:
            settings.impl = "jax"
        env = registry.load(PLAYGROUND, config=settings)
        log["physics_dt"] = float(settings.sim_dt)
        return _brax(
            config,
            iterations,
            seed,
            log,
            environment=env,
            episode_length=int(settings.episode_length),
            wrap_env_fn=wrapper.wrap_for_brax_training,
        )

    details = functools.partial(_details, log)
    return Case("playground_peer", build, work, "env steps", details=details, missing=playground_missing())
