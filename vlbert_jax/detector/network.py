"""The network of the bottom-up-attention detector (Anderson et al., 2018).

It is a Faster R-CNN with attributes.

ResNet and C5 come from `model/resnet.py`; VL-BERT trains them from the same weights with other
operations. Here they use the detector's operations: max-pooling without padding, RoIPool, and each
image as if it were alone in its batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from vlbert_jax.detector.options import NetworkSettings
from vlbert_jax.detector.proposals import (
    base_anchors,
    class_confidence,
    clip_boxes,
    decode_boxes,
    propose,
    shifted_anchors,
)
from vlbert_jax.model.config import RoIOptions
from vlbert_jax.model.resnet import EXPANSION, Backbone, Stage, zero_beyond
from vlbert_jax.model.roi import pool_regions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the network; the defaults are those of the published detector."""

    stem_width: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the 3x3 convolutions of C2..C5
    blocks: tuple[int, ...] = (3, 4, 23, 3)  # residual blocks of C2..C5
    rpn_width: int = 512
    num_anchors: int = 12
    num_classes: int = 1601  # class 0 is "no object"
    num_attributes: int = 401  # attribute 0 is "no attribute"; 0 = the weights have no attributes
    embedding_size: int = 256  # width of the class embedding, an input of the attribute layers
    attribute_width: int = 512


DeviceOrHost = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Proposals:
    """All region proposals of a batch, r per image, in descending order of objectness.

    Coordinates are pixels of the network's input.
    """

    boxes: Float32[DeviceOrHost, "b r 4"]
    mask: Bool[DeviceOrHost, "b r"]  # True = real
    features: Float32[DeviceOrHost, "b r g"]
    classes: Float32[DeviceOrHost, "b r c"]  # probabilities
    class_ids: Int32[DeviceOrHost, "b r"]  # the most probable, including 0; it selects the class embedding
    deltas: Float32[DeviceOrHost, "b r k"] | None  # 4 per class
    confidence: Float32[DeviceOrHost, "b r"]  # by which regions are chosen
    attributes: Float32[DeviceOrHost, "b r a"] | None  # probabilities
    region_boxes: Float32[DeviceOrHost, "b r 4"]  # boxes of the regions; only Hugging Face's rules refine them


