"""What the task commands share: a task's environment, its parameters, how a planner is judged on it, planner files."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from envs.chunk import Chunked
from envs.gym.locomotion import SPECS, Locomotion
from envs.t1.model import Scene
from envs.tasks.catalog import make_task
from envs.tasks.hierarchy import Hierarchy, HierarchyConfig, PlannerParams
from envs.wrappers import AutoReset
from rdp_jax.config import ConfigError
from rdp_jax.evaluate import first_episodes
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner, load, save
from train import output
from train.controller_weights import act, load_part
from train.names import PLANNER
from train.rollouts import EVALUATION_STREAM, EpisodeRunner, PlannerPlayer, Played, evaluate, report
from train.sampling import with_first_std
from train.task_args import TaskFlags, Watched


class Stage(Protocol):
    """A task as the commands see it.

    Attributes:
      env: the environment, one action per step.
      params: its parameters, under which planners are judged.
      practice_env, practice: those in and under which they learn.
      at_once: episodes of a judgement that are played side by side, unless another number is asked for.
    """

    at_once: int
    env: Any
    params: Any
    practice_env: Any
    practice: Any

    def judge(
        self, planner: Planner, seed: int, trials: int, at_once: int | None = None, explore: bool = False
    ) -> dict[str, Any]:
        """Figures of `planner` over `trials` fresh starts of the seed's evaluation stream; `score` is what counts.

        `explore` samples with the noise of fine-tuning.
        """
        ...

    def judge_actor(
        self, actor: Any, weights: tuple[Any, Any], seed: int, trials: int, at_once: int | None = None
    ) -> dict[str, Any]:
        """As `judge`, for anything that acts as `rdp_jax.planner.Actor` does, with the first two arguments of its `act`."""
        ...


def side_by_side(stage: Stage, trials: int, asked: int | None) -> int:
    """Of `trials` episodes of a judgement, how many are played side by side."""
    return min(asked or stage.at_once, trials)


def set_up(args: TaskFlags, history: int, record: bool = False) -> Stage:
    """The stage of `args.task` for planners that see `history` frames; `record` for reports.  Raises `ConfigError`."""
    return GymStage(args, history) if args.task in SPECS else HumanoidStage(args, history, record)


def load_controller(args: TaskFlags, scene: Scene) -> dict[str, Any]:
    """Weights of legs and hands: given, or shipped for such a scene.  Raises `ConfigError`."""
    return {part: load_part(part, getattr(args, part), bool(scene.platforms)) for part in ("legs", "hands")}


def keep_planner(args: TaskFlags, planner: Planner) -> None:
    """Saves `planner` into `--out`, and beside it the parts of the controller that were given: whoever plays it looks there for
    what it learned under.  Does nothing without `--out`."""
    if args.out is None:
        return
    save(args.out / PLANNER, planner)
    for part in ("legs", "hands"):
        given, kept = getattr(args, part), args.out / f"{part}.safetensors"
        if given is not None and kept.resolve() != given.resolve():
            shutil.copyfile(given, kept)


class HumanoidStage:
    """A task of the T1; the score is the success rate.

    Args:
      args: of the command.
      history: frames that planners see.
      record: keep every step of the evaluations of up to 256 episodes, for replays.

    Attributes:
      last: the latest evaluation's episodes.
    """

    at_once = 256

    def __init__(self, args: TaskFlags, history: int = 8, record: bool = False):
        self.name, self.record = args.task, record
        self.last: Played | None = None
        self.env = Hierarchy(make_task(args.task), act, HierarchyConfig(args.backend, args.physics_dt, history))
        self.practice_env = self._practice_env(args)
        self.params = self._params(args)
        self.practice = self._practice(args)
        self._runners: dict[Any, EpisodeRunner] = {}

    def runner(self, name: Any, player: Callable[[], Any]) -> EpisodeRunner:
        """The runner called `name`, made with `player()` the first time: compiled once, whatever weights it is given later."""
        if name not in self._runners:
            self._runners[name] = EpisodeRunner(self.env, player(), self.record)
        return self._runners[name]

    def _params(self, args: TaskFlags) -> PlannerParams:
        """Shipped or given controller, starts of the given range."""
        params = self.env.default_params(load_controller(args, self.env.control.scene))
        world = params.control.world
        if not hasattr(world, "scale"):
            raise ConfigError("task", args.task, "a task of which default_params() has a `scale`")
        start = world.replace(scale=jnp.float32(args.start_range))
        return params.replace(control=params.control.replace(world=start))

    def _practice_env(self, args: TaskFlags) -> Hierarchy:
        """The environment in which it shall be learned, perhaps with other steps of physics."""
        if not isinstance(args, Watched) or args.practice_dt in (None, self.env.config.physics_dt):
            return self.env
        config = dataclasses.replace(self.env.config, physics_dt=args.practice_dt)
        try:
            return Hierarchy(self.env.task, act, config)
        except ConfigError as error:
            raise ConfigError("practice_dt", args.practice_dt, error.allowed) from error

    def _practice(self, args: TaskFlags) -> PlannerParams:
        """The parameters, with the starts and the goal on which it shall be learned."""
        asked = {"scale": getattr(args, "practice_range", None), "near": getattr(args, "practice_radius", None)}
        other = {name: jnp.float32(value) for name, value in asked.items() if value is not None}
        if not other:
            return self.params
        control = self.params.control
        return self.params.replace(control=control.replace(world=control.world.replace(**other)))

    @contextlib.contextmanager
    def under(self, controller: Mapping[str, Any]) -> Iterator[None]:
        """Judgements within are made with this controller, later ones with the one before."""
        given = self.params
        self.params = given.replace(controller=controller)
        try:
            yield
        finally:
            self.params = given

    def judge(
        self, planner: Planner, seed: int, trials: int, at_once: int | None = None, explore: bool = False
    ) -> dict[str, Any]:
        """See `Stage.judge`."""
        shared, weights = with_std_as_data(planner)
        name = (shared.config, shared.dims, shared.tuned_steps, explore)
        runner = self.runner(name, lambda: PlannerPlayer(shared.actor(), explore))
        return self._judge(runner, weights, seed, trials, at_once)

    def judge_actor(
        self, actor: Any, weights: tuple[Any, Any], seed: int, trials: int, at_once: int | None = None
    ) -> dict[str, Any]:
        """See `Stage.judge_actor`."""
        return self._judge(self.runner(actor, lambda: PlannerPlayer(actor)), weights, seed, trials, at_once)

    def judge_player(
        self, player: Any, weights: Any, seed: int, trials: int, at_once: int | None = None
    ) -> dict[str, Any]:
        """As `judge`, for any `train.rollouts.Player`."""
        return self._judge(self.runner(player, lambda: player), weights, seed, trials, at_once)

    def _judge(
        self, runner: EpisodeRunner, weights: Any, seed: int, trials: int, at_once: int | None = None
    ) -> dict[str, Any]:
        with output.Progress(f"eval {self.name}", total=trials) as bar:
            played = evaluate(
                runner,
                seed,
                trials,
                self.params,
                weights,
                side_by_side(self, trials, at_once),
                lambda now: bar.update(now.ended, now.steps, f"won {now.won}", now.share),
            )
        self.last = played
        found = report(self.env, played)
        return {**found, "score": found["success_rate"], "env_steps": int(played.steps.sum())}


class GymStage:
    """A Gymnasium task; the score is the mean return."""

    at_once = 64

    def __init__(self, args: TaskFlags, history: int = 1):
        if history != 1:
            raise ConfigError("planner.history", history, f"1 for {args.task}")
        self.name, self.params, self.practice = args.task, (), ()
        self.env = self.practice_env = Locomotion(args.task, args.backend)
        self._plays: dict[Any, Callable[..., Any]] = {}

    def judge(
        self, planner: Planner, seed: int, trials: int, at_once: int | None = None, explore: bool = False
    ) -> dict[str, Any]:
        """See `Stage.judge`."""
        shared, weights = with_std_as_data(planner)
        name = (shared.config, shared.dims, shared.tuned_steps, explore)
        play = self._play(name, shared.actor(), explore)
        return self._judge(play, planner.config.executed, weights, seed, trials, at_once)

    def judge_actor(
        self, actor: Any, weights: tuple[Any, Any], seed: int, trials: int, at_once: int | None = None
    ) -> dict[str, Any]:
        """See `Stage.judge_actor`."""
        play = self._play(actor, actor, explore=False)
        return self._judge(play, actor.config.executed, weights, seed, trials, at_once)

    def _play(self, name: Any, actor: Any, explore: bool) -> Callable[..., Any]:
        """Plays first episodes; made the first time for a `name`, compiled once, whatever weights it is given later."""
        if name not in self._plays:
            chunked = Chunked(self.env, actor.config.executed)
            vector = AutoReset(chunked)

            def play(key, indices, bundle, base, *first_std):
                def choose(obs, keys):
                    return actor.act(bundle, base, obs["actor"], keys, explore, *first_std)

                return first_episodes(vector, choose, key, indices, (), chunked.spec.episode_steps)

            self._plays[name] = jax.jit(play)
        return self._plays[name]

    def _judge(
        self,
        play: Callable[..., Any],
        executed: int,
        weights: tuple[Any, ...],
        seed: int,
        trials: int,
        at_once: int | None,
    ) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM)
        at_once = side_by_side(self, trials, at_once)
        returns, steps = [], 0
        with output.Progress(f"eval {self.name}", total=trials) as bar:
            for first in range(0, trials, at_once):
                played = play(key, jnp.arange(first, min(first + at_once, trials)), *weights)
                returns.append(np.asarray(played.returns))
                steps += int(played.steps.sum()) * executed
                bar.update(min(first + at_once, trials), steps, f"return {np.concatenate(returns).mean():.0f}")
        return {**return_report(np.concatenate(returns)), "env_steps": steps}


def return_report(returns: np.ndarray) -> dict[str, Any]:
    """Mean return with a 95 % interval of the mean."""
    half = 1.96 * float(returns.std(ddof=1)) / len(returns) ** 0.5 if len(returns) > 1 else math.nan
    mean = float(returns.mean())
    return {"trials": len(returns), "return": mean, "return_ci95": [mean - half, mean + half], "score": mean}


def weights_of(planner: Planner) -> tuple[Any, Any]:
    """What an `Actor` wants: the bundle, and the frozen weights if some steps run on those."""
    return planner.bundle, planner.base if planner.tuned_steps else ()


def with_std_as_data(planner: Planner) -> tuple[Planner, tuple[Any, ...]]:
    """`planner` with the usual std of its first sample, and its weights followed by the std that it has: `Actor.act` takes it as
    data, so that one compiled program judges it with any.  A planner without such a sample as it is, and its weights.
    """
    if planner.config.net.kind in GAUSSIAN:
        return planner, weights_of(planner)
    std = jnp.float32(planner.config.diffusion.first_std)
    return with_first_std(planner, 1.0), (*weights_of(planner), std)


def shipped(task: str, which: str) -> Path:
    """Planner file that comes with the package; `which` is `pretrained` or `finetuned`."""
    return Path(str(resources.files("rdp_jax") / "assets" / f"{task}_{which}.safetensors"))


def find_planner(run: Path | None, task: str, which: str = "finetuned") -> Planner:
    """The planner of a run directory, of a file, or the shipped one (`pretrained` where there is no fine-tuned one).

    Raises `ConfigError` or `CheckpointError`.
    """
    if run is not None:
        path = run / PLANNER if run.is_dir() else run
        if not path.is_file():
            raise ConfigError("run", str(run), f"a planner file, or a run directory with {PLANNER}")
    else:
        path = shipped(task, which)
        if which == "finetuned" and not path.is_file():
            path = shipped(task, "pretrained")
        if not path.is_file():
            raise ConfigError("task", task, "a task with shipped weights; name your own planner")
    planner = load(path)
    made_for = planner.metadata.get("task")
    if made_for != task:
        raise ConfigError("task", task, f"{made_for!r}, which the planner {path.name} was made for")
    return planner


def check_fits(planner: Planner, env: Any) -> None:
    """Raises `ConfigError` if the planner's widths are not the environment's."""
    spec, dims = env.spec, planner.dims
    for what, wanted, found in (
        ("observations", spec.obs_dims["actor"], planner.config.history * dims.frame),
        ("actions", spec.action_dim, dims.action),
    ):
        if wanted != found:
            allowed = f"one for {spec.name}, with {what} of width {wanted}; its {what} have width {found}"
            raise ConfigError("planner", "this planner", allowed)
