"""`rdp controller demo`: the shipped controller on a scripted course, a short live training, one HTML report.

Stages run one after the other and fill in `Findings`; Ctrl-C ends the stage under way, and the report tells what there is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from envs.control.controller import CONTROL_DT
from envs.control.env import (
    ControlConfig,
    ControlEnv,
    ControlParams,
    nominal_params,
    randomized_params,
    training_params,
)
from envs.wrappers import AutoReset
from rdp_jax import parallel
from rdp_jax.algos import ppo
from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.config import validate
from rdp_jax.machine import machine
from rdp_jax.nets.mlp import mlp_sizes
from rdp_jax.parallel import over_devices
from rdp_jax.runs import StopSignal, free_directory, write_json
from train import controller_report as pieces
from train import output
from train.args import ControllerDemoArgs
from train.controller_metrics import progress_metrics
from train.controller_weights import Weights, act, acting, load_part
from train.course import BLOCK, Course, Driver, Record, make_course, pushes, random_commands, stack_params
from train.replay import Caption
from train.report import Metric, Report
from train.video import Video, stop_drawing, write_video

T = TypeVar("T")
STREAM = 0xD320
BUDGET_S = 480.0  # the whole demo, compilation included
VIDEO_S, REPORT_S = 90.0, 25.0  # what the end needs of it on two slow cores
LEAST_LEARN_S = 20.0
EACH = 8  # robots per variant of the course
TEST_S = 10.0  # length of an episode of random commands
PUSH = 0.4  # [m/s]
PAYLOAD = 1.0  # [kg], in each hand


class Interrupted(Exception):
    """Ctrl-C while a stage could not show anything yet."""


@dataclasses.dataclass
class Findings:
    """What the stages found so far.

    Attributes:
      course: record of the scripted course, `EACH` robots per entry of `variants`.
      tests: condition -> record of random commands; learner: policy (`untrained`, ...) -> the same of the leg policies.
      curves: an entry per iteration of the live training; learn_s, learn_steps: its seconds and environment steps.
      video: what came of it; seconds: stage -> wall time; compile_s: time to compile the learner.
      env_steps: environment steps of everything.
      interrupted: the stage that Ctrl-C ended.
    """

    course: Record | None = None
    tests: dict[str, Record] = dataclasses.field(default_factory=dict)
    learner: dict[str, Record] = dataclasses.field(default_factory=dict)
    curves: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    learn_s: float = 0.0
    learn_steps: int = 0
    video: Video | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_s: float | None = None
    env_steps: int = 0
    interrupted: str | None = None


def variants() -> dict[str, tuple[ControlParams, bool]]:
    """The course's conditions: name -> environment parameters, whether the robots are pushed."""
    nominal, off = nominal_params(), jnp.zeros(2)
    weight = (jnp.float32(PAYLOAD), jnp.float32(PAYLOAD))
    return {
        "nominal": (nominal, False),
        f"pushed {PUSH:g} m/s": (nominal, True),
        f"{PAYLOAD:g} kg in each hand": (
            nominal.replace(ranges=nominal.ranges.replace(payload=weight), share=jnp.float32(1.0)),
            False,
        ),
        # Pushes come from the script here, so that the replay can show them.
        "everything at once": (randomized_params().replace(push=off), True),
    }


