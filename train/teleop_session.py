"""Episodes that a person plays: one robot, stepped on demand, recorded as `rdp collect` records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import mujoco
import numpy as np

from envs.core import State
from envs.tasks.command import ACTION_DIM
from envs.tasks.hierarchy import METRICS, Hierarchy
from train import teleop_input as T
from train.replay import Marker, Replay, body_poses
from train.rollouts import MEANS, Played, start_keys

READY, RUNNING, PAUSED, ENDED, DONE = "ready", "running", "paused", "ended", "done"
BUTTONS_OF_THE_PAGE = (*T.COMMANDS, "finish")
TARGETS = (("left palm's target", "#e11d8f"), ("right palm's target", "#0ea5e9"))


class Robot:
    """One robot in a task's environment, compiled once.

    Args:
      env: the environment.
      params: its parameters.
    """

    def __init__(self, env: Hierarchy, params: Any):
        self.env, self.params = env, params
        self._reset = jax.jit(lambda key, params: _told(env.reset(key, params)))
        self._step = jax.jit(lambda state, action, params: _told(env.step(state, action, params)))
        # Here, so that nobody's first step waits for the compiler.
        self.step(self.reset(jax.random.key(0))[0], np.zeros(ACTION_DIM, np.float32))

    def reset(self, key: jax.Array) -> tuple[State, dict[str, Any]]:
        """A start, and what of it is needed on the host (`_told`)."""
        return self._fetch(self._reset(key, self.params))

    def step(self, state: State, action: np.ndarray) -> tuple[State, dict[str, Any]]:
        """After `action (23,)`, likewise."""
        return self._fetch(self._step(state, action, self.params))

    @staticmethod
    def _fetch(result: tuple[State, Any]) -> tuple[State, dict[str, Any]]:
        return result[0], jax.device_get(result[1])


class Session:
    """The episode under way and what to do about it.  One caller at a time.

    An episode is `ready` until the first input moves something, then `running` (each `step` is one action), `paused` in between,
    and `ended` when the task says so.  `keep` hands it on; without that nothing of it remains.

    Args:
      robot: who plays.
      key: of the stream of starts.
      store: takes a kept episode and the counts `{"tried", "won", "next"}`; returns how many are kept by now.
      wanted: episodes to keep; then the session is `done`.
      counts: those of earlier calls, and `kept` of all.
      keep_all: whether an episode that has not succeeded may be kept.
    """

    def __init__(
        self,
        robot: Robot,
        key: jax.Array,
        store: Callable[[Played, Mapping[str, int]], int],
        wanted: int,
        counts: Mapping[str, int] | None = None,
        keep_all: bool = False,
    ):
        self.robot, self.env, self.key, self.store = robot, robot.env, key, store
        self.wanted, self.keep_all = wanted, keep_all
        found = {"tried": 0, "won": 0, "next": 0, "kept": 0, **(counts or {})}
        self.tried, self.won, self.number, self.kept = (found[k] for k in ("tried", "won", "next", "kept"))
        self.total_steps = 0
        self.inputs, self.aim = T.Inputs(), T.aim_from(np.zeros((2, 3)))
        self._given: np.ndarray | None = None
        self._begin()
        markers = [Marker(name, "sphere", p, None, 0.022, color) for (name, color), p in zip(TARGETS, self._targets())]
        model, dt = self.env.control.model, self.env.spec.control_dt
        self._replay = Replay(model, self._now["qpos"][None], 1.0 / dt, markers=markers)
        self.scene = self._replay.to_dict()
        if self.kept >= wanted:
            self.phase = DONE

    def _begin(self) -> None:
        """The start of the present number."""
        self.state, self._now = self.robot.reset(start_keys(self.key, np.array([self.number]))[0])
        self.aim = dataclasses.replace(T.aim_from(self._now["hands"]), active=self.aim.active)
        self.phase, self.outcome = READY, ""
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._sums = dict.fromkeys(MEANS, 0.0)
        self._fresh = True

    # --- what is asked ---------------------------------------------------------------------------------------------------

    def hear(self, message: Mapping[str, Any]) -> None:
        """Takes in one message of a client.

        Args:
          message: any of `do`, one of `BUTTONS_OF_THE_PAGE`; `keys`, `axes`, `buttons` as in `teleop_input.read`; or, for a
            program or another device, `action`, the `(23,)` numbers of the planner's action itself.

        Raises:
          InputError: a field is not what is allowed, or the command is not possible now; the session stays as it was.
        """
        unknown = set(message) - {"do", "keys", "axes", "buttons", "action"}
        if unknown:
            name = sorted(unknown)[0]
            raise T.InputError(f"{name}={message[name]!r}, allowed: do, keys, axes, buttons, action")
        given = _action(message["action"]) if "action" in message else None
        inputs = T.read(message)
        if "do" in message:
            self._do(message["do"])
        self.inputs, self._given = inputs, given
        if self.phase == READY and (given is not None or not inputs.idle):
            self.phase = RUNNING

    def pause(self) -> None:
        """Holds an episode that is running, as when nobody is there."""
        self.phase = PAUSED if self.phase == RUNNING else self.phase
        self.inputs, self._given = T.Inputs(), None

    def _do(self, what: Any) -> None:
        if what not in BUTTONS_OF_THE_PAGE:
            raise T.InputError(f"do={what!r}, allowed: {', '.join(BUTTONS_OF_THE_PAGE)}")
        if self.phase == DONE:
            return
        if what == "hands":
            self.aim = T.next_hands(self.aim)
        elif what == "pause":
            self.phase = {RUNNING: PAUSED, PAUSED: RUNNING}.get(self.phase, self.phase)
        elif what == "keep":
            self._keep()
        elif what == "finish":
            self.finish()
        else:
            self._leave()
            self.number += what == "discard"
            self._begin()

    def _keep(self) -> None:
        won = self.outcome == "won"
        if not self._rows or not (won or self.keep_all):
            allowed = "after an episode was won" + (", or with --keep-all" if self._rows else "")
            raise T.InputError(f"do='keep', allowed: {allowed}")
        played, number = self.played(), self.number
        counts = {"tried": self.tried + 1, "won": self.won + won, "next": number + 1}
        # Stored before it is forgotten here: if the disk is full, the episode is still at hand.
        self.kept = self.store(played, counts)
        self._leave()
        self.number = number + 1
        if self.kept >= self.wanted:
            self.phase = DONE
        else:
            self._begin()

    def _leave(self) -> None:
        """Counts the episode, once it is over one way or another."""
        self.tried += bool(self._rows)
        self.won += self.outcome == "won"
        self._rows = []

    def finish(self) -> None:
        """Nothing more is played; what was not kept is gone."""
        if self.phase != DONE:
            self.number += bool(self._rows)
            self._leave()
            self.phase = DONE

    @property
    def counts(self) -> dict[str, int]:
        """Of all that was played, earlier calls included: what a later call begins with."""
        return {"tried": self.tried, "won": self.won, "next": self.number}

    # --- what happens ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One action of the inputs heard last.  Raises `RuntimeError` unless running."""
        if self.phase != RUNNING:
            raise RuntimeError(f"a step while {self.phase}")
        if self._given is None:
            self.aim, action = T.to_action(self.aim, self.inputs, self.env.spec.control_dt)
        else:
            action = self._given
            hands = np.clip(action[3:21].reshape(2, 9)[:, :3], T.LOW, T.HIGH)
            self.aim = dataclasses.replace(self.aim, hands=hands, grip=np.clip(action[21:], 0.0, 1.0))
        self._rows.append((self._now["frame"], action, self._now["qpos"]))
        self.state, self._now = self.robot.step(self.state, action)
        self.total_steps += 1
        for name in MEANS:
            self._sums[name] += float(self._now["metrics"][name])
        if self._now["over"]:
            self.phase, self.outcome = ENDED, self.played().ending(0)

    def played(self) -> Played:
        """The episode so far, as one of `train.rollouts.EpisodeRunner`'s."""
        metrics, steps = self._now["metrics"], len(self._rows)
        frames, actions, qpos = (np.stack(track)[:, None] for track in zip(*self._rows, strict=True))

        def one(x, kind):
            return np.array([x], kind)

        return Played(
            success=one(metrics["success"] > 0.5, bool),
            fall=one(metrics["fall"] > 0.5 or self._now["broken"], bool),
            drop=one(metrics["drop"] > 0.5, bool),
            steps=one(steps, np.int32),
            stage=one(metrics["stage"], np.int32),
            means={name: one(self._sums[name] / steps, np.float64) for name in MEANS},
            seed=one(self.number, np.int64),
            frames=frames,
            actions=actions,
            qpos=qpos,
        )

    # --- what is shown ---------------------------------------------------------------------------------------------------

    def _targets(self) -> np.ndarray:
        """`(2, 3)` palm targets, world [m]."""
        qpos, found = self._now["qpos"].astype(np.float64), np.zeros((2, 3))
        for i, hand in enumerate(self.aim.hands.astype(np.float64)):
            mujoco.mju_rotVecQuat(found[i], hand, qpos[3:7])
        return found + qpos[:3]

    def show(self) -> dict[str, Any]:
        """The state for a page, in JSON types: `phase`, `outcome`, `stage`, counts, seconds, and poses `(B * 7)` in the order of
        the bodies of `scene`; `fresh` where they have nothing to do with the ones shown before."""
        pos, quat = body_poses(self.env.control.model, self._now["qpos"][None], self._replay.ids)
        dt, spec = self.env.spec.control_dt, self.env.spec
        fresh, self._fresh = self._fresh, False
        return {
            "phase": self.phase,
            "outcome": self.outcome,
            "number": self.number,
            "step": len(self._rows),
            "seconds": round(len(self._rows) * dt, 2),
            "limit": round(spec.episode_steps * dt, 2),
            "stage": self.env.task.stages[int(self._now["metrics"]["stage"])],
            "kept": self.kept,
            "wanted": self.wanted,
            "may_keep": bool(self._rows) and (self.keep_all or self.outcome == "won"),
            "hands": self.aim.active,
            "poses": np.concatenate([pos[0], quat[0]], axis=1).reshape(-1).round(5).tolist(),
            "targets": self._targets().round(4).tolist(),
            "fresh": fresh,
        }


def _told(state: State) -> tuple[State, dict[str, Any]]:
    """A state, and what of it is needed on the host."""
    broken = state.physics.diverged
    return state, {
        "frame": state.task.history[-1],
        "qpos": state.physics.qpos,
        "hands": state.task.inner.task.command.hand_pos,
        "metrics": {name: state.metrics[name] for name in METRICS},
        "broken": broken,
        "over": state.terminated | state.truncated | broken,
    }


def _action(values: Any) -> np.ndarray:
    found = T.numbers(values, "action")
    if len(found) != ACTION_DIM:
        raise T.InputError(f"action={values!r:.200}, allowed: {ACTION_DIM} numbers")
    return np.asarray(found, np.float32)
