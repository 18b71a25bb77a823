"""Boxes of the bottom-up-attention detector: anchors, decoding, suppression, and which regions are kept.

Boxes are x1 y1 x2 y2 in pixels, both ends included, so that widths are x2 - x1 + 1. Shapes are fixed and everything
but `select` runs under `jax.jit`; masks say which rows are real. Semantics are those of the original code (Ren et al.,
2015; Anderson et al., 2018), its compiled suppression included.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

RATIOS, SCALES, BASE = (0.5, 1, 2), (4, 8, 16, 32), 16


def base_anchors() -> Float32[np.ndarray, "a 4"]:
    """The 12 anchors of cell (0, 0) in the order of the network's channels: heights per width, then sizes.

    A ratio's sides are whole pixels (rounded half to even, as NumPy does) before they are scaled.
    """
    centre, anchors = (BASE - 1) / 2, []
    for ratio in RATIOS:
        width = np.round(math.sqrt(BASE * BASE / ratio))
        sides = np.array([width, np.round(width * ratio)])
        for scale in SCALES:
            reach = (sides * scale - 1) / 2
            anchors.append([*(centre - reach), *(centre + reach)])
    return np.array(anchors, np.float32)


def shifted_anchors(anchors: Float[Array, "a 4"], height: int, width: int, stride: int) -> Float[Array, "n 4"]:
    """Anchors of every cell of a map, flat in the order row, column, anchor."""
    x, y = jnp.meshgrid(jnp.arange(width) * stride, jnp.arange(height) * stride)
    shifts = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(anchors.dtype)
    return (shifts + anchors[None]).reshape(-1, 4)


def decode_boxes(boxes: Float[Array, "n 4"], deltas: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Boxes moved by (dx, dy, dw, dh), one or several per box (`bbox_transform_inv`).

    Centres move by parts of the sides, sides grow by exp, without a limit; the far ends are as officially one pixel
    further out than the sides say.
    """
    deltas = deltas.reshape(len(boxes), -1, 4)
    sides = boxes[:, None, 2:] - boxes[:, None, :2] + 1
    centres = boxes[:, None, :2] + 0.5 * sides
    centres = deltas[..., :2] * sides + centres
    half = 0.5 * (jnp.exp(deltas[..., 2:]) * sides)
    return jnp.concatenate([centres - half, centres + half], axis=-1).reshape(len(boxes), -1)


def encode_boxes(boxes: Float[Array, "n 4"], targets: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """The (dx, dy, dw, dh) that take boxes to targets (`bbox_transform`)."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2] + 1, targets[:, 2:] - targets[:, :2] + 1
    moved = targets[:, :2] + 0.5 * wanted - (boxes[:, :2] + 0.5 * sides)
    return jnp.concatenate([moved / sides, jnp.log(wanted / sides)], axis=-1)


def clip_boxes(boxes: Float[Array, "n k"], size: Float[Array, "2"]) -> Float[Array, "n k"]:
    """Boxes inside an image of (width, height) pixels."""
    ends = jnp.tile(size - 1, boxes.shape[1] // 2)[None]
    return jnp.clip(boxes, 0, ends.astype(boxes.dtype))


# --- Suppression ----------------------------------------------------------------------------------------------------


def at_least(threshold: float) -> np.float32:
    """The least float32 that is not below the double `threshold`: the compiled code compares these two.

    So an overlap of exactly 3/10 is suppressed at 0.3 and one of 7/10 is kept at 0.7.
    """
    rounded = np.float32(threshold)
    return rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(np.inf))


def pairwise_iou(first: Float[Array, "n 4"], second: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union, in single precision."""
    first, second = first[:, None], second[None]
    areas = [jnp.prod(boxes[..., 2:] - boxes[..., :2] + 1, axis=-1) for boxes in (first, second)]
    low, high = jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:])
    common = jnp.prod(jnp.maximum(high - low + 1, 0), axis=-1)
    return common / (areas[0] + areas[1] - common)


def suppress(
    boxes: Float[Array, "n 4"], alive: Bool[Array, "n"], threshold: float, most: int
) -> tuple[Int[Array, "m"], Bool[Array, "m"]]:
    """Greedy suppression of boxes in falling order of score: (kept positions, which are real).

    A box goes that overlaps a kept one by `threshold` or more. Stops with `most` kept ones, one overlap row for each.
    """
    limit = at_least(threshold)

    def step(state):
        alive, kept, count = state
        best = jnp.argmax(alive).astype(jnp.int32)
        hidden = pairwise_iou(jax.lax.dynamic_slice_in_dim(boxes, best, 1), boxes)[0] >= limit
        alive = (alive & ~hidden).at[best].set(False)  # a box that is inverted overlaps not even itself
        return alive, kept.at[count].set(best), count + 1

    start = alive, jnp.zeros(most, jnp.int32), jnp.int32(0)
    _, kept, count = jax.lax.while_loop(lambda state: state[0].any() & (state[2] < most), step, start)
    return kept, jnp.arange(most) < count


