"""Expert of the transport: the pickup's, then back off, turn, walk, set down, let go."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from envs.core import State
from envs.experts import base
from envs.experts.base import Memory
from envs.experts.pickup import HALF, LIFT, PickupExpert
from envs.t1 import rotations
from envs.tasks.command import encode

Array = jax.Array
BACK, CARRY, HALT, LOWER, OPEN = range(LIFT + 1, LIFT + 6)
OPEN_APART = 0.12  # hands that have let go are that far outside the sides [m]
CARRY_AT = (0.33, 0.0, 0.10)  # middle of the carried box, trunk frame [m]
SLOW = (0.2, 0.08, 0.22)  # fastest with a box in the hands: ahead, aside [m/s], turning [rad/s]
STREAM = 0x1A9D  # of how hands are turned, apart from what every expert draws from the same key
INWARD = ((0.2, 0.05), (0.3, 0.15))  # least and most, of fingertips and lower edges [rad]
BACK_OFF = 0.35  # first away from the table, so that the box clears it when the robot turns [m]


class TransportExpert(PickupExpert):
    """See `envs.experts.base.Expert`."""

    errors = 0.5  # larger ones drop five boxes of six on the way

    def start(self, key: Array, state: State) -> Memory:
        """As the pickup's, with palms that stay flat on the box.

        Squeezing turns the hands outward; left so, forearms bear on the box, and it slides out of palms that touch with a corner.
        """
        memory = super().start(key, state)
        low, high = jnp.asarray(INWARD)
        inward = jax.random.uniform(jax.random.fold_in(key, STREAM), (2,), minval=low, maxval=high)
        return memory.replace(habits=memory.habits.replace(inward=inward))

    def act(self, memory: Memory, state: State) -> tuple[Memory, Array]:
        """One planner action."""
        memory = base.wander(memory)
        task, habits, view = self.task, memory.habits, self.env.view(state)
        world = state.task.world
        pose = task.box_pose(view)
        at, slow = view.measured.base, jnp.asarray(SLOW)

        # Stages after the lift; the pickup's own transitions leave them alone.
        clock, stage = memory.clock, memory.stage
        away = jnp.array([-0.20 - BACK_OFF, 0.0, 0.0]).at[1].set(at[1])
        back_velocity, back_error = base.walk_to(away, at, memory, slow)
        goal = task.place_place(world)
        carry_velocity, error = base.walk_to(goal, at, memory, slow)
        # Turn first, on the spot: walking sideways with a box is slow.
        carry_velocity = jnp.where(jnp.abs(error[2]) > 0.5, carry_velocity * jnp.array([0.0, 0.0, 1.0]), carry_velocity)
        there = jnp.all(jnp.abs(error) < jnp.array([0.04, 0.05, 0.1]))
        # The hands make up for 6 cm aside.  Judged once it stands: the sway of the last steps is not where it will end up.
        off = jnp.any(jnp.abs(error) > jnp.array([0.09, 0.12, 0.25]))
        standing = ~base.walking(state)
        lowered = task.height(view) < 0.008
        # The table's height in the hands' frame: where the box's middle ends.
        box = view.local(pose[:3])
        floor = box[2] - task.height(view)
        nxt = jnp.select(
            [
                (stage == LIFT) & (task.height(view) > 0.09) & (clock > 0.8),
                (stage == BACK) & (jnp.abs(back_error[0]) < 0.06),
                (stage == CARRY) & there,
                (stage == HALT) & standing & off,
                (stage == HALT) & standing & (clock > 0.3 + habits.pause),
                (stage == LOWER) & lowered & (clock > 0.4),
            ],
            [BACK, CARRY, HALT, CARRY, LOWER, OPEN],
            stage,
        )
        later = nxt > LIFT
        grasping, command = self.grasp(memory, state)
        memory = jax.tree.map(lambda a, b: jnp.where(later, a, b), base.enter(memory, nxt), grasping)

        low = jnp.minimum(memory.anchor[2], floor)
        # Over the goal itself, as far as the arms reach without the trunk having to follow.
        target = task.goal_pose(world)
        over = view.local(jnp.stack([target[0], target[1], pose[2]]))
        over = jnp.clip(over[:2], jnp.array([0.30, -0.06]), jnp.array([0.42, 0.06]))
        middle = jnp.where(nxt >= HALT, jnp.append(over, CARRY_AT[2]), jnp.asarray(CARRY_AT))
        middle = jnp.where(nxt >= LOWER, middle.at[2].set(low - 0.01), middle)
        pos, rot = base.beside(middle, memory.anchor[3], HALF, habits.squeeze, habits.inward)
        # A carried box is turned and moved slowly, or it slips; hands that have let go stay where the box is.
        box_yaw = rotations.wrap_angle(rotations.yaw_of(pose[3:]) - at[3])
        open_pos, open_rot = base.beside(box, box_yaw, HALF, -OPEN_APART, jnp.zeros(2))
        pos, rot = jnp.where(nxt == OPEN, open_pos, pos), jnp.where(nxt == OPEN, open_rot, rot)
        speed = jnp.where(nxt == LOWER, 0.08, jnp.where(nxt == OPEN, 0.3, 0.15))
        hands = base.toward(memory.hands, pos, speed)
        hands = jnp.where(later, hands, command.hand_pos)
        velocity = jnp.select([nxt == BACK, nxt == CARRY], [back_velocity, carry_velocity], 0.0)
        velocity = jnp.where(later, velocity, command.velocity)
        rot = jnp.where(later, rot, command.hand_rot)
        return memory.replace(hands=hands), encode(base.command(velocity, hands, rot))
