"""Whether a task's world stays sane under random plans, and whether physics backends agree on the expert's success.

    python -m benchmarks.sanity --task pickup --episodes 1000

Plays whole episodes of random planner actions and reports the extremes: kinetic energy, penetration, speed of objects, seen
after every tick of the controller (50 Hz), and how many episodes diverged.  Exit status 1 if a bound of `BOUNDS` is broken or
the backends disagree.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from benchmarks.standalone import run_command
from envs.core import State
from envs.physics import available
from envs.physics.base import ModelParams, Physics, PhysicsState
from envs.physics.callback import batched_callback
from envs.physics.guard import flatten_params
from envs.physics.mjx import widen_thread_pool
from envs.physics.native import POOL
from envs.physics.variants import ModelTable
from envs.t1.model import objects_of
from envs.tasks.catalog import make_expert
from envs.tasks.command import HAND_HIGH, HAND_LOW, VELOCITY_HIGH, VELOCITY_LOW
from envs.tasks.hierarchy import Hierarchy
from envs.wrappers import AutoReset
from rdp_jax.config import ranged
from rdp_jax.evaluate import first_episodes
from train import cli, output
from train.args import t1_task
from train.rollouts import ExpertPlayer
from train.task_args import TaskFlags
from train.tasks import HumanoidStage

Array = jax.Array
STREAM = 0x5A9E  # folded into the seed, so that no training or evaluation has these starts
BOUNDS = {
    # A robot of 31 kg that falls over from 0.55 m, and moves: no engine may hand out more than gravity and servos do.
    "kinetic_energy_j": 500.0,
    # Soft contacts give way; deeper than this and something has gone through a wall, or soon will.
    "penetration_m": 0.05,
    # What falls from a table has 3 m/s, what a hand flings away not much more.
    "object_speed_mps": 8.0,
}
BACKENDS = ("native", "mjx")  # that must agree, where this machine has them
COMMAND = cli.Command("benchmarks.sanity", "Random plans.", f"{__name__}:SanityArgs", f"{__name__}:run_sanity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanityArgs(TaskFlags):
    """Random plans on a T1 task: do energy, penetration and speeds stay within bounds, and do the backends agree?"""

    task: str = t1_task()
    episodes: int = ranged(1000, 1, 10**7, "episodes of random plans")
    agreement: int = ranged(
        16, 0, 10**6, "episodes of the expert on each backend of this machine, whose intervals must overlap; 0: none"
    )


class Watched:
    """`envs.physics.base.Physics` that keeps the extremes of an episode, in the order of `BOUNDS`, in its state's `backend`."""

    def __init__(self, physics: Physics):
        self.inner, self.name, self.model, self.nominal = physics, physics.name, physics.model, physics.nominal
        base = copy.copy(physics.model)
        self.table, self.data = ModelTable(base), mujoco.MjData(base)
        self.objects = [base.body(name).id for name in objects_of(base)]

    def init(self, qpos: Array, qvel: Array, params: ModelParams | None = None) -> PhysicsState:
        """Nothing seen yet."""
        state = self.inner.init(qpos, qvel, params)
        return state.replace(backend=(state.backend, jnp.zeros(len(BOUNDS), state.qpos.dtype)))

    def step(
        self,
        state: PhysicsState,
        ctrl: Array,
        substeps: int,
        params: ModelParams | None = None,
        eq_active: Array | None = None,
    ) -> PhysicsState:
        """Steps, and looks at where that led."""
        backend, worst = state.backend
        after = self.inner.step(state.replace(backend=backend), ctrl, substeps, params, eq_active)
        flat = flatten_params(self.nominal() if params is None else params)
        packed = jnp.concatenate([after.qpos, after.qvel, flat.astype(after.qpos.dtype)])
        seen = batched_callback(self.look, len(BOUNDS), packed)
        return after.replace(backend=(after.backend, jnp.maximum(worst, jnp.where(after.diverged, 0.0, seen))))

    def look(self, packed: np.ndarray) -> np.ndarray:
        """Rows of qpos, qvel and flat model parameters -> kinetic energy [J], deepest penetration [m], speed of the fastest body
        that is not the robot's [m/s]; `(lanes, 3)`."""
        nq, nv, data = self.model.nq, self.model.nv, self.data
        found = np.zeros((len(packed), len(BOUNDS)), packed.dtype)
        velocity = np.zeros(6)
        with POOL.lock:
            models = self.table.lookup(packed[:, nq + nv :])
            for lane, model in enumerate(models):
                data.qpos[:], data.qvel[:] = packed[lane, :nq], packed[lane, nq : nq + nv]
                mujoco.mj_fwdPosition(model, data)
                mujoco.mj_comVel(model, data)
                mujoco.mj_energyVel(model, data)
                depth = -min(data.contact.dist, default=0.0)
                speed = 0.0
                for body in self.objects:
                    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_BODY, body, velocity, 0)
                    speed = max(speed, float(np.linalg.norm(velocity[3:])))
                found[lane] = data.energy[1], max(depth, 0.0), speed
        return found


