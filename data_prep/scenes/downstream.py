"""The embedded corpus of the downstream tasks, `scenes_downstream`: drawn scenes in the files of the public downloads.

Source: drawn here by a seed, no download, no license. Scenes of their own (crowded_scenes.py), none of
pre-training's, and no scene in two splits of a task. The folder:

    coco/train2014/  coco/val2014/  coco/test2015/   COCO_train2014_000000000001.jpg ...
    coco/annotations/                                instances_train2014.json, instances_val2014.json,
                                                     image_info_test2015.json
    coco/vqa/                                        questions, annotations, answers_vqa.txt    (scene_vqa.py)
    coco/vgbua_res101_precomputed/                   a detector's boxes per image for VQA
    coco/refcoco+/                                   refs(unc).p, instances.json, proposal/     (scene_refcoco.py)
    vcr/                                             {train,val,test}.jsonl, vcr1images/        (scene_vcr.py)
    vocab.txt                                        the vocabulary of `scenes`, further words in free rows
    answers_vqa.txt  categories.txt                  VQA's answers; category names from 1 on
    scenes_downstream.json                           what it was drawn with

Training scenes serve all three tasks. RefCOCO+ takes its val, testA and testB from scenes of its own in
train2014, where the public ones lie too. A model that was pre-trained on `scenes` has learned what is asked here: which
region is red, which is the ball. New are the words around it.

The best scores without the image are in the docstrings of the three modules;
tests/data_prep/scenes/tasks_test.py measures them.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from tqdm import tqdm

from data_prep.scenes import captions, glyphs, world
from data_prep.scenes.crowded import Drawn, draw_crowded
from data_prep.scenes.refcoco import TEST_GROUPS, categories, image_entry, instances, write_refcoco
from data_prep.scenes.vcr import write_vcr
from data_prep.scenes.vqa import COUNTS, answer_vocabulary, write_vqa

VERSION = 1  # of the drawing; another number makes other scenes
STREAM = 10  # seeds of pre-training's scenes are [seed, 0 to 4, ...], of these [seed, 10 to 15, ...]
SPLITS = ("train", "val", "test", "refer_val", "refer_testA", "refer_testB")
IMAGE_FOLDERS = {"val": "val2014", "test": "test2015"}  # the others lie in train2014
NEW_WORDS = ("what", "where", "how", "color", "many", "thing", "things", "because", "yes", "no", *COUNTS)


def vocabulary() -> list[str]:
    """Lines of vocab.txt: those of `scenes`, with the new words in place of unused pieces after the words."""
    lines = captions.vocabulary()
    assert not set(NEW_WORDS) & set(lines)
    free = [i for i, piece in enumerate(lines) if piece.startswith("[unused")]
    free = [i for i in free if i > lines.index("[MASK]")] + [i for i in free if i < lines.index("[MASK]")]
    for word, i in zip(NEW_WORDS, free, strict=False):
        lines[i] = word
    return lines


def number_of_scenes(settings: dict, split: str) -> int:
    return settings["num_" + {"refer_val": "val", "refer_testA": "test", "refer_testB": "test"}.get(split, split)]


def draw_split(split: str, settings: dict, first_id: int) -> list[Drawn]:
    """All scenes of a split; their image ids count from `first_id`."""
    drawn = []
    for i in tqdm(range(number_of_scenes(settings, split)), f"drawing {split}", unit=" scenes", mininterval=1):
        seed = (settings["seed"], STREAM + SPLITS.index(split), i)
        scene, outlines = draw_crowded(np.random.default_rng(seed), TEST_GROUPS.get(split, ""))
        drawn.append(Drawn(split, i, first_id + i, scene, outlines, seed))
    return drawn


def _write_images(root: pathlib.Path, drawn: list[Drawn]) -> None:
    by_folder: dict[str, list[Drawn]] = {folder: [] for folder in ("train2014", "val2014", "test2015")}
    for one in drawn:
        by_folder[IMAGE_FOLDERS.get(one.split, "train2014")].append(one)
    (root / "annotations").mkdir(parents=True)
    for folder, those in by_folder.items():
        (root / folder).mkdir()
        for one in those:
            (root / folder / f"COCO_{folder}_{one.image_id:012d}.jpg").write_bytes(one.scene.jpeg)
        if folder == "test2015":
            name, content = "image_info_test2015", instances([], folder)
            content |= dict(images=[image_entry(one, folder) for one in those], categories=categories())
            del content["annotations"]
        else:
            name, content = f"instances_{folder}", instances(those, folder)
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_downstream_corpus(folder: pathlib.Path, settings: dict) -> None:
    """Draws the corpus into an existing empty folder; `scenes_downstream.json` is written last.

    `settings`: seed, num_train, num_val, num_test (scenes), feature_width (0 = no region features for VQA). The same
    settings give the same bytes.
    """
    width = settings["feature_width"]
    directions = None
    if width:
        directions = np.random.default_rng([settings["seed"], 4]).normal(0, 1, (len(world.CLASS_NAMES), width))
    drawn: list[Drawn] = []
    for split in SPLITS:
        drawn += draw_split(split, settings, 1 + len(drawn))
    _write_images(folder / "coco", drawn)
    write_vqa(folder / "coco", drawn, directions)
    write_refcoco(folder / "coco", drawn)
    write_vcr(folder / "vcr", drawn)
    for name, lines in (
        ("vocab.txt", vocabulary()),
        ("answers_vqa.txt", answer_vocabulary()),
        ("categories.txt", glyphs.CATEGORIES),
    ):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "scenes_downstream.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
