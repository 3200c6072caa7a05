"""The papers' tables as lists of commands; `train.reproduce` runs them.  Loads nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from train.names import GYM_TASKS

SHARED = ("demos", "medium")  # steps that do not depend on the seed
FRESH_STARTS = 1_000_000  # added to the seed: starts that nothing has seen
DATA_SIZES = (25, 50, 100, 200, 500, 1000)
RERUNS = {
    "hopper": {0: 1439, 20: 2253, 50: 2775, 100: 2652},
    "walker2d": {0: 2850, 20: 3496, 50: 3602, 100: 3563},
    "halfcheetah": {0: 4347, 20: 4529, 50: 4588, 100: 4642},
}
"""Evaluation returns of a third party's reruns of DPPO at these iterations."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a table depends on: the task, one seed, trials per evaluation, minutes per learning stage, spread of the wide
    starts, the preset, and the iterations of gym's fine-tuning."""

    task: str
    seed: int
    trials: int
    minutes: float
    wide: float
    preset: str
    iterations: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
      name: of its directory, below the seed's (below `shared`, if it is `SHARED`).
      words: the command; `{NAME}` stands for the directory of the step of that name.
      row: its row of the table; empty for a step that only prepares.
      metric: what of its summary's metrics is shown; dots lead into dictionaries; of several with `|` between them it is
        the first that is there.
      against: another such path: the row shows the relative change from there.
      paper: the paper's figure beside it.
    """

    name: str
    words: tuple[str, ...]
    row: str = ""
    metric: str = "success_rate"
    paper: str = ""
    against: str = ""


PASSES = {"pickup": 140, "transport": 100, "door": 60, "stairs": 120}
"""Passes over 50 demonstrations that leave something to learn: 50-73 % of success, as the paper's (docs/planner.md).  The shipped
imitations have as many."""
PASSES_ELSEWHERE = 100  # on a task that is not ours


def _common(s: Settings, *words: str) -> tuple[str, ...]:
    """With the seed."""
    return (*words, "--seed", str(s.seed))


def epochs(demonstrations: int) -> int:
    """Passes over so many demonstrations: 300 up to 50 of them, then fewer, so that gradient steps grow with the square root of
    the data.  1000 demonstrations get 4.5 times the steps of 50, and not 20 times.
    """
    return round(300 * min(1.0, (50 / demonstrations) ** 0.5))


def _pretrain(
    s: Settings, name: str, data: str, count: int, *more: str, row: str = "", paper: str = "", passes: int | None = None
) -> Step:
    words = _common(s, "pretrain", "--task", s.task, "--data", data, "--demonstrations", str(count))
    words = (*words, "--epochs", str(epochs(count) if passes is None else passes), "--trials", str(s.trials), *more)
    return Step(name, words, row, paper=paper)


def _learn(s: Settings, command: str, name: str, *more: str, row: str = "", paper: str = "") -> Step:
    words = _common(s, "--task", s.task, "--trials", str(s.trials), "--minutes", f"{s.minutes:g}")
    preset = "gym" if s.task in GYM_TASKS else s.preset
    return Step(name, (command, "--preset", preset, *words, *more), row, f"{_judged(s)}_after", paper)


def _judged(s: Settings) -> str:
    """Figure by which planners of the task are judged."""
    return "return" if s.task in GYM_TASKS else "success_rate"


def _eval(s: Settings, name: str, *more: str, row: str, paper: str = "") -> Step:
    return Step(name, (*_common(s, "eval", "--task", s.task, "--trials", str(s.trials)), *more), row, paper=paper)


def _collect(s: Settings, episodes: int, *more: str) -> Step:
    # Demonstrations are one data set: the same whatever the seed of what learns from it.
    return Step("demos", ("collect", "--task", s.task, "--episodes", str(episodes), "--seed", "1", *more))


QUIET = ("--first-std", "0.5")
CHOICE = ("--final-std", "0.5", "0.25", "0")
"""Of what was learned: some tasks are won best without noise, others need it to get unstuck (docs/refine.md)."""
KEPT = {"transport": ("--final-noise", "0", "1")}
"""Where what was learned may have come to need the noise with which it learned."""
SLOW = ("stairs", "transport")
STRICTER = {"transport": ("--practice-radius", "0.08")}
"""A goal to practise at that is stricter than the judged one."""
PACE = {
    "stairs": ("--dppo.gamma", "0.99", "--dppo.kl-goal", "0.04", "--dppo.actor-lr", "9e-6"),
    "transport": (
        *("--dppo.gamma", "0.99", "--dppo.kl-goal", "0.04", "--dppo.actor-lr", "4e-6", "--dppo.critic-warmup", "3"),
        *(*STRICTER["transport"], "--practice-dt", "0.01"),
    ),
}
"""Where little of the gradient is signal: less of a step, and more of them."""


def turns(controller: int, planner: int) -> tuple[str, ...]:
    """So many iterations of either in each round."""
    return ("--schedule.controller-iterations", str(controller), "--schedule.planner-iterations", str(planner))


TURNS = {"pickup": turns(5, 5), **dict.fromkeys(SLOW, turns(2, 15))}
"""Joint learning's rounds, where others than the default have been better (docs/refine_log.md)."""
ALONE = turns(5, 0)  # the controller
# A denoiser's layers must be wider than the chunk (276 numbers), whose noise has to pass through them; in 300 epochs 768 are not
# enough either (docs/planner.md).
WIDE_MLP = ("--net", "mlp", "--planner.net.sizes", "768", "768", "768")
START = ("--planner", "{dit}/planner.safetensors")


