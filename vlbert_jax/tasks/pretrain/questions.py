"""Questions among the captions of pre-training (LXMERT): one answer of each is sampled, and classified."""

import itertools
from collections.abc import Sequence

from vlbert_jax.tasks.answer_lists import DIGITS, AnswerVocabulary

ARTICLES = ("a ", "an ", "the ")  # removed one after another, in this order
WRITTEN = {word: digit for word, digit in DIGITS.items() if word not in ("none", "zero")} | {"grey": "gray"}


def normalized(answer: str) -> str:
    """Return an answer as LXMERT's list has it: lower case, without full stop and article, numbers as digits."""
    found = answer.lower().removesuffix(".").strip()
    for article in ARTICLES:
        found = found.removeprefix(article).strip()
    return WRITTEN.get(found, found)


def sampled_answer(
    answers: Sequence[str], scores: Sequence[float], vocabulary: AnswerVocabulary, uniform: float
) -> int:
    """Return the number of an answer, sampled by score among those of the vocabulary; -1 where there is none.

    Args:
        answers: Of a question; none for a caption.
        scores: Their scores, of any sum.
        vocabulary: Answers by number.
        uniform: Random number from 0 to 1.
    """
    numbers = [vocabulary.number(normalized(answer)) for answer in answers]
    known = [(number, float(s)) for number, s in zip(numbers, scores, strict=True) if s > 0 and number >= 0]
    known = [pair for pair in known if pair[0] != vocabulary.unknown]
    if not known:
        return -1
    bounds = list(itertools.accumulate(score for _, score in known))
    return next((n for (n, _), bound in zip(known, bounds, strict=True) if uniform * bounds[-1] < bound), known[-1][0])
