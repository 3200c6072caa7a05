"""How a command wants plans to be sampled, put into a planner."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdp_jax.config import ConfigError
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner
from train.task_args import Sampling

FINAL = {"final_std": "first_std", "final_noise": "step_noise"}
"""Flags of what comes out of learning: what each of them sets."""
LACKS = {"first_std": "has no first sample", "step_noise": "does not denoise"}


def with_noise(planner: Planner, name: str, value: float | None, flag: str = "") -> Planner:
    """`planner` with another `first_std` or `step_noise` (`DiffusionConfig`); itself if that is what it has, or for `None`.

    Raises `ConfigError` naming the `flag` (left out: as the field) where the planner is no diffusion planner.
    """
    config = planner.config
    if value is None:
        return planner
    if config.net.kind in GAUSSIAN:
        raise ConfigError(flag or name, value, f"left out (a {config.net.kind} planner {LACKS[name]})")
    if value == getattr(config.diffusion, name):
        return planner
    other: dict[str, Any] = {name: value}
    diffusion = dataclasses.replace(config.diffusion, **other)
    return dataclasses.replace(planner, config=dataclasses.replace(config, diffusion=diffusion))


def with_first_std(planner: Planner, first_std: float | None) -> Planner:
    """See `with_noise`."""
    return with_noise(planner, "first_std", first_std)


def as_asked(planner: Planner, args: Sampling) -> Planner:
    """`planner` with the noise in use that `args` name; itself if that is what it has."""
    return with_noise(with_first_std(planner, args.first_std), "step_noise", args.step_noise)


def exploring(planner: Planner, args: Sampling) -> Planner:
    """`planner` with the exploration noise of `args`, where they say something; in use it is the same, unless it keeps a share of
    that noise (`step_noise`).

    Raises `ConfigError` where they name noise that the planner's sampler does not have.
    """
    config = planner.config
    if config.net.kind in GAUSSIAN:
        if args.explore_eta is not None:
            raise ConfigError(
                "explore_eta", args.explore_eta, f"left out (a {config.net.kind} planner does not denoise)"
            )
        noise = _given(std=args.explore_std, correlation=args.explore_correlation)
        return dataclasses.replace(
            planner, config=dataclasses.replace(config, gaussian=dataclasses.replace(config.gaussian, **noise))
        )
    if args.explore_eta is not None and config.diffusion.sampler != "ddim":
        raise ConfigError(
            "explore_eta", args.explore_eta, f"left out (the planner samples by {config.diffusion.sampler})"
        )
    noise = _given(min_std=args.explore_std, correlation=args.explore_correlation, eta=args.explore_eta)
    return dataclasses.replace(
        planner, config=dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, **noise))
    )


def alike(one: Planner, other: Planner) -> bool:
    """Whether two planners of the same weights plan alike in use: all but their exploration noise is the same, and where they
    keep a share of it, that too."""
    configs = (one.config, other.config)
    if not any(config.diffusion.step_noise for config in configs):
        configs = tuple(
            dataclasses.replace(
                config,
                diffusion=dataclasses.replace(config.diffusion, min_std=1.0, correlation=0.0, eta=0.0),
                gaussian=dataclasses.replace(config.gaussian, std=1.0, correlation=0.0),
            )
            for config in configs
        )
    return configs[0] == configs[1]


def _given(**values: float | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
