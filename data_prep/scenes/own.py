"""Examples about synthetic scenes in the form of user-supplied data: a JSON object per line.

    label/     {"id", "image", "text": "What color is the ball?", "label": "red"}
    labels/    {"id", "image", "text": "", "labels": ["blue", "red"]}             colors of all things
    value/     {"id", "image", "text": "How many things are there?", "value": 3}
    pair/      {"id", "images": [2], "text": "The left image shows a red ball.", "label": "True"}
    answer/    {"id", "image", "question", "answers": ["red"]}
    choice/    {"id", "image", "text": "What is above the box?", "choices": [4], "label": 2}
    region/    {"id", "image", "text": "the red ball", "boxes": [[x1, y1, x2, y2], ...], "label": 1}
    box/       {"id", "image", "text": "the red ball", "box": [x1, y1, x2, y2]}
    texts/     {"id", "image", "texts": [5]}                                      captions

Each folder has train.jsonl, val.jsonl and test.jsonl, and a link `images` to the images."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from data_prep.scenes import glyphs, world
from data_prep.scenes.crowded import CorpusScene, describe
from data_prep.scenes.flickr30k import captions
from data_prep.scenes.statements import SPLITS as PAIR_SPLITS
from data_prep.scenes.vqa import ask

TASK = 12  # number of the first random stream
SPLITS = ("train", "val", "test")
Fields = dict[str, object]


def _label(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    for i in rng.permutation(len(one.scene.things))[:2]:
        thing = one.scene.things[i]
        if name := describe(thing, one.scene.things, rng, thing.color):
            yield dict(text=f"What color is {name}?", label=thing.color)


def _labels(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    yield dict(text="", labels=sorted({thing.color for thing in one.scene.things}))


def _value(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    yield dict(text="How many things are there?", value=len(one.scene.things))


def _answer(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    for _, _, question, answer, _ in ask(one.scene, rng)[:3]:
        yield dict(question=question, answers=[answer])


def _choice(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    for i in rng.permutation(len(one.scene.things))[:2]:
        thing = one.scene.things[i]
        field, all_of, text = (
            ("category", glyphs.CATEGORIES, "What is {}?"), ("color", world.COLORS, "What color is {}?")
        )[rng.integers(2)]  # fmt: skip
        right = getattr(thing, field)
        if name := describe(thing, one.scene.things, rng, right):
            wrong = rng.choice([word for word in all_of if word != right], 3, replace=False)
            choices = [str(word) for word in rng.permutation([right, *wrong])]
            yield dict(text=text.format(name), choices=choices, label=choices.index(right))


def _region(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    boxes = [list(thing.box) for thing in one.scene.things]
    for i in (int(i) for i in rng.permutation(len(boxes))[:2]):
        if name := describe(one.scene.things[i], one.scene.things, rng):
            yield dict(text=name, boxes=boxes, label=i)


def _box(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    for fields in _region(one, rng):
        yield dict(text=fields["text"], box=fields["boxes"][fields["label"]])  # pyright: ignore[reportIndexIssue]


def _texts(one: CorpusScene, rng: np.random.Generator) -> Iterator[Fields]:
    yield dict(texts=captions(one))


KINDS: dict[str, Callable[[CorpusScene, np.random.Generator], Iterator[Fields]]] = dict(
    label=_label, labels=_labels, value=_value, answer=_answer, choice=_choice, region=_region, box=_box, texts=_texts
)


def write_own(root: pathlib.Path, scenes: list[CorpusScene], images: pathlib.Path, nlvr2: pathlib.Path) -> None:
    """Write a folder for each kind.

    Args:
      root: parent of the folders.
      scenes: the scenes of all splits.
      images: folder of the images.
      nlvr2: folder that `write_nlvr2` wrote.
    """
    for number, (name, examples) in enumerate(KINDS.items()):
        for split in SPLITS:
            lines: list[Fields] = []
            for one in scenes:
                if one.split == split:
                    found = examples(one, one.rng(TASK + number))
                    lines += [dict(image=f"images/{one.image_id}.jpg", **fields) for fields in found]
            _write(root / name, split, lines, images)
    for split, public in PAIR_SPLITS.items():
        with open(nlvr2 / "data" / f"{public}.json", encoding="utf-8") as statements:
            _write(root / "pair", split, [_pair(json.loads(line)) for line in statements], nlvr2 / "images")


def _pair(line: dict) -> Fields:
    pair = line["identifier"].rpartition("-")[0]
    folder = f"{pair.partition('-')[0]}/{line['directory']}" if "directory" in line else pair.partition("-")[0]
    images = [f"images/{folder}/{pair}-img{side}.png" for side in range(2)]
    return dict(images=images, text=line["sentence"], label=line["label"])


def _write(folder: pathlib.Path, split: str, lines: list[Fields], images: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "images"
    if not link.exists():
        link.symlink_to(os.path.relpath(images, folder), target_is_directory=True)
    text = "".join(json.dumps(dict(id=f"{split}{i}", **fields)) + "\n" for i, fields in enumerate(lines))
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
