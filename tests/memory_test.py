"""Test the settings of the allocator: a freed block is used again without page faults."""

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

FAULTS = '''
import ctypes, resource
from vlbert_jax.memory import keep_freed_memory

def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def mapped():
    """Whether a block of 3 GiB is requested from the system alone: a bit of the word before it (malloc.c)."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    return bool(ctypes.c_size_t.from_address(malloc(3 * 2**30) - 8).value & 2)

print(keep_freed_memory(), touch() > 1000, touch() > 1000, mapped())
'''


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize(
    "environment, expected", [({}, "True True False False"), ({"MALLOC_MMAP_MAX_": "65536"}, "False True True True")]
)
def test_a_freed_block_is_used_again(environment, expected):
    """But where the environment has settings of the allocator, they stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")} | environment
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
