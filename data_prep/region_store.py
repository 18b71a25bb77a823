"""A folder of extracted regions that several processes write and the builders read.

A store is a folder:

    extraction.json              the extractor's fingerprint, the images and the format
    parts/00000-of-00004-000012.json    per finished part: its images, and the broken ones
    parts/*.journal              per unfinished part: a line for each finished image
    regions-00000-of-00004-000012.array_record (or .tsv), or a file NAME.json for each image

A shard (00000 of 4) is the work of one process, a part some consecutive images of a shard. After a
kill, a part continues after the last complete line of its journal. The files of a complete part are
written under temporary names and renamed. `vlbert_jax.data.region_files` defines the formats of the
regions themselves."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_prep.manifest import SourceError, mixed_extractors, read_object
from vlbert_jax.data.region_files import pack, table_row, unpack
from vlbert_jax.detector.fingerprint import extractor_id
from vlbert_jax.files import atomic_write, json_object
from vlbert_jax.storage.mirror import StoredParts

FORMATS = ("array_record", "json", "tsv")
PART = 256  # images per part


# --- Writing ----------------------------------------------------------------------------------


class RegionStore:
    """A store of which this process writes a shard."""

    def __init__(
        self,
        folder: pathlib.Path,
        fingerprint: dict[str, Any],
        names: tuple[str, ...],
        form: str,
        shards: int,
        sizes: Sequence[int] = (),
    ):
        """Create the store or open an existing one.

        Args:
          folder: folder of the store.
          fingerprint: fingerprint of the extractor.
          names: names of all images, in order.
          form: one of `FORMATS`.
          shards: number of shards.
          sizes: bytes of the file of each image, by which an image that was replaced is noticed; they
            are compared if the folder was made with them.

        Raises:
          SourceError: the folder has the regions of another extractor or other images, or another
            layout.
        """
        self.folder, self.form, self.names, self.shards = folder, form, names, shards
        images = dict(number=len(names), hash=_hash("\n".join(names)))
        images |= dict(sizes=_hash(str(list(sizes)))) if sizes else {}
        self.extractor = extractor_id(fingerprint)
        expected = dict(
            extractor=self.extractor, fingerprint=fingerprint, images=images, format=form, shards=shards, part=PART
        )
        self.parts = StoredParts(folder, "extraction.json", self._files_of)
        self.parts.fetch()
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        self._claim(expected)

    def _files_of(self, part: str) -> list[str]:
        """Return the files of the regions of a finished part. Raises SourceError."""
        if self.form != "json":
            return [f"regions-{part}.{self.form}"]
        return [f"{name}.json" for name in _read_part(self.folder / "parts" / f"{part}.json")["names"]]

    def _claim(self, expected: dict[str, Any]) -> None:
        path = self.folder / "extraction.json"
        with self.alone():
            if not path.exists():
                with atomic_write(path) as partial:
                    partial.write_text(json.dumps(expected, indent=1) + "\n")
                self.parts.store_claim()
        found = read_extraction(self.folder)
        for field, value in expected.items():
            before = found.get(field)
            if field == "images" and isinstance(before, dict) and "sizes" not in before.keys() & value.keys():
                before, value = dict(before, sizes=""), dict(value, sizes="")  # an earlier version stored none
            if before != value:
                raise SourceError(
                    f"{path}: {field} was {_short(before)}, is now {_short(value)}; use the same detector, options and "
                    f"images, or another --out, or remove the folder {self.folder}"
                )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process of this machine changes the files that all shards share."""
        with open(self.folder / "parts" / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def shard(self, number: int) -> Iterator[Part]:
        """Yield the parts of a shard.

        Raises SourceError if another process of this machine works on the shard.
        """
        label = f"{number:05d}-of-{self.shards:05d}"
        with open(self.folder / "parts" / f".{label}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SourceError(
                    f"{self.folder}: another process works on shard {number}/{self.shards}; choose another --shard"
                ) from None
            numbers = range(number, len(self.names), self.shards)
            for i, start in enumerate(range(0, len(numbers), PART)):
                yield Part(self, f"{label}-{i:06d}", numbers[start : start + PART])

    def is_complete(self) -> bool:
        """Return whether every part of every shard is finished."""
        self.parts.fetch()
        shards = (len(range(number, len(self.names), self.shards)) for number in range(self.shards))
        return len(list((self.folder / "parts").glob("*.json"))) == sum(-(-images // PART) for images in shards)


class Part:
    """Some images of a shard: `add` each image of `waiting`, then `finish`."""

    def __init__(self, store: RegionStore, label: str, numbers: range):
        self.store, self.numbers = store, numbers
        self.path = store.folder / "parts" / f"{label}.json"
        self.data = store.folder / f"regions-{label}.{store.form}"
        self.journal = self.path.with_suffix(".journal")
        self.done = self.path.exists()
        lines = [] if self.done else self._recover()
        seen = {line["name"] for line in lines}
        self.waiting = [] if self.done else [i for i in numbers if store.names[i] not in seen]

    def _recover(self) -> list[dict]:
        """Return the complete lines of the journal and remove what follows the last of them.

        Raises SourceError if one of them is damaged.
        """
        if not self.journal.exists():
            return []
        content = self.journal.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            os.truncate(self.journal, len(complete))
        remedy = "remove this file, then its images are extracted again"
        try:
            lines = enumerate(complete.splitlines(), 1)
            return [json_object(line, f"{self.journal}, line {i},", remedy, "name") for i, line in lines]
        except ValueError as error:
            raise SourceError(str(error)) from None

    def add(self, name: str, record: dict[str, Any] | None, error: str = "") -> None:
        """Append an image to the journal.

        Args:
          name: name of the image.
          record: its regions as `encode_regions` returns them; None = the image is broken.
          error: the reason why the image is broken.
        """
        line = dict(name=name, error=error) if record is None else dict(name=name, record=record)
        content = json.dumps(line).encode() + b"\n"
        start = self.journal.stat().st_size if self.journal.exists() else 0
        try:
            with open(self.journal, "ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.journal, start)
            raise

    def finish(self) -> list[dict]:
        """Write the files of the part and remove its journal.

        Returns:
          The broken images, each a dict of `name` and `error`.
        """
        lines = {line["name"]: line for line in self._recover()}
        lines = [lines[self.store.names[i]] for i in self.numbers]
        broken = [line for line in lines if "error" in line]
        regions = {line["name"]: line["record"] for line in lines if "record" in line}
        self._write_regions(regions)
        about = dict(extractor=self.store.extractor, names=list(regions), broken=broken)
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(about) + "\n")
        self.journal.unlink(missing_ok=True)
        self.done = True
        return broken

    def _write_regions(self, regions: dict[str, dict[str, Any]]) -> None:
        if self.store.form == "tsv":
            with atomic_write(self.data) as partial:
                partial.write_text("".join(map(table_row, regions.values())))
            return
        regions = {name: record | dict(extractor=self.store.extractor) for name, record in regions.items()}
        if self.store.form == "json":
            for name, record in regions.items():
                with atomic_write(self.store.folder / f"{name}.json") as partial:
                    partial.write_text(json.dumps(record))
        else:
            with atomic_write(self.data) as partial:
                _write_array_record(partial, map(pack, regions.values()))


def _write_array_record(path: pathlib.Path, contents: Iterator[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for content in contents:
            writer.write(content)
        writer.close()
    except RuntimeError as error:  # the library raises it for a full disk
        raise OSError(f"{path}: {error}") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return str(value) if not isinstance(value, dict) else json.dumps(value)[:200]


# --- Reading ----------------------------------------------------------------------------------


def read_extraction(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of a store's `extraction.json`. Raises SourceError."""
    remedy = "remove the folder and extract again"
    found = read_object(folder / "extraction.json", remedy, "extractor", "format")
    if not isinstance(found["extractor"], str):
        raise SourceError(f"{folder / 'extraction.json'} is damaged: the extractor is not a text; {remedy}")
    return found


def _read_part(path: pathlib.Path) -> dict[str, Any]:
    """Return the content of the file of a complete part. Raises SourceError."""
    remedy = "remove this file and extract again"
    found = read_object(path, remedy, "extractor", "names", "broken")
    names, broken = found["names"], found["broken"]
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or not isinstance(broken, list) or not all(map(_is_broken, broken)):
        raise SourceError(f"{path} is damaged: names and broken are not lists of images; {remedy}")
    return found


def _is_broken(line: Any) -> bool:
    return isinstance(line, dict) and all(isinstance(line.get(name), str) for name in ("name", "error"))


def store_extractor(folder: pathlib.Path) -> str:
    """Return the id of the extractor of a store, "" if the folder is not a store.

    Raises SourceError.
    """
    return read_extraction(folder)["extractor"] if (folder / "extraction.json").is_file() else ""


def open_records(folder: pathlib.Path) -> Records | None:
    """Return the records of a store of ArrayRecord files, None if the folder is not one.

    Raises SourceError.
    """
    if not (folder / "extraction.json").is_file() or read_extraction(folder)["format"] != "array_record":
        return None
    return Records(folder)


class Records:
    """Access to a store of ArrayRecord files by the names of the images."""

    def __init__(self, folder: pathlib.Path):
        """Find the records of all parts. Raises SourceError if a part is of another extractor."""
        self.folder, self.extractor = folder, read_extraction(folder)["extractor"]
        self._places: dict[str, tuple[str, int]] = {}
        self._reader = functools.lru_cache(maxsize=16)(lambda file: ArrayRecordReader(str(folder / file)))
        self._lock = threading.Lock()
        for path in sorted((folder / "parts").glob("*.json")):
            about = _read_part(path)
            if about["extractor"] != self.extractor:
                first = str(folder / "extraction.json")
                raise SourceError(mixed_extractors(first, self.extractor, str(path), about["extractor"]))
            file = f"regions-{path.stem}.array_record"
            self._places |= {name: (file, i) for i, name in enumerate(about["names"])}

    def __reduce__(self):  # another process opens its own files
        return Records, (self.folder,)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> bytes:
        """Return the regions of an image in the JSON format of the official code.

        Raises FileNotFoundError, and SourceError if the file of the regions is damaged or missing.
        """
        if name not in self._places:
            raise FileNotFoundError(f"there are no regions of {name} in {self.folder}")
        file, position = self._places[name]
        try:
            with self._lock:
                (content,) = self._reader(file).read([position])
            return json.dumps(unpack(content)).encode()
        except (RuntimeError, ValueError) as error:
            part = self.folder / "parts" / file.replace("regions-", "").replace(".array_record", ".json")
            raise SourceError(
                f"{self.folder / file}: the regions of {name} (record {position}) cannot be read; the file is damaged "
                f"or missing: restore it, or remove {part} and extract again ({error})"
            ) from None


def broken_images(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each broken image of a store, and the reason. Raises SourceError."""
    for path in sorted((folder / "parts").glob("*.json")):
        for line in _read_part(path)["broken"]:
            yield line["name"], line["error"]
