"""Scores of classes, labels and numbers equal those of scikit-learn and SciPy on recorded predictions."""

import csv
import json

import numpy as np
import pytest

from tests.helpers.golden_folders import golden_folders
from vlbert_jax.tasks.classify import scores


def folders(kind: str) -> list:
    found = [path for folder in golden_folders("tasks") for path in sorted(folder.glob(f"{kind}_*"))]
    return [pytest.param(path, id=path.name) for path in found]


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def recorded(folder, kind: str):
    """Return the labeled examples, the predictions in the same order, and the expected scores of a kind."""
    gold = read_lines(folder / kind / "val.jsonl")
    by_id = {row["id"]: row for row in read_lines(folder / "predictions" / f"{kind}.jsonl")}
    expected = json.loads((folder / "expected.json").read_text())
    scores_of = next(value for name, value in expected.items() if name == kind or name.startswith(f"{kind} ("))
    return gold, [by_id[row["id"]] for row in gold], scores_of


def probabilities_of(rows: list[dict], classes: list[str]) -> np.ndarray:
    return np.array([[row["probabilities"][name] for name in classes] for row in rows])


def compare(found: dict, expected: dict, names: dict[str, str]) -> None:
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], rel=1e-14, abs=1e-14), ours


@pytest.mark.parametrize("folder", folders("own_data"))
def test_one_label(folder):
    gold, rows, expected = recorded(folder, "single_label")
    classes = expected["classes"]
    labels = np.array([classes.index(row["label"]) for row in gold])
    found = scores.single_label_scores(labels, probabilities_of(rows, classes))
    compare(found, expected, dict(accuracy="accuracy", macro_f1="f1_macro over classes in gold or predicted"))
    assert found.keys() == {"accuracy", "macro_f1"}


@pytest.mark.parametrize("folder", folders("own_data"))
def test_two_classes(folder):
    gold, rows, expected = recorded(folder, "pair_of_images")
    classes = ["False", "True"]
    labels = np.array([classes.index(row["label"]) for row in gold])
    found = scores.single_label_scores(labels, probabilities_of(rows, classes), positive=1)
    names = dict(accuracy="accuracy at >= 0.5", f1="f1 at >= 0.5", auroc="roc_auc")
    compare(found, expected, names | dict(average_precision="average_precision"))


@pytest.mark.parametrize("folder", folders("own_data"))
def test_any_number_of_labels(folder):
    gold, rows, expected = recorded(folder, "multi_label")
    classes = expected["classes"]
    right = np.array([[name in row["labels"] for name in classes] for row in gold])
    found = scores.multi_label_scores(right, probabilities_of(rows, classes))
    compare(found, expected, dict(
        mean_average_precision="average_precision_macro (mAP)", macro_auroc="roc_auc_macro",
        macro_f1="f1_macro at >= 0.5", micro_f1="f1_micro at >= 0.5", subset_accuracy="subset_accuracy",
    ))  # fmt: skip


@pytest.mark.parametrize("folder", folders("own_data"))
def test_numbers(folder):
    gold, rows, expected = recorded(folder, "regression")
    values = (np.array([[row["value"]] for row in table]) for table in (gold, rows))
    names = ("mean_squared_error", "mean_absolute_error", "pearson", "spearman")
    compare(scores.value_scores(*values), expected, dict(zip(names, names, strict=True)))


@pytest.mark.parametrize("folder", folders("hateful_memes"))
@pytest.mark.parametrize("name", ["dev_usual", "dev_with_ties"])
def test_scores_of_hateful_memes(folder, name):
    gold = {str(row["id"]): row["label"] for row in read_lines(folder / "dev.jsonl")}
    with (folder / f"predictions/{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    chances = np.array([[1 - float(row["proba"]), float(row["proba"])] for row in rows])
    labels = np.array([gold[row["id"]] for row in rows])
    expected = json.loads((folder / "expected.json").read_text())[f"sklearn on {name}.csv"]
    found = scores.single_label_scores(labels, chances, positive=1)
    compare(found, expected, dict(auroc="roc_auc", average_precision="average_precision"))


def test_what_is_not_defined_is_left_out():
    one_class = scores.single_label_scores(np.zeros(3, int), np.full((3, 2), 0.5), positive=1)
    assert one_class == dict(accuracy=1.0, macro_f1=1.0, f1=0.0)
    nothing = np.zeros((2, 3), bool)
    found = scores.multi_label_scores(nothing, np.zeros((2, 3)))
    assert found == dict(micro_f1=0.0, subset_accuracy=1.0)
    constant = scores.value_scores(np.ones((3, 1)), np.array([[1.0], [2.0], [3.0]]))
    assert constant.keys() == {"mean_squared_error", "mean_absolute_error"}


def test_calibration_by_hand():
    rows, error = scores.calibration(np.array([0.05, 0.15, 0.15, 1.0]), np.array([False, True, False, True]))
    assert [(round(mean, 6), share, count) for mean, share, count in rows] == [
        (0.05, 0.0, 1), (0.15, 0.5, 2), (1.0, 1.0, 1),
    ]  # fmt: skip
    assert error == pytest.approx((0.05 + 2 * 0.35 + 0) / 4)
