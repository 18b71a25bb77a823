"""Pack text and regions into one sequence without gaps (NumPy, one example at a time)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from vlbert_jax.batch import END, IMG, IMG_MASK, NO_IMAGE, Shapes


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
) -> dict[str, np.ndarray]:
    """Return one sequence: text, regions 0 to num_regions - 1, [END], padding.

    All regions share the position after the text and have segment 2; [END] has segment 2 and the next
    position. Padding is 0, with region NO_IMAGE.

    Args:
        text_ids: Token ids of the text.
        segment_ids: Segments of the text.
        num_regions: Number of regions, with the whole image.
        region_hidden: Whether each region is hidden; further entries are ignored.
        text_region_ids: Region whose visual feature each text element carries.
        length: Largest number of text elements and regions.
        vocab_size: Size of the vocabulary.
        position_offset: Position of the first element.

    Returns:
        `token_ids`, `region_ids`, `segment_ids`, `position_ids` (int32) and `element_mask` (bool), each of
        `length` + 1 elements.

    Raises:
        ValueError: The text and the regions do not fit.
    """
    t, k = len(text_ids), num_regions
    if t + k > length:
        raise ValueError(f"{t} text elements and {k} regions do not fit a sequence of {length}")
    s = length + 1
    token_ids = np.zeros(s, np.int32)
    region_ids = np.full(s, NO_IMAGE, np.int32)
    segments = np.zeros(s, np.int32)
    positions = np.zeros(s, np.int32)
    token_ids[:t] = text_ids
    region_ids[:t] = text_region_ids
    segments[:t] = segment_ids
    positions[:t] = np.arange(t)
    hidden = np.asarray(region_hidden[:k], bool)
    token_ids[t : t + k] = vocab_size + np.where(hidden, IMG_MASK, IMG)
    region_ids[t : t + k] = np.arange(k)
    token_ids[t + k] = vocab_size + END
    segments[t : t + k + 1] = 2
    positions[t : t + k] = t
    positions[t + k] = t + 1
    positions[: t + k + 1] += position_offset
    return {
        "token_ids": token_ids,
        "region_ids": region_ids,
        "segment_ids": segments,
        "position_ids": positions,
        "element_mask": np.arange(s) < t + k + 1,
    }


def sequence_shapes(n: int, length: int) -> Shapes:
    """Return shapes and dtypes of `n` sequences that `pack` returns."""
    integers = ("token_ids", "region_ids", "segment_ids", "position_ids")
    return dict.fromkeys(integers, ((n, length + 1), np.int32)) | dict(element_mask=((n, length + 1), bool))


def padded(values: np.ndarray, rows: int, fill: int = 0) -> np.ndarray:
    """Return `values` extended to `rows` rows with `fill`."""
    out = np.full((rows, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
