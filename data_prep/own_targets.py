"""What user-supplied data teach: the labels, numbers or answers of train, and what may be wrong with them."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.manifest import SourceError
from data_prep.own_files import Example, OwnFolder
from data_prep.vqa_files import CHANGED

UNKNOWN = "<unk>"
REPEATED = 4  # times that each answer is repeated where there are fewer: then each listed answer is right
WORD = re.compile(r"\w+|[^\w\s]")

# --- Labels and numbers ---------------------------------------------------------------------------


def _order(label: str) -> tuple:
    return (0, int(label), label) if re.fullmatch(r"-?\d{1,18}", label) else (1, 0, label)


def given_labels(example: Example) -> list[str]:
    """Return the labels of an example; none if they are not known."""
    return example.fields.get("labels", [example.fields["label"]] if "label" in example.fields else [])


def count_labels(folder: OwnFolder, split: str) -> collections.Counter[str]:
    """Return how many examples of a split have each label."""
    return collections.Counter(label for example in folder.examples[split] for label in given_labels(example))


def labels_of(folder: OwnFolder) -> list[str]:
    """Return the labels, integers by value, then others by name; warn of what may be wrong.

    Labels that train lacks are among them, so that their examples count as wrong.

    Raises SourceError if there is nothing to tell apart.
    """
    train = count_labels(folder, "train")
    labels = sorted(set().union(*(count_labels(folder, split) for split in folder.examples)), key=_order)
    path, number = folder.paths["train"], len(folder.examples["train"])
    if not train or len(labels) < (2 if folder.form.name == "label" else 1):
        only = f"the only label is {labels[0]!r}" if train else "no example has a label"
        raise SourceError(f"{path}: {only}, so there is nothing to learn; add examples of another label")
    if folder.form.name == "label" and len(train) == 1:
        folder.warnings.append(f"all examples of train have the label {next(iter(train))!r}, the only one to learn")
    for split, examples in folder.examples.items():
        lost = [(example, label) for example in examples for label in given_labels(example) if label not in train]
        if lost:
            example, label = lost[0]
            folder.warnings.append(
                f"{example.place}: no example of train has the label {label!r}; it cannot be learned, and counts as "
                f"wrong ({len({label for _, label in lost}):,} such labels in {len(lost):,} examples of {split})"
            )
    if len(labels) > number:
        folder.warnings.append(f"there are more labels ({len(labels):,}) than examples of train ({number:,})")
    same: dict[str, str] = {}
    for label in labels:
        if (other := same.setdefault(label.casefold(), label)) != label:
            folder.warnings.append(f"the labels {other!r} and {label!r} differ in capital letters only")
    return labels


def scale_of(folder: OwnFolder) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of each number of train.

    Raises SourceError if a number is the same in all examples.
    """
    values = np.array([example.fields["value"] for example in folder.examples["train"]], np.float64)
    for i in range(values.shape[1]):
        if np.ptp(values[:, i]) == 0:
            what = f"number {i} of 'value'" if values.shape[1] > 1 else "'value'"
            raise SourceError(
                f"{folder.paths['train']}: {what} is {values[0, i]:g} in all examples, so there is nothing to learn"
            )
    return values.mean(0).tolist(), values.std(0).tolist()


# --- Answers --------------------------------------------------------------------------------------


def plain_answer(answer: str) -> str:
    """Return an answer as the vocabulary of answers can hold it: lower case, no punctuation that VQA removes."""
    return " ".join(CHANGED.sub(" ", answer.lower()).split())


def repeated(answers: Iterable[str]) -> list[str]:
    """Return the answers as those of annotators: with fewer than four, each is repeated until it scores 1."""
    answers = list(answers)
    return answers if len(answers) >= REPEATED else [answer for answer in answers for _ in range(REPEATED)]


def answers_of(folder: OwnFolder, size: int) -> list[str]:
    """Return the vocabulary of answers: `<unk>` and the most frequent answers of train.

    The answers of all examples become plain. Answers that become the same, or nothing, are reported.

    Args:
      folder: the examples.
      size: most entries, with `<unk>`; 0 = all.

    Raises:
      SourceError: there is only one answer, or an answer has no letter and no digit.
    """
    counts: collections.Counter[str] = collections.Counter()
    written: dict[str, str] = {}
    for split, examples in folder.examples.items():
        for example in examples:
            plain = [plain_answer(answer) for answer in example.fields.get("answers", ())]
            for before, after in zip(example.fields.get("answers", ()), plain, strict=True):
                if not after:
                    raise SourceError(f"{example.place}: the answer {before!r} has no letter or digit; write words")
                other = written.setdefault(after, before)
                if other.lower() != before.lower():
                    folder.warnings.append(f"the answers {other!r} and {before!r} are both read as {after!r}")
                    written[after] = before
            if "answers" in example.fields:
                example.fields["answers"] = repeated(plain)
            if split == "train":
                counts.update(set(plain))
    entries = sorted(counts, key=lambda answer: (-counts[answer], answer))
    if len(entries) < 2:
        raise SourceError(
            f"{folder.paths['train']}: the only answer is {entries[0]!r}, so there is nothing to learn; add others"
        )
    return [UNKNOWN, *entries[: size - 1 if size else None]]