def _way(s: Settings) -> tuple[str, ...]:
    """How a planner learns on the task, and what of it is chosen afterwards."""
    return (*QUIET, *CHOICE, *KEPT.get(s.task, ()), *PACE.get(s.task, ()))


def _dppo(s: Settings, name: str, *more: str, row: str = "") -> Step:
    """The planner alone."""
    return _learn(s, "finetune", name, *more, *_way(s), row=row)


def _refine(s: Settings, name: str, *more: str, row: str = "", paper: str = "") -> Step:
    """Planner and controller."""
    rounds = () if ALONE[0] in more else TURNS.get(s.task, ())
    return _learn(s, "refine", name, *_way(s), *rounds, *more, row=row, paper=paper)


def imitation(s: Settings) -> list[Step]:
    """Planners of three kinds that imitate the same 50 demonstrations, beside the expert who gave them."""
    return [
        _eval(s, "expert", "--which", "expert", row="heuristic expert"),
        _collect(s, 50),
        _pretrain(s, "dit", "{demos}", 50, row="DiT, imitation", paper="0.50-0.73"),
        _pretrain(s, "mlp", "{demos}", 50, *WIDE_MLP, row="MLP diffusion, imitation"),
        _pretrain(s, "lstm", "{demos}", 50, "--net", "lstm", row="LSTM, imitation"),
    ]


def success(s: Settings) -> list[Step]:
    """REFINE-DP's main table: every method on one task.

    What fine-tunes or steers a DiT starts from one of few passes, as the paper's do from one of 50-73 %; imitators are judged at
    their best.
    """
    start = ("--planner", "{start}/planner.safetensors")
    passes = PASSES.get(s.task, PASSES_ELSEWHERE)
    few = f"DiT of {passes} passes: from which the rest starts"
    # As in OU exploration: the noise of an action is most of the last one's.
    ou = ("--algo", "gaussian-ppo", "--explore-correlation", "0.9", "--planner")
    imitator = (*ou, "{gaussian}/planner.safetensors")
    # What knows nothing has to try more than what imitates.
    scratch = (*ou, "{blank}/planner.safetensors", "--explore-std", "0.3")
    gaussian = ("--net", "gaussian-mlp")
    residual = ("--algo", "residual", "--planner")
    dppo = _dppo(s, "dppo", *start, row="DiT, DPPO (planner only)")
    return [
        *imitation(s),
        _pretrain(s, "gaussian", "{demos}", 50, *gaussian, row="Gaussian MLP, imitation"),
        _learn(s, "finetune", "gaussian-ppo", *imitator, row="Gaussian MLP, PPO with OU exploration"),
        _pretrain(s, "blank", "{demos}", 50, *gaussian, passes=0),
        _learn(s, "finetune", "scratch", *scratch, row="Gaussian MLP, PPO from scratch", paper="0"),
        _pretrain(s, "start", "{demos}", 50, row=few, passes=passes, paper="0.50-0.73"),
        _learn(s, "finetune", "residual", *residual, start[1], *QUIET, row="DiT, residual"),
        dppo,
        dataclasses.replace(dppo, row="DiT, quieter first sample, nothing learned", metric="success_rate_untrained"),
        _eval(
            s, "no-noise", "--run", start[1], "--first-std", "0", row="DiT, first sample without noise, nothing learned"
        ),
        _refine(s, "controller", *start, *ALONE, row="DiT, controller only"),
        _refine(s, "refine", *start, row="DiT, joint (REFINE-DP)", paper="> 0.90"),
        # Not in the paper.  What is left to gain is exactness, and a correction has that soonest (docs/refine_log.md).
        _learn(
            s,
            "finetune",
            "corrected",
            *residual,
            "{refine}",
            *STRICTER.get(s.task, ()),
            row="DiT, joint, then residual",
        ),
        _learn(s, "dsrl", "na", *start, row="DiT, noise steered (DSRL-NA)"),
        _learn(s, "dsrl", "sac", "--variant", "sac", *start, row="DiT, noise steered (DSRL-SAC)"),
    ]


