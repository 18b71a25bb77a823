"""The rules of Hugging Face's `frcnn`, whose regions the demonstration of LXMERT reads.

The network is that of Anderson et al.; what is around it follows detectron2. Boxes do not include their ends, so a
width is x2 - x1, and a box is suppressed where its IoU is above a threshold. The box of a region is refined for its
best class; its features are those of the proposal. Anchors are centered on the corner of a cell; the weights hold
them. Where too few regions remain at every threshold, the original stops with an error; here those of the last
threshold are taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from vlbert_jax.batch import PIXEL_MEANS
from vlbert_jax.detector.network import FasterRCNN, Proposals
from vlbert_jax.detector.proposals import greedy_nms, shifted_anchors
from vlbert_jax.model.resnet import zero_beyond

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # factors of the deltas that refine regions
MOST_GROWTH = math.log(1000 / 16)  # limit of dw and dh


class HuggingFaceRCNN(FasterRCNN):
    """The network with the rules of this module; its settings are `HuggingFaceSettings`."""

    def proposals(
        self,
        objectness: Float[Array, "b h w a"],
        deltas: Float[Array, "b h w k"],
        image_size: Int[Array, "b 2"],
        scale: Float[Array, "b"],
    ) -> tuple[Float[Array, "b r 4"], Bool[Array, "b r"], Int[Array, "b r"]]:
        """Return (boxes, which are real, rows of their anchors) of `propose`; `scale` has no effect."""
        b, height, width, _ = objectness.shape
        anchors = shifted_anchors(self.anchors[...], height, width, self.backbone.stride)
        inside = zero_beyond(jnp.ones_like(objectness), self.backbone.cells(image_size)) > 0
        s = self.settings
        options = dict(before=s.proposals_before, after=s.proposals_after, threshold=s.proposal_overlap)
        flat = objectness.reshape(b, -1), deltas.reshape(b, -1, 4), inside.reshape(b, -1)
        return jax.vmap(functools.partial(propose, anchors=anchors, **options))(*flat, image_size.astype(jnp.float32))

    def describe(
        self,
        boxes: Float[Array, "b r 4"],
        mask: Bool[Array, "b r"],
        features: Float32[Array, "b r g"],
        image_size: Int[Array, "b 2"],
        scale: Float[Array, "b"],
    ) -> Proposals:
        """Return the proposals with their classes, attributes and refined boxes; `scale` has no effect.

        The confidence is the probability of the best class. Attribute 0, "no attribute", has probability 0.
        """
        probabilities = jax.nn.softmax(self.classes(features), axis=-1)
        class_ids = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
        attributes = None
        if self.sizes.num_attributes:
            attributes = self.attribute_scores(features, class_ids)
            attributes = jax.nn.softmax(attributes.at[..., 0].set(-jnp.inf), axis=-1)
        deltas = self.boxes(features)
        best = 1 + jnp.argmax(probabilities[..., 1:], axis=-1)
        best_deltas = jnp.take_along_axis(deltas.reshape(*best.shape, -1, 4), best[..., None, None], axis=2)[:, :, 0]
        moved = jax.vmap(jax.vmap(move_box))(boxes, best_deltas / jnp.array(DELTA_WEIGHTS)[None, None])
        refined = clip(moved, image_size[:, None].astype(jnp.float32))
        confidence = jnp.where(mask, probabilities[..., 1:].max(-1), 0)
        return Proposals(boxes, mask, features, probabilities, class_ids, deltas, confidence, attributes, refined)


def move_box(box: Float[Array, "4"], delta: Float[Array, "4"]) -> Float[Array, "4"]:
    """Move one box by (dx, dy, dw, dh); dw and dh have the limit `MOST_GROWTH`."""
    sides = box[2:] - box[:2]
    centers = delta[:2] * sides + (box[:2] + 0.5 * sides)
    half = 0.5 * (jnp.exp(jnp.minimum(delta[2:], MOST_GROWTH)) * sides)
    return jnp.concatenate([centers - half, centers + half])


def clip(boxes: Float[Array, "... 4"], size: Float[Array, "... 2"]) -> Float[Array, "... 4"]:
    """Clip boxes to images of `size` (width, height) pixels, whose last pixel ends at that coordinate."""
    return jnp.clip(boxes, 0, jnp.concatenate([size, size], axis=-1))


def propose(
    objectness: Float[Array, "n"],
    deltas: Float[Array, "n 4"],
    inside: Bool[Array, "n"],
    size: Float[Array, "2"],
    *,
    anchors: Float[Array, "n 4"],
    before: int,
    after: int,
    threshold: float,
) -> tuple[Float[Array, "r 4"], Bool[Array, "r"], Int[Array, "r"]]:
    """Return the best region proposals of one image (`find_top_rpn_proposals`).

    The best `before` anchors are moved and clipped; those without an area are removed. If no box remains, the only
    proposal is the whole image.

    Args:
        objectness: probability of an object per anchor.
        deltas: predicted (dx, dy, dw, dh) per anchor.
        inside: anchors that are not in padding.
        size: width and height of the image in pixels of the network's input.
        anchors: boxes in the same pixels.
        before: number of anchors that go into suppression.
        after: number of proposals that are returned.
        threshold: IoU above which a proposal is suppressed.

    Returns:
        (boxes in descending order of objectness, which of them are real, row of each one's anchor).
    """
    scores, order = jax.lax.top_k(jnp.where(inside, objectness, -jnp.inf), min(before, len(anchors)))
    boxes = clip(jax.vmap(move_box)(anchors[order], deltas[order]), size[None])
    alive = (scores > -jnp.inf) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    kept, mask = greedy_nms(boxes, alive, threshold, after, overlaps)
    whole = jnp.concatenate([jnp.zeros(2), size]).astype(boxes.dtype)
    found = jnp.where(mask[:, None], boxes[kept], 0)
    found = found.at[0].set(jnp.where(mask[0], found[0], whole))
    return found, mask.at[0].set(True), order[kept]


def overlaps(box: Float[Array, "1 4"], boxes: Float[Array, "n 4"], threshold: float) -> Bool[Array, "n"]:
    """Return which boxes have an IoU of more than `threshold` with `box`."""
    areas = [jnp.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (box, boxes)]
    low, high = jnp.maximum(box[:, :2], boxes[:, :2]), jnp.minimum(box[:, 2:], boxes[:, 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    # The original compares a float32 with a double: it is above a double if it is above the largest float32 below it.
    rounded = np.float32(threshold)
    limit = rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))
    return common / (areas[0] + areas[1] - common) > limit


@functools.partial(jax.jit, static_argnames=("threshold", "most"))
def _suppress(boxes, alive, threshold: float, most: int):
    return greedy_nms(boxes, alive, threshold, most, overlaps)


def select_regions(
    boxes: Float32[np.ndarray, "n 4"],
    mask: Bool[np.ndarray, "n"],
    confidence: Float32[np.ndarray, "n"],
    thresholds: Sequence[float],
    fewest: int,
    most: int,
) -> Int[np.ndarray, "k"]:
    """Return the rows of the regions that are kept, in descending order of confidence (`do_nms`).

    The suppression, over all classes at once, is tried at each of `thresholds` until `fewest` regions remain; the best
    `most` of them are kept.
    """
    order = np.argsort(-confidence, kind="stable")
    for threshold in thresholds:
        kept, real = _suppress(boxes[order], mask[order], threshold, most)
        if real.sum() >= fewest:
            break
    return order[np.asarray(kept)[np.asarray(real)]]


# --- Pixels ---------------------------------------------------------------------------------------


def resized_size(size: tuple[int, int], image_scale: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of an image of `size` after the resize (`ResizeShortestEdge`).

    The short side becomes `image_scale[0]`, or less where the long side would exceed `image_scale[1]`.
    """
    factor = image_scale[0] / min(size)
    sides = [image_scale[0] if side == min(size) else factor * side for side in size]
    if max(sides) > image_scale[1]:
        limit = image_scale[1] / max(sides)
        sides = [side * limit for side in sides]
    return tuple(max(int(side + 0.5), 3) for side in sides)  # nothing of a shorter side remains after the stem


def resized_pixels(image: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> Float32[np.ndarray, "h w 3"]:
    """Return an RGB image resized to `size` (width, height), as the network reads it: BGR minus the pixel means.

    The resize is PyTorch's bilinear one without a filter. Positions are float32, as there: OpenCV's, which are float64,
    change pixels by up to 1e-3.
    """
    pixels = image[..., ::-1].astype(np.float32)
    for axis, outputs in enumerate(reversed(size)):
        inputs = pixels.shape[axis]
        step = np.float32(inputs) / np.float32(outputs)
        places = np.maximum(np.float64(step) * (np.arange(outputs) + 0.5) - 0.5, 0).astype(np.float32)
        low = places.astype(np.intp)
        part = np.expand_dims(places - low.astype(np.float32), (1, 2) if axis == 0 else (0, 2))
        high = np.minimum(low + 1, inputs - 1)
        pixels = np.take(pixels, low, axis) * (1 - part) + np.take(pixels, high, axis) * part
    return pixels - np.array(PIXEL_MEANS, np.float32)
