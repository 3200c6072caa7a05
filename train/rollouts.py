"""Playing episodes of a task from fresh starts, with an expert or a planner, and what came of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from envs.core import State
from envs.experts.base import Expert
from envs.experts.clumsy import Clumsy
from envs.physics.base import put_to_rest
from envs.tasks.hierarchy import METRICS, Hierarchy
from envs.wrappers import AutoReset
from rdp_jax.planner import Actor
from rdp_jax.starts import starts_of
from train import output

Array = jax.Array
EVALUATION_STREAM = 0xE7A1
"""Folded into the seed of every evaluation; no training does, so their starts are disjoint."""
MEANS = ("hand_position_error_m", "hand_orientation_error_rad", "hand_speed_mps")


class Player(Protocol):
    """Who chooses the actions: batched, pure."""

    def start(self, key: Array, states: State) -> Any:
        """Memory at the start of `(B,)` episodes."""
        ...

    def act(self, memory: Any, states: State, params: Any) -> tuple[Any, Array]:
        """New memory, and actions `(B, Da)` for one environment step; `params` is the player's own pytree."""
        ...

    def intended(self, memory: Any, action: Array) -> Array:
        """What to record for `action (B, Da)`, which was executed; `memory` is the new one."""
        ...


class ExpertPlayer:
    """A heuristic expert, vectorised."""

    def __init__(self, expert: Any):
        self.expert = expert

    def start(self, key: Array, states: State) -> Any:
        """Habits of each episode."""
        return jax.vmap(self.expert.start)(jax.random.split(key, states.reward.shape[0]), states)

    def act(self, memory: Any, states: State, params: Any) -> tuple[Any, Array]:
        """One action per episode."""
        del params
        return jax.vmap(self.expert.act)(memory, states)

    def intended(self, memory: Any, action: Array) -> Array:
        """What was executed."""
        del memory
        return action


class ClumsyPlayer(ExpertPlayer):
    """A heuristic expert that errs: what it executes has errors of that `scale`, what is recorded has none."""

    def __init__(self, expert: Expert, scale: float):
        super().__init__(Clumsy(expert, scale))

    def intended(self, memory: Any, action: Array) -> Array:
        """What the expert meant."""
        del action
        meant: Array = memory.intended
        return meant


class PlannerPlayer:
    """A diffusion (or other) planner: a new chunk every `Te` steps, executed open loop; `params` is `(bundle, base)`, or
    `(bundle, base, first_std)`."""

    def __init__(self, actor: Actor, explore: bool = False):
        self.actor, self.explore = actor, explore

    def start(self, key: Array, states: State) -> Any:
        """No chunk yet."""
        count, config = states.reward.shape[0], self.actor.config
        keys = jax.random.split(key, count)
        return keys, jnp.int32(0), jnp.zeros((count, config.executed, self.actor.dims.action))

    def act(self, memory: Any, states: State, params: tuple[Any, ...]) -> tuple[Any, Array]:
        """The next action of the present chunk."""
        (keys, index, chunk), (bundle, base, *first_std) = memory, params

        def plan(_):
            now = jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)
            obs = states.obs["actor"]
            return self.actor.act(bundle, base, obs, now, self.explore, *first_std).reshape(chunk.shape)

        chunk = jax.lax.cond(index % chunk.shape[1] == 0, plan, lambda _: chunk, None)
        return (keys, index + 1, chunk), chunk[:, index % chunk.shape[1]]

    def intended(self, memory: Any, action: Array) -> Array:
        """What was executed."""
        del memory
        return action


