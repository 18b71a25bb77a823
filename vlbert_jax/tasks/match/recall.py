"""Recall of image-text retrieval from the scores of all pairs (NumPy).

The image of a text should be among the best k of all images, and one of the texts of an image among the
best k of all texts. Equal scores are ranked by one of these rules:

    scan      reversed `argsort`, as in the code of SCAN and Oscar: usually the later first
    volta     `argsort` of the negative scores, as in ViLBERT and volta: usually the earlier first
    against   all equal candidates before the right one: the lower bound
    for       all equal candidates after it: the upper bound

The first two sort as the code of these systems does, without a stable order, so equal scores can be ranked
in another order by another version of NumPy. Scores of float32 are seldom equal.

The evaluation of UNITER has two errors: it counts further rows as hits for images of texts, so that this
recall can exceed 1, and it keeps scores in float16, in which many are equal. Neither is done here.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

TIES = ("scan", "volta", "against", "for")
AT = (1, 5, 10)  # numbers of candidates


def ranks_of_images(
    scores: Float[np.ndarray, "t i"], image_of_text: Int[np.ndarray, " t"], ties: str = "scan"
) -> Int[np.ndarray, " t"]:
    """Return for each text the rank of its image among all images, from 0.

    Args:
        scores: Of every text (row) with every image (column).
        image_of_text: Column of the image of each text.
        ties: How equal scores are ranked; see the module.

    Raises:
        ValueError: `ties` is none of the rules.
    """
    return ranks_of_right(scores, image_of_text[:, None] == np.arange(scores.shape[1]), ties)


def ranks_of_right(
    scores: Float[np.ndarray, "q c"], right: Bool[np.ndarray, "q c"], ties: str = "scan"
) -> Int[np.ndarray, " q"]:
    """Return for each query (row) the rank of the best of its right candidates, from 0; each has one or more."""
    return np.array([_rank(row, own, ties) for row, own in zip(scores, right, strict=True)])


def ranks_of_texts(
    scores: Float[np.ndarray, "t i"], image_of_text: Int[np.ndarray, " t"], ties: str = "scan"
) -> Int[np.ndarray, " i"]:
    """Return for each image the rank of the best of its texts among all texts, from 0.

    The arguments are those of `ranks_of_images`. An image without a text is a ValueError.
    """
    without = np.setdiff1d(np.arange(scores.shape[1]), image_of_text)
    if len(without):
        raise ValueError(f"Image {without[0]} of {scores.shape[1]} has no text, so no rank of its texts exists.")
    return np.array([_rank(column, image_of_text == image, ties) for image, column in enumerate(scores.T)])


def _rank(scores: Float[np.ndarray, " c"], right: Bool[np.ndarray, " c"], ties: str) -> int:
    """Return how many candidates are ranked before the first of those that are right."""
    if ties in ("scan", "volta"):
        order = np.argsort(scores)[::-1] if ties == "scan" else np.argsort(-scores)
        return int(np.argmax(right[order]))
    if ties not in TIES:
        raise ValueError(f"The rule for equal scores is {ties!r}; it must be one of {', '.join(TIES)}.")
    best = scores[right].max()
    return int(np.sum(scores > best) + (np.sum(scores[~right] == best) if ties == "against" else 0))


def recalls(ranks: Int[np.ndarray, " n"]) -> dict[int, float]:
    """Return the share of ranks that are below each number of candidates in `AT`."""
    return {k: float(np.mean(ranks < k)) for k in AT}


def retrieval_scores(
    scores: Float[np.ndarray, "t i"], image_of_text: Int[np.ndarray, " t"], ties: str = "scan", folds: int = 1
) -> dict[str, float]:
    """Return `image_recall_K` and `text_recall_K` for every K in `AT`, and the mean of all, `mean_recall`.

    Image recall is that of the image of each text, text recall that of the texts of each image.

    Args:
        scores: Of every text (row) with every image (column).
        image_of_text: Column of the image of each text.
        ties: How equal scores are ranked; see the module.
        folds: Parts of equally many images, in their order, each with its texts; the result is the mean
            over the parts. Five are the 1K protocol of COCO.

    Raises:
        ValueError: The images do not divide into the folds, an image has no text, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores)):,} of {scores.size:,} scores are not finite.")
    images = scores.shape[1]
    if images % folds:
        raise ValueError(f"{images} images do not divide into {folds} folds of equal size.")
    size, parts = images // folds, []
    for first in range(0, images, size):
        inside = (image_of_text >= first) & (image_of_text < first + size)
        part, own = scores[inside, first : first + size], image_of_text[inside] - first
        found = {"image": ranks_of_images(part, own, ties), "text": ranks_of_texts(part, own, ties)}
        parts.append({f"{name}_recall_{k}": v for name, ranks in found.items() for k, v in recalls(ranks).items()})
    means = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    return means | dict(mean_recall=float(np.mean(list(means.values()))))