class WatchedEnv:
    """A task whose metrics hold the extremes of the episode so far."""

    def __init__(self, env: Hierarchy):
        env.control.physics = Watched(env.control.physics)
        self.env, self.spec = env, env.spec

    def default_params(self) -> Any:
        """Of the task; it has none without a controller."""
        raise TypeError("a task's parameters hold a controller: give them to `reset` and `step`")

    def reset(self, key: Array, params: Any) -> State:
        """As the task."""
        return self._with_extremes(self.env.reset(key, params))

    def step(self, state: State, action: Array, params: Any) -> State:
        """As the task."""
        return self._with_extremes(self.env.step(state, action, params))

    def _with_extremes(self, state: State) -> State:
        worst = state.physics.backend[1]
        return state.replace(metrics={**state.metrics, **{name: worst[i] for i, name in enumerate(BOUNDS)}})


def random_action(key: Array) -> Array:
    """`(23,)` uniform over what a planner may ask for, rotations of normal numbers."""
    base, hands, turns, grip = jax.random.split(key, 4)
    mirror = np.stack([np.ones(3, np.float32), np.array([1, -1, 1], np.float32)])
    place = mirror * jax.random.uniform(hands, (2, 3), minval=HAND_LOW, maxval=HAND_HIGH)
    poses = jnp.concatenate([place, jax.random.normal(turns, (2, 6))], axis=1)
    velocity = jax.random.uniform(base, (3,), minval=VELOCITY_LOW, maxval=VELOCITY_HIGH)
    return jnp.concatenate([velocity, poses.reshape(-1), jax.random.uniform(grip, (2,))])


def extremes(args: SanityArgs) -> dict[str, Any]:
    """What the worst of `args.episodes` random episodes came to."""
    stage = HumanoidStage(args)
    vector = AutoReset(WatchedEnv(stage.env))
    key = jax.random.fold_in(jax.random.key(args.seed), STREAM)
    at_once = min(args.num_envs or 64, args.episodes)

    @jax.jit
    def play(indices, params):
        act = lambda obs, keys: jax.vmap(random_action)(keys)  # noqa: E731
        return first_episodes(vector, act, key, indices, params, stage.env.spec.episode_steps)

    worst, totals = dict.fromkeys(BOUNDS, 0.0), {"steps": 0, "diverged": 0, "falls": 0, "drops": 0}
    with output.Progress(f"sanity {args.task}", total=args.episodes) as bar:
        for first in range(0, args.episodes, at_once):
            # The last batch may be too large for what is left: its rest counts for nothing.
            count = min(at_once, args.episodes - first)
            played = jax.device_get(play(first + jnp.arange(at_once), stage.params))
            for name in BOUNDS:
                worst[name] = max(worst[name], float(played.last[name][:count].max()))
            totals["steps"] += int(played.steps[:count].sum())
            totals["diverged"] += int(played.diverged[:count].sum())
            totals["falls"] += int(played.last["fall"][:count].sum())
            totals["drops"] += int(played.last["drop"][:count].sum())
            bar.update(first + count, totals["steps"], "")
    return {"backend": stage.env.physics.name, **worst, **totals}


def broken(found: Mapping[str, float]) -> list[str]:
    """Sentences about bounds that `found` does not keep."""
    said = [
        f"{name} {found[name]:.3g}, allowed: up to {limit:g}"
        for name, limit in BOUNDS.items()
        if not found[name] <= limit
    ]
    return said + ([f"diverged {found['diverged']}, allowed: 0"] if found["diverged"] else [])


def agreement(args: SanityArgs) -> dict[str, Any]:
    """The expert's success on each backend, over the same starts."""
    found: dict[str, Any] = {}
    for backend in (name for name in BACKENDS if name in available()):
        stage = HumanoidStage(dataclasses.replace(args, backend=backend))
        player = ExpertPlayer(make_expert(args.task, stage.env))
        judged = stage.judge_player(player, None, args.seed, args.agreement)
        found[backend] = {name: judged[name] for name in ("success_rate", "success_ci95", "trials")}
    return found


def disagreement(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences about pairs of backends whose 95 % intervals do not overlap."""
    names, said = list(found), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            (low, high), (lower, higher) = found[one]["success_ci95"], found[other]["success_ci95"]
            if high < lower or higher < low:
                said.append(
                    f"expert wins {found[one]['success_rate']:.3f} on {one}, {found[other]['success_rate']:.3f} on {other}"
                )
    return said


def run_sanity(args: SanityArgs) -> dict[str, Any]:
    """Extremes, agreement, and in `broken` what is wrong with them."""
    start = time.monotonic()
    found = extremes(args)
    experts = agreement(args) if args.agreement else {}
    return output.summary(
        "sanity",
        seed=args.seed,
        backend=found["backend"],
        num_envs=min(args.num_envs or 64, args.episodes),
        wall_s=time.monotonic() - start,
        metrics={
            "episodes": args.episodes,
            **{name: value for name, value in found.items() if name not in ("backend", "steps")},
            "bounds": BOUNDS,
            "expert": experts,
            "broken": broken(found) + disagreement(experts),
        },
        task=args.task,
        env_steps=found["steps"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    widen_thread_pool()  # before JAX is first used, for MJX
    return run_command(COMMAND, SanityArgs, run_sanity, argv, lambda record: bool(record["metrics"]["broken"]))


if __name__ == "__main__":
    sys.exit(main())
