"""The regions of one image, from a detector, a file or a grid."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32

ONE_PER_REGION = (
    "boxes", "labels", "scores", "attributes", "features", "class_probabilities", "attribute_probabilities",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions:
    """The regions of one image, best first, without the whole image, which the models add as row 0.

    There are r regions. A detector has c classes and a attributes; class 0 is "no object" and
    attribute 0 "no attribute", so neither is ever a label.
    """

    boxes: Float32[np.ndarray, "r 4"]  # x1 y1 x2 y2, pixels of the image
    source: str  # origin of the regions, as a phrase to print
    labels: tuple[str, ...]  # one per region, "" = unknown
    scores: tuple[float, ...] | None = None  # probability of each label
    attributes: tuple[str, ...] = ()  # one per region, such as "brown", "" = none is likely; empty = unknown
    features: Float32[np.ndarray, "r g"] | None = None  # appearance; g is 2048 for the published detector
    image_feature: Float32[np.ndarray, " g"] | None = None  # appearance of the whole image, None = mean over regions
    extractor: str = ""  # id of the detector and settings that computed the features, "" = unknown
    class_probabilities: Float32[np.ndarray, "r c"] | None = None  # None without a detector
    attribute_probabilities: Float32[np.ndarray, "r a"] | None = None  # None without a detector that has attributes

    def __len__(self) -> int:
        return len(self.boxes)

    def first(self, number: int) -> Regions:
        """Return the best `number` regions."""
        rows = {name: getattr(self, name) for name in ONE_PER_REGION}
        return dataclasses.replace(self, **{name: row[:number] for name, row in rows.items() if row is not None})

    def name(self, row: int) -> str:
        """Return a name to print for a region row of the model; row 0 is the whole image."""
        if row == 0:
            return "whole image"
        attribute = self.attributes[row - 1] if self.attributes else ""
        return f"{attribute} {self.labels[row - 1]}".strip() or f"region {row}"
