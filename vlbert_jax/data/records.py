"""Records on disk: tables that `data_prep` built, read at random by number."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import math
import os
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from vlbert_jax.files import read_json_object

if TYPE_CHECKING:  # it takes a second to import, and predictions read no table
    import tensorflow_datasets

Fields = dict[str, np.ndarray]
FURTHER = ("nlvr2", "snli_ve", "retrieval", "entities", "visual7w")  # builders of the synthetic corpus scene_kinds

# --- Records ----------------------------------------------------------------------------------------------


@runtime_checkable
class Source(Protocol):
    """Records by number: a list, a `Records`, or what `open_split` returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict: ...


def open_split(data_dir: str | os.PathLike, name: str, split: str, optional: bool = False) -> Source:
    """Return random access to a split that `data_prep` built; texts are str, images encoded.

    Args:
        data_dir: Folder of all tables.
        name: builder/corpus, the folder of the table.
        split: Name of the split; it may have a share, as `train[:10%]` or `train[:10%]_landscape` (`share_of`).
        optional: Return an empty list where the split does not exist.

    Raises:
        FileNotFoundError: The table is not built; the message has the command.
        ValueError: The table has no such split, or its share is not one.
    """
    split, share = share_of(split)
    folder = os.path.join(data_dir, name)
    if not (versions := _versions(folder)):
        raise FileNotFoundError(f"no records in {folder}; build them: {_build_command(data_dir, name)}")
    import tensorflow_datasets as tfds

    table = os.path.join(folder, versions[-1])
    try:
        builder = tfds.builder_from_directory(table)
        if split in builder.info.splits:
            records = _Split(builder, split)
            return records if share == 1 else _Share(records, share)
    except Exception as error:  # TFDS and protobuf raise errors of many classes for damaged JSON
        raise ValueError(
            f"{table}: dataset_info.json or features.json is missing or damaged; restore it, or remove this folder and "
            f"build the records again ({error})"
        ) from error
    if optional:
        return []
    raise ValueError(f"{folder} has no split {split!r}; there are: {', '.join(builder.info.splits)}")


def share_of(split: str) -> tuple[str, float]:
    """Return the name of a split and its share: 0.1 of `train` for `train[:10%]`, 1 of `train` for `train`.

    Raises:
        ValueError: What is in brackets is not a percentage above 0.
    """
    name, bracket, given = split.partition("[")
    if not bracket:
        return split, 1.0
    found = re.fullmatch(r":(\d+(?:\.\d+)?)%\](\w*)", given)
    if not found or not 0 < float(found[1]) <= 100:
        raise ValueError(f"the split {split!r} has a share that is not of the form [:P%], with P above 0 and up to 100")
    return name + found[2], float(found[1]) / 100


def _versions(folder: str | os.PathLike) -> list[str]:
    """Return the versions in a folder in ascending order; an unfinished build has a folder of another name."""
    found = os.listdir(folder) if os.path.isdir(folder) else []
    versions = [version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version)]
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))  # "1.10.0" follows "1.9.0"


