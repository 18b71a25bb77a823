"""The embedded corpus `scenes`: a drawn world in the file formats of the public downloads.

Source: drawn here by a seed, no download, no licence. The folder gets what Conceptual Captions and the text
corpora have, so the real builders read it:

    train_frcnn.json  train_image.zip  train_frcnn.zip   one to three things in a place, the caption that
    val_frcnn.json    val_image.zip    val_frcnn.zip     names them, a detector's boxes and class scores
    train.doc  val.doc                                   stories about the same world, a sentence a line
    vocab.txt                                            WordPiece vocabulary in BERT's layout, 256 entries
    objects_vocab.txt                                    names of the detector's classes from 1 on
    scenes.json                                          what it was drawn with

What can be learned is known. Colours are uniform and independent: language alone guesses one in eight.
Things of a scene differ in category, so "the [MASK] ball" has one answer, and it is in the image. Categories
lean towards the place. There is no left and right, as pre-training flips images and not words; and always
"the", as "an" would give orange away.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
import string
import zipfile
from collections.abc import Sequence

import cv2
import numpy as np
from tqdm import tqdm

from data_prep import glyphs
from data_prep.glyphs import CATEGORIES

VERSION = 2  # of the drawing; another number makes other scenes
COLOURS = tuple(glyphs.COLOURS)
# The detector's classes: a pair of colour and category each, so that a region's target tells both.
CLASS_NAMES = ("background", *(f"{colour} {category}" for colour in COLOURS for category in CATEGORIES))
PLACES = {  # how a caption names it, and the two categories seen there twice as often as another
    "grass": ("on the grass", ("tree", "flower")),
    "beach": ("on the beach", ("ball", "fish")),
    "snow": ("in the snow", ("house", "cup")),
    "night": ("at night", ("moon", "star")),
    "road": ("on the road", ("car", "box")),
}
FAVOURITE_WEIGHT = 2.0
PLACE_NAMED = 0.7  # share of captions
SMALL, LARGE = 33, 44  # pixels of the longer side; below is small, above is large
MAX_CAPTION_WORDS = 16
VOCAB_SIZE = 256

# Each line has 8 to 30 words with {a}, {b} being "the red ball" and {p} the place.
OPENINGS = (
    "once {a} and {b} were together {p} .",
    "{p} we see {a} and not far from it {b} .",
    "this is a story of {a} and {b} {p} .",
)
SENTENCES = (
    "{a} is above {b} and stays there .",
    "{a} is below {b} but nobody sees it .",
    "then {a} moves to {b} and stops beside it .",
    "{a} is large but {b} is small .",
    "{a} looks at {b} and likes it very much .",
    "a child sees {a} and takes it to {b} .",
    "now {a} and {b} are beside each other {p} .",
    "{a} was far from {b} but now it is near .",
    "the child likes {a} more than {b} and says so .",
    "{a} is striped , {b} is dotted , and both are old .",
    "in the end {a} and {b} go home {p} .",
)


@dataclasses.dataclass(frozen=True)
class Thing:
    colour: str
    category: str
    pattern: str
    box: tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels

    @property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def extent(self) -> int:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def class_id(self) -> int:
        return 1 + COLOURS.index(self.colour) * len(CATEGORIES) + CATEGORIES.index(self.category)


@dataclasses.dataclass(frozen=True)
class Scene:
    width: int
    height: int
    place: str
    things: tuple[Thing, ...]
    caption: tuple[str, ...]
    jpeg: bytes


def category_weights(place: str) -> np.ndarray:
    """Float [10], sums to 1: how often each category is drawn first in that place."""
    weights = np.array([FAVOURITE_WEIGHT if c in PLACES[place][1] else 1.0 for c in CATEGORIES])
    return weights / weights.sum()


def _place_boxes(sizes, width, height, rng) -> list[tuple[int, int, int, int]] | None:
    """Boxes of those (w, h) that do not overlap and keep a margin; None if they do not fit by chance."""
    boxes = []
    for w, h in sizes:
        for _ in range(30):
            x, y = int(rng.integers(2, width - w - 1)), int(rng.integers(2, height - h - 1))
            if all(x > b[2] or x + w < b[0] or y > b[3] or y + h < b[1] for b in boxes):
                boxes.append((x, y, x + w, y + h))
                break
        else:
            return None
    return boxes


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): sides are 96 to 144 pixels, at most 4:3; six in ten are landscape."""
    short = int(rng.integers(96, 121))
    long = int(min(144, round(short * rng.uniform(1.02, 4 / 3)), short * 4 // 3))
    return (long, short) if rng.random() < 0.6 else (short, long)


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws one scene of one to three things that differ in category."""
    size = draw_size(rng)
    place = tuple(PLACES)[rng.integers(len(PLACES))]
    number = int(rng.integers(1, 4))
    categories = rng.choice(CATEGORIES, number, replace=False, p=category_weights(place))
    colours = rng.choice(COLOURS, number)
    return compose(size, place, colours, categories, rng)[0]


def compose(
    size: tuple[int, int], place: str, colours: Sequence[str], categories: Sequence[str], rng: np.random.Generator
) -> tuple[Scene, list[np.ndarray]]:
    """Paints these things somewhere in that place: the scene, and the masks float32 [h, w, 2] in their boxes."""
    width, height = size
    patterns = rng.choice(glyphs.PATTERNS, len(colours), p=(0.7, 0.15, 0.15))
    boxes = None
    while boxes is None:
        masks = [glyphs.thing_masks(c, int(rng.integers(26, 53)), rng) for c in categories]
        boxes = _place_boxes([m.shape[1::-1] for m in masks], width, height, rng)
    things = tuple(
        Thing(str(colour), str(category), str(pattern), box)
        for colour, category, pattern, box in zip(colours, categories, patterns, boxes, strict=True)
    )
    canvas = glyphs.draw_ground(place, width, height, rng)
    for thing, mask in zip(things, masks, strict=True):
        glyphs.draw_thing(canvas, mask, *thing.box[:2], thing.colour, thing.pattern, place)
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 7))
    pixels = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))]
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    return Scene(width, height, place, things, write_caption(things, place, rng), jpeg), masks


def relation(a: Thing, b: Thing) -> str:
    """above, below or beside, true of `a` and `b` in this order, also in the mirror; "" where none is clear."""
    (ax, ay), (bx, by) = a.centre, b.centre
    across, down = abs(bx - ax), by - ay
    if abs(down) > max(across, 20):
        return "above" if down > 0 else "below"
    return "beside" if across > 1.5 * abs(down) else ""


def write_caption(things: tuple[Thing, ...], place: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Names every thing once, in random order, each related to the one before; at most 16 words."""
    order = [things[i] for i in rng.permutation(len(things))]
    words, extras = [], []
    for i, thing in enumerate(order):
        if i:
            clear = rng.random() >= 0.3
            words.append(clear and relation(order[i - 1], thing) or "and")
        words.append("the")
        if rng.random() < 0.2 and not SMALL <= thing.extent <= LARGE:
            extras.append(len(words))
            words.append("small" if thing.extent < SMALL else "large")
        if rng.random() < 0.5 and thing.pattern != "plain":
            extras.append(len(words))
            words.append(thing.pattern)
        words += [thing.colour, thing.category]
    if rng.random() < PLACE_NAMED:
        words += PLACES[place][0].split()
    for i in reversed(extras[: max(0, len(words) - MAX_CAPTION_WORDS)]):
        del words[i]
    return tuple(words)


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

    The true class has 0.6 to 0.95, the rest goes mostly to the same category in another colour or the same
    colour of another category. One image in five has one more box, on the ground, mostly background.
    """
    everything = np.arange(len(CLASS_NAMES))
    boxes, scores = [], []
    for thing in scene.things:
        row = np.zeros(len(CLASS_NAMES))
        colour, category = divmod(thing.class_id - 1, len(CATEGORIES))
        row[thing.class_id] = rng.uniform(0.6, 0.95)
        rest = 1 - row[thing.class_id]
        _spread(0.45 * rest, 1 + np.arange(len(COLOURS)) * len(CATEGORIES) + category, row, rng)
        _spread(0.45 * rest, 1 + colour * len(CATEGORIES) + np.arange(len(CATEGORIES)), row, rng)
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


def detector_json(
    scene: Scene, image_id: int, rng: np.random.Generator, directions: np.ndarray | None = None
) -> dict:
    """The per-image file of the public download. `directions` [81, width] adds made-up region features."""
    boxes, scores = detect(scene, rng)
    record = dict(
        image_id=image_id, image_w=scene.width, image_h=scene.height, num_boxes=len(boxes),
        boxes=_base64(boxes), classes=_base64(scores),
    )
    if directions is not None:
        noise = rng.normal(0, 0.3, (len(boxes), directions.shape[1]))
        record["features"] = _base64(directions[scores.argmax(1)] + noise)
    return record


def write_story(rng: np.random.Generator) -> list[str]:
    """A document: 3 to 5 lines of 8 to 30 words about two or three things that keep their colours."""
    place = tuple(PLACES)[rng.integers(len(PLACES))]
    categories = rng.choice(CATEGORIES, int(rng.integers(2, 4)), replace=False, p=category_weights(place))
    names = [f"the {rng.choice(COLOURS)} {category}" for category in categories]
    lines = [str(rng.choice(OPENINGS)), *rng.choice(SENTENCES, int(rng.integers(2, 5)), replace=False)]
    story = []
    for line in lines:
        a, b = rng.permutation(names)[:2]
        story.append(str(line).format(a=a, b=b, p=PLACES[place][0]))
    return story


def vocabulary() -> list[str]:
    """Lines of vocab.txt: special ids as in BERT, punctuation, words of the world, letters, unused ones."""
    sentences = [*OPENINGS, *SENTENCES, *(name for name, _ in PLACES.values()), *COLOURS, *CATEGORIES]
    text = " ".join([*sentences, "small large striped dotted plain and above below beside"])
    words = dict.fromkeys(w for w in text.split() if w.isalpha() and len(w) > 1)
    head = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    body = [*".,'-!?", *words, *letters, *("##" + letter for letter in letters)]
    unused = [f"[unused{99 + i}]" for i in range(VOCAB_SIZE - len(head) - len(body))]
    return head + body + unused


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
