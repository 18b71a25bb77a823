"""Class scores of regions in records: all of them, or the largest few and the mean of the others; names of classes.

A record with the field `class_ids` is of the second form, whose other fields are in `largest_scores`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32

from vlbert_jax.files import read_lines

LEAST_NORMAL = np.float32(2**-14)  # of float16
FLOATS = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)  # each float16, by its bits
SUM_TOLERANCE = 0.1


def rounded(scores: Float32[np.ndarray, "n c"], dtype: np.dtype) -> Float[np.ndarray, "n c"]:
    """Return `scores.astype(dtype)`, ten times as fast where float16 has many numbers below its least normal one.

    Most scores of a detector that is sure of its classes are such numbers. NumPy converts each of them by itself.
    """
    if dtype != np.float16:
        return scores.astype(dtype)
    size = np.abs(scores)
    if not (size < np.finfo(np.float16).max).all():
        return scores.astype(dtype)
    bits = scores.view(np.uint32)
    # Below it, a float16 counts the smallest one. Above, its bits are those of float32 with another bias.
    small = np.rint(np.minimum(size, LEAST_NORMAL) * np.float32(2**24)).astype(np.uint16)
    magnitude = (bits & 0x7FFFFFFF) - (112 << 23)
    large = (magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13  # ties become even
    found = np.where(size < LEAST_NORMAL, small, large.astype(np.uint16)) | (bits >> 16 & 0x8000).astype(np.uint16)
    return found.view(np.float16)


def widened(scores: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
    """Return the scores in float32, for float16 ten times as fast as NumPy, which converts each by itself."""
    return np.take(FLOATS, scores.view(np.uint16)) if scores.dtype == np.float16 else np.asarray(scores, np.float32)


def are_distributions(scores: Float[np.ndarray, "n c"]) -> Bool[np.ndarray, "n"]:
    """Return which rows sum to 1; the others are never a target (test of the official code)."""
    return np.abs(widened(scores).sum(axis=1) - 1) < SUM_TOLERANCE


def largest_scores(scores: Float[np.ndarray, "n c"], number: int) -> dict[str, Any]:
    """Return the fields of a record that keep the largest scores of each region.

    The others are stored as their mean: their sum stays, so a distribution stays one, and no class that the
    detector found improbable is preferred to another one. Of equal scores, those of the first classes are kept.

    Args:
        scores: Score of each class, column 0 is the background.
        number: Number of scores that are kept, at most c. With 2, the best class besides the background is among them.

    Returns:
        `class_ids` int32 [n, number] in ascending order, `class_scores` [n, number], `other_score` float32 [n],
        which is the score of every other class, and `num_classes`, c.
    """
    wide = widened(scores)
    smallest = -np.partition(-wide, number - 1, axis=1)[:, number - 1 : number]
    kept, tied = wide > smallest, wide == smallest
    kept |= tied & (tied.cumsum(1, dtype=np.int32) <= number - kept.sum(1, keepdims=True))
    others = np.where(kept, 0, wide).sum(1, dtype=np.float64) / max(wide.shape[1] - number, 1)
    ids = np.nonzero(kept)[1].reshape(-1, number)
    return dict(
        class_scores=np.take_along_axis(scores, ids, axis=1),
        class_ids=ids.astype(np.int32),
        other_score=others.astype(np.float32),
        num_classes=scores.shape[1],
    )


def best_classes(scores: Float[np.ndarray, "n c"]) -> tuple[Int32[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """Return the number of the best class of each region besides the background, which is column 0, and its score."""
    best = 1 + scores[:, 1:].argmax(1)
    return best.astype(np.int32), np.take_along_axis(scores, best[:, None], 1)[:, 0].astype(np.float32)


@functools.cache
def read_class_names(path: str) -> tuple[str, ...]:
    """Return the names of a detector's classes 1, 2, ...: of each line of a file what precedes the first comma."""
    return tuple(line.partition(",")[0].strip() for line in read_lines(path))


def number_of_classes(record: dict) -> int:
    """Return how many classes a region of a record has scores of; 0 without a detector."""
    return int(record["num_classes"]) if "class_ids" in record else record["class_scores"].shape[1]


def class_scores(record: dict, rows: Any = slice(None)) -> Float[np.ndarray, "k c"]:
    """Return the score of every class, of the regions `rows` of a record (an index of NumPy)."""
    scores = record["class_scores"][rows]
    if "class_ids" not in record:
        return scores
    whole = np.tile(record["other_score"][rows, None], number_of_classes(record))
    np.put_along_axis(whole, record["class_ids"][rows], scores, axis=1)
    return whole
