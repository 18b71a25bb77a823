"""Files of predicted answers in the form of each public task, and its official scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlbert_jax.data.tables import Split
from vlbert_jax.files import atomic_write
from vlbert_jax.tasks.answer import gqa
from vlbert_jax.tasks.answer.accuracy import answer_accuracy, summary
from vlbert_jax.tasks.answer_lists import UNKNOWN, answers_of
from vlbert_jax.tasks.own_predictions import file_order, own_row, write_own
from vlbert_jax.tasks.scorers import scorer_of

UNANSWERABLE = "unanswerable"  # what VizWiz expects in place of an unknown answer
TYPES = ("accuracyPerStructuralType", "accuracyPerSemanticType")


@dataclasses.dataclass(frozen=True)
class Answered:
    """The records of a split without images, and the best answer to each, in the same order."""

    records: Sequence[dict]
    answers: Sequence[str]

    def pairs(self):
        """Return an iterator of (record, answer)."""
        return zip(self.records, self.answers, strict=True)


def annotator_scores(answered: Answered) -> dict[str, float]:
    """Return the official accuracies of VQA v2 as fractions; none without annotations."""
    known = [(record, answer) for record, answer in answered.pairs() if record["answers"]]
    if not known:
        return {}
    accuracies = [answer_accuracy(answer, record["answers"]) for record, answer in known]
    official: dict[str, Any] = summary(accuracies, [record["answer_type"] for record, _ in known])
    found = {"vqa_official_accuracy": official["overall"]}
    for name, value in official["perAnswerType"].items():
        if not name:  # own data has no types of answers
            continue
        found[f"vqa_official_accuracy_{name.replace('/', '_')}"] = value
    return {name: value / 100 for name, value in found.items()}


def write_vqa(answered: Answered) -> tuple[list[dict], dict[str, float]]:
    """Return the rows of EvalAI's file for VQA v2, and the official accuracies."""
    rows = [dict(question_id=int(record["question_id"]), answer=answer) for record, answer in answered.pairs()]
    return rows, annotator_scores(answered)


def write_vizwiz(answered: Answered) -> tuple[list[dict], dict[str, float]]:
    """Return the rows of VizWiz's file, in which an unknown answer is "unanswerable", and the official accuracies."""
    given = [UNANSWERABLE if answer == UNKNOWN else answer for answer in answered.answers]
    answered = dataclasses.replace(answered, answers=given)
    rows = [dict(image=record["example_id"], answer=answer) for record, answer in answered.pairs()]
    return rows, annotator_scores(answered)


def write_gqa(answered: Answered) -> tuple[list[dict], dict[str, float]]:
    """Return the rows of GQA's file, and the official scores as fractions where the table has what they read.

    Consistency requires all questions of a split, validity and plausibility its choices.
    """
    rows = [dict(questionId=record["example_id"], prediction=answer) for record, answer in answered.pairs()]
    questions: dict[str, dict] = {}
    for record in answered.records:
        if record["extra"]:
            asked = dict(question=record["question"], answer=record["answers"][0])
            questions[record["example_id"]] = json.loads(record["extra"]) | asked
    if not any(question["isBalanced"] for question in questions.values()):
        return rows, {}
    choices = {name: question["choices"] for name, question in questions.items() if "choices" in question}
    is_whole = not all(question["isBalanced"] for question in questions.values())
    is_whole = is_whole and all(name in questions for question in questions.values() for name in question["entailed"])
    predictions = {row["questionId"]: row["prediction"] for row in rows}
    found = gqa.scores(questions, predictions, choices if len(choices) == len(questions) else None, is_whole)
    scores = {f"gqa_{name}": found[name] / 100 for name in gqa.SCALARS[:-1] if name in found}
    for kind in TYPES:
        scores |= {f"gqa_accuracy_{name}": percent / 100 for name, (percent, _) in found[kind].items()}
    return rows, scores | ({"gqa_distribution": found["distribution"]} if "distribution" in found else {})


def own_answers(answered: Answered) -> tuple[list[dict], dict[str, float]]:
    """Return rows of own data, with the identifiers and further fields of the user's file, and the accuracy of VQA."""
    rows = [own_row(record, dict(answer=answer)) for record, answer in answered.pairs()]
    return [rows[place] for place in file_order(answered.records)], annotator_scores(answered)


# Value of `config.data.scorer` -> function that returns the rows of the file of a public task and its scores.
SCORERS: dict[str, Callable[[Answered], tuple[list[dict], dict[str, float]]]] = {
    "": write_vqa, "gqa": write_gqa, "vizwiz": write_vizwiz, "own": own_answers,
}  # fmt: skip


def conclude_split(directory: Path, rows: dict, config) -> dict[str, float]:
    """Write SPLIT.json in the form of a public task, and return its official scores as fractions.

    Answers of own data are in SPLIT.jsonl and SPLIT.csv.

    Args:
        directory: Folder of the file.
        rows: Rows of `Task.predict` in the order of their index.
        config: Config of the run.

    Raises:
        ValueError: There is no scorer of the name `config.data.scorer`.
    """
    scorer, split, entries = scorer_of(config, SCORERS), config.data.eval_split, answers_of(config).entries
    texts = Split(config, split).texts
    records = [texts[int(index)] for index in rows["index"]]
    submission, scores = SCORERS[scorer](Answered(records, [entries[best] for best, *_ in rows["answer"]]))
    if scorer == "own":
        write_own(directory, split, submission, {})
        return scores
    with atomic_write(directory / f"{split}.json") as path:
        path.write_text(json.dumps(submission))
    return scores
