"""RoIAlign as two small matrix products.

Bilinear sampling on a grid is separable: averaging the samples of bin (p, q) is `rows @ features @ columns`
with one interpolation matrix per axis. That is exact, needs no scatter in the backward pass and suits
matrix units. Semantics are those of the official extension: no half-pixel shift, no rounding of boxes.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.model.config import RoIOptions


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "k 4"],
    image_index: Int[Array, "k"],
    size: tuple[int, int] = (14, 14),
    samples: int = 1,
    scale: float = 1 / 16,
    cells: Int[Array, "b 2"] | None = None,
) -> Float[Array, "k p q c"]:
    """Pool each box of `features[image_index]` to a grid of `size` bins.

    Boxes are x1 y1 x2 y2 in pixels of the image; `scale` is feature cells per pixel. `samples` points per bin
    and axis are averaged; 0 = adaptive, ceil(cells per bin). With `cells` (rows, columns) each map ends there. No
    gradient flows into the boxes.
    """
    height, width = features.shape[1:3]
    ends = jnp.broadcast_to(jnp.array([height, width]), (len(boxes), 2)) if cells is None else cells[image_index]
    x1, y1, x2, y2 = jnp.split(jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale, 4, axis=-1)
    rows = _interpolation(y1[:, 0], y2[:, 0], size[0], samples, height, ends[:, 0]).astype(features.dtype)
    columns = _interpolation(x1[:, 0], x2[:, 0], size[1], samples, width, ends[:, 1]).astype(features.dtype)
    if len(features) == 1:  # one matrix product, and no copy of the map for each region
        pooled = jnp.einsum("kph,hwc->kpwc", rows, features[0])
    else:
        pooled = jnp.einsum("kph,khwc->kpwc", rows, features[image_index])
    return jnp.einsum("kqw,kpwc->kpqc", columns, pooled)


def _interpolation(start, stop, bins: int, samples: int, length: int, end) -> Float[Array, "k bins length"]:
    """Return the weight of each of `length` cells in each bin of the intervals [start, stop] (k); maps end at `end`."""
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
    # If adaptive, the length of the loop depends on the boxes; no gradient passes it.
    weights = jax.lax.fori_loop(0, samples or jnp.max(count), add_sample, weights)
    return weights / count[:, None, None]


def pool_regions(
    graphdef, options: RoIOptions, scale: float, c5_state, feature_map, cells, boxes, region_mask, region_shapes
) -> Float[Array, "b r g"]:
    """Return the mean of C5 over each real region, zeros for padding.

    Regions pass C5 `options.chunk` at a time, real ones first; chunks of padding are skipped.

    Args:
        graphdef: Structure of C5, whose parameters are `c5_state`.
        options: The operation and its sizes.
        scale: Cells of the feature map per pixel.
        c5_state: Parameters of C5.
        feature_map: float [b, h, w, c].
        cells: int [b, 2], (rows, columns) where each map ends; None = at its shape.
        boxes: float [b, r, 4], x1 y1 x2 y2 in pixels.
        region_mask: bool [b, r].
        region_shapes: float [b, r, p, p], factors of the pooled C5 map, or None.
    """
    size, chunk = (options.size, options.size), options.chunk
    c5 = nnx.merge(graphdef, c5_state)
    # Padding shares chunks with real regions: a NaN in it would reach the gradients of C5 as 0 * NaN.
    boxes = jnp.where(region_mask[..., None], boxes, 0)
    if region_shapes is not None:
        region_shapes = jnp.where(region_mask[..., None, None], region_shapes, 0)
    b, r = region_mask.shape
    total = b * r
    chunks = -(-total // chunk)
    chunk = -(-total // chunks)  # the same number of chunks, of even size, so that the last has the least padding
    order = jnp.argsort(~region_mask.reshape(total), stable=True)
    place = jnp.argsort(order)  # position of each region
    # Repeats the last region, which is padding where there is any: a real one would not let its chunk be skipped.
    order = jnp.pad(order, (0, -total % chunk), mode="edge")
    flat_boxes, flat_mask = boxes.reshape(total, 4), region_mask.reshape(total)
    flat_shapes = None if region_shapes is None else region_shapes.reshape(total, *region_shapes.shape[2:])

    if options.operation == "pool":
        pool = roi_pool(feature_map, size, scale, cells, inside=True)
    else:
        align = dict(size=size, samples=options.samples, scale=scale, cells=cells)
        pool = functools.partial(roi_align, feature_map, **align)

    def head(folded, index):
        x = c5(pool(flat_boxes[index], index // r), folded=folded)
        if flat_shapes is not None:
            x = x * flat_shapes[index][..., None].astype(x.dtype)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)

    # Without `jax.checkpoint` the `cond` would store the kernels for the backward pass, again for each chunk.
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if options.remat else policies.everything_saveable

    @functools.partial(jax.checkpoint, policy=policy)
    def pool_chunk(folded, index):
        shape = jax.eval_shape(head, folded, index)
        zeros = jnp.zeros(shape.shape, shape.dtype)
        return jax.lax.cond(flat_mask[index].any(), head, lambda *_: zeros, folded, index)

    folded = c5.folded()  # once, not for every chunk
    _, pooled = jax.lax.scan(lambda _, index: (None, pool_chunk(folded, index)), None, order.reshape(-1, chunk))
    pooled = pooled.reshape(-1, pooled.shape[-1])[place].reshape(b, r, -1)
    pooled = jax.lax.stop_gradient(pooled) if options.frozen else pooled
    return jnp.where(region_mask[..., None], pooled, 0)


def roi_pool(
    features: Float[Array, "b h w c"],
    size: tuple[int, int] = (14, 14),
    scale: float = 1 / 16,
    cells: Int[Array, "b 2"] | None = None,
    inside: bool = False,
) -> Callable[[Float[Array, "k 4"], Int[Array, "k"]], Float[Array, "k p q c"]]:
    """Return a function (boxes, image numbers) that pools each box of `features[number]` to a grid of `size` bins.

    Boxes are x1 y1 x2 y2 in pixels of the image, `scale` feature cells per pixel. Ends are rounded to whole cells, half
    away from zero, and are included in the box; bins share cells at their borders; a bin outside the map is 0 (Caffe's
    `ROIPooling`, in its single precision). With `cells` (rows, columns) each map ends there. `inside` states that boxes
    do not exceed the map, which saves tables. No gradient flows into the boxes.
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
    """Return the first cell of each bin of the intervals (k 1) and the first after it, clipped to the map."""
    start, stop = _rounded(start), _rounded(stop)
    length = jnp.maximum(stop - start + 1, 1.0)
    # XLA replaces the division by a constant with a product by its rounded inverse, so that boxes of 24 cells, for
    # example, would get other bins. The divisor is not a constant here.
    size = length / jnp.where(length > 0, jnp.float32(bins), 1)
    number = jnp.arange(bins, dtype=jnp.float32)[None]
    first, beyond = jnp.floor(number * size), jnp.ceil((number + 1) * size)
    return tuple(jnp.clip((edge + start).astype(jnp.int32), 0, end) for edge in (first, beyond))


def _rounded(x):
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)  # half away from zero, as round of C


def _longest(length: int, bins: int, inside: bool) -> int:
    """Return the largest number of cells that a bin can have on a map of `length` cells."""
    return min(length, math.ceil((length + 1) / bins) + 1) if inside else length


def _look_ups(first, beyond, longest: int):
    """Return the sparse table that covers half of each bin or more, and the two cells at which it is read."""
    length = jnp.maximum(beyond - first, 1)
    level = jnp.zeros_like(first)
    for i in range(1, longest.bit_length()):
        level += (length >> i) > 0
    last = jnp.maximum(beyond - (1 << level), 0)
    return level, jnp.minimum(first, last), last


def _doubled(x, axis: int, levels: int):
    """Return the sparse table of range maxima along `axis`: x, then its maxima over 2, 4, ... neighbors.

    Entries that overhang the end are never read.
    """
    tables = [x]
    for level in range(levels - 1):
        x = jnp.maximum(x, jnp.roll(x, -(1 << level), axis))
        tables.append(x)
    return tables
