"""Means, spreads and paired tests over seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.runs import shown

LEAST_PAIRS = 3  # seeds with both scores, without which nothing is concluded


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two settings, paired by seed: those of a seed share initial weights and the order of data."""

    pairs: int
    mean: float  # nan without a pair
    error: float  # standard error of the mean; nan with less than two pairs
    p: float  # of the two-sided paired t-test; nan with less than two pairs or without any spread

    def verdict(self) -> str:
        """Return what the difference says about the claim that it is positive."""
        if self.pairs < LEAST_PAIRS:
            return "not tested"
        if abs(self.mean) <= 2 * self.error:
            return "not shown here"
        return "shown" if self.mean > 0 else "contradicted here"


def paired(better: Mapping[int, float], worse: Mapping[int, float]) -> Difference:
    """Compare two settings over the seeds that both have.

    Args:
        better: Seed -> score of the setting that the claim calls better.
        worse: The same of the other setting.
    """
    differences = [better[seed] - worse[seed] for seed in sorted(set(better) & set(worse))]
    pairs = len(differences)
    if not pairs:
        return Difference(0, math.nan, math.nan, math.nan)
    mean = statistics.fmean(differences)
    if pairs == 1:
        return Difference(1, mean, math.nan, math.nan)
    error = statistics.stdev(differences) / math.sqrt(pairs)
    if not error:
        return Difference(pairs, mean, 0.0, math.nan)
    from scipy import stats  # jax requires SciPy

    return Difference(pairs, mean, error, float(2 * stats.t.sf(abs(mean) / error, pairs - 1)))


@dataclasses.dataclass(frozen=True)
class Spread:
    """Standard deviations of scores of several fine-tunings of several pre-trainings; nan where they need more runs."""

    tuning: float  # of the fine-tunings of one pre-training, pooled
    means: float  # of the means of pre-trainings
    pretraining: float  # of the part of these that comes from the pre-training


def spread(scores: Mapping[int, Sequence[float]]) -> Spread:
    """Divide the variance of scores between pre-training and fine-tuning (one-way analysis of variance).

    The mean of k fine-tunings has 1/k of their variance. Pre-training explains the rest of the variance of the means,
    0 if nothing is left.

    Args:
        scores: Seed of the pre-training -> scores of its fine-tunings, equally many for each.
    """
    groups = list(scores.values())
    within = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in within)
    tuning = sum((len(g) - 1) * statistics.variance(g) for g in within) / freedom if within else math.nan
    if len(groups) < 2 or len({len(group) for group in groups}) > 1:
        return Spread(math.sqrt(tuning), math.nan, math.nan)
    means = statistics.variance([statistics.fmean(group) for group in groups])
    return Spread(math.sqrt(tuning), math.sqrt(means), math.sqrt(max(means - tuning / len(groups[0]), 0.0)))


def shown_spread(found: Spread) -> list[str]:
    """Return the standard deviations as cells of a table."""
    return ["–" if math.isnan(value) else f"{value:.3f}" for value in dataclasses.astuple(found)]


def shown_mean(scores: Mapping[int, float]) -> str:
    """Return mean, standard deviation and number of seeds as a cell of a table."""
    return f"{shown(list(scores.values()))} ({len(scores)})" if scores else "–"


def shown_difference(difference: Difference) -> tuple[str, str]:
    """Return the difference with its standard error, and the p-value, as cells of a table."""
    if not difference.pairs:
        return "–", "–"
    error = "" if math.isnan(difference.error) else f" ± {difference.error:.3f}"
    p = "–" if math.isnan(difference.p) else "< 0.001" if difference.p < 0.0005 else f"{difference.p:.3f}"
    return f"{difference.mean:+.3f}{error}", p
