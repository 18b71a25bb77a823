"""The official score of VQA v2 and the answer vocabulary; neither jax nor a model is needed.

    python -m vlbert_jax.tasks.answer.accuracy --questions=v2_OpenEnded_mscoco_val2014_questions.json \\
        --annotations=v2_mscoco_val2014_annotations.json --results=predictions.json

prints the accuracies of the official evaluation (GT-Vision-Lab/VQA, `VQAEval`) as JSON: overall, by answer type and by
question type, in percent with two decimals.

An answer scores the mean, over the ten annotators, of min(1, matches among the other nine / 3). Both sides are
normalized first, but only where the annotators disagree: "yes" against ten times "Yes." scores 0. The official program
is Python 2, and its last digits and odd cases are kept: plain sums in the annotators' order, halves rounded away from
zero, lower case letter by letter, only ASCII digits are digits.

The vocabulary is read as official VL-BERT does (`vqa/data/datasets/vqa.py` without imdb): its entries pass a
punctuation rule of their own, the annotators' answers are looked up as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from vlbert_jax.command import run_command
from vlbert_jax.files import parse_json, required_path
from vlbert_jax.tasks.answer_lists import DIGITS, AnswerVocabulary, without_punctuation

FEWEST_ANNOTATORS = 4  # with fewer, no answer has three matches among the others, so none can score 1

# --- Normalization ------------------------------------------------------------------------------------------

ARTICLES = ("a", "an", "the")
# Each is restored where one of its apostrophes is missing; "she'd" and such are not, as "shed" is a word.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in """
        ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
        he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
        needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
        somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
        that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
        weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
        why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
        you've""".split()
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # reversed in the official code


def normalize_punctuation(answer: str) -> str:
    """Drop marks of PUNCTUATION, or replace one by a space where it touches none; drop most full stops."""
    return without_punctuation(answer, re.ASCII)


