"""What the commands that learn on a task do before and after: the planner they start from, its stage, the run directory, the
judgements, the summary, the report."""

from __future__ import annotations

import time
from typing import Any

from rdp_jax.algos.loop import Result
from rdp_jax.planner import Planner
from rdp_jax.runs import Run
from train import output
from train.learning import EvaluationLog, outcome, settings, start_planner
from train.sampling import exploring, with_first_std
from train.task_args import Sampling
from train.tasks import check_fits, set_up


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
      final: `planner` as it would come out if nothing were learned.
      stage: of the task.
      run: where to log and save; None without `--out`, and before `begin`.
      log: of the judgements.

    Raises `ConfigError` where planner, algorithm and task do not fit each other.
    """

    def __init__(self, args: Any, algo: str):
        self.args, self.started = args, time.monotonic()
        self.given = start_planner(args, algo)
        quieter = with_first_std(self.given, getattr(args, "first_std", None))
        self.same = quieter is self.given
        self.planner = exploring(quieter, args) if isinstance(args, Sampling) else quieter
        self.final = self.finished(self.planner)
        self.stage = set_up(args, self.given.config.history, record=args.out is not None)
        check_fits(self.given, self.stage.env)
        self.log = EvaluationLog(args, self.stage)
        self.run: Run | None = None
        self.before: dict[str, Any] = {}
        self.untrained: dict[str, Any] = {}
        self.untrained_final: dict[str, Any] = {}

    def finished(self, planner: Planner) -> Planner:
        """`planner` with the std of the first sample that it is to have once it has learned."""
        return with_first_std(planner, getattr(self.args, "final_std", None), "final_std")

    def begin(self) -> None:
        """Takes the run directory, and judges what is there before anything is learned.  Raises `RunError`."""
        self.run = Run(self.args.out, settings(self.args), resume=self.args.resume) if self.args.out else None
        self.before = self.log.judge("before", self.given)
        if not self.same:
            self.untrained = self.log.judge("untrained", self.planner)
        if self.final is not self.planner:
            self.untrained_final = self.log.judge("untrained, sampled as after", self.final)

    def restored(self, state: Any) -> Any:
        """`state`, or what the run that is resumed had come to."""
        return self.run.restore(state) if self.run else state

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
          steps: of the environments, in all.
        """
        if self.run:
            self.run.close()
        record = output.summary(
            command,
            seed=self.args.seed,
            backend=self.stage.env.physics.name,
            num_envs=num_envs,
            wall_s=time.monotonic() - self.started,
            metrics={**outcome(self.judged_before(), after, result, to_90), "env_steps": steps, **more},
            task=self.args.task,
            env_steps=steps,
        )
        self.log.report(record)
        return record
