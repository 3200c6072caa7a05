"""What comes out of learning: how noisy its first sample is, and on which starts that is decided."""

import contextlib
import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest

from rdp_jax.algos.joint import Schedule
from rdp_jax.config import ConfigError, validate
from rdp_jax.planner import Planner
from train import cli
from train.attempt import Attempt
from train.keeping import CHOOSING
from train.presets import residual_ppo, task_dppo, task_dsrl, task_planner
from train.sampling import with_first_std
from train.task_args import CollectArgs, DSRLArgs, FinetuneArgs, PlayArgs, PretrainArgs, RefineArgs

HERE = Path(__file__)  # a file; nobody reads it
PLANNER = task_planner()
noisy = dataclasses.replace(PLANNER, diffusion=dataclasses.replace(PLANNER.diffusion, steps=20))
wide = dataclasses.replace(PLANNER, gaussian=dataclasses.replace(PLANNER.gaussian, std=0.3))


class Stage:
    """Says what it was told about each std; notes on which starts, and under which controller."""

    def __init__(self, scores):
        self.scores, self.seen, self.learned = scores, [], False

    @contextlib.contextmanager
    def under(self):
        self.learned = True
        yield
        self.learned = False

    def judge(self, planner, seed, trials):
        noise = planner.config.diffusion
        at = (noise.first_std, noise.step_noise) if noise.step_noise else noise.first_std
        self.seen.append((at, seed, trials, self.learned))
        return {"score": self.scores[at], "success_rate": self.scores[at]}


class Log:
    """As `EvaluationLog`, on the seed of the command."""

    def __init__(self, stage, args):
        self.stage, self.args = stage, args

    def judge(self, name, planner):
        return {"name": name, **self.stage.judge(planner, self.args.seed, self.args.trials)}


def attempt(scores, **more):
    """One that has a stage and a planner, whose first sample has a std of 0.5."""
    args = RefineArgs(trials=10, seed=3, **more)
    found = Attempt.__new__(Attempt)
    found.args, found.stage = args, Stage(scores)
    given = Planner(config=task_planner(), dims=None, bundle=None, base=None, tuned_steps=0, metadata={})
    found.planner = with_first_std(given, 0.5)
    found.log, found.final_scores, found.untrained_final = Log(found.stage, args), {}, {}
    return found


def test_what_a_run_began_from_is_told_apart_by_what_is_in_it():
    made = attempt({})
    made.given = dataclasses.replace(made.planner, bundle={"w": np.zeros(2, np.float32)})

    def told(planner=0.0, legs=0.0, hands=0.0):
        made.given = dataclasses.replace(made.given, bundle={"w": np.full(2, planner, np.float32)})
        controller = {"legs": {"w": np.float32(legs)}, "hands": {"w": np.float32(hands)}}
        made.stage.params = types.SimpleNamespace(controller=controller)
        return made._fingerprints()

    first = told()
    assert set(first) == {"planner", "legs", "hands"} and told() == first
    for name in first:
        assert [other for other, digest in told(**{name: 1e-6}).items() if digest != first[other]] == [name]


def std_of(planner):
    return planner.config.diffusion.first_std


def test_the_best_std_comes_out_and_what_has_learned_nothing_is_judged_alike():
    made = attempt({0.5: 0.6, 0.25: 0.9, 0.0: 0.9}, final_std=(0.5, 0.25, 0.0))
    out = made.chosen(made.planner, made.stage.under())
    assert std_of(out) == 0.25  # of equals the first
    choosing = [(std, 3 + CHOOSING, 10, True) for std in (0.5, 0.25, 0.0)]
    assert made.stage.seen == [*choosing, (0.25, 3, 10, False)]
    assert made.chosen_std() == {"final_std_scores": {"0.5": 0.6, "0.25": 0.9, "0": 0.9}}
    assert made.untrained_final["success_rate"] == 0.9


def test_the_best_share_of_noise_is_chosen_with_the_best_std_and_nothing_is_judged_twice():
    scores = {0.5: 0.6, 0.0: 0.7, (0.0, 1.0): 0.9, (0.0, 0.5): 0.8}
    made = attempt(scores, final_std=(0.5, 0.0), final_noise=(0.0, 1.0, 0.5))
    out = made.chosen(made.planner, made.stage.under()).config.diffusion
    assert (out.first_std, out.step_noise) == (0.0, 1.0)
    assert [at for at, *_ in made.stage.seen] == [0.5, 0.0, (0.0, 1.0), (0.0, 0.5), (0.0, 1.0)]
    assert made.chosen_std() == {
        "final_std_scores": {"0.5": 0.6, "0": 0.7},
        "final_noise_scores": {"0": 0.7, "1": 0.9, "0.5": 0.8},
    }
    assert made.untrained_final["success_rate"] == 0.9
    alone = attempt({0.5: 0.6, (0.5, 1.0): 0.5}, final_noise=(1.0, 0.0))
    assert alone.chosen(alone.planner) is alone.planner and len(alone.stage.seen) == 2


