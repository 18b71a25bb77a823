"""The official scores of GQA; neither jax nor a model is needed.

    python -m vlbert_jax.tasks.answer.gqa --questions=val_all_questions.json --choices=val_choices.json \\
        --predictions=predictions/val.json --consistency

prints them as JSON, in percent. The rules are those of the official eval.py (gqadataset.org): an answer is right if it
equals the annotated one letter by letter, capitals included, and only questions with `isBalanced` count. The scores:

- accuracy; binary and open, its two parts: open questions are those of the structural type "query";
- consistency: the mean, over right questions that entail others, of the share of right answers among those others;
- validity and plausibility: the share of answers in two lists of the file of choices;
- distribution: chi-square distance of predicted from annotated answers, averaged over global groups; 0 is best;
- accuracy by structural and semantic type, number of words, and number of steps, each with its number of questions.

Odd cases are kept: of two predictions for one question the last counts, predictions for other questions are ignored,
answers that are never right cost nothing in `distribution`, and a question of a type with "Common" has the choices
color, material and shape. Grounding, which requires attention maps, is not computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlbert_jax.command import run_command
from vlbert_jax.files import parse_json, required_path, user_path

COMMON_CHOICES = ("color", "material", "shape")
# Steps of a question's program that the official code does not count.
UNCOUNTED_STEPS = ("exist", "query: name", "choose name")
FIELDS = ("question", "answer", "isBalanced", "types", "groups", "entailed", "semantic")  # what the scores read
SCALARS = ("accuracy", "binary", "open", "consistency", "validity", "plausibility", "distribution")


def mean(values: Sequence[float]) -> float:
    """Return the mean of values that are added from left to right; 0 if there is none."""
    total = 0.0
    for value in values:  # since Python 3.12 `sum` compensates for rounding, which changes last digits
        total += value
    return total / len(values) if values else 0.0


def number_of_steps(question: Mapping[str, Any]) -> int:
    """Return the number of steps of a question's program that count."""
    steps = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return sum(not any(name in step for name in UNCOUNTED_STEPS) for step in steps)


def distribution(gold: Mapping[str, Mapping[str, int]], predicted: Mapping[str, Mapping[str, int]]) -> float:
    """Return the chi-square distance, averaged over groups by their sizes and divided by 100.

    Args:
        gold: group -> annotated answer -> number of questions.
        predicted: The same of predictions.
    """
    total, size = 0.0, 0
    for group, answers in gold.items():
        distance = 0.0
        for answer, count in answers.items():
            distance += float(predicted[group].get(answer, 0) - count) ** 2 / count
        total += distance * sum(answers.values())
        size += sum(answers.values())
    return total / size / 100


def _check(questions: Mapping[str, Any], predictions: Mapping[Any, Any], choices, consistency: bool) -> None:
    """Raise ValueError for what ends the official evaluation with an exception."""
    needed = [name for name, question in questions.items() if consistency or question["isBalanced"]]
    if not any(questions[name]["isBalanced"] for name in needed):
        raise ValueError(f"None of {len(questions)} questions is balanced, so none counts; take the file of a split.")
    if missing := [name for name in needed if name not in predictions]:
        numbers = any(type(name) is not str for name in predictions)
        remedy = "questionId must be a text, with its leading zeros" if numbers else "answer every question" + (
            ", not only the balanced ones: consistency reads the entailed questions" if consistency else ""
        )
        raise ValueError(f"{len(missing)} of {len(needed)} predictions are missing, first {missing[0]!r}; {remedy}.")
    for name in needed:
        question = questions[name]
        if question.get("answer") is None:
            raise ValueError(f"Question {name!r} has no answer to compare with; score val or testdev.")
        if choices and question["isBalanced"] and name not in choices:
            raise ValueError(f"The choices lack question {name!r}; take the choices of the same split.")
        if consistency and (lost := [other for other in question["entailed"] if other not in questions]):
            raise ValueError(
                f"Question {name!r} entails {lost[0]!r}, which is not among the questions; for consistency, take all "
                "questions of the split, not the balanced ones."
            )


def scores(
    questions: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[Any, Any],
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    consistency: bool = False,
) -> dict[str, Any]:
    """Return the official scores of predictions.

    Args:
        questions: questionId -> question with the fields `FIELDS`, in the order of the file.
        predictions: questionId -> answer.
        choices: questionId -> lists `valid` and `plausible`; None leaves validity and plausibility out.
        consistency: Whether to compute it; then every question requires a prediction, else every balanced one.

    Returns:
        `SCALARS` in percent (distribution: a distance; without a question of a global group it is left out),
        and four dicts `accuracyPer...` of (percent, number of questions).

    Raises:
        ValueError: A prediction, an answer or a choice is missing.
    """
    _check(questions, predictions, choices, consistency)
    right = {name: predictions.get(name) == question.get("answer") for name, question in questions.items()}
    lists: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, dict[Any, list[float]]] = {
        f"accuracyPer{what}": defaultdict(list) for what in ("StructuralType", "SemanticType", "Steps", "Length")
    }
    gold, predicted = (defaultdict(lambda: defaultdict(int)) for _ in range(2))
    for name, question in questions.items():
        if not question["isBalanced"]:
            continue
        score, types, answer = float(right[name]), question["types"], predictions[name]
        lists["accuracy"].append(score)
        lists["open" if types["structural"] == "query" else "binary"].append(score)
        parts["accuracyPerStructuralType"][types["structural"]].append(score)
        parts["accuracyPerSemanticType"][types["semantic"]].append(score)
        parts["accuracyPerSteps"][number_of_steps(question)].append(score)
        parts["accuracyPerLength"][len(question["question"].split())].append(score)
        for kind, metric in (("valid", "validity"), ("plausible", "plausibility")) if choices else ():
            usual = COMMON_CHOICES if "Common" in types["detailed"] else choices[name][kind]  # pyright: ignore[reportOptionalSubscript]
            lists[metric].append(float(answer in usual))
        if (group := question["groups"]["global"]) is not None:
            gold[group][question["answer"]] += 1
            predicted[group][answer] += 1
        others = [other for other in question["entailed"] if other != name] if consistency else []
        if right[name] and others:
            lists["consistency"].append(mean([float(right[other]) for other in others]))
    names = [name for name in SCALARS[:-1] if name in ("accuracy", "binary", "open") or name in lists]
    names += ["consistency"] if consistency and "consistency" not in names else []
    result: dict[str, Any] = {name: mean(lists[name]) * 100 for name in names}
    if gold:
        result["distribution"] = distribution(gold, predicted)
    for name, groups in parts.items():
        result[name] = {key: (mean(values) * 100, len(values)) for key, values in groups.items()}
    return result


