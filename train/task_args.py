"""Arguments of the commands about tasks: demonstrations, imitation, fine-tuning, steering, evaluation, export, play."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

from rdp_jax.algos.bc import BCConfig
from rdp_jax.algos.dppo import DPPOConfig
from rdp_jax.algos.dsrl import DSRLConfig
from rdp_jax.algos.joint import Schedule, controller_ppo
from rdp_jax.algos.ppo import PPOConfig
from rdp_jax.config import ConfigError, chosen, left_out, ranged
from rdp_jax.nets.build import FIELDS, GAUSSIAN
from rdp_jax.planner import PlannerConfig
from train.args import (
    BACKENDS,
    Common,
    Resumable,
    any_task,
    as_usual,
    input_file,
    optional,
    planner_place,
    said,
    t1_task,
)
from train.names import HDF5, T1_TASKS, of_t1
from train.presets import gym_dsrl, gym_planner, residual_ppo, task_dppo, task_dsrl, task_planner


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskFlags(Common):
    """Flags of every command that plays a task."""

    task: str = any_task()
    start_range: float = ranged(1.0, 0.0, 10.0, "spread of the starts; 1 is nominal, more is out of distribution")
    physics_dt: float = ranged(0.005, 0.002, 0.01, "physics step: 0.002, 0.004, 0.005 or 0.01", "s")
    legs: Path | None = input_file("weights of the leg policy (.safetensors); left out: the shipped ones")
    hands: Path | None = input_file("weights of the hand policy (.safetensors); left out: the shipped ones")

    def check(self) -> None:
        super().check()
        for name in ("start_range", "physics_dt", "legs", "hands"):
            left_out(self, name, of_t1(self.task), f"{self.task} is not a task of the T1")

    def under_controller_of(self, place: Path | None) -> Self:
        """These arguments with the parts of the controller that lie in a run directory, unless others are named."""
        if place is None or not place.is_dir():
            return self
        own = {part: place / f"{part}.safetensors" for part in ("legs", "hands")}
        found: dict[str, Any] = {
            part: path for part, path in own.items() if getattr(self, part) is None and path.is_file()
        }
        return dataclasses.replace(self, **found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Common):
    """Flags that say how plans are sampled, exploring or not; left out: the planner's own (`DiffusionConfig`)."""

    first_std: float | None = optional(0.0, 10.0, "std of the first sample; in fine-tuning from its start on")
    step_noise: float | None = optional(
        0.0, 1.0, "share of the exploration noise of each denoising step that is kept in use (0: none)"
    )
    explore_std: float | None = optional(1e-4, 1.0, "least std of a sampled step, in normalised action units")
    explore_correlation: float | None = optional(
        0.0,
        0.999,
        "of the noise of two actions that follow each other in a chunk, where it is explore-std's",
    )
    explore_eta: float | None = optional(
        0.0,
        1.0,
        "noise of the sampler itself: 1 as much as DDPM, 0 none but explore-std (DDIM only)",
    )

    @property
    def chooses_noise(self) -> bool:
        """Whether any flag of the noise in use was given."""
        return not (self.first_std is self.step_noise is None)

    @property
    def explores(self) -> bool:
        """Whether any flag of exploration was given."""
        return not (self.explore_std is self.explore_correlation is self.explore_eta is None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayerFlags(TaskFlags):
    """Flags of commands that take a planner as it is."""

    run: Path | None = planner_place(
        "run directory (its controller, steering or correction included) or planner file; left out: what is shipped",
        "planner",
        "checkpoint",
    )
    which: str = chosen("finetuned", ("pretrained", "finetuned", "expert"), "of what is shipped")

    def check(self) -> None:
        super().check()
        if self.run is not None and self.which != "finetuned":
            raise ConfigError("which", self.which, "left out with --run, whose planner is played")

    def resolved(self) -> Self:
        """With the controller that lies in the run directory."""
        return self.under_controller_of(self.run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemonstrationFlags(TaskFlags):
    """Flags of commands that fill a directory with demonstrations."""

    resume: bool = said(False, "go on from what --out holds already")

    def check(self) -> None:
        super().check()
        if self.out is None:
            raise ConfigError("out", None, "a directory for the demonstrations")
        if self.resume and not self.out.is_dir():
            raise ConfigError("resume", self.resume, "only with --out naming an existing directory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectArgs(DemonstrationFlags):
    """Collect demonstrations into `--out`/episodes.safetensors.

    T1 tasks: successes of the heuristic expert.  Gym tasks: a policy that our own PPO learns first, up to the return of D4RL's
    medium data, recorded with its noise.
    """

    episodes: int = ranged(50, 1, 10**7, "successful episodes to keep")
    clumsiness: float = ranged(
        1.0,
        0.0,
        3.0,
        "size of the errors that are executed and not recorded (T1), against what the expert can bear; 0: none",
    )

    def check(self) -> None:
        super().check()
        left_out(self, "clumsiness", of_t1(self.task), f"{self.task} is not a task of the T1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopArgs(DemonstrationFlags):
    """Demonstrate a T1 task yourself: drive the robot by keyboard or gamepad in a browser; into `--out`/episodes.safetensors.

    The address of the page is printed; it can be reached from this machine only.  Ends when `--episodes` are kept, by the page's
    button, or by Ctrl-C; each episode is on disk as soon as it is kept.
    """

    task: str = t1_task()
    episodes: int = ranged(10, 1, 10**7, "episodes to keep; with --resume in all")
    port: int = ranged(0, 0, 65535, "port of the page on 127.0.0.1; 0 for any free one")
    keep_all: bool = said(
        False, "let failed and unfinished episodes be kept too (`rdp pretrain` imitates all that are kept)"
    )
    backend: str = chosen("native", BACKENDS, "physics: one robot is fastest in native, whatever the machine")
    num_envs: int | None = optional(1, 1, "one person drives one robot")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalArgs(Sampling, PlayerFlags):
    """Success of a planner, of the expert, or of the weights shipped for a task, over fresh starts.

    With any flag of exploration a planner samples as it does in fine-tuning.
    """

    trials: int = ranged(256, 1, 10**7, "episodes")

    def check(self) -> None:
        super().check()
        if self.which == "expert" and (self.explores or self.chooses_noise):
            raise ConfigError("which", self.which, "pretrained | finetuned, with flags of sampling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArgs(PlayerFlags):
    """Write the networks of a run, or of what is shipped, as ONNX files with a manifest of their inputs and outputs.

    `--start-range` and `--physics-dt` are about the trials; without `--out` a new directory under `runs` is made.
    """

    which: str = chosen("finetuned", ("pretrained", "finetuned"), "of what is shipped")
    batch: int = ranged(1, 1, 4096, "rows of every input")
    trials: int = ranged(0, 0, 10**6, "episodes played by the exported planner and by the original, on the same starts")


def preset_flag(gym: str) -> Any:
    """Defaults for the machine, or those of gym tasks: `gym` says whose."""
    return chosen("cpu", ("cpu", "gpu", "gym"), f"defaults of all other flags; gym: {gym}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainArgs(Resumable, TaskFlags):
    """Imitate demonstrations."""

    preset: str = preset_flag("as DPPO pre-trained for gym tasks")
    data: Path | None = said(
        None, "demonstrations: what `rdp collect` wrote, a robomimic-style .hdf5, or a LeRobot directory"
    )
    net: str = chosen("dit", ("dit", "mlp", "unet", "lstm", "gaussian-mlp"), "kind of planner")
    demonstrations: int | None = optional(1, 10**7, "use that many episodes; left out: all")
    observations: tuple[str, ...] = said(
        (), "of an .hdf5 file: what is joined to one observation, in this order; left out: as the task's own are"
    )
    minutes: float | None = optional(0.01, 1e5, "stop after this much wall clock", "min")
    epochs: int = ranged(200, 0, 10**7, "passes over the data; 0: random weights, with the data's bounds")
    pad_end: str = chosen("repeat", ("repeat", "none"), "windows at an episode's end: repeat its last action, or none")
    validation: float = ranged(0.04, 0.0, 0.9, "share of episodes kept for validation")
    trials: int = ranged(64, 0, 10**7, "episodes of the closing evaluation; 0 for none")
    # Its net.kind is --net.
    planner: PlannerConfig = dataclasses.field(default_factory=task_planner, metadata={"hidden": ("net.kind",)})
    bc: BCConfig = dataclasses.field(default_factory=BCConfig, metadata={"hidden": ("total_steps",)})

    @classmethod
    def defaults(cls, preset: str) -> PretrainArgs:
        """What `--preset` stands for: `gym` differs, the others do not."""
        if preset != "gym":
            return cls(preset=preset)
        bc = BCConfig(batch=1024, lr=1e-3, lr_min=1e-4, epochs_per_call=1)
        return cls(
            preset=preset, task="hopper", net="mlp", epochs=200, pad_end="none", planner=gym_planner(), bc=bc, trials=80
        )

    def resolved(self) -> PretrainArgs:
        """`--net` is the planner's kind of network."""
        net = dataclasses.replace(self.planner.net, kind=self.net)
        return dataclasses.replace(self, planner=dataclasses.replace(self.planner, net=net))

    def check(self) -> None:
        super().check()
        if self.data is None or not self.data.exists():
            raise ConfigError("data", None if self.data is None else str(self.data), "an existing file or directory")
        if self.observations and self.data.suffix not in HDF5:
            raise ConfigError("observations", self.observations, "left out (the data are no .hdf5 file)")
        unused = "diffusion" if self.net in GAUSSIAN else "gaussian"
        as_usual(self, "planner", False, f"it is not about --net {self.net}", only=(unused,))
        usual = type(self).defaults(self.preset).planner.net
        for name in sorted({f.name for f in dataclasses.fields(usual)} - {"kind", "dtype", *FIELDS[self.net]}):
            if getattr(self.planner.net, name) != getattr(usual, name):
                raise ConfigError(
                    f"planner.net.{name}", getattr(self.planner.net, name), f"left out (no --net {self.net} has it)"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched(Resumable):
    """Flags of commands that judge on the way what they have learned."""

    trials: int = ranged(256, 0, 10**7, "episodes of every evaluation; 0 for none")
    eval_every: int = ranged(0, 0, 10**7, "iterations between evaluations on the way; 0 for none")
    keep: str = chosen("last", ("last", "best"), "what comes out: the last iteration, or the best of --eval-every's")
    practice_dt: float | None = optional(
        0.002,
        0.01,
        "physics step while learning (T1 tasks; left out: as judged, --physics-dt)",
        "s",
    )

    def check(self) -> None:
        super().check()
        task: str = getattr(self, "task", "")
        if self.practice_dt is not None and not of_t1(task):
            raise ConfigError("practice_dt", self.practice_dt, f"left out ({task} is not a task of the T1)")
        if self.keep == "best" and not (self.eval_every and self.trials):
            raise ConfigError("keep", self.keep, "last, or with --eval-every and --trials above 0")
        if self.eval_every and not self.trials:
            raise ConfigError("eval_every", self.eval_every, "0, or with --trials above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSampling(Sampling, Watched):
    """`Sampling` where a planner learns: it may explore with more noise than it needs once it has learned, and
    practise on harder episodes than it is judged on."""

    final_std: tuple[float, ...] = said(
        (),
        "std of the first sample of the planner that comes out (0 .. 10; left out: the one with which it learned); of several, "
        "the best on starts that choose it",
    )
    final_noise: tuple[float, ...] = said(
        (),
        "share of the exploration noise that the planner that comes out keeps in its denoising steps (0 .. 1; left out: as "
        "--step-noise); of several, the best on the same starts, with the std that is best with the first of them",
    )
    practice_range: float | None = optional(
        0.0, 10.0, "spread of the starts while learning (T1 tasks; left out: as judged, --start-range)"
    )
    practice_radius: float | None = optional(
        0.01,
        1.0,
        "how near to its goal a box must come to rest while learning (transport; left out: as judged, 0.1)",
        "m",
    )

    def check(self) -> None:
        super().check()
        task: str = getattr(self, "task", "")
        if self.practice_range is not None and not of_t1(task):
            raise ConfigError("practice_range", self.practice_range, f"left out ({task} has no such starts)")
        if self.practice_radius is not None and task != "transport":
            raise ConfigError("practice_radius", self.practice_radius, f"left out ({task} has no such radius)")
        for name, most in (("final_std", 10.0), ("final_noise", 1.0)):
            given = getattr(self, name)
            if not all(0.0 <= value <= most for value in given):
                raise ConfigError(name, given, f"numbers, 0 .. {most:g}")
            if len(given) > 1 and not self.trials:
                raise ConfigError(name, given, "one number, or --trials above 0")


def starting_planner() -> Any:
    """Where a planner lies that is to be fine-tuned."""
    return planner_place(
        "planner file, or run directory (its controller included), to start from; left out: the shipped pre-trained one",
        "run",
        "checkpoint",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneArgs(LearnedSampling, TaskFlags):
    """Fine-tune a planner by reinforcement learning; the controller stays as it is."""

    preset: str = preset_flag("as DPPO published for gym tasks")
    algo: str = chosen(
        "dppo",
        ("dppo", "residual", "gaussian-ppo"),
        "dppo for diffusion planners, gaussian-ppo for the others; residual leaves the planner and learns a correction",
    )
    planner: Path | None = starting_planner()
    iterations: int = ranged(40, 1, 10**7, "iterations")
    minutes: float | None = optional(0.01, 1e5, "stop after this much wall clock", "min")
    dppo: DPPOConfig = dataclasses.field(default_factory=lambda: task_dppo("cpu"), metadata={"hidden": ("num_envs",)})
    residual_scale: float = ranged(0.1, 1e-4, 2.0, "largest correction of --algo residual, in normalised action units")
    residual: PPOConfig = dataclasses.field(default_factory=residual_ppo, metadata={"hidden": ("num_envs",)})

    @classmethod
    def defaults(cls, preset: str) -> FinetuneArgs:
        """What `--preset` stands for."""
        if preset == "gym":
            dppo = DPPOConfig()
            return cls(preset=preset, task="hopper", num_envs=dppo.num_envs, dppo=dppo, trials=80, iterations=100)
        dppo = task_dppo(preset)
        return cls(preset=preset, num_envs=dppo.num_envs, dppo=dppo)

    def check(self) -> None:
        super().check()
        corrects = self.algo == "residual"
        left_out(self, "residual_scale", corrects, "it is about --algo residual")
        as_usual(self, "residual", corrects, "it is about --algo residual")
        as_usual(self, "dppo", not corrects, "it is not about --algo residual")
        denoises = self.algo != "gaussian-ppo"
        why = "it is not about --algo gaussian-ppo"
        as_usual(self, "dppo", denoises, why, only=("tuned_steps", "quiet_steps"))
        if self.algo == "residual" and self.explores:
            raise ConfigError("algo", self.algo, "dppo | gaussian-ppo, with flags of exploration")
        for name in ("final_std", "final_noise"):
            if self.algo == "residual" and len(getattr(self, name)) > 1:
                raise ConfigError(name, getattr(self, name), "one number (of --algo residual)")
        if self.algo == "residual" and self.eval_every:
            raise ConfigError("eval_every", self.eval_every, "0 (a correction is not judged on the way)")

    def resolved(self) -> FinetuneArgs:
        """These arguments with `num_envs` in the config of the learner that they name, and the controller beside the planner."""
        usual = type(self).defaults(self.preset)
        name, idle = ("residual", "dppo") if self.algo == "residual" else ("dppo", "residual")
        found = dataclasses.replace(
            self.under_controller_of(self.planner), num_envs=self.num_envs or self.dppo.num_envs
        )
        # Of the learner that idles the number is no flag, and its preset's is one that fits its other settings.
        numbers = {name: found.num_envs, idle: getattr(usual, idle).num_envs}
        learners: dict[str, Any] = {
            which: dataclasses.replace(getattr(self, which), num_envs=envs) for which, envs in numbers.items()
        }
        return dataclasses.replace(found, **learners)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineArgs(LearnedSampling, TaskFlags):
    """Fine-tune planner and controller together (REFINE-DP)."""

    task: str = t1_task()
    preset: str = chosen("cpu", ("cpu", "gpu"), "defaults of all other flags")
    planner: Path | None = starting_planner()
    iterations: int | None = optional(1, 10**7, "iterations of either kind; left out: those of the schedule")
    minutes: float | None = optional(0.01, 1e5, "stop after this much wall clock", "min")
    curriculum: bool = said(False, "widen the starts by a tenth whenever enough of the latest hundred episodes succeed")
    curriculum_pass: float = ranged(0.9, 0.01, 1.0, "share of the episodes, exploring, that is enough for --curriculum")
    recorded: int = ranged(64, 4, 2**20, "environments whose ticks the controller learns from")
    # Legs that learn here improve nothing that can be seen, and the hands on them get worse (docs/refine_log.md).
    controller_parts: str = chosen(
        "hands",
        ("both", "legs", "hands"),
        "parts of the controller that explore and learn; the others stay as they are",
    )
    controller_std: float = ranged(
        1.0, 0.01, 10.0, "share of the exploration std of its first training with which the controller explores"
    )
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    dppo: DPPOConfig = dataclasses.field(default_factory=lambda: task_dppo("cpu"), metadata={"hidden": ("num_envs",)})
    controller: PPOConfig = dataclasses.field(
        default_factory=controller_ppo, metadata={"hidden": ("num_envs", "unroll_length", "init_std", "actor_sizes")}
    )

    @classmethod
    def defaults(cls, preset: str) -> RefineArgs:
        """What `--preset` stands for."""
        dppo = task_dppo(preset)
        return cls(preset=preset, num_envs=dppo.num_envs, dppo=dppo, recorded=512 if preset == "gpu" else 64)

    def resolved(self) -> RefineArgs:
        """These arguments with `dppo.num_envs` equal to `num_envs`, iterations of the schedule if none were given, and the
        controller beside the planner."""
        found = self.under_controller_of(self.planner)
        # What no flag sets and nobody reads must not stand against what flags say.
        ours = self.controller
        between = min(max(ours.init_std, ours.min_std), ours.max_std)
        ours = dataclasses.replace(ours, num_envs=ours.shuffle_groups, unroll_length=ours.minibatches, init_std=between)
        found = dataclasses.replace(found, iterations=self.iterations or self.schedule.iterations, controller=ours)
        if found.num_envs is None:
            return dataclasses.replace(found, num_envs=found.dppo.num_envs)
        return dataclasses.replace(found, dppo=dataclasses.replace(found.dppo, num_envs=found.num_envs))

    def check(self) -> None:
        super().check()
        envs, groups = self.num_envs or self.dppo.num_envs, self.dppo.shuffle_groups
        if self.schedule.moves_controller and (self.recorded > envs or self.recorded % groups):
            raise ConfigError("recorded", self.recorded, f"a multiple of shuffle_groups={groups} up to num_envs={envs}")
        left_out(self, "curriculum_pass", self.curriculum, "it is about --curriculum")
        still = "the controller learns nothing by this schedule"
        for name in ("controller", "controller_std", "controller_parts", "recorded"):
            as_usual(self, name, self.schedule.moves_controller, still)
        as_usual(self, "schedule", self.schedule.moves_controller, still, only=("rehearsals",))
        if self.curriculum and not self.schedule.moves_planner:
            raise ConfigError(
                "curriculum", True, "False where the planner learns nothing (schedule.planner_iterations=0)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DSRLArgs(Watched, TaskFlags):
    """Steer a frozen diffusion planner by reinforcement learning over its initial noise (DSRL)."""

    preset: str = preset_flag(
        "as DSRL was released for gym tasks, with more environments side by side and more updates"
    )
    variant: str = chosen("na", ("na", "sac"), "noise-aliased, or soft actor-critic on the noise itself")
    planner: Path | None = planner_place(
        "diffusion planner (file, or run directory, its controller included) to steer; left out: the shipped pre-trained one",
        "run",
        "checkpoint",
    )
    ddim_steps: int | None = optional(1, 1000, "DDIM steps from noise to chunk; left out: the planner's own number")
    iterations: int = ranged(300, 1, 10**7, "iterations, warm-up included")
    minutes: float | None = optional(0.01, 1e5, "stop after this much wall clock", "min")
    controls: bool = said(
        False, "also judge no noise, halved noise, tanh noise, an untrained actor and a golden ticket"
    )
    tickets: int = ranged(
        32, 2, 10**5, "candidates of the golden ticket: eight episodes each, as many again for the best eighth"
    )
    dsrl: DSRLConfig = dataclasses.field(
        default_factory=lambda: task_dsrl("cpu"), metadata={"hidden": ("num_envs", "variant")}
    )

    @classmethod
    def defaults(cls, preset: str) -> DSRLArgs:
        """What `--preset` stands for."""
        if preset == "gym":
            dsrl = gym_dsrl()
            return cls(preset=preset, task="hopper", num_envs=dsrl.num_envs, dsrl=dsrl, trials=80, iterations=600)
        dsrl = task_dsrl(preset)
        return cls(preset=preset, num_envs=dsrl.num_envs, dsrl=dsrl)

    def check(self) -> None:
        super().check()
        left_out(self, "tickets", self.controls, "it is about --controls")
        distils = self.variant == "na"
        as_usual(self, "dsrl", distils, "it is about --variant na", only=("distillations", "distill_from"))
        if self.controls and not self.trials:
            raise ConfigError("controls", self.controls, "False, or with --trials above 0")

    def resolved(self) -> DSRLArgs:
        """These arguments with the fields of `dsrl` that have flags of their own, and the controller beside the planner."""
        dsrl = dataclasses.replace(self.dsrl, variant=self.variant, num_envs=self.num_envs or self.dsrl.num_envs)
        return dataclasses.replace(self.under_controller_of(self.planner), num_envs=dsrl.num_envs, dsrl=dsrl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoArgs(Common):
    """The main job on a small scale: judge the shipped imitation of a task, refine planner and controller, judge again.

    Without `--out` a new directory under `runs` is made.  Interrupted, it judges and reports what there is.
    """

    task: str = chosen("pickup", T1_TASKS, "task")
    minutes: float = ranged(7.5, 0.1, 1e5, "length of the training, compilation included", "min")
    trials: int = ranged(256, 1, 10**7, "episodes of each evaluation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayArgs(PlayerFlags):
    """Episodes of a planner or of the expert, as a 3-D page, a video, and one of them as a picture.

    Without `--out` a new directory under `runs` is made.
    """

    task: str = t1_task()
    trials: int = ranged(32, 1, 256, "episodes played")
    episodes: int = ranged(4, 1, 64, "episodes shown")
    show: str = chosen("mixed", ("mixed", "won", "lost"), "which of them")

    def check(self) -> None:
        super().check()
        if self.num_envs is not None and self.num_envs < self.trials:
            raise ConfigError("num_envs", self.num_envs, f"left out, or trials={self.trials} or more: all play at once")
