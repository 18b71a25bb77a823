"""The contract between host and device: one `Batch` for every task.

Axes: `b` examples (one image or none each), `n` sequences per example, `s` elements per sequence,
`r` regions, `y x` pixels, `g` appearance width, `e` geometry width, `m` masked words per sequence, `c` region classes,
`a` answers.

Sequences are packed on the host without gaps: text, then regions, then [END]. Three element kinds that
are not words have ids right behind the vocabulary, so one table embeds every element.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

# Added to the vocabulary size: the id of an element that is a region, a region whose appearance is
# hidden, and the end of the sequence.
IMG, IMG_MASK, END = 0, 1, 2
NUM_EXTRA_IDS = 3
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # of an example, by field: shape without the axis b, dtype
NO_IMAGE = -1  # `region_ids` of elements that carry the learned vector of text-only sequences


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A global batch as the model reads it. Masks are bool, True = real. Absent fields are None."""

    # The elements.
    token_ids: Int[Array | np.ndarray, "b n s"]  # WordPiece id, or vocabulary size + IMG, IMG_MASK, END
    region_ids: Int[Array | np.ndarray, "b n s"]  # whose visual feature it carries; 0 = whole image; NO_IMAGE
    segment_ids: Int[Array | np.ndarray, "b n s"]  # 0 = A, 1 = B, 2 = image
    position_ids: Int[Array | np.ndarray, "b n s"]  # the regions of a sequence share one
    element_mask: Bool[Array | np.ndarray, "b n s"]

    # The image. All None in a batch of text alone.
    boxes: Float[Array | np.ndarray, "b r 4"] | None = None  # x1 y1 x2 y2 in pixels of the resized image
    region_mask: Bool[Array | np.ndarray, "b r"] | None = None
    region_hidden: Bool[Array | np.ndarray, "b r"] | None = None  # appearance hidden, to be classified
    image_size: Float[Array | np.ndarray, "b 2"] | None = None  # width, height after resize, before padding
    # uint8 RGB as decoded, zero-padded right and bottom; float = already BGR minus the channel means.
    image: Shaped[Array | np.ndarray, "b y x 3"] | None = None
    region_features: Float[Array | np.ndarray, "b r g"] | None = None  # precomputed appearance, instead of image
    box_geometry: Float[Array | np.ndarray, "b r e"] | None = None  # None = computed on the device
    region_shapes: Float[Array | np.ndarray, "b r p p"] | None = None  # instance masks on the RoI grid (VCR)

    # Targets of pre-training, sparse: only these positions meet the vocabulary.
    mlm_positions: Int[Array | np.ndarray, "b n m"] | None = None
    mlm_labels: Int[Array | np.ndarray, "b n m"] | None = None
    mlm_mask: Bool[Array | np.ndarray, "b n m"] | None = None
    mrc_regions: Int[Array | np.ndarray, "b k"] | None = None  # rows of `boxes` to classify
    mrc_positions: Int[Array | np.ndarray, "b k"] | None = None  # their elements in sequence 0
    mrc_targets: Float[Array | np.ndarray, "b k c"] | None = None  # the detector's class distribution
    mrc_mask: Bool[Array | np.ndarray, "b k"] | None = None
    relationship: Int[Array | np.ndarray, "b"] | None = None  # 1 = the caption belongs to the image
    region_classes: Int[Array | np.ndarray, "b r"] | None = None  # most probable class, -1 = none (row 0, padding)
    group: Int[Array | np.ndarray, "b"] | None = None  # scores are also reported by group (objects in a scene)

    # Targets of fine-tuning.
    index: Int[Array | np.ndarray, "b"] | None = None  # number of the example in its split, -1 = padding
    text_cut: Bool[Array | np.ndarray, "b"] | None = None  # more text than the sequence holds
    answer_positions: Int[Array | np.ndarray, "b"] | None = None  # element of [MASK], where the answer is read
    answer_targets: Float[Array | np.ndarray, "b a"] | None = None  # score of each answer of the vocabulary
    region_positions: Int[Array | np.ndarray, "b n r"] | None = None  # elements of the regions in their sequences
    region_targets: Bool[Array | np.ndarray, "b r"] | None = None  # regions that are what the text means
    region_hits: Bool[Array | np.ndarray, "b r"] | None = None  # regions that count as right when chosen
    choice: Int[Array | np.ndarray, "b"] | None = None  # the right one of the n sequences, -1 = not known

    def replace(self, **fields) -> Batch:
        return dataclasses.replace(self, **fields)


def _flatten(batch: Batch):
    return [(jax.tree_util.GetAttrKey(name), getattr(batch, name)) for name in _NAMES], None


def _unflatten(_, leaves) -> Batch:
    # Around __init__, whose annotations are for arrays: trees of shardings or shapes pass here too.
    batch = object.__new__(Batch)
    batch.__dict__.update(zip(_NAMES, leaves, strict=True))
    return batch


def abstract_batch(size: int, shapes: Shapes) -> Batch:
    """A batch of `size` examples as shapes alone (jax.ShapeDtypeStruct), to compile for before there is data."""
    return jax.eval_shape(lambda: Batch(**{name: jnp.zeros((size, *s), dtype) for name, (s, dtype) in shapes.items()}))


_NAMES = tuple(field.name for field in dataclasses.fields(Batch))
jax.tree_util.register_pytree_with_keys(Batch, _flatten, _unflatten)

PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # B, G, R
