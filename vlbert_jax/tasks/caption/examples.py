"""Examples of captioning: the regions of an image, and a caption of which some tokens are masked.

A sequence has a place for each token of the longest caption, then the names of the regions where an architecture reads
them, the regions and [END]. So the regions have the same position whatever the length of the caption is, which is not
known while it is written. (In the other tasks they follow the text directly.)
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from vlbert_jax.batch import Example, Shapes
from vlbert_jax.data.examples import ImageLayout, image_fields, image_shapes
from vlbert_jax.data.packing import pack, padded, sequence_shapes
from vlbert_jax.data.tokenizer import Tokenizer, mirrored
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout

KEPT_SHARE, RANDOM_SHARE = 0.1, 0.1  # of the tokens that are predicted: unchanged, or replaced by a random one


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescriptionLayout(ImageLayout):
    """Fields of a config that determine the sequence of an image with its caption."""

    sequence_length: int
    text_length: int  # places for the tokens of a caption with [CLS] and [SEP]
    mask_words: float
    max_mlm_targets: int

    @classmethod
    def of(cls, config, orientation: str = "landscape") -> DescriptionLayout:
        """Return the layout of a config.

        Raises:
            ValueError: A sequence has no room for a caption and all regions, or as `check_architecture`.
        """
        check_architecture(config)
        d, regions = config.data, region_layout(config)
        rows = d.max_regions + 1 - regions.first_row
        if d.text_length < 3 or d.text_length + rows > d.sequence_length:
            raise ValueError(
                f"config.data.sequence_length is {d.sequence_length}, but {d.text_length} tokens of a caption "
                f"(config.data.text_length, at least 3) and {rows} regions need {d.text_length + rows}."
            )
        return cls(
            **cls.options(config, orientation, regions), sequence_length=d.sequence_length, text_length=d.text_length,
            mask_words=d.mask_words, max_mlm_targets=d.max_mlm_targets,
        )  # fmt: skip


def check_architecture(config) -> None:
    """Raise ValueError where the architecture has two streams."""
    if region_layout(config).apart:
        raise ValueError(
            f"config.model.architecture is {config.model.architecture!r}, which has two streams: its regions read "
            "the words, also those that are not yet written. Captions require an architecture of one stream."
        )


def caption_ids(text: str, flip: bool, tokenizer: Tokenizer, length: int) -> Int[np.ndarray, " t"]:
    """Return `[CLS] caption [SEP]`, of at most `length` ids; left and right are exchanged in a mirrored image."""
    ids = sum(tokenizer.words(text, length), [])[: length - 2]
    ids = mirrored(ids, tokenizer) if flip else ids
    return np.array([tokenizer.cls_id, *ids, tokenizer.sep_id], np.int32)


def masked_caption(
    ids: Int[np.ndarray, " t"], probability: float, most: int, rng: np.random.Generator, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """Return ids of which some are masked, and the labels; label -1 = not predicted.

    Every token after [CLS] is selected with `probability`, the last [SEP] too, so that the model learns where
    a caption ends; at least one and at most `most` are. Of these 80 % become [MASK], 10 % random tokens.
    """
    chosen = 1 + np.flatnonzero(rng.random(len(ids) - 1) < probability)
    if not len(chosen):
        chosen = 1 + rng.integers(len(ids) - 1, size=1)
    chosen = np.sort(rng.permutation(chosen)[:most])
    labels, masked = np.full(len(ids), -1, np.int32), ids.copy()
    labels[chosen] = ids[chosen]
    shares, random = rng.random(len(chosen)), rng.choice(tokenizer.ordinary_ids, len(chosen))
    masked[chosen] = np.where(
        shares < KEPT_SHARE, ids[chosen], np.where(shares < KEPT_SHARE + RANDOM_SHARE, random, tokenizer.mask_id)
    )
    return masked, labels


def description_sequence(
    ids: Int[np.ndarray, " t"], record: dict, num_rows: int, tokenizer: Tokenizer, layout: DescriptionLayout
) -> dict[str, np.ndarray]:
    """Return the sequence of a caption, padded to `text_length` places, and of regions, without the axis n.

    As many names of the regions as there is room for are between both, with segment 1 and [SEP] behind them.
    """
    t, words = layout.text_length, len(ids)
    room = layout.sequence_length - t - (layout.max_regions + 1 - layout.regions.first_row)
    names = closed(names_of_regions(record, tokenizer, layout), room, tokenizer)
    text = np.append(padded(ids, t), np.array(names, np.int32))
    segments = np.repeat(np.array([0, 1], np.int32), [t, len(names)])
    sequence = pack(
        text, segments, num_rows, np.zeros(num_rows, bool), np.zeros(len(text), np.int32), layout.sequence_length,
        tokenizer.vocab_size, layout=layout.regions,
    )  # fmt: skip
    sequence["element_mask"][words:t] = False
    return sequence


def description_example(
    record: dict, flip: bool, rng: np.random.Generator, tokenizer: Tokenizer, layout: DescriptionLayout
) -> Example:
    """Return the example of an image with a caption (`text`), of which some tokens are masked; n = 1.

    Args:
        record: As for `image_fields`, with `boxes` and `text`.
        flip: Whether to mirror the image.
        rng: Decides which tokens are masked.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
    """
    image = image_fields(record, record["boxes"], layout, flip)
    ids = caption_ids(record["text"], flip, tokenizer, layout.text_length)
    masked, labels = masked_caption(ids, layout.mask_words, layout.max_mlm_targets, rng, tokenizer)
    positions, m = np.flatnonzero(labels >= 0).astype(np.int32), layout.max_mlm_targets
    sequence = description_sequence(masked, record, int(image["region_mask"].sum()), tokenizer, layout) | dict(
        mlm_positions=padded(positions, m),
        mlm_labels=padded(labels[positions], m),
        mlm_mask=np.arange(m) < len(positions),
    )
    return {name: value[None] for name, value in sequence.items()} | image


def description_shapes(layout: DescriptionLayout) -> Shapes:
    """Return shapes and dtypes of what `description_example` returns."""
    m = layout.max_mlm_targets
    shapes = sequence_shapes(1, layout.sequence_length, layout.regions) | image_shapes(layout)
    shapes |= dict.fromkeys(("mlm_positions", "mlm_labels"), ((1, m), np.int32))
    return shapes | dict(mlm_mask=((1, m), bool))
