"""Accuracy of the pointing questions of Visual7W, as the script of its toolkit computes it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class PointingScore(NamedTuple):
    """Numbers of pointing questions; a question without a prediction does not count."""

    right: int
    answered: int

    @property
    def accuracy(self) -> float:
        """Return the share of the answered questions that are right."""
        return self.right / self.answered


def pointing_score(answers: Mapping[int, object], predictions: Sequence[Mapping]) -> PointingScore:
    """Return how many of the predictions are right.

    Identifiers of boxes are compared as texts, whatever their case. Of several candidates the first counts.

    Args:
        answers: `qa_id` -> identifier of the right box, of all questions of a split.
        predictions: Each has `qa_id` and `candidates`, a list of objects with `answer`.

    Raises:
        ValueError: There is no prediction, one is not of this split, or one has no candidate.
    """
    right = 0
    for prediction in predictions:
        number, candidates = prediction["qa_id"], prediction["candidates"]
        if number not in answers:
            raise ValueError(f"qa_id {number} is not a question of this split; predict the questions of the split")
        if not candidates:
            raise ValueError(f"the prediction for qa_id {number} has no candidate; give at least one box")
        right += str(candidates[0]["answer"]).lower() == str(answers[number]).lower()
    if not predictions:
        raise ValueError("there is no prediction; predict the questions of the split")
    return PointingScore(right, len(predictions))
