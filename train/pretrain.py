"""`rdp pretrain`: a planner imitates demonstrations."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.tasks.catalog import make_task
from envs.tasks.hierarchy import frame_layout
from rdp_jax import parallel
from rdp_jax.algos import bc
from rdp_jax.algos.loop import LoopConfig, train
from rdp_jax.checkpoint import fingerprint
from rdp_jax.config import ConfigError, to_dict, without_paths
from rdp_jax.data import episodes as E
from rdp_jax.data import windows as W
from rdp_jax.data.foreign import is_lerobot, load_foreign
from rdp_jax.planner import Bundle, Dims, Planner, make_policy
from rdp_jax.runs import provenance
from train import output
from train.demonstrations import FILE
from train.names import HDF5, of_t1
from train.running import agreed, open_run
from train.task_args import PretrainArgs
from train.tasks import check_fits, keep_planner, set_up, side_by_side


def load_demonstrations(args: PretrainArgs) -> E.Episodes:
    """The episodes to imitate.  Raises `DataError`, `ConfigError`."""
    assert args.data is not None
    if args.data.suffix in HDF5 or is_lerobot(args.data):
        found = load_foreign(args.data, args.observations or functools.partial(own_order, args.task))
    else:
        found = E.load(args.data / FILE if args.data.is_dir() else args.data)
    task = found.metadata.get("task", args.task)
    if task != args.task:
        raise ConfigError("task", args.task, f"{task!r}, the task of these demonstrations")
    if args.demonstrations is not None:
        if args.demonstrations > len(found):
            raise ConfigError("demonstrations", args.demonstrations, f"1 .. {len(found)} (episodes in the file)")
        found = E.take(found, np.arange(args.demonstrations))
    return found


def own_order(task: str, names: Sequence[str]) -> Sequence[str]:
    """Of the observations of an HDF5 file those that the task has, in its order.

    The file's own has no meaning: a planner that learned from them in another order than its task's sees nonsense at play, and
    only the sum of the widths would have to fit.  Raises `ConfigError` where some are missing.
    """
    if not of_t1(task):
        return names
    wanted = tuple(frame_layout(make_task(task)))
    if not set(wanted) <= set(names):
        allowed = (
            f"some of {', '.join(names)}, in the order of the robot that will play (of {task}: {', '.join(wanted)})"
        )
        raise ConfigError("observations", None, allowed)
    return wanted


def normalised(args: PretrainArgs, found: E.Episodes) -> tuple[tuple[bc.Data, bc.Data], Bundle]:
    """Training and validation windows, and a bundle whose weights are still missing."""
    config = args.planner
    frame, action = W.bounds(found.obs), W.bounds(found.action)
    flat = frame.normalize(jnp.asarray(found.obs)), action.normalize(jnp.asarray(found.action))
    parts = []
    for index in W.split(found, args.validation, args.seed):
        if not len(index):
            parts.append(jax.tree.map(lambda x: x[:0], parts[0]))
            continue
        parts.append(bc.Data(*W.gather(*flat, W.windows(found, config.history, config.horizon, args.pad_end, index))))
    return (parts[0], parts[1]), Bundle((), frame.tile(config.history), action)


def run_pretrain(args: PretrainArgs) -> dict[str, Any]:
    """Trains on windows of the demonstrations; writes `planner.safetensors` and evaluates it."""
    start = time.monotonic()
    found = load_demonstrations(args)
    dims = Dims(found.obs.shape[1], found.action.shape[1])
    policy: Any = make_policy(args.planner, dims)
    data, bundle = normalised(args, found)
    stage = set_up(args, args.planner.history) if args.trials else None
    if stage is not None:  # else the demonstrations may be those of any robot
        check_fits(Planner(args.planner, dims, bundle, None, 0, {}), stage.env)
    steps = max(data[0].obs.shape[0] // args.bc.batch, 1)
    config = dataclasses.replace(
        args.bc,
        total_steps=max(steps * args.epochs, 1),
        epochs_per_call=even_calls(args.epochs, args.bc.epochs_per_call),
    )
    recorded = agreed(args, minutes=None, trials=0)
    del recorded["observations"]  # they are in what the data are
    recorded["data"] = fingerprint({"obs": found.obs, "action": found.action})
    run = open_run(args, recorded)
    mesh = parallel.make_mesh()
    state = bc.init(jax.random.key(args.seed), config, policy, args.planner.history * dims.frame)
    state = run.restore(state) if run else state
    iterations = args.epochs // config.epochs_per_call
    loop = LoopConfig(
        iterations=iterations, save_every_s=60.0, save_share=0.05, max_wall_s=60.0 * (args.minutes or 0.0)
    )
    with output.Progress(f"pretrain {args.task}", total=iterations, unit="windows") as bar:
        result = train(
            bc.Update(config, policy, mesh),
            state,
            data,
            loop,
            run,
            progress=lambda p: bar.update(
                p.iteration,
                p.iteration * config.epochs_per_call * steps * config.batch,
                f"loss {p.metrics['loss/train']:.4f}  validation {p.metrics['loss/validation']:.4f}",
            ),
        )
    metadata = {
        "task": args.task,
        "demonstrations": len(found),
        "data": {k: found.metadata.get(k) for k in ("recipe", "observations", "actions", "tried", "won")},
        "seed": args.seed,
        "gradient_steps": int(result.state.step),
        "config": to_dict(without_paths(args)),
        **provenance(),
    }
    planner = Planner(args.planner, dims, bundle.replace(weights=jax.device_get(result.state.ema)), None, 0, metadata)
    keep_planner(args, planner)
    metrics = {
        "loss": result.metrics.get("loss/train"),
        "validation_loss": result.metrics.get("loss/validation"),
        "demonstrations": len(found),
        "gradient_steps": int(result.state.step),
        "stopped_by": result.stopped_by,
        "trials": args.trials,
        "success_rate": None,
    }
    played = {} if stage is None else stage.judge(planner, args.seed, args.trials, args.num_envs)
    stepped = played.pop("env_steps", 0)
    played.pop("score", None)
    if run:
        run.close()
    return output.summary(
        "pretrain",
        seed=args.seed,
        backend=None if stage is None else stage.env.physics.name,
        num_envs=1 if stage is None else side_by_side(stage, args.trials, args.num_envs),
        wall_s=time.monotonic() - start,
        metrics={**metrics, **played},
        task=args.task,
        env_steps=stepped,
    )


def even_calls(epochs: int, most: int) -> int:
    """Epochs per call of the update, `most` or fewer, so that the calls are alike and have that many epochs in all."""
    return max(n for n in range(1, most + 1) if epochs % n == 0)
