"""The machine that a number was measured on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def usable_cores() -> int:
    """Cores this process may run on (a container's limit, not the machine's size)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Its name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """The hardware behind a number: CPU model, cores (usable and all), memory, accelerators, operating system; no names of hosts
    or users.

    Starts JAX's backend.
    """
    import jax

    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "cores_total": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": [d.device_kind for d in jax.local_devices() if d.platform != "cpu"],
        "os": f"{platform.system()} {platform.machine()}",
    }
