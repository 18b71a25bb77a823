"""The synthetic corpus `scenes` of pre-training, in the file formats of the public downloads.

Source: generated here from a seed; no download, no license. The folder has the files of Conceptual
Captions and of the text corpora, so the real builders read it:

    train_frcnn.json  train_image.zip  train_frcnn.zip   scenes of one to three things in a place,
    val_frcnn.json    val_image.zip    val_frcnn.zip     captions that name them, boxes and class
                                                         scores of a simulated detector
    train.doc  val.doc                                   stories about the same world, one sentence
                                                         per line
    vocab.txt                                            WordPiece vocabulary in the layout of BERT,
                                                         256 entries
    objects_vocab.txt                                    names of the detector's classes from 1 on
    scenes.json                                          the settings

A model can learn the following. Colors are uniform and independent, so language alone guesses one
in eight. The things of a scene differ in category, so "the [MASK] ball" has one answer, and the
image shows it. Categories depend weakly on the place. There is no left and right, because
pre-training flips images but not words. The article is always "the", because "an" would reveal
"orange"."""

from __future__ import annotations

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import TextIO

import numpy as np
from tqdm import tqdm

from data_prep.scenes import glyphs
from data_prep.scenes.captions import vocabulary, write_story
from data_prep.scenes.painting import draw_scene
from data_prep.scenes.world import CLASS_NAMES, COLORS, Scene
from vlbert_jax.data.region_files import encode_floats

VERSION = 2  # version of the generator; it changes with the scenes


def jitter(box, width, height, rng) -> np.ndarray:
    """Return the box of a simulated detector: float32 [4] with an IoU of 0.75 to 0.95.

    Args:
      box: x1 y1 x2 y2 in pixels.
      width: width of the image in pixels.
      height: height of the image in pixels.
      rng: source of randomness.
    """
    x1, y1, x2, y2 = box
    while True:
        noise = rng.normal(0, 0.05, 4) * (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
        a, b, c, d = np.clip(np.array(box) + noise, 0, (width - 1, height - 1, width - 1, height - 1))
        inter = max(0, min(c, x2) - max(a, x1)) * max(0, min(d, y2) - max(b, y1))
        iou = inter / ((c - a) * (d - b) + (x2 - x1) * (y2 - y1) - inter)
        if 0.75 <= iou <= 0.95:
            return np.array((a, b, c, d), np.float32)


def _spread(total: float, columns: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> None:
    scores[columns] += total * rng.dirichlet(np.full(len(columns), 0.5))


def detect(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes, float32 [n, 4], and class scores, float32 [n, 81], of a simulated detector.

    The scores sum to 1. The true class has 0.6 to 0.95; the remaining score is mostly on the same
    category in another color and the same color of another category. One image in five has another
    box on the ground, with mostly background.
    """
    everything = np.arange(len(CLASS_NAMES))
    boxes, scores = [], []
    for thing in scene.things:
        row = np.zeros(len(CLASS_NAMES))
        color, category = divmod(thing.class_id - 1, len(glyphs.CATEGORIES))
        row[thing.class_id] = rng.uniform(0.6, 0.95)
        rest = 1 - row[thing.class_id]
        _spread(0.45 * rest, 1 + np.arange(len(COLORS)) * len(glyphs.CATEGORIES) + category, row, rng)
        _spread(0.45 * rest, 1 + color * len(glyphs.CATEGORIES) + np.arange(len(glyphs.CATEGORIES)), row, rng)
        _spread(0.10 * rest, everything, row, rng)
        boxes.append(jitter(thing.box, scene.width, scene.height, rng))
        scores.append(row)
    if rng.random() < 0.2:
        w, h = rng.integers(20, 40, 2)
        x, y = rng.uniform(0, scene.width - w - 1), rng.uniform(0, scene.height - h - 1)
        row = np.zeros(len(CLASS_NAMES))
        row[0] = rng.uniform(0.6, 0.9)
        _spread(1 - row[0], everything, row, rng)
        boxes.append(np.array((x, y, x + w, y + h), np.float32))
        scores.append(row)
    return np.stack(boxes), np.stack(scores).astype(np.float32)


def detector_json(scene: Scene, image_id: int, rng: np.random.Generator, directions: np.ndarray | None = None) -> dict:
    """Return the region file of an image in the format of the public download.

    Args:
      scene: the scene.
      image_id: number of the image.
      rng: source of randomness.
      directions: [81, width], a direction per class for synthetic region features; None = no
        features.
    """
    boxes, scores = detect(scene, rng)
    record = dict(
        image_id=image_id,
        image_w=scene.width,
        image_h=scene.height,
        num_boxes=len(boxes),
        boxes=encode_floats(boxes),
        classes=encode_floats(scores),
    )
    if directions is not None:
        noise = rng.normal(0, 0.3, (len(boxes), directions.shape[1]))
        record["features"] = encode_floats(directions[scores.argmax(1)] + noise)
    return record


@contextlib.contextmanager
def caption_files(folder: pathlib.Path, split: str) -> Iterator[tuple[Callable[..., tuple[str, str]], TextIO]]:
    """Open the files of a split in the layout of Conceptual Captions.

    Yields:
      A function (number, JPEG, regions) that stores an image and returns the paths of both in their archives, and the
      index, for a line per caption.
    """

    def entry(name):  # with a fixed date, so that the bytes depend on the seed only
        return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))

    with (
        zipfile.ZipFile(folder / f"{split}_image.zip", "w") as images,
        zipfile.ZipFile(folder / f"{split}_frcnn.zip", "w") as detections,
        open(folder / f"{split}_frcnn.json", "w", encoding="utf-8") as index,
    ):

        def store(number: int, jpeg: bytes, regions: dict) -> tuple[str, str]:
            images.writestr(entry(f"{number:08d}.jpg"), jpeg)
            detections.writestr(entry(f"{number:08d}.json"), json.dumps(regions))
            return f"{split}_image.zip@/{number:08d}.jpg", f"{split}_frcnn.zip@/{number:08d}.json"

        yield store, index


def _write_images(folder: pathlib.Path, split: str, seed: int, number: int, directions) -> None:
    with caption_files(folder, split) as (store, index):
        for i in tqdm(range(number), f"generating {split}", unit=" scenes", mininterval=1):
            rng = np.random.default_rng([seed, ("train", "val").index(split), i])
            scene = draw_scene(rng)
            image, regions = store(i, scene.jpeg, detector_json(scene, i, rng, directions))
            index.write(json.dumps(dict(image=image, caption=scene.caption, frcnn=regions)) + "\n")


def write_corpus(folder: pathlib.Path, settings: dict) -> None:
    """Write the corpus; the same settings give the same bytes.

    Args:
      folder: an existing empty folder; `scenes.json` is written last.
      settings: seed, num_train, num_val (scenes), num_train_stories, num_val_stories, and
        feature_width, the width of synthetic region features (0 = no features).
    """
    seed, width = settings["seed"], settings["feature_width"]
    directions = np.random.default_rng([seed, 4]).normal(0, 1, (len(CLASS_NAMES), width)) if width else None
    for split in ("train", "val"):
        _write_images(folder, split, seed, settings[f"num_{split}"], directions)
        rng = np.random.default_rng([seed, 2 + ("train", "val").index(split)])
        stories = (write_story(rng) for _ in range(settings[f"num_{split}_stories"]))
        text = "".join(line + "\n" for story in stories for line in story)
        (folder / f"{split}.doc").write_text(text, encoding="utf-8")
    (folder / "objects_vocab.txt").write_text("\n".join(CLASS_NAMES[1:]) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (folder / "scenes.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
