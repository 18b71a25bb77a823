"""Evaluation of queries of an image and a text: each is scored with every image of a gallery.

A batch of b examples is a block: query i and candidate i are the two images of example i, and the device
scores every query of the block with every candidate. So an image is read and projected once for each block of
the other side, not once for each pair. The index of an example is the number of its query and that of the
block of candidates, as one number; a last block without enough candidates has copies, whose scores are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from vlbert_jax.batch import Arrays, Batch, Example
from vlbert_jax.data import streams
from vlbert_jax.data.examples import fields_of_images, image_shapes
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.streams import batch_bytes, batches_of
from vlbert_jax.data.tables import Split, host_share
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks.match.batches import Held, gallery_of, open_pairs
from vlbert_jax.tasks.match.examples import PairLayout, text_ids
from vlbert_jax.tasks.match.recall import ranks_of_right, recalls


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """The queries of a split in the order of `text_id`, and the images among which their targets are sought."""

    records: tuple[int, ...]  # number of each query in the split
    images: tuple[int, ...]  # number of each candidate in the table of images
    right: Bool[np.ndarray, "q c"]  # whether a candidate is a target of a query
    block: int  # candidates that a batch scores with its queries

    @property
    def blocks(self) -> int:
        """The number of blocks of candidates."""
        return -(-len(self.images) // self.block)

    @property
    def known(self) -> Bool[np.ndarray, " q"]:
        """Whether each query has a target; a split that is predicted may have none."""
        return self.right.any(1)

    def sizes(self) -> list[int]:
        """Return the number of candidates of each block."""
        return [min(self.block, len(self.images) - start) for start in range(0, len(self.images), self.block)]

    def scores(self, rows: Float[np.ndarray, "e b"]) -> Float[np.ndarray, "q c"]:
        """Return the score of every query with every candidate, from the rows of all examples in their order."""
        return rows.reshape(len(self.records), -1)[:, : len(self.images)]


def queries_of(config) -> Queries:
    """Return what `config.data.eval_split` is scored on; it is read once.

    `config.data.eval_candidates` > 0 keeps the first queries, their targets, and so many images of the gallery
    that there are as many candidates as queries, or as targets if these are more.

    Raises:
        ValueError, FileNotFoundError: As `open_pairs` and `gallery_of`.
    """
    d = config.data
    own = (d.data_dir, d.texts, d.images, d.eval_split, d.eval_candidates, d.features, config.batch_size)
    return _queries(own, Held(config))


@functools.lru_cache(8)
def _queries(_, held: Held) -> Queries:
    config = held.config
    split, limit = open_pairs(config, config.data.eval_split), config.data.eval_candidates
    texts = [split.texts[number] for number in range(len(split))]
    order = sorted(range(len(texts)), key=lambda number: int(texts[number]["text_id"]))
    records = tuple(order[:limit] if limit else order)
    gallery = gallery_of(config, config.data.eval_split)
    targets = [{int(image) for image in texts[number]["targets"]} for number in records]
    if limit:
        needed = set().union(*targets)
        others = [image for image in gallery if image not in needed]
        kept = needed | set(others[: max(limit - len(needed), 0)])
        gallery = [image for image in gallery if image in kept]
    right = np.array([[image in own for image in gallery] for own in targets])
    return Queries(records, tuple(gallery), right, config.batch_size)


# --- Batches ------------------------------------------------------------------------------------------


def query_batches(
    config, targets: type[Arrays], process_index: int, process_count: int
) -> Iterator[Batch]:
    """Iterate over this process's part of the blocks of queries and candidates."""
    queries = queries_of(config)
    b, blocks, number = queries.block, queries.blocks, len(queries.records)
    make = _maker(config)

    def example(at: int) -> Example:
        batch, place = divmod(at, b)
        first, block = divmod(batch, blocks)
        query, candidate = first * b + place, block * b + place
        index = query * blocks + block if query < number else -1
        record = queries.records[min(query, number - 1)]
        image = queries.images[min(candidate, len(queries.images) - 1)]
        return make(record, image) | dict(index=np.int32(index))

    share = host_share(config, process_index, process_count)
    dataset = streams.in_order(range(-(-number // b) * blocks * b), example, lambda like: like, **share)
    return batches_of(dataset, config, targets, _bytes(config, process_count))


def report_batch(config, targets: type[Arrays]) -> Iterator[Batch]:
    """Iterate over one batch of queries with a target, each with its first target; `index` is that of the query.

    Few of them are repeated until the batch is full.
    """
    queries, make = queries_of(config), _maker(config)
    known = np.flatnonzero(queries.known)[: queries.block]

    def example(place: int) -> Example:
        query = int(known[place % len(known)])
        image = queries.images[int(queries.right[query].argmax())]
        return make(queries.records[query], image) | dict(index=np.int32(query if place < len(known) else -1))

    share = host_share(config, 0, 1)
    dataset = streams.in_order(range(queries.block if len(known) else 0), example, lambda like: like, **share)
    return batches_of(dataset, config, targets, _bytes(config, 1))


def _maker(config):
    """Return (record of a query, image number of a candidate) -> its text and the two images."""
    split, tokenizer, layout = Split(config, config.data.eval_split), tokenizer_of(config), PairLayout.of(config)
    layout = dataclasses.replace(layout, orientation="square")
    shapes = sequence_shapes(1, layout.text_length, dataclasses.replace(layout.regions, end_token=False))

    def make(record: int, image: int) -> Example:
        text = split.texts[record]
        ids, cut = text_ids(text["text"], tokenizer, layout.text_length)
        sequence = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        sequence["token_ids"][0, : len(ids)] = ids
        sequence["element_mask"][0, : len(ids)] = True
        fields = fields_of_images([split.images[int(text["image_number"])], split.images[image]], layout)
        return sequence | fields | dict(text_cut=np.bool_(cut))

    return make


def _bytes(config, process_count: int) -> int:
    layout = PairLayout.of(config, "square")
    shapes = sequence_shapes(1, layout.text_length, layout.regions) | image_shapes(layout)
    return batch_bytes(config, shapes, process_count)


# --- Scores -------------------------------------------------------------------------------------------


def query_scores(queries: Queries, rows: Float[np.ndarray, "e b"], ties: str) -> dict[str, float]:
    """Return `image_recall_K` of the queries with a target, and `mean_recall`; nothing where none has one."""
    if not queries.known.any():
        return {}
    scores = queries.scores(rows)
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores)):,} of {scores.size:,} scores are not finite.")
    found = recalls(ranks_of_right(scores[queries.known], queries.right[queries.known], ties))
    return {f"image_recall_{k}": value for k, value in found.items()} | dict(
        mean_recall=float(np.mean(list(found.values())))
    )
