"""Boxes of the bottom-up-attention detector: anchors, decoding, non-maximum suppression, selection.

Boxes are x1 y1 x2 y2 in pixels and include both ends, so a width is x2 - x1 + 1. Shapes are fixed,
masks mark the real rows, and everything except `select_regions` runs under `jax.jit`. The semantics
are those of the original code (Ren et al., 2015; Anderson et al., 2018), including its compiled
suppression.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from vlbert_jax.geometry import pairwise_iou

RATIOS, SCALES, BASE = (0.5, 1, 2), (4, 8, 16, 32), 16


def base_anchors() -> Float32[np.ndarray, "a 4"]:
    """Return the 12 anchors of cell (0, 0), ordered by ratio, then size, as the channels are.

    The ratio is height to width. As in the original, the sides for each ratio are rounded to whole
    pixels (half to even, as NumPy rounds) before they are scaled.
    """
    center, anchors = (BASE - 1) / 2, []
    for ratio in RATIOS:
        width = np.round(math.sqrt(BASE * BASE / ratio))
        sides = np.array([width, np.round(width * ratio)])
        for scale in SCALES:
            reach = (sides * scale - 1) / 2
            anchors.append([*(center - reach), *(center + reach)])
    return np.array(anchors, np.float32)


def shifted_anchors(anchors: Float[Array, "a 4"], height: int, width: int, stride: int) -> Float[Array, "n 4"]:
    """Return the anchors of every cell of a map, flat in the order row, column, anchor."""
    x, y = jnp.meshgrid(jnp.arange(width) * stride, jnp.arange(height) * stride)
    shifts = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(anchors.dtype)
    return (shifts + anchors[None]).reshape(-1, 4)


def decode_boxes(boxes: Float[Array, "n 4"], deltas: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Move boxes by (dx, dy, dw, dh), one or several per box (`bbox_transform_inv`).

    Centers move by fractions of the sides. Sides are multiplied by exp(dw), exp(dh) without a
    limit. As in the official code, x2 and y2 are one pixel beyond what the sides give.
    """
    deltas = deltas.reshape(len(boxes), -1, 4)
    sides = boxes[:, None, 2:] - boxes[:, None, :2] + 1
    centers = boxes[:, None, :2] + 0.5 * sides
    centers = deltas[..., :2] * sides + centers
    half = 0.5 * (jnp.exp(deltas[..., 2:]) * sides)
    return jnp.concatenate([centers - half, centers + half], axis=-1).reshape(len(boxes), -1)


def encode_boxes(boxes: Float[Array, "n 4"], targets: Float[Array, "n 4"]) -> Float[Array, "n 4"]:
    """Return the (dx, dy, dw, dh) that move boxes to targets (`bbox_transform`)."""
    sides, target_sides = boxes[:, 2:] - boxes[:, :2] + 1, targets[:, 2:] - targets[:, :2] + 1
    moved = targets[:, :2] + 0.5 * target_sides - (boxes[:, :2] + 0.5 * sides)
    return jnp.concatenate([moved / sides, jnp.log(target_sides / sides)], axis=-1)


def clip_boxes(boxes: Float[Array, "n k"], size: Float[Array, "2"]) -> Float[Array, "n k"]:
    """Clip boxes to an image of `size` (width, height) pixels."""
    ends = jnp.tile(size - 1, boxes.shape[1] // 2)[None]
    return jnp.clip(boxes, 0, ends.astype(boxes.dtype))


# --- Non-maximum suppression ----------------------------------------------------------------------


def round_up_to_float32(threshold: float) -> np.float32:
    """Return the smallest float32 that is not below `threshold`.

    The original compares a float32 overlap with a double threshold, so an overlap of exactly 3/10
    is suppressed at 0.3 and one of 7/10 is kept at 0.7. A float32 comparison with the rounded-up
    threshold gives the same results.
    """
    rounded = np.float32(threshold)
    return rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(np.inf))


def overlaps_by_pixels(
    box: Float[Array, "1 4"], boxes: Float[Array, "n 4"], threshold: float
) -> Bool[Array, "n"]:
    """Return which boxes have an IoU of at least `threshold` with `box`."""
    return pairwise_iou(box, boxes)[0] >= round_up_to_float32(threshold)


