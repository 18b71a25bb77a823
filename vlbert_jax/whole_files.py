"""Files and folders that are written whole or not at all. Needs no JAX: `data_prep` uses it too."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
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
