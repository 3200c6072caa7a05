"""`rdp controller train` and `rdp controller eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.control import observe
from envs.control.commands import CommandRanges
from envs.control.env import (
    ControlConfig,
    ControlEnv,
    ControlParams,
    nominal_params,
    randomized_params,
    training_params,
)
from envs.t1.model import SCENES
from envs.wrappers import AutoReset
from rdp_jax import normalize, parallel
from rdp_jax.algos import ppo
from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.checkpoint import CheckpointError, fingerprint, fitted, load_weights, save_weights
from rdp_jax.config import ConfigError, to_dict, without_paths
from rdp_jax.nets import mlp
from rdp_jax.runs import Run, git_revision, versions
from train import output
from train.args import EvalArgs
from train.controller_args import TrainArgs
from train.controller_metrics import progress_metrics
from train.manifest import JOINTS, LAYOUTS

Weights = Mapping[str, Any]
CLIMB = CommandRanges(vx=(0.2, 0.4), vy=(0.0, 0.0), yaw=(0.0, 0.0), stand=0.0, hold=(60.0, 60.0))
OTHER = {"legs": "hands", "hands": "legs"}


def shipped(part: str, climbs: bool = False) -> Path:
    """Weight file of `part` (`legs`, `hands`) that comes with the package; there are other legs where there is a ledge."""
    name = "legs_climb" if climbs and part == "legs" else part
    return Path(str(resources.files("envs.control") / "assets" / f"{name}.safetensors"))


def load_part(part: str, path: Path | None = None, climbs: bool = False, field: str = "") -> Weights:
    """`{"actor", "normalizer"}` of a policy: the file's, or the shipped ones.

    Args:
      part: `legs` or `hands`.
      path: weight file; left out: the shipped one.
      climbs: whether the scene has platforms (chooses among the shipped ones).
      field: that named the file, for a complaint; left out: the part's own.

    Raises `ConfigError` if the file cannot be read, or is not of such a policy.
    """
    path = path or shipped(part, climbs)
    try:
        weights, metadata = load_weights(path)
        found = metadata.get("part")
        if found != part:
            raise CheckpointError(f"this file holds {found!r}")
        template = _template(part, weights)
        policy: Weights = fitted({name: weights[name] for name in template if name in weights}, template, path)
    except CheckpointError as error:
        raise ConfigError(field or part, str(path), f"weights of part {part!r}; {error}") from error
    return policy


def _template(part: str, weights: Weights) -> Weights:
    """Shapes of a policy of `part`, its hidden widths as those of `weights`."""
    sizes: tuple[int, ...] = ()
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):  # no policy: what it lacks is said later
        sizes = mlp.mlp_sizes(weights["actor"]["mlp"])
    width, actor = observe.width(LAYOUTS[part]), mlp.GaussianActor(len(JOINTS[part]), sizes)

    def policy() -> dict[str, Any]:
        params = actor.init(jax.random.key(0), jnp.zeros(width))["params"]
        return {"actor": params, "normalizer": normalize.create(width)}

    shapes: Weights = jax.eval_shape(policy)
    return shapes


def climbs(scene: str) -> bool:
    """Whether the scene of that name has platforms."""
    return bool(SCENES[scene].platforms)


def act(weights: Weights, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Deterministic action of a policy for `obs["actor"]`."""
    return ppo.policy({"actor": weights["actor"]}, {"actor": weights["normalizer"]}, obs)


# --- train -------------------------------------------------------------------------------------------------------------


def _partner(args: TrainArgs) -> Weights | None:
    """Weights of the part that is not trained.  Hands cannot do without legs; arms follow their references well alone."""
    other = OTHER[args.part]
    if args.partner is not None:
        return load_part(other, args.partner, field="partner")
    return load_part(other, climbs=climbs(args.scene)) if args.part == "hands" else None


