"""RoIPool: the maximum of whole cells per bin, as the bottom-up-attention detector was trained (Girshick, 2015).

A table of maxima over squares of 1, 2, 4, ... cells makes each bin the maximum of four look-ups, however large it is.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def roi_pool(
    features: Float[Array, "b h w c"],
    size: tuple[int, int] = (14, 14),
    scale: float = 1 / 16,
    cells: Int[Array, "b 2"] | None = None,
    inside: bool = False,
) -> Callable[[Float[Array, "k 4"], Int[Array, "k"]], Float[Array, "k p q c"]]:
    """A function of boxes and their image numbers that pools each box of `features[number]` to a grid of `size` bins.

    Boxes are x1 y1 x2 y2 in pixels of the image, `scale` feature cells per pixel. Ends are rounded to whole cells, half
    away from zero, and belong to the box; bins share cells at their borders; a bin outside the map is 0 (Caffe's
    `ROIPooling`, in its single precision). With `cells` (rows, columns) each map ends there. `inside` says that boxes
    do not reach beyond the map, which saves tables. No gradient flows into the boxes.
    """
    batch, height, width, channels = features.shape
    longest = [_longest(length, bins, inside) for length, bins in zip((height, width), size, strict=True)]
    row_levels, column_levels = (most.bit_length() for most in longest)
    tables = [table for rows in _doubled(features, 1, row_levels) for table in _doubled(rows, 2, column_levels)]
    flat = jnp.stack(tables).reshape(-1, channels)

    def pool(boxes, image_index):
        ends = jnp.array([height, width]) if cells is None else cells[image_index]
        ends = jnp.broadcast_to(ends, (len(boxes), 2))
        x1, y1, x2, y2 = jnp.split(jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale, 4, axis=-1)
        tops, bottoms = _bins(y1, y2, size[0], ends[:, :1])
        lefts, rights = _bins(x1, x2, size[1], ends[:, 1:])
        row_table, *rows = _look_ups(tops, bottoms, longest[0])
        column_table, *columns = _look_ups(lefts, rights, longest[1])
        table = row_table[:, :, None] * column_levels + column_table[:, None]
        start = (table * batch + image_index[:, None, None]) * height
        places = [(start + row[:, :, None]) * width + column[:, None] for row in rows for column in columns]
        pooled = functools.reduce(jnp.maximum, [flat[place.reshape(-1)] for place in places])
        filled = (bottoms > tops)[:, :, None] & (rights > lefts)[:, None]
        return jnp.where(filled[..., None], pooled.reshape(*filled.shape, channels), 0)

    return pool


def _bins(start, stop, bins: int, end) -> tuple[Int[Array, "k n"], Int[Array, "k n"]]:
    """First cell and first beyond, per bin of the intervals (k 1), clipped to the map."""
    start, stop = _rounded(start), _rounded(stop)
    length = jnp.maximum(stop - start + 1, 1.0)
    # A true quotient: by a number that is the same everywhere, XLA multiplies with its rounded inverse, and boxes of 24
    # cells, say, would have other bins.
    size = length / jnp.where(length > 0, jnp.float32(bins), 1)
    number = jnp.arange(bins, dtype=jnp.float32)[None]
    first, beyond = jnp.floor(number * size), jnp.ceil((number + 1) * size)
    return tuple(jnp.clip((edge + start).astype(jnp.int32), 0, end) for edge in (first, beyond))


def _rounded(x):
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)  # half away from zero, as C's round


def _longest(length: int, bins: int, inside: bool) -> int:
    """The most cells that a bin can have on a map of `length` cells."""
    return min(length, math.ceil((length + 1) / bins) + 1) if inside else length


def _look_ups(first, beyond, longest: int):
    """Which table holds half of each bin or more, and the two cells from which it holds all of the bin."""
    length = jnp.maximum(beyond - first, 1)
    level = jnp.zeros_like(first)
    for i in range(1, longest.bit_length()):
        level += (length >> i) > 0
    last = jnp.maximum(beyond - (1 << level), 0)
    return level, jnp.minimum(first, last), last


def _doubled(x, axis: int, levels: int):
    """x, then its maxima over 2, 4, ... neighbours along `axis`; what overhangs the end is never looked up."""
    tables = [x]
    for level in range(levels - 1):
        x = jnp.maximum(x, jnp.roll(x, -(1 << level), axis))
        tables.append(x)
    return tables
