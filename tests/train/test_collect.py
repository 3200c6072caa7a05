"""`rdp collect`: what a directory of demonstrations may be gone on with, and what a collection says of itself."""

import dataclasses
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rdp_jax.data import episodes as E
from train import collect
from train.cli import main
from train.collect import _previous
from train.controller_weights import shipped
from train.demonstrations import FILE, recipe_of, taken
from train.pretrain import load_demonstrations
from train.task_args import CollectArgs, PretrainArgs

EPISODES = E.from_lists([np.zeros((3, 46))] * 2, [np.zeros((3, 23))] * 2, [np.zeros(3)] * 2, [True] * 2, [0, 1])


def asked(out, **fields):
    return CollectArgs(**{"out": out, "episodes": 2, "num_envs": 2, "backend": "native", "resume": True, **fields})


def fill(out, recipe):
    metadata = {"task": "pickup", "recipe": recipe, "tried": 3, "won": 2}
    E.save(out / FILE, dataclasses.replace(EPISODES, metadata=metadata), overwrite=True)


@pytest.fixture
def demos(tmp_path):
    fill(tmp_path, _previous(asked(tmp_path))[0])
    return tmp_path


def test_the_same_call_goes_on(demos):
    recipe, kept, tried, won = _previous(asked(demos, episodes=9))
    assert recipe == recipe_of(kept) and (len(kept), tried, won) == (2, 3, 2)
    assert set(recipe["weights"]) == {"legs", "hands"} and recipe["backend"] == "native"
    # A file that lies elsewhere is the same controller.
    assert _previous(asked(demos, legs=shipped("legs")))[0] == recipe


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--legs", str(shipped("legs", climbs=True))],
            "--legs: got '[0-9a-f]{16}', allowed: weights with fingerprint '[0-9a-f]",
        ),
        (["--backend", "mjx"], "--backend: got 'mjx', allowed: 'native', as the recipe"),
        (["--num-envs", "5"], "--num-envs: got 5, allowed: 2, as the recipe"),
        (["--seed", "4"], "--seed: got 4, allowed: 0, as the recipe"),
        (["--clumsiness", "0.5"], "--clumsiness: got 0.5, allowed: 1.0, as the recipe"),
    ],
)
def test_another_recipe_is_refused_by_flag_and_both_values(words, told, demos, capsys):
    before = (demos / FILE).read_bytes()
    call = ["collect", "--episodes", "9", "--backend", "native", "--resume", "--out", str(demos)]
    assert main([*call, *words]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert (demos / FILE).read_bytes() == before


def test_how_many_at_once_is_as_before_unless_told(demos):
    for episodes in (1, 100):
        assert _previous(asked(demos, num_envs=None, episodes=episodes))[0]["at_once"] == 2
    assert _previous(asked(demos / "new", num_envs=None, episodes=100))[0]["at_once"] == 100


@pytest.mark.parametrize("gone", ["backend", "weights"])
def test_a_file_that_does_not_say_its_controller_is_pretrained_on_but_not_gone_on_with(gone, demos, capsys):
    recipe = _previous(asked(demos))[0]
    fill(demos, {name: value for name, value in recipe.items() if name != gone})
    assert len(load_demonstrations(PretrainArgs(data=demos))) == 2
    assert main(["collect", "--episodes", "9", "--backend", "native", "--resume", "--out", str(demos)]) == 2
    assert (
        f"--resume: got '{demos}', allowed: demonstrations of the same recipe; theirs has {gone}=None"
        in capsys.readouterr().err
    )


def test_a_gym_task_says_what_a_t1_task_says(tmp_path, monkeypatch):
    env = SimpleNamespace(physics=SimpleNamespace(name="native"))
    learned = {"ppo_iterations": 3, "ppo_env_steps": 100, "ppo_wall_s": 1.0}
    monkeypatch.setattr(collect, "record_medium", lambda args: (EPISODES, learned, env))
    found = collect.run_collect(CollectArgs(out=tmp_path, task="hopper", episodes=2))["metrics"]
    assert found.items() >= {"episodes": 2, "kept": 2, "steps": 6, "mean_length": 3.0, **learned}.items()
    assert found.keys() >= collect._metrics(EPISODES, 2).keys()
    assert found["expert_success_rate"] is found["expert_success_ci95"] is None


def test_two_at_once_do_not_write_to_one_place(tmp_path, capsys):
    with taken(tmp_path / "out"):
        # Locks are those of a process: who asks here is another one.
        code = f"from pathlib import Path\nfrom train.demonstrations import taken\nwith taken(Path({str(tmp_path / 'out')!r})): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1 and "RunError" in other.stderr and "in use by another process" in other.stderr
    assert not (tmp_path / "out").exists()  # nothing was put there
    with taken(tmp_path / "out"):
        (tmp_path / "out" / "file").touch()
    assert (tmp_path / "out" / "file").exists()
