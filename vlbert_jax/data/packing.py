"""Pack text and regions into one sequence without gaps (NumPy, one example at a time)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vlbert_jax.batch import END, IMG, IMG_MASK, NO_IMAGE, Shapes
from vlbert_jax.geometry import DIM


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionLayout:
    """How the regions of an image enter a sequence. The architecture of a model determines it.

    Row 0 of the regions is the whole image in every architecture; some have no element for it.
    """

    whole_image: bool = True  # whether row 0 is an element
    words_carry: str = "all"  # which words carry a region: all (the whole image if none other), named, or none
    segment: int = 2
    positions: str = "shared"  # shared (the one after the text), running (from there on) or zero
    end_token: bool = True  # whether [END] follows the regions
    names: bool = False  # whether the names of the regions are the second part of the text
    # Whether sequences have words alone: regions are a stream of their own, or words (B2T2).
    apart: bool = False
    geometry_size: int = 8 * DIM  # values of `box_geometry` per region; 0 = none

    @property
    def first_row(self) -> int:
        """The first row of the regions that is an element."""
        return 0 if self.whole_image else 1

    def place_of(self, row: Any, num_text: int, length: int) -> Any:
        """Return the position of a row of the regions: behind the text, or behind a whole sequence if apart."""
        return (length if self.apart else num_text) + row - self.first_row


VLBERT_LAYOUT = RegionLayout()


def truncate(num_text: int, num_regions: int, length: int) -> tuple[int, int]:
    """Return how many text elements and regions (the whole image counts) a sequence of `length` keeps.

    The longer part is shortened one by one, text at a tie, but two text elements and one region always
    stay. The caller keeps [SEP], the last element of the text, as the official code does since
    2020-05-21; the released weights were trained before that, on texts that lost it when they were cut.
    """
    while num_text + num_regions > length and num_text > 0 and num_regions > 0:
        if num_regions > num_text:
            num_regions -= 1
        else:
            num_text -= 1
    return max(num_text, 2), max(num_regions, 1)


def pack(
    text_ids: Sequence[int] | Int[np.ndarray, "t"],
    segment_ids: Sequence[int] | Int[np.ndarray, "t"],
    num_regions: int,
    region_hidden: Sequence[bool] | Bool[np.ndarray, "k"],
    text_region_ids: Sequence[int] | Int[np.ndarray, "t"],
    length: int,
    vocab_size: int,
    position_offset: int = 0,
    layout: RegionLayout = VLBERT_LAYOUT,
) -> dict[str, np.ndarray]:
    """Return one sequence: text, regions up to row num_regions - 1, [END], padding.

    In VL-BERT all regions share the position after the text and have segment 2; [END] has segment 2 and
    the next position. `layout` is that of another architecture. Padding is 0, with region NO_IMAGE.

    Args:
        text_ids: Token ids of the text.
        segment_ids: Segments of the text.
        num_regions: Number of regions, with the whole image.
        region_hidden: Whether each region is hidden; further entries are ignored.
        text_region_ids: Region whose visual feature each text element carries, where words carry one.
        length: Largest number of text elements and regions.
        vocab_size: Size of the vocabulary.
        position_offset: Position of the first element.
        layout: How regions enter the sequence.

    Returns:
        `token_ids`, `region_ids`, `segment_ids`, `position_ids` (int32) and `element_mask` (bool), each of
        `length` elements, or one more with [END].

    Raises:
        ValueError: The text and the regions do not fit.
    """
    first = layout.first_row
    t, k = len(text_ids), 0 if layout.apart else max(num_regions - first, 0)
    if t + k > length:
        raise ValueError(f"{t} text elements and {k} regions do not fit a sequence of {length}")
    s = length + layout.end_token
    token_ids = np.zeros(s, np.int32)
    region_ids = np.full(s, NO_IMAGE, np.int32)
    segments = np.zeros(s, np.int32)
    positions = np.zeros(s, np.int32)
    token_ids[:t] = text_ids
    if layout.words_carry != "none":
        region_ids[:t] = text_region_ids
    if layout.words_carry == "named":
        region_ids[:t][region_ids[:t] == 0] = NO_IMAGE
    segments[:t] = segment_ids
    positions[:t] = np.arange(t)
    hidden = np.asarray(region_hidden[first : first + k], bool)
    token_ids[t : t + k] = vocab_size + np.where(hidden, IMG_MASK, IMG)
    region_ids[t : t + k] = first + np.arange(k)
    positions[t : t + k] = {"shared": t, "running": t + np.arange(k), "zero": 0}[layout.positions]
    end = t + k
    if layout.end_token:
        token_ids[end], positions[end] = vocab_size + END, t + 1
        end += 1
    segments[t:end] = layout.segment
    positions[:end] += position_offset
    return {
        "token_ids": token_ids,
        "region_ids": region_ids,
        "segment_ids": segments,
        "position_ids": positions,
        "element_mask": np.arange(s) < end,
    }


def pack_images(
    text_ids: Sequence[int] | Int[np.ndarray, "t"],
    segment_ids: Sequence[int] | Int[np.ndarray, "t"],
    rows: Sequence[Int[np.ndarray, "_"]],
    length: int,
    vocab_size: int,
    num_segments: int,
    layout: RegionLayout = VLBERT_LAYOUT,
) -> dict[str, np.ndarray]:
    """Return one sequence over the regions of one or several images, as `pack` does over those of one.

    Words carry the whole first image. Regions of a further image have the next segment, where the table has
    one, and the next position, where regions share the position behind the text.

    Args:
        text_ids: As in `pack`.
        segment_ids: As in `pack`.
        rows: Rows of each image, of those of the example; the first is that of the whole image.
        length: As in `pack`.
        vocab_size: As in `pack`.
        num_segments: Rows of the table of segments.
        layout: How regions enter the sequence.

    Raises:
        ValueError: The text and the regions do not fit.
    """
    first, start = layout.first_row, len(text_ids)
    elements = [of_image[first:] for of_image in rows]
    number = sum(map(len, elements)) + first
    zeros = np.zeros(start, np.int32)
    packed = pack(text_ids, segment_ids, number, np.zeros(number, bool), zeros, length, vocab_size, layout=layout)
    carried = packed["region_ids"][:start]
    carried[carried != NO_IMAGE] = rows[0][0]
    for place, of_image in enumerate(() if layout.apart else elements):
        here = slice(start, start + len(of_image))
        packed["region_ids"][here] = of_image
        if place:
            packed["segment_ids"][here] = further_segment(place, num_segments, layout)
            if layout.positions == "shared":
                packed["position_ids"][here.start : start + len(of_image) + layout.end_token] += 1
        start += len(of_image)
    return packed


def further_segment(place: int, num_segments: int, layout: RegionLayout) -> int:
    """Return the segment of the regions of image `place` of a sequence, of a table with `num_segments` rows."""
    return max(min(layout.segment + place, num_segments - 1), layout.segment)


def sequence_shapes(n: int, length: int, layout: RegionLayout = VLBERT_LAYOUT) -> Shapes:
    """Return shapes and dtypes of `n` sequences that `pack` returns."""
    integers, shape = ("token_ids", "region_ids", "segment_ids", "position_ids"), (n, length + layout.end_token)
    return dict.fromkeys(integers, (shape, np.int32)) | dict(element_mask=(shape, bool))


def padded(values: np.ndarray, rows: int, fill: int = 0) -> np.ndarray:
    """Return `values` extended to `rows` rows with `fill`."""
    out = np.full((rows, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
