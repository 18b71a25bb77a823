"""Scenes for the synthetic downstream tasks: two to four things that share categories or colors.

A scene of pre-training (painting.py) has one thing of a category, so a category word identifies it.
Here a category word often needs the color too, and a color word the category: the answers require
that words are bound to regions. No two things of a scene share both color and category.
"""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np

from data_prep.scenes import glyphs, world
from data_prep.scenes.painting import compose

GROUPS = {  # groups of categories; testA and testB of RefCOCO+ differ in the group
    "natural": ("tree", "fish", "flower", "star", "moon"),
    "made": ("ball", "box", "house", "car", "cup"),
}
NUMBERS, NUMBER_WEIGHTS = (2, 3, 4), (0.3, 0.35, 0.35)  # number of things
SAME_CATEGORY, SAME_COLOR = 0.5, 0.25  # probability that a further thing shares it with the first
SIZE_MARGIN = 8  # pixels; "small" and "large" need others that differ by this margin
_FINE = 0.6  # largest deviation of the polygon of an outline in pixels


@dataclasses.dataclass(frozen=True)
class CorpusScene:
    """A scene of the downstream corpus."""

    split: str  # train, val, test; refer_val, refer_testA, refer_testB are of RefCOCO+ only
    number: int  # number in its split, from 0
    image_id: int  # number in COCO, unique among all splits
    scene: world.Scene
    outlines: tuple[list[list[list[float]]], ...]  # per thing: polygons of [x, y] in pixels
    seed: tuple[int, ...]  # seed of the scene

    def rng(self, task: int) -> np.random.Generator:
        """Return the random stream of a task; a change of one task leaves the others unchanged."""
        return np.random.default_rng([*self.seed, task])


def outline(mask: np.ndarray, x: int, y: int) -> list[list[list[float]]]:
    """Return polygons around a thing without its holes, in pixels of the image.

    Args:
      mask: float32 [h, w], 1 inside the thing.
      x: column of the mask's corner in the image.
      y: row of the mask's corner in the image.
    """
    contours, _ = cv2.findContours((mask > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted((cv2.approxPolyDP(c, _FINE, True)[:, 0] for c in contours), key=cv2.contourArea, reverse=True)
    polygons = [c + (x, y) for i, c in enumerate(contours) if len(c) >= 3 and (i == 0 or cv2.contourArea(c) >= 4)]
    return [[[float(px), float(py)] for px, py in polygon] for polygon in polygons]


def draw_crowded(rng: np.random.Generator, group: str = "") -> tuple[world.Scene, tuple]:
    """Sample a scene; return it with the outline of each thing.

    Args:
      rng: source of randomness.
      group: group of the thing that the others resemble; empty = any.
    """
    size = world.sample_size(rng)
    place = tuple(world.PLACES)[rng.integers(len(world.PLACES))]
    weights = world.category_weights(place)
    number = rng.choice(NUMBERS, p=NUMBER_WEIGHTS)
    while True:
        lead = str(rng.choice(glyphs.CATEGORIES, p=weights))
        if not group or lead in GROUPS[group]:
            break
    pairs = [(str(rng.choice(world.COLORS)), lead)]
    while len(pairs) < number:
        color, category = str(rng.choice(world.COLORS)), str(rng.choice(glyphs.CATEGORIES, p=weights))
        resemblance = rng.random()
        if resemblance < SAME_CATEGORY:
            category = lead
        elif resemblance < SAME_CATEGORY + SAME_COLOR:
            color = pairs[0][0]
        if (color, category) not in pairs:
            pairs.append((color, category))
    # The order of the things must not carry information.
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    scene, masks = compose(size, place, *zip(*pairs, strict=True), rng)  # pyright: ignore[reportCallIssue]
    outlines = (outline(mask[..., 0], *thing.box[:2]) for thing, mask in zip(scene.things, masks, strict=True))
    return scene, tuple(outlines)


def size_word(thing: world.Thing) -> str:
    """Return "small", "large", or "" for a size between."""
    return "small" if thing.extent < world.SMALL else "large" if thing.extent > world.LARGE else ""


def fits(words: tuple[str, ...], thing: world.Thing, margin: int = 0) -> bool:
    """Return whether the words are true of a thing; `margin` extends small and large."""
    said = set(words)
    return (
        said - {"small", "large", "thing"} <= {thing.pattern, thing.color, thing.category}
        and not ("small" in said and thing.extent >= world.SMALL + margin)
        and not ("large" in said and thing.extent <= world.LARGE - margin)
    )


def descriptions(thing: world.Thing, things: tuple[world.Thing, ...], leave_out: str = "") -> list[tuple[str, ...]]:
    """Return all descriptions that fit the thing and no other.

    A description is (size, pattern, color, category or "thing") in the order of captions; all but
    the last are optional.

    Args:
      thing: the thing.
      things: all things of the scene.
      leave_out: a word that must not occur.
    """
    optional = [size_word(thing), thing.pattern if thing.pattern != "plain" else "", thing.color]
    found = []
    for chosen in itertools.product((False, True), repeat=3):
        said = tuple(word for word, use in zip(optional, chosen, strict=True) if use and word)
        for noun in (thing.category, "thing"):
            words = (*said, noun)
            if leave_out in words or (noun == "thing" and not said):
                continue
            if words not in found and not any(fits(words, t, SIZE_MARGIN) for t in things if t is not thing):
                found.append(words)
    return found


def pick(options: list[tuple[str, ...]], number: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Sample descriptions; prefer short ones, and those without a size, which the box reveals."""
    weights = np.array([0.5 ** len(words) * (0.3 if {"small", "large"} & set(words) else 1) for words in options])
    return [options[i] for i in rng.choice(len(options), number, replace=False, p=weights / weights.sum())]


def describe(thing: world.Thing, things: tuple[world.Thing, ...], rng: np.random.Generator, leave_out: str = "") -> str:
    """Return one of `descriptions` after "the", sampled by `pick`; "" if there is none."""
    found = descriptions(thing, things, leave_out)
    return " ".join(("the", *pick(found, 1, rng)[0])) if found else ""


def related(thing: world.Thing, word: str, things: tuple[world.Thing, ...]) -> world.Thing | None:
    """Return the only thing that is above, below or beside `thing`.

    The result is None if there are several, or if the relation of another thing is unclear.
    """
    others = {i: world.relation(t, thing) for i, t in enumerate(things) if t is not thing}
    there = [i for i, found in others.items() if found == word]
    return things[there[0]] if len(there) == 1 and all(others.values()) else None


def another(right: str, all_of: tuple[str, ...], scene_has: list[str], rng: np.random.Generator) -> str:
    """Return a wrong word in place of `right`, mostly one that is true of another thing.

    Args:
      right: the true word.
      all_of: all words of its kind.
      scene_has: words of its kind that are true of a thing of the scene.
      rng: source of randomness.
    """
    present = sorted({word for word in scene_has if word != right})
    if present and rng.random() < 0.6:
        return str(rng.choice(present))
    return str(rng.choice([word for word in all_of if word != right]))
