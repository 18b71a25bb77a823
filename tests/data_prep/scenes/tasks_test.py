"""Test the synthetic downstream corpora: public formats, reproducible bytes, distinct scenes."""

import collections
import functools
import hashlib
import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.scenes import captions, downstream, glyphs
from data_prep.scenes.corpus import write_corpus
from data_prep.scenes.crowded import GROUPS
from data_prep.scenes.downstream import NEW_WORDS, SPLITS, VERSION, draw_split, write_downstream_corpus
from data_prep.scenes.painting import draw_scene
from data_prep.scenes.vqa import SUBSETS
from tests.helpers.scene_truth import is_true, matching

SETTINGS = dict(version=VERSION, seed=3, num_train=40, num_val=12, num_test=10, feature_width=5)
DETECTIONS = "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"


def load(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    write_downstream_corpus(path, SETTINGS)
    return path


@pytest.fixture(scope="module")
def scenes():
    """Return the scenes of the corpus by image id."""
    found = {}
    for split in SPLITS:
        found |= {one.image_id: one for one in draw_split(split, SETTINGS, 1 + len(found))}
    return found


def test_the_pretraining_corpus_is_unchanged(tmp_path):
    """The pre-training corpus has the digest of version 2, which preceded the downstream tasks.

    A change of the random values of a scene changes its caption or its number of regions.
    """
    settings = dict(version=2, seed=0, num_train=40, num_val=10, num_train_stories=30, num_val_stories=8)
    write_corpus(tmp_path, settings | dict(feature_width=0))
    digest = hashlib.sha256()
    for name in ("train_frcnn.json", "val_frcnn.json", "train.doc", "val.doc", "vocab.txt"):
        digest.update((tmp_path / name).read_bytes())
    assert digest.hexdigest()[:16] == "7df55d97e20967c8"


def test_equal_settings_give_equal_bytes(folder, tmp_path):
    for name, settings in dict(again=SETTINGS, other=SETTINGS | dict(seed=4)).items():
        (tmp_path / name).mkdir()
        write_downstream_corpus(tmp_path / name, settings)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert paths == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in paths)
    different = {"v2_OpenEnded_mscoco_val2014_questions.json", "refs(unc).p", "val.jsonl", "000000@0.jpg"}
    for path in (path for path in paths if path.name in different):
        assert (folder / path).read_bytes() != (tmp_path / "other" / path).read_bytes()


def test_no_scene_is_shared(folder, tmp_path):
    # The pre-training corpus has the same seed.
    write_corpus(tmp_path, SETTINGS | dict(num_train_stories=2, num_val_stories=2, feature_width=0))
    scene = draw_scene(np.random.default_rng([SETTINGS["seed"], 0, 0]))
    assert scene.jpeg in (tmp_path / "train_image.zip").read_bytes()
    images = collections.defaultdict(set)
    for path in (folder / "coco").glob("*/*.jpg"):
        images[path.parent.name].add(path.read_bytes())
        assert path.name[5:-17] == path.parent.name
    assert {name: len(found) for name, found in images.items()} == dict(train2014=72, val2014=12, test2015=10)
    assert len(set.union(*images.values())) == 94
    archives = [(tmp_path / f"{split}_image.zip").read_bytes() for split in ("train", "val")]
    assert not any(image in archive for image in set.union(*images.values()) for archive in archives)
    refs = pickle.loads((folder / "coco/refcoco+/refs(unc).p").read_bytes())
    by_split = collections.defaultdict(set)
    for ref in refs:
        by_split[ref["split"]].add(ref["image_id"])
    assert set(by_split) == {"train", "val", "testA", "testB"}
    assert sum(map(len, by_split.values())) == len(set.union(*by_split.values()))


def test_vocabulary_keeps_its_ids():
    before, after = captions.vocabulary(), downstream.vocabulary()
    assert len(after) == len(set(after)) == 256
    assert all(a == b or a.startswith("[unused") for a, b in zip(before, after, strict=True))
    assert set(NEW_WORDS) <= set(after) and after[0] == "[PAD]" and after[103] == "[MASK]"


# --- VQA ------------------------------------------------------------------------------------------


