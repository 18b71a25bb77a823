"""The parts of the report about classes: a confusion matrix, calibration, and cards of right and wrong examples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from vlbert_jax.tasks.classify import scores
from vlbert_jax.tasks.classify.results import number_of
from vlbert_jax.visualization import report
from vlbert_jax.visualization.cards import Card, RankedAnswer
from vlbert_jax.visualization.templates import Html, join

MOST_CLASSES = 12  # up to so many classes the confusion matrix is shown; of more, the most frequent mistakes
SHOWN_ANSWERS = 5
HALF = 0.5


def class_sections(
    labels: tuple[str, ...], right: Int[np.ndarray, " q"], probabilities: Float[np.ndarray, "q k"]
) -> list[tuple[str, Html]]:
    """Return the confusion matrix and the calibration of examples with one label each; -1 = an unknown class."""
    answers = probabilities.argmax(1)
    confident = probabilities.max(1)
    return [
        ("Confusion of the classes", _confusion(labels, right, answers)),
        ("Calibration", calibration_section(confident, answers == right)),
    ]


def label_sections(
    labels: tuple[str, ...], gold: Bool[np.ndarray, "q k"], probabilities: Float[np.ndarray, "q k"]
) -> list[tuple[str, Html]]:
    """Return a table of the labels, and the calibration of examples with any number of labels."""
    chosen = probabilities >= HALF
    f1 = np.nan_to_num(scores.f1_of_classes(gold, chosen))
    order = np.argsort(-gold.sum(0), kind="stable")[:MOST_CLASSES]
    rows = []
    for k in order:
        numbers = (gold[:, k].sum(), chosen[:, k].sum(), (gold & chosen)[:, k].sum())
        rows.append((labels[k], "", [*(("", f"{n:,}") for n in numbers), ("", f"{f1[k]:.2f}")]))
    head = [("", name) for name in ("have it", "predicted", "both", "F1")]
    table = report.plain_table(head, rows, "numbers")
    return [
        ("Labels", join([report.note(f"{len(gold)} examples; the most frequent labels."), table])),
        ("Calibration", calibration_section(probabilities.ravel(), gold.ravel())),
    ]


def _confusion(labels: tuple[str, ...], right: Int[np.ndarray, " q"], answers: Int[np.ndarray, " q"]) -> Html:
    known = right >= 0
    if len(labels) <= MOST_CLASSES:
        counts = np.zeros((len(labels), len(labels)), int)
        np.add.at(counts, (right[known], answers[known]), 1)
        note = f"{known.sum()} examples. A row is the right class, a column what the model answered."
        rows = [
            (label, "", [("", f"{count:,}" if count else "·") for count in row])
            for label, row in zip(labels, counts, strict=True)
        ]
        return join([report.note(note), report.plain_table([("", label) for label in labels], rows, "numbers")])
    wrong = known & (right != answers)
    pairs, counts = np.unique(np.stack([right[wrong], answers[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    rows = [
        (f"{labels[pairs[0, k]]}, answered {labels[pairs[1, k]]}", "", [("", f"{counts[k]:,}")]) for k in order
    ]
    note = f"{known.sum()} examples of {len(labels)} classes: the most frequent mistakes."
    return join([report.note(note), report.plain_table([("", "examples")], rows, "numbers")])


def calibration_section(confidences: Float[np.ndarray, " q"], right: Bool[np.ndarray, " q"]) -> Html:
    """Return how often the model is right at each confidence."""
    rows, error = scores.calibration(confidences, right)
    table = [
        (f"{mean:.0%}", "", [("", f"{share:.0%}"), ("", f"{count:,}")]) for mean, share, count in rows
    ]
    text = f"Mean probability of answers in steps of 10 %, and how many of them are right; expected error {error:.1%}."
    return join([report.note(text), report.plain_table([("", "right"), ("", "answers")], table, "numbers")])


def example_card(record: dict, shown: dict, row: dict, labels: tuple[str, ...], loss: str) -> Card | None:
    """Return the card of an example with the model's answers; None where the right answer is not known."""
    if not record["known"]:
        return None
    values, text = row["probabilities"], " | ".join(filter(None, (record["text"], record["text2"])))
    if loss == "squared":
        question = f"{text} = {number_of(np.asarray(record['values']))}"
        answers = [RankedAnswer(str(number_of(np.asarray(values))), 1.0, 0.0)]
        return Card(question=question, answers=answers, **shown)
    order = np.argsort(-values, kind="stable")[:SHOWN_ANSWERS]
    answers = [RankedAnswer(labels[k], float(values[k]), float(labels[k] in record["labels"])) for k in order]
    return Card(question=text or "(no text)", answers=answers, **shown)
