"""Tests of the official scores of GQA against recordings of the official formulas."""

import json
import re

import pytest

from tests.helpers.golden_folders import task_folders
from vlbert_jax.tasks.answer import gqa


def cases():
    for folder in task_folders("gqa"):
        for name, expected in json.loads((folder / "expected.json").read_text()).items():
            yield pytest.param(folder, name, expected, id=f"{folder.name}-{name}")


def recorded(scores):
    """Return scores as JSON has them, without the number of questions of the recordings."""
    return json.loads(json.dumps(scores))


@pytest.mark.parametrize("folder, name, expected", [*cases()])
def test_scores_equal_the_official_ones_to_the_last_digit(folder, name, expected):
    predictions, questions, choices, *options = name.split(", ")
    files = [folder / questions, folder / "predictions" / predictions]
    files += [] if choices == "no choices" else [folder / choices]
    if "error" in expected:
        with pytest.raises(ValueError, match="predictions are missing"):
            gqa.evaluate_files(*files, consistency=options == ["--consistency"])
        return
    found = gqa.evaluate_files(*files, consistency=options == ["--consistency"])
    count = expected.pop("counts")["binary_and_open"]
    assert recorded(found) == expected
    assert sum(number for _, number in found["accuracyPerStructuralType"].values()) == count


QUESTION = {
    "question": "Is the cup red?", "answer": "yes", "isBalanced": True, "groups": {"global": None}, "entailed": [],
    "types": {"detailed": "verifyAttr", "semantic": "attr", "structural": "verify"}, "semantic": [],
}  # fmt: skip


def test_only_balanced_questions_need_a_prediction_without_consistency():
    questions = {"01": QUESTION, "02": QUESTION | {"isBalanced": False}}
    assert gqa.scores(questions, {"01": "yes"})["accuracy"] == 100
    with pytest.raises(ValueError, match="1 of 2 predictions are missing, first '02'.*not only the balanced ones"):
        gqa.scores(questions, {"01": "yes"}, consistency=True)


def test_the_last_prediction_counts_and_those_of_other_questions_do_not(tmp_path):
    path = tmp_path / "predictions.json"
    pairs = [("01", "no"), ("77", "no"), ("01", "yes")]
    path.write_text(json.dumps([dict(questionId=name, prediction=answer) for name, answer in pairs]))
    assert gqa.scores({"01": QUESTION}, gqa.read_predictions(path))["accuracy"] == 100


def test_consistency_is_zero_where_no_right_question_entails_another():
    found = gqa.scores({"01": QUESTION | {"entailed": ["01"]}}, {"01": "yes"}, consistency=True)
    assert found["consistency"] == 0 and "distribution" not in found


def test_common_questions_have_their_own_choices():
    question = QUESTION | {"types": QUESTION["types"] | {"detailed": "twoCommon"}}
    choices = {"01": {"valid": ["yes"], "plausible": ["yes"]}}
    assert [gqa.scores({"01": question}, {"01": a}, choices)["validity"] for a in ("yes", "shape")] == [0, 100]


@pytest.mark.parametrize(
    "change, choices, message",
    [
        (dict(answer=None), None, "Question '01' has no answer to compare with; score val or testdev."),
        (dict(isBalanced=False), None, "None of 1 questions is balanced"),
        (dict(), {"02": {}}, "The choices lack question '01'"),
        (dict(entailed=["09"]), None, "Question '01' entails '09', which is not among the questions"),
    ],
)
def test_odd_questions_end_with_one_line(change, choices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gqa.scores({"01": QUESTION | change}, {"01": "yes"}, choices, consistency="entailed" in change)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "the file is not JSON"),
        ("{}", 'the file is not a list of {"questionId": str, "prediction": str}.'),
        ('[{"questionId": "01"}]', "item 0 (from 0) is {'questionId': '01'}"),
    ],
)
def test_files_of_another_form_end_the_command_with_one_line(tmp_path, capsys, content, message):
    (tmp_path / "questions.json").write_text(json.dumps({"01": QUESTION}))
    (tmp_path / "predictions.json").write_text(content)
    arguments = [f"--{name}={tmp_path / name}.json" for name in ("questions", "predictions")]
    assert gqa.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_questions_of_a_folder_of_parts_are_joined(tmp_path):
    for part in range(2):
        (tmp_path / f"val_all_questions_{part}.json").write_text(json.dumps({f"0{part}": QUESTION}))
    assert list(gqa.read_questions(tmp_path)) == ["00", "01"]
    with pytest.raises(ValueError, match="there is no such file"):
        gqa.read_questions(tmp_path / "other.json")


def test_identifiers_as_numbers_are_explained():
    with pytest.raises(ValueError, match="questionId must be a text, with its leading zeros"):
        gqa.scores({"01": QUESTION}, {1: "yes"})
