"""Drawing of the things and places: ten glyphs, eight colors, five backgrounds."""

from __future__ import annotations

import functools

import cv2
import numpy as np

# RGB; no two colors are similar, and none is similar to a background.
COLORS = {
    "red": (214, 36, 40),
    "green": (34, 164, 52),
    "blue": (44, 84, 226),
    "yellow": (246, 222, 40),
    "purple": (150, 44, 178),
    "orange": (246, 132, 20),
    "white": (246, 246, 246),
    "black": (24, 24, 26),
}
CATEGORIES = ("ball", "box", "tree", "house", "star", "car", "fish", "cup", "flower", "moon")
PATTERNS = ("plain", "striped", "dotted")
# Two shades of the ground and the color of its texture, grayish so that all things are visible.
PLACES = {
    "grass": ((138, 160, 122), (112, 138, 100), (92, 122, 84)),
    "beach": ((224, 208, 172), (204, 186, 150), (184, 164, 126)),
    "snow": ((218, 228, 236), (198, 210, 222), (236, 242, 248)),
    "night": ((58, 62, 92), (42, 44, 70), (128, 130, 150)),
    "road": ((150, 150, 154), (124, 124, 128), (176, 176, 172)),
}
_CANVAS = 112  # side of a glyph in pixels, before it is scaled to its size in the scene


def _polygon(mask, *points) -> None:
    corners = np.round(np.array(points) * _CANVAS * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, lineType=cv2.LINE_AA, shift=4)


def _ellipse(mask, x, y, rx, ry, value=255) -> None:
    center, radii = ([round(v * _CANVAS * 16) for v in pair] for pair in ((x, y), (rx, ry)))
    cv2.ellipse(mask, center, radii, 0, 0, 360, value, -1, lineType=cv2.LINE_AA, shift=4)


def _rectangle(mask, x1, y1, x2, y2) -> None:
    _polygon(mask, (x1, y1), (x2, y1), (x2, y2), (x1, y2))


@functools.cache
def glyph(category: str) -> np.ndarray:
    """Return masks, uint8 [_CANVAS, _CANVAS, 2]: the thing, and its parts in the second shade."""
    body, detail = np.zeros((2, _CANVAS, _CANVAS), np.uint8)
    match category:
        case "ball":
            _ellipse(body, 0.5, 0.5, 0.46, 0.46)
            _ellipse(detail, 0.5, 0.5, 0.13, 0.46)
            _ellipse(detail, 0.5, 0.5, 0.06, 0.42, 0)
        case "box":
            _rectangle(body, 0.08, 0.08, 0.92, 0.92)
            _rectangle(detail, 0.08, 0.30, 0.92, 0.36)
            _rectangle(detail, 0.44, 0.08, 0.56, 0.62)
        case "tree":
            for top, width in ((0.03, 0.24), (0.22, 0.34), (0.42, 0.44)):
                _polygon(body, (0.5, top), (0.5 + width, top + 0.38), (0.5 - width, top + 0.38))
            _rectangle(body, 0.42, 0.78, 0.58, 0.98)
            _rectangle(detail, 0.42, 0.80, 0.58, 0.98)
        case "house":
            _polygon(body, (0.5, 0.04), (0.98, 0.46), (0.02, 0.46))
            _rectangle(body, 0.12, 0.44, 0.88, 0.96)
            _rectangle(detail, 0.42, 0.62, 0.60, 0.96)
            _rectangle(detail, 0.18, 0.54, 0.34, 0.70)
        case "star":
            angles = np.pi * (np.arange(10) / 5 - 0.5)
            radii = np.where(np.arange(10) % 2, 0.21, 0.5)
            _polygon(body, *zip(0.5 + radii * np.cos(angles), 0.53 + radii * np.sin(angles), strict=True))
        case "car":
            _rectangle(body, 0.02, 0.44, 0.98, 0.74)
            _polygon(body, (0.22, 0.46), (0.34, 0.20), (0.68, 0.20), (0.82, 0.46))
            _polygon(detail, (0.31, 0.44), (0.38, 0.27), (0.64, 0.27), (0.72, 0.44))
            for x in (0.24, 0.76):
                _ellipse(body, x, 0.74, 0.13, 0.13)
                _ellipse(detail, x, 0.74, 0.10, 0.10)
        case "fish":
            _ellipse(body, 0.40, 0.5, 0.38, 0.25)
            _polygon(body, (0.66, 0.5), (0.98, 0.22), (0.98, 0.78))
            _ellipse(detail, 0.20, 0.44, 0.055, 0.055)
            _polygon(detail, (0.42, 0.42), (0.60, 0.60), (0.42, 0.62))
        case "cup":
            _ellipse(body, 0.72, 0.48, 0.25, 0.24)
            _ellipse(body, 0.72, 0.48, 0.14, 0.13, 0)
            _polygon(body, (0.06, 0.10), (0.74, 0.10), (0.66, 0.92), (0.14, 0.92))
            _rectangle(detail, 0.07, 0.18, 0.73, 0.25)
        case "flower":
            _rectangle(body, 0.46, 0.60, 0.54, 1.0)
            _rectangle(detail, 0.46, 0.70, 0.54, 1.0)
            for angle in np.pi * np.arange(6) / 3:
                _ellipse(body, 0.5 + 0.24 * np.cos(angle), 0.36 + 0.24 * np.sin(angle), 0.135, 0.135)
            _ellipse(body, 0.5, 0.36, 0.2, 0.2)
            _ellipse(detail, 0.5, 0.36, 0.11, 0.11)
        case "moon":
            _ellipse(body, 0.48, 0.5, 0.47, 0.47)
            _ellipse(body, 0.70, 0.42, 0.38, 0.38, 0)
    return np.stack([body, detail], -1)


