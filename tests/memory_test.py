"""Test the settings of the allocator: a freed block is used again without page faults."""

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

FAULTS = """
import resource
from vlbert_jax.memory import keep_freed_memory

def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), touch() > 1000, touch() > 1000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")
@pytest.mark.parametrize(
    "environment, expected", [({}, "True True False"), ({"MALLOC_MMAP_MAX_": "65536"}, "False True True")]
)
def test_a_freed_block_is_used_again(environment, expected):
    """But where the environment has settings of the allocator, they stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")} | environment
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
