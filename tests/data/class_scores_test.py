"""Test class scores in records: all of them, or the largest few."""

import jax
import numpy as np
import pytest

from vlbert_jax.data.class_scores import (
    are_distributions,
    class_scores,
    largest_scores,
    number_of_classes,
    rounded,
    widened,
)

NUM, CLASSES = 40, 300


def scores_of(dtype=np.float16, seed=0) -> np.ndarray:
    """Return distributions that are peaked as those of a detector, with ties, and one that sums to 0.5."""
    logits = np.random.default_rng(seed).normal(0, 4, (NUM, CLASSES))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores[0], scores[1, :100], scores[1, 100:] = 1 / CLASSES, 0.01, 0
    scores[2] /= 2
    return scores.astype(dtype)


def test_scores_are_rounded_as_numpy_does():
    """All numbers of float16, the middles between them, and their neighbors in float32; infinity and NaN, too."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(widened(halves[None])[0], halves.astype(np.float32))
    halves = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    points = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2])
    numbers = np.concatenate([points, np.nextafter(points, np.float32(-1e9)), np.nextafter(points, np.float32(1e9))])
    scores = numbers[np.abs(numbers) < np.finfo(np.float16).max][None]
    found = rounded(scores, np.dtype(np.float16))
    np.testing.assert_array_equal(found.view(np.uint16), scores.astype(np.float16).view(np.uint16))
    special = np.array([[np.inf, -np.inf, np.nan, 65504, 1e-7]], np.float32)
    np.testing.assert_array_equal(rounded(special, np.dtype(np.float16)), special.astype(np.float16))
    assert rounded(special, np.dtype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_all_scores_are_read_as_they_are(dtype):
    scores = scores_of(dtype)
    record = dict(class_scores=scores)
    assert class_scores(record) is not None and number_of_classes(record) == CLASSES
    read = class_scores(record, np.array([3, 1]))
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, scores[[3, 1]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("number", [2, 64, CLASSES])
def test_the_largest_scores_are_exact_and_the_sum_stays(dtype, number):
    scores = scores_of(dtype)
    record = largest_scores(scores, number)
    assert record["class_scores"].shape == (NUM, number) and record["class_scores"].dtype == dtype
    read = class_scores(record)
    assert read.shape == scores.shape and number_of_classes(record) == CLASSES
    best = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :number]
    np.testing.assert_array_equal(np.take_along_axis(read, best, 1), np.take_along_axis(scores, best, 1))
    np.testing.assert_allclose(read.sum(1), scores.sum(1, dtype=np.float32), atol=1e-6)  # rounding of float32
    np.testing.assert_array_equal(are_distributions(read), are_distributions(scores))
    for first in (0, 1):  # the most probable class, with and without the background, and its score
        np.testing.assert_array_equal(read[:, first:].argmax(1), scores[:, first:].argmax(1))
        np.testing.assert_array_equal(read[:, first:].max(1), scores[:, first:].max(1))
    np.testing.assert_array_equal(class_scores(record, np.array([5, 0])), read[[5, 0]])


def test_the_loss_differs_by_no_more_than_the_moved_probability():
    """It is the probability that moved between classes, times the range of the model's log-probabilities."""
    scores = scores_of(np.float32)
    record = largest_scores(scores, 64)
    read = class_scores(record)
    moved = np.abs(read - scores).sum(1) / 2
    assert (moved <= record["other_score"] * (CLASSES - 64) + 1e-6).all() and moved[3:].max() > 0.001
    for logits in (np.random.default_rng(1).normal(0, 3, scores.shape), np.log(np.maximum(scores, 1e-6))):
        logs = np.asarray(jax.nn.log_softmax(logits))
        difference = np.abs(((scores - read) * logs).sum(1))
        assert (difference <= moved * np.ptp(logs, axis=1) + 1e-5).all() and difference.max() > 1e-4
