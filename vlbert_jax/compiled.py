"""Keep compiled programs from one command to the next. Commands call this before they import JAX."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST = "JAX_COMPILATION_CACHE_MAX_SIZE"
MOST_BYTES = 2**30  # programs that were not used for the longest time are deleted first


def keep_programs() -> None:
    """Make JAX keep compiled programs in the user's cache folder.

    Nothing changes where the environment names a folder, or where the cache folder cannot be written.
    JAX_ENABLE_COMPILATION_CACHE=false switches this off, as it does everywhere in JAX.
    """
    if FOLDER in os.environ:
        return
    try:
        folder = cache_folder() / f"programs-{_machine()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(folder, os.W_OK):
        os.environ[FOLDER] = str(folder)
        os.environ.setdefault(MOST, str(MOST_BYTES))


def cache_folder() -> Path:
    """Return the folder of vlbert_jax among the user's caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlbert_jax"


def _machine() -> str:
    """Return a name of the version of JAX and the kind of processor.

    Machines may share a home. A program for a processor with more instructions would not run on another.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    except OSError:
        processor = [platform.processor()]
    parts = (importlib.metadata.version("jaxlib"), platform.machine(), *processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
