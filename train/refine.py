"""`rdp refine`: planner and controller learn together on a T1 task (REFINE-DP)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from envs.chunk import Chunked
from envs.control.env import ControlConfig, ControlEnv, training_params
from envs.tasks.command import TICKS
from envs.tasks.hierarchy import PlannerParams
from envs.wrappers import AutoReset, LayeredAutoReset
from rdp_jax import parallel
from rdp_jax.algos import dppo, joint, ppo
from rdp_jax.checkpoint import save_weights
from rdp_jax.config import ConfigError
from rdp_jax.nets.mlp import mlp_sizes
from rdp_jax.planner import Planner, save
from train.attempt import Attempt
from train.controller_weights import OTHER, act
from train.finetune import note, tuned
from train.keeping import Best
from train.learning import Pace, described, learn, on_the_way, reached, success_of, telling
from train.learning_report import read_curve
from train.names import PLANNER
from train.task_args import RefineArgs
from train.tasks import HumanoidStage

STREAM = 0x2EF1  # of the controller's learners, apart from what the planner's draws from the same seed
WIDER = 1.1  # the curriculum's factor


class Curriculum:
    """Spread of the starts, widened by a tenth whenever `--curriculum-pass` of the latest episodes succeed (REFINE-DP, section 1,
    has nine tenths).

    As many episodes as `reached` wants, of iterations in which the planner explores, and not before all that began on narrower
    starts have ended.  A resumed run reads where it was from its own `metrics.jsonl`.
    """

    def __init__(self, args: RefineArgs, params: PlannerParams, pace: Pace):
        self.on, self.enough, self.params, self.pace = args.curriculum, args.curriculum_pass, params, pace
        self.scale = args.start_range if args.practice_range is None else args.practice_range
        self.since = 0  # iteration after which the starts were widened
        self.rows: list[dict[str, Any]] = []  # of those that followed
        for row in read_curve(args.out) if self.on and args.resume else []:
            self.learn(row)

    def at(self, iteration: int) -> Any:
        """Environment parameters of the next iteration."""
        del iteration
        control = self.params.control
        world = control.world.replace(scale=jnp.float32(self.scale))
        return self.params.replace(control=control.replace(world=world))

    def learn(self, row: dict[str, Any]) -> None:
        """After an iteration, with its number among its metrics."""
        self.rows.append(row)
        anew = dataclasses.replace(self.pace, first=self.since + self.pace.first)
        if self.on and reached(telling(self.rows, anew), self.enough) is not None:
            self.scale *= WIDER
            self.since, self.rows = row["iteration"], []


class Recording(joint.Update):
    """`joint.Update` that also logs the curriculum."""

    def __init__(self, curriculum: Curriculum, *args: Any):
        super().__init__(*args)
        self.curriculum = curriculum

    def __call__(self, state: joint.JointState, env_params: Any) -> tuple[joint.JointState, dict[str, Any]]:
        before = self.curriculum.scale
        state, metrics = super().__call__(state, env_params)
        told = {name: float(metrics[name]) for name in ("phase", "episode/finished", "episode/return")}
        self.curriculum.learn({"iteration": int(state.iteration), **told})
        return state, {**metrics, "start_range": before, "next_start_range": self.curriculum.scale}


def learning(args: RefineArgs) -> tuple[str, ...]:
    """Parts of the controller that learn."""
    return tuple(OTHER) if args.controller_parts == "both" else (args.controller_parts,)


def rehearsed(args: RefineArgs, config: ppo.PPOConfig) -> ppo.PPOConfig:
    """`config` of the rollouts of the controller's first training: by default a fifth of its samples, on any preset."""
    steps = joint.REHEARSAL_STEPS * args.schedule.rehearsals
    return dataclasses.replace(config, num_envs=2 * args.recorded, unroll_length=steps)


