"""Early stopping: how many evaluations in a row were no better than the best one before them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

LOWER_IS_BETTER = ("loss", "error", "perplexity")  # in the name of the best metric


def lower_is_better(metric: str) -> bool:
    """Return whether the smallest value of a metric is the best."""
    return any(word in metric for word in LOWER_IS_BETTER)


class Patience:
    """The best evaluation by `config.best_metric`, and the number of evaluations since.

    `config.early_stopping` is the number after which training ends; 0 = never. Every process counts the same
    scores, and a checkpoint stores the count.
    """

    def __init__(self, config: ml_collections.ConfigDict, stored: Mapping[str, Any] | None = None):
        self.limit, self.metric = config.get("early_stopping", 0), config.best_metric
        stored = stored or {}
        self.best: float | None = stored.get("best")
        self.step: int = stored.get("step", 0)  # of the best evaluation
        self.since: int = stored.get("since", 0)

    def count(self, step: int, scores: Mapping[str, Any]) -> None:
        """Take the scores of step `step` into account; without a finite value of the metric they do not count."""
        value = scores.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        sign = -1 if lower_is_better(self.metric) else 1
        if self.best is None or sign * value > sign * self.best:
            self.best, self.step, self.since = float(value), step, 0
        else:
            self.since += 1

    @property
    def ended(self) -> bool:
        """Whether training ends here."""
        return 0 < self.limit <= self.since

    @property
    def stored(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return dict(best=self.best, step=self.step, since=self.since)

    @property
    def reason(self) -> str:
        """Return why training ended, as a clause."""
        return f"{self.since} evaluations in a row were no better in {self.metric} than step {self.step:,}"


def patience_of(config: ml_collections.ConfigDict, history: Iterable[Mapping[str, Any]]) -> Patience:
    """Return the count after the rows of metrics.jsonl."""
    patience = Patience(config)
    for row in history:
        if row["split"] == "val":
            patience.count(row["step"], row)
    return patience