def class_confidence(
    boxes: Float[Array, "n 4"],
    mask: Bool[Array, "n"],
    probabilities: Float[Array, "n c"],
    threshold: float = 0.3,
) -> Float[Array, "n"]:
    """The highest probability with which each box survives the suppression within a class; 0 where in none.

    All classes at once over one matrix of overlaps: at step t every class looks at its t-th best box and, unless that
    is gone, strikes out what overlaps it. A class's boxes are bits, 32 to a word.
    """
    classes = probabilities.shape[1]
    words = -(-len(boxes) // 32)
    hides = (pairwise_iou(boxes, boxes) >= at_least(threshold)) & mask[None]
    powers = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
    hides = jnp.pad(hides, ((0, 0), (0, words * 32 - len(boxes))))
    hides = jnp.sum(hides.reshape(len(boxes), words, 32) * powers[None, None], axis=-1, dtype=jnp.uint32)
    order = ranking(jnp.where(mask[:, None], probabilities, 0))  # rank, class

    def step(gone, best):
        word = jnp.take_along_axis(gone, (best // 32)[:, None], axis=1)[:, 0]
        survives = (word >> (best % 32).astype(jnp.uint32)) & 1 == 0
        return gone | jnp.where(survives[:, None], hides[best], 0), survives

    _, survives = jax.lax.scan(step, jnp.zeros((classes, words), jnp.uint32), order)
    # Back from ranks to boxes.
    kept = jnp.zeros((len(boxes), classes), bool).at[order, jnp.arange(classes)[None]].set(survives)
    return jnp.max(jnp.where(kept & mask[:, None], probabilities, 0), axis=1, initial=0)


def ranking(probabilities: Float[Array, "n c"]) -> Int32[Array, "n c"]:
    """Row numbers of each column in falling order, equals as they stand: a stable `argsort`, on CPU at a third of its
    time.

    XLA sorts single integers much faster than pairs. So one integer holds the row and as many leading bits of the
    number, which for numbers from 0 to 1 order as integers do; then neighbours that stand wrongly, equal in these bits
    only, are swapped until none does.
    """
    rows, columns = probabilities.shape
    row_bits = max((rows - 1).bit_length(), 1)
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)  # 30 bits, as 1 is the most
    leading = ((0x3FFFFFFF - bits) >> max(row_bits - 2, 0)).astype(jnp.uint32)
    keys = leading << row_bits | jnp.arange(rows, dtype=jnp.uint32)[:, None]
    order = (jnp.sort(keys.T, axis=1).T & ((1 << row_bits) - 1)).astype(jnp.int32)

    def swapped(state, start: int):
        """Neighbours from `start` on, in pairs."""
        end = start + (rows - start) // 2 * 2
        pairs = [array[start:end].reshape(-1, 2, columns) for array in state]
        wrong = pairs[0][:, :1] < pairs[0][:, 1:]
        right = [jnp.where(wrong, pair[:, ::-1], pair).reshape(-1, columns) for pair in pairs]
        return [array.at[start:end].set(new) for array, new in zip(state, right, strict=True)]

    state = [jnp.take_along_axis(bits, order, axis=0), order]

    def is_unsorted(state):
        return (state[0][:-1] < state[0][1:]).any()

    return jax.lax.while_loop(is_unsorted, lambda state: swapped(swapped(state, 0), 1), state)[1]


# --- Proposals and regions ------------------------------------------------------------------------------------------


def propose(
    objectness: Float[Array, "n"],
    deltas: Float[Array, "n 4"],
    anchors: Float[Array, "n 4"],
    inside: Bool[Array, "n"],
    size: Float[Array, "2"],
    min_side: Float[Array, ""],
    *,
    before: int = 6000,
    after: int = 300,
    threshold: float = 0.7,
) -> tuple[Float[Array, "r 4"], Bool[Array, "r"], Int[Array, "r"]]:
    """(boxes, which are real, their anchors' numbers): the best regions of an image of `size` (width, height) pixels.

    Anchors that are `inside` the map are moved and clipped; those with a side below `min_side` go; of the `before` most
    likely, those that survive suppression come, `after` at most, in falling order (`ProposalLayer`). Where none is
    left, as in tiny images, on which the original fails, the one proposal is the whole image.
    """
    boxes = clip_boxes(decode_boxes(anchors, deltas), size)
    large = jnp.min(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) >= min_side
    scores, order = jax.lax.top_k(jnp.where(inside & large, objectness, -jnp.inf), min(before, len(boxes)))
    best = boxes[order]
    kept, mask = suppress(best, scores > -jnp.inf, threshold, after)
    whole = jnp.concatenate([jnp.zeros(2), size - 1]).astype(boxes.dtype)
    found = jnp.where(mask[:, None], best[kept], 0)
    found = found.at[0].set(jnp.where(mask[0], found[0], whole))
    return found, mask.at[0].set(True), order[kept]


def select_regions(
    confidence: Float[np.ndarray, "n"], threshold: float, fewest: int, most: int
) -> Int[np.ndarray, "k"]:
    """The regions kept: of at least `threshold` and in the order of proposals where `fewest` to `most` are, else so
    many in falling order of confidence (`get_detections_from_im`).

    The threshold is a double as in the original. Anderson et al. took 0.2 and 10 to 100, VL-BERT 0.5 and 10 to 100; 36
    of each image is `fewest` = `most` = 36.
    """
    kept = np.flatnonzero(confidence.astype(np.float64) >= threshold)
    if fewest <= len(kept) <= most:
        return kept
    return np.argsort(-confidence, kind="stable")[: fewest if len(kept) < fewest else most]
