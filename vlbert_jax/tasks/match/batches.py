"""Batches of retrieval: in training choices among pairs, in evaluation images; and all texts of a split."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, abstract_batch, empty_example
from vlbert_jax.data import streams
from vlbert_jax.data.examples import image_fields, image_shapes, images_per_example, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.records import share_of
from vlbert_jax.data.streams import batch_bytes, batches_of, log_ahead, mixed, stream_seed
from vlbert_jax.data.tables import Split, host_share
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.files import parse_json, read_json_object
from vlbert_jax.tasks.layouts import names_of_regions
from vlbert_jax.tasks.match.examples import PairLayout, choice_of_pairs, text_ids

ATTEMPTS = 200  # records that are drawn for one of another image before the split is taken to have one image


# --- The records --------------------------------------------------------------------------------------


def open_pairs(config, split: str) -> Split:
    """Return the records of a split: texts, each with its image, or queries of an image and a text.

    Raises:
        ValueError: They are such queries, but `config.data.images_per_example` is 1; or as `Split`.
    """
    found = Split(config, split)
    if images_per_example(config) == 1 and len(found) and len(found.texts[0].get("targets", ())):
        raise ValueError(
            f"{split} of {config.data.texts} has queries of an image and a text (field `targets`): set "
            "config.data.images_per_example=2, as configs/own.py does."
        )
    return found


def gallery_of(config, split: str) -> list[int]:
    """Return the image numbers among which the targets of the queries of a split are sought.

    Raises:
        ValueError: The table has no gallery, or it is damaged.
    """
    path = Path(config.data.data_dir, f"{config.data.texts}_{share_of(split)[0]}_gallery.json")
    try:
        return [int(number) for number in parse_json(path.read_bytes())]
    except FileNotFoundError:
        raise ValueError(
            f"There is no gallery {path}, in which config.data.images_per_example=2 seeks the `targets` of queries of "
            "an image and a text; set it to 1 for texts, each with its image."
        ) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the table again, which writes it.") from None


# --- Training -----------------------------------------------------------------------------------------


def choice_shapes(config) -> Shapes:
    """Return shapes and dtypes of a training example of most batches."""
    d, layout = config.data, PairLayout.of(config, usual_orientation(config))
    if d.negative_texts + d.negative_images < 1:
        raise ValueError("config.data.negative_texts and negative_images are 0, so there is nothing to choose from.")
    pairs = 1 + d.negative_images + d.negative_texts
    shapes = sequence_shapes(pairs, layout.sequence_length, layout.regions)
    shapes |= image_shapes(dataclasses.replace(layout, num_images=layout.asked + 1 + d.negative_images))
    return shapes | dict(choice=((), np.int32), text_cut=((), bool), index=((), np.int32))


def batch_shapes(config, targets: type[Arrays]) -> Batch:
    """Return the global batch of an update as shapes alone."""
    return abstract_batch(config.batch_size, choice_shapes(config), targets)


def train_batches(
    config, targets: type[Arrays], start_step: int, process_index: int, process_count: int
) -> Iterator[Batch]:
    """Iterate without end over this process's part of global batches start_step, start_step + 1, ...

    What an example is compared with is drawn with its own random numbers, so that batches do not depend on
    the number of processes.
    """
    split, shapes = open_pairs(config, config.data.train_split), choice_shapes(config)
    share = host_share(config, process_index, process_count)
    tokenizer, hard = tokenizer_of(config), _HardNegatives.of(config, split)
    gallery = gallery_of(config, config.data.train_split) if images_per_example(config) == 2 else None

    def shuffled(orientation: str, numbers: range):
        layout, negatives = PairLayout.of(config, orientation), _Negatives(config, split, numbers, hard, gallery)

        def example(number: int, rng: np.random.Generator) -> Example:
            flip = rng.random() < config.data.flip_probability
            text = split.texts[number]
            texts, images = negatives.draw(text, rng)
            target = [int(rng.choice(text["targets"]))] if layout.asked else []
            records = [split.images[image] for image in (int(text["image_number"]), *target, *images)]
            made = choice_of_pairs([text["text"], *texts], records, flip, tokenizer, layout)
            return made | dict(index=np.int32(number))

        seed = stream_seed(config.seed, f"pairs of {orientation}")
        return streams.shuffled(numbers, seed, example, **share, even=config.data.even_regions)

    parts = split.parts(config)
    batches = mixed([shuffled(*part) for part in parts.items()], [len(part) for part in parts.values()])
    nbytes = batch_bytes(config, shapes, process_count)
    log_ahead(config, nbytes)
    return batches_of(batches[start_step:], config, targets, nbytes)


@dataclasses.dataclass(frozen=True)
class _HardNegatives:
    """Images that are hard to tell apart, and the texts of every image."""

    images: dict[int, list[int]]  # number of an image -> numbers of images like it
    texts: dict[int, list[int]]  # number of an image -> numbers of its texts in the split

    @classmethod
    def of(cls, config, split: Split) -> _HardNegatives | None:
        """Return the content of `config.data.hard_negatives`; None where it is empty.

        Raises:
            ValueError: The file is not valid, or has nothing for an image of the split.
        """
        path = config.data.hard_negatives
        if not path:
            return None
        local = os.path.join(config.data.data_dir, path)
        path = local if os.path.exists(local) else path
        if config.data.negative_texts < 1:
            raise ValueError("config.data.hard_negatives requires config.data.negative_texts of 1 or more.")
        found = read_json_object(path, "write an object: number of an image -> numbers of images like it")
        texts = defaultdict(list)
        for number in range(len(split)):
            texts[int(split.texts[number]["image_number"])].append(number)
        images = {}
        for image in texts:
            images[image] = [other for other in found.get(str(image), ()) if other != image and other in texts]
            if not images[image]:
                raise ValueError(f"{path} names no other image of {config.data.train_split} for image {image}.")
        return cls(images, dict(texts))


@dataclasses.dataclass(frozen=True)
class _Negatives:
    """Draws what a text and its image are compared with."""

    config: object
    split: Split
    numbers: range  # records of the same orientation, whose images share a batch
    hard: _HardNegatives | None
    gallery: list[int] | None  # images from which those for a query with an image are drawn

    def draw(self, text: dict, rng: np.random.Generator) -> tuple[list[str], list[int]]:
        """Return texts of other images than that of `text`, and numbers of other images.

        Records with the very words of `text` are not drawn: such a pair would belong together as well.
        Where there are hard negatives, the last text is one of an image that is like the image of `text`.
        """
        d, own = self.config.data, int(text["image_number"])  # pyright: ignore[reportAttributeAccessIssue]
        random = d.negative_texts - (self.hard is not None)
        texts = [self._other(text, range(len(self.split)), rng)["text"] for _ in range(random)]
        if self.hard is not None:
            like = self.hard.images[own]
            of_image = self.hard.texts[like[int(rng.integers(len(like)))]]
            texts.append(self.split.texts[of_image[int(rng.integers(len(of_image)))]]["text"])
        images = [self._other_image(text, rng) for _ in range(d.negative_images)]
        return texts, images

    def _other_image(self, text: dict, rng: np.random.Generator) -> int:
        """Return an image of another text; of the gallery one that is no target of the query."""
        if self.gallery is None:
            return int(self._other(text, self.numbers, rng)["image_number"])
        others = [image for image in self.gallery if image not in text["targets"]]
        if not others:
            d = self.config.data  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(
                f"{d.texts}: all {len(self.gallery)} images of the gallery of {d.train_split} are targets of the query "
                f"{text['text']!r}; a choice needs another image: add some to {d.train_split}_gallery.jsonl."
            )
        return others[int(rng.integers(len(others)))]

    def _other(self, text: dict, numbers: range, rng: np.random.Generator) -> dict:
        """Return another text of another image among some records."""
        for _ in range(ATTEMPTS):
            found = self.split.texts[numbers[int(rng.integers(len(numbers)))]]
            if int(found["image_number"]) != int(text["image_number"]) and found["text"] != text["text"]:
                return found
        d = self.config.data  # pyright: ignore[reportAttributeAccessIssue]
        kind = "" if len(numbers) == len(self.split) else " of one orientation"
        remedy = " Set config.data.one_orientation=False." if kind else ""
        if self.gallery is not None:
            raise ValueError(
                f"{d.texts}: {ATTEMPTS} queries of {d.train_split} have the same image or the same text, so no text of "
                "another query can be the wrong one. Set config.data.negative_texts=0."
            )
        raise ValueError(
            f"{d.texts}: {ATTEMPTS} texts of {d.train_split}{kind} have the same image; a choice needs two "
            f"images.{remedy}"
        )


# --- Evaluation ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The images of a split in the order of their numbers, and all their texts in the order of `text_id`."""

    images: tuple[int, ...]  # number of each image in its table
    parts: dict[str, tuple[int, ...]]  # orientation of the canvas -> places of its images in `images`
    records: tuple[int, ...]  # number of each text in the split
    image_of_text: Int[np.ndarray, " t"]  # place in `images`
    ids: Int[np.ndarray, "t l"]  # texts with [CLS] and [SEP]
    lengths: Int[np.ndarray, " t"]  # number of ids of each text
    cut: int  # texts that were cut


