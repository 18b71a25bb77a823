"""The official scores of NLVR2; neither jax nor a model is needed.

    python -m vlbert_jax.tasks.classify.nlvr2 --examples=nlvr2/data/dev.json --predictions=predictions/dev.csv

prints accuracy and consistency as fractions, as JSON. The rules are those of the three programs in `nlvr2/eval` of
lil-lab/nlvr. A line of predictions is `identifier,True`. Capitals do not matter, but a space after the comma makes the
answer wrong, as does any other word. Of two lines with one identifier the last counts, and lines of other examples are
ignored. A group is consistent if all pairs of images with the same sentence are right; consistency is the share of such
groups. `--balanced` and `--unbalanced` name the files of the subsets, and `--categories` the annotated sentences; their
accuracies are in percent, as the programs print them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlbert_jax.command import run_command
from vlbert_jax.files import parse_json, read_lines, required_path, user_path

WORDS = ("true", "false")
LABELS = ("False", "True")  # of the data; the second is the positive one


def group_of(identifier: str) -> str:
    """Return the identifier without the number of its pair of images: set and sentence."""
    parts = identifier.split("-")
    return "-".join([*parts[:2], "", *parts[3:]])


def _known(examples: Iterable[Mapping[str, Any]], predictions: Mapping[str, str], what: str) -> dict[str, Any]:
    """Return the examples by identifier; raise ValueError if there is none or one has no prediction."""
    found = {example["identifier"]: example for example in examples}
    if not found:
        raise ValueError(f"There is no example {what}, so there is no accuracy.")
    if missing := [name for name in found if name not in predictions]:
        raise ValueError(
            f"{len(missing)} of {len(found)} predictions are missing, first {missing[0]!r}; predict the same split, "
            "one line `identifier,True` or `identifier,False` for each example."
        )
    return found


def scores(examples: Iterable[Mapping[str, Any]], predictions: Mapping[str, str]) -> dict[str, float]:
    """Return accuracy and consistency as fractions.

    Args:
        examples: Examples with `identifier` and `label` ("True" or "False").
        predictions: identifier -> predicted word; it may have more identifiers.

    Raises:
        ValueError: A prediction is missing, or there is no example.
    """
    found = _known(examples, predictions, "in the file")
    groups: dict[str, bool] = {}
    right = 0
    for name, example in found.items():
        hit = predictions[name].lower() == example["label"].lower()
        right += hit
        groups[group_of(name)] = groups.get(group_of(name), True) and hit
    return dict(accuracy=right / len(found), consistency=sum(groups.values()) / len(groups))


def subset_accuracy(examples: Iterable[Mapping[str, Any]], predictions: Mapping[str, str]) -> float:
    """Return the accuracy on a subset in percent.

    Args:
        examples: Examples of the subset, as for `scores`.
        predictions: identifier -> predicted word, of the subset or more.

    Raises:
        ValueError: A prediction is missing or another word than true and false, or there is no example.
    """
    found = _known(examples, predictions, "in the subset")
    for name in found:
        if predictions[name].lower() not in WORDS:
            raise ValueError(f"The prediction of {name} is {predictions[name]!r}; subsets accept True and False.")
    return sum(predictions[name].lower() == found[name]["label"].lower() for name in found) / len(found) * 100


def category_accuracies(
    examples: Iterable[Mapping[str, Any]], predictions: Mapping[str, str], categories: Mapping[str, Iterable[str]]
) -> dict[str, tuple[float, int]]:
    """Return category -> (accuracy in percent, number of examples), by name.

    Args:
        examples: Examples with `identifier`, `label` and `sentence`.
        predictions: identifier -> predicted word.
        categories: sentence -> its categories; other sentences do not count.

    Raises:
        ValueError: As `subset_accuracy`.
    """
    annotated = [example for example in examples if example["sentence"] in categories]
    names = sorted({name for example in annotated for name in categories[example["sentence"]]})
    parts = {name: [item for item in annotated if name in categories[item["sentence"]]] for name in names}
    return {name: (subset_accuracy(part, predictions), len(part)) for name, part in parts.items()}


def scores_of_records(records: Sequence[Mapping[str, Any]], words: Sequence[str]) -> dict[str, float]:
    """Return the scores of predictions as fractions; none where no label is known.

    Args:
        records: Records of the table: `example_id`, `labels`, `known`, and perhaps `extra`, a JSON object with the
            `subset` and the `categories` of the example.
        words: Predicted word for each record.

    Returns:
        accuracy, consistency, and the accuracies of subsets and categories, such as accuracy_balanced.
    """
    examples, predictions, parts = [], {}, {}
    for record, word in zip(records, words, strict=True):
        if record["known"]:
            name, extra = record["example_id"], json.loads(record.get("extra") or "{}")
            examples.append(dict(identifier=name, label=record["labels"][0]))
            predictions[name] = word
            for part in (*filter(None, [extra.get("subset")]), *extra.get("categories", ())):
                parts.setdefault(f"accuracy_{part.replace(' ', '_')}", []).append(examples[-1])
    if not examples:
        return {}
    accuracies = {name: subset_accuracy(part, predictions) / 100 for name, part in sorted(parts.items())}
    return scores(examples, predictions) | accuracies


# --- Files --------------------------------------------------------------------------------------------------


def read_examples(path: str | Path) -> list[dict[str, Any]]:
    """Return the examples of a file such as dev.json, which has one JSON object a line.

    Raises:
        ValueError: A line is not such an object.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            example = parse_json(line)
        except ValueError:
            example = None
        fields = ("identifier", "sentence", "label")
        if not isinstance(example, dict) or not all(isinstance(example.get(name), str) for name in fields):
            raise ValueError(
                f"{path}: line {number} is not an object with the texts identifier, sentence and label; take the file "
                "of nlvr2/data."
            )
        found.append(example)
    return found


