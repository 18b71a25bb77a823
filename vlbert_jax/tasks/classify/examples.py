"""Examples of classification: one or two texts, and the regions of one or two images.

`[CLS] text [SEP]`, or `[CLS] text [SEP] text2 [SEP]`, then the regions; either text may be empty. Where the
head reads a [MASK], `[MASK] [SEP]` ends the text. Of two images each has a sequence with the whole text,
or one sequence holds the regions of both, one image after the other. NumPy, without the model.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, fields_of_images
from vlbert_jax.data.packing import pack_images
from vlbert_jax.data.tokenizer import MIRROR, Tokenizer, mirrored
from vlbert_jax.files import read_lines
from vlbert_jax.tasks.classify.model import ClassHead
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout, sequence_length, text_length

SHIPPED_LABELS = Path(__file__).resolve().parents[2] / "assets/labels"
LOSSES = ("softmax", "sigmoid", "squared")  # one label | any number of labels | numbers


# --- Labels -------------------------------------------------------------------------------------------------


@functools.cache
def _read_labels(path: str) -> tuple[str, ...]:
    labels = tuple(line for line in read_lines(path) if line)
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{path} has the label {twice!r} twice")
    return labels


def labels_of(config) -> tuple[str, ...]:
    """Return the labels of a run in the order of the model's outputs, or names of its numbers.

    Raises:
        FileNotFoundError: There is no list of labels.
        ValueError: It does not have `config.model.num_labels` entries.
    """
    number = config.model.num_labels
    if loss_of(config) == "squared" and not config.data.get("labels"):
        return ("value",) if number == 1 else tuple(f"value {k + 1}" for k in range(number))
    given = config.data.get("labels", "")
    local = os.path.join(config.data.data_dir, given)
    path = next((p for p in (local, given, str(SHIPPED_LABELS / given)) if os.path.isfile(p)), "")
    if not path:
        raise FileNotFoundError(
            f"no list of labels at {local} (config.data.labels). Build the table, which writes it, or give a file with "
            "one label on each line, in the order of the model's outputs."
        )
    labels = _read_labels(path)
    if len(labels) != number:
        raise ValueError(
            f"{path} has {len(labels)} labels, but config.model.num_labels is {number}. Set it, or set "
            "config.data.labels to the list that the checkpoint was trained with."
        )
    return labels


def loss_of(config) -> str:
    """Return the kind of the loss; raise ValueError where there is no such kind."""
    if config.losses.classify not in LOSSES:
        raise ValueError(f"config.losses.classify is {config.losses.classify!r}; it must be {', '.join(LOSSES)}.")
    return config.losses.classify


def value_scale(config) -> tuple[Float32[np.ndarray, " k"], Float32[np.ndarray, " k"]]:
    """Return the mean and the deviation of each number in the training data; 0 and 1 where none are set."""
    found = []
    for name, default in (("value_means", 0.0), ("value_deviations", 1.0)):
        given = np.array(config.data.get(name, ()) or (default,) * config.model.num_labels, np.float32)
        if len(given) != config.model.num_labels:
            raise ValueError(f"config.data.{name} has {len(given)} entries, config.model.num_labels is "
                             f"{config.model.num_labels}.")  # fmt: skip
        found.append(given)
    return found[0], np.where(found[1] > 0, found[1], np.float32(1))


def targets_of(record: dict, labels: Sequence[str], layout: ClassLayout) -> tuple[Float32[np.ndarray, " k"], bool]:
    """Return the targets of a record and whether they are known.

    They are 1 for each right label, or the standardized numbers. A label that the list lacks has no 1.
    """
    if layout.loss == "squared":
        known = bool(record["known"]) and len(record["values"]) == len(labels)
        values = np.array(record["values"] if known else np.zeros(len(labels)), np.float32)
        return (values - layout.means) / layout.deviations if known else values, known
    targets = np.zeros(len(labels), np.float32)
    targets[[labels.index(label) for label in record["labels"] if label in labels]] = 1
    return targets, bool(record["known"])


# --- Examples -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassLayout(ImageLayout):
    """Fields of a config that determine an example of classification."""

    sequence_length: int
    text_length: int
    head: ClassHead
    loss: str
    means: np.ndarray
    deviations: np.ndarray
    num_segments: int  # rows of the table of segments

    @classmethod
    def of(cls, config, orientation: str = "landscape") -> ClassLayout:
        """Return the layout of a config; raise ValueError where a sequence has no room for a word."""
        d, regions, head = config.data, region_layout(config), ClassHead.of(config)
        length, images = sequence_length(config), head.num_images // head.num_sequences
        needed = 3 + 2 * (head.read == "mask") + (0 if regions.apart else images * (d.max_regions + 1))
        if length < needed:
            raise ValueError(
                f"config.data.sequence_length {length} has no room for a word and the regions of {images} image(s) of "
                f"{d.max_regions} regions: it must be at least {needed}"
            )
        means, deviations = value_scale(config)
        return cls(
            **cls.options(config, orientation, regions),
            sequence_length=length,
            text_length=text_length(config),
            head=head,
            loss=loss_of(config),
            means=means,
            deviations=deviations,
            num_segments=config.model.encoder.num_segments,
        )


def images_of(record: dict) -> list[dict]:
    """Return the record of each image of an example; `labels` of a joined record are the classes, not the boxes'."""
    return record.get("images") or [{name: value for name, value in record.items() if name != "labels"}]


