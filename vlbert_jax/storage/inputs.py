"""Weights and results at addresses: copied to local disk when they are first used, and deleted at the end."""

from __future__ import annotations

import atexit
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path

from vlbert_jax.storage.bucket import Bucket
from vlbert_jax.storage.copies import make_copy, remove_copy
from vlbert_jax.storage.workdir import committed_steps, fetch_small, fetch_step

log = logging.getLogger(__name__)
NEIGHBORS = re.compile(r"[^/]*(\.json|\.txt|README\.md)")  # of a file of weights: its config and its words
SUBFOLDERS = ("state", "vocabularies")  # of a folder that `convert` wrote


@functools.cache
def local_copy(address: str, damage_of: Callable[[Path], str]) -> Path:
    """Return a local copy of weights at an address: a workdir, one checkpoint in it, a folder, or a file.

    Args:
        address: Of a workdir the newest checkpoint that is not damaged is copied.
        damage_of: Returns what is wrong with the folder of a checkpoint, "" if nothing is.

    Raises:
        FileNotFoundError: Nothing is there.
        StorageError: It cannot be read.
        ValueError: The address cannot be used.
    """
    address = address.rstrip("/")
    if match := re.fullmatch(r"(.+)/checkpoints/(\d+)", address):
        return _copy_workdir(match[1], damage_of, int(match[2])) / "checkpoints" / match[2]
    bucket = Bucket(address)
    sizes = bucket.sizes()
    if not sizes:
        raise FileNotFoundError(f"there is nothing at {address}; check the address")
    if committed_steps(sizes) or "versions.json" in sizes:
        return _copy_workdir(address, damage_of)
    if "" in sizes:  # a file
        above, _, name = address.rpartition("/")
        bucket = Bucket(above)
        files = {key: size for key, size in bucket.sizes().items() if key == name or NEIGHBORS.fullmatch(key)}
    else:
        name = ""
        files = {key: size for key, size in sizes.items() if "/" not in key or key.partition("/")[0] in SUBFOLDERS}
    log.info("copying %s, %.1f MB", address, sum(files.values()) / 1e6)
    folder = _copy(bucket)
    bucket.download(files, folder)
    return folder / name


@functools.cache
def copy_of_results(address: str) -> Path:
    """Return a local copy of a workdir without its checkpoints. Raises StorageError and ValueError."""
    bucket = Bucket(address)
    folder = _copy(bucket)
    fetch_small(bucket, bucket.sizes(), folder)
    return folder


def _copy_workdir(address: str, damage_of: Callable[[Path], str], step: int | None = None) -> Path:
    """Return a copy of a workdir with one of its checkpoints: the newest that is not damaged, or a given one."""
    bucket = Bucket(address)
    sizes = bucket.sizes()
    steps = committed_steps(sizes)
    if step is not None and step not in steps:
        raise FileNotFoundError(f"there is no complete checkpoint at {address}/checkpoints/{step}; there are: {steps}")
    folder = _copy(bucket)
    fetch_small(bucket, sizes, folder)
    for one in steps if step is None else [step]:
        fetch_step(bucket, sizes, one, folder)
        if not damage_of(folder / "checkpoints" / str(one)):
            break
    return folder


def _copy(bucket: Bucket) -> Path:
    folder = make_copy(bucket.address)
    atexit.register(remove_copy, folder)
    return folder
