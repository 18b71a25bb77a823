"""Test the corpus of captions and questions with attributes: what its records keep, and faults of such files."""

import collections
import hashlib
import json
import zipfile

import numpy as np
import pytest

from data_prep import build
from data_prep.scenes import questions
from data_prep.scenes.crowded import draw_crowded
from tests.helpers.built_case import read_all, words_of
from vlbert_jax.data.region_files import decode_floats

OPTIONS = ["--num_train=8", "--num_val=4", "--features=6", "--seed=5"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert build.main(["scene_questions", f"--data_dir={folder}", *OPTIONS]) == 0
    return folder


def records_of(data_dir, split):
    directory = data_dir / "region_captions/scene_questions/1.0.0"
    return [record for side in ("landscape", "portrait") for record in read_all(directory, f"{split}_{side}")]


def test_records_keep_attributes_and_answers(data_dir):
    source, known = data_dir / "scene_questions", set(questions.answers())
    assert json.loads((source / "answers.json").read_text()) == questions.answers()
    lines = [json.loads(line) for line in (source / "train_frcnn.json").read_text().splitlines()]
    records = records_of(data_dir, "train")
    assert len(records) == len(lines) == 8 * (1 + questions.QUESTIONS)
    asked = 0
    with zipfile.ZipFile(source / "train_frcnn.zip") as detections:
        for record in records:
            line = lines[int(record["index"])]
            assert words_of(record) == line["caption"]
            found = dict(zip((x.decode() for x in record["answers"]), record["answer_scores"].tolist(), strict=True))
            assert found == pytest.approx(line.get("answers", {})) and set(found) <= known
            asked += bool(found)
            assert not found or max(found.values()) == 1
            regions = json.loads(detections.read(line["frcnn"].rpartition("/")[2]))
            order = np.argsort(-decode_floats(regions, "classes").max(1), kind="stable")
            given = decode_floats(regions, "attrs")[order]
            assert record["attribute_scores"].dtype == np.float16 and record["attribute_scores"].shape[1] == 3
            np.testing.assert_array_equal(record["attribute_scores"], given[:, 1:].astype(np.float16))
            scene, _ = draw_crowded(np.random.default_rng([5, questions.STREAM, int(regions["image_id"])]))
            patterns = [thing.pattern for thing in scene.things]
            best = np.argmax(given, axis=1)
            for row, number in enumerate(order):
                expected = 1 + questions.ATTRIBUTES.index(patterns[number]) if number < len(patterns) else 0
                assert best[row] == expected
    assert asked == 8 * questions.QUESTIONS


def test_the_same_settings_give_the_same_bytes(data_dir, tmp_path):
    settings = json.loads((data_dir / "scene_questions/scene_questions.json").read_text())
    questions.write_question_corpus(tmp_path, settings)
    for path in sorted((data_dir / "scene_questions").iterdir()):
        assert hashlib.md5(path.read_bytes()).digest() == hashlib.md5((tmp_path / path.name).read_bytes()).digest()


def changed(data_dir, folder, line=None, regions=None):
    """Copy the files of `data_dir` with other fields in the first line, and without some in all region files."""
    source = data_dir / "scene_questions"
    for name in ("train_image.zip", "val_image.zip", "val_frcnn.zip", "val_frcnn.json"):
        (folder / name).symlink_to(source / name)
    lines = [json.loads(text) for text in (source / "train_frcnn.json").read_text().splitlines()]
    lines[0] |= line or {}
    (folder / "train_frcnn.json").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    with zipfile.ZipFile(source / "train_frcnn.zip") as old, zipfile.ZipFile(folder / "train_frcnn.zip", "w") as new:
        for name in old.namelist():
            content = json.loads(old.read(name))
            new.writestr(name, json.dumps({key: x for key, x in content.items() if key != regions}))
    return ["captions", f"--source={folder}", f"--data_dir={folder}/data", "--features"]


def test_regions_without_attributes_end_the_build(data_dir, tmp_path, capsys):
    options = changed(data_dir, tmp_path, regions="attrs")
    assert build.main([*options, "--attributes"]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert "train_frcnn.json: none of 32 lines can be used" in error and "has no field 'attrs'" in error
    assert build.main(options) == 0  # they are not read


@pytest.mark.parametrize("answers", [["red"], "red", {"red": "1"}, {"red": True}, {"red": -0.5}, {"red": 1e30}])
def test_other_answers_skip_the_line(answers, data_dir, tmp_path):
    options = changed(data_dir, tmp_path, line=dict(answers=answers))
    assert build.main([*options, "--answers", "--splits=train", "--no_images"]) == 0
    directory = tmp_path / "data/region_captions/conceptual_captions/1.0.0"
    (problem,) = json.loads((directory / "manifest.json").read_text())["problems"]
    assert problem["action"] == "skipped" and problem["line"] == 0
    assert problem["reason"] == 'answers must be an object answer -> score, as {"red": 1, "pink": 0.3}'


def test_attributes_require_a_detector(tmp_path, capsys):
    options = [f"--source={tmp_path}", f"--data_dir={tmp_path}/data", "--grid", "--attributes"]
    assert build.main(["captions", *options]) == 2
    assert "--attributes requires the regions of a detector, but --grid has none" in capsys.readouterr().err


def test_an_index_without_answers_is_refused_before_it_is_read(data_dir, tmp_path, capsys):
    options = changed(data_dir, tmp_path)
    for name in ("train", "val"):
        lines = [json.loads(text) for text in (tmp_path / f"{name}_frcnn.json").read_text().splitlines()]
        (tmp_path / f"{name}_frcnn.json").unlink()
        text = "".join(json.dumps({k: x for k, x in line.items() if k != "answers"}) + "\n" for line in lines)
        (tmp_path / f"{name}_frcnn.json").write_text(text)
    assert build.main([*options, "--answers"]) == 2
    error = capsys.readouterr().err
    assert 'val_frcnn.json: no line has the field "answers"; leave out --answers' in error


def test_a_question_has_one_caption_before_it(data_dir):
    texts = collections.Counter(bool(len(record["answers"])) for record in records_of(data_dir, "val"))
    assert texts == {False: 4, True: 4 * questions.QUESTIONS}
