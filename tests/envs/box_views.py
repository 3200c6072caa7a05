"""Made-up views of tasks with a box."""

import jax.numpy as jnp


def placed(env, state, **changes):
    """The view with the box (and task state) somewhere else; hands on both sides of it unless `hands` says otherwise."""
    view = env.view(state)
    pose = changes.get("box", jnp.asarray([0.2, 0.0, env.task.top + 0.4, 1, 0, 0, 0], jnp.float32))
    qpos = view.physics.qpos.at[env.task.box].set(pose)
    qvel = view.physics.qvel.at[env.task.box_vel[0]].set(changes.get("speed", 0.0))
    view = view.replace(physics=view.physics.replace(qpos=qpos, qvel=qvel))
    aside = jnp.array([[0.0, 0.12, 0.0], [0.0, -0.12, 0.0]])
    hands = changes.get("hands", view.local(pose[:3]) + aside)
    return view.replace(measured=view.measured.replace(hand_pos=hands))
