"""The builders read the public formats exactly, keep order, list what is wrong, and fail well."""

import base64
import gzip
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build
from data_prep.builder import SourceError
from data_prep.region_captions import RegionCaptions
from data_prep.scenes import corpus
from data_prep.text_corpus import TextCorpus

REPOSITORY = pathlib.Path(__file__).parent.parent
GOLDEN = REPOSITORY / "tests/golden/data/cc_a"
SETTINGS = dict(seed=0, num_train=40, num_val=10, num_train_stories=30, num_val_stories=8)


def read_all(directory, split):
    return list(tfds.builder_from_directory(directory).as_data_source(split))


def words_of(record):
    return [word.decode() for word in record["caption"]]


def floats(text, number):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(number, -1)


def open_lines(path):
    return path.read_text().splitlines()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A small corpus as `build_scenes` makes it, and its paths."""
    data_dir = tmp_path_factory.mktemp("data")
    return data_dir, SETTINGS, build.build_scenes(data_dir, **SETTINGS)


# Building the drawn corpus


def test_build_scenes_makes_the_records(drawn):
    _, _, paths = drawn
    manifest = json.loads((paths["captions"] / "manifest.json").read_text())
    assert manifest["problems"] == [] and sum(manifest["records"].values()) == 50
    seen = []
    for split in ("train_landscape", "train_portrait"):
        records = read_all(paths["captions"], split)
        indices = [int(record["index"]) for record in records]
        assert indices == sorted(indices)
        seen += indices
        lines = [json.loads(line) for line in open_lines(paths["source"] / "train_frcnn.json")]
        for record in records:
            width, height = record["image_size"]
            assert (width >= height) == (split == "train_landscape")
            assert words_of(record) == lines[record["index"]]["caption"]
            assert Image.open(io.BytesIO(record["image"])).size == (width, height)
    assert sorted(seen) == list(range(40))
    assert [r["text"].decode() for r in read_all(paths["text"], "val")] == open_lines(paths["source"] / "val.doc")


def test_build_scenes_twice_does_nothing(drawn):
    data_dir, settings, paths = drawn
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".build_lock"}
    assert build.build_scenes(data_dir, **settings) == paths
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.name != ".build_lock"}


def test_build_scenes_refuses_other_settings(drawn):
    data_dir, settings, _ = drawn
    with pytest.raises(SourceError, match="remove it"):
        build.build_scenes(data_dir, **settings | dict(seed=7))


def test_build_scenes_starts_over_after_an_interruption(tmp_path, monkeypatch):
    settings = dict(num_train=6, num_val=2, num_train_stories=2, num_val_stories=1)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "vocabulary", lambda: 1 / 0)  # fails after the images are drawn
        with pytest.raises(ZeroDivisionError):
            build.build_scenes(tmp_path, **settings)
    assert not (tmp_path / "scenes").exists()
    stale = tmp_path / "region_captions/scenes/1.0.0"  # records of an earlier drawing
    stale.mkdir(parents=True)
    paths = build.build_scenes(tmp_path, **settings, feature_width=16)
    assert paths["vocab"].is_file()
    assert sum(len(read_all(paths["captions"], split)) for split in ("train_landscape", "train_portrait")) == 6
    record = read_all(paths["captions"], "train_landscape")[0]
    assert record["features"].shape == (len(record["boxes"]), 16)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "region_captions", "scenes", "text_corpus",
    ]


# The official format


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("features", [False, True])
def test_official_sample_comes_back_exactly(tmp_path, form, features):
    source = tmp_path / "source"
    source.mkdir()
    sample = GOLDEN / "data_small/conceptual-captions"
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
    source = GOLDEN / "data_full/conceptual-captions"
    directory = build.run_builder(RegionCaptions("sample", tmp_path, source))
    (record,) = read_all(directory, "train_portrait")
    assert record["class_scores"].dtype == np.float16 and record["class_scores"].shape == (5, 1601)


def jpeg(mode="RGB", size=(60, 40), form="JPEG"):
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, form)
    return content.getvalue()


def detections(boxes=((1, 2, 30, 30), (5, 5, 50, 35)), scores=None, size=(60, 40), **changes):
    scores = np.full((len(boxes), 4), 0.25) if scores is None else scores
    encode = lambda array: base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()  # noqa: E731
    record = dict(
        image_w=size[0], image_h=size[1], num_boxes=len(boxes), boxes=encode(boxes), classes=encode(scores)
    )
    return json.dumps(record | changes)


NAN, INF = float("nan"), float("inf")
TWO = ((1, 2, 30, 30), (5, 5, 50, 35))
# name: (caption, image, detector file, what the manifest says, boxes in the record or None)
BAD = dict(
    good=(["a", "dog"], jpeg(), detections(), None, 2),
    one_word=(["dog"], jpeg(), detections(), None, 2),
    beyond_border=(["a"], jpeg(), detections([(-3, -2, 70, 55), TWO[0]]), None, 2),
    no_image=(["a", "dog"], None, detections(), ("kept", "image left empty"), 2),
    cut_image=(["a"], jpeg()[:-200], detections(), ("kept", "truncated"), 2),
    no_jpeg=(["a"], b"<html>gone</html>", detections(), ("kept", "cannot identify"), 2),
    grey_image=(["a"], jpeg("L"), detections(), ("repaired", "mode L"), 2),
    png_image=(["a"], jpeg("RGBA", form="PNG"), detections(), ("repaired", "PNG in mode RGBA"), 2),
    other_size=(["a"], jpeg(size=(40, 60)), detections(), ("kept", "the detector saw (60, 40)"), 2),
    nan_box=(["a"], jpeg(), detections([(NAN, 2, 3, 4), TWO[1]]), ("repaired", "dropped box [nan"), 1),
    infinite_box=(["a"], jpeg(), detections([TWO[0], (30, 5, INF, 9)]), ("repaired", "dropped box [30.0"), 1),
    inverted_box=(["a"], jpeg(), detections([TWO[0], (30, 5, 20, 9)]), ("repaired", "dropped box [30.0"), 1),
    outside_box=(["a"], jpeg(), detections([TWO[0], (70, 5, 80, 9)]), ("repaired", "dropped box [70.0"), 1),
    no_box_left=(["a"], jpeg(), detections([(NAN, 2, 3, 4)]), ("skipped", "no region inside"), None),
    no_box=(["a"], jpeg(), detections([]), ("skipped", "no region"), None),
    short_boxes=(["a"], jpeg(), detections(num_boxes=3), ("skipped", "boxes: 8 numbers do not fit 3"), None),
    short_classes=(["a"], jpeg(), detections(scores=[[1.0] * 5]), ("skipped", "classes: 5 numbers do not"), None),
    bad_base64=(["a"], jpeg(), detections(classes="?!"), ("skipped", "classes: not base64"), None),
    no_classes=(["a"], jpeg(), '{"image_w": 9, "image_h": 9, "num_boxes": 1, "boxes": ""}', ("skipped", "boxes"), None),
    nan_scores=(["a"], jpeg(), detections(scores=[[NAN] * 4] * 2), ("skipped", "not finite"), None),
    off_scores=(["a"], jpeg(), detections(scores=[[0.5] * 4, [0.25] * 4]), ("kept", "1 regions do not sum"), 2),
    no_object=(["a"], jpeg(), "[1]", ("skipped", "detector file"), None),
    no_json=(["a"], jpeg(), "{", ("skipped", "detector file"), None),
    no_detections=(["a"], jpeg(), None, ("skipped", "detector file: no "), None),
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
def test_what_is_wrong_is_listed_and_the_build_goes_on(bad_build, name):
    manifest, records = bad_build
    *_, expected, num_boxes = BAD[name]
    problems = [problem for problem in manifest["problems"] if f"@/{name}." in problem["file"]]
    assert len(problems) == (expected is not None)
    if expected:
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
    assert manifest["skipped"] == sum(p["action"] == "skipped" for p in manifest["problems"]) == 13


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
    assert sum(p["action"] == "skipped" and p["reason"].startswith("image: ") for p in problems) == 3


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
    with pytest.raises(SourceError, match="i.zip: not a whole zip archive"):
        build.run_builder(RegionCaptions("d", tmp_path, tmp_path, splits=("train",)))


def test_regions_are_sorted_by_their_best_class_background_included(tmp_path):
    (tmp_path / "train_frcnn").mkdir()
    scores = [[0.1, 0.5, 0.4], [0.9, 0.1, 0.0], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]]
    boxes = [(i, 0, i + 9, 9) for i in range(4)]
    (tmp_path / "train_frcnn/0.json").write_text(detections(boxes, scores))
    line = dict(image="i.zip@/0.jpg", caption=["a"], frcnn="train_frcnn.zip@/0.json")
    (tmp_path / "train_frcnn.json").write_text(json.dumps(line))
    (tmp_path / "i").mkdir()
    directory = build.run_builder(RegionCaptions("c", tmp_path, tmp_path, splits=("train",)))
    assert read_all(directory, "train_landscape")[0]["boxes"][:, 0].tolist() == [1, 2, 3, 0]


def test_order_is_that_of_the_file_over_many_records(tmp_path, monkeypatch):
    monkeypatch.setattr(TextCorpus, "RECORDS_PER_SHARD", 150)
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n" for i in range(700)))
    directory = build.run_builder(TextCorpus("many", tmp_path, [tmp_path / "a.doc"]))
    assert len(list(directory.glob("*array_record*"))) == 5
    assert [r["text"].decode() for r in read_all(directory, "train")] == [f"line {i}" for i in range(700)]


# Text


def test_text_lines(tmp_path):
    (tmp_path / "a.doc").write_bytes(b" one  two \r\n\r\n   \nthree\n")
    with gzip.open(tmp_path / "b.doc.gz", "wb") as file:
        file.write("caf\u00e9\nlast".encode())
    (tmp_path / "val.doc").write_bytes(b"held out\nb\xffd\n")
    sources = [tmp_path / "b.doc.gz", tmp_path / "a.doc"]
    directory = build.run_builder(TextCorpus("t", tmp_path, sources, [tmp_path / "val.doc"]))
    train = read_all(directory, "train")
    assert [r["text"].decode() for r in train] == ["caf\u00e9", "last", "one  two", "three"]
    assert [int(r["index"]) for r in train] == [0, 1, 2, 3]
    assert [r["text"].decode() for r in read_all(directory, "val")] == ["held out", "b\ufffdd"]
    (problem,) = json.loads((directory / "manifest.json").read_text())["problems"]
    assert problem["action"] == "repaired" and problem["line"] == 1


def test_text_fraction_is_the_end(tmp_path):
    (tmp_path / "a.doc").write_text("".join(f"{i}\n\n" for i in range(10)))
    directory = build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "a.doc"], val_fraction=0.2))
    assert [r["text"] for r in read_all(directory, "train")] == [b"%d" % i for i in range(8)]
    assert [(r["text"], r["index"]) for r in read_all(directory, "val")] == [(b"8", 0), (b"9", 1)]


# Failing well


def test_what_decides_the_records_is_asked_for_again(tmp_path):
    """Another build under the name of a former one is refused, never taken for it."""
    for name in "ab":
        (tmp_path / f"{name}.doc").write_text(f"{name}\n")
    a, b = tmp_path / "a.doc", tmp_path / "b.doc"
    build.run_builder(TextCorpus("t", tmp_path, [a]))
    build.run_builder(TextCorpus("t", tmp_path, [a]))
    for sources in (([a, b],), ([a], [b]), ([b],)):
        with pytest.raises(SourceError, match="remove it, or change --corpus"):
            build.run_builder(TextCorpus("t", tmp_path, *sources))
    build.build_scenes(tmp_path, num_train=2, num_val=2, num_train_stories=2, num_val_stories=2)
    with pytest.raises(SourceError, match="remove it, or change --corpus"):
        build.run_builder(RegionCaptions("scenes", tmp_path, tmp_path / "scenes", splits=("val",)))


def test_killed_build_leaves_nothing_that_looks_whole(tmp_path):
    (tmp_path / "a.doc").write_text("".join(f"line {i}\n" for i in range(700)))
    code = f"""if True:
        import os, signal, sys
        from data_prep import build, text_corpus
        assert not {{"jax", "tensorflow"}} & set(sys.modules)
        lines = text_corpus.read_lines
        def dying(*args):
            for i, line in enumerate(lines(*args)):
                if i == 600: os.kill(os.getpid(), signal.SIGKILL)
                yield line
        text_corpus.read_lines = dying
        build.main(["text", "--source={tmp_path}/a.doc", "--data_dir={tmp_path}", "--corpus=c"])
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    corpus = tmp_path / "text_corpus/c"
    assert [path.name[:11] for path in corpus.iterdir()] == ["incomplete."]
    assert list(corpus.rglob("*array_record*")) and not list(corpus.rglob("dataset_info.json"))
    assert build.main(["text", f"--source={tmp_path}/a.doc", f"--data_dir={tmp_path}", "--corpus=c"]) == 0
    assert [path.name for path in corpus.iterdir()] == ["1.0.0"]
    assert len(read_all(corpus / "1.0.0", "train")) == 700


