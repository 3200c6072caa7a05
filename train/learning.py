"""What the commands that learn on a task share: where they start, the loop with its progress, what came of it, the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.core import EnvSpec
from rdp_jax.algos.loop import LoopConfig, Result, train
from rdp_jax.config import ConfigError, to_dict, without_paths
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner
from rdp_jax.runs import Run, provenance
from train import output
from train.actors import CORRECTION, NOISE_ACTOR
from train.learning_report import controllers, read_curve, write
from train.rollouts import Played
from train.running import agreed
from train.tasks import HumanoidStage, Stage, find_planner

TRACKED = ("hand_position_error_m", "hand_orientation_error_rad", "hand_speed_mps", "completion_time_s")
RATES = ("success_rate", "success_ci95", "return", "return_ci95")
JUDGED = (*RATES, *TRACKED)
ENOUGH = 100  # episodes that a success while learning is judged over


def start_planner(args: Any, algo: str) -> Planner:
    """The pre-trained planner to start from.  Raises `ConfigError` where it does not suit the algorithm."""
    place = args.planner
    beside = [name for name in (CORRECTION, NOISE_ACTOR) if place and place.is_dir() and (place / name).is_file()]
    if beside:
        allowed = f"a planner that plans by itself; beside this one lies {beside[0]} (its file alone can be named)"
        raise ConfigError("planner", str(place), allowed)
    planner = find_planner(place, args.task, "pretrained")
    gaussian = planner.config.net.kind in GAUSSIAN
    if gaussian != (algo == "gaussian-ppo"):
        kind = f"the planner's network is {planner.config.net.kind}"
        if gaussian and getattr(args, "algo", None) != "dppo":  # nothing else to choose
            raise ConfigError("planner", str(place), f"a diffusion planner ({kind})")
        raise ConfigError("algo", algo, f"{'gaussian-ppo' if gaussian else 'dppo'} ({kind})")
    if planner.tuned_steps:
        raise ConfigError("planner", str(args.planner), "a pre-trained planner; this one is fine-tuned already")
    return planner


def settings(args: Any) -> dict[str, Any]:
    """What a run and its resumption must agree on."""
    free = {
        "iterations": 1,
        "minutes": None,
        "trials": 0,
        "eval_every": 0,
        "keep": "last",
        "final_std": None,
        "final_noise": None,
        "controls": False,
        "tickets": 32,
    }
    return agreed(args, **{name: value for name, value in free.items() if hasattr(args, name)})


def described(args: Any, before: Planner, iterations: int) -> dict[str, Any]:
    """Metadata of a fine-tuned planner's file."""
    return {
        "task": args.task,
        "before": before.metadata,
        "seed": args.seed,
        "iterations": iterations,
        "config": to_dict(without_paths(args)),
        **provenance(),
    }


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast a learner goes: `steps` of the environments per iteration; all episodes that were begun at the start have ended
    after `first` iterations."""

    steps: int
    first: int

    @classmethod
    def of(cls, config: Any, spec: EnvSpec, executed: int) -> Pace:
        """Of a learner with `num_envs` and an `unroll_length` in chunks of `executed` steps of the environment."""
        steps = config.unroll_length * executed
        return cls(config.num_envs * steps, -(-spec.episode_steps // steps))


def learn(
    name: str,
    args: Any,
    run: Run | None,
    update: Callable[[Any, Any], tuple[Any, dict]],
    state: Any,
    env_params: Any,
    pace: Pace,
    note: Callable[[dict[str, Any]], str],
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> tuple[Result, int | None]:
    """Runs `update` from `state` for `args.iterations`, or `args.minutes`, with a progress bar.

    Args:
      name: of the bar.
      args: of the command.
      run: where to log and save.
      update, state, env_params: as of `rdp_jax.algos.loop.train`.
      pace: of the learner.
      note: what the bar says of an iteration's metrics.
      evaluate: figures of a state, logged as `eval/NAME` every `args.eval_every` iterations.

    Returns:
      The loop's result, and the iteration that reached 90 % (`reached`).
    """
    loop = LoopConfig(
        iterations=args.iterations,
        save_every_s=60.0,
        save_share=0.05,
        max_wall_s=60.0 * args.minutes if args.minutes else 0.0,
        eval_every=args.eval_every if evaluate and args.trials else 0,
    )
    rows = read_curve(args.out)  # of a run that is resumed
    with output.Progress(f"{name} {args.task}", total=args.iterations, budget_s=loop.max_wall_s or None) as bar:

        def report(p):
            rows.append({"iteration": p.iteration, **p.metrics})
            bar.update(p.iteration, p.iteration * pace.steps, note(p.metrics))

        result = train(update, state, env_params, loop, run, evaluate, progress=report)
    return result, reached(telling(rows, pace))


def telling(rows: list[dict[str, Any]], pace: Pace) -> list[dict[str, Any]]:
    """Those of the metrics per iteration whose success is that of a planner that explores: not the iterations in which the first
    episodes end (the first to end are those that were won quickly), and not those in which only the controller explores.
    """
    return [row for row in rows if row["iteration"] > pace.first and not controllers(row)]


def reached(rows: list[dict[str, Any]], level: float = 0.9) -> int | None:
    """First iteration at which the latest episodes, `ENOUGH` of them or more, were won at this rate, exploration noise included.

    `rows` are metrics per iteration, oldest first, better only those that are `telling`.  One iteration of few environments ends
    few episodes.
    """
    recent: list[tuple[float, float]] = []
    for row in rows:
        ended = float(row["episode/finished"] or 0.0)
        if ended:
            recent.append((ended, ended * float(row["episode/return"])))
        while len(recent) > 1 and sum(n for n, _ in recent[1:]) >= ENOUGH:
            recent.pop(0)
        count = sum(n for n, _ in recent)
        if count >= ENOUGH and sum(won for _, won in recent) >= level * count:
            return int(row["iteration"])
    return None


class EvaluationLog:
    """The evaluations of a run that learns, under names, and their report."""

    def __init__(self, args: Any, stage: Stage):
        self.args, self.stage = args, stage
        self.figures: dict[str, dict[str, Any]] = {}
        self.played: dict[str, Played] = {}

    def judge(self, name: str, planner: Planner) -> dict[str, Any]:
        """Figures over `--trials` fresh starts, the same ones every time; nothing without trials."""
        if not self.args.trials:
            return {}
        return self.keep(name, self.stage.judge(planner, self.args.seed, self.args.trials))

    def keep(self, name: str, figures: dict[str, Any]) -> dict[str, Any]:
        """An evaluation that somebody else has just made on the stage."""
        self.figures[name] = figures
        if isinstance(self.stage, HumanoidStage) and self.stage.last is not None:
            self.played[name] = self.stage.last
        return figures

    def report(self, record: dict[str, Any]) -> None:
        """Writes `report.html` into `--out`, for T1 tasks that were evaluated; its path goes into the summary."""
        if self.args.out is None or len(self.figures) < 2 or not isinstance(self.stage, HumanoidStage):
            return
        path = self.args.out / "report.html"
        write(path, self.stage.env, record, self.figures, read_curve(self.args.out), self.played)
        record["metrics"]["report"] = str(path)


def scores(figures: dict[str, Any]) -> dict[str, float]:
    """Of a judgement, what an evaluation on the way logs."""
    return {name: figures[name] for name in ("return", "success_rate") if name in figures}


def on_the_way(out: Path | None) -> dict[str, dict[str, float]]:
    """The evaluations that a run logged: iteration -> name -> figure."""
    found = {}
    for row in read_curve(out):
        figures = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
        if figures:
            found[str(row["iteration"])] = figures
    return found


def outcome(
    judged: dict[str, dict[str, Any]], after: dict[str, Any], result: Result, to_90: int | None
) -> dict[str, Any]:
    """What every summary says: the evaluations `judged` of what nothing has learned (`before`, and those that were sampled in
    another way), and `after`; iterations, and the one that reached 90 %, for tasks whose return is a success."""
    before = judged["before"]
    found: dict[str, Any] = dict.fromkeys(("success_rate_before", "success_rate_after"))
    for when, figures in (*judged.items(), ("after", after)):
        found |= {f"{name}_{when}": figures[name] for name in JUDGED if name in figures}
    return {
        **found,
        "iterations": int(result.state.iteration),
        "iterations_to_90": to_90,
        "stopped_by": result.stopped_by,
        "before": before,
        "after": after,
    }


def success_of(metrics: dict[str, Any]) -> float:
    """Mean return, exploring, of the episodes that ended in this iteration (the success rate of a T1 task); NaN if none did."""
    finished = metrics["episode/finished"]
    return float(metrics["episode/return"]) if finished else float("nan")
