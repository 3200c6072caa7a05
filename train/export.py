"""`rdp export`: the networks of a run as ONNX files, with a manifest of what goes in and comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.control import observe
from rdp_jax import normalize
from rdp_jax.callback import on_host
from rdp_jax.export.convert import convert, need
from rdp_jax.export.session import Session
from rdp_jax.planner import Bundle, Planner
from rdp_jax.runs import free_directory, provenance, write_json
from train import manifest, output
from train.actors import find_actor
from train.controller_weights import act
from train.task_args import ExportArgs
from train.tasks import HumanoidStage, check_fits, find_planner, set_up

ROWS = 256  # observations on which a file is compared with what it was made from


def run_export(args: ExportArgs) -> dict[str, Any]:
    """Writes planner, legs and hands, compares each with its network in JAX, products in float32; asked for trials, plays both on
    the same starts.

    Raises `ConfigError`, `CheckpointError`, `rdp_jax.export.convert.Unsupported`, or `RunError` if `--out` is not empty.
    """
    start = time.monotonic()
    for module in ("onnx", "onnxruntime"):
        need(module)
    planner = find_planner(args.run, args.task, args.which)
    exact = dataclasses.replace(planner.config.net, dtype="float32")  # as parameters are; ONNX Runtime knows no others
    planner = dataclasses.replace(planner, config=dataclasses.replace(planner.config, net=exact))
    stage = set_up(args, planner.config.history)
    check_fits(planner, stage.env)
    actor, weights = find_actor(args.run, planner)
    out = free_directory(args.out, "export")
    out.mkdir(parents=True, exist_ok=True)
    files = {"planner": _planner(out, args.batch, actor, weights)}
    described: dict[str, Any] = {}
    if isinstance(stage, HumanoidStage):
        described["planner"] = manifest.planner(stage.env, planner.config.executed)
        for part, layout in manifest.LAYOUTS.items():
            files[part] = _part(out, args.batch, part, stage.params.controller[part], observe.width(layout))
            described[part] = manifest.part(stage.env, part)
    for name, entry in files.items():
        entry |= described.get(name, {})
    made_from = {"task": args.task, "metadata": planner.metadata, **provenance()}
    write_json(out / "manifest.json", {"format": manifest.FORMAT, "networks": files, **made_from})
    errors = {name: entry["max_abs_error"] for name, entry in files.items()}
    metrics: dict[str, Any] = {"max_abs_error": max(errors.values()), "errors": errors, "out": str(out)}
    steps = 0
    if args.trials:
        both = {
            "in_jax": stage.judge_actor(actor, weights, args.seed, args.trials, args.num_envs),
            "exported": stage.judge_actor(
                Exported(planner, actor, out / "planner.onnx"), weights, args.seed, args.trials, args.num_envs
            ),
        }
        steps = sum(figures.pop("env_steps") for figures in both.values())
        metrics |= {name: _shown(figures) for name, figures in both.items()}
    record = output.summary(
        "export",
        seed=args.seed,
        backend=stage.env.physics.name,
        num_envs=args.batch,
        wall_s=time.monotonic() - start,
        metrics=metrics,
        task=args.task,
        env_steps=steps,
    )
    write_json(out / "summary.json", record)
    return record


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "score"}


def _planner(out: Path, batch: int, actor: Any, weights: tuple[Bundle, Any]) -> dict[str, Any]:
    """Exports what acts; its inputs are compared within the bounds of the demonstrations."""
    bundle, more = weights
    shapes = {"obs": bundle.obs.lo.shape, **actor.draws}
    rng = np.random.default_rng(0)
    low, high = np.asarray(bundle.obs.lo), np.asarray(bundle.obs.hi)
    inputs = [low + (high - low) * rng.uniform(size=(ROWS, *low.shape))]
    inputs += [rng.normal(size=(ROWS, *shape)) for shape in actor.draws.values()]

    def function(obs, *drawn):
        return actor.act_on(bundle, more, obs, *drawn)

    return _file(out / "planner.onnx", function, shapes, batch, "actions", inputs)


def _part(out: Path, batch: int, part: str, weights: Any, width: int) -> dict[str, Any]:
    """Exports legs or hands; its inputs are compared where it has learned."""
    seen = weights["normalizer"]
    noise = np.random.default_rng(0).normal(size=(ROWS, width))
    inputs = [np.asarray(seen.mean) + np.asarray(normalize.std(seen)) * noise]

    def function(obs):
        return act(weights, {"actor": obs})

    return _file(out / f"{part}.onnx", function, {"obs": (width,)}, batch, "action", inputs)


def _file(
    path: Path,
    function: Callable[..., Any],
    rows: dict[str, tuple[int, ...]],
    batch: int,
    name: str,
    inputs: list[np.ndarray],
) -> dict[str, Any]:
    """Writes one file and compares it on `inputs`; its entry of the manifest."""
    shapes = {key: (batch, *shape) for key, shape in rows.items()}
    convert(function, shapes, name, path)
    inputs = [x.astype(np.float32) for x in inputs]
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(jax.jit(function)(*inputs))
    found = Session(path)(*inputs)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "inputs": {key: list(shape) for key, shape in shapes.items()},
        "drawn": "all inputs but obs are standard normal, fresh for every call" if len(shapes) > 1 else "nothing",
        "outputs": {name: [batch, *wanted.shape[1:]]},
        "max_abs_error": float(np.abs(wanted - found).max()),
    }


class Exported:
    """An exported planner that acts where `rdp_jax.planner.Actor` does, on the noise that `actor` would have drawn."""

    def __init__(self, planner: Planner, actor: Any, path: Path):
        self.config, self.dims, self.actor, self.session = planner.config, planner.dims, actor, Session(path)

    def act(self, bundle: Bundle, params: Any, obs: jax.Array, keys: jax.Array, explore: bool = False) -> jax.Array:
        """`obs (B, H * frame)`, `keys (B,)` -> `(B, Te * Da)`; weights are the file's."""
        del bundle, params, explore
        drawn = self.actor.drawn(keys) if self.actor.draws else ()
        shape = jax.ShapeDtypeStruct((obs.shape[0], self.config.executed * self.dims.action), jnp.float32)
        return on_host(self.session, shape, obs, *drawn)
