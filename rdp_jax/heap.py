"""Freed memory stays with the process.

XLA takes the temporaries of a call afresh and frees them after it.  By default glibc returns blocks of that size to the kernel,
which zeroes every page again at the next call: on a CPU a denoiser's forward pass spends half its time in page faults.
"""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>; glibc keeps these numbers.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
SETTINGS = (
    (M_ARENA_MAX, 1),  # other arenas are too small for large blocks, and would map them
    (M_MMAP_MAX, 0),
    (M_TRIM_THRESHOLD, -1),  # never
    (M_TOP_PAD, 64 * 2**20),
)


def keep_freed() -> bool:
    """From now on `free` gives nothing back to the kernel, and what it keeps is used again; the process stays at its peak size.

    For a whole process, so a program calls it, early, and a library does not.  False where the C library is not glibc: nothing
    has changed then.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) == 1 for name, value in SETTINGS)
