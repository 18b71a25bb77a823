"""A picture with its regions, and below it what was asked and answered."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from vlbert_jax.files import atomic_write

SMALLEST, LARGEST = 640, 1200  # long side of what is drawn
LABELLED = 20  # boxes beyond these, the best, have no label: nobody could read it
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STRONG = ("#e5242a", "#1668c7", "#187a3c", "#8a34b8", "#c25a12", "#0f727d")  # of regions that an answer names
PALE = "#ffd23f"  # of the others
INDENT = 24
INK, PAPER = "#1d2126", "#ffffff"


def draw_regions(
    pixels: UInt8[np.ndarray, "y x 3"],
    boxes: Float32[np.ndarray, "r 4"],
    labels: Sequence[str],
    chosen: Mapping[int, str],
    lines: Sequence[str],
) -> Image.Image:
    """`chosen` has what to write on some of the boxes, which are then drawn strongly; `lines` go below the picture,
    indented ones, which begin with a space, in another colour.

    Boxes are x1 y1 x2 y2 in the picture's pixels, best first. Small pictures are enlarged, large ones reduced.
    """
    height, width = pixels.shape[:2]
    scale = np.clip(1, SMALLEST / max(width, height), LARGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(picture.width, SMALLEST), picture.height), PAPER)
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    thick = max(2, round(max(size) / 250))
    order = sorted(range(len(boxes)), key=lambda i: (i in chosen, -i))  # the best on top, then the chosen
    colours = {i: STRONG[k % len(STRONG)] for k, i in enumerate(chosen)}
    for i in order:
        x1, y1, x2, y2 = (float(v) * scale for v in boxes[i])
        x2, y2 = max(x1, x2), max(y1, y2)
        if i in chosen:
            pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=thick + 4)
        pen.rectangle((x1, y1, x2, y2), outline=colours.get(i, PALE), width=thick * (2 if i in chosen else 1))
    for i in order:
        if text := chosen.get(i, labels[i] if i < LABELLED else ""):
            _tab(pen, canvas.size, (boxes[i][0] * scale, boxes[i][1] * scale), text, colours.get(i))
    return _with_lines(canvas, lines)


def _tab(pen: ImageDraw.ImageDraw, size: tuple[int, int], corner: tuple, text: str, colour: str | None) -> None:
    """A label at the top left of a box, inside the picture."""
    font = ImageFont.load_default(18 if colour else 13)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0, corner[0]), max(0, size[0] - width))
    y = min(max(0, corner[1]), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour or PALE)
    pen.text((x + 4 - left, y + 3 - top), text, font=font, fill=PAPER if colour else INK)


def _with_lines(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    if not lines:
        return picture
    font, step = ImageFont.load_default(20), 27
    wrapped = []
    for line in lines:
        text = line.lstrip(" ")
        room = picture.width - 20 - INDENT * (text != line)
        columns = max(10, int(len(text) * room / max(font.getlength(text), 1)))
        wrapped += [(part, text != line) for part in textwrap.wrap(text, columns)]
    page = Image.new("RGB", (picture.width, picture.height + step * len(wrapped) + 16), PAPER)
    page.paste(picture)
    pen = ImageDraw.Draw(page)
    for i, (part, indented) in enumerate(wrapped):
        place = 10 + INDENT * indented, picture.height + 8 + step * i
        pen.text(place, part, font=font, fill=STRONG[1] if indented else INK)
    return page


def save_drawing(picture: Image.Image, path: Path) -> None:
    """Whole or not at all. Raises OSError."""
    file = io.BytesIO()  # on a full disk Pillow's own writing of a JPEG ends early and says nothing
    picture.save(file, format={".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG"))
    with atomic_write(path) as partial:
        partial.write_bytes(file.getvalue())
