"""`rdp teleop`: demonstrations of a person, by keyboard or gamepad in a browser."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from envs.tasks.base import PLANNER_DT
from envs.tasks.command import ACTION_LAYOUT
from envs.tasks.hierarchy import Hierarchy
from rdp_jax.data import episodes as E
from train import output
from train.demonstrations import FILE, check_recipe, from_played, held, made_with, noted, recipe_of, taken
from train.rollouts import Played
from train.task_args import TeleopArgs
from train.tasks import HumanoidStage
from train.teleop_page import page
from train.teleop_server import Server, listen
from train.teleop_session import Robot, Session

STREAM = 0x7E1E
"""Folded into the seed of the starts: no other command plays them."""


class Shelf:
    """The file that kept episodes go to, each one as soon as it is kept.

    A directory that `rdp collect` filled may be gone on with, if task, starts, physics and controller are the same; its recipe
    then says that it is mixed, and `rdp collect` does not go on with it.

    Args:
      args: of the command.  Raises `ConfigError` where `--out` may not be used, `DataError` for a file that cannot be.
    """

    def __init__(self, args: TeleopArgs):
        assert args.out is not None
        self.args, self.path = args, args.out / FILE
        own = {"seed": args.seed, "keep_all": args.keep_all}
        self.kept = held(args.out, args.resume)
        shared = {"task": args.task, "start_range": args.start_range, "physics_dt": args.physics_dt, **made_with(args)}
        self.recipe: dict[str, Any] = {**shared, "teleop": own}
        self.metadata: Mapping[str, Any] = self.kept.metadata if self.kept else {}
        if self.kept:
            theirs = recipe_of(self.kept)
            # What the expert's own recipe says besides, how its batches were played, means nothing to a person.
            check_recipe(args.out, {k: theirs.get(k, own if k == "teleop" else None) for k in self.recipe}, self.recipe)
            self.recipe = {**theirs, **self.recipe}

    @property
    def counts(self) -> dict[str, int]:
        """Of earlier calls, as `Session` wants them."""
        return {**self.metadata.get("teleop", {}), "kept": len(self.kept) if self.kept else 0}

    def check_fits(self, env: Hierarchy) -> None:
        """Raises `DataError` now, rather than when the first episode is kept, if its arrays would not go with those held."""
        told = {
            k: [list(pair) for pair in v]
            for k, v in (("observations", env.frame_layout.items()), ("actions", ACTION_LAYOUT.items()))
        }
        for name, ours in told.items():
            if self.kept and self.metadata.get(name) != ours:
                raise E.DataError(f"{self.path}: {name} {self.metadata.get(name)}, expected {ours}")
        if self.kept and set(self.kept.extras) != {"qpos"}:
            raise E.DataError(f"{self.path}: extras {sorted(self.kept.extras)}, expected ['qpos']")

    def add(self, env: Hierarchy, played: Played, counts: Mapping[str, int]) -> int:
        """Saves one more episode; returns how many there are.

        Args:
          env: where it was played.
          played: one recorded episode.
          counts: `{"tried", "won", "next"}` of all of the person's episodes so far.
        """
        fresh = from_played(env, played, np.array([0]), self.recipe)
        assert fresh is not None
        return self._save(E.concatenate([self.kept, fresh]) if self.kept else fresh, counts)

    def close(self, counts: Mapping[str, int]) -> None:
        """Saves the counts once more, as episodes may have been lost since the last one was kept; nothing where none is."""
        if self.kept and dict(counts) != self.metadata.get("teleop", {"tried": 0, "won": 0, "next": 0}):
            self._save(self.kept, counts)

    def _save(self, kept: E.Episodes, counts: Mapping[str, int]) -> int:
        before = self.metadata.get("teleop", {"tried": 0, "won": 0})
        totals = {k: int(self.metadata.get(k, 0)) + counts[k] - before[k] for k in ("tried", "won")}
        kept = noted(kept, recipe=self.recipe, teleop=dict(counts), **totals)
        E.save(self.path, kept, overwrite=True)
        self.kept, self.metadata = kept, kept.metadata
        return len(kept)


def run_teleop(args: TeleopArgs) -> dict[str, Any]:
    """Serves the page until enough episodes are kept, or the person has had enough.

    Raises `RunError` where another process fills the directory.
    """
    start = time.monotonic()
    assert args.out is not None
    with taken(args.out):
        return _serve(args, start)


def _serve(args: TeleopArgs, start: float) -> dict[str, Any]:
    shelf = Shelf(args)
    listening = listen(args.port)
    try:
        stage = HumanoidStage(args)
        env = stage.env
        shelf.check_fits(env)
        key = jax.random.fold_in(jax.random.key(args.seed), STREAM)
        store = functools.partial(shelf.add, env)
        session = Session(Robot(env, stage.params), key, store, args.episodes, shelf.counts, args.keep_all)
        found = page(args.task, session.scene, listening.getsockname()[1])
        with Server(session, found, listening, PLANNER_DT) as server:
            print(f"rdp teleop: {server.address} (this machine only); Ctrl-C ends", file=sys.stderr, flush=True)
            try:
                server.wait()
            except KeyboardInterrupt:
                print("rdp teleop: ended; what was kept is saved", file=sys.stderr)
    finally:
        listening.close()
    session.finish()
    shelf.close(session.counts)
    tried, won, kept = session.tried, session.won, session.kept
    facts = E.summary(shelf.kept) if shelf.kept else {"steps": 0, "mean_length": None}
    metrics = {
        "episodes": tried,
        "kept": kept,
        "success_rate": won / tried if tried else None,
        "success_ci95": list(output.wilson(won, tried)),
        "steps": facts["steps"],
        "mean_length": facts["mean_length"],
    }
    return output.summary(
        "teleop",
        seed=args.seed,
        backend=env.physics.name,
        num_envs=1,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=session.total_steps,
    )
