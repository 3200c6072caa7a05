"""Expert of the stairs: line up before the ledge, walk up, stand, then as the pickup's; from the floor again if need be."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs.core import State
from envs.experts import base
from envs.experts.base import Memory
from envs.experts.pickup import HALF, LIFT, WALK, PickupExpert
from envs.tasks.command import encode

Array = jax.Array
APPROACH, CLIMB, TOP = range(LIFT + 1, LIFT + 4)
TOLERANCE = (0.035, 0.06, 0.08)  # of the place before the ledge: ahead [m], aside [m], heading [rad]
CLIMB_SPEED = 0.35  # fastest forward while climbing [m/s]
CLIMB_SIDE, CLIMB_TURN = 0.045, 0.08  # what it corrects meanwhile at most, as the legs are trained [m/s, rad/s]
IN_VAIN = 6.0  # seconds of climbing without a foot up, after which it lines up again
PATIENCE = 2.5  # seconds on the way to a place after which less and less exactness will do
CARRIED = 0.04  # height of the hands on the way up, trunk frame [m]


class StairsExpert(PickupExpert):
    """See `envs.experts.base.Expert`."""

    def start(self, key: Array, state: State) -> Memory:
        """On the floor."""
        return super().start(key, state).replace(stage=jnp.int32(APPROACH))

    def patience(self, memory: Memory) -> Array:
        """Grows: legs that are trained to climb may step on the spot when asked for a few centimetres."""
        return jnp.clip(memory.clock / PATIENCE, 1.0, 2.0)

    def ascend(self, memory: Memory, place: Array, at: Array, up: Array, standing: Array) -> tuple[Array, Array]:
        """The stages around the climb; those of the pickup are left alone, unless the robot is on the floor again.

        Args:
          memory: of the expert.
          place: `(3,)` x, y and heading of the trunk where it lines up before the ledge.
          at: `(4,)` trunk, world.
          up: `(2,)` bool, which feet are on the platform.
          standing: `()` bool, the gait's clock does not run.

        Returns:
          The next stage, and the velocity command `(3,)` in it.
        """
        stage, clock = memory.stage, memory.clock
        _, error = base.walk_to(place, at, memory)
        # The gait steps up as soon as a foot can reach: badly aligned, the robot stays further back.
        aligned = (jnp.abs(error[1]) < 0.1) & (jnp.abs(error[2]) < 0.15)
        to_ledge, _ = base.walk_to(base.behind(place, jnp.where(aligned, 0.0, 0.15)), at, memory)
        there = jnp.all(jnp.abs(error) < self.patience(memory) * jnp.asarray(TOLERANCE))
        # It does not halt before the ledge: in a climb out of standing the weight stays behind, and the robot falls back.
        nxt = jnp.select(
            [
                (stage == WALK) & ~jnp.any(up),
                ((stage == APPROACH) | (stage == CLIMB)) & jnp.all(up),
                (stage == APPROACH) & (there | jnp.any(up)),
                (stage == CLIMB) & ~jnp.any(up) & (clock > IN_VAIN),
                (stage == TOP) & standing & (clock > 0.2 + memory.habits.pause),
            ],
            [APPROACH, TOP, CLIMB, APPROACH, WALK],
            stage,
        )
        climb = jnp.stack(
            [
                CLIMB_SPEED * memory.habits.speed,
                jnp.clip(error[1], -CLIMB_SIDE, CLIMB_SIDE),
                jnp.clip(error[2], -CLIMB_TURN, CLIMB_TURN),
            ]
        )
        return nxt, jnp.select([nxt == APPROACH, nxt == CLIMB], [to_ledge, climb], 0.0)

    def act(self, memory: Memory, state: State) -> tuple[Memory, Array]:
        """One planner action."""
        memory = base.wander(memory)
        task, habits, view = self.task, memory.habits, self.env.view(state)
        place = task.first_place(task.box_pose(view))
        nxt, velocity = self.ascend(memory, place, view.measured.base, task.climbed(view), ~base.walking(state))
        here = nxt > LIFT
        # The pickup starts in its first stage whenever the way up has ended.
        handed = memory.replace(stage=jnp.where(memory.stage > LIFT, WALK, memory.stage))
        grasping, command = self.grasp(handed, state)
        memory = jax.tree.map(lambda a, b: jnp.where(here, a, b), base.enter(memory, nxt), grasping)

        carried = base.ready(CARRIED + habits.offset[2], HALF)
        hands = base.toward(memory.hands, carried, 1.5 * habits.hand_speed)
        hands = jnp.where(here, hands, command.hand_pos)
        velocity = jnp.where(here, velocity, command.velocity)
        rot = jnp.where(here, base.STRAIGHT, command.hand_rot)
        return memory.replace(hands=hands), encode(base.command(velocity, hands, rot))
