"""Geometry of boxes: the sinusoidal embedding, and intersection over union.

The paper (section 3.1) embeds corners; the released weights were trained with center and size.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DIM = 256  # wavelengths per coordinate in the released weights: 4 x 2 x 256 = 2048 values per box
_LONGEST = 1000.0  # wavelengths grow geometrically from 1 to this, in percent of the image side (over 2 pi)


def box_geometry(
    boxes: Float[Array | np.ndarray, "*b r 4"], image_size: Float[Array | np.ndarray, "*b 2"], dim: int = DIM
) -> Float[Array | np.ndarray, "*b r g"]:
    """Return the sinusoidal embedding of boxes: g = 8 * dim, float32.

    The order is center x, center y, width, height; for each, `dim` sines, then `dim` cosines, as in
    `coordinate_embeddings` of the official code. Width and height are without + 1. An image size below 1
    counts as 1, so that padding stays finite.

    Args:
        boxes: x1 y1 x2 y2 in pixels (NumPy or JAX; the result is of the same kind).
        image_size: Width and height in the same pixels, without padding.
        dim: Wavelengths per coordinate.
    """
    xp: ModuleType = jnp if isinstance(boxes, jax.Array) or isinstance(image_size, jax.Array) else np
    boxes = xp.asarray(boxes, xp.float32)
    size = xp.maximum(xp.asarray(image_size, xp.float32), xp.float32(1.0))[..., None, :]
    low, high = boxes[..., :2], boxes[..., 2:]
    percent = xp.concatenate([(low + high) / 2 / size, (high - low) / size], axis=-1) * xp.float32(100.0)
    wavelengths = np.float32(_LONGEST) ** (np.arange(dim, dtype=np.float32) / dim)
    angles = percent[..., None] / wavelengths.reshape(*(1,) * percent.ndim, dim)
    waves = xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=-1)  # *b r 4 2*dim
    return waves.reshape(*boxes.shape[:-1], 8 * dim)


def box_numbers(
    boxes: Float[Array | np.ndarray, "*b r 4"], image_size: Float[Array | np.ndarray, "*b 2"], count: int
) -> Float[Array | np.ndarray, "*b r e"]:
    """Return 4 to 7 numbers per box, relative to the image, float32.

    4: x1, y1, x2, y2. 5: these and the area. 6: the four, width and height. 7: the six and the area. Width
    and height are without + 1. UNITER stores the six in half precision, from which it computes the area;
    the seven numbers are rounded accordingly.

    Args:
        boxes: x1 y1 x2 y2 in pixels (NumPy or JAX; the result is of the same kind).
        image_size: Width and height in the same pixels, without padding.
        count: How many numbers.
    """
    xp: ModuleType = jnp if isinstance(boxes, jax.Array) or isinstance(image_size, jax.Array) else np
    size = xp.maximum(xp.asarray(image_size, xp.float32), xp.float32(1.0))[..., None, :]
    low, high = xp.asarray(boxes[..., :2], xp.float32) / size, xp.asarray(boxes[..., 2:], xp.float32) / size
    six = xp.concatenate([low, high, high - low], axis=-1)
    if count == 7:
        six = six.astype(xp.float16).astype(xp.float32)
    area = six[..., 4:5] * six[..., 5:]
    return {4: six[..., :4], 5: xp.concatenate([six[..., :4], area], -1), 6: six, 7: xp.concatenate([six, area], -1)}[
        count
    ]


def region_geometry(
    boxes: Float[Array | np.ndarray, "*b r 4"], image_size: Float[Array | np.ndarray, "*b 2"], size: int
) -> Float[Array | np.ndarray, "*b r e"]:
    """Return the geometry of an architecture with `size` values per box: sine waves, or 4 to 7 numbers."""
    return box_geometry(boxes, image_size) if size == 8 * DIM else box_numbers(boxes, image_size, size)


def box_iou(boxes: Float[np.ndarray, "n 4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "n"]:
    """Return the intersection over union of boxes with one box (NumPy).

    Boxes include their last pixel, so widths are x2 - x1 + 1. Everything is computed in the precision of
    the arguments, step by step as in the official code, because a threshold of 0.5 decides.
    """
    shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
    shared = np.prod(np.maximum(shared, 0), axis=1)
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    return shared / (sizes + np.prod(box[2:] - box[:2] + 1) - shared)


def pairwise_iou(first: Float[Array, "n 4"], second: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Return the intersection over union of every pair of boxes, in single precision, with the same widths (JAX).

    It is separate from `box_iou`: the detector's recordings fix the order of these operations.
    """
    first, second = first[:, None], second[None]
    areas = [jnp.prod(boxes[..., 2:] - boxes[..., :2] + 1, axis=-1) for boxes in (first, second)]
    low, high = jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])
    common = jnp.prod(jnp.maximum(high - low + 1, 0), axis=-1)
    return common / (areas[0] + areas[1] - common)