@dataclasses.dataclass(frozen=True)
class Played:
    """Outcome of `E` episodes, on the host.

    Attributes:
      success, fall, drop: `(E,)` bool; none of them: time ran out.
      steps: `(E,)` int32 environment steps; stage `(E,)` int32 furthest stage reached.
      means: name -> `(E,)` mean over the steps.
      seed: `(E,)` int64 number of the episode.
      frames, actions, qpos: `(steps, E, ...)` if recorded; entries beyond an episode's `steps` mean nothing.
      reached: `(steps, E)` int32 furthest stage after each step, if recorded by `EpisodeRunner`.
    """

    success: np.ndarray
    fall: np.ndarray
    drop: np.ndarray
    steps: np.ndarray
    stage: np.ndarray
    means: dict[str, np.ndarray]
    seed: np.ndarray
    frames: np.ndarray | None = None
    actions: np.ndarray | None = None
    qpos: np.ndarray | None = None
    reached: np.ndarray | None = None

    def ending(self, episode: int) -> str:
        """How an episode ended, in words."""
        if self.success[episode]:
            return "won"
        if self.fall[episode]:
            return "fell"
        return "dropped it" if self.drop[episode] else "time ran out"

    def unrecorded(self) -> Played:
        """Its outcome alone."""
        return dataclasses.replace(self, frames=None, actions=None, qpos=None, reached=None)

    @staticmethod
    def join(parts: list[Played]) -> Played:
        """All episodes; recordings are dropped, unless there is but one part."""
        if len(parts) == 1:
            return parts[0]
        names = ("success", "fall", "drop", "steps", "stage", "seed")
        return Played(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names},
            means={name: np.concatenate([p.means[name] for p in parts]) for name in MEANS},
        )


class Tally(NamedTuple):
    """Episodes that have ended, those of them that were won, steps of the environment that were made, and the share of all the
    time that the episodes may take."""

    ended: int
    won: int
    steps: int
    share: float


def _tally(carry: Any, share: float) -> Tally:
    """Of what `EpisodeRunner` carries from block to block, after this share of the time limit."""
    ended, success, steps = jax.device_get((carry[2], carry[3]["success"], carry[5]))
    won = ended & (success > 0.5)
    return Tally(int(ended.sum()), int(won.sum()), int(steps.sum()), 1.0 if ended.all() else min(share, 1.0))


