"""Provide a corpus of texts about one or two images in memory, and shrunk recipes of classification for it."""

from __future__ import annotations

import functools
import io
import json

import numpy as np
import PIL.Image

from configs import classify as recipes
from tests.helpers.golden_data_case import FOLDERS
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.data import tables
from vlbert_jax.tasks.classify import losses

COLORS = dict(red=(220, 30, 30), green=(30, 200, 40), blue=(40, 60, 220), white=(240, 240, 240))
WIDTH = 12  # of precomputed features


@functools.cache
def image_record(number: int) -> dict:
    """Return the image of one color; the odd ones are portrait."""
    color, size = list(COLORS.values())[number % 4], (40, 30) if number % 2 == 0 else (30, 40)
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    rng = np.random.default_rng(number)
    boxes = np.array([[2, 3, 14, 16], [5, 6, 25, 28]], np.float32)[: 1 + number % 2]
    features = rng.normal(size=(len(boxes), WIDTH)).astype(np.float32) + 3 * (number % 4)
    return dict(image=file.getvalue(), image_size=np.array(size, np.int32), boxes=boxes, features=features)


def text_record(number: int, images: int, split: str) -> dict:
    """Return a statement about one or two images; the label says whether it is true."""
    first, second = number % 4, (number // 4 + number) % 4
    words = list(COLORS)
    said, right = words[(first + number // 2) % 4], number // 2 % 4 == 0
    place = dict(image_number=first) if images == 1 else dict(image_numbers=np.array([first, second]))
    record = dict(
        text=f"the {said} one" if number % 3 else "", text2="is it left" if number % 5 == 0 else "",
        labels=["True" if right else "False"], values=np.array([number / 4, -1.0], np.float32), known=split != "test",
        example_id=f"{split}-{number}", extra=json.dumps(dict(note=number)) if number % 2 else "",
    )  # fmt: skip
    record |= dict(index=number)
    return place | record | ({} if record["known"] else dict(labels=[], values=np.zeros(0, np.float32)))


SIZES = dict(train=12, val=7, test=3)


def use_corpus(monkeypatch, images: int) -> None:
    """Let the tables of `classify/tiny` be these lists; the texts of landscape images come first."""

    def open_split(data_dir, name, split, optional=False):
        if name == "images":
            return [image_record(number) for number in range(4)]
        split, _, orientation = split.partition("_")
        if split not in SIZES:
            raise ValueError(f"no split {split!r}")
        records = [text_record(number, images, split) for number in range(SIZES[split])]
        return [r for k, r in enumerate(records) if (k % 2 == 0) == (orientation == "landscape")]

    monkeypatch.setattr(tables, "open_split", open_split)
    monkeypatch.setattr(losses, "open_split", open_split)
    losses._label_counts.cache_clear()


def tiny(images: int = 2, **fields):
    """Return the demo with tiny sizes for the corpus; `fields` are by dotted name."""
    config, vocab = recipes.demo_pairs(), FOLDERS["common"] / "vocab.txt"
    shrink(config, recipes.demo_pairs(), "", num_layers=1, names=["sequence_length", "max_regions"])
    config.model.encoder.vocab_size = len(vocab.read_text("utf-8").splitlines())
    config.model.feature_size = WIDTH
    config.batch_size = 4
    config.init.scratch = True
    config.data.update(dict(embedded="", texts="texts", images="images", vocab=str(vocab), max_regions=3))
    config.data.update(dict(images_per_example=images, sequence_length=24, remember_records=0))
    config.data.update(dict(eval_split="val", scorer=""))
    config.update_from_flattened_dict(fields)
    return config
