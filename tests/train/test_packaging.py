"""The locks, the build and the commands that a newcomer types."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock")
MACHINES = [
    {"python_version": ver, "python_full_version": f"{ver}.4", "sys_platform": system, "platform_machine": machine}
    for ver in ("3.11", "3.12", "3.13")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def lines(lock):
    return (ROOT / lock).read_text().splitlines()


def pins(lock, machine):
    environment = {**default_environment(), **machine}
    wanted = [r for r in map(Requirement, lines(lock)) if r.marker is None or r.marker.evaluate(environment)]
    found = {r.name: str(r.specifier).removeprefix("==") for r in wanted}
    assert len(found) == len(wanted), "a package is pinned twice"
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_pins_and_nothing_else(lock):
    for line in lines(lock):
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][0-9a-z.+]*( ; [a-z_]+ .+)?", line), line
        assert "://" not in line


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: "-".join((m["python_version"], *list(m.values())[2:])))
def test_a_lock_meets_every_range(lock, machine):
    found = pins(lock, machine)
    ranges = PROJECT["dependencies"] + (PROJECT["optional-dependencies"]["dev"] if "dev" in lock else [])
    for requirement in map(Requirement, ranges):
        assert requirement.specifier.contains(found[requirement.name]), requirement
    assert int(found["mujoco"].split(".")[0]) < 4
    assert found["mujoco"] == found["mujoco-mjx"]
    assert found["jax"].startswith("0.10.") == (machine["python_version"] == "3.11")


@pytest.mark.parametrize("machine", MACHINES[::3], ids=lambda m: m["python_version"])
def test_developers_have_what_users_have(machine):
    assert pins(LOCKS[0], machine).items() <= pins(LOCKS[1], machine).items()


def test_mujoco_is_capped():
    caps = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"]) if r.name.startswith("mujoco")}
    assert set(caps) == {"mujoco", "mujoco-mjx"}
    assert not any(cap.contains("4.0.0") for cap in caps.values())


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "format", "lock", "clean"])
def test_make_target_exists(target):
    run = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_make_says_when_python_is_too_old(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    words = ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "needs Python 3.11 or newer" in run.stderr
    assert "Python 3.8.1" in run.stderr
    assert "make demo PYTHON=" in run.stderr


def test_readme_names_targets_that_exist():
    told = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    targets = {first or second for first, second in told}
    assert targets >= {"demo", "test"}
    assert targets <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
