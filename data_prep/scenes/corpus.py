"""The embedded corpus `scenes`: a drawn world in the file formats of the public downloads.

Source: drawn here by a seed, no download, no license. The folder gets what Conceptual Captions and the text
corpora have, so the real builders read it:

    train_frcnn.json  train_image.zip  train_frcnn.zip   one to three things in a place, the caption that
    val_frcnn.json    val_image.zip    val_frcnn.zip     names them, a detector's boxes and class scores
    train.doc  val.doc                                   stories about the same world, a sentence a line
    vocab.txt                                            WordPiece vocabulary in BERT's layout, 256 entries
    objects_vocab.txt                                    names of the detector's classes from 1 on
    scenes.json                                          what it was drawn with

What can be learned is known. Colors are uniform and independent: language alone guesses one in eight.
Things of a scene differ in category, so "the [MASK] ball" has one answer, and it is in the image. Categories
lean towards the place. There is no left and right, as pre-training flips images and not words; and always
"the", as "an" would give orange away.
"""

from __future__ import annotations

import base64
import json
import pathlib
import zipfile

import numpy as np
from tqdm import tqdm

from data_prep.scenes import glyphs
from data_prep.scenes.captions import vocabulary, write_story
from data_prep.scenes.painting import draw_scene
from data_prep.scenes.world import CLASS_NAMES, COLORS, Scene

VERSION = 2  # of the drawing; another number makes other scenes


def jitter(box, width, height, rng) -> np.ndarray:
    """A detector's idea of the box: float32 [4] with an IoU of 0.75 to 0.95."""
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
    """What a detector would say: boxes float32 [n, 4] and class scores float32 [n, 81] that sum to 1.

    The true class has 0.6 to 0.95, the rest goes mostly to the same category in another color or the same
    color of another category. One image in five has one more box, on the ground, mostly background.
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


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode("ascii")


def detector_json(scene: Scene, image_id: int, rng: np.random.Generator, directions: np.ndarray | None = None) -> dict:
    """The per-image file of the public download. `directions` [81, width] adds made-up region features."""
    boxes, scores = detect(scene, rng)
    record = dict(
        image_id=image_id,
        image_w=scene.width,
        image_h=scene.height,
        num_boxes=len(boxes),
        boxes=_base64(boxes),
        classes=_base64(scores),
    )
    if directions is not None:
        noise = rng.normal(0, 0.3, (len(boxes), directions.shape[1]))
        record["features"] = _base64(directions[scores.argmax(1)] + noise)
    return record


def _write_images(folder: pathlib.Path, split: str, seed: int, number: int, directions) -> None:
    def entry(name):  # a fixed date, so that the bytes depend on the seed alone
        return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))

    with (
        zipfile.ZipFile(folder / f"{split}_image.zip", "w") as images,
        zipfile.ZipFile(folder / f"{split}_frcnn.zip", "w") as detections,
        open(folder / f"{split}_frcnn.json", "w", encoding="utf-8") as index,
    ):
        for i in tqdm(range(number), f"drawing {split}", unit=" scenes", mininterval=1):
            rng = np.random.default_rng([seed, ("train", "val").index(split), i])
            scene = draw_scene(rng)
            images.writestr(entry(f"{i:08d}.jpg"), scene.jpeg)
            detections.writestr(entry(f"{i:08d}.json"), json.dumps(detector_json(scene, i, rng, directions)))
            line = dict(
                image=f"{split}_image.zip@/{i:08d}.jpg",
                caption=scene.caption,
                frcnn=f"{split}_frcnn.zip@/{i:08d}.json",
            )
            index.write(json.dumps(line) + "\n")


def write_corpus(folder: pathlib.Path, settings: dict) -> None:
    """Draws the corpus into an existing empty folder; `scenes.json` is written last.

    `settings`: seed, num_train, num_val (scenes), num_train_stories, num_val_stories, feature_width (0 = no
    region features). The same settings give the same bytes.
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
