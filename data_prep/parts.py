"""The parts of a table: consecutive items, which any process of any machine turns into records.

A part becomes a shard of each split that has a record of it, so the shards depend on the items
alone and not on the processes. The folder of an unfinished table has

    parts/build.json        what is built: options, marks of the inputs, number of items per part
    parts/00012.json        counts, problems and facts of a finished part; it is written last
    00012.SPLIT             its records

A part is written again unless its JSON file exists. Each file is replaced atomically, and two
processes write the same bytes, so it does no harm if they write the same part."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from data_prep.manifest import SourceError, read_object
from data_prep.sources import map_ahead

if TYPE_CHECKING:
    from data_prep.builder import OrderedBuilder

POLL = 0.5  # seconds between two updates of the progress bar
GRACE = 10.0  # seconds after which processes that do not end are killed


class Workers(NamedTuple):
    """The processes that build a table."""

    processes: int = 1  # of this machine
    shard: int = 0  # the share of this machine
    shards: int = 1  # number of machines


ONE = Workers()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[str]:
    """Yield the path of a file of this process; it replaces `path` on success, else it is deleted."""
    own = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield str(own)
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)


@contextlib.contextmanager
def _record_file(path: pathlib.Path) -> Iterator[Any]:
    """Yield the writer of a file of records, which is written atomically. Raises SourceError if the disk is full."""
    from array_record.python.array_record_module import ArrayRecordWriter

    with _replacing(path) as own:
        writer = ArrayRecordWriter(own, "group_size:1")  # as TFDS does
        try:
            yield writer
        finally:
            try:
                writer.close()  # raises the error of any earlier write, too
            except RuntimeError as error:
                raise SourceError(
                    f"{path} cannot be written ({error}); free some space, then the same command continues"
                ) from None


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file atomically; several machines may write the same content at once."""
    with _replacing(path) as own:
        pathlib.Path(own).write_text(json.dumps(content), encoding="utf-8")


def read_part(folder: pathlib.Path, number: int) -> dict[str, Any] | None:
    """Return what is known of a finished part, None if it is not finished. Raises SourceError if it is damaged."""
    path = folder / "parts" / f"{number:05d}.json"
    remedy = f"remove this file; the same command writes part {number} again"
    return read_object(path, remedy, "records", "bytes", "facts") if path.exists() else None


# --- One part -------------------------------------------------------------------------------------


class _Maker:
    """A copy of a builder that writes parts."""

    def __init__(self, content: bytes):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self._builder, self._features, self._folder = pickle.loads(content)  # of the main process
        self._serializer = ExampleSerializer(self._features.get_serialized_info())
        self._manifest = self._builder.manifest

    def _serialized(self, record: dict[str, Any]) -> bytes:
        """Return a record as TFDS stores it; by default the order of its fields would depend on the process."""
        example = self._serializer.get_tf_example(self._features.encode_example(record))
        return example.SerializeToString(deterministic=True)

    def write(self, number: int, items: Iterable[Any], tick: Callable[[], None]) -> None:
        """Write the records of a part, then its JSON file. Raises SourceError.

        Args:
          number: number of the part.
          items: its items.
          tick: function that is called after each item; its exceptions end the part.
        """
        builder, facts = self._builder, []
        builder.manifest = manifest = self._manifest.for_part()
        writers: dict[str, Any] = {}
        sizes: collections.Counter[str] = collections.Counter()
        threads = builder.num_threads
        with contextlib.ExitStack() as files:
            for made in map_ahead(builder.make, items, threads) if threads else map(builder.make, items):
                tick()
                for note in made.notes:
                    manifest.note(*note)
                if made.fact is not None:
                    facts.append(made.fact)
                if made.record is None:
                    continue
                split = made.split
                if split not in writers:
                    writers[split] = files.enter_context(_record_file(self._folder / f"{number:05d}.{split}"))
                content = self._serialized(made.record)
                writers[split].write(content)
                sizes[split] += len(content)
                manifest.records[split] = manifest.records.get(split, 0) + 1
                manifest.tally(made.record)
                manifest.count_targets(made.usable)
        write_json(self._folder / "parts" / f"{number:05d}.json", manifest.to_json() | dict(bytes=sizes, facts=facts))


# --- Several processes ----------------------------------------------------------------------------


class _Stopped(Exception):
    """The main process has ended the build."""


_maker: _Maker  # of a worker; the next two likewise
_count: Any
_stop: Any


def _start_worker(content: bytes, count: Any, stop: Any) -> None:
    global _maker, _count, _stop
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # it was killed
    _maker, _count, _stop = _Maker(content), count, stop


