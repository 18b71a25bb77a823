"""The page of attention: one file, an image with its regions beside the words, any layer and head (paper, appendix)."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from vlbert_jax.files import atomic_write

LARGEST = 900  # long side of the picture in the page


def write_attention(
    path: Path,
    pixels: UInt8[np.ndarray, "y x 3"],
    boxes: Float32[np.ndarray, "r 4"],
    tokens: Sequence[str],
    regions: Sequence[str],
    attention: Float[np.ndarray, "layers heads s s"],
    title: str,
    answer: str = "",
) -> None:
    """Writes the page, whole or not at all; nothing is loaded from anywhere when it is opened.

    `regions` are the names of the whole image, which `boxes` lack, and of the boxes (pixels of the picture). Rows and
    columns of `attention` are the tokens, the regions and one more, [END]. A probability p is kept as a byte,
    round(255 sqrt(p)): small ones keep two digits. Raises ValueError where sizes do not fit, OSError.
    """
    size = len(tokens) + len(regions) + 1
    if attention.shape[2:] != (size, size) or len(regions) != len(boxes) + 1:
        raise ValueError(f"attention of {attention.shape}, {len(tokens)} tokens, {len(regions)} regions")
    height, width = pixels.shape[:2]
    names = [name if name.startswith(f"region {i}") or not i else f"{i} {name}" for i, name in enumerate(regions)]
    data = dict(
        layers=attention.shape[0],
        heads=attention.shape[1],
        tokens=list(tokens),
        regions=names,
        boxes=[[0, 0, width, height], *np.round(boxes, 1).tolist()],
        width=width,
        height=height,
        image=_embedded(pixels),
        attention=base64.b64encode(np.round(255 * np.sqrt(attention)).astype(np.uint8).tobytes()).decode(),
    )
    parts = dict(title=html.escape(title), answer=html.escape(answer), data=json.dumps(data).replace("<", "\\u003c"))
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    with atomic_write(path) as partial:
        partial.write_text(page, "utf-8")


def _embedded(pixels: UInt8[np.ndarray, "y x 3"]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
