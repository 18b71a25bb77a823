"""The contract between host and device: one `Batch` for every task.

Axes: `b` examples, `n` sequences per example, `s` elements per sequence, `m` images per example,
`r` regions of all its images (one image after another), `y x` pixels, `g` appearance width,
`e` geometry width, `p` cells of a RoI grid.

An example has `m` images and `n` sequences. Every element states whose visual feature it carries, so
a sequence does not need to state its image. Region rows are grouped by image: row // (r / m) is the
image of a row. Sequences are packed on the host without gaps: text, then regions, then [END]; models of
two streams have words alone in a sequence. Three kinds of elements that are not words have ids directly
after the vocabulary, so one table embeds every element.

What a task is trained or scored on is not part of `Batch` itself: each task declares a frozen
dataclass of targets (a subclass of `Arrays`), and `Batch.targets` holds one.

Every field states its padding value: the value in the rows of examples that only fill up a batch,
and in elements, regions and targets beyond the real ones. Losses and scores do not depend on the
values of padding, whatever they are, because every read by position, row or label is safe against
values out of range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

# Added to the vocabulary size: the id of an element that is a region, a region whose appearance is
# hidden, and the end of the sequence.
IMG, IMG_MASK, END = 0, 1, 2
NUM_EXTRA_IDS = 3
# `region_ids` of elements without a region. In VL-BERT they carry the learned vector of text-only sequences, in B2T2
# the projection of zeros, in the other architectures nothing.
NO_IMAGE = -1
PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # B, G, R

Example = dict[str, np.ndarray]  # of one example: field of `Batch` or of its targets -> array without the axis b
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # of an example, by field: shape without the axis b, dtype


A = TypeVar("A", bound="Arrays")


def padding(value: Any, **options) -> Any:
    """Declare a field of `Arrays` whose rows of padding hold `value`."""
    return dataclasses.field(metadata=dict(padding=value), **options)


class Arrays:
    """Base of frozen dataclasses of arrays that JAX traverses as pytrees; absent fields are None."""

    __dataclass_fields__: ClassVar[dict]

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        jax.tree_util.register_pytree_with_keys(cls, cls._flatten, cls._unflatten)

    if TYPE_CHECKING:  # the fields of targets are those of the class that the task declares

        def __getattr__(self, name: str) -> Any: ...

    def _flatten(self):
        names = self.names()
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], None

    @classmethod
    def _unflatten(cls, _, leaves):
        # Bypass `__init__`: its type annotations reject the shardings and shapes that JAX stores in these fields.
        arrays = object.__new__(cls)
        arrays.__dict__.update(zip(cls.names(), leaves, strict=True))
        return arrays

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the fields."""
        return tuple(cls.__dataclass_fields__)

    @classmethod
    def paddings(cls) -> dict[str, Any]:
        """Return the padding value of every field that states one."""
        return {f.name: f.metadata["padding"] for f in dataclasses.fields(cls) if "padding" in f.metadata}

    def replace(self: A, **fields) -> A:
        """Return a copy in which some fields have other values."""
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True, eq=False)
class NoTargets(Arrays):
    """The targets of a batch that is neither trained nor scored on anything."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch(Arrays):
    """A global batch as the model reads it. Masks are bool, True = real. Absent fields are None."""

    # The elements of the sequences.
    token_ids: Int[Array | np.ndarray, "b n s"] = padding(0)  # token id, or vocabulary size + IMG, IMG_MASK, END
    region_ids: Int[Array | np.ndarray, "b n s"] = padding(NO_IMAGE)  # row of r whose visual feature it carries
    segment_ids: Int[Array | np.ndarray, "b n s"] = padding(0)  # 0 = A, 1 = B, 2 = image
    position_ids: Int[Array | np.ndarray, "b n s"] = padding(0)  # the regions of a sequence share one
    element_mask: Bool[Array | np.ndarray, "b n s"] = padding(False)
    # Positions of the words that name a region (VisualBERT); -1 = none.
    region_words: Int[Array | np.ndarray, "b n r a"] | None = padding(-1, default=None)

    # The images. All None in a batch of text alone. Row 0 of an image's regions is the whole image.
    boxes: Float[Array | np.ndarray, "b r 4"] | None = padding(0, default=None)  # x1 y1 x2 y2, resized image's pixels
    region_mask: Bool[Array | np.ndarray, "b r"] | None = padding(False, default=None)
    region_hidden: Bool[Array | np.ndarray, "b r"] | None = padding(False, default=None)  # appearance is hidden
    image_size: Float[Array | np.ndarray, "b m 2"] | None = padding(1, default=None)  # width, height without padding
    # uint8 RGB as decoded, zero-padded right and bottom; float: already BGR minus the pixel means.
    pixels: Shaped[Array | np.ndarray, "b m y x 3"] | None = padding(0, default=None)
    region_features: Float[Array | np.ndarray, "b r g"] | None = padding(0, default=None)  # instead of pixels
    box_geometry: Float[Array | np.ndarray, "b r e"] | None = padding(0, default=None)  # None: computed on the device
    region_shapes: Float[Array | np.ndarray, "b r p p"] | None = padding(0, default=None)  # masks on the RoI grid

    targets: Arrays = NoTargets()  # what the task is trained and scored on; the task declares the class
    index: Int[Array | np.ndarray, "b"] | None = padding(-1, default=None)  # number of the example in its split


def make_batch(fields: Mapping[str, Any], targets: type[Arrays] = NoTargets) -> Batch:
    """Return the batch of `fields`, each of which is a field of `Batch` or of `targets`.

    Raises:
        TypeError: A field belongs to neither.
    """
    names = set(targets.names())
    own = {name: value for name, value in fields.items() if name not in names}
    return Batch(**own, targets=targets(**{name: value for name, value in fields.items() if name in names}))


def abstract_batch(size: int, shapes: Shapes, targets: type[Arrays] = NoTargets) -> Batch:
    """Return a batch of `size` examples as shapes alone (jax.ShapeDtypeStruct), to compile before there is data."""
    return jax.eval_shape(
        lambda: make_batch({name: jnp.zeros((size, *s), dtype) for name, (s, dtype) in shapes.items()}, targets)
    )


def empty_example(like: Example, targets: type[Arrays] = NoTargets) -> Example:
    """Return an example with the shapes of `like` that holds nothing but padding."""
    values = Batch.paddings() | targets.paddings()
    return {name: np.full_like(value, values[name]) for name, value in like.items()}
