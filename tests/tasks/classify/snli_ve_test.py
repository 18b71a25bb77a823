"""Tests of the scores of SNLI-VE against those of scikit-learn."""

import json

import numpy as np
import pytest

from tests.helpers.golden_folders import task_folders
from vlbert_jax.tasks.classify import results, snli_ve


@pytest.mark.parametrize("folder", task_folders("snli_ve"), ids=lambda folder: folder.name)
def test_accuracy_and_that_of_each_label(folder):
    lines = (folder / "data/snli_ve_test.jsonl").read_text().splitlines()
    gold = {item["pairID"]: item["gold_label"] for item in map(json.loads, lines)}
    rows = [json.loads(line) for line in (folder / "predictions/test_usual.jsonl").read_text().splitlines()]
    expected = json.loads((folder / "expected.json").read_text())["sklearn on predictions/test_usual.jsonl"]
    found = snli_ve.scores([gold[row["pairID"]] for row in rows], [row["prediction"] for row in rows])
    assert found.pop("accuracy") == expected["accuracy"]
    confusion = zip(expected["labels"], expected["confusion (row = gold)"], strict=True)
    assert found == {f"accuracy_{name}": row[k] / sum(row) for k, (name, row) in enumerate(confusion)}


def test_the_scores_of_a_split_have_those_of_its_labels(tmp_path):
    labels = ("contradiction", "entailment", "neutral")
    records = [dict(example_id=str(k), labels=[label], known=True, extra="") for k, label in enumerate(labels * 2)]
    records.append(dict(example_id="6", labels=[], known=False, extra=""))
    chances = np.eye(3)[[0, 1, 2, 0, 1, 1, 0]]
    predicted = results.Predicted("dev", records, labels, chances, "softmax", positive=None)
    found = results.SCORERS["snli_ve"](tmp_path, predicted)
    assert found["accuracy"] == 5 / 6 and found["accuracy_neutral"] == 0.5 and found["accuracy_entailment"] == 1
    predicted = results.Predicted("test", records[-1:], labels, chances[-1:], "softmax", positive=None)
    assert results.SCORERS["snli_ve"](tmp_path, predicted) == {}


def test_there_must_be_an_example():
    with pytest.raises(ValueError, match="There is no example with a label"):
        snli_ve.scores([], [])
