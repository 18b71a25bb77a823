"""Batches of captioning: in training one caption of an image, in evaluation every image once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, empty_example
from vlbert_jax.data import streams
from vlbert_jax.data.examples import usual_orientation
from vlbert_jax.data.streams import batch_bytes, batches_of, log_ahead, mixed, stream_seed
from vlbert_jax.data.tables import Split, host_share
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks.caption.examples import DescriptionLayout, description_example, description_shapes

EVAL_SEED = 20_261_129  # masks of evaluation do not depend on the seed of the run


def example_shapes(config) -> Shapes:
    """Return shapes and dtypes of an example of most batches."""
    return description_shapes(DescriptionLayout.of(config, usual_orientation(config))) | dict(index=((), np.int32))


def train_batches(
    config, targets: type[Arrays], start_step: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """Iterate without end over this process's part of global batches start_step, start_step + 1, ..."""
    split, share = Split(config, config.data.train_split), host_share(config, process_index, process_count)
    tokenizer, nbytes = tokenizer_of(config), batch_bytes(config, example_shapes(config), process_count)

    def shuffled(orientation: str, numbers: range):
        layout = DescriptionLayout.of(config, orientation)

        def example(number: int, rng: np.random.Generator) -> Example:
            flip = rng.random() < config.data.flip_probability
            return description_example(split[number], flip, rng, tokenizer, layout) | dict(index=np.int32(number))

        seed = stream_seed(config.seed, f"captions of {orientation}")
        return streams.shuffled(numbers, seed, example, **share, even=config.data.even_regions)

    parts = split.parts(config)
    batches = mixed([shuffled(*part) for part in parts.items()], [len(part) for part in parts.values()])
    log_ahead(config, nbytes)
    return batches_of(batches[start_step:], config, targets, nbytes)


def eval_parts(
    config, targets: type[Arrays], process_index: int, process_count: int
) -> list[Iterator[Batch]]:
    """Return this process's part of the evaluation split, one iterator per orientation.

    Every image comes once over all processes, with its first caption; `index` is the number of that record.
    """
    split, share = Split(config, config.data.eval_split), host_share(config, process_index, process_count)
    tokenizer, seed = tokenizer_of(config), stream_seed(EVAL_SEED, "captions")
    firsts = first_captions(split)

    def part(orientation: str, numbers: Sequence[int]) -> Iterator[Batch]:
        layout = DescriptionLayout.of(config, orientation)

        def example(place: int) -> Example:
            number = numbers[place]
            rng = np.random.default_rng([seed, number])
            return description_example(split[number], False, rng, tokenizer, layout) | dict(index=np.int32(number))

        def empty(like: Example) -> Example:
            return empty_example(like, targets)

        dataset = streams.in_order(range(len(numbers)), example, empty, **share)
        nbytes = batch_bytes(config, example_shapes(config), process_count)
        return batches_of(dataset, config, targets, nbytes)

    parts = {name: [number for number in numbers if number in firsts] for name, numbers in split.parts(config).items()}
    return list(itertools.starmap(part, ((name, numbers) for name, numbers in parts.items() if numbers)))


def first_captions(split: Split) -> set[int]:
    """Return the numbers of the records that are the first of their image."""
    seen: dict[int, int] = {}
    for number in range(len(split)):
        seen.setdefault(int(split.texts[number]["image_number"]), number)
    return set(seen.values())