def start_keys(key: Array, numbers: np.ndarray) -> Array:
    """`(E,)` keys of the resets of episodes `numbers (E,)`; `key` is that of their stream."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[0], jnp.asarray(numbers, jnp.uint32))


class EpisodeRunner:
    """Plays batches of episodes of one environment with one kind of player; compiled once.

    Args:
      env: the environment.
      player: who plays.
      record: keep frames, actions, qpos and the stage of every step.
      block: environment steps per compiled call.
    """

    def __init__(self, env: Hierarchy, player: Player, record: bool = False, block: int = 8):
        self.env, self.player, self.record, self.block = env, player, record, block
        self._fresh = starts_of(AutoReset(env))  # type: ignore[arg-type]
        self._start = jax.jit(player.start)
        self._advance = jax.jit(self._steps, donate_argnums=0)

    def _steps(self, carry: Any, env_params: Any, player_params: Any) -> tuple[Any, Any]:
        def one(carry, _):
            states, memory, ended, metrics, sums, count = carry
            memory, action = self.player.act(memory, states, player_params)
            after = jax.vmap(self.env.step, in_axes=(0, 0, None))(states, action, env_params)
            broken = after.physics.diverged
            live = ~ended
            metrics = {name: jnp.where(live, after.metrics[name], metrics[name]) for name in METRICS}
            metrics["fall"] = jnp.where(live & broken, 1.0, metrics["fall"])
            sums = {name: sums[name] + jnp.where(live, after.metrics[name], 0.0) for name in MEANS}
            seen = ()
            if self.record:
                intended = self.player.intended(memory, action)
                seen = (self._frame(states), intended, states.physics.qpos, after.metrics["stage"].astype(jnp.int32))
            ended = ended | after.terminated | after.truncated | broken
            after = after.replace(physics=put_to_rest(after.physics, ended))
            return (after, memory, ended, metrics, sums, count + live), seen

        return jax.lax.scan(one, carry, None, length=self.block)

    def _frame(self, states: State) -> Array:
        return states.task.history[:, -1]

    def play(
        self,
        key: Array,
        numbers: np.ndarray,
        env_params: Any,
        player_params: Any = None,
        progress: Callable[[Tally], None] | None = None,
    ) -> Played:
        """Episodes `numbers (E,)`: starts depend on `key` and the number alone, what the player draws on the batch too."""
        states = self._fresh(start_keys(key, numbers), env_params)
        memory = self._start(jax.random.fold_in(jax.random.split(key)[1], int(numbers[0])), states)
        count = len(numbers)
        zero = jnp.zeros(count)
        carry = (
            states,
            memory,
            jnp.zeros(count, bool),
            dict.fromkeys(METRICS, zero),
            dict.fromkeys(MEANS, zero),
            jnp.zeros(count, jnp.int32),
        )
        carry = jax.tree.map(lambda x: jnp.array(x, copy=True), carry)
        recorded: list[Any] = []
        limit = self.env.spec.episode_steps
        for begun in range(0, limit, self.block):
            carry, seen = self._advance(carry, env_params, player_params)
            if self.record:
                recorded.append(jax.device_get(seen))
            if progress:
                progress(_tally(carry, (begun + self.block) / limit))
            if bool(carry[2].all()):
                break
        _, _, _, metrics, sums, steps = jax.device_get(carry)
        tracks: list[Any] = [None] * 4
        if self.record:
            tracks = [np.concatenate(track) for track in zip(*recorded, strict=True)]
        return Played(
            success=metrics["success"] > 0.5,
            fall=metrics["fall"] > 0.5,
            drop=metrics["drop"] > 0.5,
            steps=np.asarray(steps),
            stage=metrics["stage"].astype(np.int32),
            means={name: sums[name] / np.maximum(steps, 1) for name in MEANS},
            seed=np.asarray(numbers, np.int64),
            frames=tracks[0],
            actions=tracks[1],
            qpos=tracks[2],
            reached=tracks[3],
        )


def evaluate(
    runner: EpisodeRunner,
    seed: int,
    trials: int,
    env_params: Any,
    player_params: Any = None,
    at_once: int = 256,
    progress: Callable[[Tally], None] | None = None,
) -> Played:
    """`trials` episodes of the evaluation stream of `seed`."""
    key = jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM)
    parts: list[Played] = []
    for first in range(0, trials, at_once):
        numbers = np.arange(first, min(first + at_once, trials))
        before = (sum(int(part.success.sum()) for part in parts), sum(int(part.steps.sum()) for part in parts))

        def report_block(now: Tally, first: int = first, size: int = len(numbers), before: tuple = before) -> None:
            if progress:
                share = (first + now.share * size) / trials
                progress(Tally(first + now.ended, before[0] + now.won, before[1] + now.steps, share))

        part = runner.play(key, numbers, env_params, player_params, report_block)
        parts.append(part if trials <= at_once else part.unrecorded())  # thousands of recordings would fill the memory
    return Played.join(parts)


def report(env: Hierarchy, played: Played) -> dict[str, Any]:
    """The figures that `rdp eval` prints."""
    trials, won = len(played.success), int(played.success.sum())
    lost = ~played.success
    stages = env.task.stages
    furthest = {stages[i]: int(np.sum(lost & (played.stage == i))) for i in range(len(stages))}
    times = played.steps[played.success] * env.spec.control_dt
    return {
        "trials": trials,
        "success_rate": won / trials,
        "success_ci95": list(output.wilson(won, trials)),
        "completion_time_s": float(times.mean()) if won else None,
        "falls": int(played.fall.sum()),
        "drops": int(played.drop.sum()),
        "timeouts": int(np.sum(lost & ~played.fall & ~played.drop)),
        **{name: float(values.mean()) for name, values in played.means.items()},
        "failures_by_stage": {name: count for name, count in furthest.items() if count},
    }
