"""Settings of planners and learners that presets of the commands stand for, with what they were measured by."""

from __future__ import annotations

from typing import Any

from rdp_jax.algos.dppo import DPPOConfig
from rdp_jax.algos.dsrl import DSRLConfig
from rdp_jax.algos.ppo import PPOConfig
from rdp_jax.diffusion.schedule import DiffusionConfig
from rdp_jax.nets.build import NetConfig
from rdp_jax.planner import PlannerConfig


def gym_planner() -> PlannerConfig:
    """The planner of DPPO's gym experiments (reference, section 6)."""
    return PlannerConfig(
        net=NetConfig(kind="mlp", sizes=(512, 512, 512), time_dim=16, activation="relu"),
        diffusion=DiffusionConfig(steps=20, sampler="ddpm", min_std=0.1),
        horizon=4,
        executed=4,
        history=1,
    )


def task_planner() -> PlannerConfig:
    """The planner of the T1 tasks: a small DiT, five DDIM steps of a hundred.

    Independent noise of 0.05 in the last step would be a centimetre of jitter in every hand target, ten times a second, and few
    boxes stay in the hands (docs/refine.md: `rdp eval --explore-std`); 0.02 keeps nearly all of the success to learn from.
    """
    return PlannerConfig(
        net=NetConfig(kind="dit", width=96, depth=3, heads=4, sizes=(256, 256, 256), activation="mish"),
        diffusion=DiffusionConfig(steps=100, sampler="ddim", ddim_steps=5, min_std=0.02),
    )


def task_dppo(preset: str) -> DPPOConfig:
    """DPPO on the T1 tasks: sparse reward, all five steps tuned and scored, each weighed by its std.

    The last two have a std of 0.025 and 0.02, and little of their gradient is signal.  Unweighed they drown the others; without
    them (`quiet_steps=2`) the door is learned fastest, and a box in two palms is dropped more often (docs/refine_log.md).
    A chunk has 184 scored numbers, and a clip of their mean log-ratio at 0.02 would be one of 3.7 for their sum: with it success
    fell from 0.76 to 0.05 within four iterations, and a fixed rate of 5e-5 is a KL of 2.7 nat in a single step.  So the rate is
    adapted to a KL per iteration (docs/refine.md), and where the first rate is too large the actor rests beyond twice that KL: on
    the transport the first iteration would else be one of 0.95 nat.
    Two passes over a rollout learn as much from it as four, at the rate that has the same KL, in less time (docs/refine.md).
    Time runs out for good (the critic sees it running out), so a truncation is the end.
    """
    common: dict[str, Any] = {
        "tuned_steps": 5,
        "gamma": 0.97,
        "gae_lambda": 0.8,
        "gamma_denoising": 0.9,
        "std_power": 1.0,
        "epochs": 2,
        "clip": 0.005,
        "clip_base": 0.005,
        "critic_warmup": 1,
        "actor_lr": 1.5e-5,
        "kl_goal": 0.15,
        "target_kl": 0.0,  # twice the goal, whatever it is
        # The reference's clamp of 2 would bind everywhere where the std is 0.02.
        "log_prob_max": 20.0,
        "log_prob_min": -50.0,
        "truncation": "terminal",
        "reward_scaling": False,
        "max_grad_norm": 1.0,
    }
    if preset == "gpu":
        return DPPOConfig(num_envs=2048, unroll_length=25, minibatches=20, reset_pool=1024, **common)
    return DPPOConfig(num_envs=256, unroll_length=24, minibatches=16, reset_pool=256, **common)


def residual_ppo() -> PPOConfig:
    """PPO of a correction: little noise, as each number of it moves a hand for a whole chunk.

    At the policy's rate, and from the usual scale, the critic explained less than nothing for five iterations of the door.
    """
    return PPOConfig(
        unroll_length=24,
        minibatches=8,
        gamma=0.97,
        lr=3e-4,
        lr_min=1e-5,
        lr_max=1e-3,
        critic_lr=1e-3,
        value_scale=0.01,
        init_std=0.3,
        entropy_coef=0.0,
        critic_warmup=1,
        reset_pool=256,
    )


def task_dsrl(preset: str) -> DSRLConfig:
    """DSRL on the T1 tasks: a chunk decides much, so few environments side by side and many updates for each of their steps."""
    # Within 0.5 every noise is about as good as the base's own, so that nothing is lost while the critics know little; an actor
    # that may go to 1.5 went below the base for a while (docs/dsrl.md).
    bound = 0.5
    if preset == "gpu":
        # Measured on an H200 (docs/dsrl.md).  All episodes begin at once, and none ends in the first iterations.
        return DSRLConfig(
            num_envs=1024,
            unroll_length=1,
            warmup=10,
            critic_warmup=10,
            updates=40,
            distillations=40,
            batch=1024,
            capacity=400_000,
            reset_pool=512,
            noise_bound=bound,
        )
    return DSRLConfig(
        num_envs=128,
        unroll_length=2,
        updates=24,
        distillations=24,
        warmup=10,
        critic_warmup=20,
        capacity=60_000,
        noise_bound=bound,
    )


def gym_dsrl() -> DSRLConfig:
    """DSRL on gym tasks: as released, except for what `DSRLConfig` mends; more environments side by side."""
    return DSRLConfig(
        num_envs=16,
        unroll_length=4,
        # Half of it left two hopper seeds of three where they were (docs/dsrl.md).
        updates=80,
        distillations=40,
        tau=0.02,
        gamma=0.99,
        warmup=20,
        critic_warmup=20,
        sizes=(128, 128, 128),
        value_scale=1.0,  # of dense rewards; what docs/dsrl.md has at length was measured with it
        time_limit="bootstrap",
    )
