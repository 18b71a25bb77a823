"""One tensor of an official model and its place in a vlbert_jax parameter."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Shaped

NORM_LEAVES = {"gain": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor and where it lies in ours: of `path`, the layer, then the rows, in another layout."""

    official: str
    path: tuple
    layout: str = "same"  # same | linear (transposed) | conv (OIHW <-> HWIO) | row ([1, d] <-> [d])
    layer: int | None = None
    rows: tuple[int, int] | None = None

    def to_ours(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """A view of the official tensor in our layout."""
        if self.layout == "row":
            return array[0]
        return _transposed(array, {"linear": (1, 0), "conv": (2, 3, 1, 0)}.get(self.layout))

    def to_official(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The reverse."""
        if self.layout == "row":
            return array[None]
        return _transposed(array, {"linear": (1, 0), "conv": (3, 2, 0, 1)}.get(self.layout))

    def part(self, ours: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The view of our array at `path` that this tensor fills."""
        ours = ours if self.layer is None else ours[self.layer]
        return ours if self.rows is None else ours[slice(*self.rows)]


def _transposed(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    return array if axes is None else array.transpose(axes)
