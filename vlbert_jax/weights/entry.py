"""One tensor of an official model and its place in a vlbert_jax parameter."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Shaped

BLOCK = 64  # columns of a transposed array that are copied at a time
NORM_LEAVES = {"gain": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An official tensor and the part of a parameter that it fills."""

    official: str  # name of the tensor
    path: tuple  # of the parameter in the model's state
    # same | linear (transposed) | conv (OIHW <-> HWIO) | row ([1, d] <-> [d]) | last row ([2, d] <-> [d], zeros first);
    # with _reversed, the last axis of the parameter is in the opposite order
    layout: str = "same"
    layer: int | None = None  # index into the parameter's first axis, None = all of it
    rows: tuple[int, int] | None = None  # start and end in the next axis, None = all of it
    roll: int = 0  # last input columns of a linear layer's official tensor that are the first of the parameter
    roll_axis: int = 1  # 0: outputs instead of input columns

    def to_parameter(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Return the official tensor in the layout of the parameter, as a view unless columns change places."""
        if self.layout in ("row", "last row"):
            return array[-1]
        layout = self.layout.removesuffix("_reversed")
        array = np.roll(array, self.roll, axis=self.roll_axis) if self.roll else array
        array = _transpose(array, {"linear": (1, 0), "conv": (2, 3, 1, 0)}.get(layout))
        return array if layout == self.layout else array[..., ::-1]

    def to_official(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Return a part of the parameter in the layout of the official tensor, as `to_parameter` does."""
        if self.layout == "row":
            return array[None]
        if self.layout == "last row":
            return np.stack([np.zeros_like(array), array])
        layout = self.layout.removesuffix("_reversed")
        array = array if layout == self.layout else array[..., ::-1]
        array = _transpose(array, {"linear": (1, 0), "conv": (3, 2, 0, 1)}.get(layout))
        return np.roll(array, -self.roll, axis=self.roll_axis) if self.roll else array

    def part(self, parameter: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Return a view of the part of the parameter that the tensor fills."""
        parameter = parameter if self.layer is None else parameter[self.layer]
        return parameter if self.rows is None else parameter[slice(*self.rows)]


def _transpose(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    return array if axes is None else array.transpose(axes)


def copy_into(target: Shaped[np.ndarray, "..."], source: Shaped[np.ndarray, "..."]) -> None:
    """Copy an array into another one of its shape.

    NumPy copies a transposed matrix row by row, and each value of a row is on another cache line. Blocks of columns
    stay in the cache, which makes the copy four times as fast.
    """
    if source.ndim < 2 or source.flags.c_contiguous:
        target[...] = source
        return
    for start in range(0, source.shape[-1], BLOCK):
        target[..., start : start + BLOCK] = source[..., start : start + BLOCK]
