"""Answers of captions that are questions: a score from 0 to 1 for each answer, as in LXMERT's pre-training data."""

from __future__ import annotations

from typing import Any

from vlbert_jax.files import distinct_fields, parse_json

FORM = 'an object answer -> score, as {"red": 1, "pink": 0.3}'


def answer_scores(given: Any) -> dict[str, float]:
    """Return answer -> score of a value of JSON, without answers of score 0.

    Raises:
      ValueError: the value is not `FORM`.
    """
    scores = list(given.values()) if isinstance(given, dict) else [None]
    if not all(isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score < 1e6 for score in scores):
        raise ValueError(f"answers must be {FORM}")
    return {answer: float(score) for answer, score in given.items() if score}


def answers_of_column(text: str) -> dict[str, float]:
    """Return answer -> score of the third column of a table: `FORM`, one answer in plain text, or nothing.

    Raises:
      ValueError: the text begins as JSON and is not `FORM`.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        return {text: 1.0} if text else {}
    try:
        return answer_scores(parse_json(text, pairs_hook=distinct_fields))
    except ValueError as error:
        problem = str(error) if "must be" in str(error) else f"{error}; answers must be {FORM}"
        raise ValueError(f"{problem}, or one answer in plain text") from None
