"""Build the tables of builders, unless they exist.

The functions import TFDS, which takes seconds, when they are called."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.inputs import marks_of, other_inputs
from data_prep.manifest import SourceError, read_object

if TYPE_CHECKING:
    from data_prep.builder import OrderedBuilder


@contextlib.contextmanager
def only_builder(data_dir: pathlib.Path) -> Iterator[None]:
    """Wait until no other process on this machine builds in `data_dir`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".build_lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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


def is_built(builder: OrderedBuilder) -> bool:
    """Return whether a table exists.

    Raises SourceError if it was built with other options or from other data, or its manifest is damaged.
    """
    directory = pathlib.Path(builder.data_dir)
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


def run_builders(*builders: OrderedBuilder) -> list[pathlib.Path]:
    """Build tables unless they exist, and return their directories.

    Raises SourceError before anything is built if one exists that is not the requested one.
    """
    for builder in builders:
        is_built(builder)
    return [run_builder(builder) for builder in builders]


def run_builder(builder: OrderedBuilder) -> pathlib.Path:
    """Build a table unless it exists, and return its directory.

    Remains of killed builds are removed. Raises SourceError if the table was built with other
    options or from other data."""
    from data_prep.builder import quiet_tfds

    directory = pathlib.Path(builder.data_dir)
    if is_built(builder):
        print(f"{directory}: already built from {builder.manifest.source}")
        return directory
    for remains in directory.parent.glob("incomplete.*"):
        shutil.rmtree(remains)
    # Nothing is downloaded, but TFDS creates a folder for downloads.
    with tempfile.TemporaryDirectory() as downloads, quiet_tfds():
        builder.download_and_prepare(download_dir=downloads)
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