def run_train(args: TrainArgs) -> dict[str, Any]:
    """Trains a policy; writes a run directory if `--out` is given, with `PART.safetensors` in it."""
    args = args.resolved()
    start = time.monotonic()
    given = None if args.init is None else load_part(args.part, args.init, field="init")
    partner = _partner(args)
    mesh = parallel.make_mesh()
    env = ControlEnv(
        ControlConfig(part=args.part, scene=args.scene, backend=args.backend, physics_dt=args.physics_dt), partner=act
    )
    vector = AutoReset(env)
    params = training_params(partner)
    # What may differ between a run and its resumption is left out.
    recorded = to_dict(without_paths(dataclasses.replace(args, resume=False, json=False, iterations=1, minutes=None)))
    recorded["weights"] = {name: fingerprint(w) for name, w in (("init", given), ("partner", partner)) if w is not None}
    # What can be refused is, before anything is compiled and before a directory is taken.
    ppo.check_layout(args.ppo, mesh)
    if given is not None and mlp.mlp_sizes(given["actor"]["mlp"]) != args.ppo.actor_sizes:
        raise ConfigError("init", str(args.init), f"a policy with hidden widths {args.ppo.actor_sizes}")
    run = Run(args.out, recorded, args.resume, asked=to_dict(args)) if args.out else None
    state = ppo.init(jax.random.key(args.seed), args.ppo, vector, params, mesh)
    if given is not None and args.init is not None:
        state = start_from(state, given, args.init)
    if run:
        state = run.restore(state)
    update = ppo.make_update(args.ppo, vector, mesh)
    loop = LoopConfig(
        iterations=args.iterations, save_every_s=60.0, max_wall_s=60.0 * args.minutes if args.minutes else 0.0
    )
    budget = loop.max_wall_s or None
    compiled: list[float] = []
    first = int(state.iteration)
    with output.Progress(f"{args.part}", total=args.iterations, budget_s=budget) as bar:

        def report(p):
            compiled.append(p.wall_s) if not compiled else None
            bar.update(p.iteration, p.iteration * args.ppo.num_envs * args.ppo.unroll_length, _note(p.metrics))

        result = train(update, state, params, loop, run, progress=report)
    state = result.state
    if run:
        save_weights(run.out / f"{args.part}.safetensors", export(state), _metadata(args, state))
        run.close()
    wall = time.monotonic() - start
    steps = (int(state.iteration) - first) * args.ppo.num_envs * args.ppo.unroll_length
    metrics = {
        "iterations": int(state.iteration),
        "total_env_steps": ppo.env_steps(args.ppo, state),
        "compile_s": compiled[0] if compiled else None,
        "stopped_by": result.stopped_by,
        **progress_metrics(result.metrics),
    }
    return output.summary(
        "controller train",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=args.ppo.num_envs,
        wall_s=wall,
        metrics=metrics,
        task=args.part,
        env_steps=steps,
    )


def start_from(state: ppo.LearnerState, weights: Weights, path: Path) -> ppo.LearnerState:
    """`state` with the policy and the observation statistics of `weights`; critic and exploration start afresh.

    Raises `ConfigError` if the weights belong to a network or an observation of another size.
    """

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return [x.shape for x in jax.tree.leaves(tree)]

    old = (state.params["actor"], state.normalizer["actor"])
    new = (weights["actor"], weights["normalizer"])
    if shapes(old) != shapes(new):
        raise ConfigError("init", str(path), f"a policy with arrays {shapes(old)}; this one has {shapes(new)}")
    actor = jax.tree.unflatten(jax.tree.structure(old[0]), jax.tree.leaves(new[0]))
    params = {**state.params, "actor": {**actor, "log_std": state.params["actor"]["log_std"]}}
    return state.replace(params=params, normalizer={**state.normalizer, "actor": new[1]})


def export(state: ppo.LearnerState) -> dict[str, Any]:
    """What acting needs: the policy and the normaliser of its observations."""
    return {"actor": state.params["actor"], "normalizer": state.normalizer["actor"]}


def _metadata(args: TrainArgs, state: ppo.LearnerState) -> dict[str, Any]:
    return {
        "part": args.part,
        "config": to_dict(without_paths(args)),
        "env_steps": ppo.env_steps(args.ppo, state),
        "iterations": int(state.iteration),
        "versions": versions(),
        "git": git_revision(),
    }


def _note(metrics: Mapping[str, Any]) -> str:
    p = {name: float("nan") if value is None else value for name, value in progress_metrics(metrics).items()}
    return (
        f"reward {metrics['reward/mean']:.4f}  falls/10s {p['falls_per_10s']:.2f}  "
        f"touchdown {100 * p['touchdown_error_m']:.1f} cm  hand {1000 * p['hand_position_error_m']:.1f} mm  "
        f"kl {metrics['policy/kl']:.3f}  lr {metrics['lr']:.1e}"
    )


# --- eval --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Trace:
    """Evaluation episodes: `alive (episodes,)` at the end, `feet (episodes, 2, 4)` poses then, and over the living ticks
    `sums` name -> float and their number `ticks`."""

    alive: np.ndarray
    feet: np.ndarray
    sums: dict[str, float]
    ticks: float


