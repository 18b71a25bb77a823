"""Provide small tables of images and their texts, and the shipped recipes of retrieval and captioning on them."""

from __future__ import annotations

import io
import pathlib

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from configs import vqa
from data_prep.builder import OrderedBuilder, array_feature, class_features, image_features, oriented, region_feature
from data_prep.tables import run_builder
from tests.helpers.tiny_recipes import shrink

COLORS = dict(red=(230, 30, 30), green=(30, 200, 60), blue=(40, 60, 230), white=(250, 250, 250), black=(5, 5, 5))
WORDS = ("a", "square", "on", "the", "left", "right", *COLORS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = len(SPECIAL) + len(WORDS)


def images_of(split: str, number: int):
    """Yield (number, size, two colors): the squares on the left and the right of each image of a split."""
    pairs = [(a, b) for a in COLORS for b in COLORS]
    first = dict(train=0, val=number)[split]
    for i in range(first, first + number):
        yield i, (48, 32) if i % 3 else (32, 48), pairs[i % len(pairs)]


def texts_of(colors: tuple[str, str], number: int) -> list[str]:
    """Return the texts of an image, one to three; no other image has one of them."""
    left, right = colors
    texts = [f"a {left} square on the left, {right}", f"{right} on the right, {left}", f"a {left} square, a {right}"]
    return texts[: 1 + number % 3]


class Images(OrderedBuilder, skip_registration=True):
    """The images of both splits, with the boxes of two squares, of which the features are the colors."""

    name = "retrieval_images"

    def __init__(self, data_dir, number: int, classes: bool):
        self.number, self.classes = number, classes
        super().__init__("squares", data_dir, "squares", {})

    def record_features(self):
        return image_features() | class_features(self.classes) | dict(
            boxes=array_feature(None, 4), features=region_feature(True), image_feature=array_feature(None)
        )  # fmt: skip

    def inputs(self):
        return []

    def records(self):
        for split in ("train", "val"):
            for number, (width, height), colors in images_of(split, self.number):
                pixels = np.full((height, width, 3), 128, np.uint8)
                boxes = np.array([[4, 8, 14, 18], [width - 16, 8, width - 6, 18]], np.float32)
                for color, (x1, y1, x2, y2) in zip(colors, boxes.astype(int), strict=True):
                    pixels[y1:y2, x1:x2] = COLORS[color]
                file = io.BytesIO()
                PIL.Image.fromarray(pixels).save(file, "PNG")
                kept = 1 + (number % 4 > 0)
                features = np.array([COLORS[color] for color in colors], np.float32) / 100 - 1
                of_detector = dict(
                    best_class=np.array([1 + list(COLORS).index(color) for color in colors[:kept]], np.int32),
                    best_score=np.array([0.9, 0.1], np.float32)[:kept],
                )
                yield "images", (of_detector if self.classes else {}) | dict(
                    index=number, image_id=f"{number}.png", image=file.getvalue(),
                    image_size=np.array([width, height], np.int32), boxes=boxes[:kept], features=features[:kept],
                    image_feature=np.zeros(0, np.float32),
                )  # fmt: skip


class Texts(OrderedBuilder, skip_registration=True):
    """The texts of the images, one in a record."""

    name = "retrieval"

    def __init__(self, data_dir, number: int):
        self.number = number
        super().__init__("squares", data_dir, "squares", {})

    def record_features(self):
        f = tfds.features
        return dict(
            index=f.Scalar(np.int64), example_id=f.Text(), image_number=f.Scalar(np.int64), extra=f.Text(),
            text=f.Text(), text_id=f.Scalar(np.int64),
        )  # fmt: skip

    def inputs(self):
        return []

    def records(self):
        for split in ("train", "val"):
            for number, size, colors in images_of(split, self.number):
                for place, text in enumerate(texts_of(colors, number)):
                    yield oriented(split, *size), dict(
                        index=3 * number + place, example_id=str(1000 + number), image_number=number,
                        extra='{"place": "shelf"}' if place == 0 else "",
                        text=text, text_id=3 * number + place,
                    )  # fmt: skip


def build_tables(folder: pathlib.Path, number: int = 8, classes: bool = False) -> pathlib.Path:
    """Write the tables of `number` images in each split, and their vocabulary, to a folder; return it.

    With `classes` the class of a region is the number of its color, from 1.
    """
    for builder in (Images(folder, number, classes), Texts(folder, number)):
        run_builder(builder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *WORDS)))
    return folder


def shrunk(config, data_dir, **fields):
    """Set tiny sizes in a shipped recipe on these tables."""
    shrink(config, vqa.demo(), data_dir, num_layers=1, names=())
    config.model.encoder.vocab_size, config.model.feature_size = VOCAB_SIZE, 3
    config.data.update(
        dict(
            texts="retrieval/squares", images="retrieval_images/squares", vocab="vocab.txt",
            train_split="train", max_regions=2, text_length=10, sequence_length=13,
        )
    )  # fmt: skip
    config.batch_size, config.init.scratch = 4, True
    config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps = 1, 0, 0
    config.update_from_flattened_dict(fields)
    return config