def test_a_single_std_is_not_chosen_and_its_own_needs_no_other_judgement():
    one = attempt({0.0: 0.7}, final_std=(0.0,))
    assert std_of(one.chosen(one.planner)) == 0.0 and one.stage.seen == [(0.0, 3, 10, False)]
    own = attempt({0.5: 0.8, 0.0: 0.7}, final_std=(0.5, 0.0))
    assert std_of(own.chosen(own.planner)) == 0.5 and len(own.stage.seen) == 2 and not own.untrained_final
    none = attempt({})
    assert none.chosen(none.planner) is none.planner and none.chosen_std() == {}


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (RefineArgs, {"final_std": (0.5, -0.1)}),
        (RefineArgs, {"final_std": (float("nan"),)}),
        (RefineArgs, {"final_std": (0.5, 0.0), "trials": 0}),
        (FinetuneArgs, {"final_std": (0.5, 0.0), "algo": "residual"}),
        (RefineArgs, {"final_noise": (0.0, 1.1)}),
        (FinetuneArgs, {"final_noise": (0.0, 1.0), "algo": "residual"}),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(kind, flags):
    with pytest.raises(ConfigError, match=next(iter(flags))):
        validate(kind(**flags))


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (PlayArgs(num_envs=8), "num_envs"),
        (CollectArgs(task="hopper", clumsiness=2.0, out=Path("demos")), "clumsiness"),
        (DSRLArgs(tickets=8), "tickets"),
        (RefineArgs(curriculum_pass=0.8), "curriculum_pass"),
        (FinetuneArgs(residual_scale=0.2), "residual_scale"),
        (FinetuneArgs(residual=dataclasses.replace(residual_ppo(), lr=1e-3)), "residual.lr"),
        (FinetuneArgs(algo="residual", dppo=dataclasses.replace(task_dppo("cpu"), gamma=0.9)), "dppo.gamma"),
        (
            FinetuneArgs(algo="gaussian-ppo", dppo=dataclasses.replace(task_dppo("cpu"), tuned_steps=3)),
            "dppo.tuned_steps",
        ),
        (RefineArgs(schedule=Schedule(controller_iterations=0), controller_std=0.5), "controller_std"),
        (RefineArgs(schedule=Schedule(controller_iterations=0), recorded=32), "recorded"),
        (RefineArgs(schedule=Schedule(controller_iterations=0), controller_parts="legs"), "controller_parts"),
        (RefineArgs(schedule=Schedule(controller_iterations=0, rehearsals=2)), "schedule.rehearsals"),
        (DSRLArgs(variant="sac", dsrl=dataclasses.replace(task_dsrl("cpu"), distillations=3)), "dsrl.distillations"),
        (FinetuneArgs(dppo=dataclasses.replace(task_dppo("cpu"), reward_clip=1.0)), "reward_clip"),
        (DSRLArgs(dsrl=dataclasses.replace(task_dsrl("cpu"), widen_from=0.3)), "widen_from"),
        (PretrainArgs(net="lstm", data=HERE, planner=noisy), "planner.diffusion.steps"),
        (PretrainArgs(data=HERE, planner=wide), "planner.gaussian.std"),
    ],
)
def test_what_would_be_ignored_is_refused(args, field):
    with pytest.raises(ConfigError, match=rf"{field}=.*, allowed: left out"):
        validate(args)


def test_a_learner_is_not_refused_for_what_another_one_needs():
    found = FinetuneArgs(algo="residual", num_envs=100).resolved()
    validate(found)
    assert found.residual.num_envs == 100 and found.dppo.num_envs == task_dppo("cpu").num_envs
    with pytest.raises(ConfigError, match=r"minibatches=16"):
        validate(FinetuneArgs(num_envs=100).resolved())


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_a_learner_that_idles_is_refused_nothing(preset):
    words = ["--preset", preset, "--algo", "residual", "--num-envs", "100"]
    assert cli.parse(cli._find(["finetune"])[0], FinetuneArgs, words).residual.num_envs == 100
    # The controller's share of environments that there are not.
    still = RefineArgs(num_envs=32, schedule=Schedule(controller_iterations=0))
    validate(still.resolved())
    with pytest.raises(ConfigError, match=r"recorded=64.*up to num_envs=32"):
        validate(RefineArgs(num_envs=32).resolved())


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_a_smaller_kl_goal_is_a_smaller_first_step_too(preset):
    config = task_dppo(preset)
    assert config.resting_kl == pytest.approx(2.0 * config.kl_goal)
    assert dataclasses.replace(config, kl_goal=0.04).resting_kl == pytest.approx(0.08)
