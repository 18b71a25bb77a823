"""Folders that builders write at an address: on local disk meanwhile, with finished files stored one after another.

A builder works in a mirror, a folder that stands for the address. What is finished there is stored, and what other
machines have stored is copied to it. A mirror remains after a kill or an error, and the same command uses it again. It
is deleted when all is stored. In any other folder the functions of this module do nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vlbert_jax.compiled import cache_folder
from vlbert_jax.files import COPIES, is_address, with_addresses
from vlbert_jax.storage.bucket import Bucket, StorageError

_MIRRORS: dict[Path, Bucket] = {}  # folder of a builder of this process -> its address


@contextlib.contextmanager
def mirrored(place: str | Path, share: str = "") -> Iterator[Path]:
    """Yield the folder in which a builder works: `place` itself, or a mirror where that is an address.

    What is printed meanwhile has the address in place of the mirror.

    Args:
        place: Folder or address.
        share: Name of the share of this process; shares of one machine have mirrors of their own.

    Raises:
        StorageError: The bucket cannot be read or written; the message says where the finished files are.
        ValueError: The address cannot be used.
    """
    if not is_address(place):
        yield Path(place)
        return
    bucket = Bucket(str(place))
    above = cache_folder() / "builds" / hashlib.sha256(f"{bucket.address} {share}".encode()).hexdigest()[:16]
    folder = above / bucket.address.rpartition("/")[2]
    above.parent.mkdir(parents=True, exist_ok=True)
    with open(above.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(parents=True, exist_ok=True)
        COPIES[str(folder)], _MIRRORS[folder] = bucket.address, bucket
        try:
            with contextlib.redirect_stdout(_Addresses()):
                yield folder
        except StorageError as error:
            raise StorageError(
                f"{error}. What is finished is kept in {above}; the same command on this machine stores it first"
            ) from None
        finally:
            del _MIRRORS[folder]
        shutil.rmtree(above)


class _Addresses:
    """The standard output, with addresses in place of mirrors."""

    def __init__(self):
        self._output = sys.stdout

    def write(self, text: str) -> int:
        return self._output.write(with_addresses(text))

    def flush(self) -> None:
        self._output.flush()


def bucket_of(folder: Path) -> Bucket | None:
    """Return the address of a folder in a mirror, None for other folders."""
    for mirror, bucket in _MIRRORS.items():
        if folder.is_relative_to(mirror):
            return bucket if folder == mirror else bucket.below(folder.relative_to(mirror).as_posix())
    return None


def fetch_file(path: Path) -> None:
    """Copy a file from the address, if it is there. Raises StorageError."""
    if bucket := bucket_of(path.parent):
        with contextlib.suppress(FileNotFoundError):
            content = bucket.read(path.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def store_file(path: Path) -> None:
    """Store a file at the address. Raises StorageError."""
    if bucket := bucket_of(path.parent):
        bucket.upload(path.parent, [path.name])


def store_next_to(folder: Path, name: str) -> None:
    """Store a file that is next to a mirror, next to its address. Raises StorageError."""
    if folder in _MIRRORS:
        Bucket(_MIRRORS[folder].address.rpartition("/")[0]).upload(folder.parent, [name])


def fetch_folder(folder: Path, last: str) -> None:
    """Copy a folder from the address, if its file `last` is there, which is stored last. Raises StorageError."""
    if (bucket := bucket_of(folder)) and last in (sizes := bucket.sizes()):
        shutil.rmtree(folder, ignore_errors=True)
        bucket.download(sizes, folder)


def store_folder(folder: Path, last: str) -> None:
    """Store a folder at the address, the file `last` after all others. Raises StorageError."""
    if bucket := bucket_of(folder):
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        bucket.upload(folder, [name for name in names if name != last])
        bucket.upload(folder, [last])


class StoredParts:
    """The parts of a folder that several machines fill, at the address of the folder.

    A part is finished when its file parts/NAME.json is stored, after the files that belong to it. The claim is a file
    that says what is built. Parts count only next to it, so it is stored first and deleted last.
    """

    def __init__(self, folder: Path, claim: str, files_of: Callable[[str], Iterable[str]]):
        """Prepare the parts of a folder.

        Args:
            folder: The folder.
            claim: Name of the claim.
            files_of: Returns the names of the files of a finished part, of which the name is given.
        """
        self.folder, self.claim, self.files_of = folder, claim, files_of
        self.bucket = bucket_of(folder)
        self.stored: set[str] = set()

    def fetch(self) -> None:
        """Copy the claim and what is known of finished parts. Parts of another claim are deleted from the mirror.

        Raises StorageError.
        """
        if not self.bucket:
            return
        sizes = self.bucket.sizes()
        claim, own = self.bucket.read(self.claim) if self.claim in sizes else None, self.folder / self.claim
        if claim is None or not own.exists() or own.read_bytes() != claim:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.folder / "parts").mkdir(parents=True)
        self.stored = {name for name in sizes if name.startswith("parts/") and name.endswith(".json")}
        known = {name: sizes[name] for name in {*self.stored, self.claim} & sizes.keys() if claim is not None}
        # A copy that was interrupted is shorter. Equal parts have equal bytes.
        missing = {name: size for name, size in known.items() if self._size(name) != size}
        self.bucket.download(missing, self.folder)
        for path in (self.folder / "parts").glob("*.json"):
            files = () if f"parts/{path.name}" in known else self.files_of(path.stem)
            if not all((self.folder / name).exists() for name in files):  # it was deleted at the address
                path.unlink()

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else -1

    def store_claim(self) -> None:
        """Store the claim; if another machine was first, copy what that has stored. Raises StorageError."""
        if not self.bucket:
            return
        try:
            self.bucket.write(self.claim, (self.folder / self.claim).read_bytes(), new=True)
        except FileExistsError:
            self.fetch()

    def store(self, part: str) -> None:
        """Store a finished part, unless it is stored, and delete its files from the mirror. Raises StorageError."""
        name = f"parts/{part}.json"
        if not self.bucket or name in self.stored:
            return
        files = list(self.files_of(part))
        self.bucket.upload(self.folder, files)
        self.bucket.upload(self.folder, [name])
        self.stored.add(name)
        for file in files:
            (self.folder / file).unlink()

    def delete(self) -> None:
        """Delete everything at the address, the claim last. Raises StorageError."""
        if self.bucket and (names := self.bucket.sizes()):
            self.bucket.delete(name for name in names if name != self.claim)
            self.bucket.delete([self.claim])
            self.stored.clear()
