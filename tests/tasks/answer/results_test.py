"""Tests of prediction files and official scores of public tasks, from the tables of the builders."""

import json

import numpy as np
import pytest

from configs import vqa as recipes
from data_prep import build
from tests.helpers.golden_folders import task_folders
from vlbert_jax.data.tables import Split
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.answer import gqa, results

FOLDERS = task_folders("gqa")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def tables(request, tmp_path_factory):
    """The recordings, and a folder with the tables of their questions."""
    data_dir = tmp_path_factory.mktemp("data")
    options = [f"--source={request.param}", f"--data_dir={data_dir}", "--corpus=x"]
    assert build.main(["gqa", *options, "--splits=val,testdev,test,val_all"]) == 0
    return request.param, data_dir


def concluded(tables, split, predicted, directory):
    """Return the scores and the file of predictions questionId -> answer on a split."""
    _, data_dir = tables
    config = recipes.gqa()
    entries = sorted(set(predicted.values()))
    (directory / "answers.json").write_text(json.dumps(entries))
    fields = dict(data_dir=str(data_dir), texts="gqa/x", images="gqa_images/x", features="image", eval_split=split)
    config.data.update(fields | dict(answers=str(directory / "answers.json")))
    config.model.num_answers = len(entries)
    texts = Split(config, split).texts
    names = [texts[number]["example_id"] for number in range(len(texts))]
    best = np.array([[entries.index(predicted[name])] for name in names])
    scores = get_task(config.task).conclude(directory, {"": dict(index=np.arange(len(names)), answer=best)}, config)
    return scores, json.loads((directory / f"{split}.json").read_text())


@pytest.mark.parametrize("split, name", [
    ("val", "val_usual.json, val_balanced_questions.json, val_choices.json"),
    ("val_all", "val_usual.json, val_all_questions.json, val_choices.json, --consistency"),
    ("testdev", "testdev_usual.json, testdev_balanced_questions.json, no choices"),
])  # fmt: skip
def test_the_scores_of_a_table_are_those_of_the_files(tables, tmp_path, split, name):
    folder = tables[0]
    expected = json.loads((folder / "expected.json").read_text())[name]
    predicted = gqa.read_predictions(folder / "predictions" / name.split(", ")[0])
    scores, written = concluded(tables, split, predicted, tmp_path)
    for metric in gqa.SCALARS[:-1]:
        assert (f"gqa_{metric}" in scores) == (metric in expected)
        assert metric not in expected or scores[f"gqa_{metric}"] == expected[metric] / 100
    assert scores["gqa_distribution"] == pytest.approx(expected["distribution"], abs=1e-12)  # in another order
    types = expected["accuracyPerStructuralType"] | expected["accuracyPerSemanticType"]
    assert {key: value for key, (value, _) in types.items()} == pytest.approx(
        {key.removeprefix("gqa_accuracy_"): 100 * value for key, value in scores.items() if "accuracy_" in key}
    )
    found = {row["questionId"]: row["prediction"] for row in written}
    assert found == {key: predicted[key] for key in found} and len(found) == len(written) > 0


def test_a_test_split_has_a_file_and_no_scores(tables, tmp_path):
    folder = tables[0]
    names = json.loads((folder / "test_balanced_questions.json").read_text())
    scores, written = concluded(tables, "test", dict.fromkeys(names, "yes"), tmp_path)
    assert scores == {} and {row["questionId"] for row in written} == set(names)


def record(name, answers, **fields):
    return dict(example_id=name, question_id=3, answers=answers, answer_type="other", extra="") | fields


def test_vizwiz_has_its_own_form_and_unanswerable_for_unknown():
    records = [record("VizWiz_val_1.jpg", ["unanswerable"] * 10), record("VizWiz_val_2.jpg", ["can"] * 10)]
    rows, scores = results.write_vizwiz(results.Answered(records, ["<unk>", "cup"]))
    assert rows == [dict(image="VizWiz_val_1.jpg", answer="unanswerable"), dict(image="VizWiz_val_2.jpg", answer="cup")]
    assert scores == {"vqa_official_accuracy": 0.5, "vqa_official_accuracy_other": 0.5}


def test_own_data_keep_their_identifiers_and_fields():
    records = [record("a", ["yes"] * 4, answer_type="", extra='{"source": "shop", "id": "b"}'), record("7", [])]
    rows, scores = results.own_answers(results.Answered(records, ["yes", "no"]))
    assert rows == [dict(id="a", answer="yes", source="shop"), dict(id="7", answer="no")]
    assert scores == {"vqa_official_accuracy": 1.0}  # own data has no types of answers


def test_a_question_whose_entailed_ones_are_elsewhere_has_no_consistency():
    extra = dict(isBalanced=True, entailed=["09"], groups={"global": None}, semantic=[])
    extra |= dict(types=dict(detailed="a", semantic="attr", structural="query"))
    both = [extra, extra | dict(isBalanced=False, entailed=[])]
    records = [record(f"0{k}", ["red"] * 10, question="Which?", extra=json.dumps(both[k])) for k in range(2)]
    _, scores = results.write_gqa(results.Answered(records, ["red", "red"]))
    assert scores["gqa_accuracy"] == 1 and "gqa_consistency" not in scores


def test_another_scorer_is_refused(tables, tmp_path):
    config = recipes.gqa()
    config.data.scorer = "gpa"
    with pytest.raises(ValueError, match="scorer is 'gpa'; it must be empty or one of gqa, vizwiz"):
        results.conclude_split(tmp_path, {}, config)


@pytest.mark.parametrize("variant", ["gqa", "lxmert_gqa", "vizwiz", "ok_vqa"])
def test_recipes_of_other_data(variant):
    config = recipes.get_config(variant)
    warmup, epoch = config.warmup_steps, config.eval_every_steps
    assert warmup == config.total_steps // 10 and config.total_steps % epoch == 0
    assert config.data.images == config.data.texts.replace("/", "_images/")
    shipped = "lxmert_gqa.json" if "gqa" in variant else f"{config.data.texts}_answers.txt"
    assert config.data.answers == shipped