def class_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: ClassLayout, labels: Sequence[str]
) -> Example:
    """Return the sequences of an example, the regions of its images, and its targets.

    In a mirrored image left and right are exchanged in the texts and the labels. Texts that do not fit are
    cut at their end, the longer one first.

    Args:
        record: As for `image_fields`, with `boxes`, or `images`, a list of such records; `text`, `text2`,
            `labels` (str), `values`, `known`.
        flip: Whether to mirror the image.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
        labels: Labels in the order of the outputs.
    """
    images = images_of(record)
    fields = fields_of_images(images, layout, flip)
    counts = fields["region_mask"].reshape(len(images), -1).sum(1).tolist()
    texts = [sum(tokenizer.words(record[name]), []) for name in ("text", "text2")]
    if flip:
        texts = [mirrored(ids, tokenizer) for ids in texts]
        record = record | dict(labels=[_mirrored_label(label, labels) for label in record["labels"]])
    groups = [list(range(len(images)))]
    if layout.head.num_sequences > 1:
        groups = [[image] for image in groups[0]]
    sequences, positions, cuts = [], [], []
    for group in groups:
        names = sum((names_of_regions(images[k], tokenizer, layout) for k in group), [])
        ids, segments, cut = _text(texts, names, _room(group, counts, layout), tokenizer, layout)
        rows = [image * (layout.max_regions + 1) + np.arange(counts[image]) for image in group]
        sequences.append(
            pack_images(
                ids, segments, rows, layout.sequence_length, tokenizer.vocab_size, layout.num_segments, layout.regions
            )
        )
        positions.append(len(ids) - 2)
        cuts.append(cut)
    targets, known = targets_of(record, labels, layout)
    return fields | {name: np.stack([one[name] for one in sequences]) for name in sequences[0]} | dict(
        mask_positions=np.array(positions, np.int32),
        label_targets=targets,
        known=np.bool_(known),
        text_cut=np.bool_(any(cuts)),
    )


def _mirrored_label(label: str, labels: Sequence[str]) -> str:
    other = " ".join(MIRROR.get(word, word) for word in label.split(" "))
    return other if other in labels else label


def _room(group: Sequence[int], counts: Sequence[int], layout: ClassLayout) -> int:
    regions = 0 if layout.regions.apart else sum(counts[image] - layout.regions.first_row for image in group)
    return min(layout.sequence_length - regions, layout.text_length)


def _text(
    texts: Sequence[list[int]], names: list[int], room: int, tokenizer: Tokenizer, layout: ClassLayout
) -> tuple[list[int], Int32[np.ndarray, " t"], bool]:
    """Return the ids and segments of the text of a sequence, and whether a text was cut."""
    (first, second), reads_mask = texts, layout.head.read == "mask"
    behind = [tokenizer.mask_id, tokenizer.sep_id] if reads_mask else []
    special = 2 + len(behind) + (1 if second else 0)
    one, two = _cut(len(first), len(second), room - special)
    ids = [tokenizer.cls_id, *first[:one], tokenizer.sep_id]
    after = [*second[:two], tokenizer.sep_id] if second else []
    after += closed(names, room - len(ids) - len(after) - len(behind), tokenizer) + behind
    segments = np.repeat(np.array([0, 1], np.int32), [len(ids), len(after)])
    return ids + after, segments, one + two < len(first) + len(second)


def _cut(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts are kept: the longer one is cut, the second at a tie."""
    over = max(first + second - max(room, 0), 0)
    longer = min(over, abs(first - second))
    first, second = (first - longer, second) if first > second else (first, second - longer)
    return first - (over - longer) // 2, second - (over - longer + 1) // 2
