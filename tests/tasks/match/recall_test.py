"""Recall equals that of Oscar, SCAN and volta on recorded scores, and lies within the bounds of ties."""

import csv
import json

import numpy as np
import pytest

from tests.helpers.golden_folders import task_folders
from vlbert_jax.tasks.match import recall

FOLDERS = task_folders("retrieval")
TABLES = ("scores_test.csv", "scores_with_ties_test.csv")


def recorded(folder, table):
    """Return the scores [texts, images], the column of the image of each text, and what the scorers said."""
    (listing,) = folder.glob("dataset_*.json")
    images = [image for image in json.loads(listing.read_text())["images"] if image["split"] == "test"]
    owner = {sentence: number for number, image in enumerate(images) for sentence in image["sentids"]}
    with (folder / table).open(newline="") as file:
        (_, *names), *rows = csv.reader(file)
    assert names == [image["filename"] for image in images]
    scores = np.array([row[1:] for row in rows], float)
    image_of_text = np.array([owner[int(row[0])] for row in rows])
    return scores, image_of_text, json.loads((folder / "expected.json").read_text())[table]


def first_five(scores, image_of_text):
    kept = np.concatenate([np.flatnonzero(image_of_text == image)[:5] for image in range(scores.shape[1])])
    return scores[np.sort(kept)], image_of_text[np.sort(kept)]


def test_there_are_recordings():
    assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_recall_equals_the_public_scorers(folder):
    """Where scores are equal, the recordings depend on the sort of one version of NumPy; bounds are tested below."""
    scores, images, expected = recorded(folder, "scores_test.csv")
    five = first_five(scores, images)
    oscar = expected["Oscar compute_ranks, first five sentences of each image"]
    ranks = dict(t2i=recall.ranks_of_images(*five), i2t=recall.ranks_of_texts(*five))
    scan = expected["SCAN i2t and t2i, first five sentences of each image: R@1, R@5, R@10, median, mean rank"]
    for way, found in ranks.items():
        np.testing.assert_array_equal(found, oscar[f"{way}_ranks"])
        assert {f"R@{k}": v for k, v in recall.recalls(found).items()} == oscar[way]
        assert [100 * v for v in recall.recalls(found).values()] == pytest.approx(scan[way][:3], rel=1e-12)
    volta = expected["volta's rule (restated: argsort of -score)"]
    assert {f"R@{k}": v for k, v in recall.recalls(recall.ranks_of_images(*five, "volta")).items()} == volta["t2i"]
    assert {f"R@{k}": v for k, v in recall.recalls(recall.ranks_of_texts(*five, "volta")).items()} == volta["i2t"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_bounds_of_ties(folder, table):
    scores, images, expected = recorded(folder, table)
    rules = {rule: recall.retrieval_scores(scores, images, rule) for rule in recall.TIES}
    for way, name in dict(t2i="image", i2t="text").items():
        bounds = expected[f"own restatement, all sentences, {way}"]
        for rule in ("against", "for"):
            stated = bounds[f"ties counted {rule} the system"]
            assert {f"R@{k}": rules[rule][f"{name}_recall_{k}"] for k in recall.AT} == stated
    for name, least in rules["against"].items():
        assert least <= min(rules["scan"][name], rules["volta"][name])
        assert max(rules["scan"][name], rules["volta"][name]) <= rules["for"][name]


@pytest.mark.parametrize("folder", [f for f in FOLDERS if "coco" in f.name], ids=lambda folder: folder.name)
def test_five_folds(folder):
    scores, images, expected = recorded(folder, "scores_test.csv")
    (stated,) = (value for name, value in expected.items() if name.startswith("SCAN rule, mean of five folds"))
    found = recall.retrieval_scores(*first_five(scores, images), folds=5)
    assert [100 * found[f"{way}_recall_{k}"] for way in ("text", "image") for k in recall.AT] == pytest.approx(stated)


@pytest.mark.parametrize("folder", task_folders("own_data"), ids=lambda folder: folder.name)
def test_own_data_is_scored_as_by_trec_eval(folder):
    lines = [json.loads(line) for line in (folder / "predictions/retrieval.jsonl").read_text().splitlines()]
    images = list(lines[0]["scores"])
    scores = np.array([[line["scores"][image] for image in images] for line in lines])
    found = recall.retrieval_scores(scores, np.array([images.index(line["id"]) for line in lines]))
    expected = json.loads((folder / "expected.json").read_text())
    for way, name in dict(image="text to image", text="image to text").items():
        stated = expected[f"retrieval, {name} (trec_eval)"]
        for k in recall.AT:
            assert found[f"{way}_recall_{k}"] == pytest.approx(stated[f"success_{k}"])


def test_what_cannot_be_scored_is_reported():
    scores, images = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(ValueError, match="Image 2 of 3 has no text"):
        recall.ranks_of_texts(scores, images)
    with pytest.raises(ValueError, match="3 images do not divide into 2 folds"):
        recall.retrieval_scores(scores, images, folds=2)
    with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
        recall.retrieval_scores(np.array([[0, np.nan], [0, 0]]), images)
    with pytest.raises(ValueError, match="'first'; it must be one of scan, volta, against, for"):
        recall.ranks_of_images(scores, images, "first")
