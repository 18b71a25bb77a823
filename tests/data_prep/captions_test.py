"""Test captions and images of a user: one command from tables and a detector to records."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.sources import open_source
from tests.helpers import detector_case
from vlbert_jax.data.records import open_split
from vlbert_jax.data.region_files import encode_regions, grid_boxes
from vlbert_jax.detector.weights import write_detector

TABLES = dict(train="a red cat\tcat.png\na dog\tsub/dog.png\ntwo cats\tcat.png\n", val="a bird\tbird.jfif\n")


@pytest.fixture
def mine(tmp_path):
    """Return a folder of two tables; an image has two captions, and val's images are an archive."""
    for number, name in enumerate(("train_image/cat.png", "train_image/sub/dog.png", "bird.jfif")):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(detector_case.image(number)).save(tmp_path / "mine" / name, "PNG")
    with zipfile.ZipFile(tmp_path / "mine/val_image.zip", "w") as archive:
        archive.write(tmp_path / "mine/bird.jfif", "bird.jfif")
    for split, table in TABLES.items():
        (tmp_path / "mine" / f"{split}.tsv").write_text(table)
    return tmp_path / "mine"


def test_one_command_builds_captions_of_a_user(mine, tmp_path, capsys):
    write_detector(detector_case.tensors(), {}, tmp_path / "detector", "orbax")
    command = ["captions", f"--source={mine}", f"--data_dir={tmp_path}/data", "--corpus=mine"]
    assert build.main([*command, f"--detector={tmp_path}/detector"]) == 0
    output = capsys.readouterr().out
    assert "train_frcnn: 2 images" in output and "train_landscape 3, val_landscape 1" in output
    records = open_split(tmp_path / "data", "region_captions/mine", "train_landscape")
    found = [records[i] for i in range(len(records))]
    assert [" ".join(record["caption"]) for record in found] == ["a red cat", "a dog", "two cats"]
    assert [record["image_id"].rpartition("@/")[2] for record in found] == ["cat.png", "sub/dog.png", "cat.png"]
    np.testing.assert_array_equal(found[0]["boxes"], found[2]["boxes"])
    assert all(len(record["boxes"]) for record in found)
    # The regions are stored: the same command, under the other name and with other options, needs no detector.
    command[0] = "conceptual_captions"
    assert build.main([*command, "--corpus=again", "--splits=val"]) == 0
    (mine / "train_image/cat.png").write_bytes(b"gone")
    assert build.main([*command, f"--detector={tmp_path}/absent"]) == 2
    assert "no weights at" in capsys.readouterr().err


def test_the_second_column_names_the_image_or_the_line_numbers_it(mine):
    source = open_source(mine / "train.tsv")
    assert source.paths == ("train_image.zip@/cat.png", "train_image.zip@/sub/dog.png")
    assert source.captions == ("a red cat", "a dog", "two cats") and source.images_of_captions == (0, 1, 0)
    numbered = tuple(f"train_image.zip@/0000000{i}.jpg" for i in range(3))
    (mine / "train.tsv").write_text("a\thttp://x/cat.png\nb\thttp://x/1\nc\thttp://x/1\n")
    assert open_source(mine / "train.tsv").paths == numbered
    (mine / "train.tsv").write_text("a\tx\nb\tx\nc\tx\n")
    with pytest.raises(SourceError, match="neither x, the image of line 1, nor 00000000.jpg is in train_image.zip"):
        open_source(mine / "train.tsv")
    (mine / "train_image/00000000.jpg").write_bytes(b"")
    assert open_source(mine / "train.tsv").paths == numbered


def records_of(tmp_path, corpus):
    records = open_split(tmp_path / "data", f"region_captions/{corpus}", "train_landscape")
    return [records[i] for i in range(len(records))]


