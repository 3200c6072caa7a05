"""`rdp doctor` finds out what works, and what does not."""

import json

import jax
import mujoco
import numpy as np
import pytest

from train import cli, doctor


def test_doctor(capfd, tmp_path):
    assert cli.main(["doctor", "--json", "--backend", "native", "--num-envs", "3", "--out", str(tmp_path)]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record == json.loads((tmp_path / "summary.json").read_text())
    assert (record["command"], record["backend"], record["num_envs"]) == ("doctor", "native", 3)
    found = record["metrics"]
    assert found["backends"]["native"]["ok"] is True
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gb"] > 0
    assert found["devices"][0]["platform"] == "cpu"
    assert found["matmul"]["relative_error"]["highest"] < 1e-5
    assert found["programs"]["kept_in"] == jax.config.values["jax_compilation_cache_dir"]
    assert all(set(way) == {"ok", "error"} for way in found["rendering"].values())
    assert found["rendering"]["rays"]["ok"] is True


def test_a_missing_backend_is_a_finding(monkeypatch):
    monkeypatch.setattr("envs.physics.available", lambda: ("native", "mjx"))
    found = doctor._backends("warp", 1)["warp"]
    assert found["ok"] is False
    assert "warp" in found["error"]


def test_an_empty_picture_is_noticed(monkeypatch):
    monkeypatch.setattr(doctor, "picture", lambda *_: np.full((33, 33, 3), 200, np.uint8))
    assert doctor._try(doctor._rays)["ok"] is False


def test_wrong_physics_is_noticed(monkeypatch):
    def heavier(model, backend):
        model.opt.gravity[2] *= 1.01
        return make(model, backend)

    make = doctor.make_physics
    monkeypatch.setattr(doctor, "make_physics", heavier)
    with pytest.raises(ArithmeticError, match="falling body"):
        doctor._fall("native", 2)


def test_the_model_is_one_body():
    assert mujoco.MjModel.from_xml_string(doctor.ONE_BODY).nbody == 2
