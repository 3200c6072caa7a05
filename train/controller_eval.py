"""`rdp controller eval`: both parts together on random command sequences."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.control.commands import CommandRanges
from envs.control.controller import CONTROL_DT
from envs.control.env import (
    ControlConfig,
    ControlEnv,
    ControlParams,
    nominal_params,
    randomized_params,
)
from train import output
from train.args import ControllerEvalArgs
from train.controller_metrics import progress_metrics
from train.controller_weights import Weights, act, climbs, load_part

CLIMB = CommandRanges(vx=(0.2, 0.4), vy=(0.0, 0.0), yaw=(0.0, 0.0), stand=0.0, hold=(60.0, 60.0))
EVALUATION_STREAM = 0x5EED  # apart from what training draws from the same seed


@dataclasses.dataclass(frozen=True)
class Trace:
    """Evaluation episodes: `alive (episodes,)` at the end, `feet (episodes, 2, 4)` poses then, and over the living ticks
    `sums` name -> float and their number `ticks`."""

    alive: np.ndarray
    feet: np.ndarray
    sums: dict[str, float]
    ticks: float


class ControllerRunner:
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


def run_eval(args: ControllerEvalArgs) -> dict[str, Any]:
    """Judges both policies together on random command sequences, nominal or `--randomize`d."""
    start = time.monotonic()
    ticks = round(args.episode_s / CONTROL_DT)
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
    key = jax.random.fold_in(jax.random.key(args.seed), EVALUATION_STREAM)
    alive, feet, sums, count = [], [], {}, 0.0
    runner = ControllerRunner(env, params, legs, hands, block)
    for i in range(0, args.episodes, at_once):
        keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(i, i + at_once))
        trace = runner(keys, ticks, min(at_once, args.episodes - i))
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