def test_vqa_files(folder, scenes):
    root = folder / "coco"
    counts = {}
    for name, (images, detections, split) in SUBSETS.items():
        content = load(root / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json")
        assert content["data_subtype"] == name and content["task_type"] == "Open-Ended"
        counts[name] = {q["question_id"] for q in content["questions"]}
        assert len(counts[name]) == len(content["questions"])
        for question in content["questions"]:
            one = scenes[question["image_id"]]
            assert one.split == split and set(question) == {"question", "image_id", "question_id"}
            with Image.open(root / images / f"COCO_{images}_{one.image_id:012d}.jpg") as image:
                assert image.size == (one.scene.width, one.scene.height)
            record = load(root / f"vgbua_res101_precomputed/{detections}/{one.image_id}.json")
            assert set(record) == {"image_id", "image_w", "image_h", "num_boxes", "boxes", "features"}
            assert len(record["features"]) == 4 * math.ceil(4 * 5 * record["num_boxes"] / 3)
        path = root / f"vqa/v2_mscoco_{name}_annotations.json"
        assert path.exists() == (split != "test")
        if path.exists():
            notes = load(path)["annotations"]
            assert [n["question_id"] for n in notes] == [q["question_id"] for q in content["questions"]]
            for note in notes:
                answers = [answer["answer"] for answer in note["answers"]]
                assert [answer["answer_id"] for answer in note["answers"]] == list(range(1, 11))
                assert answers.count(note["multiple_choice_answer"]) >= 6
                assert note["answer_type"] in ("yes/no", "number", "other")
    assert counts["test-dev2015"] < counts["test2015"] and len(counts["train2014"]) == 40 * 6
    answers = (root / "vqa/answers_vqa.txt").read_text().split("\n")
    assert (folder / "answers_vqa.txt").read_text().split("\n") == answers and "<unk>" in answers
    notes = load(root / "vqa/v2_mscoco_train2014_annotations.json")["annotations"]
    given = collections.Counter(answer["answer"] for note in notes for answer in note["answers"])
    assert 0 < sum(count for word, count in given.items() if word not in answers) < 0.05 * sum(given.values())


# --- VCR ------------------------------------------------------------------------------------------


def test_vcr_files(folder, scenes):
    root = folder / "vcr"
    for split in ("train", "val", "test"):
        scenes_there = {one.number: one for one in scenes.values() if one.split == split}
        lines = [json.loads(line) for line in (root / f"{split}.jsonl").read_text().splitlines()]
        assert len(lines) > len(scenes_there) and len({line["annot_id"] for line in lines}) == len(lines)
        assert {int(line["img_fn"][-12:-6]) for line in lines} <= set(scenes_there)
        for line in lines:
            one = scenes_there[int(line["img_fn"][-12:-6])]
            things = one.scene.things
            record = load(root / "vcr1images" / line["metadata_fn"])
            assert line["objects"] == record["names"] == [t.category for t in things]
            assert (record["width"], record["height"]) == (one.scene.width, one.scene.height)
            assert (root / "vcr1images" / line["img_fn"]).read_bytes() == one.scene.jpeg
            assert len(record["segms"]) == len(record["boxes"]) == len(things)
            for box, polygons, thing in zip(record["boxes"], record["segms"], things, strict=True):
                assert len(box) == 5 and np.abs(np.subtract(box[:4], thing.box)).max() < 16
                assert polygons and all(len(polygon) >= 3 for polygon in polygons)
            if split == "test":
                assert not {"answer_label", "rationale_label", "answer_orig"} & set(line)
                continue
            for name in ("answer", "rationale"):
                truth = [is_true(choice, things) for choice in line[f"{name}_choices"]]
                assert [i for i, true in enumerate(truth) if true] == [line[f"{name}_label"]], line


# --- RefCOCO+ -------------------------------------------------------------------------------------


def test_refcoco_files(folder, scenes):
    root = folder / "coco"
    refs = pickle.loads((root / "refcoco+/refs(unc).p").read_bytes())
    instances = load(root / "refcoco+/instances.json")
    assert instances == load(root / "annotations/instances_train2014.json")
    assert {"info", "images", "licenses", "annotations", "categories"} == set(instances)
    notes = {note["id"]: note for note in instances["annotations"]}
    assert len(notes) == len(instances["annotations"]) and len({ref["ref_id"] for ref in refs}) == len(refs)
    sentence_ids = [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]]
    assert sentence_ids == [i for ref in refs for i in ref["sent_ids"]] == list(range(len(sentence_ids)))
    groups = dict(testA="natural", testB="made")
    for ref in refs:
        note, one = notes[ref["ann_id"]], scenes[ref["image_id"]]
        assert note["image_id"] == ref["image_id"] and note["category_id"] == ref["category_id"]
        x, y, w, h = note["bbox"]
        (thing,) = [thing for thing in one.scene.things if thing.box == (x, y, x + w, y + h)]
        assert glyphs.CATEGORIES[ref["category_id"] - 1] == thing.category
        assert 0.3 * w * h < note["area"] < w * h
        if ref["split"] in groups:
            assert thing.category in GROUPS[groups[ref["split"]]]
        for sentence in ref["sentences"]:
            assert sentence["sent"] == sentence["raw"] == " ".join(sentence["tokens"])
            assert matching(sentence["raw"], one.scene.things) == [thing]
    found = load(root / DETECTIONS)
    assert {detection["image_id"] for detection in found} == {ref["image_id"] for ref in refs}
    assert all(set(d) == {"det_id", "h5_id", "box", "image_id", "category_id", "category_name", "score"} for d in found)


# --- The command ----------------------------------------------------------------------------------


def test_scenes_are_built_once(tmp_path):
    settings = dict(seed=2, num_train=3, num_val=2, num_test=2)
    (tmp_path / "vqa" / "scenes" / "0.0.0").mkdir(parents=True)  # records of a removed corpus
    (tmp_path / "scenes_downstream.incomplete").mkdir()
    paths = build.build_scene_tasks(tmp_path, **settings)
    assert all(path.exists() for path in paths.values())
    assert [path.name for path in (tmp_path / "vqa" / "scenes").iterdir()] == ["1.0.0"]
    assert not list(tmp_path.glob("*.incomplete"))
    made = paths["vocab"].stat().st_mtime_ns
    assert build.build_scene_tasks(tmp_path, **settings) == paths and paths["vocab"].stat().st_mtime_ns == made
    with pytest.raises(SourceError, match="remove it"):
        build.build_scene_tasks(tmp_path, **settings | dict(seed=7))


def test_a_recipe_builds_only_its_tables(tmp_path, monkeypatch):
    """The corpora of the other tasks follow when their recipes need them."""
    small = functools.partial(build.build_scene_tasks, num_train=3, num_val=2, num_test=2)
    monkeypatch.setattr(build, "build_scene_tasks", small)
    built = set()
    for task in ("vqa", "refcoco", "vcr"):
        fields = dict(data_dir=str(tmp_path), texts=f"{task}/scenes", images=f"{task}_images/scenes")
        build.draw_missing("scene_tasks", fields | dict(vocab="scenes_downstream/vocab.txt"))
        built |= {task, f"{task}_images"}
        assert {path.name for path in tmp_path.iterdir()} - {".build_lock", "scenes_downstream"} == built