def candidates_of(config) -> Candidates:
    """Return what `config.data.eval_split` is scored on; it is read once.

    `config.data.eval_candidates` > 0 keeps the first images with their texts.

    Raises:
        ValueError, FileNotFoundError: As `Split`.
    """
    d = config.data
    own = (d.data_dir, d.texts, d.images, d.eval_split, d.eval_candidates, d.features, d.one_orientation)
    return _candidates(own, Held(config))


class Held:
    """A config that does not count in the key of a cache, because the remaining key names what is read of it."""

    def __init__(self, config):
        self.config = config
        d = config.data
        self.key = d.vocab, PairLayout.of(config).text_length, config.model.encoder.vocab_size

    def __eq__(self, other) -> bool:
        return isinstance(other, Held) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(8)
def _candidates(_, held: Held) -> Candidates:
    config, layout = held.config, PairLayout.of(held.config)
    d, tokenizer = config.data, tokenizer_of(config)
    split = open_pairs(config, d.eval_split)
    texts = [split.texts[number] for number in range(len(split))]
    numbers = sorted({int(text["image_number"]) for text in texts})
    numbers = numbers[: d.eval_candidates] if d.eval_candidates else numbers
    place = {number: i for i, number in enumerate(numbers)}
    kept = [i for i, text in enumerate(texts) if int(text["image_number"]) in place]
    kept.sort(key=lambda i: (place[int(texts[i]["image_number"])], int(texts[i]["text_id"])))
    parts = {}
    for orientation, part in split.parts(config).items():
        own = {place[int(texts[i]["image_number"])] for i in part if int(texts[i]["image_number"]) in place}
        if own:
            parts[orientation] = tuple(sorted(own))
    written = [text_ids(texts[i]["text"], tokenizer, layout.text_length) for i in kept]
    ids = np.zeros((len(kept), max(len(ids) for ids, _ in written)), np.int32)
    for row, (own, _) in zip(ids, written, strict=True):
        row[: len(own)] = own
    return Candidates(
        images=tuple(numbers),
        parts=parts,
        records=tuple(kept),
        image_of_text=np.array([place[int(texts[i]["image_number"])] for i in kept], np.int32),
        ids=ids,
        lengths=np.array([len(own) for own, _ in written], np.int32),
        cut=sum(cut for _, cut in written),
    )


