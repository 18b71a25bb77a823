"""Records on disk -> batches on this host; `sharding.global_batch` takes them from there. Knows no task.

A stream is a Grain dataset over record *numbers*; a task's function reads the record and makes the example.
What batch k holds, and in which order, is a function of (seed, k) alone, so a run resumes from its step and any number
of hosts makes the same global batch: the numbers are shuffled as a whole, every host takes its block of each batch
*before* anything is mixed (a part of a mixed stream could give a host a single corpus).
"""

from __future__ import annotations

import bisect
import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int

Fields = dict[str, np.ndarray]

# --- Records ----------------------------------------------------------------------------------------------


@runtime_checkable
class Source(Protocol):
    """Records by number: a list, a `Records`, what `open_split` returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict: ...


def open_split(data_dir: str | os.PathLike, name: str, split: str, optional: bool = False) -> Source:
    """Random access to a split that `data_prep` built; texts are str, images encoded.

    `name` is builder/corpus, the folder under `data_dir`. Raises FileNotFoundError with the command that
    builds it. A split that is not there is empty if `optional`, else a ValueError.
    """
    folder = os.path.join(os.path.expanduser(data_dir), name)
    if not (versions := _versions(folder)):
        raise FileNotFoundError(f"no records in {folder}; build them: {_build_command(data_dir, name)}")
    builder = tfds.builder_from_directory(os.path.join(folder, versions[-1]))
    if split not in builder.info.splits:
        if optional:
            return []
        raise ValueError(f"{folder} has no split {split!r}; there are: {', '.join(builder.info.splits)}")
    return _Split(builder, split)


def _versions(folder: str | os.PathLike) -> list[str]:
    """Ascending. A build that did not end leaves a folder of another name."""
    found = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(version for version in found if re.fullmatch(r"\d+\.\d+\.\d+", version))


def fingerprint(path: str | os.PathLike) -> str:
    """Names and sizes of the files at `path`, and what is in them, in a few characters; empty for nothing.

    Of files of 1 MB or more 64 KiB count at the start, in the middle and at the end. Of a folder of builds the newest
    counts, without the manifest, which says where the data came from.
    """
    root = pathlib.Path(path).expanduser()
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
    """The name of what made the regions in the tables `names` (builder/corpus); "" where none is known.

    Raises ValueError where two differ: their features do not go together.
    """
    found = {}
    for name in names:
        folder = os.path.join(os.path.expanduser(data_dir), name)
        for manifest in sorted(glob.glob(os.path.join(glob.escape(folder), "*.*.*", "manifest.json")))[-1:]:
            with open(manifest, encoding="utf-8") as file:
                found[name] = json.load(file).get("extractor") or ""
    known = {name: extractor for name, extractor in found.items() if extractor}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} by extractor {extractor}" for name, extractor in known.items())
        raise ValueError(f"regions of different detectors, weights or settings do not go together: {told}")
    return next(iter(known.values()), "")


class _Split:
    """TFDS gives texts as bytes; this gives str, and lists of str."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._source = builder.as_data_source(split)
        # Grain's threads read in parallel; threads of each file's own would only hand records about, at five times the
        # time per record.
        files = builder.info.splits[split].file_instructions
        self._source.data_source = ArrayRecordDataSource(files, reader_options={"max_parallelism": "0"})
        self._texts, self._lists = [], []
        for key, feature in builder.info.features.items():
            if isinstance(feature, tfds.features.Text):
                self._texts.append(key)
            elif isinstance(getattr(feature, "feature", None), tfds.features.Text):
                self._lists.append(key)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> dict:
        record = self._source[number]
        for key in self._texts:
            record[key] = record[key].decode()
        for key in self._lists:
            record[key] = [text.decode() for text in record[key]]
        return record


def _build_command(data_dir: str | os.PathLike, name: str) -> str:
    builder, _, corpus = name.partition("/")
    sources = {"region_captions": ("scenes", "conceptual_captions"), "text_corpus": ("scenes", "text")}
    drawn, command = sources.get(builder, ("scene_tasks", builder.removesuffix("_images")))
    files = "FILES" if command == "text" else "FOLDER"
    dataset, _, split_by = corpus.rpartition("_")
    options = {"vqa": " --features", "refcoco": f" --dataset={dataset} --split_by={split_by} --proposals=FILE"}
    what = drawn if corpus == "scenes" else f"{command} --source={files} --corpus={corpus}{options.get(command, '')}"
    return f"python -m data_prep.build {what} --data_dir={data_dir}"


