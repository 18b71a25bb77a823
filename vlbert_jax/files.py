"""Files and folders that are written whole or not at all. Needs no JAX: `data_prep` uses it too."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to; it takes the target's place when the block ends well, else it goes.

    It is the same path each time: what a kill leaves is written over. Raises OSError that names a file.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    _remove(beside)
    try:
        yield beside
        if target.exists() and (target.is_dir() or beside.is_dir()):  # a folder takes two steps
            _remove(old)
            target.rename(old)
        try:
            beside.replace(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _remove(old)
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk is told without
    finally:
        _remove(beside)


def _remove(path: Path):
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_full(directory: pathlib.Path):
    """Turns the many faces of a full disk (OSError, ValueError from the array store) into one clear line.

    What was written of the newest checkpoint is removed, so that small files can still be closed.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            for partial in directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(partial, ignore_errors=True)
            raise OSError(
                f"no space left on device while saving to {directory}; the checkpoints before are intact: "
                "free some space and run the same command again"
            ) from error
        raise
