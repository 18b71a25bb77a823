"""Streams of examples on one process: shuffling, mixing and batching.

A stream is a Grain dataset over record numbers; a task's function reads the record and makes the
example. What batch k holds, and in which order, is a function of (seed, k) alone, so a run resumes from
its step and any number of processes makes the same global batch: the numbers are shuffled as a whole, and
every process takes its block of each batch before anything is mixed, because a part of a mixed stream
could give a process a single corpus.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from vlbert_jax.batch import Arrays, Batch, Shapes, make_batch
from vlbert_jax.data.records import Fields

if TYPE_CHECKING:  # predictions import this module, but read no stream
    import grain

log = logging.getLogger(__name__)
AHEAD_BYTES = 2 * 2**30  # most that the batches of one process which wait for the devices may take


def per_host(batch_size: int, process_count: int) -> int:
    """Return the examples of a global batch that one process loads; raise ValueError if they do not divide."""
    if batch_size % process_count:
        raise ValueError(f"{batch_size} examples per batch cannot be shared by {process_count} hosts evenly")
    return batch_size // process_count


def stream_seed(seed: int, stream: str) -> int:
    """Return a separate seed for each stream, without which all streams would shuffle and mask alike."""
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
    """Return endless batches of this process; every epoch has its own order.

    Args:
        numbers: Record numbers.
        seed: Seed of the stream.
        example: (number, generator) -> example.
        batch_size: Examples per batch of this process.
        process_index: Number of this process.
        process_count: Number of processes.
        even: Order the rows of a batch so that devices have about the same number of real regions. Then the
            order within a batch, and with it which dropout mask an example gets, depends on the number of
            processes.
    """
    import grain

    dataset = grain.MapDataset.source(numbers).seed(seed).shuffle().repeat(None).random_map(example)
    return _blocks(dataset, batch_size, process_index, process_count, stacked_evenly if even else None)


def _blocks(
    dataset: grain.MapDataset, size: int, process_index: int, process_count: int, stack: Callable | None = None
) -> grain.MapDataset:
    """Return this process's rows of every global batch: one block, so that all blocks in order are the global batch."""

    import grain

    def at(index: int) -> Fields:
        batch, row = divmod(int(index), size)
        return dataset[(batch * process_count + process_index) * size + row]

    return grain.MapDataset.range(len(dataset) // process_count).map(at).batch(size, batch_fn=stack)


def stacked_evenly(examples: Sequence[Fields]) -> Fields:
    """Stack examples into a batch; those with pixels in an `even_order` of their real regions."""
    if "pixels" in examples[0]:
        counts = [int(example["region_mask"].sum()) for example in examples]
        examples = [examples[i] for i in even_order(counts)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def even_order(weights: Sequence[int] | Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Return an order in which halves, quarters, eighths, ... of the whole weigh about the same.

    So one order, which does not depend on the devices, is even over any power of two of them, and so are
    their micro-batches (rows i, i + parts, ... of each). The weights are dealt from the heaviest to the
    lightest: first, second, second, first; then each hand is dealt again.
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
    """Return every number once over all processes, in the same number of batches on each.

    `empty(example)` makes the examples that fill up the last batch.
    """
    import grain

    whole = -(-len(numbers) // (batch_size * process_count)) * batch_size * process_count

    def at(index: int) -> Fields:
        return example(numbers[index]) if index < len(numbers) else empty(example(numbers[0]))

    return _blocks(grain.MapDataset.range(whole).map(at), batch_size, process_index, process_count)


def mixed(datasets: Sequence[grain.MapDataset], sizes: Sequence[int]) -> grain.MapDataset:
    """Return a dataset whose element k comes from one of `datasets`, in proportion to `sizes`, spread evenly.

    It is a function of k alone.

    Raises:
        ValueError: There is no dataset.
    """
    import grain

    if not datasets:
        raise ValueError("the split has no record")
    return datasets[0] if len(datasets) == 1 else grain.MapDataset.mix(datasets, sizes)


def chosen(datasets: Mapping[str, grain.MapDataset], name_of: Callable[[int], str]) -> grain.MapDataset:
    """Return a dataset whose element k is element k of the dataset of `name_of(k)`; the others make none."""
    import grain

    length = min(len(dataset) for dataset in datasets.values())
    return grain.MapDataset.range(length).map(lambda k: datasets[name_of(int(k))][int(k)])


def paired(
    first: grain.MapDataset, second: grain.MapDataset, join: Callable[[Fields, Fields], Fields]
) -> grain.MapDataset:
    """Return a dataset whose element k joins both elements k: strictly 1:1."""
    return first.map_with_index(lambda k, element: join(element, second[k]))


def batch_bytes(config, shapes: Shapes, processes: int) -> int:
    """Return the bytes of one process's part of a batch whose examples have these shapes."""
    example = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes.values())
    return example * config.batch_size // processes


def batches_ahead(num_threads: int, prefetch: int, nbytes: int) -> int:
    """Return how many batches of `nbytes` are made ahead, so that they take at most AHEAD_BYTES.

    Each thread makes a whole batch, so there are never more threads than batches ahead.

    Args:
        num_threads: config.data.num_threads; 0 = none is made ahead.
        prefetch: config.data.prefetch.
        nbytes: Bytes of one batch; 0 = unknown.
    """
    return min(max(prefetch, num_threads), max(AHEAD_BYTES // max(nbytes, 1), 1)) if num_threads else 0


def iterate(dataset: grain.MapDataset, num_threads: int, prefetch: int, nbytes: int = 0) -> Iterator[Fields]:
    """Iterate over the elements in order, made ahead by threads as `batches_ahead` states.

    Threads suffice because decoding, resizing and NumPy release the interpreter lock; worker processes
    take 2 ms of CPU more per record.
    """
    import grain

    ahead = batches_ahead(num_threads, prefetch, nbytes)
    options = grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
    return iter(dataset.to_iter_dataset(options))


def batches_of(dataset: grain.MapDataset, config, targets: type[Arrays], nbytes: int) -> Iterator[Batch]:
    """Iterate over a dataset of batches of `nbytes`, read ahead by as many threads as the config states."""
    import cv2

    cv2.setNumThreads(0)  # the threads of Grain already use every core
    fields = iterate(dataset, config.data.num_threads, config.data.prefetch, nbytes)
    return (make_batch(batch, targets) for batch in fields)


def log_ahead(config, nbytes: int) -> None:
    """Log how many bytes of batches wait in memory."""
    ahead = batches_ahead(config.data.num_threads, config.data.prefetch, nbytes)
    log.info("input: %d batches of %.1f MB are made ahead, %.1f MB in all", ahead, nbytes / 1e6, ahead * nbytes / 1e6)
