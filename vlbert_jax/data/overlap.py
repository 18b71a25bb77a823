"""The overlap of boxes whose corners are real numbers; `geometry.box_iou` counts last pixels as well."""

import numpy as np
from jaxtyping import Float

FOUND = 0.5  # least intersection over union of a region that counts as a right box


def continuous_iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Return the intersection over union of every pair of boxes, in double precision, without + 1."""
    first, second = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = (np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (first, second))
    union = sum(areas) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def finds(boxes: Float[np.ndarray, "n 4"], right: Float[np.ndarray, "m 4"]) -> bool:
    """Return whether one of some boxes counts as one of the right ones."""
    return bool((continuous_iou(boxes, right) >= FOUND).any())
