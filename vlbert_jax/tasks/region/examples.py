"""RefCOCO+ examples: the expression and the regions to choose from."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, image_fields, is_precomputed
from vlbert_jax.data.images import place_boxes, resize_ratios, resized
from vlbert_jax.data.packing import pack, padded
from vlbert_jax.data.tokenizer import Tokenizer, mirrored
from vlbert_jax.geometry import box_iou
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout, sequence_length, text_length

KINDS = ("gt", "detected", "both")  # of regions to choose from
LISTED = "listed"  # or those of a table that lists the right ones; see listed.py
POSITIVE = 0.5  # of a target, more of it than this is in common with what is meant; of a hit, no less


def candidates(record: dict, kind: str) -> Float[np.ndarray, "n 4"]:
    """Return the boxes to choose from in pixels of the original image: detections, then annotations."""
    boxes = dict(gt=("boxes",), detected=("proposals",), both=("proposals", "boxes"))[kind]
    return np.concatenate([record[name] for name in boxes])


def meant_row(record: dict, kind: str) -> int:
    """Return the row of the annotation that is meant, after the whole image; -1 among detections.

    Raises:
        ValueError: The image has no such annotation.
    """
    (found,) = np.nonzero(record["ann_ids"] == record["ann_id"])
    if not len(found):
        raise ValueError(
            f"expression {record['sent_id']} means annotation {record['ann_id']}, which is not one of image "
            f"{record['image_id']}: texts and images are of different builds. Remove both tables and build them again."
        )
    before = {"gt": 1, "both": 1 + len(record["proposals"]), "detected": None}[kind]
    return -1 if before is None else before + int(found[0])


def original_boxes(
    record: dict, kind: str, scale: tuple[int, int], caffe_resize: bool = False
) -> Float[np.ndarray, "r 4"]:
    """Return what a choice of each row means: the region as the model reads it, in pixels of the original image.

    Boxes are resized and resized back in single precision, as in the official code; row 0 is the whole image.
    `caffe_resize` is that of the config.
    """
    original = tuple(map(int, record["image_size"]))
    size, factor = resized(original, scale, caffe_resize)
    placed = place_boxes(candidates(record, kind), original, size, False, factor=factor)
    return placed / (np.tile(resize_ratios(original, size), 2) if factor is None else np.float32(factor))


def hits(record: dict, kind: str, scale: tuple[int, int], caffe_resize: bool = False) -> Bool[np.ndarray, "r"]:
    """Return which rows count as right when chosen.

    Boxes are compared in the original image and in double precision, as the official code does in testing.
    """
    boxes = original_boxes(record, kind, scale, caffe_resize)
    return box_iou(boxes.astype(np.float64), record["box"]) >= POSITIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpressionLayout(ImageLayout):
    """Fields of a config that determine the example of an expression."""
    kind: str  # of regions: gt, detected, both or listed
    sequence_length: int
    text_length: int = 0  # most elements of the text; 0 = as many as fit

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> "ExpressionLayout":
        """Return the layout of a config; raise ValueError on an unknown kind or without room for text."""
        d, regions, length = config.data, region_layout(config), sequence_length(config)
        field = "train_boxes" if train else "eval_boxes"
        if d[field] not in (*KINDS, LISTED):
            raise ValueError(f"config.data.{field} is {d[field]!r}, not one of {', '.join((*KINDS, LISTED))}")
        if is_precomputed(config) and d[field] != LISTED:
            raise ValueError(
                f"config.data.features is precomputed, but config.data.{field} is {d[field]!r}, whose regions have no "
                f"stored features: set config.data.features=image. Only the regions of {LISTED!r} may have features."
            )
        if not regions.apart and length < d.max_regions + 4:
            raise ValueError(
                f"config.data.sequence_length {length} has no room for {d.max_regions} regions, the whole "
                "image, [CLS], a word and [SEP]"
            )
        if text_length(config) < 3:
            raise ValueError(
                f"config.data.text_length {text_length(config)} has no room for [CLS], a word and [SEP]"
            )
        options = cls.options(config, orientation, regions)
        return cls(**options, kind=d[field], sequence_length=length, text_length=text_length(config))



def expression_example(record: dict, flip: bool, tokenizer: Tokenizer, layout: ExpressionLayout) -> Example:
    """Return `[CLS] expression [SEP]` and the regions; n = 1.

    In a mirrored image left and right are exchanged. Regions beyond `max_regions` cannot be chosen, and an
    expression that does not fit is cut at its end; the official code has no limit. `region_targets` are
    compared in the resized, perhaps mirrored image in single precision, as the official code does in
    training; `region_hits` are as in its test, see `hits`.

    Args:
        record: As for `image_fields`, with `boxes`, `ann_ids` and `proposals` of the image, `expression`,
            `ann_id` and `box` (float64) of the region that is meant.
        flip: Whether to mirror the image.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
    """
    boxes, rows = candidates(record, layout.kind), layout.max_regions + 1
    meant_row(record, layout.kind)  # raises where image and text are of different builds
    example = asked_example(record, boxes, flip, tokenizer, layout)
    original = tuple(map(int, record["image_size"]))
    size, factor = resized(original, layout.image_scale, layout.caffe_resize)
    meant = place_boxes(record["box"][None], original, size, flip, factor=factor)[1]
    is_read = np.arange(rows) >= layout.regions.first_row
    return example | dict(
        region_targets=example["region_mask"] & is_read & (box_iou(example["boxes"], meant) > POSITIVE),
        region_hits=is_read & padded(hits(record, layout.kind, layout.image_scale, layout.caffe_resize)[:rows], rows),
    )


def asked_example(
    record: dict, boxes: Float[np.ndarray, "n 4"], flip: bool, tokenizer: Tokenizer, layout: ExpressionLayout
) -> Example:
    """Return the same example without targets, for the `expression` of a record about some boxes.

    A `context`, the sentence that the expression is a phrase of, comes first, with a [SEP] of its own; the
    expression then has segment 1. Where an architecture has the names of the regions in the text, they are
    the last part, with segment 1. Where it does not read the whole image, `region_choices` excludes it.
    """
    image, regions = image_fields(record, boxes, layout, flip), layout.regions
    rows = np.arange(layout.max_regions + 1)
    num_regions = int(image["region_mask"].sum())

    def tokens(text: str) -> list[int]:
        ids = sum(tokenizer.words(text), [])
        return mirrored(ids, tokenizer) if flip else ids

    ids, context = tokens(record["expression"]), tokens(record.get("context", ""))
    room = layout.sequence_length - (0 if regions.apart else num_regions)
    room = min(room, layout.text_length or room) - 2
    text, segments = [tokenizer.cls_id], [0]
    if context:  # cut before the expression is
        room -= 1
        context_room = max(room - len(ids), 0)
        text += [*context[:context_room], tokenizer.sep_id]
        segments *= len(text)
    is_cut = len(context) + len(ids) > room
    text += [*ids[: max(room, 0)], tokenizer.sep_id]
    segments += [int(bool(context))] * (len(text) - len(segments))
    text += closed(names_of_regions(record, tokenizer, layout), room - len(context) - len(ids), tokenizer)
    segments += [1] * (len(text) - len(segments))
    zeros = np.zeros(len(text), np.int32)
    nothing_hidden = np.zeros(num_regions, bool)
    packed = pack(
        text, segments, num_regions, nothing_hidden, zeros, layout.sequence_length, tokenizer.vocab_size,
        layout=regions,
    )  # fmt: skip
    read = image["region_mask"] & (rows >= regions.first_row)
    places = regions.place_of(rows, len(text), layout.sequence_length)
    packed["region_positions"] = np.where(read, places, 0).astype(np.int32)
    choices = dict(region_choices=read) if regions.first_row else {}
    return {name: value[None] for name, value in packed.items()} | image | choices | dict(text_cut=np.bool_(is_cut))
