"""Pointing questions about synthetic scenes, in the file of Visual7W.

    Which ball is red?   Which thing is striped?   Which red thing is a ball?

Four boxes are to choose from: things of the scene and, if it has fewer than four, boxes on its ground.
The question is true of one of them. Without the image, a guess is right in 0.25; the shape of the
boxes (a car is wide) raises that."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from data_prep.scenes import world
from data_prep.scenes.crowded import CorpusScene, descriptions, pick

TASK = 11  # number of the random stream
CHOICES, PER_IMAGE = 4, 2


def question(words: tuple[str, ...], rng: np.random.Generator) -> str:
    """Return the question for a description (size, pattern, color, noun), of which one word is asked for."""
    *adjectives, noun = words
    asked = int(rng.integers(len(words))) if noun != "thing" else int(rng.integers(len(adjectives)))
    if asked == len(adjectives):
        return " ".join(("Which", *adjectives, f"thing is a {noun}?"))
    rest = adjectives[:asked] + adjectives[asked + 1 :]
    return " ".join(("Which", *rest, noun, f"is {adjectives[asked]}?"))


def _ground_box(scene: world.Scene, taken: list[tuple[int, ...]], rng: np.random.Generator) -> tuple[int, ...]:
    """Sample a box on the ground; after some attempts it may overlap with others."""
    for attempt in range(100):
        w, h = (int(v) for v in rng.integers(26, 53, 2))
        x, y = int(rng.integers(0, scene.width - w)), int(rng.integers(0, scene.height - h))
        margin = 0 if attempt < 50 else attempt // 4
        if all(
            x + margin >= b[2] or x + w - margin <= b[0] or y + margin >= b[3] or y + h - margin <= b[1] for b in taken
        ):
            break
    return x, y, x + w, y + h  # pyright: ignore[reportPossiblyUnboundVariable]


def write_visual7w(root: pathlib.Path, scenes: list[CorpusScene]) -> None:
    """Write dataset_v7w_pointing.json; the images are those of Flickr30k.

    Args:
      root: folder of Visual7W.
      scenes: the scenes of all splits.
    """
    images, boxes, qa_id = [], [], 1
    for one in scenes:
        rng, scene = one.rng(TASK), one.scene
        corners: list[tuple[int, ...]] = [thing.box for thing in scene.things]
        while len(corners) < CHOICES:
            corners.append(_ground_box(scene, corners, rng))
        ids = [CHOICES * one.image_id + int(i) for i in rng.permutation(CHOICES)]
        names = [*(thing.category for thing in scene.things), *["ground"] * CHOICES][:CHOICES]
        for box_id, name, (x1, y1, x2, y2) in sorted(zip(ids, names, corners, strict=True)):
            size = dict(height=y2 - y1, width=x2 - x1, x=x1, y=y1)
            boxes.append(dict(box_id=box_id, name=name, **size, image_id=one.image_id))
        pairs = []
        for i in (int(i) for i in rng.permutation(len(scene.things))[:PER_IMAGE]):
            if found := descriptions(scene.things[i], scene.things):
                text = question(pick(found, 1, rng)[0], rng)
                others = sorted(set(ids) - {ids[i]})
                ask = dict(qa_id=qa_id, image_id=one.image_id, type="which", question=text)
                pairs.append(ask | dict(answer=ids[i], multiple_choices=others))
                qa_id += 1
        split = dict(image_id=one.image_id, filename=f"{one.image_id}.jpg", split=one.split)
        images.append(split | dict(qa_pairs=pairs))
    root.mkdir(parents=True)
    content = dict(dataset="visual7w-pointing", images=images, boxes=boxes)
    (root / "dataset_v7w_pointing.json").write_text(json.dumps(content), encoding="utf-8")