class Demo:
    """One run of the demo: its settings, its stages."""

    def __init__(self, args: ControllerDemoArgs, out: Path):
        self.args, self.out = args, out
        self.begin = time.monotonic()
        self.legs, self.hands = load_part("legs", args.legs), load_part("hands", args.hands)
        sizes = mlp_sizes(self.legs["actor"]["mlp"])  # as the shipped ones: one program then drives both
        self.ppo = validate(over_devices(ppo.PPOConfig(num_envs=args.num_envs or 256, actor_sizes=sizes)))
        self.course: Course = make_course()
        self.variants = variants()
        self.found = Findings()
        self.stop = StopSignal()
        self.driver = Driver(act, EACH * len(self.variants), args.backend)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    # --- tools ---------------------------------------------------------------------------------------------------------

    def run(self, stages: Mapping[str, Callable[[], None]]) -> None:
        """Runs the stages until one is interrupted."""
        with self.stop:
            for name, stage in stages.items():
                began = time.monotonic()
                with contextlib.suppress(Interrupted):
                    stage()
                self.found.seconds[name] = time.monotonic() - began
                if self.stop.received is not None:
                    self.found.interrupted = name
                    return

    def _wait(self, label: str, work: Callable[[], T]) -> T:
        """Result of `work`, done in a thread so that Ctrl-C need not wait for the compiler; it is then left to finish."""
        began = time.monotonic()
        executor = concurrent.futures.ThreadPoolExecutor(1)
        future = executor.submit(work)
        executor.shutdown(wait=False)
        with _status(label) as say:
            try:
                while not concurrent.futures.wait([future], timeout=0.2).done:
                    say(f"{label}  {output.duration(time.monotonic() - began)}")
                    if self.stop.received is not None:
                        raise Interrupted
            except BaseException:
                stop_drawing()  # else the process could not end before the drawing does
                raise
        return future.result()

    def _key(self, number: int) -> jax.Array:
        """A stream of random numbers of its own for everything that draws."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.args.seed), STREAM), number)

    def _drive(self, label: str, legs: Weights, params: ControlParams, commands, kicks: np.ndarray, key) -> Record:
        robots = self.driver.robots
        with output.Progress(label, total=len(kicks)) as bar:

            def after_block(ticks: int) -> bool:
                bar.update(ticks, ticks * robots)
                return self.stop.received is None

            record = self.driver.drive(
                legs, self.hands, params, commands, kicks, jax.random.split(key, robots), after_block
            )
        self.found.env_steps += record.ticks * robots
        return record

    # --- stages --------------------------------------------------------------------------------------------------------

    def compile(self) -> None:
        """Compiles the program that drives the robots, by a short drive."""
        robots = self.driver.robots
        commands = jax.tree.map(lambda x: x[: BLOCK + 1], self.course.commands(self.driver.env.controller))
        params = stack_params([nominal_params()] * robots)
        keys, still = jax.random.split(self._key(0), robots), np.zeros((BLOCK, robots, 2), np.float32)
        self._wait(
            "compiling the simulator and the controller",
            lambda: self.driver.drive(self.legs, self.hands, params, commands, still, keys),
        )

    def walk(self) -> None:
        """The course: every variant with several starts, side by side."""
        robots, ticks = self.driver.robots, self.course.ticks
        rng = np.random.default_rng([self.args.seed, 1])
        params, kicks = [], np.zeros((ticks, robots, 2), np.float32)
        for i, (variant, pushed) in enumerate(self.variants.values()):
            params += [variant] * EACH
            for robot in range(i * EACH, (i + 1) * EACH):
                kicks[:, robot] = pushes(rng, ticks, PUSH) if pushed else 0.0
        commands = self.course.commands(self.driver.env.controller)
        self.found.course = self._drive("course", self.legs, stack_params(params), commands, kicks, self._key(1))

    def test(self) -> None:
        """Random commands, as `rdp controller eval` draws them: undisturbed, then with everything that is judged."""
        robots, ticks = self.driver.robots, round(TEST_S / CONTROL_DT)
        conditions = {"random commands": nominal_params(), "random, everything": randomized_params()}
        keys = jax.random.split(self._key(2), len(conditions) * robots)
        drawn = self._wait("drawing commands", lambda: random_commands(self.driver.env.controller, keys, ticks))
        still = np.zeros((ticks, robots, 2), np.float32)
        for i, (name, condition) in enumerate(conditions.items()):
            commands = jax.tree.map(lambda x, i=i: x[:, i * robots : (i + 1) * robots], drawn)
            params = stack_params([condition] * robots)
            self.found.tests[name] = self._drive(name, self.legs, params, commands, still, self._key(4 + i))
            if self.stop.received is not None:
                return
            if i == 0:
                self._same = params, commands, still

    def learn(self) -> None:
        """Legs from scratch by PPO, on the environment and with the disturbances of the real training."""
        wanted = self.args.learn_s
        if wanted == 0.0:
            return
        config = ControlConfig(part="legs", backend=self.args.backend, physics_dt=0.01)
        vector, mesh = AutoReset(ControlEnv(config, partner=act)), parallel.make_mesh()
        params = training_params(self.hands)
        update = ppo.make_update(self.ppo, vector, mesh)
        samples = self.ppo.num_envs * self.ppo.unroll_length
        began = time.monotonic()

        def first():
            state = ppo.init(self._key(6), self.ppo, vector, params, mesh)
            untrained = jax.device_get(acting(state))
            state, _ = jax.block_until_ready(update(state, params))
            compiled = time.monotonic()
            state, metrics = jax.block_until_ready(update(state, params))
            return untrained, state, jax.device_get(metrics), compiled, time.monotonic() - compiled

        untrained, state, metrics, compiled, each = self._wait("compiling the learner", first)
        self.found.compile_s = compiled - began
        self._curve(metrics, each)
        spare = BUDGET_S - self.elapsed() - VIDEO_S - REPORT_S
        seconds = min(wanted, max(LEAST_LEARN_S, spare))
        iterations = 2 + max(1, round((seconds - each) / each))
        loop = LoopConfig(iterations=iterations, max_wall_s=seconds)
        with output.Progress("learning", total=iterations, budget_s=seconds) as bar:

            def progress(p) -> None:
                self._curve(p.metrics, each + p.wall_s)
                now = self.found.curves[-1]
                note = f"reward {now['reward']:.4f}  falls/10s {now['falls_per_10s']:.2f}"
                bar.update(p.iteration, p.iteration * samples, note)

            result = train(update, state, params, loop, progress=progress)
        self.found.learn_s = self.found.curves[-1]["seconds"]
        self.found.learn_steps = len(self.found.curves) * samples
        self.found.env_steps += int(result.state.iteration) * samples
        self.stop.received = self.stop.received or result.stopped_by
        if self.stop.received is not None:
            return
        # The same commands and starts for all: a legged robot before and after.
        learned = jax.device_get(acting(result.state))
        for name, weights in {"untrained": untrained, f"after {self.found.learn_s:.0f} s": learned}.items():
            self.found.learner[name] = self._drive(f"{name} policy", weights, *self._same, self._key(4))
            if self.stop.received is not None:
                return
        self.found.learner["shipped"] = self.found.tests["random commands"]

    def _curve(self, metrics: Mapping[str, Any], seconds: float) -> None:
        tracking = progress_metrics(metrics)
        self.found.curves.append(
            {
                "seconds": seconds,
                "reward": float(metrics["reward/mean"]),
                "falls_per_10s": tracking["falls_per_10s"],
                "touchdown_error_m": tracking["touchdown_error_m"],
                "episode_s": float(metrics["episode/length"]) * CONTROL_DT,
            }
        )

    def film(self) -> None:
        """The nominal run as a video, where this machine can draw."""
        if self.found.course is None:
            return
        left = max(30.0, BUDGET_S - self.elapsed() - REPORT_S)
        qpos = pieces.shown_qpos(self.found.course, 0)
        self.found.video = self._wait(
            "drawing the video",
            lambda: write_video(
                self.out / "course.mp4", pieces.robot_model(), qpos, 1.0 / CONTROL_DT, max_fps=25.0, timeout_s=left
            ),
        )

    # --- what comes of it ----------------------------------------------------------------------------------------------

    def robots(self) -> dict[str, int]:
        """Variant -> the robot that stands for it: its first."""
        return {name: i * EACH for i, name in enumerate(self.variants)}

    def metrics(self) -> dict[str, Any]:
        """The summary's metrics."""
        found, course = self.found, self.found.course
        nominal = None if course is None else pieces.numbers(course, slice(0, EACH))
        video = found.video.path if found.video else None
        learning = learning_metrics(found.curves, self.ppo.num_envs * self.ppo.unroll_length)
        return {
            "survived": None if course is None else bool(course.alive[0]),
            "course_s": None if course is None else course.seconds,
            **{name: nominal[name] if nominal else None for name in pieces.AIMS},
            "learning": learning,
            "interrupted": found.interrupted,
            "stages_s": {name: round(seconds, 1) for name, seconds in found.seconds.items()},
            "learner_compile_s": found.compile_s,
            "video": video,
            "video_reason": None if video or found.video is None else found.video.reason,
            "report": self.out / "report.html",
        }

    def report(self, record: Mapping[str, Any]) -> Report:
        """The page."""
        facts = [record["device"], f"{record['backend']} physics", f"seed {self.args.seed}"]
        page = Report("Controller demo", ", ".join(facts))
        if self.found.interrupted:
            page.add_text(
                f"**Interrupted** during *{self.found.interrupted}*: the page shows what there was until then."
            )
        if self.found.course is not None:
            self._report_course(page, self.found.course)
        if self.found.curves:
            self._report_learning(page)
        self._report_circumstances(page, record)
        return page

    def _captions(self) -> list[Caption]:
        driven = 0.0 if self.found.course is None else self.found.course.seconds
        return [Caption(start, s.name) for start, s in zip(self.course.starts, self.course.segments) if start < driven]

    def _report_course(self, page: Report, course: Record) -> None:
        robots, captions = self.robots(), self._captions()
        page.add_section("At a glance")
        page.add_text(
            f"The shipped controller walks a scripted course of {course.seconds:.0f} s in physics: 26 joints at 50 Hz, "
            "given nothing but a base velocity and two palm poses. The tiles are about the undisturbed runs, "
            f"{EACH} with different starts; what follows a fall counts for nothing."
        )
        found = {name: pieces.numbers(course, slice(first, first + EACH)) for name, first in robots.items()}
        nominal = next(iter(found))
        others = {
            f"Stayed up, {name}": Metric(
                round(100 * numbers["survival_rate"]), "%", note=f"{numbers['survived']} of {EACH} runs"
            )
            for name, numbers in found.items()
            if name != nominal
        }
        page.add_metrics(pieces.tiles(found[nominal]) | others)
        rows = [pieces.table_row(name, numbers) for name, numbers in found.items()]
        rows += [pieces.table_row(name, pieces.numbers(test)) for name, test in self.found.tests.items()]
        page.add_table(rows, caption="All conditions; in brackets the 95 % interval")
        page.add_text(
            f"*Pushed*: the base's velocity changes by {PUSH:g} m/s in a random direction every 3 to 5 s. *Everything*: pushes, "
            "friction 0.4 to 1.2, masses ± 15 %, up to 2 kg in each hand, gains ± 10 %, sensor noise, 20 ms of delay. "
            f"*Random commands*: {TEST_S:.0f} s of velocities and hand targets drawn as in training, by keys training never sees."
        )
        page.add_section("The course in 3-D")
        models = {False: pieces.robot_model(), True: pieces.robot_model(loaded=True)}
        page.add_replay(
            "First run of each condition",
            {
                name: pieces.replay(course, robot, models["hand" in name or "everything" in name], captions)
                for name, robot in robots.items()
            },
            text="Frames: where the palms are to be. Outline: where the foot in the air is to land. Red arrow: a push.",
            side_by_side=False,
        )
        page.add_section("Tracking")
        pieces.add_footsteps(page, course, 0, captions)
        pieces.add_velocity(page, course, 0)
        pieces.add_touchdowns(page, course, robots)
        pieces.add_hands(page, course, robots)

    def _report_learning(self, page: Report) -> None:
        found, learning = self.found, self.metrics()["learning"]
        page.add_section("Learning, live")
        page.add_text(
            f"The leg policy from scratch, on this machine, just now: PPO with {self.ppo.num_envs} environments of the real "
            "training (random commands, pushes, loads, noise, delay; arms moved by the shipped hand policy)."
        )
        shown = {key: pieces.rounded(learning[key]) for key in learning}
        page.add_metrics(
            {
                "Reward per tick": Metric(shown["reward_last"], note=f"{shown['reward_first']} at first"),
                "Falls per 10 s": Metric(shown["falls_last"], note=f"{shown['falls_first']} at first"),
                "Environment steps": Metric(found.learn_steps, note=f"in {found.learn_s:.0f} s"),
                "Steps per second": Metric(shown["steps_per_s"], note="collecting and learning"),
            }
        )
        page.add_text(
            "Means over five iterations: the last ones and, *at first*, those after every robot had time to fall once."
        )
        pieces.add_learning(page, found.curves)
        if found.learner:
            rows = [pieces.table_row(name, pieces.numbers(record)) for name, record in found.learner.items()]
            page.add_table(
                rows, caption=f"Leg policies on the same random commands, {TEST_S:.0f} s, no exploration noise"
            )
            page.add_replay(
                "Before and after",
                {name: pieces.replay(r, 0, pieces.robot_model()) for name, r in found.learner.items()},
                text="The first robot of each: same commands, same start.",
            )

    def _report_circumstances(self, page: Report, record: Mapping[str, Any]) -> None:
        page.add_section("Circumstances")
        page.add_table([(k, _text(v)) for k, v in machine().items()], ("machine", ""))
        stages = [(name, round(seconds, 1)) for name, seconds in self.found.seconds.items()]
        page.add_table(stages, ("stage", "seconds"), "Where the time went")
        page.add_table([*record["versions"].items(), ("git", record["git"] or "-")], ("version", ""))
        video = self.found.video
        if video:
            page.add_text(f'The first run as a video: <a href="course.mp4">course.mp4</a>, drawn by {video.backend}.')
        elif video is not None:
            page.add_text(f"No video: {video.reason}")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


