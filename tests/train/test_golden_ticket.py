"""The search for the best constant noise, on candidates whose worth is known."""

import numpy as np
import pytest

from train.dsrl import EPISODES_PER_TICKET, best_ticket


class Fair:
    """Candidate `best` wins 9 of 10 starts, all others every second, except that `lucky` wins all of the first eight."""

    def __init__(self, best, lucky):
        self.best, self.lucky, self.rounds = best, lucky, []

    def __call__(self, candidates, starts):
        self.rounds.append((candidates, starts))
        good = (candidates == self.best) & (starts % 10 != 9)
        return good | (starts % 2 == 0) | ((candidates == self.lucky) & (starts < EPISODES_PER_TICKET))


@pytest.mark.parametrize("count", [2, 8, 19, 32])
def test_luck_in_the_first_round_does_not_win(count):
    play = Fair(best=1, lucky=0)
    best, success = best_ticket(count, play)
    assert best == 1 and success > 0.85
    (_, first), (last, starts) = play.rounds
    assert len(first) == count * EPISODES_PER_TICKET >= len(starts)
    assert set(np.unique(last)) <= set(range(count)) and len(np.unique(last)) == max(2, count // 8)
    assert not set(first) & set(starts)  # new starts
    for candidate in np.unique(last):  # the same for each
        np.testing.assert_array_equal(starts[last == candidate], np.unique(starts))
