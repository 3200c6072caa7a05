"""`rdp` in a process of its own, of the same interpreter and the same source tree."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(words: Sequence[str]) -> list[str]:
    """The command line.  `-P`, as a module called `train` or `envs` in the working directory is somebody else's."""
    return [sys.executable, "-P", "-m", "train.cli", *words]


def environment() -> dict[str, str]:
    """Its environment: ours, and the tree that this runs from on Python's path, unless that is where packages are installed."""
    if str(ROOT) in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        return dict(os.environ)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
