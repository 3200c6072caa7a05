"""What acts in a run directory: a planner, a planner whose noise is steered, or a planner with a correction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from rdp_jax import steer
from rdp_jax.algos.dsrl import DSRLConfig
from rdp_jax.algos.residual import ResidualActor
from rdp_jax.checkpoint import CheckpointError, load_weights
from rdp_jax.config import from_dict
from rdp_jax.normalize import Normalizer
from rdp_jax.planner import Planner
from train.tasks import weights_of

NOISE_ACTOR, CORRECTION = "noise_actor.safetensors", "residual.safetensors"


def find_actor(run: Path | None, planner: Planner) -> tuple[Any, tuple[Any, Any]]:
    """Who acts with the planner of `run`, and the first two arguments of its `act`.

    Raises `CheckpointError` if what lies beside the planner is damaged.
    """
    if run is None or not run.is_dir():
        return planner.actor(), weights_of(planner)
    if (run / NOISE_ACTOR).is_file():
        weights, metadata = load_weights(run / NOISE_ACTOR)
        try:
            config, ddim_steps = from_dict(DSRLConfig, metadata["config"]["dsrl"]), metadata["config"]["ddim_steps"]
            params = weights["actor"]
        except KeyError as error:
            raise CheckpointError(f"{run / NOISE_ACTOR} is no noise actor: {error} is missing") from error
        base = steer.PlannerBase(planner.config, planner.dims, ddim_steps)
        return steer.NoiseActor(planner, steer.learned(config, base, 0), ddim_steps), (planner.bundle, params)
    if (run / CORRECTION).is_file():
        weights, metadata = load_weights(run / CORRECTION)
        try:
            learned = {"actor": weights["actor"], "normalizer": Normalizer(**weights["normalizer"])}
            scale = jnp.float32(metadata["scale"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{run / CORRECTION} is no correction: {error}") from error
        return ResidualActor(planner), (planner.bundle, (planner.base, learned, scale))
    return planner.actor(), weights_of(planner)
