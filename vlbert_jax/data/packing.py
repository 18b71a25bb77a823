"""Text to pieces, and pieces and regions to the packed sequence that the model reads. NumPy, per example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from vlbert_jax.batch import END, IMG, IMG_MASK, NO_IMAGE, Shapes

# --- Layout -----------------------------------------------------------------------------------------------


def truncate(num_text: int, num_regions: int, length: int) -> tuple[int, int]:
    """How many text elements and regions (the whole image counts) stay in a sequence of `length`.

    The longer part gives way one by one, text at a tie, but two text elements and one region always stay. Of
    the text the last element, [SEP], is to be kept (official code since 2020-05-21; the released weights were
    trained before, on sequences whose cut text lost it).
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
    """One sequence, each array of `length` + 1 elements: text, regions 0..num_regions-1, [END], padding.

    `segment_ids` and `text_region_ids` belong to the text; `region_hidden` has an entry for each region (more
    are ignored). All regions share the position behind the text and carry segment 2, and so does [END], one
    position on. Padding is 0 with region NO_IMAGE. Returns `token_ids`, `region_ids`, `segment_ids`,
    `position_ids` (int32) and `element_mask` (bool). Raises ValueError if it does not fit.
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
    """Shapes of `n` sequences as `sequence.pack` lays them out."""
    integers = ("token_ids", "region_ids", "segment_ids", "position_ids")
    return dict.fromkeys(integers, ((n, length + 1), np.int32)) | dict(element_mask=((n, length + 1), bool))


def padded(values: np.ndarray, rows: int, fill: int = 0) -> np.ndarray:
    """`values` with `rows` rows, `fill` behind."""
    out = np.full((rows, *values.shape[1:]), fill, values.dtype)
    out[: len(values)] = values
    return out