class Whole:
    """Drives `part="whole"` environments with both policies from fresh starts, without auto-reset; compiled once.

    What happens after a fall counts for nothing.

    Args:
      env, params: the environments.
      legs, hands: weights of the policies.
      block: ticks per compiled call; divides those of an episode.
    """

    def __init__(self, env: ControlEnv, params: ControlParams, legs: Weights, hands: Weights, block: int = 50):
        self.env, self.params, self.legs, self.hands, self.block = env, params, legs, hands, block
        self._reset = jax.jit(jax.vmap(env.reset, (0, None)))
        self._advance = jax.jit(lambda carry: jax.lax.scan(self._tick, carry, None, length=block)[0])
        self._feet = jax.jit(jax.vmap(lambda p: env.controller.measure(p).feet))

    def _tick(self, carry, _):
        state, alive, sums, count = carry
        action = jnp.concatenate(
            [act(self.legs, {"actor": state.obs["legs"]}), act(self.hands, {"actor": state.obs["hands"]})], axis=-1
        )
        state = jax.vmap(self.env.step, (0, 0, None))(state, action, self.params)
        broken = state.physics.diverged | ~jnp.isfinite(state.reward)
        ok = alive & ~broken
        sums = {k: sums[k] + jnp.sum(jnp.where(ok, state.metrics[k], 0.0)) for k in sums}
        return (state, alive & ~state.terminated & ~broken, sums, count + jnp.sum(ok)), None

    def __call__(self, keys: jax.Array, ticks: int, counted: int | None = None) -> Trace:
        """Episodes of `ticks` from `keys (B,)`; of them only the first `counted` count, by default all."""
        counted = keys.shape[0] if counted is None else counted
        state = self._reset(keys, self.params)
        alive = jnp.arange(keys.shape[0]) < counted
        carry = (state, alive, {k: jnp.float32(0.0) for k in state.metrics}, jnp.float32(0.0))
        with output.Progress("evaluate", total=ticks) as bar:
            for done in range(0, ticks, self.block):
                carry = self._advance(carry)
                at = min(done + self.block, ticks)
                bar.update(at, at * counted, f"alive {int(carry[1].sum())}")
        state, alive, sums, count = carry
        feet = np.asarray(self._feet(state.physics))[:counted]
        return Trace(np.asarray(alive)[:counted], feet, {k: float(v) for k, v in sums.items()}, float(count))


def on_top(env: ControlEnv, feet: np.ndarray) -> np.ndarray:
    """`(episodes,)` whether both soles `(episodes, 2, 4)` are over the scene's first platform, at its height or above."""
    p = env.scene.platforms[0]
    over = (np.abs(feet[..., 0] - p.x) < p.half_x) & (np.abs(feet[..., 1] - p.y) < p.half_y)
    return np.all(over & (feet[..., 2] > p.height - 0.01), axis=1)


def run_eval(args: EvalArgs) -> dict[str, Any]:
    """Judges both policies together on random command sequences, nominal or `--randomize`d."""
    start = time.monotonic()
    ticks = round(args.episode_s / 0.02)
    # At a step everybody walks at it; elsewhere commands are as in training.
    commands = CLIMB if args.scene == "step" else CommandRanges()
    env = ControlEnv(
        ControlConfig(
            part="whole",
            scene=args.scene,
            backend=args.backend,
            episode_s=min(args.episode_s + 1.0, 3600.0),
            commands=commands,
        )
    )
    params = randomized_params() if args.randomize else nominal_params()
    legs, hands = load_part("legs", args.legs, climbs(args.scene)), load_part("hands", args.hands)
    block = next(b for b in (50, 25, 10, 5, 2, 1) if ticks % b == 0)
    at_once = min(args.num_envs or 256, args.episodes)
    # Evaluation draws come from a stream of their own: no training run folds this constant into its seed.
    key = jax.random.fold_in(jax.random.key(args.seed), 0x5EED)
    alive, feet, sums, count = [], [], {}, 0.0
    whole = Whole(env, params, legs, hands, block)
    for i in range(0, args.episodes, at_once):
        keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(i, i + at_once))
        trace = whole(keys, ticks, min(at_once, args.episodes - i))
        alive.append(trace.alive)
        feet.append(trace.feet)
        sums = {k: sums.get(k, 0.0) + v for k, v in trace.sums.items()}
        count += trace.ticks
    survived = int(np.concatenate(alive).sum())
    means = {k: v / max(count, 1.0) for k, v in sums.items()}
    metrics = {
        "episodes": args.episodes,
        "survival_rate": survived / args.episodes,
        "survival_ci95": list(output.wilson(survived, args.episodes)),
        **{k: v for k, v in progress_metrics(means).items() if k != "falls_per_10s"},
        "touchdowns": int(sums["touchdown/count"]),
    }
    if sums["ledge/count"]:
        metrics["ledge_touchdowns"] = int(sums["ledge/count"])
        metrics["ledge_touchdown_error_m"] = sums["ledge/error_m"] / sums["ledge/count"]
    if args.scene == "step":
        climbed = int(np.sum(np.concatenate(alive) & on_top(env, np.concatenate(feet))))
        metrics["climb_success_rate"] = climbed / args.episodes
        metrics["climb_success_ci95"] = list(output.wilson(climbed, args.episodes))
    return output.summary(
        "controller eval",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=at_once,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.scene + ("+randomize" if args.randomize else ""),
        env_steps=args.episodes * ticks,
    )
