"""Extracted regions on disk: parts that are written whole, by several processes, and read by the builders.

A store is a folder:

    extraction.json              what made it (the extractor's fingerprint), from which images, how
    parts/00000-of-00004-000012.json    of each finished part: its images, and which were broken and why
    parts/*.journal              of a part in the making: a line for each image that is done
    regions-00000-of-00004-000012.array_record (or .tsv), or a file NAME.json for each image

A shard (00000 of 4) is what one process does, a part some of its images in a row. After a kill a part goes on behind
the last whole line of its journal; when it is complete its files are written under other names and renamed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from data_prep.builder import SourceError, mixed
from vlbert_jax.detector.fingerprint import extractor_id
from vlbert_jax.files import atomic_write

FORMATS = ("array_record", "json", "tsv")
ARRAYS = ("boxes", "classes", "attrs", "features")  # float32, of the official per-image JSON
TABLE = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")  # of Anderson et al.
PART = 256  # images


class RegionStore:
    """A store that this process writes a shard of. Raises SourceError where another extraction is in the folder."""

    def __init__(
        self, folder: pathlib.Path, fingerprint: dict[str, Any], names: tuple[str, ...], form: str, shards: int
    ):
        self.folder, self.form, self.names, self.shards = folder, form, names, shards
        images = dict(number=len(names), hash=hashlib.sha256("\n".join(names).encode()).hexdigest()[:16])
        self.extractor = extractor_id(fingerprint)
        wanted = dict(
            extractor=self.extractor, fingerprint=fingerprint, images=images, format=form, shards=shards, part=PART
        )
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        self._claim(wanted)

    def _claim(self, wanted: dict[str, Any]) -> None:
        path = self.folder / "extraction.json"
        with self.alone():
            if not path.exists():
                with atomic_write(path) as beside:
                    beside.write_text(json.dumps(wanted, indent=1) + "\n")
        found = read_extraction(self.folder)
        for field, value in wanted.items():
            if found.get(field) != value:
                raise SourceError(
                    f"{path}: {field} was {_short(found.get(field))}, is now {_short(value)}; give the same detector, "
                    "options and images, or another --out"
                )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process of this machine changes what the shards share."""
        with open(self.folder / "parts" / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def shard(self, number: int) -> Iterator[Part]:
        """The parts of a shard, in order. Raises SourceError if another process of this machine is at it."""
        label = f"{number:05d}-of-{self.shards:05d}"
        with open(self.folder / "parts" / f".{label}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SourceError(f"{self.folder}: another process is at shard {number}/{self.shards}") from None
            numbers = range(number, len(self.names), self.shards)
            for i, start in enumerate(range(0, len(numbers), PART)):
                yield Part(self, f"{label}-{i:06d}", numbers[start : start + PART])

    def is_complete(self) -> bool:
        """Whether every part of every shard is there."""
        shards = (len(range(number, len(self.names), self.shards)) for number in range(self.shards))
        return len(list((self.folder / "parts").glob("*.json"))) == sum(-(-images // PART) for images in shards)


class Part:
    """Some images of a shard: `add` each of `waiting`, then `finish`."""

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
        """The whole lines of the journal; what follows the last of them is cut off."""
        if not self.journal.exists():
            return []
        content = self.journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.journal, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, name: str, record: dict[str, Any] | None, error: str = "") -> None:
        """Notes the regions of an image, or why there are none."""
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
        """Writes the part's files and forgets the journal; what was broken, as (name, error)."""
        lines = {line["name"]: line for line in self._recover()}
        lines = [lines[self.store.names[i]] for i in self.numbers]
        good = [(line["name"], line["record"]) for line in lines if "record" in line]
        broken = [line for line in lines if "error" in line]
        if self.store.form == "json":
            for name, record in good:
                with atomic_write(self.store.folder / f"{name}.json") as beside:
                    beside.write_text(json.dumps(record | dict(extractor=self.store.extractor)))
        else:
            with atomic_write(self.data) as beside:
                if self.store.form == "tsv":
                    rows = ["\t".join(str(record[column]) for column in TABLE) + "\n" for _, record in good]
                    beside.write_text("".join(rows))
                else:
                    self._write_array_record(beside, [record for _, record in good])
        about = dict(extractor=self.store.extractor, names=[name for name, _ in good], broken=broken)
        with atomic_write(self.path) as beside:
            beside.write_text(json.dumps(about) + "\n")
        self.journal.unlink(missing_ok=True)
        self.done = True
        return broken

    def _write_array_record(self, path: pathlib.Path, records: list[dict]) -> None:
        writer = ArrayRecordWriter(str(path), "group_size:1")
        try:
            for record in records:
                writer.write(pack(record | dict(extractor=self.store.extractor)))
            writer.close()
        except RuntimeError as error:  # what its library makes of a full disk
            raise OSError(f"{path}: {error}") from None


def _short(value: Any) -> str:
    return str(value) if not isinstance(value, dict) else json.dumps(value)[:200]


# --- Records --------------------------------------------------------------------------------------------------


def official_record(
    image_id: int, size: tuple[int, int], arrays: dict[str, np.ndarray | None]
) -> dict[str, Any]:
    """The per-image object of the official code, of `size` = (width, height); float32 in base64."""
    texts = {
        name: base64.b64encode(np.ascontiguousarray(array, "<f4")).decode()
        for name, array in arrays.items()
        if array is not None
    }
    number = len(arrays["boxes"])
    return dict(image_id=image_id, image_h=size[1], image_w=size[0], num_boxes=number) | texts


def pack(record: dict[str, Any]) -> bytes:
    """An official object with its arrays as such, in NumPy's .npz: a quarter smaller, and read without JSON."""
    file = io.BytesIO()
    arrays = {
        name: np.frombuffer(base64.b64decode(value), "<f4") if name in ARRAYS else np.asarray(value)
        for name, value in record.items()
    }
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """The reverse."""
    with np.load(io.BytesIO(content)) as arrays:
        return {
            name: base64.b64encode(arrays[name].tobytes()).decode() if name in ARRAYS else arrays[name].item()
            for name in arrays.files
        }


# --- Reading --------------------------------------------------------------------------------------------------


def read_extraction(folder: pathlib.Path) -> dict[str, Any]:
    """What made a store. Raises SourceError."""
    path = folder / "extraction.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}); remove the folder and extract again") from None


def open_records(folder: pathlib.Path) -> Records | None:
    """The store of ArrayRecord files in a folder; None where there is none."""
    if not (folder / "extraction.json").is_file() or read_extraction(folder)["format"] != "array_record":
        return None
    return Records(folder)


class Records:
    """The images of a store of ArrayRecord files by name. Raises SourceError where a part is of another extractor."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.extractor = folder, read_extraction(folder)["extractor"]
        self._places: dict[str, tuple[str, int]] = {}
        self._reader = functools.lru_cache(maxsize=16)(lambda file: ArrayRecordReader(str(folder / file)))
        self._lock = threading.Lock()
        for path in sorted((folder / "parts").glob("*.json")):
            about = json.loads(path.read_text())
            if about["extractor"] != self.extractor:
                raise SourceError(mixed(str(folder / "extraction.json"), self.extractor, str(path), about["extractor"]))
            file = f"regions-{path.stem}.array_record"
            self._places |= {name: (file, i) for i, name in enumerate(about["names"])}

    def read(self, name: str) -> bytes:
        """The official JSON of an image. Raises FileNotFoundError."""
        if name not in self._places:
            raise FileNotFoundError(f"no regions of {name} in {self.folder}")
        file, position = self._places[name]
        with self._lock:
            (content,) = self._reader(file).read([position])
        return json.dumps(unpack(content)).encode()


def check_parts(folder: pathlib.Path) -> Iterable[str]:
    """Every broken image of a store, as `name: reason`."""
    for path in sorted((folder / "parts").glob("*.json")):
        for line in json.loads(path.read_text())["broken"]:
            yield f"{line['name']}: {line['error']}"
