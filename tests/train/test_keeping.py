"""`--keep best`."""

import numpy as np
import pytest

from rdp_jax.config import ConfigError, validate
from train.keeping import CHOOSING, Best
from train.task_args import DSRLArgs, FinetuneArgs, RefineArgs


def tree(number):
    return {"layer": {"kernel": np.full((2, 3), number, np.float32)}}


def value(found):
    return float(np.asarray(found["layer"]["kernel"]).mean())


def args(tmp_path, **more):
    return FinetuneArgs(out=tmp_path, eval_every=1, **more)


@pytest.mark.parametrize(("scores", "kept"), [((0.5, 0.8, 0.6), 2), ((0.5, 0.8, 0.8), 3), ((0.9, 0.1, 0.2), 1)])
def test_the_best_is_kept_and_of_equals_the_latest(tmp_path, scores, kept):
    best = Best(args(tmp_path, keep="best"), tree(0))
    for iteration, score in enumerate(scores, start=1):
        logged = best.offer(iteration, {"score": score, "success_rate": score, "falls": 3}, tree(iteration))
        assert logged == {"success_rate": score}
    iteration, found = best.choose(3, tree(3))
    assert iteration == kept and value(found) == kept


def test_a_resumed_run_knows_the_best_so_far(tmp_path):
    Best(args(tmp_path, keep="best"), tree(0)).offer(4, {"score": 0.7}, tree(4))
    again = Best(args(tmp_path, keep="best", resume=True), tree(0))
    again.offer(5, {"score": 0.6}, tree(5))
    iteration, found = again.choose(5, tree(5))
    assert iteration == 4 and value(found) == 4


@pytest.mark.parametrize("other", [{"trials": 16}, {"final_std": (0.5, 0.0)}, {"final_noise": (1.0,)}])
def test_what_was_judged_in_another_way_is_no_match(tmp_path, other):
    Best(args(tmp_path, keep="best"), tree(0)).offer(4, {"score": 1.0}, tree(4))
    again = Best(args(tmp_path, keep="best", resume=True, **other), tree(0))
    again.offer(5, {"score": 0.6}, tree(5))
    iteration, found = again.choose(6, tree(6))
    assert iteration == 5 and value(found) == 5


def test_what_was_judged_in_another_way_is_better_than_what_nobody_judged(tmp_path):
    Best(args(tmp_path, keep="best"), tree(0)).offer(4, {"score": 0.9}, tree(4))
    again = Best(args(tmp_path, keep="best", resume=True, trials=16), tree(0))
    iteration, found = again.choose(6, tree(6))  # nothing was left to learn, or the next judgement never came
    assert iteration == 4 and value(found) == 4


def test_without_it_the_last_comes_out_and_nothing_is_written(tmp_path):
    best = Best(args(tmp_path), tree(0))
    best.offer(1, {"score": 1.0}, tree(1))
    iteration, found = best.choose(2, tree(2))
    assert iteration == 2 and value(found) == 2 and not list(tmp_path.iterdir())


def test_before_any_judgement_the_last_comes_out(tmp_path):
    iteration, found = Best(args(tmp_path, keep="best"), tree(0)).choose(1, tree(1))
    assert iteration == 1 and value(found) == 1


def test_starts_that_choose_are_not_those_of_the_final_judgement(tmp_path):
    assert Best(args(tmp_path), tree(0)).seed == 0  # the evaluations on the way are part of the result
    assert Best(args(tmp_path, keep="best"), tree(0)).seed == CHOOSING


@pytest.mark.parametrize("kind", [FinetuneArgs, RefineArgs, DSRLArgs])
def test_it_needs_judgements(kind):
    for more in ({}, {"eval_every": 2, "trials": 0}):
        with pytest.raises(ConfigError, match="keep"):
            validate(kind(keep="best", **more))
    validate(kind(keep="best", eval_every=2))
