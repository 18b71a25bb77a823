"""Referring expressions for the synthetic scenes, in the files of RefCOCO+.

The files are refs (a pickle of Python 2), annotations of COCO, and detections in the form of
MAttNet.

    the red ball   the striped thing   the large green car   the small dotted blue house

Expressions describe appearance, without words for places. An expression is true of one thing of its
image. The words are mostly necessary: if the things share the category, the color is stated, and
vice versa. The splits have different scenes: train, val, testA (all natural things: tree, fish,
flower, star, moon) and testB (all made ones).

Without the image, a guess among the annotated boxes is right in 0.35 of the expressions. The shape
of the boxes (a car is wide, "small" is small) raises that to 0.53 (Gaussians of aspect and size per
word, learned from 3,000 scenes and scored on 800). The detections contain 0.95 of the things, with
an IoU of 0.75 to 0.95; this limits every model that has to choose among them."""

from __future__ import annotations

import json
import pathlib
import pickle

import numpy as np

from data_prep.scenes import glyphs
from data_prep.scenes.corpus import jitter
from data_prep.scenes.crowded import GROUPS, CorpusScene, descriptions, pick

TASK = 2  # number of the random stream
REFS_PER_IMAGE, SENTENCES_PER_REF = 2, 3  # at most
FOUND = 0.95  # fraction of the things that the detector finds
FALSE_BOXES = 0.4  # mean number per image
SPLITS = {"train": "train", "refer_val": "val", "refer_testA": "testA", "refer_testB": "testB"}
TEST_GROUPS = {"refer_testA": "natural", "refer_testB": "made"}
INFO = dict(
    description="drawn scenes in the format of the COCO 2014 release", url="", version="1.0", year=2014,
    contributor="vlbert_jax", date_created="2015-01-27 09:11:52.357475",
)  # fmt: skip


def categories() -> list[dict]:
    """Return the `categories` of COCO."""
    group = {category: name for name, members in GROUPS.items() for category in members}
    return [dict(supercategory=group[name], id=i, name=name) for i, name in enumerate(glyphs.CATEGORIES, 1)]


def category_id(category: str) -> int:
    """Return the number of a category in COCO."""
    return 1 + glyphs.CATEGORIES.index(category)


def _polygon_area(polygon) -> float:
    x, y = np.array(polygon).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def image_entry(one: CorpusScene, folder: str) -> dict:
    """Return an entry of COCO's `images`."""
    return dict(
        license=1, file_name=f"COCO_{folder}_{one.image_id:012d}.jpg", coco_url="", flickr_url="",
        height=one.scene.height, width=one.scene.width, date_captured="2013-11-14 11:18:45", id=one.image_id,
    )  # fmt: skip


def annotation_id(one: CorpusScene, thing: int) -> int:
    """Return the number of a thing's annotation in COCO."""
    return 10 * one.image_id + thing


def instances(scenes: list[CorpusScene], folder: str) -> dict:
    """Return the instances of COCO: a box [x, y, w, h] and polygons for each thing."""
    annotations = []
    for one in scenes:
        for i, (thing, polygons) in enumerate(zip(one.scene.things, one.outlines, strict=True)):
            x1, y1, x2, y2 = thing.box
            annotations.append(
                dict(
                    segmentation=[[value for point in polygon for value in point] for polygon in polygons],
                    area=sum(map(_polygon_area, polygons)), iscrowd=0, image_id=one.image_id,
                    bbox=[float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    category_id=category_id(thing.category), id=annotation_id(one, i),
                )
            )  # fmt: skip
    licenses = [dict(url="", id=1, name="drawn, none needed")]
    images = [image_entry(one, folder) for one in scenes]
    return dict(info=INFO, images=images, licenses=licenses, annotations=annotations, categories=categories())


def refer(one: CorpusScene, rng: np.random.Generator) -> list[tuple[int, list[str]]]:
    """Return (thing, expressions) for some things of a scene.

    Test splits use only the things of their group.
    """
    allowed = GROUPS.get(TEST_GROUPS.get(one.split, ""), glyphs.CATEGORIES)
    things = one.scene.things
    chosen = [int(i) for i in rng.permutation(len(things)) if things[i].category in allowed][:REFS_PER_IMAGE]
    found = []
    for i in chosen:
        options = descriptions(things[i], things)
        number = min(len(options), int(rng.integers(1, SENTENCES_PER_REF + 1)))
        found.append((i, [" ".join(("the", *words)) for words in pick(options, number, rng)]))
    return found


def detections(one: CorpusScene, rng: np.random.Generator) -> list[dict]:
    """Return detections with box [x, y, w, h], category and score; some are missing, some false.

    As in the files of MAttNet, w is x2 - x1 + 1.
    """
    width, height = one.scene.width, one.scene.height
    found = []
    for thing in one.scene.things:
        if rng.random() < FOUND:
            box = jitter(thing.box, width, height, rng)
            category = thing.category if rng.random() < 0.95 else str(rng.choice(glyphs.CATEGORIES))
            found.append((box, category, rng.uniform(0.7, 1)))
    for _ in range(max(rng.poisson(FALSE_BOXES), not found)):
        w, h = rng.integers(20, 45, 2)
        x, y = rng.uniform(0, width - w - 1), rng.uniform(0, height - h - 1)
        found.append((np.array((x, y, x + w, y + h)), str(rng.choice(glyphs.CATEGORIES)), rng.uniform(0.5, 0.8)))
    found = [found[i] for i in rng.permutation(len(found))]
    return [
        dict(
            box=[float(x1), float(y1), float(x2 - x1 + 1), float(y2 - y1 + 1)], image_id=one.image_id,
            category_id=category_id(category), category_name=category, score=float(score),
        )
        for (x1, y1, x2, y2), category, score in found
    ]  # fmt: skip


def write_refcoco(root: pathlib.Path, scenes: list[CorpusScene]) -> None:
    """Write refcoco+/ (refs, instances, proposals) into the folder `root` of COCO."""
    scenes = [one for one in scenes if one.split in SPLITS]
    refs, found, sentence_id = [], [], 0
    for one in scenes:
        rng = one.rng(TASK)
        for thing, expressions in refer(one, rng):
            sentences = []
            for text in expressions:
                sentences.append(dict(tokens=text.split(), raw=text, sent_id=sentence_id, sent=text))
                sentence_id += 1
            refs.append(
                dict(
                    sent_ids=[s["sent_id"] for s in sentences], ann_id=annotation_id(one, thing), ref_id=len(refs),
                    file_name=f"COCO_train2014_{one.image_id:012d}_{len(refs)}.jpg", image_id=one.image_id,
                    split=SPLITS[one.split], sentences=sentences,
                    category_id=category_id(one.scene.things[thing].category),
                )
            )  # fmt: skip
        found += detections(one, rng)
    found = [dict(det_id=i, h5_id=i, **detection) for i, detection in enumerate(found)]
    folder = root / "refcoco+"
    (folder / "proposal").mkdir(parents=True)
    with open(folder / "refs(unc).p", "wb") as file:
        pickle.dump(refs, file, protocol=2)
    (folder / "instances.json").write_text(json.dumps(instances(scenes, "train2014")), encoding="utf-8")
    path = folder / "proposal" / "res101_coco_minus_refer_notime_dets.json"
    path.write_text(json.dumps(found), encoding="utf-8")
