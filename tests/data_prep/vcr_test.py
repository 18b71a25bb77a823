"""Test the VCR builders: shapes as in scikit-image 0.16, the golden sample, and bad input."""

import copy
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build, vcr, vcr_files
from data_prep.manifest import SourceError
from data_prep.vcr_files import COCO_CATEGORIES, LABELS, SPLITS
from tests.helpers.golden_folders import golden_folders

VARIANTS = {folder.name: folder for root in golden_folders("data") for folder in sorted(root.glob("vcr_*"))}
golden = pytest.mark.parametrize("variant", sorted(VARIANTS))
ORIENTATIONS = ("landscape", "portrait")


def build_vcr(source, data_dir, corpus="vcr", **options) -> dict[str, pathlib.Path]:
    images = build.run_builder(vcr.VCRImages(corpus, data_dir, source, **options))
    options.pop("categories", None)
    return dict(images=images, questions=build.run_builder(vcr.VCRQuestions(corpus, data_dir, source, **options)))


def read(directory, split) -> list[dict]:
    builder = tfds.builder_from_directory(directory)
    return list(builder.as_data_source(split)) if split in builder.info.splits else []


def problems(directory) -> list[dict]:
    return json.loads((directory / "manifest.json").read_text())["problems"]


def bits(text) -> list[int]:
    return [int(bit) for bit in text]


# --- Shapes ---------------------------------------------------------------------------------------


@golden
def test_shapes_equal_those_of_scikit_image_0_16(variant):
    content = json.loads((VARIANTS[variant] / "masks.json").read_text())
    assert "0.16" in content["columns"][3] and content["rows"]
    for number, (box, polygons, _, expected, points) in enumerate(content["rows"]):
        for polygon, official in zip(polygons, points, strict=True):
            ours = vcr_files.on_grid(np.array(polygon), box[:4])
            np.testing.assert_array_equal(ours, np.array(official, np.float32), err_msg=f"case {number}")
        shape = vcr_files.shape_of([np.array(polygon) for polygon in polygons], box[:4])
        assert shape.ravel().tolist() == bits(expected), f"case {number}"


def test_a_square_includes_only_its_upper_and_left_borders():
    corners = np.array([[2, 2], [6, 2], [6, 6], [2, 6]], float)
    expected = np.zeros((14, 14), int)
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(vcr_files.inside(corners[:, 1], corners[:, 0]), expected)
    assert not vcr_files.shape_of([], [0, 0, 13, 13]).any()
    assert not vcr_files.shape_of([np.array([[3.0, 3], [9, 3]])], [0, 0, 13, 13]).any()
    everywhere = vcr_files.shape_of([np.array([[-9.0, -9], [99, -9], [99, 99], [-9, 99]])], [0, 0, 13, 13])
    # Points are clamped to 13, so the last row and column are 0.
    assert everywhere[:13, :13].all() and everywhere.sum() == 169


# --- The golden sample ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
@golden
def test_sample_is_stored_exactly(variant, form, tmp_path):
    source = VARIANTS[variant] / "data/vcr"
    if form == "zip":
        shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("vcr1images"))
        shutil.make_archive(tmp_path / "source/vcr1images", "zip", source, "vcr1images")
        source = tmp_path / "source"
    directories = build_vcr(source, tmp_path)
    official = VARIANTS[variant] / "data/vcr"
    images = read(directories["images"], "images")
    lines = {split: (official / f"{split}.jsonl").read_text("utf-8").splitlines() for split in SPLITS}
    lines = {split: [json.loads(line) for line in text] for split, text in lines.items()}
    keys = dict.fromkeys((line["img_fn"], tuple(line["objects"])) for split in SPLITS for line in lines[split])
    named = [(row["image_id"].decode(), tuple(name.decode() for name in row["objects"])) for row in images]
    assert named == list(keys)
    assert [int(row["index"]) for row in images] == list(range(len(images)))
    for row in images:
        path = official / "vcr1images" / row["image_id"].decode()
        assert row["image"] == path.read_bytes()
        with Image.open(path) as image:
            assert tuple(row["image_size"]) == image.size
        metadata = json.loads(path.with_suffix(".json").read_text())
        np.testing.assert_array_equal(row["boxes"], np.array(metadata["boxes"])[:, :4])
        assert row["classes"].tolist() == [COCO_CATEGORIES.index(name.decode()) + 1 for name in row["objects"]]
        assert row["shapes"].shape == (len(row["objects"]), 14, 14)
    for split in SPLITS:
        records = {o: read(directories["questions"], f"{split}_{o}") for o in ORIENTATIONS}
        assert sorted(int(r["index"]) for o in ORIENTATIONS for r in records[o]) == list(range(len(lines[split])))
        for orientation, found in records.items():
            assert [int(r["index"]) for r in found] == sorted(int(r["index"]) for r in found)
            for record in found:
                line, image = lines[split][record["index"]], images[record["image_number"]]
                assert record["annot_id"].decode() == line["annot_id"]
                assert image["image_id"].decode() == line["img_fn"]
                assert (image["image_size"][0] >= image["image_size"][1]) == (orientation == "landscape")
                assert json.loads(record["question"]) == line["question"]
                assert [json.loads(text) for text in record["answers"]] == line["answer_choices"]
                assert [json.loads(text) for text in record["rationales"]] == line["rationale_choices"]
                labels = record["answer_label"], record["rationale_label"]
                assert labels == tuple(line.get(name, -1) for name in LABELS)
                assert (split == "test") == (labels == (-1, -1))


