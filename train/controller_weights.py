"""Weights of the controller's two policies: files, what comes with the package, and how they act."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from envs.control import observe
from envs.t1.model import SCENES
from rdp_jax import normalize
from rdp_jax.algos import ppo
from rdp_jax.checkpoint import CheckpointError, fitted, load_weights
from rdp_jax.config import ConfigError
from rdp_jax.nets import mlp
from train.manifest import JOINTS, LAYOUTS

Weights = Mapping[str, Any]
OTHER = {"legs": "hands", "hands": "legs"}


def shipped(part: str, climbs: bool = False) -> Path:
    """Weight file of `part` (`legs`, `hands`) that comes with the package; there are other legs where there is a ledge."""
    name = "legs_climb" if climbs and part == "legs" else part
    return Path(str(resources.files("envs.control") / "assets" / f"{name}.safetensors"))


def load_part(part: str, path: Path | None = None, climbs: bool = False, field: str = "") -> Weights:
    """`{"actor", "normalizer"}` of a policy: the file's, or the shipped ones.

    Args:
      part: `legs` or `hands`.
      path: weight file; left out: the shipped one.
      climbs: whether the scene has platforms (chooses among the shipped ones).
      field: that named the file, for a complaint; left out: the part's own.

    Raises `ConfigError` if the file cannot be read, or is not of such a policy.
    """
    path = path or shipped(part, climbs)
    try:
        weights, metadata = load_weights(path)
        found = metadata.get("part")
        if found != part:
            raise CheckpointError(f"this file holds {found!r}")
        template = _template(part, weights)
        policy: Weights = fitted({name: weights[name] for name in template if name in weights}, template, path)
    except CheckpointError as error:
        raise ConfigError(field or part, str(path), f"weights of part {part!r}; {error}") from error
    return policy


def _template(part: str, weights: Weights) -> Weights:
    """Shapes of a policy of `part`, its hidden widths as those of `weights`."""
    sizes: tuple[int, ...] = ()
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError):  # no policy: what it lacks is said later
        sizes = mlp.mlp_sizes(weights["actor"]["mlp"])
    width, actor = observe.width(LAYOUTS[part]), mlp.GaussianActor(len(JOINTS[part]), sizes)

    def policy() -> dict[str, Any]:
        params = actor.init(jax.random.key(0), jnp.zeros(width))["params"]
        return {"actor": params, "normalizer": normalize.create(width)}

    shapes: Weights = jax.eval_shape(policy)
    return shapes


def climbs(scene: str) -> bool:
    """Whether the scene of that name has platforms."""
    return bool(SCENES[scene].platforms)


def act(weights: Weights, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Deterministic action of a policy for `obs["actor"]`."""
    return ppo.policy({"actor": weights["actor"]}, {"actor": weights["normalizer"]}, obs)


def start_from(state: ppo.LearnerState, weights: Weights, path: Path) -> ppo.LearnerState:
    """`state` with the policy and the observation statistics of `weights`; critic and exploration start afresh.

    Raises `ConfigError` if the weights belong to a network or an observation of another size.
    """

    def shapes(tree: Any) -> list[tuple[int, ...]]:
        return [x.shape for x in jax.tree.leaves(tree)]

    old = (state.params["actor"], state.normalizer["actor"])
    new = (weights["actor"], weights["normalizer"])
    if shapes(old) != shapes(new):
        raise ConfigError("init", str(path), f"a policy with arrays {shapes(old)}; this one has {shapes(new)}")
    actor = jax.tree.unflatten(jax.tree.structure(old[0]), jax.tree.leaves(new[0]))
    params = {**state.params, "actor": {**actor, "log_std": state.params["actor"]["log_std"]}}
    return state.replace(params=params, normalizer={**state.normalizer, "actor": new[1]})


def acting(state: ppo.LearnerState) -> dict[str, Any]:
    """What acting needs: the policy and the normaliser of its observations."""
    return {"actor": state.params["actor"], "normalizer": state.normalizer["actor"]}