def _tick() -> None:
    if _stop.is_set():
        raise _Stopped
    with _count.get_lock():
        _count.value += 1


def _write_part(number: int, items: list[Any]) -> None:
    _maker.write(number, items, _tick)


class _Pool:
    """Processes that write parts; `spawn` starts them, because a fork of threads can deadlock."""

    def __init__(self, content: bytes, processes: int, progress: tqdm):
        spawn = multiprocessing.get_context("spawn")
        self._count, self._stop, self._progress, self._seen = spawn.Value("q", 0), spawn.Event(), progress, 0
        self._others = set(multiprocessing.active_children())
        arguments = content, self._count, self._stop
        self._pool = concurrent.futures.ProcessPoolExecutor(processes, spawn, _start_worker, arguments)
        self.ahead = processes + 2  # parts that may wait; their items are in memory

    def submit(self, number: int, items: list[Any]) -> concurrent.futures.Future:
        """Let a process write a part."""
        # Ctrl-C reaches all processes. A process that starts here inherits the mask, so that only
        # the main one acts on it and ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(_write_part, number, items)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def settle(self, written: concurrent.futures.Future) -> None:
        """Wait for a part. Raises the exception that ended it, and SourceError if its process was killed."""
        is_done = False
        while not is_done:
            is_done = bool(concurrent.futures.wait([written], POLL).done)
            count = self._count.value
            self._progress.update(count - self._seen)
            self._seen = count
        try:
            written.result()
        except BrokenProcessPool:
            raise SourceError(
                "a process of the build was killed, perhaps because memory ran out; the same command continues, and "
                "fewer --num_processes need less memory"
            ) from None

    def close(self) -> None:
        """End the processes after the items at which they are, or kill them if that takes too long."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + GRACE
        for process in set(multiprocessing.active_children()) - self._others:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()


class _Alone:
    """This process instead of a pool."""

    ahead = 0

    def __init__(self, content: bytes, progress: tqdm):
        self._maker, self._progress = _Maker(content), progress

    def submit(self, number: int, items: list[Any]) -> None:
        """Write a part."""
        self._maker.write(number, items, self._progress.update)

    def settle(self, written: None) -> None:
        """Do nothing; the part is written."""

    def close(self) -> None:
        """Do nothing."""


# --- All parts ------------------------------------------------------------------------------------


def write_parts(
    builder: OrderedBuilder, folder: pathlib.Path, workers: Workers, finished: Callable[[int, dict[str, Any]], None]
) -> int:
    """Write the parts of this machine that are not written yet, and return the number of all parts.

    A table of one part is written by this process alone: starting others would take longer.

    Args:
      builder: the table.
      folder: the folder of the unfinished table.
      workers: the processes.
      finished: function that gets the number of each part of this machine, in order, and what `read_part` returns.

    Raises:
      SourceError: an item cannot be used, or a process was killed. Of several errors, the first in
        the order of the items is raised, whatever the number of processes.
    """
    items, size = iter(builder.items()), builder.items_per_shard()
    batches = iter(lambda: list(itertools.islice(items, size)), [])
    first = list(itertools.islice(batches, 2))
    content = pickle.dumps((builder, builder.info.features, folder))
    waiting: collections.deque[tuple[int, Any]] = collections.deque()
    total = builder.number_of_items()
    progress = tqdm(total=total, desc=builder.name, unit=" items", mininterval=1, smoothing=0, disable=not total)
    with progress:
        processes = min(workers.processes, -(-total // size) if total else workers.processes)
        several = processes > 1 and len(first) > 1
        pool = _Pool(content, processes, progress) if several else _Alone(content, progress)

        def settle(most: int) -> None:
            while len(waiting) > most:
                number, written = waiting.popleft()
                if written is not None:
                    pool.settle(written)
                part = read_part(folder, number)
                assert part is not None
                finished(number, part)

        def all_batches() -> Iterator[list[Any]]:
            yield from first
            try:
                yield from batches
            except Exception:
                settle(0)  # raises the error of an earlier item, if there is one
                raise

        number = -1
        try:
            for number, batch in enumerate(all_batches()):
                if number % workers.shards != workers.shard:
                    continue
                is_written = (folder / "parts" / f"{number:05d}.json").exists()
                if is_written:
                    progress.initial += len(batch)  # the rate does not count them
                    progress.update(len(batch))
                waiting.append((number, None if is_written else pool.submit(number, batch)))
                settle(pool.ahead)
            settle(0)
        finally:
            pool.close()
    return number + 1