def covered_share(folder: OwnFolder, split: str, entries: Iterable[str]) -> float:
    """Return the share of the examples of a split of which an answer is an entry."""
    known, examples = set(entries) - {UNKNOWN}, folder.examples[split]
    return sum(bool(known & set(example.fields.get("answers", ()))) for example in examples) / len(examples)


def _warn_of_equal_choices(folder: OwnFolder) -> None:
    examples = [example for examples in folder.examples.values() for example in examples]
    equal = [example for example in examples if len(set(example.fields["choices"])) < len(example.fields["choices"])]
    if equal:
        folder.warnings.append(
            f"{equal[0].place}: two choices are the same, of which one counts as wrong ({len(equal):,} such examples)"
        )


def _warn_of_missing_texts(folder: OwnFolder) -> None:
    empty = [example for example in folder.examples["train"] if not example.fields.get("text", "x").strip()]
    number = len(folder.examples["train"])
    if empty and len(empty) < number:
        folder.warnings.append(f"{empty[0].place}: there is no text ({len(empty):,} of {number:,} examples of train)")


# --- The task ---------------------------------------------------------------------------------


def longest_text(folder: OwnFolder) -> tuple[int, int]:
    """Return the fewest and the most words of the texts of an example; a choice counts with its text."""
    numbers = [_words_of(example) for examples in folder.examples.values() for example in examples]
    return min(numbers), max(numbers)


def _words_of(example: Example) -> int:
    fields = example.fields
    fixed = sum(len(WORD.findall(fields.get(name, ""))) for name in ("text", "text2", "question"))
    several = fields.get("choices", fields.get("texts", ()))
    return fixed + max((len(WORD.findall(text)) for text in several), default=0)


def describe_task(folder: OwnFolder, corpus: str, answers: int, positive: str) -> tuple[dict[str, Any], list[str]]:
    """Return the task for the manifest, and the labels or answers, one for each line of a file.

    Args:
      folder: the examples; their answers become plain.
      corpus: name of the corpus.
      answers: most entries of the vocabulary of answers, 0 = all.
      positive: label that AUROC is of; "" = the second of two.

    Raises:
      SourceError: there is nothing to learn, or an option does not go with the data.
    """
    form = folder.form
    if positive and form.name not in ("label", "labels"):
        raise SourceError(f"--positive={positive}: the data have no labels, but {form.name!r}")
    if answers and form.name != "question":
        raise SourceError(f"--answers={answers}: the data have no questions, but {form.name!r}")
    _warn_of_missing_texts(folder)
    task: dict[str, Any] = dict(kind=form.kind, form=form.name, images_per_example=folder.images_per_example)
    task |= dict(text_words=longest_text(folder)[1])
    if form.name in ("label", "labels"):
        labels = labels_of(folder)
        if positive and positive not in labels:
            raise SourceError(f"--positive={positive}: there is no such label; there are {', '.join(labels[:10])}")
        train = count_labels(folder, "train")
        task |= dict(
            loss=form.loss, num_labels=len(labels), labels=f"own/{corpus}_labels.txt", positive=positive,
            label_counts=[train[label] for label in labels],
        )  # fmt: skip
        return task, labels
    if form.name == "value":
        means, deviations = scale_of(folder)
        task |= dict(loss=form.loss, num_labels=len(means), value_means=means, value_deviations=deviations)
    if form.name == "question":
        entries = answers_of(folder, answers)
        return task | dict(num_answers=len(entries), answers=f"own/{corpus}_answers.txt"), entries
    if form.name == "choices":
        task |= dict(num_choices=len(folder.examples["train"][0].fields["choices"]))
        _warn_of_equal_choices(folder)
    if form.name == "boxes" and all(len(example.fields["boxes"]) == 1 for example in folder.examples["train"]):
        raise SourceError(
            f"{folder.paths['train']}: each example has one box, so there is nothing to learn; add the "
            "boxes that are wrong"
        )
    return task, []
