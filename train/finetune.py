"""`rdp finetune`: DPPO (or Gaussian PPO) on a task; the controller stays as it is."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax

from envs.chunk import Chunked
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import dppo
from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.config import ConfigError, to_dict
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner, save
from rdp_jax.runs import Run, git_revision, versions
from train import output
from train.learning_report import read_curve, write
from train.pretrain import PLANNER
from train.rollouts import Played
from train.task_args import FinetuneArgs
from train.tasks import HumanoidStage, Stage, check_fits, find_planner, set_up

TRACKED = ("hand_position_error_m", "hand_orientation_error_rad", "hand_speed_mps", "completion_time_s")
JUDGED = ("success_rate", "success_ci95", "return", "return_ci95", *TRACKED)


def start_planner(args: Any, algo: str) -> Planner:
    """The pre-trained planner to start from.  Raises `ConfigError` where it does not suit the algorithm."""
    planner = find_planner(args.planner, args.task, "pretrained")
    gaussian = planner.config.net.kind in GAUSSIAN
    if gaussian != (algo == "gaussian-ppo"):
        suits = "gaussian-ppo" if gaussian else "dppo"
        raise ConfigError("algo", algo, f"{suits} (the planner's network is {planner.config.net.kind})")
    if planner.tuned_steps:
        raise ConfigError("planner", str(args.planner), "a pre-trained planner; this one is fine-tuned already")
    return planner


def with_first_std(planner: Planner, first_std: float | None) -> Planner:
    """`planner` with another std of the first sample; itself if that is what it has."""
    config = planner.config
    if first_std is None or first_std == config.diffusion.first_std:
        return planner
    if config.net.kind in GAUSSIAN:
        raise ConfigError("first_std", first_std, f"left out (a {config.net.kind} planner has no first sample)")
    diffusion = dataclasses.replace(config.diffusion, first_std=first_std)
    return dataclasses.replace(planner, config=dataclasses.replace(config, diffusion=diffusion))


def run_finetune(args: FinetuneArgs) -> dict[str, Any]:
    """Evaluates, fine-tunes, evaluates again on the same fresh starts; writes `planner.safetensors`."""
    if args.algo == "residual":
        from train.residual import run_residual  # which imports from here

        return run_residual(args)
    start = time.monotonic()
    given = start_planner(args, args.algo)
    before = with_first_std(given, args.first_std)
    config = args.dppo
    if args.algo == "gaussian-ppo":
        config = dataclasses.replace(config, tuned_steps=1)
    stage = set_up(args, before.config.history, record=args.out is not None)
    env, params = stage.env, stage.params
    check_fits(before, env)
    recorded = settings(args)
    run = Run(args.out, recorded, resume=args.resume) if args.out else None
    log = EvaluationLog(args, stage)
    first = log.judge("before", given)
    # What the smaller noise does alone, without any learning.
    quiet = {} if before is given else log.judge("untrained", before)
    mesh = parallel.make_mesh()
    vector = AutoReset(Chunked(env, before.config.executed))  # type: ignore[arg-type]
    policy: Any = before.actor().policy
    state = dppo.init(jax.random.key(args.seed), config, policy, before.bundle, vector, params, mesh)
    state = run.restore(state) if run else state
    loop = LoopConfig(
        iterations=args.iterations, save_every_s=60.0, max_wall_s=60.0 * args.minutes if args.minutes else 0.0
    )
    curve: list[float] = []
    with output.Progress(f"finetune {args.task}", total=args.iterations, budget_s=loop.max_wall_s or None) as bar:

        def report_iteration(p):
            curve.append(success_of(p.metrics))
            steps = p.iteration * config.num_envs * config.unroll_length * before.config.executed
            bar.update(p.iteration, steps, note(p.metrics))

        update = dppo.Update(config, policy, vector, mesh)
        result = train(update, state, params, loop, run, progress=report_iteration)
    state = result.state
    after = tuned(before, state, config, described(args, before, int(state.iteration)))
    if args.out:
        save(args.out / PLANNER, after)
    second = log.judge("after", after)
    if run:
        run.close()
    steps = dppo.env_steps(config, state, before.config.executed)
    metrics = {
        **outcome(first, quiet, second, curve),
        "iterations": int(state.iteration),
        "env_steps": steps,
        "stopped_by": result.stopped_by,
    }
    record = output.summary(
        "finetune",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=config.num_envs,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=steps,
    )
    log.report(record)
    return record


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


def settings(args: Any) -> dict[str, Any]:
    """What a run and its resumption must agree on."""
    free = {"iterations": 1, "minutes": None, "trials": 0, "resume": False, "json": False}
    paths = {"out": None, "planner": None, "legs": None, "hands": None}
    return to_dict(dataclasses.replace(args, **free, **paths))


def described(args: Any, before: Planner, iterations: int) -> dict[str, Any]:
    """Metadata of a fine-tuned planner's file."""
    return {
        "task": args.task,
        "before": before.metadata,
        "seed": args.seed,
        "iterations": iterations,
        "config": settings(args),
        "versions": versions(),
        "git": git_revision(),
    }


def tuned(before: Planner, state: dppo.LearnerState, config: dppo.DPPOConfig, metadata: dict[str, Any]) -> Planner:
    """The planner that `state` holds; it keeps the frozen weights only if some steps still run on them."""
    split = config.tuned_steps < visited(before)
    return dataclasses.replace(
        before,
        bundle=before.bundle.replace(weights=state.params["actor"]),
        base=before.bundle.weights if split else None,
        tuned_steps=config.tuned_steps if split else 0,
        metadata=metadata,
    )


def visited(planner: Planner) -> int:
    """Denoising steps of one sample; 1 for a planner that predicts chunks at once."""
    return 1 if planner.config.net.kind in GAUSSIAN else planner.config.diffusion.visited


def outcome(
    before: dict[str, Any], untrained: dict[str, Any], after: dict[str, Any], curve: list[float]
) -> dict[str, Any]:
    """Figures of the evaluations before, after, and (if it differs) of the planner from which training really started."""
    # Returns of gym tasks are no rates.
    rates = curve if "success_rate" in before or not before else []
    found: dict[str, Any] = {}
    for when, figures in (("before", before), ("untrained", untrained), ("after", after)):
        found |= {f"{name}_{when}": figures[name] for name in JUDGED if name in figures}
    reached = next((i + 1 for i, rate in enumerate(rates) if rate >= 0.9), None)
    return {**found, "iterations_to_90": reached, "before": before, "after": after}


def success_of(metrics: dict[str, Any]) -> float:
    """Mean return, exploring, of the episodes that ended in this iteration (the success rate of a T1 task); NaN if none did."""
    finished = metrics["episode/finished"]
    return float(metrics["episode/return"]) if finished else float("nan")


def note(metrics: dict[str, Any]) -> str:
    """What the progress line says."""
    return (
        f"return {success_of(metrics):.2f} of {int(metrics['episode/finished'])}  kl {metrics['policy/kl']:.3f}  "
        f"clipped {metrics['policy/clip_fraction']:.2f}  explained {metrics['value/explained_variance']:.2f}"
    )
