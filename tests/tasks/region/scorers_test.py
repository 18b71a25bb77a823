"""Scores of Flickr30k Entities and Visual7W equal those of the public programs."""

import json

import numpy as np
import pytest

from data_prep.entities_files import read_boxes, read_sentences
from tests.helpers.golden_folders import task_folders
from vlbert_jax.data.overlap import continuous_iou
from vlbert_jax.tasks.region.entities import Phrase, phrase_recall
from vlbert_jax.tasks.region.visual7w import pointing_score

ENTITIES, POINTING = task_folders("flickr30k_entities"), task_folders("visual7w_pointing")


def load(path):
    return json.loads(path.read_text())


def scored_phrases(folder, split):
    """Return the scored phrases of a split, with corners from 1 as in the predictions."""
    found = {}
    for image in (folder / f"{split}.txt").read_text().split():
        boxes = read_boxes(folder / f"Annotations/{image}.xml").boxes
        for i, sentence in enumerate(read_sentences(folder / f"Sentences/{image}.txt")):
            asked = [phrase for phrase in sentence.phrases if phrase.chain in boxes]
            found[image, i] = [Phrase(phrase.types, np.array(boxes[phrase.chain]) + 1.0) for phrase in asked]
    return found


@pytest.mark.parametrize("folder", ENTITIES, ids=lambda folder: folder.name)
def test_phrase_recall_equals_the_evaluator(folder):
    number = 0
    for name, expected in load(folder / "expected.json").items():
        file, _, protocol = name.partition(", ")
        phrases = scored_phrases(folder, file.partition("_")[0])
        prints = f"{sum(map(len, phrases.values()))} phrases in {sum(map(bool, phrases.values()))} sentences"
        assert any(prints in line for line in expected["prints"])
        arguments = phrases, load(folder / "predictions" / file), protocol == "any box"
        if "error" in expected:
            with pytest.raises(ValueError, match=r"sentence \d+ of image \d+ has no prediction"):
                phrase_recall(*arguments)
            continue
        found = phrase_recall(*arguments)
        assert found == {name: expected[name] for name in ("R@1", "R@5", "R@10")}
        number += 1
    assert number >= 2


def test_odd_predictions_of_phrases():
    box = np.array([[0.0, 0, 10, 10]])
    phrases = {("7", 0): [Phrase(("people", "other"), box)], ("7", 1): []}
    right, wrong = dict(image_id="7", sentence_id=0, boxes=[[[0, 0, 10, 10]]]), dict(image_id="7", sentence_id=0)
    wrong["boxes"] = [[[20, 20, 30, 30]]]
    other = dict(image_id="8", sentence_id=0, boxes=[])
    assert phrase_recall(phrases, [right, wrong, other])["R@1"] == dict(all=1.0, other=1.0, people=1.0)
    assert phrase_recall(phrases, [wrong, right])["R@10"]["all"] == 0.0
    assert phrase_recall(phrases, [right | dict(boxes=[[]])])["R@10"]["all"] == 0.0
    with pytest.raises(ValueError, match="has 2 lists of boxes, but 1 of its phrases have boxes"):
        phrase_recall(phrases, [right | dict(boxes=[[[0, 0, 1, 1]], []])])
    np.testing.assert_array_equal(continuous_iou(box, np.array([[0.0, 0, 5, 10], [3, 3, 3, 3]])), [[0.5, 0]])


@pytest.mark.parametrize("folder", POINTING, ids=lambda folder: folder.name)
def test_pointing_score_equals_the_script(folder):
    images = load(folder / "dataset_v7w_pointing.json")["images"]
    for command, files in load(folder / "expected.json").items():
        split = command.rpartition(" ")[2]
        answers = {qa["qa_id"]: qa["answer"] for image in images if image["split"] == split for qa in image["qa_pairs"]}
        for file, expected in files.items():
            score = pointing_score(answers, load(folder / "predictions" / file))
            assert expected == [
                f"Evaluated on {score.answered} QA pairs with top-1 predictions.",
                f"Overall accuracy = {score.accuracy:.3f}",
                f'Question type "which" accuracy = {score.accuracy:.3f} ({score.right} / {score.answered})',
            ]
    with pytest.raises(ValueError, match="qa_id -1 is not a question of this split"):
        pointing_score(answers, [dict(qa_id=-1, candidates=[dict(answer=1)])])
    with pytest.raises(ValueError, match="there is no prediction"):
        pointing_score(answers, [])
    with pytest.raises(ValueError, match="has no candidate"):
        pointing_score({1: 2}, [dict(qa_id=1, candidates=[])])


@pytest.mark.parametrize("folder", ENTITIES, ids=lambda folder: folder.name)
def test_files_are_read_as_by_the_official_reader(folder):
    for image, expected in load(folder / "expected_parsed.json").items():
        sentences = read_sentences(folder / f"Sentences/{image}.txt")
        assert [sentence.text for sentence in sentences] == [item["sentence"] for item in expected["sentences"]]
        for sentence, item in zip(sentences, expected["sentences"], strict=True):
            fields = ("first_word_index", "phrase", "phrase_id", "phrase_type")
            assert [(p.first_word, p.text, p.chain, list(p.types)) for p in sentence.phrases] == [
                tuple(phrase[name] for name in fields) for phrase in item["phrases"]
            ]
        found, about = read_boxes(folder / f"Annotations/{image}.xml"), expected["annotations"]
        assert found.boxes == about["boxes"] and (found.scene, found.nobox) == (about["scene"], about["nobox"])
        assert (found.width, found.height) == (about["width"], about["height"])