class FasterRCNN(nnx.Module):
    """The network from images to region proposals with features and probabilities, by Caffe's rules."""

    def __init__(self, sizes: Sizes, settings: NetworkSettings, *, dtype=jnp.float32, rngs: nnx.Rngs):
        if settings.roi_operation not in ("pool", "align"):
            raise ValueError(f"roi_operation is {settings.roi_operation!r}; it must be 'pool' or 'align'")
        self.sizes, self.dtype = sizes, dtype
        self.settings: Any = settings  # of the class that belongs to the rules
        *widths, c5_width = sizes.widths
        *blocks, c5_blocks = sizes.blocks
        self.backbone = Backbone(
            stem_width=sizes.stem_width,
            widths=tuple(widths),
            blocks=tuple(blocks),
            strides=(1, 2, 2),
            stride_in_1x1=True,
            frozen_stages=(),
            caffe_max_pool=True,
            dtype=dtype,
            rngs=rngs,
        )
        inputs = self.backbone.outputs
        self.c5 = Stage(inputs, c5_width, c5_blocks, dilation=2, stride_in_1x1=True, dtype=dtype, rngs=rngs)
        self.anchors = nnx.BatchStat(jnp.asarray(base_anchors()))
        same = dict(dtype=dtype, rngs=rngs)
        self.rpn = nnx.Conv(inputs, sizes.rpn_width, (3, 3), padding=1, **same)
        # Columns of objectness: background of all anchors, then foreground of all. Columns of
        # anchor_deltas: dx, dy, dw, dh of each anchor.
        self.objectness = nnx.Conv(sizes.rpn_width, 2 * sizes.num_anchors, (1, 1), **same)
        self.anchor_deltas = nnx.Conv(sizes.rpn_width, 4 * sizes.num_anchors, (1, 1), **same)
        features, same = c5_width * EXPANSION, dict(rngs=rngs)  # the heads are float32
        self.classes = nnx.Linear(features, sizes.num_classes, **same)
        self.boxes = nnx.Linear(features, 4 * sizes.num_classes, **same)
        if sizes.num_attributes:
            self.class_embedding = nnx.Embed(sizes.num_classes, sizes.embedding_size, **same)
            self.attribute_hidden = nnx.Linear(features + sizes.embedding_size, sizes.attribute_width, **same)
            self.attributes = nnx.Linear(sizes.attribute_width, sizes.num_attributes, **same)

    def __call__(
        self,
        pixels: Float[Array, "b y x 3"],
        image_size: Int[Array, "b 2"],
        scale: Float[Array, "b"],
    ) -> Proposals:
        """Return the proposals of a batch of images.

        Args:
            pixels: BGR minus the pixel means; each image is at the top left, the padding is zero
                and has no effect.
            image_size: width and height of each image in `pixels`.
            scale: size of each image relative to the original.
        """
        feature_map = self.backbone(pixels, image_size)
        objectness, deltas = self.propose_scores(feature_map, image_size)
        boxes, mask, _ = self.proposals(objectness, deltas, image_size, scale)
        features = self.region_features(feature_map, image_size, boxes, mask)
        return self.describe(boxes, mask, features, image_size, scale)

    def propose_scores(
        self, feature_map: Float[Array, "b h w c"], image_size: Int[Array, "b 2"]
    ) -> tuple[Float[Array, "b h w a"], Float[Array, "b h w k"]]:
        """Return the probability of an object and four deltas for each anchor of each cell."""
        x = zero_beyond(feature_map, self.backbone.cells(image_size))
        x = jax.nn.relu(self.rpn(x))
        scores = self.objectness(x).astype(jnp.float32)
        scores = scores.reshape(*scores.shape[:-1], 2, -1)
        return jax.nn.softmax(scores, axis=-2)[..., 1, :], self.anchor_deltas(x).astype(jnp.float32)

    def proposals(
        self,
        objectness: Float[Array, "b h w a"],
        deltas: Float[Array, "b h w k"],
        image_size: Int[Array, "b 2"],
        scale: Float[Array, "b"],
    ) -> tuple[Float[Array, "b r 4"], Bool[Array, "b r"], Int[Array, "b r"]]:
        """Return (boxes, which are real, rows of their anchors) of `proposals.propose`."""
        b, height, width, _ = objectness.shape
        s = self.settings
        anchors = shifted_anchors(self.anchors[...], height, width, self.backbone.stride)
        inside = zero_beyond(jnp.ones_like(objectness), self.backbone.cells(image_size)) > 0

        def propose_one(objectness, deltas, inside, size, min_side):
            return propose(
                objectness,
                deltas,
                anchors,
                inside,
                size,
                min_side,
                before=min(s.proposals_before, len(anchors)),
                after=s.proposals_after,
                threshold=s.proposal_overlap,
            )

        flat = objectness.reshape(b, -1), deltas.reshape(b, -1, 4), inside.reshape(b, -1)
        return jax.vmap(propose_one)(*flat, image_size.astype(jnp.float32), s.min_side * scale)

    def region_features(
        self,
        feature_map: Float[Array, "b h w c"],
        image_size: Int[Array, "b 2"],
        boxes: Float[Array, "b r 4"],
        mask: Bool[Array, "b r"],
    ) -> Float32[Array, "b r g"]:
        """Return the mean of C5 over each real region, zeros for padding."""
        options = RoIOptions(operation=self.settings.roi_operation, chunk=self.settings.roi_chunk)
        scale = 1 / self.backbone.stride
        graphdef, state = nnx.split(self.c5)
        cells = self.backbone.cells(image_size)
        return pool_regions(graphdef, options, scale, state, feature_map, cells, boxes, mask, None).astype(jnp.float32)

    def describe(
        self,
        boxes: Float[Array, "b r 4"],
        mask: Bool[Array, "b r"],
        features: Float32[Array, "b r g"],
        image_size: Int[Array, "b 2"],
        scale: Float[Array, "b"],
    ) -> Proposals:
        """Return the proposals with their classes, attributes and confidence.

        The confidence is the highest probability of a class in which the proposal survives NMS.

        Args:
            boxes: pixels of the network's input.
            mask: which of them are real.
            features: their appearance, from `region_features`.
            image_size: width and height of each image in the same pixels; it has no effect here.
            scale: size of each image relative to the original.
        """
        probabilities = jax.nn.softmax(self.classes(features), axis=-1)
        # Among equal probabilities the last one, as in Caffe's ArgMax.
        best = (probabilities.shape[-1] - 1 - jnp.argmax(probabilities[..., ::-1], axis=-1)).astype(jnp.int32)
        attributes = None
        if self.sizes.num_attributes:
            attributes = jax.nn.softmax(self.attribute_scores(features, best), axis=-1)
        overlap = self.settings.class_overlap
        # Boxes include both ends, so the IoU depends on the pixel size. The original computes it in
        # original pixels.
        original = boxes / scale[:, None, None]
        confidence = jax.vmap(lambda *image: class_confidence(*image, overlap))(original, mask, probabilities[..., 1:])  # pyright: ignore[reportCallIssue]
        return Proposals(
            boxes, mask, features, probabilities, best, self.boxes(features), confidence, attributes, region_boxes=boxes
        )

    def attribute_scores(
        self, features: Float32[Array, "b r g"], class_ids: Int32[Array, "b r"]
    ) -> Float32[Array, "b r a"]:
        """Return the logits of the attributes of regions whose classes are `class_ids`."""
        x = jnp.concatenate([features, self.class_embedding(class_ids)], axis=-1)
        return self.attributes(jax.nn.relu(self.attribute_hidden(x)))


def class_boxes(
    proposals: Proposals, image_size: Float[Array, "b 2"], scale: Float[Array, "b"]
) -> Float[Array, "b r k"]:
    """Return each region refined for each class.

    Object detection needs these boxes. The extraction of features does not (`generate_tsv`).

    Args:
        proposals: the network's output, with deltas.
        image_size: width and height of each original image.
        scale: size of each image in the network's input relative to the original.

    Returns:
        Boxes in pixels of the original images, 4 values per class.
    """
    boxes = proposals.boxes / scale[:, None, None]
    decode = jax.vmap(lambda boxes, deltas, size: clip_boxes(decode_boxes(boxes, deltas), size))
    return decode(boxes, proposals.deltas, image_size)
