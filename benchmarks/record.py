"""Runs a command and keeps its summary, with the machine it ran on, beside the others of one results file:

python -m benchmarks.record benchmarks/results/controller_eval.json controller eval --episodes 256 --seed 2026

The words after the file are those of `rdp`.  A second run of the same words takes the place of the first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdp_jax.machine import machine
from rdp_jax.runs import write_json
from train import child


def keep(path: Path, words: Sequence[str], summary: dict[str, Any], program: str = "rdp") -> None:
    """Adds `summary` to the results at `path` under the command that made it."""
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    kept.setdefault("commands", {})[" ".join([program, *words])] = {**summary, "machine": machine()}
    write_json(path, kept)


def main(argv: Sequence[str]) -> int:
    """`FILE WORDS...`; the exit status is the command's."""
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    path, words = Path(argv[0]), list(argv[1:])
    done = subprocess.run(child.command([*words, "--json"]), env=child.environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        summary = json.loads(done.stdout.splitlines()[-1])
        keep(path, words, summary)
        print(json.dumps(summary["metrics"], indent=2))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
