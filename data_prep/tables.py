"""Build the tables of builders, unless they exist.

The functions import TFDS, which takes seconds, when they are called."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.inputs import marks_of, other_inputs
from data_prep.manifest import SourceError, read_object
from data_prep.parts import ONE, Workers, read_part, write_json, write_parts
from data_prep.stored import fetch_table, store_table, stored_parts
from vlbert_jax import __version__
from vlbert_jax.files import read_json_object
from vlbert_jax.storage.mirror import StoredParts, fetch_folder, store_folder

if TYPE_CHECKING:
    from data_prep.builder import OrderedBuilder


class ShareWritten(Exception):
    """The share of this machine is written; the message says what to do next."""


@contextlib.contextmanager
def only_builder(data_dir: pathlib.Path, workers: Workers = ONE) -> Iterator[None]:
    """Wait until no other command on this machine builds in `data_dir`; the shares of a build do not wait."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".build_lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if workers.shards > 1 else fcntl.LOCK_EX)
        yield


def draw_once(source: pathlib.Path, settings: dict[str, Any], write: Callable, tables: Sequence[str]) -> None:
    """Generate a synthetic corpus unless it exists.

    An interrupted call leaves `{source}.incomplete`, which the next call removes.

    Args:
      source: folder of the corpus.
      settings: settings of the corpus; the folder stores them.
      write: function of (empty folder, settings) that writes the corpus.
      tables: directories of records, under the parent of `source`, that were built from an earlier
        corpus.

    Raises:
      SourceError: the folder was generated with other settings, or its settings are damaged.
    """
    fetch_folder(source, f"{source.name}.json")
    if source.exists():
        stored = source / f"{source.name}.json"
        remedy = f"remove the folder {source}, then it is generated again"
        found = read_object(stored, remedy) if stored.is_file() else None
        if found != settings:
            raise SourceError(
                f"{source} was generated with {found}, not {settings}; remove it or choose another data_dir"
            )
        return
    incomplete = source.with_name(f"{source.name}.incomplete")
    for stale in (*(source.parent / table for table in tables), incomplete):
        shutil.rmtree(stale, ignore_errors=True)
    incomplete.mkdir()
    write(incomplete, settings)
    incomplete.rename(source)
    store_folder(source, f"{source.name}.json")


def is_built(builder: OrderedBuilder) -> bool:
    """Return whether a table exists.

    Raises SourceError if it was built with other options or from other data, or its manifest is damaged.
    """
    directory = pathlib.Path(builder.data_dir)
    fetch_table(directory)
    if not directory.exists():
        return False
    again = f"remove the folder {directory}, then it is built again"
    found = read_object(directory / "manifest.json", again, "options")
    remedy = "remove it, or change --corpus"
    if found["options"] != builder.manifest.options:
        raise SourceError(f"{directory} was built with {found['options']}, not {builder.manifest.options}: {remedy}")
    if "inputs" not in found:  # the manifest of an earlier version
        if found["source"] != builder.manifest.source:
            raise SourceError(f"{directory} was built from {found['source']}, not {builder.manifest.source}: {remedy}")
    elif other := other_inputs(found["inputs"], marks_of(builder.inputs())):
        raise SourceError(f"{directory} was built from {other}: {remedy}")
    return True


def run_builders(*builders: OrderedBuilder, workers: Workers = ONE) -> list[pathlib.Path]:
    """Build tables unless they exist, and return their directories.

    Raises SourceError before anything is built if one exists that is not the requested one, and
    ShareWritten as `run_builder` does."""
    for builder in builders:
        is_built(builder)
    return [run_builder(builder, workers) for builder in builders]


def run_builder(builder: OrderedBuilder, workers: Workers = ONE) -> pathlib.Path:
    """Build a table unless it exists, and return its directory.

    What a killed build finished is not built again; other remains are removed.

    Args:
      builder: the table.
      workers: the processes that build it.

    Raises:
      SourceError: the table was built with other options or from other data, or cannot be built.
      ShareWritten: there are several machines, and the share of this one is written.
    """
    directory = pathlib.Path(builder.data_dir)
    if is_built(builder):
        print(f"{directory}: already built from {builder.manifest.source}")
        return directory
    is_shared = workers.shards > 1
    stored = stored_parts(directory.with_name(f"incomplete.{directory.name}"))
    folder = _claim(builder, is_shared, stored)

    def finished(number: int, part: dict[str, Any]) -> None:
        stored.store(f"{number:05d}")
        if not is_shared:
            builder.manifest.merge(part)
            builder.absorb(part["facts"])

    if is_shared:
        parts = write_parts(builder, folder, workers, finished)
        raise ShareWritten(
            f"{folder}: share {workers.shard}/{workers.shards} of {parts} parts is written; after all shares, the same "
            "command without --shard completes the corpus"
        )
    _conclude(builder, folder, write_parts(builder, folder, workers, finished))
    manifest = builder.manifest
    print(f"{directory}: " + ", ".join(f"{split} {number:,}" for split, number in manifest.records.items()))
    if summary := manifest.summary():
        print(f"{directory}: {summary}")
    if manifest.converted:
        kinds = "; ".join(f"{number:,} {kind}" for kind, number in manifest.converted.most_common())
        print(f"{directory}: {manifest.converted.total():,} images were converted, which is no defect: {kinds}")
    if manifest.problems:
        counts = ", ".join(f"{manifest.count(action):,} {action}" for action in ("skipped", "repaired", "kept"))
        print(f"{directory / 'manifest.json'} lists the defects of the source: {counts}")
    return directory


