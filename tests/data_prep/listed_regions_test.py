"""Test the builders of Flickr30k Entities and Visual7W: records of the recorded files, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest

from data_prep import build
from tests.helpers.golden_folders import task_folders
from tests.helpers.public_case import built, each
from vlbert_jax.data.overlap import finds


@each("flickr30k_entities")
def test_phrases_with_boxes_and_their_sentences(tmp_path, folder, capsys):
    images, records = built(tmp_path, "entities", folder)
    usable = [finds(images[one["image_number"]]["boxes"], one["gold"]) for part in records.values() for one in part]
    assert f"{np.mean(usable):.1%} of {len(usable):,} targets usable" in capsys.readouterr().out
    parsed = json.loads((folder / "expected_parsed.json").read_text())
    unrelated = [line.split() for line in (folder / "UNRELATED_CAPTIONS").read_text().splitlines()[1:]]
    for split in ("train", "val", "test"):
        expected = []
        for image in (folder / f"{split}.txt").read_text().split():
            boxes = parsed[image]["annotations"]["boxes"]
            for i, sentence in enumerate(parsed[image]["sentences"]):
                phrases = [phrase for phrase in sentence["phrases"] if phrase["phrase_id"] in boxes]
                expected += [(image, i, k, sentence["sentence"], phrase, boxes) for k, phrase in enumerate(phrases)]
        assert len(records[split]) == len(expected) > 0
        for record, (image, i, k, sentence, phrase, boxes) in zip(records[split], expected, strict=True):
            assert (record["expression"], record["context"]) == (phrase["phrase"], sentence)
            assert record["gold"].tolist() == boxes[phrase["phrase_id"]] and record["gold"].dtype == np.float64
            assert record["example_id"] == f"{image}#{i}#{k}"
            extra = json.loads(record["extra"])
            is_unrelated = dict(unrelated=True) if [image, str(i + 1)] in unrelated else {}
            assert extra == dict(image_id=image, sentence_id=i, phrase=k, types=phrase["phrase_type"]) | is_unrelated
            assert len(record["choices"]) == len(record["targets"]) == 0
            assert images[record["image_number"]]["image_id"] == f"flickr30k-images/{image}.jpg"


@each("visual7w_pointing")
def test_pointing_questions_have_their_boxes(tmp_path, folder):
    images, records = built(tmp_path, "visual7w", folder)
    content = json.loads((folder / "dataset_v7w_pointing.json").read_text())
    boxes = {box["box_id"]: box for box in content["boxes"]}
    number = 0
    for image in content["images"]:
        for qa in image["qa_pairs"]:
            (record,) = [r for r in records[image["split"]] if r["example_id"] == str(qa["qa_id"])]
            ids = record["box_ids"].tolist()
            assert ids[record["targets"][0]] == qa["answer"] and record["expression"] == qa["question"]
            assert sorted(ids[i] for i in record["choices"]) == sorted([qa["answer"], *qa["multiple_choices"]])
            assert sorted(ids) == sorted(i for i, box in boxes.items() if box["image_id"] == image["image_id"])
            found = [[b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]] for b in map(boxes.get, ids) if b]
            assert record["boxes"].tolist() == found
            assert images[record["image_number"]]["image_id"] == f"images/{image['filename']}"
            number += 1
    assert number == sum(map(len, records.values()))
    assert {image["boxes"].shape for image in images} == {(0, 4)}


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        ("Sentences/{}.txt", "next to [", "next to ] [/EN#4 [", "line 1: the mark '[/EN#4' is not of the form"),
        ("Sentences/{}.txt", "] .", " .", "has no end; download annotations.zip"),
        ("Annotations/{}.xml", "<width>", "<with>", "{}.xml: the annotation cannot be read"),
        ("Annotations/{}.xml", "<xmin>", "<xmin>left", "{}.xml: the annotation cannot be read"),
        ("val.txt", "", "x", "val.txt, line 1: .* is not the number of an image"),
        ("UNRELATED_CAPTIONS", " 5", "", "line 2: it must have an image and the number of a sentence"),
    ],
)  # fmt: skip
def test_damaged_files_of_entities_are_named(tmp_path, capsys, file, old, new, message):
    folder = tmp_path / "source"
    shutil.copytree(task_folders("flickr30k_entities")[0], folder)
    image = (folder / "val.txt").read_text().split()[0]
    path = folder / file.format(image)
    path.write_text(path.read_text().replace(old, new) if old else new + path.read_text())
    command = ["entities", f"--source={folder}", f"--data_dir={tmp_path}/data", "--splits=val"]
    assert build.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and not (tmp_path / "data/entities/entities").exists()
    assert re.search(message.replace("[", r"\[").format(image), error)


def test_damaged_files_of_visual7w_are_named(tmp_path, capsys):
    folder = tmp_path / "source"
    shutil.copytree(task_folders("visual7w_pointing")[0], folder)
    path = folder / "dataset_v7w_pointing.json"
    content = path.read_text()
    first = json.loads(content)["images"][0]["qa_pairs"][0]["answer"]
    command = ["visual7w", f"--source={folder}", f"--data_dir={tmp_path}/data"]
    for old, new, options, message in (
        (f'"box_id": {first},', '"box_id": 1,', [], f"box {first} is not among the image's boxes"),
        ('"qa_pairs"', '"qa_pair"', [], "the field 'qa_pairs' is missing; 'qa_pair' is there"),
        ('"train"', '"training"', [], "the split is 'training', not train, val, test"),
        ("", "", ["--regions=x"], "the texts of visual7w have their own boxes; omit --regions"),
        ("", "", ["--splits=dev"], "there is no split 'dev'; choose from train, val, test"),
    ):
        path.write_text(content.replace(old, new) if old else content)
        assert build.main([*command, *options]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