def test_errors_are_one_clear_line(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    index = '{"image": "train_image.zip@/0.jpg", "caption": ["a"], "frcnn": "train_frcnn.zip@/0.json"}\n'
    (empty / "train_frcnn.json").write_text(index)
    (tmp_path / "blank.doc").write_text("\n\n")
    captions = ["conceptual_captions", f"--data_dir={tmp_path}/data"]
    for arguments, told in (
        ([*captions, f"--source={tmp_path}/nowhere"], "nowhere/train_frcnn.json: not there"),
        ([*captions, f"--source={empty}"], "train_frcnn.zip: neither this archive nor the folder"),
        ([*captions, f"--source={empty}", "--no_images"], "--features"),
        (["text", f"--data_dir={tmp_path}/data", f"--source={tmp_path}/gone.doc"], "gone.doc: no such text file"),
        (["text", f"--data_dir={tmp_path}/data", f"--source={tmp_path}/blank.doc"], "nothing usable"),
    ):
        assert build.main([*arguments, *(["--splits=train"] if str(empty) in arguments[-1] else [])]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and told in error
    assert not list((tmp_path / "data").rglob("1.0.0"))


def test_another_build_under_the_same_name_is_refused(tmp_path, capsys):
    arguments = ["conceptual_captions", f"--source={GOLDEN}/data_full/conceptual-captions", f"--data_dir={tmp_path}"]
    assert build.main(arguments) == 0
    assert build.main(arguments) == 0
    assert build.main([*arguments, "--features"]) == 2
    assert "was built with" in capsys.readouterr().err