# --- Files --------------------------------------------------------------------------------------------------


def _read(path: Path, kind: type, what: str) -> Any:
    """Return the JSON value of a file, of a given type. Raises ValueError."""
    try:
        found = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: the file is not JSON ({error}); {what}.") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: the file is not {what}.")
    return found


def read_questions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return questionId -> question of a file, or of a folder with the parts of one.

    Raises:
        ValueError: There is no such file, or it is not one of questions.
    """
    path = Path(path)
    parts = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    if not parts:
        raise ValueError(f"{path}: there is no such file, or no .json in the folder; download questions1.2.zip.")
    questions: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, question in _read(part, dict, "an object questionId -> question").items():
            if not isinstance(question, dict):
                raise ValueError(f"{part}: question {name!r} is {str(question)[:80]}; download the file again.")
            # An answer is required of val and testdev alone; `scores` states that it is missing.
            missing = [field for field in FIELDS if field not in question and field != "answer"]
            if missing:
                raise ValueError(f"{part}: question {name!r} has no field {missing[0]!r}; score val or testdev.")
            if wrong := _wrong_field(question):
                raise ValueError(f"{part}: {wrong!r} of question {name!r} is damaged; download the file again.")
            questions[name] = question
    return questions


def _wrong_field(question: Mapping[str, Any]) -> str:
    """Return the name of a field of a question that has another type than in the official files; "" = none."""
    kinds: dict[str, type] = dict(question=str, isBalanced=bool, types=dict, groups=dict, entailed=list, semantic=list)
    if wrong := [name for name, kind in kinds.items() if type(question[name]) is not kind]:
        return wrong[0]
    if not isinstance(question.get("answer"), str | None):
        return "answer"
    if not all(isinstance(question["types"].get(name), str) for name in ("structural", "semantic", "detailed")):
        return "types"
    if "global" not in question["groups"] or not isinstance(question["groups"]["global"], str | None):
        return "groups"
    if not all(isinstance(other, str) for other in question["entailed"]):
        return "entailed"
    is_whole = all(isinstance(step, dict) and {"operation", "argument"} <= step.keys() for step in question["semantic"])
    return "" if is_whole else "semantic"


def read_predictions(path: str | Path) -> dict[Any, Any]:
    """Return questionId -> prediction of a file `[{"questionId": str, "prediction": str}]`; the last one counts.

    Raises:
        ValueError: The file is not of that form.
    """
    form = 'a list of {"questionId": str, "prediction": str}'
    items: Iterable[Any] = _read(Path(path), list, form)
    found = {}
    for place, item in enumerate(items):
        whole = isinstance(item, dict) and isinstance(item.get("questionId"), str | int)
        if not whole or not isinstance(item.get("prediction"), str):
            raise ValueError(f"{path}: item {place} (from 0) is {str(item)[:80]}; the file must be {form}.")
        found[item["questionId"]] = item["prediction"]
    return found


def evaluate_files(
    questions: str | Path, predictions: str | Path, choices: str | Path = "", consistency: bool = False
) -> dict[str, Any]:
    """Return the scores of files; see `scores`.

    Args:
        questions: File of questions, or a folder with its parts.
        predictions: File of predictions.
        choices: File of choices; "" = none.
        consistency: Whether to compute consistency.

    Raises:
        ValueError: A file is not of the official form, or predictions are missing.
    """
    form = "an object questionId -> valid, plausible"
    lists = _read(Path(choices), dict, form) if choices else None
    for name, entry in (lists or {}).items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(kind), list) for kind in ("valid", "plausible")):
            raise ValueError(f"{choices}: question {name!r} is {str(entry)[:80]}; the file must be {form}.")
    read = read_questions(questions), read_predictions(predictions)
    try:
        return scores(*read, lists, consistency)
    except ValueError as error:
        raise ValueError(f"{predictions}, scored with {questions}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 after an error, which one line explains."""
    parser = argparse.ArgumentParser(
        prog="python -m vlbert_jax.tasks.answer.gqa", description="The official scores of GQA, in percent, as JSON"
    )
    for name, what in (("questions", "file, or folder with its parts"), ("predictions", "the file to score")):
        parser.add_argument(f"--{name}", type=required_path, required=True, help=what)
    parser.add_argument("--choices", type=user_path, default="", help="val_choices.json, for validity, plausibility")
    parser.add_argument("--consistency", action="store_true", help="requires answers to all questions of the split")
    args = parser.parse_args(argv)

    def work() -> None:
        found = evaluate_files(args.questions, args.predictions, args.choices, args.consistency)
        print(json.dumps(found, indent=1, ensure_ascii=False))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