def eval_parts(
    config, targets: type[Arrays], process_index: int, process_count: int
) -> list[Iterator[Batch]]:
    """Return this process's part of the images of the evaluation split, one iterator per orientation.

    Each image comes once over all processes; `index` is its place in `Candidates.images`. The sequences
    have the names of the regions, where the model reads them, and padding: the device makes the pairs.
    """
    candidates, split = candidates_of(config), Split(config, config.data.eval_split)
    share, tokenizer = host_share(config, process_index, process_count), tokenizer_of(config)

    def part(orientation: str, places: Sequence[int]) -> Iterator[Batch]:
        layout = PairLayout.of(config, orientation)
        shapes = sequence_shapes(1, layout.text_length if layout.class_names else 1, layout.regions)

        def example(number: int) -> Example:
            record = split.images[candidates.images[places[number]]]
            sequences = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
            names = names_of_regions(record, tokenizer, layout)[: layout.text_length]
            sequences["token_ids"][0, : len(names)], sequences["element_mask"][0, : len(names)] = names, True
            fields = image_fields(record, record["boxes"], layout, False)
            return sequences | fields | dict(index=np.int32(places[number]))

        def empty(like: Example) -> Example:
            return empty_example(like, targets)

        dataset = streams.in_order(range(len(places)), example, empty, **share)
        nbytes = batch_bytes(config, shapes | image_shapes(layout), process_count)
        return batches_of(dataset, config, targets, nbytes)

    return list(itertools.starmap(part, candidates.parts.items()))
