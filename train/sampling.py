"""How a command wants plans to be sampled, put into a planner."""

from __future__ import annotations

import dataclasses
from typing import Any

from rdp_jax.config import ConfigError
from rdp_jax.nets.build import GAUSSIAN
from rdp_jax.planner import Planner
from train.task_args import Sampling


def with_first_std(planner: Planner, first_std: float | None, flag: str = "first_std") -> Planner:
    """`planner` with another std of the first sample; itself if that is what it has.

    Raises `ConfigError` naming the `flag` where the planner has no first sample.
    """
    config = planner.config
    if first_std is None or first_std == config.diffusion.first_std:
        return planner
    if config.net.kind in GAUSSIAN:
        raise ConfigError(flag, first_std, f"left out (a {config.net.kind} planner has no first sample)")
    diffusion = dataclasses.replace(config.diffusion, first_std=first_std)
    return dataclasses.replace(planner, config=dataclasses.replace(config, diffusion=diffusion))


def exploring(planner: Planner, args: Sampling) -> Planner:
    """`planner` with the exploration noise of `args`, where they say something; judged without exploration it is the same.

    Raises `ConfigError` where they name noise of a denoising chain that the planner does not have.
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
    noise = _given(min_std=args.explore_std, correlation=args.explore_correlation, eta=args.explore_eta)
    return dataclasses.replace(
        planner, config=dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, **noise))
    )


def _given(**values: float | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
