"""A text that a model answers with, as plain values and as a line to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """A text that the model answers with."""

    text: str
    probability: float


def answer_fields(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain values for JSON."""
    return dict(text=answer.text, probability=round(answer.probability, 4))


def answer_line(described: Sequence[Mapping[str, Any]]) -> str:
    """Return answers as `answer_fields` describes them in one line."""
    return "   ".join(f"{answer['text']} {answer['probability']:.0%}" for answer in described)