def data(s: Settings) -> list[Step]:
    """Demonstrations against fine-tuning."""
    sizes = [
        _pretrain(s, "dit" if n == 50 else f"dit-{n}", "{demos}", n, row=f"imitation, {n} demonstrations")
        for n in DATA_SIZES
    ]
    papers = {25: "", 1000: "about 0.90"}
    sizes = [dataclasses.replace(step, paper=papers.get(n, "")) for step, n in zip(sizes, DATA_SIZES, strict=True)]
    tuned = _refine(s, "refine", *START, row="50 demonstrations + joint fine-tuning", paper="0.95-0.97")
    return [_collect(s, max(DATA_SIZES)), *sizes, tuned]


def joint(s: Settings) -> list[Step]:
    """Planner only against joint, from the shipped planner: success, iterations, tracking."""
    runs = [
        _dppo(s, "planner-only", row="planner only"),
        _refine(s, "alternate", row="joint, alternating"),
        _refine(s, "simultaneous", "--schedule.variant", "simultaneous", row="joint, one rollout"),
        _refine(s, "controller-only", *ALONE, row="controller only"),
    ]
    tracked = {
        "hand_position_error_m": "up to -50 %",
        "hand_orientation_error_rad": "",
        "hand_speed_mps": "-15 %",
        "completion_time_s": "up to -26 %",
    }
    rows = [*runs, dataclasses.replace(runs[0], row="imitation", metric="success_rate_before")]
    for run in runs:
        rows.append(_row(run, "imitation sampled as it", "success_rate_untrained_final|success_rate_untrained"))
        rows.append(_row(run, "iterations to 90 %, exploring", "iterations_to_90", paper="20 against 40"))
        for name, paper in tracked.items():
            after = f"{name}_after"
            rows.append(_row(run, name, after))
            rows.append(_row(run, f"{name} against the imitation", after, paper=paper, against=f"{name}_before"))
            alike = f"{name}_untrained_final|{name}_untrained"
            rows.append(_row(run, f"{name} against the imitation sampled as it", after, against=alike))
    return rows


def _row(run: Step, name: str, metric: str, paper: str = "", against: str = "") -> Step:
    """Another row of a run."""
    return dataclasses.replace(run, row=f"{run.row}: {name}", metric=metric, paper=paper, against=against)


def ood(s: Settings) -> list[Step]:
    """The widest starts: imitation, fine-tuning on nominal starts, under the curriculum, and on the widest ones at once."""
    wide = ("--start-range", f"{s.wide:g}")
    # Nine tenths, as in the paper, are more than most planners have while they explore.
    gate = ("--curriculum", "--curriculum-pass", "0.8")
    return [
        _eval(s, "before", "--which", "pretrained", *wide, row="imitation", paper="0-0.07"),
        _refine(s, "refine"),
        _eval(s, "after", "--run", "{refine}", *wide, row="fine-tuned", paper="0.30"),
        _refine(s, "curriculum", *gate),
        _eval(s, "after-curriculum", "--run", "{curriculum}", *wide, row="fine-tuned, curriculum", paper="> 0.80"),
        _refine(s, "wide", *wide),
        _eval(s, "after-wide", "--run", "{wide}", *wide, row="fine-tuned on the widest starts"),
    ]


