"""What acts in a run directory: a planner, a planner whose noise is steered, or a planner with a correction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

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
        steered = steer.NoiseActor(planner, steer.learned(config, base, 0), ddim_steps)
        return _fitting(steered, (planner.bundle, params), planner, run / NOISE_ACTOR)
    if (run / CORRECTION).is_file():
        weights, metadata = load_weights(run / CORRECTION)
        try:
            learned = {"actor": weights["actor"], "normalizer": Normalizer(**weights["normalizer"])}
            scale = jnp.float32(metadata["scale"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{run / CORRECTION} is no correction: {error}") from error
        found = (planner.bundle, (planner.base, learned, scale))
        return _fitting(ResidualActor(planner), found, planner, run / CORRECTION)
    return planner.actor(), weights_of(planner)


def _fitting(actor: Any, weights: tuple[Any, Any], planner: Planner, path: Path) -> tuple[Any, tuple[Any, Any]]:
    """Both, if the actor can act with the weights; else raises `CheckpointError`."""
    obs, keys = jnp.zeros((1, planner.config.history * planner.dims.frame)), jax.random.split(jax.random.key(0), 1)
    try:
        jax.eval_shape(actor.act, *weights, obs, keys)
    except (AssertionError, TypeError, ValueError, KeyError, FlaxError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} does not fit the planner beside it: {reason}") from error
    return actor, weights
