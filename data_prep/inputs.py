"""What a table was built from: a mark of each input, stored in the manifest.

A later build under the same name is refused if its inputs have other marks, so that records of
other or changed data are not taken for the requested ones."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping

from vlbert_jax.files import with_addresses

WHOLE = 4 * 2**30  # bytes up to which the whole content of a file counts
BLOCKS, BLOCK = 64, 2**20  # of a larger file: number of blocks, evenly spread, and bytes of each


def mark_of(path: pathlib.Path) -> str:
    """Return size and hash of a file or folder, "missing" if there is none.

    The content of a file counts; of a file above 4 GiB, 64 blocks of 1 MiB. Of a folder, the names
    and sizes of all files in it count.
    """
    if path.is_file():
        now = path.stat()
        return _mark_of_file(path, now.st_size, now.st_mtime_ns)
    if not path.is_dir():
        return "missing"
    mark, size = hashlib.sha256(), 0
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = os.path.join(folder, name)
            length = os.path.getsize(file) if os.path.exists(file) else 0  # a link may point nowhere
            mark.update(f"{os.path.relpath(folder, path)}/{name}:{length}\n".encode(errors="surrogateescape"))
            size += length
    return f"{size} bytes, {mark.hexdigest()[:16]}"


@functools.cache  # several checks of one command compare the same file
def _mark_of_file(path: pathlib.Path, size: int, changed: int) -> str:
    """Return the mark of a file of `size` bytes that was last changed at the time `changed`."""
    with open(path, "rb") as file:
        if size <= WHOLE:
            mark = hashlib.file_digest(file, "sha256")
        else:
            mark = hashlib.sha256()
            for number in range(BLOCKS):
                file.seek(number * (size - BLOCK) // (BLOCKS - 1))
                mark.update(file.read(BLOCK))
    return f"{size} bytes, {mark.hexdigest()[:16]}"


def marks_of(paths: Iterable[pathlib.Path]) -> dict[str, str]:
    """Return the absolute path, or the address, of each input and its mark."""
    return {with_addresses(str(path.absolute())): mark_of(path) for path in paths}


def other_inputs(built: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Return the first difference between two sets of inputs in words, "" if they are the same.

    Inputs may have moved. Inputs of which nothing is left cannot be compared and count as the same.

    Args:
      built: path -> mark of the inputs of a table.
      given: the same of the requested build.
    """
    if set(given.values()) == {"missing"} and set(given) <= set(built):
        return ""
    for (old, old_mark), (new, mark) in zip(built.items(), given.items(), strict=False):
        if old_mark != mark:
            return f"{old} ({old_mark})" + (f"; now it has {mark}" if old == new else f", not {new} ({mark})")
        if old != new and os.path.exists(old) and not (os.path.exists(new) and os.path.samefile(old, new)):
            return f"{old}, not {new}"
    if len(built) != len(given):
        return f"{len(built)} files and folders ({', '.join(built)}), not {len(given)} ({', '.join(given)})"
    return ""