@golden
def test_sample_equals_the_official_dataset(variant, tmp_path):
    directories = build_vcr(VARIANTS[variant] / "data/vcr", tmp_path)
    images = read(directories["images"], "images")
    runs = json.loads((VARIANTS[variant] / "dataset.json").read_text())["examples"]
    compared = 0
    for run in (run for run in runs if not run["flip_prob"] and "masks" in run["items"][0]):
        found = [r for o in ORIENTATIONS for r in read(directories["questions"], f"{run['split']}_{o}")]
        records = {record["annot_id"].decode(): record for record in found}
        for item in run["items"]:
            row = images[records[item["annot_id"]]["image_number"]]
            assert row["shapes"].reshape(-1, 196).tolist() == [bits(b) for b in item["masks_skimage_0.16.2"][1:]]
            assert row["classes"].tolist() == [int(box[5]) for box in item["boxes"][1:]]
            ratios = np.tile(item["im_info"][2:4], 2)
            limit = np.tile(np.array(item["im_info"][:2]) - 1, 2)
            scaled = np.clip(row["boxes"] * ratios, 0, limit)
            np.testing.assert_allclose(scaled, np.array(item["boxes"])[1:, :4], rtol=1e-5, atol=1e-5)
            compared += 1
    assert compared


# --- A small synthetic download -------------------------------------------------------------------

METADATA = dict(
    boxes=[[2, 3, 20.5, 30, 0.9], [10, 10, 50, 35, 0.8]],
    segms=[[[[2, 3], [20, 3], [20, 30]]], []],
    names=["person", "dog"],
    width=60,
    height=40,
)
QUESTION = dict(
    annot_id="train-0",
    objects=["person", "dog"],
    img_fn="a/0@1.jpg",
    metadata_fn="a/0@1.json",
    question=["Why", [0, 1], "?"],
    answer_choices=[[[0], "is"], ["no"], ["a", "b"], [[1]]],
    rationale_choices=[["a"], ["b"], ["c"], ["d"]],
    answer_label=3,
    rationale_label=0,
)


def jpeg(size=(60, 40), mode="RGB", form="JPEG") -> bytes:
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, form)
    return content.getvalue()


def write(folder, question=QUESTION, metadata=METADATA, image=None, more=()) -> pathlib.Path:
    """Write a download with one image, its training question and the questions `more`."""
    (folder / "vcr1images/a").mkdir(parents=True, exist_ok=True)
    text = question if isinstance(question, str) else json.dumps(question)
    (folder / "train.jsonl").write_text("\n".join([text, *map(json.dumps, more)]) + "\n")
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    (folder / "vcr1images/a/0@1.json").write_text(text)
    (folder / "vcr1images/a/0@1.jpg").write_bytes(jpeg() if image is None else image)
    return folder


def test_questions_share_images_with_equal_lists_of_objects(tmp_path):
    more = [QUESTION | dict(annot_id="b"), QUESTION | dict(annot_id="c", objects=["dog", "cat"])]
    source = write(tmp_path / "s", more=more)
    directories = build_vcr(source, tmp_path, splits=["train"])
    assert [r["image_number"] for r in read(directories["questions"], "train_landscape")] == [0, 0, 1]
    assert [r["classes"].tolist() for r in read(directories["images"], "images")] == [[1, 17], [17, 16]]
    assert not problems(directories["images"])


def test_an_image_without_objects(tmp_path):
    bare = dict(objects=[], question=["Why", "?"], answer_choices=[["a"]] * 4)
    source = write(tmp_path / "s", QUESTION | bare, dict(boxes=[], segms=[]))
    (row,) = read(build_vcr(source, tmp_path, splits=["train"])["images"], "images")
    assert row["boxes"].shape == (0, 4) and row["shapes"].shape == (0, 14, 14) and row["classes"].shape == (0,)