def thing_masks(category: str, extent: int, rng: np.random.Generator) -> np.ndarray:
    """Return masks of a glyph, randomly tilted, stretched and mirrored: float32 [h, w, 2] in 0..1.

    Args:
      category: one of `CATEGORIES`.
      extent: longer side in pixels.
      rng: source of randomness.
    """
    masks = glyph(category)
    if rng.random() < 0.5:
        masks = masks[:, ::-1]
    turn = cv2.getRotationMatrix2D((_CANVAS / 2, _CANVAS / 2), rng.uniform(-10, 10), 0.88)
    masks = cv2.warpAffine(np.ascontiguousarray(masks), turn, (_CANVAS, _CANVAS), flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect((masks[..., 0] > 127).astype(np.uint8))
    aspect = w / h * rng.uniform(0.88, 1.14)
    size = (round(extent * min(1, aspect)), round(extent / max(1, aspect)))
    scaled = cv2.resize(masks[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    return scaled.astype(np.float32) / 255


def second_shade(color: tuple[int, int, int]) -> np.ndarray:
    """Return the shade of details and patterns: darker, or lighter if a color is nearly black."""
    rgb = np.array(color, np.float32)
    return rgb + 90 if rgb.mean() < 60 else rgb * 0.55


def pattern_mask(pattern: str, h: int, w: int) -> np.ndarray:
    """Return float32 [h, w]: 1 in the second shade."""
    y, x = np.mgrid[:h, :w].astype(np.float32)
    if pattern == "striped":
        return ((x + y) % 9 < 3).astype(np.float32)
    if pattern == "dotted":
        return ((x % 9 - 4) ** 2 + (y % 9 - 4) ** 2 < 5).astype(np.float32)
    return np.zeros((h, w), np.float32)


def draw_ground(place: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a ground, float32 [height, width, 3]: a gradient, texture strokes and gray pebbles."""
    top, bottom, stroke = (np.array(c, np.float32) for c in PLACES[place])
    slope = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    patches = rng.normal(0, 7, (6, 6)).astype(np.float32)
    coarse = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    ground = np.ascontiguousarray(np.broadcast_to(top + slope * (bottom - top), (height, width, 3)))
    ground += coarse[..., None]
    for _ in range(rng.integers(8, 20)):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        match place:
            case "grass":
                tip = (x + int(rng.integers(-2, 3)), y - 5)
                cv2.line(ground, (x, y), tip, stroke.tolist(), 1, cv2.LINE_AA)
            case "road":
                cv2.line(ground, (x, y), (x + 7, y), stroke.tolist(), 1, cv2.LINE_AA)
            case _:
                cv2.circle(ground, (x, y), 1, stroke.tolist(), -1, cv2.LINE_AA)
    for _ in range(rng.integers(0, 4)):  # clutter
        x, y, gray = int(rng.integers(width)), int(rng.integers(height)), float(rng.integers(80, 150))
        axes = (int(rng.integers(2, 4)), int(rng.integers(1, 3)))
        cv2.ellipse(ground, (x, y), axes, 0, 0, 360, (gray, gray, gray), -1, cv2.LINE_AA)
    return ground


def draw_thing(canvas: np.ndarray, masks: np.ndarray, x: int, y: int, color: str, pattern: str, place: str) -> None:
    """Draw a thing into the canvas, with a thin outline.

    Args:
      canvas: float32 [height, width, 3]; it is changed.
      masks: float32 [h, w, 2], as `thing_masks` returns them.
      x: column of the upper left corner.
      y: row of the upper left corner.
      color: a key of `COLORS`.
      pattern: one of `PATTERNS`.
      place: a key of `PLACES`.
    """
    h, w = masks.shape[:2]
    rgb, shade = np.array(COLORS[color], np.float32), second_shade(COLORS[color])
    second = np.maximum(masks[..., 1], pattern_mask(pattern, h, w))[..., None]
    body = np.pad(masks[..., 0], 1)
    outline = cv2.dilate(body, np.ones((3, 3), np.uint8))[..., None]
    patch = canvas[y - 1 : y + h + 1, x - 1 : x + w + 1]
    edge = 190.0 if place == "night" else 60.0
    patch += outline * 0.8 * (edge - patch)
    inside = patch[1:-1, 1:-1]
    inside += masks[..., :1] * (rgb + second * (shade - rgb) - inside)