def corpus_fingerprint(path: str | os.PathLike) -> str:
    """Return names, sizes and content of the files at `path` in a few characters; "" if there are none.

    Of files of 1 MB or more, 64 KiB at the start, in the middle and at the end count. Of a folder of builds
    the newest counts, without its manifest, which states where the data came from.
    """
    root = pathlib.Path(path)
    if versions := _versions(root):
        root = root / versions[-1]
    inside = (file for file in root.rglob("*") if file.is_file() and file.name != "manifest.json")
    files = [root] if root.is_file() else sorted(inside)
    mark, size = hashlib.sha256(), 0
    for file in files:
        length, block = file.stat().st_size, 64 * 1024
        mark.update(f"{file.relative_to(root.parent)}:{length}\n".encode())
        blocks = {0: length} if length < 1_000_000 else dict.fromkeys((0, (length - block) // 2, length - block), block)
        with file.open("rb") as content:
            for start, count in blocks.items():
                content.seek(start)
                mark.update(content.read(count))
        size += length
    return f"{len(files)} files, {size:,} bytes, {mark.hexdigest()[:12]}" if files else ""


def extractor_of(data_dir: str | os.PathLike, *names: str) -> str:
    """Return the name of the extractor of the regions in some tables (builder/corpus); "" if unknown.

    Raises:
        ValueError: Two tables differ: their features cannot be mixed.
    """
    found = {}
    for name in names:
        folder = os.path.join(data_dir, name)
        manifests = [os.path.join(folder, version, "manifest.json") for version in _versions(folder)]
        for manifest in [path for path in manifests if os.path.exists(path)][-1:]:
            remedy = f"remove the folder {os.path.dirname(manifest)} and build it again"
            found[name] = read_json_object(manifest, remedy).get("extractor") or ""
    known = {name: extractor for name, extractor in found.items() if extractor}
    if len(set(known.values())) > 1:
        detectors = ", ".join(f"{name} by extractor {extractor}" for name, extractor in known.items())
        raise ValueError(f"regions of different detectors, weights or settings do not go together: {detectors}")
    return next(iter(known.values()), "")


class _Split:
    """Records of a split with texts as str and lists of str; TFDS returns bytes."""

    def __init__(self, builder: tensorflow_datasets.core.DatasetBuilder, split: str):
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        # Grain's threads read in parallel; threads of each file's own would only hand records about, at five times the
        # time per record.
        files = builder.info.splits[split].file_instructions
        self._source.data_source = ArrayRecordDataSource(files, reader_options={"max_parallelism": "0"})
        self._files = [file.filename for file in files]
        self._ends = list(itertools.accumulate(file.examples_in_shard for file in files))
        self._texts, self._lists = [], []
        for key, feature in builder.info.features.items():  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(feature, tfds.features.Text):
                self._texts.append(key)
            elif isinstance(getattr(feature, "feature", None), tfds.features.Text):
                self._lists.append(key)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict:
        try:
            return self._as_text(self._source[number])
        except Exception as error:  # a wrong checksum, a file that is cut or missing, or features of other records
            which = bisect.bisect_right(self._ends, number)
            first = self._ends[which - 1] if which else 0
            place = f"{self._files[which]}: record {number - first} of {self._ends[which] - first}"
            raise ValueError(
                f"{place} cannot be read; the file is damaged or missing: restore it, or remove its folder and build "
                f"the records again ({error})"
            ) from error

    def _as_text(self, record: dict) -> dict:
        for key in self._texts:
            record[key] = record[key].decode()
        for key in self._lists:
            record[key] = [text.decode() for text in record[key]]
        return record


class _Share:
    """A share of the records of a split, rounded up: the same ones in every run, and all of those of smaller shares."""

    def __init__(self, records: Source, share: float):
        number = math.ceil(share * len(records) - 1e-9)  # 0.07 * 100 is a little more than 7
        self._records, self._numbers = records, np.sort(np.random.default_rng(0).permutation(len(records))[:number])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> dict:
        return self._records[int(self._numbers[number])]


def _build_command(data_dir: str | os.PathLike, name: str) -> str:
    builder, _, corpus = name.partition("/")
    sources = {"region_captions": ("scenes", "conceptual_captions"), "text_corpus": ("scenes", "text")}
    task = builder.removesuffix("_images")
    synthetic, command = sources.get(builder, ("scene_kinds" if task in FURTHER else "scene_tasks", task))
    files = "FILES" if command == "text" else "FOLDER"
    if corpus in ("scene_questions", "scene_explanations"):
        synthetic = corpus
    is_synthetic = corpus in ("scenes", synthetic)
    what = synthetic if is_synthetic else f"{command} --source={files} {shlex.quote(f'--corpus={corpus}')}"
    options = "" if is_synthetic else f" (further options: python -m data_prep.build {command} --help)"
    place = shlex.quote(f"--data_dir={data_dir}")
    return f"python -m data_prep.build {what} {place}{options}"


class Records:
    """Several sources under one numbering; `remembered` records stay in memory once they are read and `prepared`."""

    def __init__(self, *sources: Source, remembered: int = 0, prepared: Callable[[dict], dict] | None = None):
        self._sources = [source for source in sources if len(source)]
        self._ends = list(itertools.accumulate(len(source) for source in self._sources))
        self._prepared = prepared
        self._read = functools.lru_cache(remembered)(self._read) if remembered else self._read

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict:
        return self._read(number)

    def _read(self, number: int) -> dict:
        which = bisect.bisect_right(self._ends, number)
        record = self._sources[which][number - (self._ends[which - 1] if which else 0)]
        return self._prepared(record) if self._prepared else record
