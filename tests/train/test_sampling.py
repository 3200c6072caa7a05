"""How a command wants plans to be sampled."""

import dataclasses

import pytest

from rdp_jax.config import ConfigError
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import Planner, PlannerConfig
from train.presets import gym_planner, task_planner
from train.sampling import alike, as_asked, exploring, with_first_std, with_noise
from train.task_args import EvalArgs


def planner(config: PlannerConfig) -> Planner:
    return Planner(config=config, dims=None, bundle=None, base=None, tuned_steps=0, metadata={})


def test_nothing_said_is_the_planners_own():
    given = planner(task_planner())
    assert not EvalArgs().explores and exploring(given, EvalArgs()).config == given.config
    assert with_first_std(given, None) is given and with_first_std(given, 1.0) is given
    assert as_asked(given, EvalArgs()) is given and as_asked(given, EvalArgs(step_noise=0.0)) is given


def test_what_is_said_goes_into_the_planner():
    args = EvalArgs(explore_std=0.07, explore_correlation=0.5, explore_eta=0.25)
    found = exploring(planner(task_planner()), args).config.diffusion
    expected = dataclasses.replace(task_planner().diffusion, min_std=0.07, correlation=0.5, eta=0.25)
    assert args.explores and found == expected
    assert EvalArgs(explore_correlation=0.0).explores  # nought is something said
    used = as_asked(planner(task_planner()), EvalArgs(first_std=0.5, step_noise=1.0)).config.diffusion
    assert used == dataclasses.replace(task_planner().diffusion, first_std=0.5, step_noise=1.0)
    assert EvalArgs(step_noise=0.0).chooses_noise and not EvalArgs(explore_std=0.1).chooses_noise
    assert with_first_std(planner(task_planner()), 0.5).config.diffusion.first_std == 0.5


def test_a_planner_of_whole_chunks_has_a_std_and_no_first_sample():
    chunks = planner(dataclasses.replace(task_planner(), net=NetConfig(kind="lstm")))
    found = exploring(chunks, EvalArgs(explore_std=0.07, explore_correlation=0.5)).config
    assert (found.gaussian.std, found.gaussian.correlation) == (0.07, 0.5)
    assert found.diffusion == chunks.config.diffusion
    with pytest.raises(ConfigError, match="explore_eta"):
        exploring(chunks, EvalArgs(explore_eta=0.25))
    with pytest.raises(ConfigError, match="first_std"):
        with_first_std(chunks, 0.5)
    with pytest.raises(ConfigError, match="final_noise"):
        with_noise(chunks, "step_noise", 0.5, "final_noise")
    with pytest.raises(ConfigError, match="final_noise"):
        with_noise(chunks, "step_noise", 0.0, "final_noise")  # which is what an unused field says


def test_noise_that_a_sampler_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"explore_eta=0\.5, .*ddpm"):
        exploring(planner(gym_planner()), EvalArgs(explore_eta=0.5))
    assert exploring(planner(gym_planner()), EvalArgs(explore_std=0.2)).config.diffusion.min_std == 0.2


def test_exploration_is_no_other_plan_in_use_unless_some_of_it_is_kept():
    given = planner(task_planner())
    louder = EvalArgs(explore_std=0.1, explore_correlation=0.5)
    assert alike(given, given) and alike(exploring(given, louder), given)
    assert not alike(with_first_std(given, 0.5), given)
    kept = with_noise(given, "step_noise", 0.5)
    assert alike(kept, kept) and not alike(kept, given) and not alike(exploring(kept, louder), kept)
    chunks = planner(dataclasses.replace(task_planner(), net=NetConfig(kind="lstm")))
    assert alike(exploring(chunks, louder), chunks)
