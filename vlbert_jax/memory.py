"""Let the C library keep freed memory. Commands call this before they import JAX."""

from __future__ import annotations

import ctypes
import os

# Parameters of glibc's mallopt (malloc.h) and their values here.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
NEVER, LARGEST = -1, 2**31 - 1
OWN_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")  # environment variables by which a user sets the same


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks, and return whether it does so from now on.

    By default it returns large blocks to the system and requests them again: every update of a model of base size takes
    its activations anew, a page fault for each 4 KiB. Other arenas than the main one, which threads use, return their
    blocks whatever the thresholds are, so there is one arena. The threshold of separate blocks cannot exceed 2 GiB, so
    none is allowed. The process then stays as large as it once was.

    Nothing changes with another C library, or where the environment has settings of the allocator.
    """
    if any(name.startswith(OWN_SETTINGS) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows has no library of the process
        return False
    settings = ((ARENA_MAX, 1), (MMAP_THRESHOLD, LARGEST), (MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER))
    done = [mallopt(*setting) for setting in settings]
    return all(done)
