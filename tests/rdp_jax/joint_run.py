"""A run of the joint learner in a process of its own, to be killed: `python joint_run.py OUT ITERATIONS [NUMBER AT]`.

It goes on from what OUT holds.  In the middle of iteration AT (counted from 0) the process sends itself the signal NUMBER, from inside
the compiled rollout.  Prints each iteration that it has finished, and saves at the end only.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from layered_toy import WISH, Layered, Made

from rdp_jax.algos import loop
from rdp_jax.runs import Run


class Deadly(Layered):
    """Asks before each step whether it may go on."""

    def step_recorded(self, state, action, params, noise):
        after, ticks = super().step_recorded(state, action, params, noise)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        nothing = jax.pure_callback(send, shape, params.signal, vmap_method="sequential")
        return after.replace(reward=after.reward + nothing), ticks


def send(number):
    """Sends it to this process, unless it is 0."""
    if number:
        os.kill(os.getpid(), int(number))
    return np.float32(0.0)


class Joint:
    """The learner, compiled once."""

    def __init__(self):
        self.toy = Made(env=Deadly(), rehearsed=-WISH)
        self.update = self.toy.update()

    def run(self, out: Path, iterations: int, number: int = 0, at: int = -1, finished: Callable[[int], Any] = print):
        """See above; `finished` is told the iterations."""
        with Run(out, {"run": "joint_run"}, resume=out.exists()) as run:
            loop.train(
                self.update,
                run.restore(self.toy.start()),
                lambda iteration: self.toy.params.replace(signal=jnp.int32(number if iteration == at else 0)),
                loop.LoopConfig(iterations=iterations, save_every_s=1e9),
                run,
                progress=lambda p: finished(p.iteration),
            )


if __name__ == "__main__":
    Joint().run(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:]), finished=partial(print, flush=True))