def greedy_nms(
    boxes: Float[Array, "n 4"],
    alive: Bool[Array, "n"],
    threshold: float,
    most: int,
    overlaps: Callable[[Float[Array, "1 4"], Float[Array, "n 4"], float], Bool[Array, "n"]] = overlaps_by_pixels,
) -> tuple[Int[Array, "m"], Bool[Array, "m"]]:
    """Run greedy non-maximum suppression over boxes in descending order of score.

    Args:
        boxes: the candidates, best first.
        alive: the candidates that take part.
        threshold: IoU with a kept box by which `overlaps` decides.
        most: number of kept boxes after which to stop; each costs one row of overlaps.
        overlaps: function of a box, boxes and `threshold` that returns which of them the box suppresses.

    Returns:
        The rows of the kept boxes in their order, padded to `most`, and which of them are real.
    """

    def step(state):
        alive, kept, count = state
        best = jnp.argmax(alive).astype(jnp.int32)
        suppressed = overlaps(jax.lax.dynamic_slice_in_dim(boxes, best, 1), boxes, threshold)
        alive = (alive & ~suppressed).at[best].set(False)  # an inverted box does not even overlap itself
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
    """Return the highest class probability with which each box survives NMS within a class.

    A box that survives in no class has 0.

    The suppression runs for all classes at once over one matrix of overlaps: in step t every class
    takes its t-th best box and, if that box is not suppressed, suppresses the boxes that overlap
    it. The set of suppressed boxes of a class is a bitset, 32 boxes per word.

    Args:
        boxes: the candidates in any order.
        mask: the real ones.
        probabilities: probability of each class, without "no object".
        threshold: IoU from which a box is suppressed.
    """
    classes = probabilities.shape[1]
    overlapping = (pairwise_iou(boxes, boxes) >= round_up_to_float32(threshold)) & mask[None]
    bitsets = _pack_bits(overlapping)
    order = argsort_descending(jnp.where(mask[:, None], probabilities, 0))  # rank, class

    def step(suppressed, best):
        word = jnp.take_along_axis(suppressed, (best // 32)[:, None], axis=1)[:, 0]
        survives = (word >> (best % 32).astype(jnp.uint32)) & 1 == 0
        return suppressed | jnp.where(survives[:, None], bitsets[best], 0), survives

    _, survives = jax.lax.scan(step, jnp.zeros((classes, bitsets.shape[1]), jnp.uint32), order)
    # Scatter from ranks back to boxes.
    kept = jnp.zeros((len(boxes), classes), bool).at[order, jnp.arange(classes)[None]].set(survives)
    return jnp.max(jnp.where(kept & mask[:, None], probabilities, 0), axis=1, initial=0)


def _pack_bits(rows: Bool[Array, "n m"]) -> Array:
    """Return each row as uint32 words, bit i of word k = column 32 k + i."""
    words = -(-rows.shape[1] // 32)
    powers = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
    padded = jnp.pad(rows, ((0, 0), (0, words * 32 - rows.shape[1])))
    return jnp.sum(padded.reshape(len(rows), words, 32) * powers[None, None], axis=-1, dtype=jnp.uint32)


def argsort_descending(probabilities: Float[Array, "n c"]) -> Int32[Array, "n c"]:
    """Return the row indices that sort each column in descending order; the sort is stable.

    XLA's CPU backend sorts single integers three times as fast as (key, index) pairs, so one
    integer holds the leading bits of the probability and the row. For values from 0 to 1 the bits
    order as the values do. An odd-even transposition sort then finishes the rows that are equal in
    the leading bits only.
    """
    rows, columns = probabilities.shape
    row_bits = max((rows - 1).bit_length(), 1)
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)  # 30 bits, as 1 is the maximum
    leading = ((0x3FFFFFFF - bits) >> max(row_bits - 2, 0)).astype(jnp.uint32)
    keys = leading << row_bits | jnp.arange(rows, dtype=jnp.uint32)[:, None]
    order = (jnp.sort(keys.T, axis=1).T & ((1 << row_bits) - 1)).astype(jnp.int32)

    def swap_pairs(state, start: int):
        """Sort the pairs of neighbors (start, start + 1), (start + 2, start + 3), ..."""
        end = start + (rows - start) // 2 * 2
        pairs = [array[start:end].reshape(-1, 2, columns) for array in state]
        wrong = pairs[0][:, :1] < pairs[0][:, 1:]
        right = [jnp.where(wrong, pair[:, ::-1], pair).reshape(-1, columns) for pair in pairs]
        return [array.at[start:end].set(new) for array, new in zip(state, right, strict=True)]

    def is_unsorted(state):
        return (state[0][:-1] < state[0][1:]).any()

    state = [jnp.take_along_axis(bits, order, axis=0), order]
    return jax.lax.while_loop(is_unsorted, lambda state: swap_pairs(swap_pairs(state, 0), 1), state)[1]


# --- Proposals and regions ------------------------------------------------------------------------


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
    """Return the best region proposals of one image (`ProposalLayer`).

    Anchors are moved by their deltas and clipped to the image. Small ones are removed, the best
    `before` go through greedy NMS, and the best `after` of the survivors remain. If none remains,
    as in tiny images, on which the original fails, the only proposal is the whole image.

    Args:
        objectness: probability of an object per anchor.
        deltas: predicted (dx, dy, dw, dh) per anchor.
        anchors: boxes in pixels of the network's input.
        inside: anchors that are not in padding.
        size: width and height of the image in the same pixels.
        min_side: smallest side of a proposal in the same pixels.
        before: number of proposals that go into suppression.
        after: number of proposals that are returned.
        threshold: IoU from which a proposal is suppressed.

    Returns:
        (boxes in descending order of objectness, which of them are real, row of each one's anchor).
    """
    boxes = clip_boxes(decode_boxes(anchors, deltas), size)
    large = jnp.min(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) >= min_side
    scores, order = jax.lax.top_k(jnp.where(inside & large, objectness, -jnp.inf), min(before, len(boxes)))
    best = boxes[order]
    kept, mask = greedy_nms(best, scores > -jnp.inf, threshold, after)
    whole = jnp.concatenate([jnp.zeros(2), size - 1]).astype(boxes.dtype)
    found = jnp.where(mask[:, None], best[kept], 0)
    found = found.at[0].set(jnp.where(mask[0], found[0], whole))
    return found, mask.at[0].set(True), order[kept]


def select_regions(
    confidence: Float[np.ndarray, "n"], threshold: float, fewest: int, most: int
) -> Int[np.ndarray, "k"]:
    """Return the rows of the regions that are kept (`get_detections_from_im`).

    These are the rows with a confidence of at least `threshold`, in their order, if there are
    `fewest` to `most` of them. Otherwise these are the `fewest` or `most` rows with the highest
    confidence, in descending order. As in the original, the threshold is a double.
    """
    kept = np.flatnonzero(confidence.astype(np.float64) >= threshold)
    if fewest <= len(kept) <= most:
        return kept
    return np.argsort(-confidence, kind="stable")[: fewest if len(kept) < fewest else most]