def test_captions_with_a_grid(mine, tmp_path, capsys):
    command = ["captions", f"--source={mine}", f"--data_dir={tmp_path}/data", "--corpus=grid", "--grid"]
    assert build.main(command) == 0
    found = records_of(tmp_path, "grid")
    assert [" ".join(record["caption"]) for record in found] == ["a red cat", "a dog", "two cats"]
    for record in found:
        np.testing.assert_allclose(record["boxes"], grid_boxes((64, 48)))
        assert record["class_scores"].shape == (0, 0) and record["image"]
    assert not (mine / "train_frcnn.json").exists()
    assert build.main([*command, "--features"]) == 2
    assert "--grid has none" in capsys.readouterr().err
    (mine / "train_image/cat.png").write_bytes(b"gone")
    assert build.main([*command, "--corpus=broken"]) == 0
    assert len(records_of(tmp_path, "broken")) == 1  # what cannot be read has no size, so no grid


def test_captions_with_the_regions_of_a_folder(mine, tmp_path, capsys):
    expected = {}
    for number, name in enumerate(("cat", "sub/dog", "bird")):
        path = tmp_path / "regions" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = np.eye(3, 4)[[1, 0]]
        expected[name] = np.array([(1, 2, 30, 30 + number), (3, 4, 20, 20)], np.float32)[[0, 1]]
        path.write_text(json.dumps(encode_regions(number, (64, 48), dict(boxes=expected[name], classes=scores))))
    command = ["captions", f"--source={mine}", f"--data_dir={tmp_path}/data", "--corpus=mine"]
    assert build.main([*command, f"--regions={tmp_path}/regions"]) == 0
    found = records_of(tmp_path, "mine")
    for record, name in zip(found, ("cat", "sub/dog", "cat"), strict=True):
        np.testing.assert_array_equal(record["boxes"], expected[name])
        assert record["class_scores"].shape == (2, 4)
    assert build.main([*command, f"--regions={tmp_path}/nothing"]) == 2
    assert "there is no such folder" in capsys.readouterr().err


QUESTIONS = (
    "a red cat\tcat.png\nwhat color is the cat?\tcat.png\t{\"red\": 1, \"pink\": 0.3, \"blue\": 0}\n"
    "how many dogs?\tsub/dog.png\t one \na dog\tsub/dog.png\t\n"
)
ANSWERS = [{}, dict(red=1.0, pink=0.3), dict(one=1.0), {}]


def with_questions(mine, tmp_path, capsys, *options, table=QUESTIONS):
    (mine / "train.tsv").write_text(table)
    status = build.main(["captions", f"--source={mine}", f"--data_dir={tmp_path}/data", "--corpus=asked", *options])
    return status, capsys.readouterr().err


def test_a_third_column_has_the_answers_of_questions(mine, tmp_path, capsys):
    assert with_questions(mine, tmp_path, capsys, "--grid", "--answers")[0] == 0
    found = records_of(tmp_path, "asked")
    assert [record["caption"][-1] for record in found] == ["cat", "cat?", "dogs?", "dog"]
    given = [dict(zip(record["answers"], record["answer_scores"].tolist(), strict=True)) for record in found]
    assert given == [pytest.approx(answers) for answers in ANSWERS]


@pytest.mark.parametrize(
    "cell", ['{"red": "1"}', '{"red": 1', '["red", "pink"]', '{"red": 1, "red": 0.3}', '{"red": -1}']
)
def test_other_answers_are_refused(cell, mine, tmp_path, capsys):
    status, error = with_questions(
        mine, tmp_path, capsys, "--grid", "--answers", table=f"a\tcat.png\nb\tcat.png\t{cell}\n"
    )
    assert status == 2 and len(error.strip().splitlines()) == 1
    assert "train.tsv: line 2, column 3: " in error and "answers must be an object answer -> score, as" in error
    assert error.strip().endswith("or one answer in plain text")


def test_answers_are_neither_lost_nor_missing(mine, tmp_path, capsys):
    for options in (["--grid"], [f"--regions={tmp_path}"], [f"--detector={tmp_path}/absent"]):
        status, error = with_questions(mine, tmp_path, capsys, *options)
        assert status == 2 and "train.tsv: line 2 has a third column, answers; add --answers" in error
        status, error = with_questions(mine, tmp_path, capsys, *options, "--answers", table=TABLES["train"])
        assert status == 2 and "val.tsv: no line has a third column, the answers of a question; leave out" in error
    status, error = with_questions(mine, tmp_path, capsys, "--grid", table="a\tcat.png\tb\tc\n")
    assert status == 2 and "train.tsv: line 1 must have a caption, a tab and an image" in error
