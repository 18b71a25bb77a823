"""VCR examples: one sequence per response, of the text and the regions.

In VL-BERT the text is `[CLS] question [SEP] response [SEP]`, a word that names an object carries the visual feature of
that object, and other words carry that of the whole image. `texts.py` has the texts of all architectures, and
`inline.py` those of B2T2, whose words are the regions. NumPy, without the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.data.packing import RegionLayout, pack, padded
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.model.config import architecture_of
from vlbert_jax.tasks.choice.inline import SPECIAL, inline_texts
from vlbert_jax.tasks.choice.texts import (
    ARRANGEMENTS,
    SEGMENTS,
    SUBTASKS,
    Tokens,
    cut_texts,
    first_name,
    joined,
    segments_of,
    texts_of,
    words_of_rows,
)
from vlbert_jax.tasks.layouts import region_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceLayout(ImageLayout):
    """Fields of a config that determine the example of a question with its choices."""
    subtask: str
    sequence_length: int
    text_length: int  # tokens of all texts of a sequence, without [CLS] and [SEP]
    roi_size: int
    num_classes: int
    num_choices: int = 4
    arrangement: str = "context"  # of `ARRANGEMENTS`
    align_regions: bool = False  # whether a region has the positions of the words that refer to it (VisualBERT)

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> ChoiceLayout:
        """Return the layout of a config; raise ValueError where its fields contradict."""
        d, regions = config.data, region_layout(config)
        if config.subtask not in SUBTASKS:
            raise ValueError(f"config.subtask is {config.subtask!r}, not one of {', '.join(SUBTASKS)}")
        arrangement, aligns = d.get("arrangement", "context"), d.get("align_regions", False)
        if arrangement not in ARRANGEMENTS:
            names = ", ".join(ARRANGEMENTS)
            raise ValueError(f"config.data.arrangement is {arrangement!r}; it must be one of {names}.")
        segments, rows = SEGMENTS[arrangement], config.model.encoder.num_segments
        if max(segments) >= rows:
            raise ValueError(
                f"config.data.arrangement={arrangement} has the segments {segments}, but "
                f"config.model.encoder.num_segments is {rows}: set it to {max(segments) + 1}."
            )
        if arrangement == "apart" and regions.segment in segments:
            raise ValueError(
                f"config.data.arrangement=apart has the segments {segments}, but the regions of "
                f"{architecture_of(config).name} have segment {regions.segment}: choose another arrangement."
            )
        if aligns and architecture_of(config).region_position != "own":
            raise ValueError(
                f"config.data.align_regions is for VisualBERT, whose regions have a table of positions; "
                f"config.model.architecture is {architecture_of(config).name}: set config.data.align_regions=False."
            )
        special = 1 + len(joined([[]] * (3 if config.subtask == "qa2r" else 2), arrangement))  # [CLS], and [SEP]s
        if arrangement == "inline":
            special = SPECIAL
            regions = _regions_as_words(config, regions)
        needed = d.text_length + special
        length = needed if regions.apart else d.sequence_length
        if not regions.apart and needed + d.max_regions + 1 > length:
            raise ValueError(
                f"config.data.sequence_length is {length}, but {d.text_length} tokens of text, {special} special "
                f"ones, {d.max_regions} regions and the whole image need {needed + d.max_regions + 1}"
            )
        return cls(
            **cls.options(config, orientation, regions),
            subtask=config.subtask,
            sequence_length=length,
            text_length=d.text_length,
            roi_size=config.model.region_head.roi_size,
            num_classes=config.model.num_object_classes,
            num_choices=d.get("num_choices", 4),
            arrangement=arrangement,
            align_regions=aligns,
        )


def _regions_as_words(config, regions: RegionLayout) -> RegionLayout:
    """Return the layout of the arrangement "inline"; raise ValueError where the model does not fit."""
    if regions.words_carry != "named":
        raise ValueError(
            f"config.data.arrangement=inline is for B2T2, in which a word is its region, too; "
            f"config.model.architecture is {architecture_of(config).name}: choose another arrangement."
        )
    if config.model.num_object_classes:
        raise ValueError(
            f"config.data.arrangement=inline has no regions to classify, but config.model.num_object_classes is "
            f"{config.model.num_object_classes}: set it to 0, and config.losses.object to 0."
        )
    return dataclasses.replace(regions, words_carry="all", apart=True)


def choice_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: ChoiceLayout, start: int | None = None
) -> Example:
    """Return a question with its choices: n = 4, or 16 for QA2R without labels.

    All sequences share the image. Objects beyond `max_regions` are left out, and words that name them carry
    the feature of the whole image, in B2T2 none. Without labels `choice` is -1.

    Args:
        record: A row of `vcr` joined with its row of `vcr_images`.
        flip: Whether to mirror the image.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
        start: Replaces `first_name`.

    Raises:
        ValueError: An object has a class that the model does not have, or no stored features; or the vocabulary has
            too few tokens for objects.
    """
    if layout.precomputed and "features" not in record:
        raise ValueError(
            f"{record['annot_id']}: its objects have no stored features, as in VCR: set config.data.features=image."
        )
    if layout.num_classes and len(record["classes"]) and max(record["classes"]) >= layout.num_classes:
        raise ValueError(
            f"{record['annot_id']}: an object of class {max(record['classes'])}, but config.model.num_object_classes "
            f"is {layout.num_classes}; it counts the whole image's class 0 too"
        )
    image = image_fields(record, record["boxes"], layout, flip, exact=True)
    num_regions, rows = int(image["region_mask"].sum()), layout.max_regions + 1
    is_read = image["region_mask"] & (np.arange(rows) >= layout.regions.first_row)
    start = first_name(record["annot_id"]) if start is None else start
    if layout.arrangement == "inline":
        found, cut = inline_texts(record, tokenizer, layout.subtask, layout.text_length, layout.max_regions)
    else:
        tokens, cut = cut_texts(record, start, layout.subtask, tokenizer, layout.text_length, layout.arrangement)
        arranged = [joined(texts, layout.arrangement) for texts in tokens]
        found = [_with_special(parts, tokenizer, layout.arrangement) for parts in arranged]
    sequences, positions = [], []
    for ids, segments, carried in found:
        regions = np.array(carried, np.int32)
        regions[regions >= num_regions] = 0
        shown = np.zeros(num_regions, bool)
        sequences.append(
            pack(
                ids, segments, num_regions, shown, regions, layout.sequence_length, tokenizer.vocab_size,
                layout=layout.regions,
            )
        )  # fmt: skip
        places = layout.regions.place_of(np.arange(rows), len(ids), layout.sequence_length)
        positions.append(np.where(is_read, places, 0).astype(np.int32))
    words = {}
    if layout.align_regions:
        pairs = zip(texts_of(record, layout.subtask), arranged, strict=True)
        aligned = [words_of_rows(texts, parts, layout.arrangement, rows) for texts, parts in pairs]
        words = dict(region_words=np.stack(aligned))
    label = int(record["answer_label" if layout.subtask == "q2a" else "rationale_label"])
    has_class = is_read & (layout.num_classes > 0)
    whole = np.ones((1, *record["shapes"].shape[1:]), np.uint8)
    shapes = np.concatenate([whole, record["shapes"]])[:num_regions]
    classes = np.append(0, record["classes"]).astype(np.int32)
    return image | words | {name: np.stack([s[name] for s in sequences]) for name in sequences[0]} | dict(
        region_positions=np.stack(positions),
        region_shapes=padded(on_rois(shapes, layout.roi_size, flip), rows),
        region_classes=np.where(has_class, padded(classes[:num_regions], rows), -1).astype(np.int32),
        choice=np.int32(label if len(found) == layout.num_choices else -1),
        text_cut=np.bool_(cut),
    )


def _with_special(parts: list[Tokens], tokenizer: Tokenizer, arrangement: str) -> tuple[list[int], Any, list[int]]:
    """Return the ids, segments and regions of a text whose parts are as `joined` returns them."""
    ids, carried = [tokenizer.cls_id], [0]
    for part in parts:
        ids += [*(i for i, _ in part), tokenizer.sep_id]
        carried += [*(r for _, r in part), 0]
    return ids, segments_of(parts, arrangement), carried


def on_rois(shapes: UInt8[np.ndarray, "k g g"], size: int, flip: bool) -> Float32[np.ndarray, "k p p"]:
    """Return masks of objects on the RoI grid, mirrored with the image; another grid gets the covered share."""
    shapes = np.ascontiguousarray(shapes[:, :, ::-1] if flip else shapes, np.float32)
    if shapes.shape[1:] == (size, size):
        return shapes
    return np.stack([cv2.resize(shape, (size, size), interpolation=cv2.INTER_AREA) for shape in shapes])
