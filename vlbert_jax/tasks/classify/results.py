"""Predictions of a split as files, and the scores that need all examples at once."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vlbert_jax.data.tables import Split
from vlbert_jax.files import atomic_write
from vlbert_jax.tasks.classify import nlvr2, scores, snli_ve
from vlbert_jax.tasks.classify.examples import labels_of, loss_of
from vlbert_jax.tasks.own_predictions import file_order, own_row, write_own
from vlbert_jax.tasks.scorers import scorer_of

ALL_LABELS = 100  # up to so many labels all probabilities are written, of more the best BEST
BEST = 10
PREFIX = "classify_"  # of the names of scores
# Scores of `own_scores` that are no means over examples. A run computes them if one of them is its best metric.
JOINT = (
    "f1", "auroc", "average_precision", "macro_f1", "macro_auroc", "mean_average_precision", "subset_accuracy",
    "mean_squared_error", "mean_absolute_error", "pearson", "spearman",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Predicted:
    """The predictions of a split, and its records without images, in the same order."""

    split: str
    records: Sequence[dict]
    labels: tuple[str, ...]
    probabilities: Float[np.ndarray, "q k"]  # or numbers in their own units
    loss: str  # softmax | sigmoid | squared
    positive: int | None  # label of AUROC; None = none

    @property
    def ids(self) -> list[str]:
        return [str(record.get("example_id", number)) for number, record in enumerate(self.records)]

    def answer(self, number: int) -> Any:
        """Return the best label, the labels of at least 0.5, or the number or numbers of an example."""
        row = self.probabilities[number]
        if self.loss == "softmax":
            return self.labels[int(row.argmax())]
        if self.loss == "sigmoid":
            return [label for label, chance in zip(self.labels, row, strict=True) if chance >= 0.5]
        return number_of(row)


def number_of(row: Float[np.ndarray, " k"]) -> float | list[float]:
    """Return the numbers of a row: one number, or a list of several."""
    values = [float(f"{value:.6g}") for value in row]
    return values[0] if len(values) == 1 else values


def predicted_of(rows: dict[str, np.ndarray], config) -> Predicted:
    """Return the predictions of the evaluation split from rows of `Task.predict` in the order of their index."""
    texts, labels = Split(config, config.data.eval_split).texts, labels_of(config)
    records = [texts[int(index)] for index in rows["index"]]
    order = file_order(records)
    records, values = [records[k] for k in order], np.asarray(rows["probabilities"], np.float64)[order]
    return Predicted(config.data.eval_split, records, labels, values, loss_of(config), positive_label(config, labels))


def positive_label(config, labels: tuple[str, ...]) -> int | None:
    """Return the label that AUROC and average precision are of: `config.data.positive`, or the second of two.

    Raises:
        ValueError: There is no such label.
    """
    given = str(config.data.get("positive", ""))
    if given and given not in labels:
        raise ValueError(f"config.data.positive is {given!r}; the labels are {', '.join(labels[:10])}")
    return labels.index(given) if given else 1 if len(labels) == 2 else None


def own_scores(predicted: Predicted) -> dict[str, float]:
    """Return the scores of the examples whose labels are known; empty without any."""
    known = np.array([bool(record["known"]) for record in predicted.records], bool)
    records = [record for record, is_known in zip(predicted.records, known, strict=True) if is_known]
    values, labels = predicted.probabilities[known], predicted.labels
    if not records:
        return {}
    if predicted.loss == "squared":
        return scores.value_scores(np.array([record["values"] for record in records], np.float64), values)
    gold = np.array([[label in record["labels"] for label in labels] for record in records], bool)
    if predicted.loss == "sigmoid":
        return scores.multi_label_scores(gold, values)
    right = np.where(gold.any(1), gold.argmax(1), -1)
    return scores.single_label_scores(right, values, predicted.positive)


def write_files(directory: Path, predicted: Predicted) -> None:
    """Write SPLIT.jsonl and SPLIT.csv: id, answer, probabilities, and the other fields of the user's file."""
    rows = [_row(predicted, number) for number in range(len(predicted.records))]
    shown = predicted.labels if predicted.loss != "squared" and len(predicted.labels) <= ALL_LABELS else ()
    write_own(directory, predicted.split, rows, {label: label for label in shown})


def _row(predicted: Predicted, number: int) -> dict[str, Any]:
    name = {"softmax": "label", "sigmoid": "labels", "squared": "value"}[predicted.loss]
    answer = {name: predicted.answer(number)}
    if predicted.loss != "squared":
        chances, many = predicted.probabilities[number], len(predicted.labels) > ALL_LABELS
        shown = np.argsort(-chances, kind="stable")[:BEST] if many else range(len(chances))
        answer["probabilities"] = {predicted.labels[k]: round(float(chances[k]), 6) for k in shown}
    return own_row(predicted.records[number], answer, number)


def hateful_memes(directory: Path, predicted: Predicted) -> dict[str, float]:
    """Write SPLIT.csv with the columns id, proba (of label 1) and label, as the challenge has them."""
    with atomic_write(directory / f"{predicted.split}.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "proba", "label"))
        for number, (name, chances) in enumerate(zip(predicted.ids, predicted.probabilities, strict=True)):
            writer.writerow((name, f"{chances[1]:.6g}", predicted.answer(number)))
    return own_scores(predicted)


def nlvr2_files(directory: Path, predicted: Predicted) -> dict[str, float]:
    """Write SPLIT.csv with lines `identifier,True`; return the official scores and those of all classes."""
    words = [predicted.answer(number) for number in range(len(predicted.records))]
    with atomic_write(directory / f"{predicted.split}.csv") as path:
        nlvr2.write_predictions(path, dict(zip(predicted.ids, words, strict=True)))
    return own_scores(predicted) | nlvr2.scores_of_records(predicted.records, words)


def snli_ve_scores(directory: Path, predicted: Predicted) -> dict[str, float]:
    """Return the accuracy of the examples of each label, and the scores of all; no file has a form of its own."""
    known = [number for number, record in enumerate(predicted.records) if record["known"]]
    right, words = [predicted.records[k]["labels"][0] for k in known], [predicted.answer(k) for k in known]
    return own_scores(predicted) | (snli_ve.scores(right, words) if known else {})


# Value of `config.data.scorer` -> function that writes the files of a public task and returns its scores.
SCORERS: dict[str, Callable[[Path, Predicted], dict[str, float]]] = {
    "hateful_memes": hateful_memes, "nlvr2": nlvr2_files, "snli_ve": snli_ve_scores,
}  # fmt: skip


def conclude_split(directory: Path, rows: dict[str, np.ndarray], config) -> dict[str, float]:
    """Write the files of a split and return its scores.

    Raises:
        ValueError: There is no scorer of the name `config.data.scorer`.
    """
    scorer = scorer_of(config, SCORERS)
    predicted = predicted_of(rows, config)
    write_files(directory, predicted)
    found = SCORERS[scorer](directory, predicted) if scorer else own_scores(predicted)
    return {f"{PREFIX}{name}": value for name, value in found.items()}