def test_user_supplied_categories(tmp_path):
    (tmp_path / "names.txt").write_text("ball\ndog\nperson\n")
    source = write(tmp_path / "s")
    arguments = ["vcr", f"--source={source}", f"--data_dir={tmp_path}", "--splits=train", "--corpus=w"]
    assert build.main([*arguments, f"--categories={tmp_path}/names.txt"]) == 0
    (row,) = read(tmp_path / "vcr_images/w/1.0.0", "images")
    assert row["classes"].tolist() == [3, 2]
    assert len(read(tmp_path / "vcr/w/1.0.0", "train_landscape")) == 1
    assert build.main(arguments) == 2  # a corpus with other categories needs another name


def test_problems_that_are_not_errors_are_listed(tmp_path):
    odd = copy.deepcopy(METADATA) | dict(width=99)
    odd["segms"] = [[[[2, 3], [9, 9]], [[-30, 3], [20, 3], [20, 30]]], [[]]]
    odd["boxes"][1] = [70, 10, 90, 35, 0.8]
    directory = build_vcr(write(tmp_path / "s", metadata=odd), tmp_path, splits=["train"])["images"]
    (row,) = read(directory, "images")
    np.testing.assert_array_equal(row["boxes"][1], [70, 10, 90, 35])
    assert row["shapes"][0].any() and not row["shapes"][1].any()
    listed = problems(directory)
    assert {p["action"] for p in listed} == {"kept"} and {p["file"] for p in listed} == {"a/0@1.json"}
    reasons = "; ".join(p["reason"] for p in listed)
    assert reasons == (
        "the image is (60, 40), the metadata state (99, 40); boxes outside the image: 1; polygons of fewer than three "
        "points, which cover nothing: 2; polygons more than a cell of the grid beyond their box, moved onto its "
        "border: 1"
    )


def test_a_gray_png_becomes_an_rgb_jpeg(tmp_path):
    directory = build_vcr(write(tmp_path / "s", image=jpeg(mode="L", form="PNG")), tmp_path, splits=["train"])["images"]
    (row,) = read(directory, "images")
    assert Image.open(io.BytesIO(row["image"])).format == "JPEG"
    assert problems(directory) == []
    converted = json.loads((directory / "manifest.json").read_text())["converted"]
    assert converted == {"PNG in mode L encoded as an RGB JPEG": 1}


# --- Bad input ------------------------------------------------------------------------------------