def _claim(builder: OrderedBuilder, is_shared: bool, parts: StoredParts) -> pathlib.Path:
    """Create the folder of the parts of a table and return it.

    Parts of another build are removed. Raises SourceError instead if other machines may write them now.
    """
    folder, manifest = parts.folder, builder.manifest
    manifest.inputs = marks_of(builder.inputs())  # before they are read: a later change is noticed
    requested = dict(
        version=__version__, source=manifest.source, options=manifest.options, inputs=manifest.inputs,
        items_per_part=builder.items_per_shard(),
    )  # fmt: skip
    requested = json.loads(json.dumps(requested))
    claim = folder / parts.claim
    parts.fetch()
    if _is_claimed(claim, requested, is_shared):
        return folder
    if not is_shared:
        for remains in folder.parent.glob("incomplete.*"):
            shutil.rmtree(remains)
        parts.delete()
    claim.parent.mkdir(parents=True, exist_ok=True)
    write_json(claim, requested)
    parts.store_claim()
    _is_claimed(claim, requested, True)  # at an address another machine may have been first
    return folder


def _is_claimed(claim: pathlib.Path, requested: dict[str, Any], is_shared: bool) -> bool:
    """Return whether the parts in a folder are those of a build.

    Raises SourceError if they are of another build, and `is_shared`: other machines may write them now.
    """
    with contextlib.suppress(OSError, ValueError):
        found = read_json_object(claim, "remove it")
        if found == requested:
            return True
        if is_shared:
            other = next(name for name, value in requested.items() if found.get(name) != value)
            raise SourceError(
                f"{claim.parents[1]} has parts of a build with other {other}: {found.get(other)}, not "
                f"{requested[other]}; start all shares with the same command, or remove the folder"
            )
    return False


def _conclude(builder: OrderedBuilder, folder: pathlib.Path, number: int) -> None:
    """Turn the finished parts into the table; the next call completes a killed one.

    Args:
      builder: the table, which has absorbed all parts.
      folder: the folder of the parts.
      number: number of parts.

    Raises:
      SourceError: the table has no record, or its texts are no text.
    """
    import tensorflow_datasets as tfds

    from data_prep.builder import quiet_tfds

    builder.conclude(folder)
    if not builder.manifest.records:
        raise SourceError(
            f"{builder.manifest.source}: no usable item was found; data_prep/README.md describes the format"
        )
    builder.manifest.check_texts()
    lengths: dict[str, list[int]] = {}
    names: dict[str, str] = {}  # of the files of records: before and now
    sizes: collections.Counter[str] = collections.Counter()
    for part_number in range(number):
        part = read_part(folder, part_number) or {}
        for split, records in part["records"].items():
            shards = lengths.setdefault(split, [])
            before, name = f"{part_number:05d}.{split}", f"{builder.name}-{split}.array_record-{len(shards):05d}"
            names[before] = name
            with contextlib.suppress(FileNotFoundError):  # an earlier call has renamed it
                os.replace(folder / before, folder / name)
            shards.append(records)
            sizes[split] += part["bytes"][split]
    for remains in folder.glob(".*"):  # files of killed processes
        remains.unlink()
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=builder.name, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )  # fmt: skip
    infos = [
        tfds.core.SplitInfo(
            name=split, shard_lengths=shards, num_bytes=sizes[split], filename_template=template.replace(split=split)
        )
        for split, shards in lengths.items()
    ]
    with quiet_tfds():
        builder.info.set_splits(tfds.core.SplitDict(infos))
        builder.info.write_to_directory(folder)
    builder.manifest.write(folder / "manifest.json")
    directory = pathlib.Path(builder.data_dir)
    store_table(folder, directory, names)
    folder.rename(directory)
    shutil.rmtree(directory / "parts")
