"""What a predictor returns besides answers: images that it has read, states and attention."""

from __future__ import annotations

import dataclasses
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from vlbert_jax.detector.regions import Regions
from vlbert_jax.prediction.asked import draw_asked


class Encoded(NamedTuple):
    """The last states of a sequence, as input of a user-supplied head."""

    tokens: tuple[str, ...]  # text with its special tokens
    text: Float[np.ndarray, "t d"]
    regions: Float[np.ndarray, "r e"]  # row 0 is the whole image, in architectures that read it


class Attention(NamedTuple):
    """The attention between the elements of a sequence, or between the words and the regions of two streams."""

    tokens: tuple[str, ...]
    regions: tuple[str, ...]  # row 0 is the whole image; [END] follows them
    probabilities: Float[np.ndarray, "layers heads s s"]  # attention of each element (row) to each; rows sum to 1
    # Names of the layers; () = their numbers. In two streams each map has a layer of its own, which is 0 outside it.
    layers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that `Predictor.look` has read, for any number of texts."""

    name: str
    pixels: UInt8[np.ndarray, "y x 3"]
    regions: Regions
    appearance: Shaped[Array, "1 r g"]  # of the regions; row 0 is the whole image

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        return f"Picture({self.name!r}, {width} x {height}, {len(self.regions)} regions from {self.regions.source})"

    def _repr_png_(self) -> bytes:
        """Return the drawing of the regions that a notebook shows."""
        file = io.BytesIO()
        draw_asked(self.pixels, self.regions, ()).save(file, format="PNG")
        return file.getvalue()
