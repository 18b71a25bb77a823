"""Tests of the official scores of NLVR2 against recordings of the official programs."""

import json
import re

import numpy as np
import pytest

from data_prep import build
from tests.helpers.golden_folders import task_folders
from tests.helpers.vqa_case import read_all
from vlbert_jax.tasks.classify import nlvr2, results

FOLDERS = task_folders("nlvr2")


def recordings(program):
    found = [(folder, json.loads((folder / "expected.json").read_text())[program]) for folder in FOLDERS]
    return [
        pytest.param(folder, name, expected, id=f"{folder.name}-{name}")
        for folder, programs in found for name, expected in programs.items()
    ]  # fmt: skip


def predictions_of(folder, name):
    return nlvr2.read_predictions(folder / "predictions" / name)


@pytest.mark.parametrize("folder, name, expected", recordings("metrics.py on data/dev.json"))
def test_accuracy_and_consistency_equal_the_official_ones(folder, name, expected):
    examples = nlvr2.read_examples(folder / "data/dev.json")
    found = predictions_of(folder, name)
    printed = dict(line.split("=") for line in expected["stdout"] if "=" in line)
    if printed:
        assert {key: repr(value) for key, value in nlvr2.scores(examples, found).items()} == printed
        return
    missing = {example["identifier"] for example in examples} - found.keys()
    with pytest.raises(ValueError, match=f"{len(missing)} of {len(examples)} predictions are missing, first"):
        nlvr2.scores(examples, found)
    if "KeyError" in "".join(expected["error"]):
        assert expected["error"][0].split("'")[1] in missing


@pytest.mark.parametrize("folder, name, expected", recordings("compute_filtered_accuracy.py"))
def test_accuracy_on_subsets_equals_the_official_one(folder, name, expected):
    predictions, subset = name.split()
    examples = nlvr2.read_examples(folder / f"data/{subset}/{subset}_dev.json")
    assert repr(nlvr2.subset_accuracy(examples, predictions_of(folder, predictions))) == expected


@pytest.mark.parametrize("folder, name, expected", recordings("compute_category_accuracy.py"))
def test_accuracy_by_category_equals_the_official_one(folder, name, expected):
    examples = nlvr2.read_examples(folder / "data/dev.json")
    categories = nlvr2.read_categories(folder / "util/annotated_dev_examples.txt")
    found = nlvr2.category_accuracies(examples, predictions_of(folder, name), categories)
    lines = [f"Loaded {len(categories)} annotated examples.", f"Found {len(found)} categories."]
    lines += ["Per-category accuracy:"]
    assert [*lines, *(f"{key}: {percent:.2f} (of {n} examples)" for key, (percent, n) in found.items())] == expected


EXAMPLES = [dict(identifier=f"dev-1-{pair}-0", sentence="Both.", label="True") for pair in range(2)]


def test_a_sentence_is_consistent_where_all_its_pairs_are_right():
    other = [dict(identifier="dev-1-0-1", sentence="One.", label="False")]
    predictions = {"dev-1-0-0": "True", "dev-1-1-0": "False", "dev-1-0-1": "False"}
    assert nlvr2.scores(EXAMPLES + other, predictions) == dict(accuracy=2 / 3, consistency=1 / 2)


def test_subsets_accept_no_other_word():
    predictions = {"dev-1-0-0": "True", "dev-1-1-0": "maybe"}
    assert nlvr2.scores(EXAMPLES, predictions) == dict(accuracy=0.5, consistency=0)
    with pytest.raises(ValueError, match="The prediction of dev-1-1-0 is 'maybe'"):
        nlvr2.subset_accuracy(EXAMPLES, predictions)
    with pytest.raises(ValueError, match="There is no example in the subset"):
        nlvr2.subset_accuracy([], predictions)


def test_written_predictions_are_read_again(tmp_path):
    predictions = {"dev-1-0-0": "True", "dev-1-1-0": "False"}
    nlvr2.write_predictions(tmp_path / "dev.csv", predictions)
    assert (tmp_path / "dev.csv").read_text() == "dev-1-0-0,True\ndev-1-1-0,False\n"
    assert nlvr2.read_predictions(tmp_path / "dev.csv") == predictions


@pytest.mark.parametrize(
    "examples, predictions, message",
    [
        ("", "dev-1-0-0,True", "There is no example in the file"),
        ("[]", "dev-1-0-0,True", "line 1 is not an object with the texts identifier, sentence and label"),
        (json.dumps(EXAMPLES[0]), "dev-1-0-0,True\n\n", "line 2 is '', not `identifier,True`"),
        (json.dumps(EXAMPLES[0]), "test1-1-0-0,True\n", "1 of 1 predictions are missing, first 'dev-1-0-0'"),
    ],
)
def test_files_of_another_form_end_the_command_with_one_line(tmp_path, capsys, examples, predictions, message):
    (tmp_path / "dev.json").write_text(examples)
    (tmp_path / "dev.csv").write_text(predictions)
    assert nlvr2.main([f"--examples={tmp_path}/dev.json", f"--predictions={tmp_path}/dev.csv"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(re.escape(message), error)


def test_the_command_prints_all_scores(capsys):
    folder = FOLDERS[0]
    arguments = [f"--examples={folder}/data/dev.json", f"--predictions={folder}/predictions/perfect.csv"]
    arguments += [f"--{name}={folder}/data/{name}/{name}_dev.json" for name in ("balanced", "unbalanced")]
    assert nlvr2.main([*arguments, f"--categories={folder}/util/annotated_dev_examples.txt"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {percent for percent, _ in found.pop("categories").values()} == {100}
    assert found == dict(accuracy=1, consistency=1, balanced=100, unbalanced=100)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_file_and_the_scores_of_a_table_are_those_of_the_official_programs(tmp_path, folder):
    assert build.main(["nlvr2", f"--source={folder}", f"--data_dir={tmp_path}", "--splits=dev"]) == 0
    table = next((tmp_path / "nlvr2/nlvr2").glob("*.*.*"))
    records = [*read_all(table, "dev_landscape"), *read_all(table, "dev_portrait")]
    predictions = predictions_of(folder, "usual.csv")
    is_true = np.array([predictions[record["example_id"]] == "True" for record in records], float)
    chances = np.stack([1 - is_true, is_true], 1)
    predicted = results.Predicted("dev", records, nlvr2.LABELS, chances, "softmax", positive=1)
    found = results.SCORERS["nlvr2"](tmp_path, predicted)
    assert nlvr2.read_predictions(tmp_path / "dev.csv") == predictions
    for name in ("macro_f1", "auroc", "average_precision", "f1"):
        assert 0 < found.pop(name) < 1
    expected = json.loads((folder / "expected.json").read_text())
    printed = dict(line.split("=") for line in expected["metrics.py on data/dev.json"]["usual.csv"]["stdout"])
    assert {name: repr(found.pop(name)) for name in printed} == printed
    for name in ("balanced", "unbalanced"):
        percent = expected["compute_filtered_accuracy.py"][f"usual.csv {name}"]
        assert found.pop(f"accuracy_{name}") == float(percent) / 100
    lines = [f"{name.removeprefix('accuracy_').replace('_', ' ')}: {100 * value:.2f}" for name, value in found.items()]
    official = expected["compute_category_accuracy.py"]["usual.csv"][3:]
    assert lines == [line.partition(" (")[0] for line in official]


def test_records_without_labels_have_no_scores():
    assert nlvr2.scores_of_records([dict(example_id="test2-1-0-0", labels=[], known=False)], ["True"]) == {}
