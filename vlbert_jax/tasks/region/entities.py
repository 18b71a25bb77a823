"""Recall of phrases of Flickr30k Entities, by both protocols (Plummer et al.; as MDETR's evaluator computes them).

A phrase is found among the first k boxes if one of them has an intersection over union of at least 0.5 with a box of
the phrase. A phrase such as "two men" has several boxes: with `any_box` each of them counts, otherwise the smallest
box around all of them does. Corners are real numbers: widths are x2 - x1, without the + 1 of `box_iou`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vlbert_jax.data.overlap import FOUND, continuous_iou

AMONG = (1, 5, 10)  # k

Boxes = Float[np.ndarray, "n 4"]


class Phrase(NamedTuple):
    """A phrase that is scored."""

    types: tuple[str, ...]  # such as people; it counts in each
    boxes: Boxes  # of its chain


def enclosing(boxes: Boxes) -> Float[np.ndarray, "1 4"]:
    """Return the smallest box around some boxes."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])[None]


def phrase_recall(
    phrases: Mapping[tuple[str, int], Sequence[Phrase]],
    predictions: Sequence[Mapping],
    any_box: bool = True,
) -> dict[str, dict[str, float]]:
    """Return the share of phrases that are found among the first k boxes, by k and type.

    Args:
        phrases: (image, number of the sentence from 0) -> its scored phrases, in order.
        predictions: Each has `image_id`, `sentence_id` and `boxes`: for each phrase, boxes by falling
            probability. Of two for one sentence the first counts; those of other sentences are ignored.
        any_box: Whether each box of a phrase counts, or the one around all of them.

    Returns:
        "R@1", "R@5", "R@10" -> "all" or a type -> share.

    Raises:
        ValueError: A sentence with scored phrases has no prediction, or one with another number of phrases.
    """
    found = {}
    for prediction in predictions:
        found.setdefault((str(prediction["image_id"]), int(prediction["sentence_id"])), prediction["boxes"])
    hits: dict[str, list[list[bool]]] = {}
    for (image, sentence), asked in phrases.items():
        if not asked:
            continue
        answers = found.get((image, sentence))
        if answers is None:
            raise ValueError(f"sentence {sentence} of image {image} has no prediction; predict all sentences")
        if len(answers) != len(asked):
            raise ValueError(
                f"the prediction for sentence {sentence} of image {image} has {len(answers)} lists of boxes, but "
                f"{len(asked)} of its phrases have boxes; give a list for each of them"
            )
        for phrase, boxes in zip(asked, answers, strict=True):
            meant = phrase.boxes if any_box else enclosing(phrase.boxes)
            best = continuous_iou(np.reshape(np.asarray(boxes, np.float64), (-1, 4)), meant).max(1, initial=0)
            row = [bool((best[:k] >= FOUND).any()) for k in AMONG]
            for name in ("all", *phrase.types):
                hits.setdefault(name, []).append(row)
    shares = {name: np.sum(rows, 0) / len(rows) for name, rows in sorted(hits.items())}
    return {f"R@{k}": {name: float(share[i]) for name, share in shares.items()} for i, k in enumerate(AMONG)}