# name: (changes of the download, part of the error message)
BAD = dict(
    no_json=(dict(question='{"annot_id":'), "train.jsonl, line 1: "),
    no_object=(dict(question="[1]"), "the line is a list of 1, not an object; data_prep/README.md"),
    no_field=(dict(question={k: v for k, v in QUESTION.items() if k != "img_fn"}), "the field img_fn is missing"),
    annot_id_number=(dict(question=QUESTION | dict(annot_id=5)), "annot_id must be a text, not the number 5"),
    no_annot_id=(dict(question=QUESTION | dict(annot_id="")), "annot_id is empty"),
    twice=(dict(more=[QUESTION]), "line 2 (train-0): annot_id also occurs in line 1"),
    text_no_list=(dict(question=QUESTION | dict(question="Why ?")), "question must be a list, not the text 'Why ?'"),
    text_empty=(dict(question=QUESTION | dict(question=[])), "question must be a list of words"),
    text_number=(dict(question=QUESTION | dict(question=["a", 1])), "question has '1', which is neither a word"),
    tag_empty=(dict(question=QUESTION | dict(question=["a", []])), "question has '[]', which is neither"),
    tag_fraction=(dict(question=QUESTION | dict(question=[[0.0]])), "question has '[0.0]', which is neither"),
    tag_bool=(dict(question=QUESTION | dict(question=[[True]])), "question has '[True]', which is neither"),
    tag_beyond=(
        dict(question=QUESTION | dict(answer_choices=[["a"], ["b"], ["c"], [[0, 2]]])),
        "line 1 (train-0): answer_choices[3] points to object 2, but there are 2",
    ),
    tag_negative=(
        dict(question=QUESTION | dict(rationale_choices=[[[-1]], ["b"], ["c"], ["d"]])),
        "rationale_choices[0] points to object -1",
    ),
    three=(dict(question=QUESTION | dict(answer_choices=[["a"]] * 3)), "there are 3 answer_choices, not 4"),
    choice_no_list=(dict(question=QUESTION | dict(rationale_choices=["a"] * 4)), "rationale_choices[0] must be a list"),
    label_four=(dict(question=QUESTION | dict(answer_label=4)), "answer_label is 4, not a number from 0 to 3"),
    label_text=(dict(question=QUESTION | dict(rationale_label="1")), "must be an integer, not the text '1'"),
    label_bool=(dict(question=QUESTION | dict(rationale_label=True)), "rationale_label must be an integer, not true"),
    no_label=(
        dict(question={k: v for k, v in QUESTION.items() if k != "answer_label"}),
        "the field answer_label is missing",
    ),
    category=(dict(question=QUESTION | dict(objects=["person", "unicorn"])), "'unicorn', which is not one of the 80"),
    object_number=(dict(question=QUESTION | dict(objects=["person", 2])), "category names; the number 2 is not one"),
    few_boxes=(dict(metadata=METADATA | dict(boxes=METADATA["boxes"][:1])), "1 boxes and 2 segms for 2 objects"),
    few_outlines=(dict(metadata=METADATA | dict(segms=[[]])), "2 boxes and 1 segms for 2 objects"),
    short_box=(dict(metadata=METADATA | dict(boxes=[[1, 2, 3]] * 2)), "four numbers and a score"),
    infinite_box=(dict(metadata=METADATA | dict(boxes=[[1, 2, float("inf"), 4, 1]] * 2)), "not finite"),
    large_box=(dict(metadata=METADATA | dict(boxes=[[1, 2, 1e39, 4, 1]] * 2)), "not finite"),
    fractions=(dict(metadata=METADATA | dict(boxes=[[0, 0.1, 0.5, 1, 1]] * 2)), "0@1.json (of "),
    inverted_box=(dict(metadata=METADATA | dict(boxes=[[9, 2, 3, 4, 1]] * 2)), "before its first"),
    flat_polygon=(dict(metadata=METADATA | dict(segms=[[[1, 2, 3, 4]], []])), "segms[0] is not a list of polygons"),
    nan_polygon=(dict(metadata=METADATA | dict(segms=[[], [[[float("nan"), 1]]]])), "segms[1] has a point that"),
    no_metadata_json=(dict(metadata="{"), "0@1.json (of "),
    no_metadata=(dict(remove="vcr1images/a/0@1.json"), "0@1.json (of "),
    no_image=(dict(remove="vcr1images/a/0@1.jpg"), "0@1.jpg (of "),
    cut_image=(dict(image=jpeg()[:-300]), "0@1.jpg (of "),
    not_an_image=(dict(image=b"<html>gone</html>"), "download vcr1images.zip again"),
    no_images=(dict(remove="vcr1images"), "vcr1images.zip: neither this archive nor the folder"),
    no_annotations=(dict(remove="train.jsonl"), "train.jsonl: the file does not exist"),
)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_reported_and_nothing_is_left(name, tmp_path, capsys):
    changes, expected = BAD[name]
    changes = dict(changes)
    remove = changes.pop("remove", None)
    source = write(tmp_path / "s", **changes)
    if remove:
        path = source / remove
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert build.main(["vcr", f"--source={source}", f"--data_dir={tmp_path}/data", "--splits=train"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and expected in error, error
    assert not list((tmp_path / "data").rglob("1.0.0"))


def test_a_category_may_have_several_words(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"fire truck\r\ntraffic light\n\nperson \ndog")
    assert vcr_files.read_categories(tmp_path / "c.txt") == ["fire truck", "traffic light", "person", "dog"]


def test_a_bad_list_of_categories_is_reported(tmp_path, capsys):
    source = write(tmp_path / "s")
    (tmp_path / "twice.txt").write_text("dog\ndog\n")
    for path, expected in (("gone.txt", "cannot be read"), ("twice.txt", "one category per line, each once")):
        arguments = ["vcr", f"--source={source}", f"--data_dir={tmp_path}", f"--categories={tmp_path}/{path}"]
        assert build.main(arguments) == 2 and expected in capsys.readouterr().err


def test_questions_of_another_download_than_the_images_are_refused(tmp_path):
    build_vcr(write(tmp_path / "s"), tmp_path, splits=["train"])
    shutil.rmtree(tmp_path / "vcr")
    other = write(tmp_path / "o", QUESTION | dict(img_fn="a/other.jpg"))
    with pytest.raises(SourceError, match="vcr_images/vcr/1.0.0 was built from .*train.jsonl"):
        build_vcr(other, tmp_path, splits=["train"])
    with pytest.raises(SourceError, match="another download"):
        build.run_builder(vcr.VCRQuestions("vcr", tmp_path, other, splits=["train"]))
