"""RoIAlign as two small matrix products.

Bilinear sampling on a grid is separable: averaging the samples of bin (p, q) is `rows @ features @ columns`
with one interpolation matrix per axis. That is exact, needs no scatter in the backward pass and suits
matrix units. Semantics are those of the official extension: no half-pixel shift, no rounding of boxes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "k 4"],
    image_index: Int[Array, "k"],
    size: tuple[int, int] = (14, 14),
    samples: int = 1,
    scale: float = 1 / 16,
    cells: Int[Array, "b 2"] | None = None,
) -> Float[Array, "k p q c"]:
    """Pools each box of `features[image_index]` to a grid of `size` bins.

    Boxes are x1 y1 x2 y2 in pixels of the image; `scale` is feature cells per pixel. `samples` points per bin
    and axis are averaged; 0 = adaptive, ceil(cells per bin). With `cells` (rows, columns) each map ends there. No
    gradient flows into the boxes.
    """
    height, width = features.shape[1:3]
    ends = jnp.broadcast_to(jnp.array([height, width]), (len(boxes), 2)) if cells is None else cells[image_index]
    x1, y1, x2, y2 = jnp.split(jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale, 4, axis=-1)
    rows = _interpolation(y1[:, 0], y2[:, 0], size[0], samples, height, ends[:, 0]).astype(features.dtype)
    columns = _interpolation(x1[:, 0], x2[:, 0], size[1], samples, width, ends[:, 1]).astype(features.dtype)
    pooled = jnp.einsum("kph,khwc->kpwc", rows, features[image_index])
    return jnp.einsum("kqw,kpwc->kpqc", columns, pooled)


def _interpolation(start, stop, bins: int, samples: int, length: int, end) -> Float[Array, "k bins length"]:
    """Weight of each of `length` cells in each bin of the intervals [start, stop] (k), one axis; maps end at `end`."""
    end = end[:, None]
    extent = jnp.maximum(stop - start, 1.0)
    count = (
        jnp.full(start.shape, samples, jnp.int32) if samples else jnp.ceil(extent / bins).astype(jnp.int32)
    )
    bin_size = extent / bins

    def add_sample(i, weights):
        point = start[:, None] + jnp.arange(bins)[None] * bin_size[:, None]
        point = point + (i + 0.5) * (bin_size / count)[:, None]
        inside = (point >= -1) & (point <= end) & (i < count)[:, None]
        point = jnp.maximum(point, 0)
        low = jnp.floor(point).astype(jnp.int32)
        at_edge = low >= end - 1
        low = jnp.where(at_edge, end - 1, low)
        fraction = jnp.where(at_edge, 0.0, point - low)
        cell, low, fraction = jnp.arange(length)[None, None], low[..., None], fraction[..., None]
        hat = (cell == low) * (1 - fraction) + (cell == low + 1) * fraction
        return weights + jnp.where(inside[..., None], hat, 0.0)

    weights = jnp.zeros((*start.shape, bins, length), jnp.float32)
    # The loop's length depends on the boxes when adaptive, which no gradient has to pass.
    weights = jax.lax.fori_loop(0, samples or jnp.max(count), add_sample, weights)
    return weights / count[:, None, None]
