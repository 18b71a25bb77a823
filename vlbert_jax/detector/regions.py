"""The regions of one image, from a detector, a file or a grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
        """Return the best `number` regions: those with the highest scores, or the first where there are none."""
        best = np.arange(len(self)) if self.scores is None else np.argsort(-np.array(self.scores), kind="stable")
        return self._rows(best[:number].tolist())

    def without(self, row: int) -> Regions:
        """Return all regions but that of a row, counted from 0."""
        return self._rows([i for i in range(len(self)) if i != row])

    def with_box(self, box: Sequence[float]) -> Regions:
        """Return the regions and one more, x1 y1 x2 y2 in pixels, of which nothing but the box is known.

        Scores, features and probabilities of the others are dropped, because there is one per region or none.
        """
        boxes = np.concatenate([self.boxes, np.asarray([box], np.float32)])
        attributes = (*self.attributes, "") if self.attributes else ()
        return Regions(boxes=boxes, source=self.source, labels=(*self.labels, ""), attributes=attributes)

    def _rows(self, rows: Sequence[int]) -> Regions:
        """Return the regions of some rows."""
        fields = {name: getattr(self, name) for name in ONE_PER_REGION}
        chosen = {
            name: tuple(field[i] for i in rows) if isinstance(field, tuple) else field[list(rows)]
            for name, field in fields.items()
            if field is not None and len(field)
        }
        return dataclasses.replace(self, **chosen)

    def name(self, row: int) -> str:
        """Return a name to print for a region row of the model; row 0 is the whole image."""
        if row == 0:
            return "whole image"
        attribute = self.attributes[row - 1] if self.attributes else ""
        return f"{attribute} {self.labels[row - 1]}".strip() or f"region {row}"
