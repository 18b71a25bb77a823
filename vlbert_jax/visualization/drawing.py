"""A drawing of an image with its regions, with questions and answers below it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from vlbert_jax.files import atomic_write

SMALLEST, LARGEST = 640, 1200  # limits of the longer side of the drawing, pixels
LABELED = 20  # boxes with a label, best first; labels of more boxes would be unreadable
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
STRONG = ("#e5242a", "#1668c7", "#187a3c", "#8a34b8", "#c25a12", "#0f727d")  # colors of boxes that an answer names
PALE = "#ffd23f"  # color of the other boxes
INDENT = 24  # pixels
INK, PAPER = "#1d2126", "#ffffff"


def draw_regions(
    pixels: UInt8[np.ndarray, "y x 3"],
    boxes: Float32[np.ndarray, "r 4"],
    labels: Sequence[str],
    chosen: Mapping[int, str],
    lines: Sequence[str],
) -> Image.Image:
    """Return a drawing of the regions; small images are enlarged, large ones reduced.

    Args:
        pixels: the image, RGB.
        boxes: x1 y1 x2 y2 in pixels of the image, best first.
        labels: one per box.
        chosen: labels of the boxes to emphasize, by row; they replace those of `labels`.
        lines: text below the image; lines that begin with a space are indented and colored.
    """
    height, width = pixels.shape[:2]
    scale = np.clip(1, SMALLEST / max(width, height), LARGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (max(image.width, SMALLEST), image.height), PAPER)
    canvas.paste(image)
    pen = ImageDraw.Draw(canvas)
    thick = max(2, round(max(size) / 250))
    order = sorted(range(len(boxes)), key=lambda i: (i in chosen, -i))  # the best above others, the chosen above all
    colors = {i: STRONG[k % len(STRONG)] for k, i in enumerate(chosen)}
    for i in order:
        x1, y1, x2, y2 = (float(v) * scale for v in boxes[i])
        x2, y2 = max(x1, x2), max(y1, y2)
        if i in chosen:
            pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=PAPER, width=thick + 4)
        pen.rectangle((x1, y1, x2, y2), outline=colors.get(i, PALE), width=thick * (2 if i in chosen else 1))
    for i in order:
        if text := chosen.get(i, labels[i] if i < LABELED else ""):
            _draw_label(pen, canvas.size, (boxes[i][0] * scale, boxes[i][1] * scale), text, colors.get(i))
    return _append_lines(canvas, lines)


def _draw_label(pen: ImageDraw.ImageDraw, size: tuple[int, int], corner: tuple, text: str, color: str | None) -> None:
    """Draw a label at the top left corner of a box, moved inside the image of `size`.

    A label with a color is larger.
    """
    font = ImageFont.load_default(18 if color else 13)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x = min(max(0, corner[0]), max(0, size[0] - width))
    y = min(max(0, corner[1]), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=color or PALE)
    pen.text((x + 4 - left, y + 3 - top), text, font=font, fill=PAPER if color else INK)


def _append_lines(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the image with wrapped lines of text below it."""
    if not lines:
        return image
    font, step = ImageFont.load_default(20), 27
    wrapped = []
    for line in lines:
        text = line.lstrip(" ")
        room = image.width - 20 - INDENT * (text != line)
        columns = max(10, int(len(text) * room / max(font.getlength(text), 1)))
        wrapped += [(part, text != line) for part in textwrap.wrap(text, columns)]
    page = Image.new("RGB", (image.width, image.height + step * len(wrapped) + 16), PAPER)
    page.paste(image)
    pen = ImageDraw.Draw(page)
    for i, (part, indented) in enumerate(wrapped):
        place = 10 + INDENT * indented, image.height + 8 + step * i
        pen.text(place, part, font=font, fill=STRONG[1] if indented else INK)
    return page


def save_drawing(drawing: Image.Image, path: Path) -> None:
    """Save a drawing atomically. Raises OSError if the file cannot be written."""
    # On a full disk Pillow ends the file of a JPEG early and raises nothing, so it writes to
    # memory.
    file = io.BytesIO()
    drawing.save(file, format={".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG"))
    with atomic_write(path) as partial:
        partial.write_bytes(file.getvalue())