def normalize_words(answer: str) -> str:
    """Return lower-case text: number words as digits, no articles, apostrophes restored, single spaces."""
    # Letter by letter and its first letter, as Python 2 does: no final sigma, no dot beside the i of U+0130.
    words = "".join(letter.lower()[0] for letter in answer).split()
    words = [DIGITS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize(answer: str) -> str:
    """Return the official normal form of a prediction or an annotation."""
    return normalize_words(normalize_punctuation(answer))


# --- Accuracy -----------------------------------------------------------------------------------------------


def plain_sum(numbers: Iterable[float]) -> float:
    """Return the sum from left to right.

    Since Python 3.12 `sum` compensates for rounding, which changes last digits.
    """
    total = 0.0
    for number in numbers:
        total += number
    return total


def _leave_one_out(matches: Sequence[bool]) -> float:
    """Return the mean over annotators of min(1, matches among the others / 3).

    Raises ValueError for fewer than `FEWEST_ANNOTATORS` annotators.
    """
    if len(matches) < FEWEST_ANNOTATORS:
        raise ValueError(
            f"There are {len(matches)} annotators' answers, but the score of VQA compares each annotator with the "
            f"others and needs at least {FEWEST_ANNOTATORS}; repeat the answers of each question until there are ten."
        )
    count = sum(matches)
    return plain_sum(min(1.0, (count - match) / 3) for match in matches) / len(matches)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official accuracy in [0, 1], unrounded, of a prediction against the annotators' raw answers (ten in VQA v2).

    Raises ValueError for fewer than four answers.
    """
    if not answers:
        raise ValueError("The accuracy of an answer requires annotators' answers, but there are none.")
    prediction, *answers = (
        text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers)
    )
    if len(set(answers)) > 1:
        prediction, *answers = map(normalize, (prediction, *answers))
    return _leave_one_out([answer == prediction for answer in answers])


def percent(accuracies: Sequence[float]) -> float:
    """Return the mean in percent with two decimals; exact halves are rounded away from zero as in Python 2.

    Raises:
        ValueError: There is no accuracy.
    """
    if not accuracies:
        raise ValueError("no accuracy to average")
    mean = 100 * plain_sum(accuracies) / len(accuracies)
    return float(Decimal(mean).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _by_type(accuracies: Sequence[float], types: Sequence[str]) -> dict[str, float]:
    grouped: dict[str, list[float]] = {}
    for accuracy, name in zip(accuracies, types, strict=True):
        grouped.setdefault(name, []).append(accuracy)
    return {name: percent(group) for name, group in grouped.items()}


def summary(
    accuracies: Sequence[float], answer_types: Sequence[str], question_types: Sequence[str] | None = None
) -> dict[str, float | dict[str, float]]:
    """Return `overall`, `perAnswerType` and, with types of questions, `perQuestionType`, in percent.

    They are rounded as in the official code.

    Accuracies in the order of the annotation file give the official sums to the last digit. Raises ValueError if
    lengths differ or there is nothing.
    """
    result = dict(overall=percent(accuracies), perAnswerType=_by_type(accuracies, answer_types))
    if question_types is not None:
        result["perQuestionType"] = _by_type(accuracies, question_types)
    return result


# --- Vocabulary and targets ---------------------------------------------------------------------------------


def soft_targets(answers: Sequence[str], vocabulary: AnswerVocabulary) -> Float32[np.ndarray, " answers"]:
    """Score of each entry against the annotators' raw answers: of ten, 1 gives 0.3, 2 0.6, 3 0.9, more give 1.

    `<unk>`, and with it every answer that is no entry, scores 0; no answers, all zeros. Raises ValueError for one to
    three annotators.
    """
    numbers = [vocabulary.number(answer) for answer in answers]
    targets = np.zeros(len(vocabulary), np.float32)
    for number in set(numbers) - {vocabulary.unknown}:
        targets[number] = _leave_one_out([other == number for other in numbers])
    return targets


# --- Command line -------------------------------------------------------------------------------------------


def _read(path: str, field: str | None) -> list[dict]:
    """Return the list in `field` of a JSON file, or the file as a list; items have an integer `question_id`."""
    try:
        content = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); write or download it again") from None
    items = content.get(field) if field and isinstance(content, dict) else None if field else content
    if not isinstance(items, list):
        raise ValueError(f"{path}: must be " + (f'an object with a list "{field}"' if field else "a list"))
    seen = set()
    for place, item in enumerate(items):
        number = item.get("question_id") if isinstance(item, dict) else None
        if type(number) is not int:
            raise ValueError(f"{path}: item {place} is not an object with an integer question_id: {str(item)[:80]}")
        if number in seen:
            raise ValueError(f"{path}: question_id {number} occurs twice; keep one of them")
        seen.add(number)
    return items


def _same_questions(path: str, items: list[dict], other_path: str, others: list[dict]) -> None:
    numbers, other_numbers = ({item["question_id"] for item in group} for group in (items, others))
    for missing, where, there in (
        (other_numbers - numbers, path, other_path),
        (numbers - other_numbers, other_path, path),
    ):
        if missing:
            raise ValueError(
                f"{where}: lacks {len(missing)} questions of {there}, the first is question_id {min(missing)}; "
                "take files of the same split, each question exactly once"
            )


def read_results(path: str | os.PathLike) -> dict[int, str]:
    """Return question_id -> answer of a file [{"question_id": int, "answer": str}].

    Raises:
        ValueError: The file is not of that form.
    """
    items = _read(os.fspath(path), None)
    for item in items:
        if not isinstance(item.get("answer"), str):
            raise ValueError(f"{os.fspath(path)}: the answer of question_id {item['question_id']} is not a text")
    return {item["question_id"]: item["answer"] for item in items}


def _check_annotation(path: str, item: dict) -> None:
    answers = item.get("answers")
    whole = isinstance(item.get("answer_type"), str) and isinstance(item.get("question_type"), str)
    whole = whole and isinstance(answers, list) and answers
    if not whole or not all(isinstance(a, dict) and isinstance(a.get("answer"), str) for a in answers):
        raise ValueError(f"{path}: question_id {item['question_id']} lacks answers, answer_type or question_type")
    numbers = [str(answer.get("answer_id")) for answer in answers]
    if len(set(numbers)) < len(numbers):  # the official code leaves an annotator out by comparing the whole answer
        raise ValueError(f"{path}: question_id {item['question_id']} has two answers with the same answer_id")
    if len(answers) < FEWEST_ANNOTATORS:
        raise ValueError(
            f"{path}: question_id {item['question_id']} has {len(answers)} of at least {FEWEST_ANNOTATORS} answers: "
            "the score compares each annotator with the others; repeat the answers of each question until there are "
            "ten, each with its own answer_id"
        )


def evaluate_files(
    questions: str | os.PathLike, annotations: str | os.PathLike, results: str | os.PathLike
) -> dict[str, float | dict[str, float]]:
    """Return the official evaluation of a results file.

    Raises:
        ValueError: A file is not of the official form; the message has the file, the question and a remedy.
    """
    questions, annotations, results = map(os.fspath, (questions, annotations, results))
    annotated = _read(annotations, "annotations")
    if not annotated:
        raise ValueError(f"{annotations}: no annotation in it")
    for item in annotated:
        _check_annotation(annotations, item)
    _same_questions(annotations, annotated, questions, _read(questions, "questions"))
    predictions = read_results(results)
    _same_questions(results, [dict(question_id=number) for number in predictions], annotations, annotated)
    accuracies = [
        answer_accuracy(predictions[item["question_id"]], [answer["answer"] for answer in item["answers"]])
        for item in annotated
    ]
    return summary(
        accuracies, [item["answer_type"] for item in annotated], [item["question_type"] for item in annotated]
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m vlbert_jax.tasks.answer.accuracy",
        description="The official accuracies of VQA v2, in percent, as JSON",
    )
    for name, what in (
        ("--questions", "v2_OpenEnded_mscoco_SPLIT_questions.json"),
        ("--annotations", "v2_mscoco_SPLIT_annotations.json"),
        ("--results", 'predictions: [{"question_id": int, "answer": str}, ...]'),
    ):
        parser.add_argument(name, type=required_path, required=True, help=what)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 after an error, which one line explains."""
    args = parse_arguments(argv)

    def work() -> None:
        print(json.dumps(evaluate_files(args.questions, args.annotations, args.results), indent=1, ensure_ascii=False))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
