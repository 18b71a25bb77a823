"""The synthetic corpus `scenes_downstream`, in the files of the public downloads.

Source: generated here from a seed; no download, no license. The scenes (crowded.py) are not those
of pre-training, and no scene is in two splits of a task. The folder:

    coco/train2014/  coco/val2014/  coco/test2015/ COCO_train2014_000000000001.jpg ...
    coco/annotations/                              instances_{train,val}2014.json,
                                                   image_info_test2015.json
    coco/vqa/                                      questions, annotations, answers (vqa.py)
    coco/vgbua_res101_precomputed/                 boxes of a simulated detector, for VQA
    coco/refcoco+/                                 refs, instances, proposal/ (refcoco.py)
    vcr/                                           {train,val,test}.jsonl, vcr1images/ (vcr.py)
    vocab.txt                                      that of `scenes`, new words in free rows
    answers_vqa.txt  categories.txt                answers of VQA; category names from 1 on
    scenes_downstream.json                         the settings

The training scenes serve all three tasks. The val, testA and testB of RefCOCO+ have further scenes
in train2014, as the public ones do. A model that was pre-trained on `scenes` already knows which
region is red and which is the ball; the words around them are new.

The docstrings of the three modules state the best scores without the image;
tests/data_prep/scenes/tasks_test.py measures them.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from data_prep.scenes import captions, glyphs, world
from data_prep.scenes.crowded import CorpusScene, draw_crowded
from data_prep.scenes.refcoco import TEST_GROUPS, categories, image_entry, instances, write_refcoco
from data_prep.scenes.vcr import write_vcr
from data_prep.scenes.vqa import COUNTS, answer_vocabulary, write_vqa

VERSION = 1  # version of the generator; it changes with the scenes
STREAM = 10  # the seeds are [seed, 10 to 15, ...], those of pre-training [seed, 0 to 4, ...]
SPLITS = ("train", "val", "test", "refer_val", "refer_testA", "refer_testB")
IMAGE_FOLDERS = {"val": "val2014", "test": "test2015"}  # the others are in train2014
NEW_WORDS = ("what", "where", "how", "color", "many", "thing", "things", "because", "yes", "no", *COUNTS)


def with_words(lines: list[str], words: Sequence[str]) -> list[str]:
    """Return the lines of a vocabulary with new words in unused rows, first those after [MASK]."""
    lines = list(lines)
    assert not set(words) & set(lines)
    free = [i for i, token in enumerate(lines) if token.startswith("[unused")]
    free = [i for i in free if i > lines.index("[MASK]")] + [i for i in free if i < lines.index("[MASK]")]
    for word, i in zip(words, free, strict=False):
        lines[i] = word
    return lines


def vocabulary() -> list[str]:
    """Return the lines of vocab.txt: those of `scenes`, with new words in unused rows."""
    return with_words(captions.vocabulary(), NEW_WORDS)


def number_of_scenes(settings: dict, split: str) -> int:
    """Return the number of scenes of a split."""
    return settings["num_" + {"refer_val": "val", "refer_testA": "test", "refer_testB": "test"}.get(split, split)]


def draw_split(split: str, settings: dict, first_id: int) -> list[CorpusScene]:
    """Sample all scenes of a split; their image ids count from `first_id`."""
    scenes = []
    for i in tqdm(range(number_of_scenes(settings, split)), f"generating {split}", unit=" scenes", mininterval=1):
        seed = (settings["seed"], STREAM + SPLITS.index(split), i)
        scene, outlines = draw_crowded(np.random.default_rng(seed), TEST_GROUPS.get(split, ""))
        scenes.append(CorpusScene(split, i, first_id + i, scene, outlines, seed))
    return scenes


def _write_images(root: pathlib.Path, scenes: list[CorpusScene]) -> None:
    by_folder: dict[str, list[CorpusScene]] = {folder: [] for folder in ("train2014", "val2014", "test2015")}
    for one in scenes:
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
    """Write the corpus; the same settings give the same bytes.

    Args:
      folder: an existing empty folder; `scenes_downstream.json` is written last.
      settings: seed, num_train, num_val, num_test (scenes), and feature_width, the width of
        synthetic region features for VQA (0 = no features).
    """
    width = settings["feature_width"]
    directions = None
    if width:
        directions = np.random.default_rng([settings["seed"], 4]).normal(0, 1, (len(world.CLASS_NAMES), width))
    scenes: list[CorpusScene] = []
    for split in SPLITS:
        scenes += draw_split(split, settings, 1 + len(scenes))
    _write_images(folder / "coco", scenes)
    write_vqa(folder / "coco", scenes, directions)
    write_refcoco(folder / "coco", scenes)
    write_vcr(folder / "vcr", scenes)
    for name, lines in (
        ("vocab.txt", vocabulary()),
        ("answers_vqa.txt", answer_vocabulary()),
        ("categories.txt", glyphs.CATEGORIES),
    ):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "scenes_downstream.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
