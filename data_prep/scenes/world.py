"""The synthetic world: things, their places, and scenes of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_prep.scenes import glyphs

COLORS = tuple(glyphs.COLORS)
# The detector's classes are pairs of color and category, so that a target states both.
CLASS_NAMES = ("background", *(f"{color} {category}" for color in COLORS for category in glyphs.CATEGORIES))
PLACES = {  # words of captions, and two categories that are twice as frequent there
    "grass": ("on the grass", ("tree", "flower")),
    "beach": ("on the beach", ("ball", "fish")),
    "snow": ("in the snow", ("house", "cup")),
    "night": ("at night", ("moon", "star")),
    "road": ("on the road", ("car", "box")),
}
FAVORITE_WEIGHT = 2.0
PLACE_NAMED = 0.7  # fraction of captions
SMALL, LARGE = 33, 44  # longer side in pixels: below is small, above is large


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object of a scene."""

    color: str
    category: str
    pattern: str
    box: tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels

    @property
    def center(self) -> tuple[float, float]:
        """Return x, y in pixels."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def extent(self) -> int:
        """Return the longer side in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def class_id(self) -> int:
        """Return the number of its name in `CLASS_NAMES`."""
        return 1 + COLORS.index(self.color) * len(glyphs.CATEGORIES) + glyphs.CATEGORIES.index(self.category)


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image with its objects and its caption."""

    width: int
    height: int
    place: str
    things: tuple[Thing, ...]
    caption: tuple[str, ...]
    jpeg: bytes


def category_weights(place: str) -> np.ndarray:
    """Return float [10], the probability of each category in a place."""
    weights = np.array([FAVORITE_WEIGHT if c in PLACES[place][1] else 1.0 for c in glyphs.CATEGORIES])
    return weights / weights.sum()


def sample_size(rng: np.random.Generator) -> tuple[int, int]:
    """Sample (width, height): sides of 96 to 144 pixels, at most 4:3, 60 % landscape."""
    short = int(rng.integers(96, 121))
    long = int(min(144, round(short * rng.uniform(1.02, 4 / 3)), short * 4 // 3))
    return (long, short) if rng.random() < 0.6 else (short, long)


def relation(a: Thing, b: Thing) -> str:
    """Return above, below or beside as `a` is to `b`, "" if unclear; flips do not change it."""
    (ax, ay), (bx, by) = a.center, b.center
    across, down = abs(bx - ax), by - ay
    if abs(down) > max(across, 20):
        return "above" if down > 0 else "below"
    return "beside" if across > 1.5 * abs(down) else ""