def read_predictions(path: str | Path) -> dict[str, str]:
    """Return identifier -> word of a file with lines `identifier,True`; the last line of an identifier counts.

    Raises:
        ValueError: A line has no comma.
    """
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        identifier, *words = line.strip().split(",")
        if not words:
            raise ValueError(f"{path}: line {number} is {line[:40]!r}, not `identifier,True`; remove or correct it.")
        found[identifier] = words[0]
    return found


def read_categories(path: str | Path) -> dict[str, list[str]]:
    """Return sentence -> categories of `nlvr2/util/annotated_dev_examples.txt`.

    An empty line ends a sentence; its categories are the lines `* category` after it.
    """
    blocks = "\n".join(read_lines(path)).split("\n\n")
    parts = [block.strip().split("\n") for block in blocks if block.strip()]
    return {sentence: [line.removeprefix("* ") for line in lines] for sentence, *lines in parts}


def write_predictions(path: Path, predictions: Mapping[str, str]) -> None:
    """Write lines `identifier,True`, the form that is submitted."""
    path.write_text("".join(f"{name},{word}\n" for name, word in predictions.items()), "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 after an error, which one line explains."""
    parser = argparse.ArgumentParser(
        prog="python -m vlbert_jax.tasks.classify.nlvr2", description="The official scores of NLVR2, as JSON"
    )
    parser.add_argument("--examples", type=required_path, required=True, help="such as nlvr2/data/dev.json")
    parser.add_argument("--predictions", type=required_path, required=True, help="lines `identifier,True`")
    subsets = ("balanced", "unbalanced")
    for name in subsets:
        parser.add_argument(f"--{name}", type=user_path, default="", help=f"such as {name}/{name}_dev.json")
    parser.add_argument("--categories", type=user_path, default="", help="util/annotated_dev_examples.txt")
    args = parser.parse_args(argv)

    def work() -> None:
        examples, predictions = read_examples(args.examples), read_predictions(args.predictions)
        found: dict[str, Any] = dict(scores(examples, predictions))
        for name in subsets:
            if path := getattr(args, name):
                found[name] = subset_accuracy(read_examples(path), predictions)
        if args.categories:
            found["categories"] = category_accuracies(examples, predictions, read_categories(args.categories))
        print(json.dumps(found, indent=1, ensure_ascii=False))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
