"""Batches of a table of texts over a table of images.

The record of a text names its image by `image_number`, or several by `image_numbers`. Splits of the texts
are stored by the orientation of the (first) image, because a batch holds images of one orientation;
batches of examples with several images have square canvases. `index` in a batch is the number of the
example in its split, -1 in padding.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator

import numpy as np

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, abstract_batch, empty_example
from vlbert_jax.data import streams
from vlbert_jax.data.examples import has_orientations, images_per_example, is_precomputed, remembered_images
from vlbert_jax.data.records import Records, Source, open_split
from vlbert_jax.data.sibling_rules import kept_regions
from vlbert_jax.data.streams import batch_bytes, batches_of, log_ahead, mixed, per_host, stream_seed

CHECKED = 256  # records of a split whose targets are checked
ROWS = ("boxes", "features", "best_class", "best_score")  # fields of an image with a row per region, or none
log = logging.getLogger(__name__)

# (config, orientation, train) -> (record, mirrored) -> example
ExampleMaker = Callable[..., Callable[[dict, bool], Example]]


class Split:
    """The records of a split, text and image joined, landscape before portrait; `train+val` joins two splits.

    `train[:10%]` is a tenth of the records of each orientation.

    Several images of a text are a list of records, `images`.
    """

    def __init__(self, config, split: str):
        """Open the tables.

        Raises:
            ValueError: There is no such split, or images are needed and the table was built without.
            FileNotFoundError: The tables are missing; the message has the command that builds them.
        """
        d = config.data
        by_orientation = [
            [open_split(d.data_dir, d.texts, f"{name}_{orientation}", optional=True) for name in split.split("+")]
            for orientation in ("landscape", "portrait")
        ]
        for name, landscape, portrait in zip(split.split("+"), *by_orientation, strict=True):
            if not len(landscape) and not len(portrait):
                open_split(d.data_dir, d.texts, f"{name}_landscape")  # raises, and names the splits that exist
        self.texts = Records(*itertools.chain(*by_orientation), remembered=d.remember_records)
        images = open_split(d.data_dir, d.images, "images")
        if not is_precomputed(config) and len(images) and not images[0]["image"]:
            raise ValueError(
                f"{d.images} in {d.data_dir} was built without images, but config.data.features is image. Build the "
                "images, or set config.data.features=precomputed."
            )
        decoded, confident = remembered_images(config), confident_regions(config)
        prepared = (lambda record: decoded(confident(record))) if decoded and confident else decoded or confident
        self.images = Records(images, remembered=d.remember_records, prepared=prepared)
        self.num_landscape = sum(map(len, by_orientation[0]))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> dict:
        text = self.texts[number]
        if "image_numbers" in text:
            return dict(images=[self.images[int(image)] for image in text["image_numbers"]]) | text
        return self.images[int(text["image_number"])] | text

    def parts(self, config) -> dict[str, range]:
        """Return the numbers of the records that may share a batch, by the orientation of its canvas."""
        if not has_orientations(config):
            return {"square": range(len(self))}
        numbers = dict(landscape=range(self.num_landscape), portrait=range(self.num_landscape, len(self)))
        return {orientation: part for orientation, part in numbers.items() if part}


def confident_regions(config) -> Callable[[dict], dict] | None:
    """Return a function that leaves in the record of an image the regions that UNITER keeps; None = all are kept.

    These are the regions of more confidence than `config.data.region_confidence`, at least ten and at most
    `max_regions` (`kept_regions`). They keep their order. A record without confidences keeps all: published tables have
    none, and their detector has applied the same rule.
    """
    threshold, most = config.data.get("region_confidence", 0.0), config.data.max_regions

    def confident(record: dict) -> dict:
        scores = record.get("best_score", ())
        if not len(scores):
            _warn_of_no_scores()
            return record
        best = np.argsort(-scores, kind="stable")[: kept_regions(scores, threshold, most=most)]
        return record | {name: record[name][np.sort(best)] for name in ROWS if len(record[name])}

    return confident if threshold > 0 else None


@functools.cache
def _warn_of_no_scores() -> None:
    """Log once that all regions are read although the recipe chooses some."""
    log.warning(
        "config.data.region_confidence chooses regions, but the table of images has no confidences: all are read; "
        "build the table with --classes, or set it to 0"
    )


def check_targets(config, split: str, is_usable: Callable[[dict], bool] | None, remedy: str) -> None:
    """Check some records of a split, text and image joined; see `require_usable`."""
    if is_usable is not None:
        examples = Split(config, split)
        missing = f"records of {split} in {config.data.texts} has a usable target"
        require_usable(examples, is_usable, missing, remedy, examples.texts)


def require_usable(
    records: Source, is_usable: Callable[[dict], bool], missing: str, remedy: str, shown: Source | None = None
) -> None:
    """Check some records, evenly spread, until one is usable.

    Args:
        records: The records of a split.
        is_usable: Record -> whether something can be learned from it or scored on it.
        missing: What none of the records has, for the message: "records of ... has ...".
        remedy: What to do about it.
        shown: Records of which the message shows the first, in place of `records`.

    Raises:
        ValueError: None of the records is usable, so the loss or score would be empty.
    """
    numbers = sorted({k * len(records) // CHECKED for k in range(CHECKED)}) if len(records) else []
    if numbers and not any(is_usable(records[number]) for number in numbers):
        hidden = (bytes, np.ndarray)
        first = {name: value for name, value in (shown or records)[0].items() if not isinstance(value, hidden)}
        raise ValueError(
            f"None of {len(numbers)} {missing}, so nothing could be learned or scored: the first is "
            f"{' '.join(str(first).split())[:200]}. {remedy}"
        )


def batch_shapes(config, shapes: Shapes, targets: type[Arrays]) -> Batch:
    """Return the global batch of an update as shapes alone, from those of a task's example."""
    return abstract_batch(config.batch_size, shapes | dict(index=((), np.int32)), targets)


