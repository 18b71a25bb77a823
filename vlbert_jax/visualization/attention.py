"""The page of attention: an image with its regions next to the words, for any layer and head.

It is the interactive form of the figure in the paper's appendix, in one file.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from vlbert_jax.files import atomic_write
from vlbert_jax.visualization.templates import Html, Template

LONGEST = 900  # pixels of the longest side of the embedded image


def write_attention(path: Path, *contents: Any) -> None:
    """Write the page atomically; the contents are the arguments of `attention_page`.

    Raises:
        ValueError: The sizes do not fit together.
        OSError: The file cannot be written.
    """
    page = attention_page(*contents)
    with atomic_write(path) as partial:
        partial.write_text(page, "utf-8")


def attention_page(
    pixels: UInt8[np.ndarray, "y x 3"],
    boxes: Float32[np.ndarray, "r 4"],
    tokens: Sequence[str],
    regions: Sequence[str],
    attention: Float[np.ndarray, "layers heads s s"],
    title: str,
    answer: str = "",
    layer_names: Sequence[str] = (),
) -> Html:
    """Return the page; it loads nothing when it is opened.

    A probability p is stored as the byte round(255 sqrt(p)), which keeps two digits of small ones.

    Args:
        pixels: the image, RGB.
        boxes: the regions without the whole image, pixels of the image.
        tokens: the text.
        regions: names of the whole image and of the boxes.
        attention: probabilities from each element (rows) to each (columns). The elements are the
            tokens, the regions and [END].
        title: the text that was asked about the image.
        answer: lines to show below the title.
        layer_names: names of the layers; () = their numbers.

    Raises:
        ValueError: The sizes do not fit together.
    """
    size = len(tokens) + len(regions) + 1
    if attention.shape[2:] != (size, size) or len(regions) != len(boxes) + 1:
        raise ValueError(
            f"attention of shape {attention.shape} and {len(boxes)} boxes do not fit {len(tokens)} tokens and "
            f"{len(regions)} regions"
        )
    height, width = pixels.shape[:2]
    data = dict(
        layers=attention.shape[0],
        heads=attention.shape[1],
        names=list(layer_names),
        tokens=list(tokens),
        regions=[_numbered(i, name) for i, name in enumerate(regions)],
        boxes=[[0, 0, width, height], *np.round(boxes, 1).tolist()],
        width=width,
        height=height,
        image=data_address(pixels),
        attention=base64.b64encode(np.round(255 * np.sqrt(attention)).astype(np.uint8).tobytes()).decode(),
    )
    template = Template(Path(__file__).with_suffix(".html").read_text("utf-8"))
    data_json = json.dumps(data).replace("<", "\\u003c")  # "</script>" would end the element that holds the data
    return template.fill(title=title, answer=answer, data=Html(data_json))


def _numbered(row: int, name: str) -> str:
    """Return the name of a region with its number, except for the whole image, row 0."""
    return name if row == 0 or name.startswith(f"region {row}") else f"{row} {name}"


def data_address(pixels: UInt8[np.ndarray, "y x 3"]) -> str:
    """Return an image as a data: address, reduced to `LONGEST`."""
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
