"""The Fast R-CNN branch: one vector per region, from pixels or precomputed features (paper, section 3.2)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from vlbert_jax.batch import PIXEL_MEANS
from vlbert_jax.geometry import region_geometry
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.layers import apply_if, dropout, layer_norm
from vlbert_jax.model.partitioning import keep_split, replicate, split_axes
from vlbert_jax.model.resnet import Backbone, Stage
from vlbert_jax.model.roi import pool_regions

NUM_BINS = 56  # rows of the tables of box positions, over the width and the height of the image
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "none": lambda x: x}


class RegionHead(nnx.Module):
    """Region features: C4 -> RoIAlign -> C5 -> mean, projected with box geometry as the architecture does.

    Three options give it the operations of the detector whose weights it starts from, which the official
    code does not do: `caffe_max_pool` of the backbone, `operation="pool"` of the regions, and `mask_padding`.
    """

    def __init__(self, config: RegionHeadConfig, rngs: nnx.Rngs):
        self.architecture = switches = config.architecture
        self.roi, self.mask_padding = config.roi, config.mask_padding
        self.dropout_rate, self.dtype = config.dropout_rate, config.dtype
        dtype, hidden_size, feature_size = config.dtype, config.hidden_size, config.appearance_size
        if config.backbone is None:
            self.backbone = self.c5 = None
        else:
            options = config.backbone
            *widths, c5_width = options.widths
            *blocks, c5_blocks = options.blocks
            self.backbone = Backbone(
                stem_width=options.stem_width,
                widths=tuple(widths),
                blocks=tuple(blocks),
                strides=options.strides,
                stride_in_1x1=options.stride_in_1x1,
                frozen_stages=options.frozen_stages,
                caffe_max_pool=options.caffe_max_pool,
                dtype=dtype,
                rngs=rngs,
            )
            self.c5 = Stage(
                self.backbone.outputs,
                c5_width,
                c5_blocks,
                stride=1 if config.dilated_c5 else 2,
                dilation=2 if config.dilated_c5 else 1,
                stride_in_1x1=options.stride_in_1x1,
                dtype=dtype,
                rngs=rngs,
            )
        self.feature_size = feature_size
        self.hides_features = config.hidden_vector
        learned = config.hidden_vector and switches.hidden == "vector"
        self.hidden_appearance = nnx.Param(jnp.zeros(feature_size), axes=("feature",)) if learned else None

        def projection(inputs, num_geometry, axis):
            """Return a linear layer with the initial values of PyTorch, which the official code keeps."""
            bound = 1 / math.sqrt(inputs)

            def uniform(key, shape, dtype=jnp.float32):
                return jax.random.uniform(key, shape, dtype, -bound, bound)

            def kernel(key, shape, dtype=jnp.float32):
                values = uniform(key, shape, dtype) * config.projection_gain_init
                return values.at[:num_geometry].multiply(config.geometry_gain_init)

            return nnx.Linear(
                inputs,
                hidden_size,
                kernel_init=nnx.with_metadata(kernel, axes=(axis, "embed")),
                bias_init=nnx.with_metadata(uniform, axes=("embed",)),
                dtype=dtype,
                rngs=rngs,
            )

        tables = switches.geometry == "tables"
        if tables and feature_size % 4:
            raise ValueError(f"{switches.name} requires a feature size that is a multiple of 4, not {feature_size}.")
        shape = NUM_BINS, feature_size // 4
        self.x_positions = nnx.Param(jnp.zeros(shape), axes=(None, "feature")) if tables else None
        self.y_positions = nnx.Param(jnp.zeros(shape), axes=(None, "feature")) if tables else None
        joined = switches.geometry_size if switches.geometry == "joint" else 0
        self.projection = projection(joined + feature_size, joined, "feature") if hidden_size else None
        separate, each = (
            hidden_size > 0 and chosen for chosen in (switches.geometry == "separate", switches.visual_norm == "each")
        )
        self.geometry_projection = projection(switches.geometry_size, 0, None) if separate else None
        self.appearance_norm = layer_norm(hidden_size, dtype, rngs) if each else None
        self.geometry_norm = layer_norm(hidden_size, dtype, rngs) if each else None

    def appearance(
        self,
        pixels: Float[Array, "b y x 3"],
        boxes: Float[Array, "b r 4"],
        region_mask: Bool[Array, "b r"],
        region_shapes: Float[Array, "b r p p"] | None = None,
        image_size: Float[Array, "b 2"] | None = None,
    ) -> Float[Array, "b r g"]:
        """Return pooled C5 features of real regions, zeros elsewhere.

        `region_shapes` multiply the C5 map (instance masks). `image_size` (width, height) is where the padding
        begins, for `mask_padding`.
        """
        image_size = image_size.astype(jnp.int32) if self.mask_padding else None
        cells = self.backbone.cells(image_size) if self.mask_padding else None
        pool = functools.partial(pool_regions, nnx.graphdef(self.c5), self.roi, 1 / self.backbone.stride)
        arguments = (nnx.state(self.c5), self.backbone(pixels, image_size), cells, boxes, region_mask, region_shapes)
        if batch_axes := split_axes():
            # Every device packs its own regions, because the partitioner would sort them across devices.
            from_batch = jax.P(batch_axes)
            specs = (jax.P(), *[from_batch] * 5)
            pool = jax.shard_map(
                pool, in_specs=specs, out_specs=from_batch, axis_names=set(batch_axes), check_vma=False
            )
        return pool(*arguments)

    def project(
        self,
        appearance: Float[Array, "b r g"],
        boxes: Float[Array, "b r 4"],
        image_size: Float[Array, "b 2"],
        region_mask: Bool[Array, "b r"],
        region_hidden: Bool[Array, "b r"] | None = None,
        geometry: Float[Array, "b r e"] | None = None,
        key=None,
    ) -> Float[Array, "b r d"]:
        """Return appearance and geometry projected to the width of the encoder; zeros where there is no region."""
        appearance = self.hide(appearance, region_hidden)
        geometry = self.geometry(boxes, image_size, region_mask, geometry)
        states = keep_split(self._projected(appearance.astype(self.dtype), geometry, key))
        return jnp.where(region_mask[..., None], states, 0)

    def hide(
        self, appearance: Float[Array, "b r g"], region_hidden: Bool[Array, "b r"] | None
    ) -> Float[Array, "b r g"]:
        """Return the appearance with that of hidden regions replaced, where the model replaces it."""
        if not self.hides_features or region_hidden is None:
            return appearance
        vector = jnp.zeros(self.feature_size) if self.hidden_appearance is None else self.hidden_appearance[...]
        return jnp.where(region_hidden[..., None], vector.astype(appearance.dtype)[None, None], appearance)

    def geometry(
        self,
        boxes: Float[Array, "*b r 4"],
        image_size: Float[Array, "*b 2"],
        region_mask: Bool[Array, "*b r"],
        given: Float[Array, "*b r e"] | None = None,
    ) -> Float[Array, "*b r e"] | None:
        """Return what the architecture computes of boxes, zeros where there is no region; None = it reads no boxes.

        `given` is the same, computed on the host.
        """
        size = self.architecture.geometry_size
        geometry = region_geometry(boxes, image_size, size) if given is None and size else given
        if geometry is None:
            return None
        # A NaN in padding would reach the gradient of the projection as 0 * NaN.
        return jnp.where(region_mask[..., None], geometry, 0)

    def _projected(self, appearance: Float[Array, "b r g"], geometry, key) -> Float[Array, "b r d"]:
        if self.architecture.geometry == "joint":
            appearance = jnp.concatenate([geometry.astype(self.dtype), appearance], axis=-1)
        if self.architecture.geometry == "tables":
            appearance += self._position_features(geometry).astype(self.dtype)
        states = self.projection(dropout(appearance, self.dropout_rate, key))
        states = apply_if(self.appearance_norm, ACTIVATIONS[self.architecture.activation](states))
        if self.architecture.geometry == "separate":
            states += apply_if(self.geometry_norm, self.geometry_projection(geometry.astype(self.dtype)))
        return states

    def _position_features(self, geometry: Float[Array, "b r 4"]) -> Float[Array, "b r g"]:
        """Return the rows of the tables for both sides of the boxes; zeros for the far border and beyond it.

        As in the original code, the far side is the bin of the near side and the number of bins of the size, and the
        whole image, row 0, has zeros.
        """
        low, high = geometry[..., :2].astype(jnp.float32), geometry[..., 2:].astype(jnp.float32)
        near, size = (jnp.floor(x * NUM_BINS).astype(jnp.int32) for x in (low, high - low))
        bins = jnp.stack([near, near + size], axis=-1)  # b r 2 2: x and y, near and far
        bins = jnp.where(bins < 0, NUM_BINS, bins).at[:, 0].set(NUM_BINS)

        def read(table, bins):
            rows = replicate(table[...]).at[bins].get(mode="fill", fill_value=0)
            return rows.reshape(*rows.shape[:2], -1)

        return jnp.concatenate(
            [read(self.x_positions, bins[..., 0, :]), read(self.y_positions, bins[..., 1, :])], axis=-1
        )

    def empty_region(self) -> Float[Array, " d"]:
        """Return the projection of a feature of zeros."""
        return ACTIVATIONS[self.architecture.activation](self.projection.bias[...])


def prepare_pixels(
    image: Shaped[Array, "b y x 3"],
    image_size: Float[Array, "b 2"],
    boxes: Float[Array, "b r 4"] | None = None,
    hidden: Bool[Array, "b r"] | None = None,
) -> Float[Array, "b y x 3"]:
    """Return uint8 RGB as BGR minus the pixel means, with zeros (the mean color) in padding and under hidden boxes.

    A box covers the pixels from trunc(x1), trunc(y1) to trunc(x2), trunc(y2), both included, as in the raw-pixel
    mask of the official code. Float images are prepared already and returned as they are.
    """
    if image.dtype != jnp.uint8:
        return image
    pixels = image[..., ::-1].astype(jnp.float32) - jnp.asarray(PIXEL_MEANS, jnp.float32)[None, None, None]
    rows, columns = jnp.arange(image.shape[1])[None], jnp.arange(image.shape[2])[None]
    keep = (rows < image_size[:, 1:])[:, :, None] & (columns < image_size[:, :1])[:, None, :]
    if hidden is not None:
        keep = keep & ~under_boxes(boxes, hidden, *image.shape[1:3])
    return jnp.where(keep[..., None], pixels, 0)


def under_boxes(
    boxes: Float[Array, "b r 4"], chosen: Bool[Array, "b r"], height: int, width: int
) -> Bool[Array, "b y x"]:
    """Return which pixels the chosen boxes cover, as `prepare_pixels` describes."""
    rows, columns = jnp.arange(height)[None, None], jnp.arange(width)[None, None]
    x1, y1, x2, y2 = jnp.split(jnp.trunc(boxes), 4, axis=-1)
    in_rows = (rows >= y1) & (rows <= y2) & chosen[..., None]
    in_columns = (columns >= x1) & (columns <= x2)
    # The union of rectangles is a matrix product: the number of chosen boxes that cover a pixel.
    covered = jnp.einsum("bry,brx->byx", in_rows.astype(jnp.float32), in_columns.astype(jnp.float32))
    return covered > 0