CONTROLS = {
    "zero": "no noise",
    "half": "half the noise",
    "tanh": "tanh noise",
    "untrained_actor": "the actor before it learned",
    "golden_ticket": "golden ticket",
}


def dsrl(s: Settings) -> list[Step]:
    """Steering against fine-tuning from one planner (the shipped imitation; of a gym task the medium one), with controls."""
    on_gym = s.task in GYM_TASKS
    start = ("--planner", "{medium}/planner.safetensors") if on_gym else ()
    na = _learn(s, "dsrl", "na", "--controls", *start, row="DSRL-NA")
    learned = [
        na,
        _learn(s, "dsrl", "sac", "--variant", "sac", *start, row="DSRL-SAC"),
        _learn(s, "finetune", "dppo", *start, row="DPPO"),
    ]
    if not on_gym:
        learned.append(_dppo(s, "dppo-quiet", row="DPPO, quieter first sample"))
    controls = {name: row for name, row in CONTROLS.items() if name != "golden_ticket" or not on_gym}
    return [
        *(_medium(s) if on_gym else ()),
        dataclasses.replace(na, row="imitation", metric=f"{_judged(s)}_before"),
        *learned,
        *(dataclasses.replace(na, row=row, metric=f"controls.{name}.{_judged(s)}") for name, row in controls.items()),
        *(dataclasses.replace(run, row=f"{run.row}: environment steps", metric="env_steps") for run in learned),
    ]


def _medium(s: Settings) -> list[Step]:
    """The medium planner of a gym task, from which every seed starts."""
    pretrain = ("pretrain", "--preset", "gym", "--task", s.task, "--data", "{demos}", "--seed", "0", "--trials", "0")
    return [
        Step("demos", ("collect", "--task", s.task, "--episodes", "400", "--seed", "1")),
        Step("medium", pretrain),
    ]


def gym(s: Settings) -> list[Step]:
    """DPPO's gym table: evaluation returns at some iterations beside a third party's reruns.

    As there, every seed fine-tunes the same planner.
    """
    words = _common(s, "finetune", "--preset", "gym", "--task", s.task, "--iterations", str(s.iterations))
    words = (*words, "--trials", str(s.trials), "--eval-every", "10", "--planner", "{medium}/planner.safetensors")
    reruns = {i: str(level) for i, level in RERUNS[s.task].items() if i <= s.iterations}
    metrics = {i: f"evaluations.{i}.return" if i else "return_before" for i in reruns}
    return [
        *_medium(s),
        *(Step("dppo", words, f"iteration {i}", metrics[i], reruns[i]) for i in reruns),
    ]


def scratch(s: Settings) -> list[Step]:
    """Everything from nothing: controller, demonstrations, imitation, joint fine-tuning, evaluation on starts never seen."""
    legs = ("--legs", "{legs}/legs.safetensors", "--hands", "{hands}/hands.safetensors")
    scene = "platforms" if s.task == "stairs" else "flat"
    train = ("controller", "train", "--preset", s.preset, "--scene", scene)
    return [
        Step("legs", (*_common(s, *train, "--part", "legs"), "--minutes", f"{s.minutes:g}")),
        Step(
            "hands",
            (
                *_common(s, *train, "--part", "hands"),
                "--minutes",
                f"{max(s.minutes / 5, 0.01):g}",
                "--partner",
                "{legs}/legs.safetensors",
            ),
        ),
        # Of this seed's controller, hence not the shared ones.
        dataclasses.replace(_collect(s, 50, *legs), name="own-demos"),
        _pretrain(s, "dit", "{own-demos}", 50, *legs, row="imitation"),
        _refine(s, "refine", *START, *legs, row="joint fine-tuning"),
        Step(
            "eval",
            (
                *("eval", "--task", s.task, "--seed", str(s.seed + FRESH_STARTS), "--trials", str(s.trials)),
                *("--run", "{refine}"),
            ),
            "fresh starts",
            paper="> 0.90 after about 46 GPU-hours",
        ),
    ]


SHIPPED = ("joint", "ood", "dsrl")  # tables that start from a shipped planner
ON_GYM = ("gym", "dsrl")  # tables that gym tasks have
RECIPES: dict[str, Callable[[Settings], list[Step]]] = {
    "imitation": imitation,
    "success": success,
    "data": data,
    "joint": joint,
    "ood": ood,
    "gym": gym,
    "dsrl": dsrl,
    "scratch": scratch,
}
