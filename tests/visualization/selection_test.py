"""The examples of a report are right as often as the examples of the whole split."""

import numpy as np
import pytest

from vlbert_jax.visualization.selection import choose_at_rate, spread


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6, 1.0])
def test_the_share_shown_is_the_measured_one(rate):
    right = (np.random.default_rng(0).random((60, 1)) < 0.5).astype(float)
    chosen = choose_at_rate(right, np.ones((60, 1)), np.array([rate]), 12)
    assert len(set(chosen)) == 12 and chosen == sorted(chosen)
    assert abs(right[chosen].mean() - rate) <= 0.5 / 12 + 1e-9


def test_several_metrics_and_several_answers_per_example():
    rng = np.random.default_rng(1)
    total = rng.integers(0, 4, (64, 2)).astype(float)
    right = rng.binomial(total.astype(int), [0.7, 0.3]).astype(float)
    rates = np.array([0.8, 0.2])
    chosen = choose_at_rate(right, total, rates, 12)
    np.testing.assert_allclose(right[chosen].sum(0) / total[chosen].sum(0), rates, atol=0.03)


def test_without_a_measured_rate_examples_are_at_even_distances():
    right = np.zeros((24, 1))
    assert choose_at_rate(right, right + 1, np.array([np.nan]), 12) == list(range(0, 24, 2)) == spread(12, 24)
    assert choose_at_rate(right[:3], right[:3] + 1, np.array([0.5]), 12) == [0, 1, 2]  # there are no others
    assert choose_at_rate(right[:0], right[:0], np.array([0.5]), 12) == []
