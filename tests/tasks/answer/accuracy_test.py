"""Normal forms, accuracies, vocabulary and targets equal those of the official programs exactly."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.vqa import get_config
from tests.helpers import ROOT
from tests.helpers.golden_folders import golden_folders
from vlbert_jax.tasks.answer.accuracy import (
    answer_accuracy,
    main,
    normalize,
    normalize_punctuation,
    normalize_words,
    percent,
    plain_sum,
    soft_targets,
    summary,
)
from vlbert_jax.tasks.answer_lists import AnswerVocabulary, answers_of, load_answers, vocabulary_entry

VARIANTS = {folder.name: folder for root in golden_folders("data") for folder in sorted(root.glob("vqa_*"))}


@pytest.fixture(params=VARIANTS)
def golden(request):
    """Return a function that reads a file of a variant."""
    return lambda name: json.loads((VARIANTS[request.param] / name).read_text("utf-8"))


# --- Comparisons with recordings of the official programs -----------------------------------------


def test_normal_forms(golden):
    for raw, punctuation, words, both, entry in golden("normalise.json")["rows"]:
        ours = (normalize_punctuation(raw), normalize_words(raw), normalize(raw), vocabulary_entry(raw))
        assert ours == (punctuation, words, both, entry), raw


def test_accuracies_of_questions(golden):
    for case in golden("accuracy.json")["cases"]:
        accuracy = answer_accuracy(case["prediction"], case["answers"])
        # The official sum has rounding errors (see below); the recording has none.
        assert accuracy == pytest.approx(case["accuracy"], rel=0, abs=1e-12), case
        assert percent([accuracy]) == case["evalQA_n2"], case


def test_accuracies_of_files(golden, request, capsys):
    folder = VARIANTS[request.node.callspec.params["golden"]]
    files = [f"--{name}={folder}/eval_{name}.json" for name in ("questions", "annotations", "results")]
    assert main(files) == 0
    assert json.loads(capsys.readouterr().out) == golden("accuracy.json")["overall_n2"]


def test_vocabulary_and_targets(golden, tmp_path):
    recorded = golden("soft_targets.json")
    (tmp_path / "answers.txt").write_text("\n".join(recorded["answer_vocab_file_lines"]) + "\n", "utf-8")
    vocabulary = load_answers(tmp_path / "answers.txt")
    assert list(vocabulary.entries) == recorded["answer_vocab"]
    for case in recorded["cases"]:
        targets = soft_targets(case["answers"], vocabulary)
        expected = np.zeros(len(recorded["answer_vocab"]), np.float32)
        expected[[int(number) for number in case["target"]]] = list(case["target"].values())
        np.testing.assert_array_equal(targets, expected)
        assert targets.dtype == np.float32


def test_score_of_the_chosen_answer(golden, request):
    recorded = golden("dataset.json")["soft_accuracy"]
    folder = VARIANTS[request.node.callspec.params["golden"]]
    vocabulary = load_answers(folder / "data/coco/vqa/answers_vqa.txt")
    scores = [
        soft_targets(answers, vocabulary)[chosen]
        for answers, chosen in zip(recorded["answers"], recorded["pred_index"], strict=True)
    ]
    np.testing.assert_allclose(np.mean(scores), recorded["SoftAcc"], rtol=1e-6)


# --- Rules that the recordings may not cover ------------------------------------------------------


def test_only_the_first_periods_are_removed():
    assert normalize_punctuation("." * 40) == "." * 8


def test_identical_answers_are_not_normalized():
    assert answer_accuracy("yes", ["Yes."] * 10) == 0
    assert answer_accuracy("yes", ["Yes."] * 9 + ["no"]) == 1
    assert answer_accuracy(" Yes.\n", ["Yes."] * 10) == 1


def test_lower_case_is_that_of_python_2():
    assert normalize_words("\u0130 \u039f\u03a3") == "i \u03bf\u03c3"


@pytest.mark.parametrize("share, result", [(1 / 32, 3.13), (3 / 32, 9.38), (1 / 3, 33.33), (1.0, 100.0), (0.0, 0.0)])
def test_halves_are_rounded_away_from_zero(share, result):
    assert percent([share]) == result  # Python 3 rounds 3.125 to 3.12


@pytest.mark.parametrize(
    ("places", "accuracy"),
    [((4, 6), 0.6000000000000001), ((7, 8), 0.5999999999999999), ((2, 5, 9), 0.8999999999999998), ((0, 1), 0.6)],
)
def test_last_digits_depend_on_the_annotators_order(places, accuracy):
    """Accuracies equal those of the official program in Python 2.7 for matches at these places."""
    answers = ["yes" if place in places else f"no {place}" for place in range(10)]
    assert answer_accuracy("yes", answers) == accuracy


def test_sums_are_plain():
    assert plain_sum([1.0, 1e100, 1.0, -1e100]) == 0.0  # a compensated sum would be 2


def test_summary_by_type():
    found = summary([1.0, 0.3, 0.0, 0.6], ["yes/no", "other", "yes/no", "number"], ["a", "b", "b", "a"])
    assert found == {
        "overall": 47.5,
        "perAnswerType": {"yes/no": 50.0, "other": 30.0, "number": 60.0},
        "perQuestionType": {"a": 80.0, "b": 15.0},
    }
    assert list(summary([1.0], ["other"])) == ["overall", "perAnswerType"]


TEXTS = st.text(alphabet="ab19 .,-?!'\nAnthe\u00e9\u0663", max_size=12)
TENS = st.lists(st.sampled_from(["yes", "no", "2", "red", "a dog", "dog"]), min_size=10, max_size=10)


@given(TEXTS)
def test_normal_words_are_single_spaced_without_articles(text):
    words = normalize(text)
    assert words == " ".join(words.split()) and not set(words.split()) & {"a", "an", "the"}


@given(TENS, st.randoms(use_true_random=False))
def test_accuracy_does_not_depend_on_the_annotators_order(answers, chance):
    shuffled = chance.sample(answers, 10)
    for prediction in ("yes", "the dog"):
        accuracy = answer_accuracy(prediction, answers)
        assert 0 <= accuracy <= 1 and accuracy == pytest.approx(answer_accuracy(prediction, shuffled), abs=1e-12)


@given(TENS)
def test_targets_are_accuracies_where_nothing_is_normalized(answers):
    vocabulary = AnswerVocabulary(["<unk>", "yes", "no", "2", "red"])
    targets = soft_targets(answers, vocabulary)
    assert targets[0] == 0
    for number, entry in enumerate(vocabulary.entries[1:], 1):
        assert targets[number] == np.float32([0, 0.3, 0.6, 0.9, 1][min(4, answers.count(entry))])
        assert targets[number] == np.float32(answer_accuracy(entry, answers))


@given(st.just([]) | st.lists(TEXTS, min_size=4, max_size=6))
def test_every_answer_has_a_number(answers):
    vocabulary = AnswerVocabulary(["a", "<unk>", "b", "a"])
    assert {vocabulary.number(answer) for answer in answers} <= {0, 1, 2}
    assert soft_targets(answers, vocabulary).shape == (4,)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_too_few_annotators_are_refused(number):
    """With three or fewer, the official rule would give even a perfect answer less than 1."""
    with pytest.raises(ValueError, match=f"There are {number} annotators' answers.* at least 4; repeat the answers"):
        soft_targets(["red"] * number, AnswerVocabulary(["<unk>", "red"]))
    with pytest.raises(ValueError, match=f"There are {number} annotators' answers"):
        answer_accuracy("red", ["red"] * number)
    np.testing.assert_array_equal(soft_targets(["red"] * 4, AnswerVocabulary(["<unk>", "red"])), [0, 1])


def test_first_of_equal_entries_counts():
    vocabulary = AnswerVocabulary(["yes", "<unk>", "yes", "what "])
    assert [vocabulary.number(answer) for answer in ("yes", "what?", "Yes", "<unk>")] == [0, 1, 1, 1]
    np.testing.assert_array_equal(soft_targets(["yes"] * 10, vocabulary), [1, 0, 0, 0])
    np.testing.assert_array_equal(soft_targets([], vocabulary), [0, 0, 0, 0])


# --- Wrong input ----------------------------------------------------------------------------------


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(path)


def annotation(number, **changes):
    answers = [dict(answer="yes", answer_id=i, answer_confidence="yes") for i in range(1, 11)]
    return dict(question_id=number, answers=answers, answer_type="yes/no", question_type="is the") | changes


BAD = dict(
    no_json=(dict(results="[{"), "results.json: not JSON"),
    no_list=(dict(results={"1": "yes"}), "results.json: must be a list"),
    no_object=(dict(results=["yes"]), "results.json: item 0"),
    text_id=(dict(results=[dict(question_id="1", answer="yes")]), "integer question_id"),
    no_text=(dict(results=[dict(question_id=1, answer=2)]), "results.json: the answer of question_id 1"),
    missing=(dict(results=[dict(question_id=2, answer="")]), "results.json: lacks 1 questions of"),
    unknown=(dict(results=[dict(question_id=n, answer="") for n in (1, 2, 3)]), "the first is question_id 3"),
    twice=(dict(results=[dict(question_id=1, answer="")] * 2), "results.json: question_id 1 occurs twice"),
    no_questions=(dict(questions=[]), 'questions.json: must be an object with a list "questions"'),
    other_split=(dict(questions=dict(questions=[dict(question_id=7)])), "annotations.json: lacks 1 questions"),
    no_annotation=(dict(annotations=dict(annotations=[])), "annotations.json: no annotation"),
    no_type=(dict(annotations=dict(annotations=[annotation(1, answer_type=None)])), "question_id 1 lacks answers"),
    no_answers=(dict(annotations=dict(annotations=[annotation(1, answers=[])])), "question_id 1 lacks answers"),
    same_id=(
        dict(annotations=dict(annotations=[annotation(1, answers=[dict(answer="a", answer_id=1)] * 2)])),
        "two answers with the same answer_id",
    ),
    one_annotator=(
        dict(annotations=dict(annotations=[annotation(1, answers=annotation(1)["answers"][:1]), annotation(2)])),
        "annotations.json: question_id 1 has 1 of at least 4 answers",
    ),
    three_annotators=(
        dict(annotations=dict(annotations=[annotation(1), annotation(2, answers=annotation(1)["answers"][:3])])),
        "annotations.json: question_id 2 has 3 of at least 4 answers",
    ),
)


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_reported_in_one_line(tmp_path, capsys, name):
    changes, message = BAD[name]
    contents = dict(
        questions=dict(questions=[dict(question_id=1), dict(question_id=2)]),
        annotations=dict(annotations=[annotation(1), annotation(2)]),
        results=[dict(question_id=n, answer="yes") for n in (2, 1)],
    )
    for changed in ({}, changes):
        files = [f"--{key}=" + write(tmp_path / f"{key}.json", value) for key, value in (contents | changed).items()]
        assert main(files) == (2 if changed else 0)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1


def test_bad_vocabularies(tmp_path):
    with pytest.raises(ValueError, match="answers.txt: the answer vocabulary of 2 entries lacks <unk>"):
        load_answers(write(tmp_path / "answers.txt", "yes\n\nno\n"))
    (tmp_path / "latin.txt").write_bytes(b"<unk>\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"latin.txt: .*utf-8"):
        load_answers(tmp_path / "latin.txt")
    (tmp_path / "label2ans.pkl").write_bytes(pickle.dumps(["yes", "no"]))
    with pytest.raises(ValueError, match=r"label2ans.pkl: it is a pickle, .* save its list of answers as a .json file"):
        load_answers(tmp_path / "label2ans.pkl")
    with pytest.raises(ValueError, match=r"broken.json: the file must hold a list of answers, .* is no JSON: "):
        load_answers(write(tmp_path / "broken.json", "{yes: 0}"))


def test_lists_of_siblings_stay_as_they_are(tmp_path):
    """Entries keep their spelling and the number of their line; a run whose list lacks <unk> is told the field."""
    place = write(tmp_path / "answers.txt", "\nT-Shirt\nno\n")
    assert load_answers(place, needs_unknown=False).entries == ("", "T-Shirt", "no")
    config = get_config("lxmert_base")
    config.data.answers = "lxmert_vqa.json"
    with pytest.raises(ValueError, match="in a run .* set --config.data.answers_have_unknown=False"):
        answers_of(config)
    config.data.answers_have_unknown = False
    assert len(answers_of(config)) == 3_129
    config.data.answers, config.model.num_answers = str(place), 3
    assert answers_of(config).number("no") == 2
    with pytest.raises(ValueError, match="there are none"):
        answer_accuracy("yes", [])
    with pytest.raises(ValueError, match="no accuracy"):
        percent([])


def test_the_command_does_not_import_jax(tmp_path):
    write(tmp_path / "q.json", dict(questions=[dict(question_id=1)]))
    write(tmp_path / "a.json", dict(annotations=[annotation(1)]))
    write(tmp_path / "r.json", [dict(question_id=1, answer="yes")])
    code = "import sys; from vlbert_jax.tasks.answer.accuracy import main; main(sys.argv[1:]); "
    code += "assert 'jax' not in sys.modules"
    files = ["--questions=q.json", "--annotations=a.json", "--results=r.json"]
    environment = os.environ | dict(PYTHONPATH=str(ROOT))
    result = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["overall"] == 100.0
