"""The synthetic corpus `scene_questions` of pre-training: captions and questions, with attributes of regions.

Source: generated here from a seed; no download, no license. Its scenes (crowded.py) are in no other
corpus. The folder has the files of Conceptual Captions, which `RegionCaptions` reads with attributes
and answers:

    train_frcnn.json  train_image.zip  train_frcnn.zip   a line per caption or question; an image has
    val_frcnn.json    val_image.zip    val_frcnn.zip     one caption and QUESTIONS questions (vqa.py)
    answers.json                                         the list of the answers
    attributes_vocab.txt                                 names of the attributes from 1 on
    objects_vocab.txt  vocab.txt                         those of the other corpora of scenes
    scene_questions.json                                 the settings

The attribute of a thing is its pattern; the simulated detector gives it 0.6 to 0.95, and the ground
mostly "no attribute". The score of an answer is 0.3 for each annotator, at most 1."""

from __future__ import annotations

import collections
import json
import pathlib

import numpy as np
from tqdm import tqdm

from data_prep.scenes import downstream, vqa
from data_prep.scenes.captions import write_caption
from data_prep.scenes.corpus import caption_files, detector_json
from data_prep.scenes.crowded import draw_crowded
from data_prep.scenes.world import CLASS_NAMES, Scene
from vlbert_jax.data.region_files import encode_floats

VERSION = 1  # version of the generator; it changes with the scenes
STREAM = 30  # the seeds are [seed, 30 or 31, number]; those of the other corpora are below
SPLITS = ("train", "val")
ATTRIBUTES = ("plain", "striped", "dotted")
CAPTIONED = 3  # things that a caption names
QUESTIONS = 3  # per image


def answers() -> list[str]:
    """Return all answers of annotators; none of them is unknown."""
    return [answer for answer in (*vqa.answer_vocabulary(), *vqa.UNLISTED) if answer != "<unk>"]


def attribute_scores(scene: Scene, regions: int, rng: np.random.Generator) -> np.ndarray:
    """Return the scores of a simulated detector, float32 [regions, 4]; column 0 is "no attribute".

    The first regions are the things of the scene, in its order; a further one is ground.
    """
    rows = []
    for number in range(regions):
        thing = scene.things[number] if number < len(scene.things) else None
        right = 1 + ATTRIBUTES.index(thing.pattern) if thing else 0
        row = np.zeros(1 + len(ATTRIBUTES))
        row[right] = rng.uniform(0.6, 0.95)
        row += (1 - row[right]) * rng.dirichlet(np.full(len(row), 0.5))
        rows.append(row)
    return np.stack(rows).astype(np.float32)


def texts_of(scene: Scene, rng: np.random.Generator) -> list[dict]:
    """Return the fields of the lines of an image: `caption`, and `answers` of a question."""
    things = tuple(scene.things[i] for i in rng.permutation(len(scene.things))[:CAPTIONED])
    lines = [dict(caption=write_caption(things, scene.place, rng))]
    for _, _, question, answer, _ in vqa.ask(scene, rng)[:QUESTIONS]:
        given = collections.Counter(one["answer"] for one in vqa.annotate(answer, rng))
        scores = {text: min(1.0, round(0.3 * count, 1)) for text, count in given.items()}
        lines.append(dict(caption=question.lower().replace("?", " ?").split(), answers=scores))
    return lines


def write_question_corpus(folder: pathlib.Path, settings: dict) -> None:
    """Write the corpus; the same settings give the same bytes.

    Args:
      folder: an existing empty folder; `scene_questions.json` is written last.
      settings: seed, num_train, num_val (scenes), and feature_width, the width of synthetic region
        features (0 = no features).
    """
    seed, width = settings["seed"], settings["feature_width"]
    directions = np.random.default_rng([seed, 4]).normal(0, 1, (len(CLASS_NAMES), width)) if width else None
    for stream, split in enumerate(SPLITS):
        _write_split(folder, split, settings[f"num_{split}"], (seed, STREAM + stream), directions)
    (folder / "answers.json").write_text(json.dumps(answers()) + "\n", encoding="utf-8")
    names = dict(attributes_vocab=ATTRIBUTES, objects_vocab=CLASS_NAMES[1:], vocab=downstream.vocabulary())
    for name, lines in names.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "scene_questions.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _write_split(folder: pathlib.Path, split: str, number: int, seed: tuple[int, int], directions) -> None:
    with caption_files(folder, split) as (store, index):
        for i in tqdm(range(number), f"generating {split}", unit=" scenes", mininterval=1):
            rng = np.random.default_rng([*seed, i])
            scene, _ = draw_crowded(rng)
            regions = detector_json(scene, i, rng, directions)
            regions["attrs"] = encode_floats(attribute_scores(scene, regions["num_boxes"], rng))
            image, found = store(i, scene.jpeg, regions)
            index.writelines(json.dumps(dict(image=image, frcnn=found) | line) + "\n" for line in texts_of(scene, rng))
