"""Folders on local disk for copies of what is in a bucket; each belongs to one process, and ends with it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vlbert_jax.compiled import cache_folder
from vlbert_jax.files import COPIES

IN_USE = ".in_use"  # file that the process of a copy has locked
UNSENT = ".unsent"  # file that marks a copy with results which could not be stored
_HELD: dict[Path, IO[str]] = {}  # copy -> its locked file


def make_copy(address: str) -> Path:
    """Return a new empty folder for a copy of `address`; its name is the last part of the address."""
    with _copies_of(address) as above:
        place = Path(tempfile.mkdtemp(dir=above))
        _take(place)
    folder = place / address.rstrip("/").rpartition("/")[2]
    folder.mkdir()
    COPIES[str(folder)] = address.rstrip("/")
    return folder


def unsent_copy(address: str) -> Path | None:
    """Return the copy of a process that is gone and could not store its results, None if there is none."""
    with _copies_of(address) as above:
        for place in above.iterdir():
            if (place / UNSENT).exists() and _take(place):
                folder = next(path for path in place.iterdir() if path.is_dir())
                COPIES[str(folder)] = address.rstrip("/")
                return folder
    return None


def remove_copy(folder: Path) -> None:
    """Delete a copy of this process."""
    leave_copy(folder)
    shutil.rmtree(folder.parent, ignore_errors=True)


def leave_copy(folder: Path, unsent: bool = False) -> None:
    """Let go of a copy; `unsent` keeps it for the next process that uses the address.

    COPIES keeps its name: the error that ended a run is printed later.
    """
    if unsent:
        (folder.parent / UNSENT).touch()
    if file := _HELD.pop(folder.parent, None):
        file.close()


@contextlib.contextmanager
def _copies_of(address: str) -> Iterator[Path]:
    """Yield the folder of all copies of an address, without those that nobody needs; one process at a time has it."""
    above = cache_folder() / "buckets" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    above.mkdir(parents=True, exist_ok=True)
    with open(above.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for place in above.iterdir():
            if not (place / UNSENT).exists() and _take(place):  # its process was killed
                _HELD.pop(place).close()
                shutil.rmtree(place, ignore_errors=True)
        yield above


def _take(place: Path) -> bool:
    """Lock a copy for this process; return False where another process has it."""
    if place in _HELD:
        return False
    file = open(place / IN_USE, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _HELD[place] = file
    return True
