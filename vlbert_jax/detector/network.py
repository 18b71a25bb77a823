"""The network of the bottom-up-attention detector: Faster R-CNN with attributes (Anderson et al., 2018).

ResNet and C5 are those of `fast_rcnn.py`, which VL-BERT trains from the same weights with other operations. Here they
are the detector's: max-pooling without padding, RoIPool, and each image as if it were alone in its batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from vlbert_jax.detector.options import Settings
from vlbert_jax.detector.proposals import (
    base_anchors,
    class_confidence,
    clip_boxes,
    decode_boxes,
    propose,
    shifted_anchors,
)
from vlbert_jax.model.resnet import EXPANSION, Backbone, Stage, zero_beyond
from vlbert_jax.model.roi import pool_regions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the weights decide; defaults are those of the published detector."""

    stem_width: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)  # of the 3x3 convolutions of C2..C5
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    rpn_width: int = 512
    num_anchors: int = 12
    num_classes: int = 1601  # with 0, no object
    num_attributes: int = 401  # with 0, no attribute; 0 = the weights have no attributes
    embedding_size: int = 256  # of a class, beside the feature from which attributes are told
    attribute_width: int = 512


Numbers = Array | np.ndarray  # on the device or fetched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Proposals:
    """All regions of a batch, r to an image, in falling order of objectness; coordinates of the network's input."""

    boxes: Float32[Numbers, "b r 4"]
    mask: Bool[Numbers, "b r"]
    features: Float32[Numbers, "b r g"]
    classes: Float32[Numbers, "b r c"]  # probabilities
    class_ids: Int32[Numbers, "b r"]  # the best, 0 included: it chooses the embedding beside the feature
    deltas: Float32[Numbers, "b r k"] | None  # 4 per class, for `class_boxes`
    confidence: Float32[Numbers, "b r"]  # with which the region survives in any class
    attributes: Float32[Numbers, "b r a"] | None  # probabilities


class FasterRCNN(nnx.Module):
    """Images to 300 regions each, with features and probabilities. See `Settings` for how it is run."""

    def __init__(self, sizes: Sizes, settings: Settings, *, dtype=jnp.float32, rngs: nnx.Rngs):
        if settings.roi_operation not in ("pool", "align"):
            raise ValueError(f"roi_operation is {settings.roi_operation!r}, neither 'pool' nor 'align'")
        self.sizes, self.settings, self.dtype = sizes, settings, dtype
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
        # Columns: first background then foreground of all anchors; dx, dy, dw, dh of each.
        self.objectness = nnx.Conv(sizes.rpn_width, 2 * sizes.num_anchors, (1, 1), **same)
        self.anchor_deltas = nnx.Conv(sizes.rpn_width, 4 * sizes.num_anchors, (1, 1), **same)
        features, same = c5_width * EXPANSION, dict(rngs=rngs)  # heads in float32
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
        """`pixels` are BGR minus the means, images of `image_size` (width, height) at the top left, zeros elsewhere.

        `scale` says how much larger they are than the originals. What is in an image's padding has no effect.
        """
        feature_map = self.backbone(pixels, image_size)
        objectness, deltas = self.propose_scores(feature_map, image_size)
        boxes, mask, _ = self.proposals(objectness, deltas, image_size, scale)
        features = self.region_features(feature_map, image_size, boxes, mask)
        return self.describe(boxes, mask, features, scale)

    def propose_scores(
        self, feature_map: Float[Array, "b h w c"], image_size: Int[Array, "b 2"]
    ) -> tuple[Float[Array, "b h w a"], Float[Array, "b h w k"]]:
        """Probability of an object and four deltas for each anchor of each cell."""
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
        """(boxes, which are real, numbers of their anchors) as `proposals.propose` chooses them."""
        b, height, width, _ = objectness.shape
        s = self.settings
        anchors = shifted_anchors(self.anchors[...], height, width, self.backbone.stride)
        inside = zero_beyond(jnp.ones_like(objectness), self.backbone.cells(image_size)) > 0
        least = min(s.proposals_before, len(anchors))

        def one(objectness, deltas, inside, size, min_side):
            return propose(
                objectness,
                deltas,
                anchors,
                inside,
                size,
                min_side,
                before=least,
                after=s.proposals_after,
                threshold=s.proposal_overlap,
            )

        flat = objectness.reshape(b, -1), deltas.reshape(b, -1, 4), inside.reshape(b, -1)
        return jax.vmap(one)(*flat, image_size.astype(jnp.float32), s.min_side * scale)

    def region_features(
        self,
        feature_map: Float[Array, "b h w c"],
        image_size: Int[Array, "b 2"],
        boxes: Float[Array, "b r 4"],
        mask: Bool[Array, "b r"],
    ) -> Float32[Array, "b r g"]:
        """The mean of C5 over each real region, zeros elsewhere."""
        options = dict(
            operation=self.settings.roi_operation,
            size=14,
            samples=1,
            scale=1 / self.backbone.stride,
            chunk=self.settings.roi_chunk,
            remat=False,
            frozen=False,
        )
        graphdef, state = nnx.split(self.c5)
        cells = self.backbone.cells(image_size)
        return pool_regions(graphdef, options, state, feature_map, cells, boxes, mask, None).astype(jnp.float32)

    def describe(
        self,
        boxes: Float[Array, "b r 4"],
        mask: Bool[Array, "b r"],
        features: Float32[Array, "b r g"],
        scale: Float[Array, "b"],
    ) -> Proposals:
        """Classes, attributes and the confidence that decides which regions are kept."""
        probabilities = jax.nn.softmax(self.classes(features), axis=-1)
        # Of equal ones the last, as Caffe's ArgMax.
        best = probabilities.shape[-1] - 1 - jnp.argmax(probabilities[..., ::-1], axis=-1)
        attributes = None
        if self.sizes.num_attributes:
            x = jnp.concatenate([features, self.class_embedding(best)], axis=-1)
            attributes = jax.nn.softmax(self.attributes(jax.nn.relu(self.attribute_hidden(x))), axis=-1)
        overlap = self.settings.class_overlap
        original = boxes / scale[:, None, None]  # where a pixel is wider, boxes that include their ends overlap more
        confidence = jax.vmap(lambda *image: class_confidence(*image, overlap))(original, mask, probabilities[..., 1:])
        return Proposals(
            boxes, mask, features, probabilities, best.astype(jnp.int32), self.boxes(features), confidence, attributes
        )


def class_boxes(
    proposals: Proposals, image_size: Float[Array, "b 2"], scale: Float[Array, "b"]
) -> Float[Array, "b r k"]:
    """Each region moved as each class would have it, pixels of the original image of `image_size` (width, height).

    The extraction of features leaves regions where they are (`generate_tsv`); this is for detection proper.
    """
    boxes = proposals.boxes / scale[:, None, None]
    decode = jax.vmap(lambda boxes, deltas, size: clip_boxes(decode_boxes(boxes, deltas), size))
    return decode(boxes, proposals.deltas, image_size)
