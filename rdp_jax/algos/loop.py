"""The host loop: calls the update, logs, saves.  How often it does the last two changes no number."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rdp_jax.config import ranged
from rdp_jax.runs import Run, StopSignal


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often to save and evaluate."""

    iterations: int = ranged(1000, 0, 2**31 - 2, "iterations in total, those before a resume included")
    save_every_s: float = ranged(300.0, 0.0, 1e9, "time between checkpoints; 0 for after every iteration", "s")
    save_share: float = ranged(
        0.0, 0.0, 1.0, "share of the time that saving may take to save sooner than save_every_s; 0: it never does"
    )
    max_wall_s: float = ranged(
        0.0, 0.0, 1e9, "stop after this much time even if iterations are left; 0 for no limit", "s"
    )
    eval_every: int = ranged(0, 0, 10**9, "iterations between evaluations; 0 for never")


class Progress(NamedTuple):
    """What a progress callback is told: `iteration` of `iterations`, its metrics, seconds since the loop began."""

    iteration: int
    iterations: int
    metrics: dict[str, Any]
    wall_s: float


class Result(NamedTuple):
    """How a loop ended: the state, the last iteration's metrics (as logged, if a resumed run had nothing left to do), and the
    signal that stopped it (`None`: done)."""

    state: Any
    metrics: dict[str, Any]
    stopped_by: int | None


def train(
    update: Callable[[Any, Any], tuple[Any, dict]],
    state: Any,
    env_params: Any | Callable[[int], Any],
    config: LoopConfig,
    run: Run | None = None,
    evaluate: Callable[[Any], dict] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Runs `update` until `state.iteration` is `config.iterations`, or a signal asks to stop; saves at the end either way.

    Args:
      update: e.g. `ppo.make_update(...)`; donates its state.
      state: has `iteration`; of `init`, or `run.restore(init(...))`.
      env_params: parameters of the environments, or a function of the iteration (a curriculum).
      config: see `LoopConfig`.
      run: where to log and save; nothing is written without one.
      evaluate: `state -> metrics`, logged as `eval/NAME`; must not consume the state's buffers.
      progress: called after every iteration.

    An exception inside an iteration, or a kill, loses what came since the last checkpoint: a signal to stop loses nothing.
    """
    params_at = env_params if callable(env_params) else lambda _: env_params
    begin = saved = time.monotonic()
    cost = 0.0  # of the last checkpoint; the first is saved at once to know it
    metrics: dict[str, Any] = run.latest() if run else {}  # of a run that is resumed with nothing left to do
    with StopSignal() as stop:
        first = iteration = int(state.iteration)
        while iteration < config.iterations and stop.received is None:
            started = time.monotonic()
            if config.max_wall_s and started - begin >= config.max_wall_s:
                break
            state, metrics = update(state, params_at(iteration))
            metrics = jax.device_get(metrics)
            iteration += 1
            now = time.monotonic()
            metrics["time/iteration_s"] = now - started
            if evaluate and config.eval_every and iteration % config.eval_every == 0:
                metrics |= {f"eval/{name}": value for name, value in evaluate(state).items()}
            if run:
                run.log(iteration, metrics)
            soon = cost / config.save_share if config.save_share else config.save_every_s
            now = time.monotonic()
            if run and now - saved >= min(soon, config.save_every_s):
                run.save(iteration, state)
                saved = time.monotonic()
                cost = saved - now
            if progress:
                progress(Progress(iteration, config.iterations, metrics, time.monotonic() - begin))
        if run and (iteration > first or run.checkpoints.latest() is None):
            run.save(iteration, state)
        if run and stop.received is None:
            run.end(iteration)
        return Result(state, metrics, stop.received)