class Records:
    """Sources behind each other under one numbering; `remembered` records stay in memory once they are read."""

    def __init__(self, *sources: Source, remembered: int = 0):
        self._sources = [source for source in sources if len(source)]
        self._ends = list(itertools.accumulate(len(source) for source in self._sources))
        self._read = functools.lru_cache(remembered)(self._read) if remembered else self._read

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict:
        return self._read(number)

    def _read(self, number: int) -> dict:
        which = bisect.bisect_right(self._ends, number)
        return self._sources[which][number - (self._ends[which - 1] if which else 0)]


# --- Streams ----------------------------------------------------------------------------------------------


def per_host(batch_size: int, process_count: int) -> int:
    """Examples of a global batch that one host loads. Raises ValueError if hosts cannot share evenly."""
    if batch_size % process_count:
        raise ValueError(f"{batch_size} examples per batch cannot be shared by {process_count} hosts evenly")
    return batch_size // process_count


def stream_seed(seed: int, stream: str) -> int:
    """A seed of its own for each stream: without it, all streams would shuffle and mask alike."""
    return int(np.random.SeedSequence([seed, zlib.crc32(stream.encode())]).generate_state(1)[0])


def shuffled(
    numbers: range,
    seed: int,
    example: Callable[[int, np.random.Generator], Fields],
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
    even: bool = False,
) -> grain.MapDataset:
    """Endless batches of this host, `batch_size` examples each; every epoch in an order of its own.

    With `even` a host's rows are ordered so that its devices have about as many real regions to compute; then the order
    within a batch, and with it which dropout mask an example gets, depends on the number of hosts.
    """
    dataset = grain.MapDataset.source(numbers).seed(seed).shuffle().repeat(None).random_map(example)
    return _blocks(dataset, batch_size, process_index, process_count, stacked_evenly if even else None)


def _blocks(
    dataset: grain.MapDataset, size: int, process_index: int, process_count: int, stack: Callable | None = None
) -> grain.MapDataset:
    """This host's rows of every global batch: one block, so that all hosts' behind each other are those of one host."""

    def at(index: int) -> Fields:
        batch, row = divmod(int(index), size)
        return dataset[(batch * process_count + process_index) * size + row]

    return grain.MapDataset.range(len(dataset) // process_count).map(at).batch(size, batch_fn=stack)


def stacked_evenly(examples: Sequence[Fields]) -> Fields:
    """Examples as a batch; those with pixels in an `even_order` of their real regions."""
    if "image" in examples[0]:
        counts = [int(example["region_mask"].sum()) for example in examples]
        examples = [examples[i] for i in even_order(counts)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def even_order(weights: Sequence[int] | Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The order of numbers in which halves, quarters, eighths, ... of the whole weigh about the same.

    So one order, which does not know the devices, is even over any power of two of them, and so are their micro-batches
    (rows i, i + parts, ... of each). Dealt from the heaviest to the lightest, first, second, second, first; then each
    hand again.
    """

    def dealt(numbers: np.ndarray) -> np.ndarray:
        if len(numbers) < 3:
            return numbers
        first = np.isin(np.arange(len(numbers)) % 4, (0, 3))
        return np.concatenate([dealt(numbers[first]), dealt(numbers[~first])])

    return dealt(np.argsort(-np.asarray(weights), kind="stable"))


def in_order(
    numbers: range,
    example: Callable[[int], Fields],
    empty: Callable[[Fields], Fields],
    *,
    batch_size: int,
    process_index: int,
    process_count: int,
) -> grain.MapDataset:
    """Every number once over all hosts, in as many batches on each; `empty(an example)` fills up the last."""
    whole = -(-len(numbers) // (batch_size * process_count)) * batch_size * process_count

    def at(index: int) -> Fields:
        return example(numbers[index]) if index < len(numbers) else empty(example(numbers[0]))

    return _blocks(grain.MapDataset.range(whole).map(at), batch_size, process_index, process_count)


def mixed(datasets: Sequence[grain.MapDataset], sizes: Sequence[int]) -> grain.MapDataset:
    """Element k comes from one of `datasets`, in proportion to `sizes`, spread evenly: a function of k alone.

    Raises ValueError if there is none.
    """
    if not datasets:
        raise ValueError("the split has no record")
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, sizes)


def paired(
    first: grain.MapDataset, second: grain.MapDataset, join: Callable[[Fields, Fields], Fields]
) -> grain.MapDataset:
    """Element k joins both elements k: strictly 1:1."""
    return first.map_with_index(lambda k, element: join(element, second[k]))


def iterate(dataset: grain.MapDataset, num_threads: int, prefetch: int) -> Iterator[Fields]:
    """Elements in order, made by `num_threads` threads (0 = when asked for), at least `prefetch` of them ahead.

    Threads, as decoding, resizing and NumPy release the lock; worker processes cost 2 ms of CPU more per
    record.
    """
    ahead = max(prefetch, num_threads) if num_threads else 0  # Grain starts no more threads than that
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    return iter(dataset.to_iter_dataset(options))
