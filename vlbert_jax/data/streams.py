"""Streams of examples: shuffling, mixing and batching on one host."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from jaxtyping import Int

from vlbert_jax.batch import Arrays, Batch, make_batch
from vlbert_jax.data.records import Fields

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
    if "pixels" in examples[0]:
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


def batches_of(dataset: grain.MapDataset, config, targets: type[Arrays]) -> Iterator[Batch]:
    """Iterate over a dataset of batches, read ahead by as many threads as the config says."""
    fields = iterate(dataset, config.data.num_threads, config.data.prefetch)
    return (make_batch(batch, targets) for batch in fields)
