"""Scores of classifiers and of predicted numbers over all examples of a split, as scikit-learn and SciPy have them.

Axes: `q` examples, `k` classes or values. NumPy in float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


def _counts_by_threshold(
    is_positive: Bool[np.ndarray, " q"], scores: Float[np.ndarray, " q"]
) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
    """Return how many positives and negatives have at least each of the t different scores, in falling order."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores share a threshold
    positives = np.cumsum(is_positive[order])[last]
    return positives, 1 + last - positives


def auroc(is_positive: Bool[np.ndarray, " q"], scores: Float[np.ndarray, " q"]) -> float:
    """Return the area under the ROC curve, NaN with one class: the chance that a positive is above a negative.

    A tie counts half.
    """
    if is_positive.all() or not is_positive.any():
        return float("nan")
    positives, negatives = (np.append(0, counts) for counts in _counts_by_threshold(is_positive, scores))
    # Twice the area in whole numbers, which is exact.
    area = np.sum(np.diff(negatives) * (positives[1:] + positives[:-1]))
    return float(area / (2 * positives[-1] * negatives[-1]))


def average_precision(is_positive: Bool[np.ndarray, " q"], scores: Float[np.ndarray, " q"]) -> float:
    """Return the sum of precision times the step of recall, without interpolation; NaN without a positive."""
    if not is_positive.any():
        return float("nan")
    positives, negatives = _counts_by_threshold(is_positive, scores)
    steps = np.diff(positives / positives[-1], prepend=0.0)
    return float(np.sum(steps * (positives / (positives + negatives))))


def f1_of_classes(gold: Bool[np.ndarray, "q k"], chosen: Bool[np.ndarray, "q k"]) -> Float[np.ndarray, " k"]:
    """Return the F1 of each class; NaN for a class that is neither in `gold` nor in `chosen`."""
    hits, both = (gold & chosen).sum(0), gold.sum(0) + chosen.sum(0)
    return np.where(both > 0, 2 * hits / np.maximum(both, 1), np.nan)


def single_label_scores(
    labels: Int[np.ndarray, " q"], probabilities: Float[np.ndarray, "q k"], positive: int | None = None
) -> dict[str, float]:
    """Return accuracy and macro F1, and for a positive class AUROC, average precision and F1.

    The most probable class is the answer. Macro F1 is over the classes in the labels or the answers.

    Args:
        labels: The right class of each example; -1 = a class that the model does not have.
        probabilities: Of the classes.
        positive: The class against all others; None = no such scores.
    """
    classes, answers = np.arange(probabilities.shape[1]), probabilities.argmax(1)
    gold, chosen = labels[:, None] == classes, answers[:, None] == classes
    found = dict(accuracy=float(np.mean(answers == labels)), macro_f1=_mean(f1_of_classes(gold, chosen)))
    if positive is not None:
        found |= dict(
            auroc=auroc(gold[:, positive], probabilities[:, positive]),
            average_precision=average_precision(gold[:, positive], probabilities[:, positive]),
            f1=float(np.nan_to_num(f1_of_classes(gold, chosen)[positive])),
        )
    return _defined(found)


def multi_label_scores(gold: Bool[np.ndarray, "q k"], probabilities: Float[np.ndarray, "q k"]) -> dict[str, float]:
    """Return the mean average precision, AUROC and F1 of the classes, micro F1, and the share of exact sets.

    A class is in the answer from a probability of 0.5 on. A class without a positive example, or without a
    negative one for AUROC, is left out of the means over classes.
    """
    chosen, classes = probabilities >= 0.5, range(gold.shape[1])
    return _defined(
        dict(
            mean_average_precision=_mean([average_precision(gold[:, k], probabilities[:, k]) for k in classes]),
            macro_auroc=_mean([auroc(gold[:, k], probabilities[:, k]) for k in classes]),
            macro_f1=_mean(f1_of_classes(gold, chosen)),
            micro_f1=float(2 * (gold & chosen).sum() / max(gold.sum() + chosen.sum(), 1)),
            subset_accuracy=float(np.mean((gold == chosen).all(1))),
        )
    )


def value_scores(gold: Float[np.ndarray, "q k"], predicted: Float[np.ndarray, "q k"]) -> dict[str, float]:
    """Return squared and absolute error, and the correlations by values and by ranks: means over the k values."""
    columns = list(zip(gold.T, predicted.T, strict=True))
    return _defined(
        dict(
            mean_squared_error=float(np.mean((gold - predicted) ** 2)),
            mean_absolute_error=float(np.mean(np.abs(gold - predicted))),
            pearson=_mean([correlation(*pair) for pair in columns]),
            spearman=_mean([correlation(*map(ranks, pair)) for pair in columns]),
        )
    )


def correlation(x: Float[np.ndarray, " q"], y: Float[np.ndarray, " q"]) -> float:
    """Return Pearson's correlation; NaN where all values of one side are equal."""
    x, y = x - x.mean(), y - y.mean()
    sizes = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / sizes) if sizes else float("nan")


def ranks(values: Shaped[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """Return the rank of each value from 1 on; equal values have the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def calibration(
    confidences: Float[np.ndarray, " q"], right: Bool[np.ndarray, " q"], bins: int = 10
) -> tuple[list[tuple[float, float, int]], float]:
    """Return for each bin of equal width the mean confidence, the share that is right and the count; and the error.

    The expected calibration error is the mean distance of the first two. Empty bins are left out.
    """
    which = np.minimum((confidences * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(which):
        here = which == number
        rows.append((float(confidences[here].mean()), float(right[here].mean()), int(here.sum())))
    return rows, float(sum(count * abs(share - mean) for mean, share, count in rows) / max(len(right), 1))


def _mean(values) -> float:
    """Return the mean of the values that are defined; NaN without any."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def _defined(scores: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if np.isfinite(value)}
