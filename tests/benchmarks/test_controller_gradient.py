"""The controller's gradient by groups of environments: it points where the reward is, and groups are kept apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import controller_gradient
from rdp_jax.algos import joint, ppo
from rdp_jax.types import Transition

CONFIG = ppo.PPOConfig(minibatches=4, actor_sizes=(8,), critic_sizes=(8,))
STEPS, EACH = 8, 16


def rollout(wish):
    """Of `wish (B,)`: what each environment pays for, the action's own sign."""
    envs = wish.shape[0]
    key = jax.random.key(0)
    actor = ppo.mlp.GaussianActor(1, (8,), 0.5).init(key, jnp.zeros((1, 3)))["params"]
    part = joint.part_state(key, CONFIG, {"actor": actor, "normalizer": ppo.normalize.create(3)}, 3)
    obs = jax.random.normal(jax.random.key(1), (STEPS, envs, 3))
    mean, log_std = ppo.mlp.apply_actor(actor, ppo.normalize.apply(part.normalizer["actor"], obs))
    action = mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(2), mean.shape)
    yes, no = jnp.ones((STEPS, envs), bool), jnp.zeros((STEPS, envs), bool)
    both = {"actor": obs, "critic": obs}
    data = Transition(both, action, wish * (action - mean)[..., 0], yes, no, obs)
    return part, data, yes


def test_groups_that_want_the_same_agree_and_others_do_not():
    envs = EACH * controller_gradient.GROUPS
    for wish, lo, hi in ((jnp.ones(envs), 0.5, 1.0), (jnp.tile(jnp.array([1.0, -1.0]), envs // 2), -0.2, 0.2)):
        part, data, live = rollout(wish)
        rows, explained = controller_gradient.gradients(CONFIG, part, data, live)
        assert rows.shape[0] == controller_gradient.GROUPS and float(explained) < 0.5
        assert lo < controller_gradient.share(np.asarray(rows))[0] < hi
    # The first group is the first environments, and nobody else's.
    other = dataclasses.replace(data, action=data.action.at[:, EACH:].add(1.0))
    again, _ = controller_gradient.gradients(CONFIG, part, other, live)
    np.testing.assert_allclose(again[0], rows[0], rtol=1e-5)
    assert not np.allclose(again[1], rows[1])


def test_what_is_summed():
    found = controller_gradient.summed([((0.2, 0.1), 0.5), ((0.4, 0.1), 0.7)])
    assert abs(found["share"] - 0.3) < 1e-9 and abs(found["explained_variance"] - 0.6) < 1e-9
    assert abs(found["standard_error"] - 0.1 / np.sqrt(2.0)) < 1e-9


def test_a_joint_run_in_which_only_critics_learn(capsys):
    refining = controller_gradient.ControllerGradientArgs(task="door", first_std=0.5, seed=3).refining()
    assert (refining.task, refining.first_std, refining.seed) == ("door", 0.5, 3)
    assert refining.controller_parts == "both"  # a part that does not explore has no gradient
    assert refining.controller.critic_warmup > 10**5 and {refining.schedule.phase(i) for i in range(9)} == {
        "controller"
    }
    assert controller_gradient.main(["--recorded", "12"]) == 2
    assert "recorded=12, allowed: a multiple of 8" in capsys.readouterr().err
