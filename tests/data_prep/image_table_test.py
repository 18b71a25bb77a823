"""Test the table of images that tasks share: exact records, and one line for what cannot be used."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_prep.image_table import FolderRegions, GridRegions, ImageTable, NoRegions, chosen_regions, placed_images
from data_prep.manifest import SourceError
from data_prep.region_store import RegionStore
from data_prep.tables import run_builder
from tests.helpers import detector_case
from tests.helpers.vqa_case import encode, jpeg, read_all, regions
from vlbert_jax.data.image_files import open_image
from vlbert_jax.detector import detect

SIZES = {"img/a.jpg": (60, 40), "img/b.jpg": (40, 60)}


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos/img").mkdir(parents=True)
    for path, size in SIZES.items():
        (tmp_path / "photos" / path).write_bytes(jpeg(size))
    return tmp_path / "photos"


def table(photos, images=None, regions=None, **options):
    images = images or {path: f"train.jsonl, line {line}" for line, path in enumerate(SIZES, 1)}
    return ImageTable("some_images", "photos", photos.parent / "data", photos, images, regions, **options)


def test_grid(photos):
    directory = run_builder(table(photos))
    first, second = read_all(directory, "images")
    assert first["index"] == 0 and second["image_id"] == "img/b.jpg"
    assert first["image"] == (photos / "img/a.jpg").read_bytes()
    assert first["image_size"].tolist() == [60, 40] and first["features"].shape == (0, 0)
    assert first["boxes"].shape == (9, 4) and first["boxes"].dtype == np.float32
    np.testing.assert_allclose(first["boxes"][[0, 5]], [[0, 0, 20, 40 / 3], [40, 40 / 3, 60, 80 / 3]], rtol=1e-6)
    assert placed_images(directory) == {"img/a.jpg": (0, 60, 40, 9), "img/b.jpg": (1, 40, 60, 9)}
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["options"]["regions"] == "grid of 3 x 3" and "extractor" not in manifest


def test_images_in_an_archive_are_stored_upright_as_jpeg(photos, capsys):
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (50, 20)).save(content, "JPEG", exif=exif)
    with zipfile.ZipFile(photos / "all.zip", "w") as archive:
        archive.writestr("x/turned.jpg", content.getvalue())
    directory = run_builder(table(photos, {"all.zip@/x/turned.jpg": "train.jsonl, line 1"}, NoRegions()))
    (record,) = read_all(directory, "images")
    assert record["image_size"].tolist() == [20, 50] and record["boxes"].shape == (0, 4)
    assert Image.open(io.BytesIO(record["image"])).size == (20, 50)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["problems"] == [] and manifest["repaired"] == 0
    assert manifest["converted"] == {"JPEG in mode RGB, rotated as EXIF says, encoded as an RGB JPEG": 1}
    assert "1 images were converted, which is no defect: 1 JPEG in mode RGB, rotated" in capsys.readouterr().out


def store(folder, names, **changes):
    """Write a store of two shards with the regions of some images."""
    for number in range(2):
        for part in RegionStore(folder, {"weights": "some"}, names, "array_record", 2).shard(number):
            for i in part.waiting:
                part.add(names[i], regions(i, tuple(SIZES.values())[i]) | changes)
            part.finish()
    return folder


@pytest.mark.parametrize("names", [("img/a", "img/b"), ("a", "b")], ids=["of the source", "of the folder img"])
@pytest.mark.parametrize("form", ["store", "json"])
def test_regions_of_a_folder(photos, names, form):
    if form == "store":
        store(photos / "regions", names)
    else:
        for i, name in enumerate(names):
            (photos / "regions" / name).parent.mkdir(parents=True, exist_ok=True)
            content = regions(i, tuple(SIZES.values())[i]) | dict(extractor="f00d")
            (photos / "regions" / f"{name}.json").write_text(json.dumps(content))
    directory = run_builder(table(photos, regions=FolderRegions(photos / "regions", features=True)))
    records = read_all(directory, "images")
    for number, record in enumerate(records):
        np.testing.assert_array_equal(record["features"], np.arange(12).reshape(2, 6) + number)
        np.testing.assert_array_equal(record["boxes"], [(1, 2, 30, 30), (2, 2, 31, 30)])
        assert record["image_size"].tolist() == list(tuple(SIZES.values())[number])
    assert json.loads((directory / "manifest.json").read_text())["extractor"]


def test_features_without_images(photos):
    store(photos / "regions", ("a", "b"))
    (photos / "img/a.jpg").unlink()
    features = FolderRegions(photos / "regions", features=True)
    first, _ = read_all(run_builder(table(photos, regions=features, store_images=False)), "images")
    assert first["image"] == b"" and first["image_size"].tolist() == [60, 40]


def test_boxes_outside_are_dropped_and_listed(photos):
    boxes = encode([(1, 2, 30, 30), (300, 300, 400, 400)])
    (photos / "regions").mkdir()
    for i, name in enumerate("ab"):
        (photos / f"regions/{name}.json").write_text(json.dumps(regions(i, tuple(SIZES.values())[i], boxes=boxes)))
    directory = run_builder(table(photos, regions=FolderRegions(photos / "regions", features=True)))
    first, _ = read_all(directory, "images")
    assert first["boxes"].tolist() == [[1, 2, 30, 30]] and first["features"].shape == (1, 6)
    assert "[300.0, 300.0" in json.loads((directory / "manifest.json").read_text())["problems"][0]["reason"]


SCORES = encode([(0.6, 0.1, 0.3, 0.0), (0.2, 0.0, 0.1, 0.7)])  # of the background, which is never best, and of 1 to 3


def with_scores(photos, **changes):
    """Write the regions of both images with the class scores of two regions."""
    (photos / "regions").mkdir()
    for i, name in enumerate("ab"):
        content = regions(i, tuple(SIZES.values())[i], classes=SCORES) | changes
        (photos / f"regions/{name}.json").write_text(json.dumps(content))
    return photos / "regions"


@pytest.mark.parametrize("features", [False, True])
def test_the_best_class_of_each_region_and_its_score(photos, features):
    boxes = encode([(300, 300, 400, 400), (1, 2, 30, 30)])  # the first is outside
    folder = with_scores(photos, boxes=boxes)
    directory = run_builder(table(photos, regions=FolderRegions(folder, features, classes=True)))
    for record in read_all(directory, "images"):
        assert record["best_class"].dtype == np.int32 and record["best_class"].tolist() == [3]
        assert record["best_score"].dtype == np.float32 and record["best_score"] == pytest.approx([0.7])
        assert record["boxes"].tolist() == [[1, 2, 30, 30]]
    with pytest.raises(SourceError, match="was built with .*'classes': True"):
        run_builder(table(photos, regions=FolderRegions(folder, features)))


def test_without_the_option_no_classes_are_stored(photos):
    directory = run_builder(table(photos, regions=FolderRegions(with_scores(photos))))
    assert not {"best_class", "best_score"} & read_all(directory, "images")[0].keys()
    assert "classes" not in json.loads((directory / "manifest.json").read_text())["options"]


@pytest.mark.parametrize("changes, reason", [
    (dict(classes=None), "no class scores .*; give regions of data_prep.extract_regions, or omit --classes"),
    (dict(classes=encode([(1.0,), (1.0,)])), "no class next to column 0"),
    (dict(classes=encode([(0, 1, 0), (0, np.nan, 1)])), "classes: some values are not finite"),
    (dict(classes=encode([(0, 1, 0)])), "classes: 3 values do not fit 2 boxes"),
])  # fmt: skip
def test_classes_that_cannot_be_used(photos, changes, reason):
    folder = with_scores(photos)
    for path in folder.iterdir():
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    with pytest.raises(SourceError, match=f"train.jsonl, line 1: the image img/a.jpg cannot be used: .*{reason}"):
        run_builder(table(photos, regions=FolderRegions(folder, classes=True)))
    with pytest.raises(SourceError, match="--classes requires the regions of a detector"):
        chosen_regions(photos, {}, classes=True)


def refused(photos, *parts, **options):
    """Assert that the build ends with a message that has some parts, and leaves no table."""
    with pytest.raises(SourceError) as error:
        run_builder(table(photos, **options))
    assert not (photos.parent / "data/some_images/photos/1.0.0").exists()
    for part in parts:
        assert part in str(error.value)


def test_missing_and_damaged_images(photos):
    (photos / "img/b.jpg").write_bytes(jpeg()[:200])
    refused(photos, "train.jsonl, line 2: the image img/b.jpg cannot be used")
    (photos / "img/b.jpg").unlink()
    refused(photos, "train.jsonl, line 2: the image img/b.jpg is missing in", str(photos))
    (photos / "img/a.jpg").unlink()
    refused(photos, "line 1: the image img/a.jpg and 1 more of 2 are missing")


def test_regions_that_do_not_fit(photos):
    refused(photos, "one or both", store_images=False, regions=GridRegions())
    with pytest.raises(SourceError, match="no such folder"):
        FolderRegions(photos / "regions")
    folder = photos / "regions"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(regions(1, (60, 40))))
    refused(photos, "line 2", "no regions of img/b.jpg", regions=FolderRegions(folder))
    (folder / "b.json").write_text(json.dumps(regions(1, (60, 40))))
    refused(photos, "line 2", "its size is (40, 60)", "of (60, 40)", regions=FolderRegions(folder))
    (folder / "b.json").write_text(json.dumps(regions(1, (40, 60), boxes=encode([(90, 90, 95, 95)] * 2))))
    refused(photos, "line 2", "no box is inside", regions=FolderRegions(folder))
    (folder / "b.json").write_text(json.dumps(regions(1, (40, 60)) | dict(extractor="f00d")))
    refused(photos, "cannot be mixed", regions=FolderRegions(folder))
    same = {"img/a.jpg": "train.jsonl, line 1", "other/a.jpg": "train.jsonl, line 2"}
    (photos / "other").mkdir()
    (photos / "other/a.jpg").write_bytes(jpeg())
    refused(photos, "line 2", "would both have the regions a", images=same, regions=FolderRegions(folder))


def test_the_detector_runs_once(photos, monkeypatch):
    monkeypatch.setattr(detect, "load_detector", lambda *_: detector_case.shared_detector())
    images = dict.fromkeys(SIZES, "train.jsonl, line 1")
    chosen = chosen_regions(photos, images, detector="weights", features=True)
    records = read_all(run_builder(table(photos, images, chosen)), "images")
    for record in records:
        (found,) = detector_case.shared_detector().detect([open_image(record["image"])])
        np.testing.assert_array_equal(record["boxes"], found.boxes)
        np.testing.assert_array_equal(record["features"], found.features)
    stored = {path: path.stat().st_mtime_ns for path in (photos / "regions").glob("*.array_record")}
    chosen_regions(photos, images, detector="weights")
    assert stored == {path: path.stat().st_mtime_ns for path in (photos / "regions").glob("*.array_record")}
    content = (photos / "img/a.jpg").read_bytes()
    (photos / "img/a.jpg").write_bytes(jpeg((90, 60)))  # replaced by another of the same name
    with pytest.raises(SourceError, match="remove the folder .*photos/regions"):
        chosen_regions(photos, images, detector="weights")
    (photos / "img/a.jpg").write_bytes(content)
    (photos / "img/c.jpg").write_bytes(jpeg())
    with pytest.raises(SourceError, match="remove the folder .*photos/regions"):
        chosen_regions(photos, images | {"img/c.jpg": "train.jsonl, line 3"}, detector="weights")
    extraction = json.loads((photos / "regions/extraction.json").read_text())
    del extraction["images"]["sizes"]  # as an earlier version wrote it
    (photos / "regions/extraction.json").write_text(json.dumps(extraction))
    chosen_regions(photos, images, detector="weights")
    (photos / "img/a.jpg").unlink()
    with pytest.raises(SourceError, match="train.jsonl, line 1: the image img/a.jpg is missing"):
        chosen_regions(photos, images, detector="weights")


def test_options_of_regions(photos):
    assert isinstance(chosen_regions(photos, {}), GridRegions)
    with pytest.raises(SourceError, match="--features requires"):
        chosen_regions(photos, {}, features=True)
    with pytest.raises(SourceError, match="exclude each other"):
        chosen_regions(photos, {}, "regions", "weights")


def test_tables_of_regions_are_refused(photos):
    for part in RegionStore(photos / "regions", {"weights": "some"}, ("a",), "tsv", 1).shard(0):
        part.add("a", regions(0))
        part.finish()
    with pytest.raises(SourceError, match="--format=array_record"):
        FolderRegions(photos / "regions")


def test_other_regions_or_images_are_not_taken_for_built(photos):
    run_builder(table(photos))
    store(photos / "regions", ("a", "b"))
    with pytest.raises(SourceError, match="remove it, or change --corpus"):
        run_builder(table(photos, regions=FolderRegions(photos / "regions")))
    with pytest.raises(SourceError, match="remove it, or change --corpus"):
        run_builder(table(photos, images={"img/a.jpg": "train.jsonl, line 1"}))
    (photos / "img/a.jpg").write_bytes(jpeg((80, 40)))
    with pytest.raises(SourceError, match="was built from"):
        run_builder(table(photos))
