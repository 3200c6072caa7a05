"""Memory that is freed and taken again costs page faults by default, and none once it is kept."""

import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from rdp_jax.heap import keep_freed

if "keep" in sys.argv:
    assert keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 256 * 2**20

def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, again = touched(), touched()
print(first, again)
"""


def faults(*words: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True)
    first, again = map(int, done.stdout.split())
    return first, again


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to keep without glibc")
def test_kept_memory_is_used_again_without_page_faults():
    first, again = faults("keep")
    assert first > 100 and again < 10
    assert faults()[1] > 100  # what it is for
