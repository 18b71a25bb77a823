"""Where a box is, as a vector: sines and cosines of its centre and size.

The paper (section 3.1) speaks of corners; the released weights were trained with centre and size.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DIM = 256  # wavelengths per coordinate, of the released weights: 4 x 2 x 256 = 2048 numbers per box
_LONGEST = 1000.0  # wavelengths run geometrically from 1 to this, in per cent of the image side (over 2 pi)


def box_geometry(
    boxes: Float[Array | np.ndarray, "*b r 4"], image_size: Float[Array | np.ndarray, "*b 2"], dim: int = DIM
) -> Float[Array | np.ndarray, "*b r g"]:
    """Sinusoidal embedding of boxes; g = 8 * dim, float32. NumPy in, NumPy out; JAX in, JAX out.

    `boxes` are x1 y1 x2 y2 in pixels and `image_size` is width, height in the same pixels, before padding.
    Order: centre x, centre y, width, height; `dim` sines, then `dim` cosines of each, as in the official
    `coordinate_embeddings`; no +1 on width and height. An image size below 1 counts as 1, so that examples
    that only fill up a batch stay finite.
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
