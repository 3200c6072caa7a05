"""`rdp export`: files, manifest, and the exported planner at play."""

import dataclasses
import hashlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.gym.locomotion import Locomotion
from rdp_jax.algos import dsrl
from rdp_jax.checkpoint import save_weights
from rdp_jax.config import to_dict
from rdp_jax.data.windows import MinMax
from rdp_jax.export.session import Session
from rdp_jax.planner import Bundle, Dims, Planner, make_policy, save
from rdp_jax.steer import PlannerBase
from train import cli
from train.actors import NOISE_ACTOR
from train.presets import gym_planner, task_dsrl
from train.tasks import find_planner


def exported(capsys, *words):
    assert cli.main(["export", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_planner_and_controller_of_a_task(tmp_path, capsys):
    out = tmp_path / "out"
    record = exported(capsys, "--task", "pickup", "--which", "pretrained", "--out", out)
    assert record["command"] == "export" and record["metrics"]["max_abs_error"] < 1e-4
    listed = json.loads((out / "manifest.json").read_text())
    assert listed["task"] == "pickup" and set(listed["networks"]) == {"planner", "legs", "hands"}
    for name, entry in listed["networks"].items():
        path = out / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        session = Session(path)
        assert {key: list(shape) for key, shape in session.inputs} == entry["inputs"]
        found = session(*(np.zeros(shape) for shape in entry["inputs"].values()))
        assert [list(found.shape)] == list(entry["outputs"].values())
        # The layout covers the observation: whoever fills it by name fills all of it.
        seen = entry["observation"]
        layout, frames = seen.get("layout") or seen["frame"], seen.get("frames", 1)
        assert layout[0]["start"] == 0 and all(a["stop"] == b["start"] for a, b in itertools.pairwise(layout))
        assert layout[-1]["stop"] * frames == entry["inputs"]["obs"][1]
        if name != "planner":
            assert len(entry["output"]["joints"]) == found.shape[1] == len(entry["output"]["kp"])
    action = listed["networks"]["planner"]["output"]
    assert action["action"][-1]["stop"] * action["actions"] == listed["networks"]["planner"]["outputs"]["actions"][1]
    assert cli.main(["export", "--task", "pickup", "--out", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_steered_planner_needs_no_noise(tmp_path, capsys):
    planner, config, run = find_planner(None, "pickup", "pretrained"), task_dsrl("cpu"), tmp_path / "run"
    run.mkdir()
    save(run / "planner.safetensors", planner)
    nets = dsrl.Networks(config, PlannerBase(planner.config, planner.dims), 5)
    actor = nets.init(jax.random.key(1), planner.bundle, planner.config.history * planner.dims.frame)["actor"]
    save_weights(run / NOISE_ACTOR, {"actor": actor}, {"config": {"dsrl": to_dict(config), "ddim_steps": None}})
    record = exported(capsys, "--task", "pickup", "--run", run, "--out", tmp_path / "out", "--batch", 3)
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["networks"]["planner"]
    assert set(entry["inputs"]) == {"obs"} and entry["inputs"]["obs"][0] == 3
    assert record["metrics"]["errors"]["planner"] < 1e-4


def keep_hopper(path, config):
    """A planner of random weights."""
    spec = Locomotion("hopper", "native").spec
    dims = Dims(spec.obs_dims["actor"], spec.action_dim)
    params = make_policy(config, dims).init(jax.random.key(0), dims.frame)
    bounds = MinMax(jnp.full(dims.frame, -2.0), jnp.full(dims.frame, 2.0)), MinMax(jnp.full(dims.action, -1.0), jnp.ones(dims.action))  # fmt: skip
    save(path, Planner(config, dims, Bundle(params, *bounds), None, 0, {"task": "hopper"}))
    return path


def test_products_of_bfloat16_are_exported_as_float32(tmp_path, capsys):
    """ONNX Runtime has no others on a CPU."""
    config = gym_planner()
    half = dataclasses.replace(config, net=dataclasses.replace(config.net, dtype="bfloat16"))
    path = keep_hopper(tmp_path / "planner.safetensors", half)
    assert (
        exported(capsys, "--task", "hopper", "--run", path, "--out", tmp_path / "out")["metrics"]["max_abs_error"]
        < 1e-4
    )


def test_the_file_plays_as_the_planner_does(tmp_path, capsys):
    """From the same starts, on the same noise: the same episodes, up to rounding."""
    path = keep_hopper(tmp_path / "planner.safetensors", gym_planner())
    record = exported(capsys, "--task", "hopper", "--run", path, "--trials", 8, "--out", tmp_path / "out")
    both = record["metrics"]
    assert both["in_jax"]["trials"] == both["exported"]["trials"] == 8
    assert both["exported"]["return"] == pytest.approx(both["in_jax"]["return"], rel=1e-2)
    assert set(json.loads((tmp_path / "out" / "manifest.json").read_text())["networks"]) == {"planner"}
