"""What the commands that learn on a task do before and after: the planner they start from, its stage, the run directory, the
judgements, the summary, the report."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rdp_jax.algos.loop import Result
from rdp_jax.checkpoint import fingerprint
from rdp_jax.config import to_dict
from rdp_jax.planner import Planner, PlannerConfig
from rdp_jax.runs import Run
from train import output
from train.keeping import CHOOSING
from train.learning import EvaluationLog, outcome, settings, start_planner
from train.names import of_t1
from train.running import open_run
from train.sampling import FINAL, alike, as_asked, exploring, with_noise
from train.task_args import Sampling
from train.tasks import check_fits, set_up, weights_of


class Attempt:
    """A planner, and the task on which it shall become better.

    Args:
      args: of the command.
      algo: as of `start_planner`.

    Attributes:
      given: the pre-trained planner.
      planner: the one from which learning starts: `given`, with the first sample's std and the exploration noise that were asked
        for.
      same: whether the two plan alike without exploration.
      stage: of the task.
      run: where to log and save; None without `--out`, and before `begin`.
      first: iterations that a resumed run had made before.
      log: of the judgements.

    Raises `ConfigError` where planner, algorithm and task do not fit each other.
    """

    def __init__(self, args: Any, algo: str):
        self.args, self.started = args, time.monotonic()
        self.given = start_planner(args, algo)
        sampled = as_asked(self.given, args) if isinstance(args, Sampling) else self.given
        self.planner = exploring(sampled, args) if isinstance(args, Sampling) else sampled
        self.same = alike(self.planner, self.given)
        self.finished(self.planner)  # refuses what cannot be
        self.stage = set_up(args, self.given.config.history, record=args.out is not None)
        check_fits(self.given, self.stage.env)
        self.log = EvaluationLog(args, self.stage)
        self.run: Run | None = None
        self.first = 0
        self.before: dict[str, Any] = {}
        self.untrained: dict[str, Any] = {}
        self.untrained_final: dict[str, Any] = {}
        self.final_scores: dict[str, dict[str, float]] = {}

    def finished(self, planner: Planner, **choice: float) -> Planner:
        """`planner` with the noise in use of `choice`, by flag (`FINAL`); of a flag that is not in it, with the first value that
        was given (without any: its own)."""
        for flag, name in FINAL.items():
            first = next(iter(getattr(self.args, flag, ())), None)
            planner = with_noise(planner, name, choice.get(flag, first), flag)
        return planner

    def chosen(self, planner: Planner, under: AbstractContextManager | None = None) -> Planner:
        """What comes out: `planner` with the noise in use with which it is best (of equals, the first), on the starts that
        `--keep best` chooses on, which are not those of the final judgement: first one of `--final-std`, then one of
        `--final-noise`; and the judgement of `self.planner` sampled alike, with nothing learned.

        Args:
          planner: what was learned.
          under: of the stage, while it chooses (`HumanoidStage.under`).
        """
        choice: dict[str, float] = {}
        judged: dict[PlannerConfig, float] = {}
        with under or nullcontext():
            for flag in FINAL:
                values = getattr(self.args, flag, ())
                if len(values) > 1:
                    candidates = {value: self.finished(planner, **{**choice, flag: value}) for value in values}
                    for candidate in candidates.values():
                        if candidate.config not in judged:
                            judged[candidate.config] = self._score(candidate)
                    scores = {value: judged[candidate.config] for value, candidate in candidates.items()}
                    self.final_scores[flag] = {f"{value:g}": score for value, score in scores.items()}
                    choice[flag] = max(scores, key=scores.__getitem__)
        out, untrained = (self.finished(p, **choice) for p in (planner, self.planner))
        if untrained is not self.planner:
            self.untrained_final = self.log.judge("untrained, sampled as after", untrained)
        return out

    def _score(self, planner: Planner) -> float:
        return float(self.stage.judge(planner, self.args.seed + CHOOSING, self.args.trials)["score"])

    def begin(self) -> None:
        """Takes the run directory.  Raises `RunError`, for a resumed run also if it began from another planner or controller."""
        recorded = {**settings(self.args), "weights": self._fingerprints(), "given": to_dict(self.given.config)}
        self.run = open_run(self.args, recorded)

    def _fingerprints(self) -> dict[str, str]:
        """Of everything that is given: files may move between a run and its resumption, what is in them may not change."""
        controller = getattr(self.stage.params, "controller", {})  # gym tasks have none
        given = {"planner": weights_of(self.given), **controller}
        return {name: fingerprint(weights) for name, weights in given.items()}

    def restored(self, state: Any) -> Any:
        """`state`, or what the run that is resumed had come to; then judges what is there before anything is learned.

        Raises `CheckpointError`, before that, for a damaged checkpoint.
        """
        state = self.run.restore(state) if self.run else state
        self.first = int(state.iteration)
        self.before = self.log.judge("before", self.given)
        if not self.same:
            self.untrained = self.log.judge("untrained", self.planner)
        return state

    def chosen_std(self) -> dict[str, Any]:
        """What a summary says about the choices of `chosen`, if there were any."""
        return {f"{flag}_scores": scores for flag, scores in self.final_scores.items()}

    def judged_before(self) -> dict[str, dict[str, Any]]:
        """The judgements of what was there before anything was learned, by their suffix in a summary."""
        return {"before": self.before, "untrained": self.untrained, "untrained_final": self.untrained_final}

    def end(
        self,
        command: str,
        num_envs: int,
        result: Result,
        to_90: int | None,
        after: dict[str, Any],
        steps: int,
        **more: Any,
    ) -> dict[str, Any]:
        """The summary of the command, with `more` metrics; writes the report.

        Args:
          num_envs: of the learner.
          result, to_90: as from `learn`.
          after: the judgement of what was learned.
          steps: of the environments, in all; the summary's own `env_steps` are those of this call.
        """
        if self.run:
            self.run.close()
        made = int(result.state.iteration)  # all alike in steps
        record = output.summary(
            command,
            seed=self.args.seed,
            backend=self.stage.env.physics.name,
            num_envs=num_envs,
            wall_s=time.monotonic() - self.started,
            metrics={
                **outcome(self.judged_before(), after, result, to_90 if of_t1(self.args.task) else None),
                "env_steps": steps,
                **self.chosen_std(),
                **more,
            },
            task=self.args.task,
            env_steps=steps * (made - self.first) // max(made, 1),
        )
        self.log.report(record)
        return record
