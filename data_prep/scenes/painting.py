"""Images of scenes: the positions of the things, and drawing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data_prep.scenes import glyphs
from data_prep.scenes.captions import write_caption
from data_prep.scenes.world import COLORS, PLACES, Scene, Thing, category_weights, sample_size


def _place_boxes(sizes, width, height, rng) -> list[tuple[int, int, int, int]] | None:
    """Sample boxes of sizes (w, h) with margins between them; None if they do not fit by chance."""
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


def draw_scene(rng: np.random.Generator) -> Scene:
    """Sample and draw a scene of one to three things that differ in category."""
    size = sample_size(rng)
    place = tuple(PLACES)[rng.integers(len(PLACES))]
    number = int(rng.integers(1, 4))
    categories = rng.choice(glyphs.CATEGORIES, number, replace=False, p=category_weights(place))
    colors = rng.choice(COLORS, number)
    return compose(size, place, colors, categories, rng)[0]


def compose(
    size: tuple[int, int], place: str, colors: Sequence[str], categories: Sequence[str], rng: np.random.Generator
) -> tuple[Scene, list[np.ndarray]]:
    """Draw things at random positions of a place.

    Args:
      size: (width, height) in pixels.
      place: a key of `PLACES`.
      colors: color of each thing.
      categories: category of each thing.
      rng: source of randomness.

    Returns:
      The scene, and the masks of the things in their boxes, each float32 [h, w, 2].
    """
    width, height = size
    patterns = rng.choice(glyphs.PATTERNS, len(colors), p=(0.7, 0.15, 0.15))
    boxes = None
    while boxes is None:
        masks = [glyphs.thing_masks(c, int(rng.integers(26, 53)), rng) for c in categories]
        boxes = _place_boxes([m.shape[1::-1] for m in masks], width, height, rng)
    things = tuple(
        Thing(str(color), str(category), str(pattern), box)
        for color, category, pattern, box in zip(colors, categories, patterns, boxes, strict=True)
    )
    canvas = glyphs.draw_ground(place, width, height, rng)
    for thing, mask in zip(things, masks, strict=True):
        glyphs.draw_thing(canvas, mask, *thing.box[:2], thing.color, thing.pattern, place)
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 7))
    pixels = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))]
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    return Scene(width, height, place, things, write_caption(things, place, rng), jpeg), masks
