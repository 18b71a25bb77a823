"""Questions among the captions of pre-training (LXMERT): one answer of each is sampled, and classified."""

import itertools
from collections.abc import Sequence

from vlbert_jax.tasks.answer_lists import AnswerVocabulary, lxmert_spelling


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
    numbers = [vocabulary.number(lxmert_spelling(answer)) for answer in answers]
    known = [(number, float(s)) for number, s in zip(numbers, scores, strict=True) if s > 0 and number >= 0]
    known = [pair for pair in known if pair[0] != vocabulary.unknown]
    if not known:
        return -1
    bounds = list(itertools.accumulate(score for _, score in known))
    return next((n for (n, _), bound in zip(known, bounds, strict=True) if uniform * bounds[-1] < bound), known[-1][0])