def train_batches(
    config,
    maker: ExampleMaker,
    shapes: Shapes,
    targets: type[Arrays],
    start_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """Iterate without end over this process's part of global batches start_step, start_step + 1, ..."""
    split, share = Split(config, config.data.train_split), host_share(config, process_index, process_count)

    def shuffled(orientation: str, numbers: range):
        make = maker(config, orientation, True)

        def example(number: int, rng: np.random.Generator) -> Example:
            flip = rng.random() < config.data.flip_probability and images_per_example(config) == 1
            return make(split[number], flip) | dict(index=np.int32(number))

        seed = stream_seed(config.seed, orientation)
        return streams.shuffled(numbers, seed, example, **share, even=config.data.even_regions)

    parts = split.parts(config)
    batches = mixed([shuffled(*part) for part in parts.items()], [len(part) for part in parts.values()])
    nbytes = batch_bytes(config, shapes, process_count)
    log_ahead(config, nbytes)
    return batches_of(batches[start_step:], config, targets, nbytes)


def eval_parts(
    config, maker: ExampleMaker, shapes: Shapes, targets: type[Arrays], process_index: int, process_count: int
) -> list[Iterator[Batch]]:
    """Return this process's part of the evaluation split, one iterator per orientation.

    Every example comes once over all processes; all processes get the same number of batches.
    """
    split, share = Split(config, config.data.eval_split), host_share(config, process_index, process_count)

    def in_order(orientation: str, numbers: range) -> Iterator[Batch]:
        make = maker(config, orientation, False)

        def example(number: int) -> Example:
            return make(split[number], False) | dict(index=np.int32(number))

        def empty(like: Example) -> Example:
            return empty_example(like, targets)

        dataset = streams.in_order(numbers, example, empty, **share)
        return batches_of(dataset, config, targets, batch_bytes(config, shapes, process_count))

    return list(itertools.starmap(in_order, split.parts(config).items()))


def host_share(config, process_index: int, process_count: int) -> dict[str, int]:
    """Return the options of `streams` that give this process its part of each batch of a run."""
    share = per_host(config.batch_size, process_count)
    return dict(batch_size=share, process_index=process_index, process_count=process_count)
