"""Evaluation in several batches."""

import numpy as np

from train.rollouts import MEANS, Played, Tally, evaluate


class Batches:
    """As much of a `train.rollouts.EpisodeRunner` as `evaluate` asks for: every other episode is won, all take ten steps."""

    def play(self, key, numbers, env_params, player_params, progress):
        count = len(numbers)
        progress(Tally(0, 0, 5 * count, 0.5))
        progress(Tally(count, int((numbers % 2 == 0).sum()), 10 * count, 1.0))
        lost = np.zeros(count, bool)
        return Played(
            success=numbers % 2 == 0,
            fall=lost,
            drop=lost,
            steps=np.full(count, 10),
            stage=np.zeros(count, np.int32),
            means={name: np.zeros(count) for name in MEANS},
            seed=numbers,
        )


def test_progress_counts_the_batches_before():
    told = []
    played = evaluate(Batches(), 0, 10, None, at_once=4, progress=told.append)
    np.testing.assert_array_equal(played.seed, np.arange(10))
    assert told == [
        (0, 0, 20, 0.2),
        (4, 2, 40, 0.4),
        (4, 2, 60, 0.6),
        (8, 4, 80, 0.8),
        (8, 4, 90, 0.9),
        (10, 5, 100, 1.0),
    ]
