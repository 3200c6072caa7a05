"""What JAX is told for a whole process, before it is loaded: compiled programs stay on disk, products are exact."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import MutableMapping
from pathlib import Path

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
PRECISION = "JAX_DEFAULT_MATMUL_PRECISION"
CPU_INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Eight digits that tell processors apart: a program made for one may hold instructions that another does not have."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), platform.processor(), *told]).encode()).hexdigest()[:8]


def keep_programs(environ: MutableMapping[str, str] = os.environ) -> None:
    """Has JAX, once it is loaded, keep what it compiles under `~/.cache/rdp_jax` (or `XDG_CACHE_HOME`).

    Changes nothing where the environment already names a directory (empty: none).  For a whole process, like
    `rdp_jax.heap.keep_freed`, and to be called before JAX is imported.
    """
    if DIRECTORY in environ:
        return
    home = environ.get("XDG_CACHE_HOME") or (Path(environ["HOME"]) / ".cache" if "HOME" in environ else None)
    if home is not None:
        environ[DIRECTORY] = str(Path(home) / "rdp_jax" / processor())


def exact_products(environ: MutableMapping[str, str] = os.environ) -> None:
    """Has JAX multiply float32 as float32 wherever nothing else is said.

    Its own default on NVIDIA cards is TF32, on a TPU bfloat16: a policy would be judged, and its physics simulated, otherwise
    than it learned.  Changes nothing where the environment says something already.
    """
    if PRECISION in environ:
        return
    environ[PRECISION] = "highest"
    if "jax" in sys.modules:  # it has looked there already
        sys.modules["jax"].config.update(PRECISION.lower(), "highest")
