"""Test the builder of region captions: the public format, and problems in its files."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.region_captions import RegionCaptions
from tests.helpers import GOLDEN
from tests.helpers.built_case import open_lines, read_all, words_of
from vlbert_jax.data.class_scores import class_scores
from vlbert_jax.data.records import open_split

SPLIT = "train_portrait"
OFFICIAL = GOLDEN / "data/cc_a"


def floats(text, number):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(number, -1)


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("features", [False, True])
def test_official_sample_is_stored_exactly(tmp_path, form, features):
    source = tmp_path / "source"
    source.mkdir()
    sample = OFFICIAL / "data_small/conceptual-captions"
    names = ("train_image.zip", "train_frcnn.zip") if form == "zip" else ("train_image", "train_frcnn")
    for name in ("train_frcnn.json", "val_frcnn.json", *names):
        (source / name).symlink_to(sample / name)
    directory = build.run_builder(RegionCaptions("sample", tmp_path, source, dtype="float32", features=features))
    lines = [json.loads(line) for line in open_lines(sample / "train_frcnn.json")]
    records = {
        int(record["index"]): (split, record)
        for split in ("train_landscape", "train_portrait")
        for record in read_all(directory, split)
    }
    assert sorted(records) == list(range(6))
    for index, (split, record) in records.items():
        line = lines[index]
        number = line["image"][-12:-4]
        official = json.loads((sample / f"train_frcnn/{number}.json").read_text())
        image = sample / f"train_image/{number}.jpg"
        assert record["image"] == (image.read_bytes() if image.exists() else b"")
        assert record["image_id"].decode() == line["image"]
        assert record["image_size"].tolist() == [official["image_w"], official["image_h"]]
        assert split == f"train_{'landscape' if official['image_w'] >= official['image_h'] else 'portrait'}"
        assert words_of(record) == line["caption"]
        arrays = {name: floats(official[name], official["num_boxes"]) for name in ("boxes", "classes", "features")}
        order = np.argsort(-arrays["classes"].max(1), kind="stable")
        np.testing.assert_array_equal(record["boxes"], arrays["boxes"][order])
        np.testing.assert_array_equal(record["class_scores"], arrays["classes"][order])
        expected = arrays["features"][order] if features else np.zeros((0, 0))
        np.testing.assert_array_equal(record["features"], expected)
    (problem,) = json.loads((directory / "manifest.json").read_text())["problems"]
    assert problem["action"] == "kept" and problem["line"] == 2 and "00000012.jpg" in problem["file"]


def test_class_scores_are_half_precision_by_default(tmp_path):
    source = OFFICIAL / "data_full/conceptual-captions"
    directory = build.run_builder(RegionCaptions("sample", tmp_path, source))
    (record,) = read_all(directory, "train_portrait")
    assert record["class_scores"].dtype == np.float16 and record["class_scores"].shape == (5, 1601)


def test_the_largest_class_scores(tmp_path, capsys):
    source = OFFICIAL / "data_full/conceptual-captions"
    build.run_builder(RegionCaptions("all", tmp_path, source))
    whole = open_split(tmp_path, "region_captions/all", SPLIT)
    command = ["captions", f"--source={source}", f"--data_dir={tmp_path}", "--corpus=some"]
    assert build.main([*command, "--scores=top64"]) == 0
    (exact,), (short,) = whole, open_split(tmp_path, "region_captions/some", SPLIT)
    assert short["class_scores"].shape == short["class_ids"].shape == (5, 64)
    chosen = np.take_along_axis(exact["class_scores"], short["class_ids"], 1)
    np.testing.assert_array_equal(short["class_scores"], chosen)
    np.testing.assert_array_equal(class_scores(short).argmax(1), exact["class_scores"].argmax(1))
    capsys.readouterr()
    assert build.main([*command, "--corpus=more", "--scores=top1602"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has 1601 class scores per region, fewer than --scores=top1602" in error
    assert build.main([*command, "--corpus=grid", "--scores=top64", "--grid"]) == 2
    assert "--scores requires the classes of a detector" in capsys.readouterr().err
    for wrong in ("top0", "top1", "topfoo", "top", "64", ""):
        with pytest.raises(SystemExit):
            build.main([*command, f"--scores={wrong}"])
        assert f"{wrong!r} must be exact, or topK such as top64" in capsys.readouterr().err.splitlines()[-1]


def jpeg(mode="RGB", size=(60, 40), form="JPEG"):
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, form)
    return content.getvalue()


def detections(boxes=((1, 2, 30, 30), (5, 5, 50, 35)), scores=None, size=(60, 40), **changes):
    scores = np.full((len(boxes), 4), 0.25) if scores is None else scores
    encode = lambda array: base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()  # noqa: E731
    record = dict(image_w=size[0], image_h=size[1], num_boxes=len(boxes), boxes=encode(boxes), classes=encode(scores))
    return json.dumps(record | changes)


NAN, INF = float("nan"), float("inf")
FRACTIONS = (0.1, 0, 0.5, 0.9)
TWO = ((1, 2, 30, 30), (5, 5, 50, 35))
# name: (caption, image, detector file, problem in the manifest or None, number of boxes or None)
BAD = dict(
    good=(["a", "dog"], jpeg(), detections(), None, 2),
    one_word=(["dog"], jpeg(), detections(), None, 2),
    beyond_border=(["a"], jpeg(), detections([(-3, -2, 70, 55), TWO[0]]), None, 2),
    no_image=(["a", "dog"], None, detections(), ("kept", "the image is left empty"), 2),
    cut_image=(["a"], jpeg()[:-200], detections(), ("kept", "truncated"), 2),
    no_jpeg=(["a"], b"<html>gone</html>", detections(), ("kept", "not an image of a format"), 2),
    gray_image=(["a"], jpeg("L"), detections(), ("converted", "JPEG in mode L encoded as an RGB JPEG"), 2),
    png_image=(
        ["a"], jpeg("RGBA", form="PNG"), detections(), ("converted", "PNG in mode RGBA encoded as an RGB JPEG"), 2,
    ),  # fmt: skip
    other_size=(["a"], jpeg(size=(40, 60)), detections(), ("kept", "the detector saw (60, 40)"), 2),
    nan_box=(["a"], jpeg(), detections([(NAN, 2, 3, 4), TWO[1]]), ("repaired", "dropped box [nan"), 1),
    infinite_box=(["a"], jpeg(), detections([TWO[0], (30, 5, INF, 9)]), ("repaired", "dropped box [30.0"), 1),
    inverted_box=(["a"], jpeg(), detections([TWO[0], (30, 5, 20, 9)]), ("repaired", "dropped box [30.0"), 1),
    outside_box=(["a"], jpeg(), detections([TWO[0], (70, 5, 80, 9)]), ("repaired", "dropped box [70.0"), 1),
    no_box_left=(["a"], jpeg(), detections([(NAN, 2, 3, 4)]), ("skipped", "no box is inside"), None),
    fractions=(["a"], jpeg(), detections([(0, 0, 1, 1), FRACTIONS]), ("skipped", "all corners are within"), None),
    no_box=(["a"], jpeg(), detections([]), ("skipped", "lists 0 regions"), None),
    short_boxes=(["a"], jpeg(), detections(num_boxes=3), ("skipped", "boxes: 8 values do not fit 3"), None),
    short_classes=(["a"], jpeg(), detections(scores=[[1.0] * 5]), ("skipped", "classes: 5 values do not"), None),
    bad_base64=(
        ["a"],
        jpeg(),
        detections(classes="?!"),
        ("skipped", "classes: the content is not float32 in base64"),
        None,
    ),
    no_classes=(
        ["a"],
        jpeg(),
        '{"image_w": 9, "image_h": 9, "num_boxes": 1, "boxes": ""}',
        ("skipped", "boxes: 0 values"),
        None,
    ),
    nan_scores=(["a"], jpeg(), detections(scores=[[NAN] * 4] * 2), ("skipped", "not finite"), None),
    off_scores=(["a"], jpeg(), detections(scores=[[0.5] * 4, [0.25] * 4]), ("kept", "of 1 regions do not sum"), 2),
    no_object=(["a"], jpeg(), "[1]", ("skipped", "not contain a JSON object"), None),
    no_json=(["a"], jpeg(), "{", ("skipped", "region file is not JSON"), None),
    no_detections=(["a"], jpeg(), None, ("skipped", "the region file cannot be read: there is no"), None),
    empty_caption=([], jpeg(), detections(), ("skipped", "caption"), None),
    blank_caption=(["", " "], jpeg(), detections(), ("skipped", "caption"), None),
)


@pytest.fixture(scope="module")
def bad_source(tmp_path_factory):
    source = tmp_path_factory.mktemp("bad")
    (source / "train_image").mkdir()
    (source / "train_frcnn").mkdir()
    lines = []
    for name, (caption, image, regions, *_) in BAD.items():
        if image is not None:
            (source / f"train_image/{name}.jpg").write_bytes(image)
        if regions is not None:
            (source / f"train_frcnn/{name}.json").write_text(regions)
        lines.append(
            json.dumps(
                dict(image=f"train_image.zip@/{name}.jpg", caption=caption, frcnn=f"train_frcnn.zip@/{name}.json")
            )
        )
    (source / "train_frcnn.json").write_text("\n".join([*lines, '{"image": 3']) + "\n")
    return source


@pytest.fixture(scope="module")
def bad_build(bad_source, tmp_path_factory):
    builder = RegionCaptions("bad", tmp_path_factory.mktemp("built"), bad_source, splits=("train",))
    directory = build.run_builder(builder)
    records = read_all(directory, "train_landscape") + read_all(directory, "train_portrait")
    by_name = {record["image_id"].decode()[len("train_image.zip@/") : -4]: record for record in records}
    return json.loads((directory / "manifest.json").read_text()), by_name


@pytest.mark.parametrize("name", BAD)
def test_problems_are_listed_and_the_build_continues(bad_build, name):
    manifest, records = bad_build
    *_, expected, num_boxes = BAD[name]
    problems = [problem for problem in manifest["problems"] if f"@/{name}." in problem["file"]]
    is_converted = expected is not None and expected[0] == "converted"
    assert len(problems) == (expected is not None and not is_converted)
    if is_converted:
        assert manifest["converted"][expected[1]] == 1
    elif expected:
        action, reason = expected
        assert problems[0]["action"] == action and reason in problems[0]["reason"]
        assert problems[0]["line"] == list(BAD).index(name)
    assert (name in records) == (num_boxes is not None)
    if num_boxes is not None:
        assert len(records[name]["boxes"]) == len(records[name]["class_scores"]) == num_boxes
        assert words_of(records[name]) == BAD[name][0]


def test_counts_and_index_lines_are_in_the_manifest(bad_build):
    manifest, records = bad_build
    assert sum(manifest["records"].values()) == len(records)
    (problem,) = [p for p in manifest["problems"] if p["file"] == "train_frcnn.json"]
    assert problem["action"] == "skipped" and problem["line"] == len(BAD)
    assert manifest["skipped"] == sum(p["action"] == "skipped" for p in manifest["problems"]) == 14


def test_the_summary_states_images_and_regions(bad_source, tmp_path, capsys):
    build.run_builder(RegionCaptions("bad", tmp_path, bad_source, splits=("train",)))
    assert "21.4% of 14 records without an image; 1.7 regions per record, 1 at least; " in capsys.readouterr().out


def test_images_are_rgb_jpegs_or_empty(bad_build):
    _, records = bad_build
    for name, record in records.items():
        if name in ("no_image", "cut_image", "no_jpeg"):
            assert record["image"] == b"" and record["image_size"].tolist() == [60, 40]
        else:
            image = Image.open(io.BytesIO(record["image"]))
            assert image.format == "JPEG" and image.mode == "RGB" and list(image.size) == record["image_size"].tolist()
    assert records["other_size"]["image_size"].tolist() == [40, 60]
    assert records["beyond_border"]["boxes"].min() == -3  # valid boxes are not clipped here


def test_drop_unreadable(bad_source, tmp_path):
    builder = RegionCaptions("bad", tmp_path, bad_source, splits=("train",), drop_unreadable=True)
    directory = build.run_builder(builder)
    assert all(record["image"] for record in read_all(directory, "train_landscape"))
    problems = json.loads((directory / "manifest.json").read_text())["problems"]
    assert sum(p["action"] == "skipped" and p["reason"].startswith("the image cannot be read") for p in problems) == 3


def test_damaged_archives(tmp_path):
    index = [dict(image=f"i.zip@/{n}.jpg", caption=["a"], frcnn=f"r.zip@/{n}.json") for n in "abc"]
    (tmp_path / "train_frcnn.json").write_text("\n".join(map(json.dumps, index)))
    for name, damaged, suffix, content in (("i", "a", "jpg", jpeg()), ("r", "b", "json", detections().encode())):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for n in "abc":
                archive.writestr(f"{n}.{suffix}", content)
            place = archive.getinfo(f"{damaged}.{suffix}").header_offset + 100
        whole = bytearray((tmp_path / f"{name}.zip").read_bytes())
        whole[place] ^= 255
        (tmp_path / f"{name}.zip").write_bytes(whole)
    directory = build.run_builder(RegionCaptions("c", tmp_path, tmp_path, splits=("train",)))
    records = read_all(directory, "train_landscape")
    assert [(int(record["index"]), len(record["image"]) > 0) for record in records] == [(0, False), (2, True)]
    problems = json.loads((directory / "manifest.json").read_text())["problems"]
    assert [(p["action"], p["line"], "Bad CRC" in p["reason"]) for p in problems] == [
        ("kept", 0, True),
        ("skipped", 1, True),
    ]
    (tmp_path / "i.zip").write_bytes((tmp_path / "i.zip").read_bytes()[:-30])
    with pytest.raises(SourceError, match="i.zip: the zip archive is not complete"):
        build.run_builder(RegionCaptions("d", tmp_path, tmp_path, splits=("train",)))


def test_regions_are_sorted_by_their_best_class_background_included(tmp_path):
    (tmp_path / "train_frcnn").mkdir()
    scores = [[0.1, 0.5, 0.4], [0.9, 0.1, 0.0], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]]
    boxes = [(i, 0, i + 9, 9) for i in range(4)]
    (tmp_path / "train_frcnn/0.json").write_text(detections(boxes, scores))
    line = dict(image="i.zip@/0.jpg", caption=["a"], frcnn="train_frcnn.zip@/0.json")
    (tmp_path / "train_frcnn.json").write_text(json.dumps(line))
    (tmp_path / "i").mkdir()
    (tmp_path / "i/0.jpg").write_bytes(jpeg())
    directory = build.run_builder(RegionCaptions("c", tmp_path, tmp_path, splits=("train",)))
    assert read_all(directory, "train_landscape")[0]["boxes"][:, 0].tolist() == [1, 2, 3, 0]


# Faults of a whole archive


def source_of(folder, number=3):
    folder.mkdir()
    for split in ("train", "val"):
        lines = []
        with zipfile.ZipFile(folder / f"{split}_image.zip", "w") as images:
            with zipfile.ZipFile(folder / f"{split}_frcnn.zip", "w") as regions:
                for i in range(number):
                    images.writestr(f"{i}.jpg", jpeg())
                    regions.writestr(f"{i}.json", detections())
                    paths = dict(image=f"{split}_image.zip@/{i}.jpg", frcnn=f"{split}_frcnn.zip@/{i}.json")
                    lines.append(json.dumps(dict(caption=["a", "ball"], **paths)))
        (folder / f"{split}_frcnn.json").write_text("\n".join(lines) + "\n")
    return folder


def patch_headers(path, offset, value):
    """Change two bytes of the local and central headers of all entries of a zip archive."""
    content = bytearray(path.read_bytes())
    for mark, start in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        at = content.find(mark)
        while at >= 0:
            content[at + start : at + start + 2] = value.to_bytes(2, "little")
            at = content.find(mark, at + 4)
    path.write_bytes(content)


@pytest.mark.parametrize("archive", ["train_image.zip", "train_frcnn.zip", "val_image.zip", "val_frcnn.zip"])
@pytest.mark.parametrize(
    "offset, value, expected",
    [(8, 9, "compressed by method 9, which"), (6, 1, "needs a password"), (8, 93, "compressed by method 93")],
)
def test_an_archive_that_cannot_be_read_ends_the_build(archive, offset, value, expected, tmp_path, capsys):
    source = source_of(tmp_path / "source")
    patch_headers(source / archive, offset, value)
    assert build.main(["conceptual_captions", f"--source={source}", f"--data_dir={tmp_path}/data"]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith(f"error: {source / archive}: the zip archive cannot be read (0.j") and expected in error
    assert not list(tmp_path.glob("data/*/*/1.0.0"))


@pytest.mark.parametrize("options", [[], ["--drop_unreadable"]])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_any_image_is_no_success(split, options, tmp_path, capsys):
    source = source_of(tmp_path / "source")
    with zipfile.ZipFile(source / f"{split}_image.zip", "w") as images:
        for i in range(3):
            images.writestr(f"{i}.jpg", b"not an image")
    assert build.main(["conceptual_captions", f"--source={source}", f"--data_dir={tmp_path}/data", *options]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert f"{split}_frcnn.json: none of" in error and "not an image of a format" in error
