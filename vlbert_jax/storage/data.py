"""Data at an address: copied to local disk, and kept there for later runs and builds within a bound."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from vlbert_jax.compiled import cache_folder
from vlbert_jax.files import COPIES, atomic_write, is_address, read_json_object
from vlbert_jax.storage.bucket import Bucket, StorageError

log = logging.getLogger(__name__)
MOST = "VLBERT_DATA_CACHE_GB"  # environment variable: gigabytes of all copies together
MOST_GB = 500.0
INDEX = "index.json"  # of a copy: name of an object -> its size and the mark of its content, once it is copied
GROUP = 64  # files that are copied before the index is written
_USED: dict[Path, IO[str]] = {}  # copy -> its file, locked while this process lasts, so that no other deletes the copy


def local_data(address: str, names: Iterable[str], suffix: str = "") -> Path:
    """Return a folder with copies of what a run reads of the data at an address.

    What an earlier run has copied and has not changed since is not copied again. Several processes may share a copy.

    Args:
        address: Folder of all tables (`config.data.data_dir`).
        names: Texts of `config.data`; those that are names of tables (builder/corpus) or files are copied.
        suffix: End of the names of the files that are copied; the others are left out.

    Raises:
        FileNotFoundError: None of the names is there.
        StorageError: The bucket cannot be read, or the copies would exceed the bound.
    """
    bucket = Bucket(address)
    stamps = bucket.stamps()
    wanted = {name: stamp for name, stamp in _wanted(stamps, names).items() if name.endswith(suffix)}
    if not wanted:
        raise FileNotFoundError(f"none of the tables and files of config.data is at {address}; check the address")
    return _copied(bucket, wanted, stamps.keys())


def local_source(place: str, with_folder: tuple[str, ...] = ()) -> str:
    """Return the path of a file or folder that a builder reads: `place` itself, or a copy where that is an address.

    Args:
        place: Path or address; a folder is copied with everything below it.
        with_folder: Suffixes of files whose whole folder is copied, because they name other files in it.

    Raises:
        FileNotFoundError: Nothing is at the address.
        StorageError: The bucket cannot be read, or the copies would exceed the bound.
        ValueError: The address cannot be used.
    """
    if not is_address(place):
        return place
    above, _, name = place.rstrip("/").rpartition("/")
    if place.endswith(with_folder):
        bucket = Bucket(above)
        stamps = bucket.stamps()
        if name in stamps:
            return str(_copied(bucket, stamps, stamps.keys()) / name)
    bucket = Bucket(place)
    stamps = bucket.stamps()
    if not stamps:
        raise FileNotFoundError(f"there is nothing at {place}; check the address")
    if "" in stamps:
        return str(_copied(Bucket(above), {name: stamps[""]}) / name)
    return str(_copied(bucket, stamps, stamps.keys()))


def _copied(bucket: Bucket, stamps: Mapping[str, list], everything: Collection[str] | None = None) -> Path:
    """Return the folder of the copies of an address, with the files of `stamps` among them.

    Copies of objects that are not among `everything` at the address, if that is given, are deleted.
    """
    address, above = bucket.address, cache_folder() / "data"
    folder = above / hashlib.sha256(address.encode()).hexdigest()[:16] / address.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    COPIES[str(folder)] = address
    with _locked(folder.parent / ".copying"):
        _use(folder.parent)
        index = folder.parent / INDEX
        known = read_json_object(index, "remove this folder") if index.exists() else {}
        for name in () if everything is None else known.keys() - set(everything):
            (folder / name).unlink(missing_ok=True)
        missing = {
            name: stamp for name, stamp in stamps.items() if known.get(name) != stamp or not (folder / name).exists()
        }
        size = sum(stamp[0] for stamp in missing.values())
        if missing:
            log.info("copying data of %s to %s: %d files, %.1f MB", address, folder.parent, len(missing), size / 1e6)
            _make_room(above, folder.parent, size)
        partial, names = folder.parent / ".partial", list(missing)
        for start in range(0, len(names), GROUP):
            group = names[start : start + GROUP]
            bucket.download({name: missing[name][0] for name in group}, partial)
            for name in group:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(folder / name)
            known |= {name: missing[name] for name in group}
            with atomic_write(index) as path:
                path.write_text(json.dumps(known))
    return folder


def _wanted(stamps: dict[str, list], names: Iterable[str]) -> dict[str, list]:
    """Return those of the objects that belong to tables and files of some names; of a table, the newest version.

    A gallery of a table has the name of the table with an ending. Tables of which a build is not complete are left out.
    """
    found = {}
    for given in filter(None, {name.strip("/") for name in names}):
        inside = re.compile(rf"{re.escape(given)}(/.*|_\w+\.json|)")
        own = {name: stamp for name, stamp in stamps.items() if inside.fullmatch(name) and "/incomplete." not in name}
        version = re.compile(rf"{re.escape(given)}/(\d+)\.(\d+)\.(\d+)/.*")
        versions = {name: tuple(map(int, match.groups())) for name in own if (match := version.fullmatch(name))}
        newest = max(versions.values(), default=())
        found |= {name: stamp for name, stamp in own.items() if versions.get(name, newest) == newest}
    return found


def _make_room(above: Path, own: Path, size: int) -> None:
    """Delete copies of other addresses until `size` bytes more are within the bound. Raises StorageError."""
    bound = float(os.environ.get(MOST) or MOST_GB) * 1e9
    others = sorted((path for path in above.iterdir() if path != own), key=lambda path: path.stat().st_mtime)
    while _bytes(above) + size > bound or shutil.disk_usage(above).free < size:
        free = (path for path in others if not _is_used(path))
        if not (oldest := next(free, None)):
            raise StorageError(
                f"a copy of the data needs {size / 1e9:.1f} GB more in {above}, which may hold {bound / 1e9:g} GB and "
                f"has {shutil.disk_usage(above).free / 1e9:.1f} GB free; set {MOST}, or XDG_CACHE_HOME to another disk"
            )
        log.info("deleting the copy %s, which was not used for the longest time", oldest)
        shutil.rmtree(oldest)
        others.remove(oldest)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _use(place: Path) -> None:
    """Mark a copy as used now and while this process lasts."""
    if place not in _USED:
        _USED[place] = open(place / ".used", "w")
        fcntl.flock(_USED[place], fcntl.LOCK_SH)
    os.utime(place)


def _is_used(place: Path) -> bool:
    """Return whether a process reads a copy."""
    with open(place / ".used", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