def check_std(args: RefineArgs, controller: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where a part of the `controller` that learns would explore with less or more than it may.

    Its std would be put right in the first step that it learns, which is too long a step.
    """
    if not args.schedule.moves_controller:
        return
    log_stds = np.concatenate([np.ravel(controller[part]["actor"]["log_std"]) for part in learning(args)])
    least, most = np.exp(log_stds.min()), np.exp(log_stds.max())
    low, high = args.controller.min_std / least, args.controller.max_std / most
    if not 0.999 * low <= args.controller_std <= 1.001 * high:  # a std that was learned may lie at its bound
        allowed = f"{low:.3g} .. {high:.3g} (std of {least:.3g} .. {most:.3g}, within controller.min_std .. controller.max_std)"
        raise ConfigError("controller_std", args.controller_std, allowed)


def check_parts(args: RefineArgs, executed: int, mesh: Mesh | None) -> None:
    """Raises `ConfigError` where minibatches and groups of the controller do not divide its rollouts or the devices, under a
    planner that executes so many actions of a chunk."""
    if not args.schedule.moves_controller:
        return
    ticks = args.dppo.unroll_length * executed * TICKS
    rollouts = [dataclasses.replace(args.controller, num_envs=args.recorded, unroll_length=ticks)]
    if args.schedule.rehearsals:
        rollouts.append(rehearsed(args, args.controller))
    for rollout in rollouts:
        try:
            ppo.check_layout(rollout, mesh)
        except ConfigError as error:
            if error.field == "num_envs":  # not a flag of the controller's
                raise ConfigError("recorded", args.recorded, error.allowed) from error
            raise ConfigError(f"controller.{error.field}", error.value, error.allowed) from error


def rehearsals(args: RefineArgs, config: ppo.PPOConfig, platforms: bool) -> dict[str, tuple]:
    """Part that learns -> (config, environments, how their parameters follow from the controller) of its first training,
    which was on `platforms` if the task has any."""
    found = {}
    if args.schedule.rehearsals and args.schedule.moves_controller:
        own = rehearsed(args, config)
        for part in learning(args):
            scene = "platforms" if platforms and part == "legs" else "flat"
            env = ControlEnv(ControlConfig(part=part, scene=scene, backend=args.backend, physics_dt=0.01), partner=act)
            found[part] = (own, AutoReset(env), lambda weights, part=part: training_params(weights[OTHER[part]]))
    return found


def begin(
    args: RefineArgs, stage: HumanoidStage, before: Planner, mesh: Mesh | None
) -> tuple[joint.JointState, tuple[Any, ...]]:
    """First state of planner `before` and the stage's controller, and the arguments of `joint.Update` after its schedule."""
    vector = LayeredAutoReset(Chunked(stage.practice_env, before.config.executed))  # type: ignore[arg-type]
    controller = {part: quieter(weights, args.controller_std) for part, weights in stage.params.controller.items()}
    sizes = {mlp_sizes(weights["actor"]["mlp"]) for weights in controller.values()}
    # Of the policies' widths.
    config = dataclasses.replace(args.controller, actor_sizes=sizes.pop())
    policy: Any = before.actor().policy
    planner = dppo.init(jax.random.key(args.seed), args.dppo, policy, before.bundle, vector, stage.practice, mesh)
    old = rehearsals(args, config, bool(stage.env.control.scene.platforms))
    key = jax.random.fold_in(jax.random.key(args.seed), STREAM)
    places = {part: (own, env, params_for(controller)) for part, (own, env, params_for) in old.items()}
    split, whole = stage.env.control.critic_split, stage.env.control.spec.obs_dims["critic"]
    dims = {"legs": split, "hands": whole - split}
    state = joint.init(key, config, planner, controller, dims, places, mesh)
    rehearse = {part: (ppo.Rollout(own, env, mesh), params_for) for part, (own, env, params_for) in old.items()}
    # Where the controller does not learn nothing is recorded, and any number that fits will do.
    recorded = args.recorded if args.schedule.moves_controller else args.dppo.shuffle_groups
    return state, (dppo.Update(args.dppo, policy, vector, mesh), config, recorded, rehearse, learning(args))


def quieter(weights: dict[str, Any], share: float) -> dict[str, Any]:
    """A part of the controller that explores with this share of its std, and does the same without exploration."""
    actor = weights["actor"]
    return {**weights, "actor": {**actor, "log_std": actor["log_std"] + jnp.log(jnp.float32(share))}}


def run_refine(args: RefineArgs, command: str = "refine") -> dict[str, Any]:
    """Evaluates, refines, evaluates again on the same starts; writes the planner and both parts of the controller.

    `command` is what report and summary call it.
    """
    attempt = Attempt(args, "dppo")
    before, stage = attempt.planner, attempt.stage
    assert isinstance(stage, HumanoidStage)  # `RefineArgs` knows no other tasks
    mesh = parallel.make_mesh()
    check_parts(args, before.config.executed, mesh)
    check_std(args, stage.params.controller)
    dppo.check_layout(args.dppo, before.actor().policy, mesh)
    attempt.begin()
    state, learners = begin(args, stage, before, mesh)
    state = attempt.restored(state)
    pace = Pace.of(args.dppo, stage.env.spec, before.config.executed)
    curriculum = Curriculum(args, stage.practice, pace)
    update = Recording(curriculum, args.schedule, *learners)
    best = Best(args, learned_by(state))

    def evaluate(state):
        count, learned = int(state.iteration), jax.device_get(learned_by(state))
        with stage.under(learned["controller"]):
            now = attempt.finished(tuned(before, learned["planner"], args.dppo, {}))
            figures = stage.judge(now, best.seed, args.trials)
        return best.offer(count, figures, learned)

    result, to_90 = learn("refine", args, attempt.run, update, state, curriculum.at, pace, said, evaluate)
    count = int(result.state.iteration)
    kept, learned = best.choose(count, learned_by(result.state))
    metadata = described(args, before, kept)
    after = attempt.chosen(tuned(before, learned["planner"], args.dppo, metadata), stage.under(learned["controller"]))
    if args.out:
        save(args.out / PLANNER, after)
        for part, weights in learned["controller"].items():
            save_weights(args.out / f"{part}.safetensors", weights, {**metadata, "part": part})
    only = attempt.log.judge("planner alone", after)
    with stage.under(learned["controller"]):
        second = attempt.log.judge("after", after)
    steps = count * pace.steps
    more = {"planner_alone": only, "start_range": curriculum.scale}
    more |= {"evaluations": on_the_way(args.out), "kept_iteration": kept}
    return attempt.end(command, args.dppo.num_envs, result, to_90, second, steps, **more)


def learned_by(state: joint.JointState) -> dict[str, Any]:
    """Weights of the planner's network, and of the controller as the environments want it."""
    return {"planner": state.planner.learned, "controller": joint.controller_of(state)}


def said(metrics: dict[str, Any]) -> str:
    """What the progress line says: of the planner, or of the controller where only that learned."""
    if "policy/kl" in metrics:
        return note(metrics)
    parts = "  ".join(
        f"{part} {metrics[f'{part}/reward']:.4f} (kl {metrics.get(f'{part}/policy/kl', 0.0):.3f})" for part in OTHER
    )
    return f"return {success_of(metrics):.2f} of {int(metrics['episode/finished'])}  reward {parts}"
