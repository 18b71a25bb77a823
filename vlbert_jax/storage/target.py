"""Files that a command writes at an address: they are written on local disk, and stored when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from vlbert_jax.storage.bucket import Bucket
from vlbert_jax.storage.copies import make_copy, remove_copy

FIRST, LAST = "checksums.json", ".safetensors"  # with the first a part of a folder is refused; the last makes a model


@contextlib.contextmanager
def stored_at(address: str, replace: bool, written: Collection[str]) -> Iterator[Path]:
    """Yield a path on local disk for a file or a folder; on success it is stored at the address.

    A file is replaced atomically. While a folder is stored, a reader refuses it, because files in its list are missing.

    Args:
        address: Of the file, or of the folder.
        replace: Whether what is there may be replaced.
        written: Names that such a folder may have inside; a folder with other files is not replaced.

    Raises:
        FileExistsError: Something is at the address.
        StorageError, ValueError: The address cannot be written or used.
    """
    address = address.rstrip("/")
    bucket = Bucket(address)
    before = bucket.sizes()
    if before and not replace:
        raise FileExistsError(f"{address} exists; choose another target, or replace it with --overwrite")
    if any(name and name.partition("/")[0] not in written for name in before):
        raise FileExistsError(f"{address} contains other files and is not replaced; choose another target")
    above, _, name = address.rpartition("/")
    copy = make_copy(above)
    try:
        yield copy / name
        if (copy / name).is_dir():
            names = [path.relative_to(copy / name).as_posix() for path in (copy / name).rglob("*") if path.is_file()]
            bucket.upload(copy / name, [one for one in names if one == FIRST])
            bucket.delete(one for one in before if one and one not in names)
            bucket.upload(copy / name, [one for one in names if one != FIRST and not one.endswith(LAST)])
            bucket.upload(copy / name, [one for one in names if one.endswith(LAST)])
        elif (copy / name).exists():
            Bucket(above).upload(copy, [name])
    finally:
        remove_copy(copy)
