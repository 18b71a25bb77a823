"""Probabilities of choices as files, and the accuracies of both subtasks together."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from vlbert_jax.files import atomic_write
from vlbert_jax.tasks.choice.texts import SUBTASKS
from vlbert_jax.tasks.own_predictions import own_row


def probabilities(logits: Float[np.ndarray, "q n"], choices: int = 4) -> Float[np.ndarray, "q n"]:
    """Return the softmax over each four choices, as the official code writes for the leaderboard with any loss.

    Other data have another number of `choices`.
    """
    grouped = logits.reshape(len(logits), -1, choices).astype(np.float32)
    powers = np.exp(grouped - grouped.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).reshape(logits.shape)


def columns(subtask: str, number: int) -> list[str]:
    """Return the names of the leaderboard's columns.

    `rationale_j` is not a column of the leaderboard: it is used where the right answer was given.
    """
    if subtask == "q2a":
        return [f"answer_{i}" for i in range(number)]
    if number == 4:
        return [f"rationale_{j}" for j in range(4)]
    return [f"rationale_conditioned_on_a{i}_{j}" for i in range(4) for j in range(4)]


def write_table(path: Path, annot_ids: Iterable[str], tables: dict[str, Float[np.ndarray, "q n"]]) -> None:
    """Write a row per question: annot_id, then the columns of each subtask, q2a first."""
    ordered = {name: tables[name] for name in SUBTASKS if name in tables}
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["annot_id", *(c for name, table in ordered.items() for c in columns(name, table.shape[1]))])
        for annot_id, *rows in zip(annot_ids, *ordered.values(), strict=True):
            writer.writerow([annot_id, *(str(value) for row in rows for value in row)])


def own_rows(records: Sequence[dict], logits: Float[np.ndarray, "q n"]) -> list[dict]:
    """Return the rows of user-supplied data: id, the index and text of the best choice, and all probabilities."""
    rows = []
    for record, chances in zip(records, probabilities(logits, logits.shape[1]), strict=True):
        best = int(chances.argmax())
        answer = dict(label=best, choice=record["choices"][best])
        answer |= dict(probabilities=[round(float(chance), 6) for chance in chances])
        rows.append(own_row(record, answer))
    return rows


def accuracies(
    logits: dict[str, Float[np.ndarray, "q 4"]], labels: dict[str, Int[np.ndarray, " q"]]
) -> dict[str, float]:
    """Return `vcr_{q2a,qa2r}_accuracy`, and `vcr_q2ar_accuracy`: the share with both choices right."""
    hits = {name: scores.argmax(1) == labels[name] for name, scores in logits.items()}
    found = {f"vcr_{name}_accuracy": float(hit.mean()) for name, hit in hits.items()}
    return found | dict(vcr_q2ar_accuracy=float(np.logical_and(*hits.values()).mean()))
