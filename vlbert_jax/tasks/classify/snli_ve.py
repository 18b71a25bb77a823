"""The scores of SNLI-VE: accuracy, and that of the examples of each label. There is no official program."""

from __future__ import annotations

from collections.abc import Sequence


def scores(labels: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Return the accuracy, and for each label the accuracy of the examples that have it, such as accuracy_neutral.

    Args:
        labels: Annotated label of each example.
        predictions: Predicted label of each example.

    Raises:
        ValueError: There is no example.
    """
    if not labels:
        raise ValueError("There is no example with a label, so there is no accuracy.")
    hits = [label == word for label, word in zip(labels, predictions, strict=True)]
    found = {"accuracy": sum(hits) / len(hits)}
    for name in sorted(set(labels)):
        own = [hit for hit, label in zip(hits, labels, strict=True) if label == name]
        found[f"accuracy_{name}"] = sum(own) / len(own)
    return found
