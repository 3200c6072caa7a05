"""`rdp dsrl`: reinforcement learning over the initial noise of a frozen planner, and the controls that keep it honest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel, steer
from rdp_jax.algos import dsrl
from rdp_jax.checkpoint import save_weights
from rdp_jax.planner import Planner
from train.actors import NOISE_ACTOR
from train.attempt import Attempt
from train.keeping import Best
from train.learning import RATES, Pace, described, learn, on_the_way, success_of
from train.rollouts import PlannerPlayer
from train.task_args import DSRLArgs
from train.tasks import HumanoidStage, Stage, keep_planner

TICKET_STREAM = 0x71C7
EPISODES_PER_TICKET = 8


class NoiseEvaluator:
    """Judges choices of noise over the same fresh starts as every other evaluation; one program per kind of choice.

    Args:
      stage: the task.
      args: of the command.
      planner: whose noise is chosen.
      chosen: the learned choice.
    """

    def __init__(self, stage: Stage, args: DSRLArgs, planner: Planner, chosen: steer.Choose):
        self.stage, self.args, self.planner = stage, args, planner
        self.learned = steer.NoiseActor(planner, chosen, args.ddim_steps)
        self.fixed = steer.NoiseActor(planner, steer.choose_fixed, args.ddim_steps)
        self.shape = (planner.config.horizon, planner.dims.action)

    def judge(self, actor: steer.NoiseActor, params: Any, seed: int | None = None) -> dict[str, Any]:
        """Figures under one choice, on the starts of `seed` (left out: the command's)."""
        seed = self.args.seed if seed is None else seed
        return self.stage.judge_actor(actor, (self.planner.bundle, params), seed, self.args.trials)

    def controls(self, untrained: Any) -> dict[str, Any]:
        """What simpler choices achieve: who claims to have learned something must beat these."""
        tried: dict[str, tuple[steer.NoiseActor, Any]] = {
            "zero": (self.fixed, steer.fixed(self.shape, 0.0)),
            "half": (self.fixed, steer.fixed(self.shape, 0.5)),
            "tanh": (self.fixed, steer.fixed(self.shape, tanh=True)),
            "untrained_actor": (self.learned, untrained),
        }
        found: dict[str, Any] = {}
        if isinstance(self.stage, HumanoidStage):
            ticket, found["golden_ticket_search"] = self.golden_ticket(self.stage)
            tried["golden_ticket"] = (self.fixed, steer.fixed(self.shape, 0.0, constant=ticket))
        for name, (actor, params) in tried.items():
            figures = self.judge(actor, params)
            found[name] = {k: figures[k] for k in RATES if k in figures}
        return found

    def golden_ticket(self, stage: HumanoidStage) -> tuple[jax.Array, float]:
        """The best of `--tickets` constant noises `(Ta, Da)`, and its success on the starts that chose it."""
        key = jax.random.fold_in(jax.random.key(self.args.seed), TICKET_STREAM)
        drawn = jax.random.normal(jax.random.fold_in(key, 1), (self.args.tickets, *self.shape))
        runner = stage.runner(self.fixed, lambda: PlannerPlayer(self.fixed))  # type: ignore[arg-type]

        def play(candidates: np.ndarray, starts: np.ndarray) -> np.ndarray:
            each = steer.fixed(self.shape, 0.0, constant=drawn[candidates])
            return runner.play(key, starts, stage.params, (self.planner.bundle, each)).success

        best, success = best_ticket(self.args.tickets, play)
        return drawn[best], success


def best_ticket(count: int, play: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> tuple[int, float]:
    """Number of the best of `count` candidates, and its success in the last of two rounds.

    Eight episodes tell a bad candidate from a good one, not the best from the lucky: on the door the winner of one such
    round, with eight of eight, was worse than the base.  So the best eighth meets as many episodes again, all on new starts.

    Args:
      count: of candidates.
      play: candidates `(N,)` and numbers of starts `(N,)` -> which episodes were won, `(N,)`.
    """
    candidates, starts, success = np.arange(count), 0, 0.0
    finalists = max(2, count // 8)
    for episodes in (EPISODES_PER_TICKET, EPISODES_PER_TICKET * count // finalists):
        numbers = np.tile(np.arange(starts, starts + episodes), len(candidates))  # the same for every candidate
        won = play(np.repeat(candidates, episodes), numbers).reshape(len(candidates), episodes).mean(1)
        best = np.argsort(-won, kind="stable")[:finalists]
        candidates, starts, success = candidates[best], starts + episodes, float(won[best[0]])
    return int(candidates[0]), success


def run_dsrl(args: DSRLArgs) -> dict[str, Any]:
    """Evaluates, steers, evaluates again on the same starts; the planner's weights stay as they are."""
    attempt = Attempt(args, "dppo")
    planner, stage = attempt.planner, attempt.stage
    base = steer.PlannerBase(planner.config, planner.dims, args.ddim_steps)
    mesh = parallel.make_mesh()
    dsrl.check_layout(args.dsrl, mesh)
    attempt.begin()
    config, executed = args.dsrl, planner.config.executed
    vector = AutoReset(Chunked(stage.practice_env, executed))  # type: ignore[arg-type]
    state = dsrl.init(jax.random.key(args.seed), config, base, planner.bundle, vector, stage.params, mesh)
    untrained = jax.device_get(dsrl.acting(config, state))
    state = attempt.restored(state)
    update = dsrl.Update(config, base, vector, executed, mesh)
    evaluator = NoiseEvaluator(stage, args, planner, steer.learned(config, base, stage.env.spec.obs_dims["critic"]))

    best = Best(args, untrained)

    def evaluate(state):
        params = jax.device_get(dsrl.acting(config, state))
        return best.offer(int(state.iteration), evaluator.judge(evaluator.learned, params, best.seed), params)

    pace = Pace.of(config, stage.env.spec, executed)
    result, to_90 = learn("dsrl", args, attempt.run, update, state, stage.params, pace, note, evaluate)
    state = result.state
    kept, actor = best.choose(int(state.iteration), dsrl.acting(config, state))
    identical = all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.base), jax.tree.leaves(planner.bundle), strict=True)
    )
    keep_planner(args, planner)
    if args.out:
        save_weights(args.out / NOISE_ACTOR, {"actor": actor}, described(args, planner, kept))
    after = attempt.log.keep("after", evaluator.judge(evaluator.learned, actor)) if args.trials else {}
    others = evaluator.controls(untrained) if args.controls and args.trials else {}
    return attempt.end(
        "dsrl",
        config.num_envs,
        result,
        to_90,
        after,
        dsrl.env_steps(config, state, executed),
        evaluations=on_the_way(args.out),
        kept_iteration=kept,
        updates=max(int(state.iteration) - config.warmup, 0) * config.updates,
        base_unchanged=identical,
        controls=others,
    )


def note(metrics: dict[str, Any]) -> str:
    """What the progress line says."""
    return (
        f"return {success_of(metrics):.2f} of {int(metrics['episode/finished'])}  "
        f"entropy {metrics['policy/entropy']:.2f}  alpha {metrics['policy/alpha']:.1e}  Q {metrics['value/mean']:.3f}"
    )