@contextlib.contextmanager
def _status(label: str) -> Iterator[Callable[[str], None]]:
    """Something that moves on a terminal, a line before and after elsewhere."""
    if sys.stderr.isatty():
        with Console(file=sys.stderr).status(label) as status:
            yield status.update
        return
    began = time.monotonic()
    print(f"{label} ...", file=sys.stderr, flush=True)
    yield lambda text: None
    print(f"{label}: {output.duration(time.monotonic() - began)}", file=sys.stderr, flush=True)


def learning_metrics(curves: list[dict[str, Any]], samples: int) -> dict[str, Any]:
    """First and last of the live training, means over five iterations of `samples` environment steps each.

    The first few count for nothing: robots that have just started have had no time to fall.
    """
    skip = min(5, max(0, len(curves) - 10))
    first, last = curves[skip : skip + 5], curves[-5:]

    def mean(part: list[dict[str, Any]], key: str) -> float | None:
        return float(np.mean([c[key] for c in part])) if part else None

    seconds = curves[-1]["seconds"] if curves else 0.0
    return {
        "reward_first": mean(first, "reward"),
        "reward_last": mean(last, "reward"),
        "falls_first": mean(first, "falls_per_10s"),
        "falls_last": mean(last, "falls_per_10s"),
        "iterations": len(curves),
        "steps_per_s": samples * len(curves) / seconds if seconds else None,
    }


def run_demo(args: ControllerDemoArgs) -> dict[str, Any]:
    """The demo; writes `report.html`, `summary.json` and, where it can, `course.mp4`.

    Raises `KeyboardInterrupt` when interrupted before there was anything to show.
    """
    demo = Demo(args, free_directory(args.out, "demo"))
    demo.run(
        {
            "compilation": demo.compile,
            "course": demo.walk,
            "random commands": demo.test,
            "learning": demo.learn,
            "video": demo.film,
        }
    )
    if demo.found.course is None:
        raise KeyboardInterrupt
    record = output.summary(
        "controller demo",
        seed=args.seed,
        backend=demo.driver.env.physics.name,
        num_envs=demo.driver.robots,
        wall_s=demo.elapsed(),
        metrics=demo.metrics(),
        env_steps=demo.found.env_steps,
    )
    with _status("writing the report"):
        demo.report(record).write(demo.out / "report.html")
    write_json(demo.out / "summary.json", record)
    return record
