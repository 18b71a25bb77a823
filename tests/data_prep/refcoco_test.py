"""Test the RefCOCO builders: records equal the lists of REFER; inconsistent files are errors."""

import io
import json
import pathlib
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import build, refcoco_files
from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
from data_prep.refcoco_files import ReferDownload
from tests.helpers.golden_folders import golden_folders

VARIANTS = {folder.name: folder for root in golden_folders("data") for folder in sorted(root.glob("refcoco_*"))}
PROPOSALS = "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"
SPLITS = ("train", "val", "testA", "testB")


def read_all(directory, split):
    builder = tfds.builder_from_directory(directory)
    return list(builder.as_data_source(split)) if split in builder.info.splits else []


def expressions_of(directory, split):
    """Return the expressions of both orientations in the official order."""
    found = read_all(directory, f"{split}_landscape") + read_all(directory, f"{split}_portrait")
    return sorted(found, key=lambda record: record["index"])


def manifest_of(directory):
    return json.loads((directory / "manifest.json").read_text())


def problems_of(directory):
    return manifest_of(directory)["problems"]


# --- The official sample --------------------------------------------------------------------------


class Variant:
    def __init__(self, folder: pathlib.Path, out: pathlib.Path):
        self.source, self.out = folder / "data/coco", out
        self.listing = json.loads((folder / "refer_listing.json").read_text())
        arguments = ["refcoco", f"--source={self.source}", f"--data_dir={out}", f"--proposals={PROPOSALS}"]
        assert build.main(arguments) == 0
        self.images, self.expressions = (out / name / "refcoco+_unc/1.0.0" for name in ("refcoco_images", "refcoco"))

    def json(self, path):
        return json.loads((self.source / path).read_text())


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def variant(request, tmp_path_factory):
    return Variant(VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


def check_expressions(records, listing, split):
    refs = {ref["ref_id"]: ref for ref in listing["refs"]}
    expected = [(ref_id, sentence) for ref_id in listing["splits"][split] for sentence in refs[ref_id]["sentences"]]
    assert [record["index"] for record in records] == list(range(len(expected)))
    for record, (ref_id, sentence) in zip(records, expected, strict=True):
        assert (record["ref_id"], record["sent_id"]) == (ref_id, sentence["sent_id"])
        assert record["expression"].decode() == " ".join(sentence["tokens"])
        assert record["ann_id"] == refs[ref_id]["ann_id"]
        x, y, width, height = refs[ref_id]["bbox_xywh"]
        assert record["box"].tolist() == [x, y, x + width, y + height]


def test_every_expression_in_the_order_of_refer(variant):
    for split in SPLITS:
        check_expressions(expressions_of(variant.expressions, split), variant.listing, split)
    assert problems_of(variant.expressions) == problems_of(variant.images) == []
    total = sum(json.loads((variant.expressions / "manifest.json").read_text())["records"].values())
    assert total == variant.listing["counts"]["sents"]


def test_test_joins_both_test_splits(variant, tmp_path):
    download = ReferDownload(variant.source, splits=("test", "val"))
    directory = build.run_builder(RefCOCOExpressions("c", tmp_path, download))
    check_expressions(expressions_of(directory, "test"), variant.listing, "test")
    check_expressions(expressions_of(directory, "val"), variant.listing, "val")
    assert [r["image_number"] for r in expressions_of(directory, "test")][0] == 0


def test_images_with_all_their_boxes(variant):
    images = read_all(variant.images, "images")
    coco, detections = variant.json("annotations/instances_train2014.json"), variant.json(PROPOSALS)
    sizes = {image["id"]: [image["width"], image["height"]] for image in coco["images"]}
    assert sorted(int(image["image_id"]) for image in images) == variant.listing["image_ids"]
    for number, image in enumerate(images):
        image_id = int(image["image_id"])
        assert image["index"] == number and image["image_size"].tolist() == sizes[image_id]
        file = variant.source / f"train2014/COCO_train2014_{image_id:012d}.jpg"
        assert image["image"] == file.read_bytes()
        annotations = [item for item in coco["annotations"] if item["image_id"] == image_id]
        assert image["ann_ids"].tolist() == [item["id"] for item in annotations]
        boxes = np.array([item["bbox"] for item in annotations])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(image["boxes"], boxes.astype(np.float32))
        found = np.array([item["box"] for item in detections if item["image_id"] == image_id], np.float32)
        found[:, 2:] += found[:, :2]
        np.testing.assert_array_equal(image["proposals"], found)
    assert any(len(image["proposals"]) for image in images)


def test_expressions_find_their_image_and_its_orientation(variant):
    images = read_all(variant.images, "images")
    seen = []
    for split in SPLITS:
        for orientation in ("landscape", "portrait"):
            for record in read_all(variant.expressions, f"{split}_{orientation}"):
                image = images[record["image_number"]]
                width, height = image["image_size"]
                assert (width >= height) == (orientation == "landscape")
                box = image["boxes"][image["ann_ids"].tolist().index(record["ann_id"])]
                np.testing.assert_array_equal(box, record["box"].astype(np.float32))
        seen += [int(record["image_number"]) for record in expressions_of(variant.expressions, split)]
    assert list(dict.fromkeys(seen)) == list(range(len(images)))  # numbered by first appearance


def test_zipped_images_and_boxes_of_refer(variant, tmp_path):
    source = tmp_path / "coco"
    (source / "refcoco+").mkdir(parents=True)
    for name in ("refs(unc).p", "instances.json"):
        shutil.copy(variant.source / "refcoco+" / name, source / "refcoco+")
    with zipfile.ZipFile(source / "train2014.zip", "w") as archive:
        for file in (variant.source / "train2014").iterdir():
            archive.write(file, f"train2014/{file.name}")
    builder = RefCOCOImages("c", tmp_path, ReferDownload(source), "refcoco+/instances.json", num_threads=1)
    ours = read_all(build.run_builder(builder), "images")
    official = variant.listing["image_ann_ids"]
    for record, image in zip(ours, read_all(variant.images, "images"), strict=True):
        assert record["image"] == image["image"]
        assert record["ann_ids"].tolist() == official[record["image_id"].decode()]
        assert record["proposals"].shape == (0, 4)


def test_other_options_for_the_same_corpus_are_refused(variant, capsys):
    arguments = ["refcoco", f"--source={variant.source}", f"--data_dir={variant.out}"]
    assert build.main(arguments) == 2
    assert "remove it, or change --corpus" in capsys.readouterr().err
    assert build.main([*arguments, f"--proposals={PROPOSALS}"]) == 0
    assert "already built" in capsys.readouterr().out


# --- Inconsistent downloads -----------------------------------------------------------------------


def jpeg(size=(60, 40), mode="RGB"):
    content = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(content, "JPEG")
    return content.getvalue()


def valid_download():
    """Return the content of each file of a download with two images and three references."""
    references = [
        dict(ref_id=i, ann_id=10 + i, image_id=1 + i // 2, split=split, category_id=1, file_name="x", sent_ids=[i],
             sentences=[dict(sent_id=i, raw="Dog!", sent="dog", tokens=["the", "dog"])])
        for i, split in enumerate(("train", "val", "testAB"))
    ]  # fmt: skip
    instances = dict(
        images=[dict(id=1, width=60, height=40), dict(id=2, width=60, height=40)],
        annotations=[
            dict(id=10 + i, image_id=1 + i // 2, bbox=[1, 2, 10.5, 9], iscrowd=0, segmentation=[[1, 2]])
            for i in range(4)
        ],
    )  # fmt: skip
    return {
        "refcoco+/refs(unc).p": references,
        "refcoco+/instances.json": instances,
        "annotations/instances_train2014.json": json.loads(json.dumps(instances)),
        "dets.json": [dict(image_id=1, box=[0, 0, 9, 9], score=0.5), dict(image_id=2, box=[1, 1, 5, 5])],
        "train2014/COCO_train2014_000000000001.jpg": jpeg(),
        "train2014/COCO_train2014_000000000002.jpg": jpeg(),
    }


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".p"):
            content = content if isinstance(content, bytes) else pickle.dumps(content, 2)
        elif not isinstance(content, bytes):
            content = json.dumps(content).encode()
        path.write_bytes(content)


REFS, INSTANCES, COCO = "refcoco+/refs(unc).p", "refcoco+/instances.json", "annotations/instances_train2014.json"
FIRST, SECOND = (f"train2014/COCO_train2014_00000000000{i}.jpg" for i in (1, 2))


def drop(name):
    return lambda files: files.pop(name)


def put(name, content):
    return lambda files: files.update({name: content})


def change(name, *keys, to=None):
    """Return a function that sets the value at `keys` in a file, or removes it if `to` is None."""

    def apply(files):
        at = files[name]
        for key in keys[:-1]:
            at = at[key]
        if to is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = to

    return apply


# name: (function that changes the valid download, pattern of the error message)
BAD = dict(
    no_refs=(drop(REFS), r"refs\(unc\)\.p: the file cannot be read .*README\.md describes the layout"),
    refs_cut=(put(REFS, pickle.dumps([{"ref_id": 3}], 2)[:-4]), r"not a pickle of plain arrays, lists"),
    refs_no_list=(put(REFS, {}), r"the file is an empty object, not a list of references; data_prep/README\.md"),
    refs_no_dict=(change(REFS, 1, to=7), r"reference 1 \(from 0\): "),
    ref_without_id=(
        change(REFS, 1, "ref_id"),
        r"reference 1 \(from 0\): the field 'ref_id' is missing in an object with ann_id, .*; data_prep/README\.md",
    ),
    ref_id_text=(change(REFS, 2, "ann_id", to="12"), r"reference 2 .*: ann_id is the text '12', not an integer"),
    several_objects=(
        change(REFS, 2, "ann_id", to=[11, 12]),
        r"reference 2 \(from 0\): ann_id is a list of 2, not an integer; expressions for several .* gRefCOCO, are not",
    ),
    sentence_text=(change(REFS, 0, "sentences", to=["a dog"]), r"reference 0 .*the text 'a dog', not an object"),
    box_text=(change(INSTANCES, "annotations", 0, "bbox", to="1,2,3,4"), r"bbox is the text '1,2,3,4', not a list of"),
    ref_twice=(change(REFS, 2, "ref_id", to=0), r"reference 2 \(from 0\): ref_id 0 occurs twice"),
    tokens_text=(change(REFS, 0, "sentences", 0, "tokens", to="dog"), r"reference 0 .*tokens is the text 'dog'"),
    token_number=(change(REFS, 0, "sentences", 0, "tokens", to=[3]), r"reference 0 .*a word is the number 3"),
    no_such_split=(
        change(REFS, 1, "split", to="train"),
        r"there is no reference of val \(--splits\); the file has: testAB, train",
    ),
    no_instances=(drop(INSTANCES), r"instances\.json: the file cannot be read"),
    instances_cut=(put(INSTANCES, b'{"images": ['), r"instances\.json: the file is not JSON \(.*\); download it again"),
    instances_bytes=(put(INSTANCES, b"\xff\xfe{"), r"instances\.json: the file is not JSON"),
    instances_empty=(put(INSTANCES, {}), r"no list under 'annotations', but an empty object; data_prep"),
    image_unlisted=(change(INSTANCES, "images", 1), r"image 2 of ref_id 2 in refs\(unc\)\.p is missing"),
    image_sizeless=(change(INSTANCES, "images", 1, "width"), r"images 1 \(from 0\): the field 'width' is missing"),
    no_annotation=(change(INSTANCES, "annotations", 1), r"annotation 11 of ref_id 1 in refs\(unc\)\.p is missing"),
    other_image=(change(INSTANCES, "annotations", 1, "image_id", to=2), r"annotation 11 .* is of image 2, not 1"),
    no_area=(change(INSTANCES, "annotations", 2, "bbox", to=[1, 2, 0, 5]), r"annotation 12 .* box without area"),
    no_box=(change(INSTANCES, "annotations", 0, "bbox"), r"annotations 0 \(from 0\): the field 'bbox' is missing"),
    short_box=(change(INSTANCES, "annotations", 0, "bbox", to=[1, 2, 3]), r"annotations 0 .*not four finite"),
    infinite_box=(change(INSTANCES, "annotations", 0, "bbox", to=[1, 2, 3, float("inf")]), r"not four finite"),
    large_box=(change(INSTANCES, "annotations", 0, "bbox", to=[1, 2, 3, 1e39]), r"not four finite"),
    fractions=(put("dets.json", [dict(image_id=1, box=[0, 0.1, 0.5, 1])]), r"dets\.json: all corners are within 0 and"),
    no_coco=(drop(COCO), r"instances_train2014\.json: the file cannot be read"),
    coco_lacks=(
        change(COCO, "annotations", 1),
        r"annotation 11 of image 1, which ref_id 1 names, is missing; --annotations",
    ),
    no_detections=(drop("dets.json"), r"dets\.json: the file cannot be read"),
    detections_cut=(put("dets.json", b"[{"), r"dets\.json: the file is not JSON"),
    detections_dict=(put("dets.json", {"dets": []}), r"dets\.json: there is no list, but an object with dets;"),
    detection_boxless=(change("dets.json", 1, "box"), r"item 1 \(from 0\): the field 'box' is missing"),
    detection_nan=(change("dets.json", 1, "box", to=[1, 2, float("nan"), 4]), r"item 1 .*not four finite numbers"),
    no_image=(
        drop(SECOND),
        r"image 2 cannot be read .*COCO_train2014_000000000002\.jpg.*--source must contain all images of COCO",
    ),
    cut_image=(put(SECOND, jpeg()[:-300]), r"train2014: image 2 cannot be read .*truncated"),
    turned_image=(
        put(FIRST, jpeg((40, 60))),
        r"000001\.jpg: the image has 40x60 pixels, but instances\.json states \(60, 40\)",
    ),
    no_images=(lambda files: [files.pop(FIRST), files.pop(SECOND)], r"neither train2014 nor train2014\.zip"),
    broken_zip=(
        lambda files: [files.pop(FIRST), files.pop(SECOND), files.update({"train2014.zip": b"PK"})],
        r"train2014\.zip: the zip archive is not complete",
    ),
)


def build_command(tmp_path, *options):
    arguments = [f"--source={tmp_path}/coco", f"--data_dir={tmp_path}/data", "--proposals=dets.json", *options]
    return build.main(["refcoco", "--splits=train,val,testA", *arguments])


@pytest.mark.parametrize("name", BAD)
def test_bad_downloads_are_reported_and_leave_nothing(tmp_path, capsys, name):
    apply, message = BAD[name]
    files = valid_download()
    apply(files)
    write(tmp_path / "coco", files)
    assert build_command(tmp_path) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert not list(tmp_path.glob("data/*/*/1.0.0"))


def test_a_valid_download_and_problems_that_are_not_errors(tmp_path):
    files = valid_download()
    write(tmp_path / "coco", files)
    assert build_command(tmp_path) == 0
    images, expressions = (tmp_path / "data" / name / "refcoco+_unc/1.0.0" for name in ("refcoco_images", "refcoco"))
    assert problems_of(images) == problems_of(expressions) == []
    assert [len(expressions_of(expressions, split)) for split in ("train", "val", "testA")] == [1, 1, 1]

    files[COCO]["annotations"][3]["bbox"] = [5, 5, 0, 3]
    files["dets.json"] = [dict(image_id=1, box=[70, 0, 9, 9])]
    files[REFS][0]["sentences"][0]["tokens"] = []
    files[FIRST] = jpeg(mode="L")
    write(tmp_path / "coco", files)
    assert build_command(tmp_path, "--corpus=dubious") == 0
    found = problems_of(tmp_path / "data/refcoco_images/dubious/1.0.0")
    assert [(problem["action"], problem["line"], problem["reason"]) for problem in found] == [
        ("kept", 3, "box [5.0, 5.0, 5.0, 8.0] has no area in image 2"),
        ("kept", 0, "box [70.0, 0.0, 79.0, 9.0] has no area in image 1"),
        ("kept", -1, "no region of image 2"),
    ]
    assert manifest_of(tmp_path / "data/refcoco_images/dubious/1.0.0")["converted"] == {
        "JPEG in mode L encoded as an RGB JPEG": 1
    }
    (record, _) = read_all(tmp_path / "data/refcoco_images/dubious/1.0.0", "images")
    assert Image.open(io.BytesIO(record["image"])).mode == "RGB"
    (problem,) = problems_of(tmp_path / "data/refcoco/dubious/1.0.0")
    assert problem["reason"] == "sent_id 0 has no word"


def test_unknown_splits_of_a_dataset(tmp_path, capsys):
    write(tmp_path / "coco", valid_download())
    assert build_command(tmp_path, "--split_by=umd") == 2
    assert "there is no refcoco+ split by umd; the possible choices are: refcoco+ by unc," in capsys.readouterr().err


@pytest.mark.parametrize("dataset, split_by", refcoco_files.SPLITS)
def test_every_dataset_has_its_own_folder_and_splits(tmp_path, dataset, split_by):
    splits = refcoco_files.SPLITS[dataset, split_by]
    files = valid_download()
    (reference, *_), instances = files[REFS], files[INSTANCES]
    references = [reference | dict(ref_id=i, split=split) for i, split in enumerate(splits)]
    write(tmp_path, {f"{dataset}/refs({split_by}).p": references, f"{dataset}/instances.json": instances})
    download = ReferDownload(tmp_path, dataset, split_by)
    directory = build.run_builder(RefCOCOExpressions("c", tmp_path / "data", download))
    assert [[r["ref_id"] for r in expressions_of(directory, split)] for split in splits] == [
        [i] for i in range(len(splits))
    ]
