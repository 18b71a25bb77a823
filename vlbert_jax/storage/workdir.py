"""Workdirs in a bucket: a run works in a copy on local disk, of which a thread stores what changes.

Objects are replaced atomically. A checkpoint counts when its marker is stored, which happens after its files; rows
and scores of its step are stored before it. So a resumed run finds what an uninterrupted run in a folder would find.
Of a run of several processes each has its own copy, and process 0 alone stores.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from vlbert_jax.files import is_address
from vlbert_jax.storage.bucket import Bucket, StorageError
from vlbert_jax.storage.copies import UNSENT, leave_copy, make_copy, remove_copy, unsent_copy
from vlbert_jax.storage.lease import LOCK, Lease

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"  # lists the files of a checkpoint
COMMITTED = "stored.txt"  # marker of a complete checkpoint; Orbax has none of this name
STEP = re.compile(r"checkpoints/(\d+)/(.*)")
# Folders that a start does not read; `fine_tune` stores tables in the last one.
NOT_NEEDED = ("report", "tensorboard", "predictions", "probes", "profile", "damaged_checkpoints", "data")
INTERVAL = 5.0  # seconds between two looks for what has changed
FAILING = 30.0  # the same after a failure


@contextlib.contextmanager
def local_workdir(
    workdir: str | Path,
    training: bool,
    damage_of: Callable[[Path], str],
    is_first: bool = True,
    of_first: Callable[[str], str] = str,
) -> Iterator[Path]:
    """Yield the folder in which a run works: `workdir` itself, or a copy where that is an address.

    Args:
        workdir: Folder or address of the run.
        training: Whether the run writes checkpoints. An evaluation needs only the newest one, and no lock.
        damage_of: Returns what is wrong with the folder of a checkpoint, "" if nothing is.
        is_first: Whether this is process 0 of the run.
        of_first: Returns to every process of the run the text that process 0 gives.

    Raises:
        ValueError: The address cannot be used, or another run writes to it.
        StorageError: The bucket cannot be read, or the results cannot be stored; then they are kept on local disk.
    """
    if not is_address(workdir):
        yield Path(workdir)
        return
    bucket = Bucket(str(workdir))
    if not is_first:
        steps = json.loads(of_first(""))  # when process 0 has them, the bucket has them, too
        store = _opened(bucket, None, damage_of, steps)
        try:
            yield store.folder
        finally:
            remove_copy(store.folder)
        return
    lease = Lease(bucket) if training else None
    store = None
    try:
        store = _opened(bucket, lease, damage_of)
        store.thread.start()
        of_first(json.dumps(_local_steps(store.folder)))
        yield store.folder
    except BaseException as error:
        if store:
            try:
                store.close()
            except StorageError as problem:
                log.warning("%s", problem)
        elif lease:
            with contextlib.suppress(OSError):
                lease.release()
        raise error
    store.close()


def _opened(
    bucket: Bucket, lease: Lease | None, damage_of: Callable[[Path], str], only: list[int] | None = None
) -> Store:
    """Return the store of a run with the checkpoints that it needs, of the steps `only` if they are given."""
    sizes = bucket.sizes()
    steps = [step for step in committed_steps(sizes) if only is None or step in only]
    kept = unsent_copy(bucket.address) if lease else None
    if kept and max(_local_steps(kept), default=0) < max(steps, default=0):
        log.warning("%s was continued elsewhere; results of an earlier start remain in %s", bucket.address, kept.parent)
        leave_copy(kept, unsent=True)
        kept = None
    store = Store(bucket, kept or make_copy(bucket.address), lease)
    try:
        if kept:
            log.info("%s: an earlier start could not store its results; they are stored now", bucket.address)
            store.adopt(sizes)
            store.store()
        else:
            store.fetch(sizes, steps, damage_of)
    except BaseException:
        remove_copy(store.folder) if not kept else leave_copy(kept, unsent=True)
        raise
    return store


def committed_steps(sizes: dict[str, int]) -> list[int]:
    """Return the steps of the complete checkpoints among the objects of a workdir, the newest first."""
    found = (STEP.fullmatch(name) for name in sizes)
    return sorted((int(match[1]) for match in found if match and match[2] == COMMITTED), reverse=True)


def fetch_step(bucket: Bucket, sizes: dict[str, int], step: int, folder: Path) -> None:
    """Copy a checkpoint to the same place in `folder`, atomically."""
    names = {name: size for name, size in sizes.items() if name.startswith(f"checkpoints/{step}/")}
    names.pop(f"checkpoints/{step}/{COMMITTED}", None)
    log.info("copying %s/checkpoints/%d, %.1f MB", bucket.address, step, sum(names.values()) / 1e6)
    partial = folder / ".partial"
    bucket.download(names, partial)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (partial / "checkpoints" / str(step)).rename(folder / "checkpoints" / str(step))


def fetch_small(bucket: Bucket, sizes: dict[str, int], folder: Path) -> None:
    """Copy what a workdir holds to `folder`, without checkpoints and what no start reads."""
    skipped = (*NOT_NEEDED, "checkpoints")
    names = {name: size for name, size in sizes.items() if name and name.partition("/")[0] not in skipped}
    names.pop(LOCK, None)
    bucket.download(names, folder)


class Store:
    """A copy of a workdir, and what of it is in the bucket."""

    def __init__(self, bucket: Bucket, folder: Path, lease: Lease | None):
        self.bucket, self.folder, self.lease = bucket, folder, lease
        self.stored: dict[str, tuple[int, int]] = {}  # name -> size and time of the file that is in the bucket
        self.steps: set[int] = set()  # complete checkpoints in the bucket
        self.ended, self.failing = threading.Event(), False
        self.thread = threading.Thread(target=self._keep, name="bucket", daemon=True)

    def fetch(self, sizes: dict[str, int], steps: list[int], damage_of: Callable[[Path], str]) -> None:
        """Copy what a start needs. A training takes all checkpoints (`steps`), of which Orbax keeps some."""
        fetch_small(self.bucket, sizes, self.folder)
        for step in steps:
            fetch_step(self.bucket, sizes, step, self.folder)
            if not self.lease and not damage_of(self.folder / "checkpoints" / str(step)):
                break
        self.stored = {name: self._stamp(name) for name in self._names()}
        if self.lease:
            self.steps = set(steps)
            partial = (match for match in map(STEP.fullmatch, sizes) if match and int(match[1]) not in self.steps)
            self.bucket.delete([match[0] for match in partial])  # of a process that was killed

    def adopt(self, sizes: dict[str, int]) -> None:
        """Continue in a copy that was kept; all its files count as changed, except those of stored checkpoints."""
        self.steps = set(committed_steps(sizes))
        inside = (match for match in map(STEP.fullmatch, sizes) if match and int(match[1]) in self.steps)
        names = [match[0] for match in inside if match[2] != COMMITTED]
        self.stored = {name: self._stamp(name) if (self.folder / name).exists() else (0, 0) for name in names}

    def _names(self) -> list[str]:
        """Return the names of all files; hidden ones are temporary."""
        files = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        hidden = (path for path in files if not path.parts[0].startswith("."))
        return sorted(path.as_posix() for path in hidden if path.parts[0] == "checkpoints" or path.name[0] != ".")

    def _stamp(self, name: str) -> tuple[int, int]:
        about = (self.folder / name).stat()
        return about.st_size, about.st_mtime_ns

    def store(self) -> None:
        """Store all changes. Raises StorageError; what was not stored yet will be at the next call."""
        if self.lease:
            self.lease.renew()
        steps = _local_steps(self.folder) if self.lease else []  # before the rows of these steps are read
        self._send([name for name in self._names() if not name.startswith("checkpoints/")])
        for step in steps:
            self._store_step(step)
        for step in self.steps - set(_local_steps(self.folder)) if self.lease else ():
            self.bucket.delete([f"checkpoints/{step}/{COMMITTED}"])
            self.steps.discard(step)
        gone = [name for name in self.stored if not (self.folder / name).exists()]
        self.bucket.delete(gone)
        for name in gone:
            del self.stored[name]

    def _store_step(self, step: int) -> None:
        """Store a checkpoint, and after its files the marker; leave one out that Orbax is deleting."""
        start = f"checkpoints/{step}/"
        names = [name for name in self._names() if name.startswith(start)]
        try:
            self._send(names)
            listed = {start + name for name in json.loads((self.folder / start / CHECKSUMS).read_bytes())}
        except FileNotFoundError:
            return
        if step not in self.steps and listed <= set(names) and all((self.folder / name).exists() for name in names):
            self.bucket.write(start + COMMITTED, b"complete\n")
            self.steps.add(step)

    def _send(self, names: list[str]) -> None:
        """Store those of the files that have changed."""
        stamps = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it was replaced or deleted
                stamps[name] = self._stamp(name)
        changed = {name: stamp for name, stamp in stamps.items() if self.stored.get(name) != stamp}
        self.bucket.upload(self.folder, changed)
        self.stored |= changed

    def _keep(self) -> None:
        """Store changes until the run ends. A failure is reported once; the run continues on local disk."""
        while not self.ended.wait(FAILING if self.failing else INTERVAL):
            try:
                self.store()
            except OSError as error:
                if not self.failing and not isinstance(error, FileNotFoundError):
                    log.warning("%s; the run continues, and its results are kept in %s", error, self.folder.parent)
                    self.failing = True
            else:
                if self.failing:
                    log.info("%s answers again; all results are stored", self.bucket.address)
                self.failing = False

    def close(self) -> None:
        """Store the last changes, give the lock back and delete the copy.

        Raises:
            StorageError: They cannot be stored, and the copy is kept; the message says where.
        """
        self.ended.set()
        self.thread.join()
        try:
            self.store()
            if self.lease:
                self.lease.release()
        except OSError as error:
            leave_copy(self.folder, unsent=True)
            again = "the same command on this machine stores them first" if self.lease else "copy them from there"
            raise StorageError(f"{error}. The results are complete in {self.folder.parent}; {again}") from None
        (self.folder.parent / UNSENT).unlink(missing_ok=True)
        remove_copy(self.folder)


def _local_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a copy; Orbax gives them these names when they are complete."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())
