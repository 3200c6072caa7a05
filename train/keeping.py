"""`--keep best`: what was judged best on the way comes out, as reinforcement learning gets worse as well as better."""

from __future__ import annotations

from typing import Any

import jax

from rdp_jax.checkpoint import load_weights, save_weights
from train.learning import scores
from train.sampling import FINAL
from train.task_args import Watched

CHOOSING = 2_000_000  # added to the seed: what is judged best on the starts that chose it would look better than it is
FILE = "best.safetensors"


class Best:
    """The weights with the best judgement so far, in `best.safetensors` of the run directory, where a resumed run finds them.

    Args:
      args: of the command; without `--keep best` nothing is kept.
      first: tree of what is learned, as it is before learning; its structure counts.

    Attributes:
      seed: of the starts for evaluations on the way: those of the final judgement, or others if they choose.
    """

    def __init__(self, args: Watched, first: Any):
        self.on = args.keep == "best"
        self.seed = args.seed + CHOOSING * self.on
        self.file = args.out / FILE if self.on and args.out else None
        self.tree, self.iteration, self.score = first, 0, float("-inf")
        final = {name: list(getattr(args, flag, ())[:1]) for flag, name in FINAL.items()}
        self.judged = {"trials": args.trials, **final}
        if self.file and args.resume and self.file.is_file():
            tree, found = load_weights(self.file, first)
            self.tree, self.iteration = tree, found["iteration"]
            # Else the scores to come are no match for its own, and the first of them wins.
            if found.get("judged") == self.judged:
                self.score = found["score"]

    def offer(self, iteration: int, figures: dict[str, Any], tree: Any) -> dict[str, float]:
        """Keeps `tree` if it is at least as good as the best; returns what is logged of `figures`, a judgement of it.

        The tree is on the host: what lies on a mesh would compile the judgement anew, and is donated to the next iteration.
        """
        if self.on and figures["score"] >= self.score:
            self.tree, self.iteration, self.score = tree, iteration, float(figures["score"])
            if self.file:
                save_weights(self.file, self.tree, {"iteration": iteration, "score": self.score, "judged": self.judged})
        return scores(figures)

    def choose(self, iteration: int, tree: Any) -> tuple[int, Any]:
        """The best, or `tree` of the last iteration where nothing was kept; with its iteration."""
        return (self.iteration, self.tree) if self.iteration else (iteration, jax.device_get(tree))
