"""Fields of an example that describe its image and regions (NumPy, one example at a time)."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float32

from vlbert_jax.batch import Example, Shapes
from vlbert_jax.data.images import (
    MEAN_RGB,
    canvas_size,
    decode_image,
    place_boxes,
    place_image,
    resize_image,
    resized,
    resized_size,
)
from vlbert_jax.data.packing import VLBERT_LAYOUT, RegionLayout, padded
from vlbert_jax.geometry import region_geometry

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """Fields of a config that determine the image of an example; see configs/common.py for units.

    Tasks add their own fields.
    """

    precomputed: bool
    image_scale: tuple[int, int]
    orientation: str  # of the canvas: landscape, portrait or square
    max_regions: int
    feature_size: int
    geometry_dtype: np.dtype | None  # None = the device computes it
    caffe_resize: bool = False
    hide_pixels: bool = False  # zero hidden regions; only used with caffe_resize, else the device does it
    regions: RegionLayout = VLBERT_LAYOUT
    num_images: int = 1  # images of an example
    class_names: str = ""  # file with the names of the detector's classes; "" where the text has no names of regions

    @staticmethod
    def options(config, orientation: str, regions: RegionLayout = VLBERT_LAYOUT) -> dict:
        """Return these fields for the config of a run, whose architecture has the layout `regions`."""
        d = config.data
        dtype = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(config.compute_dtype, config.compute_dtype))
        if regions.geometry_size != VLBERT_LAYOUT.geometry_size:
            dtype = np.dtype(np.float32)  # a few numbers; bfloat16 would move a box by some pixels
        names = d.get("class_names", "") if regions.names and not config.get("blind", False) else ""
        return dict(
            precomputed=is_precomputed(config),
            image_scale=tuple(d.image_scale),
            orientation=orientation,
            max_regions=d.max_regions,
            feature_size=config.model.feature_size,
            geometry_dtype=None if d.geometry_on_device or not regions.geometry_size else dtype,
            regions=regions,
            caffe_resize=d.get("caffe_resize", False),
            hide_pixels=d.get("hide_pixels", False),
            num_images=images_per_example(config),
            class_names=os.path.join(d.data_dir, names) if names else "",
        )


def images_per_example(config) -> int:
    """Return the number of images of an example."""
    return config.data.get("images_per_example", 1)


def has_orientations(config) -> bool:
    """Return whether a batch is all landscape or all portrait; several images of an example may mix the two."""
    return not is_precomputed(config) and config.data.one_orientation and images_per_example(config) == 1


def is_precomputed(config) -> bool:
    """Return whether region features are stored in the records; raise ValueError on an unknown kind."""
    kinds = {"image": False, "precomputed": True}
    if config.data.features not in kinds:
        raise ValueError(f"config.data.features is {config.data.features!r}; it must be one of {', '.join(kinds)}")
    return kinds[config.data.features]


def image_fields(
    record: dict,
    boxes: np.ndarray,
    layout: ImageLayout,
    flip: bool,
    kept: int | None = None,
    hidden: Bool[np.ndarray, "n"] | None = None,
    exact: bool = False,
) -> Example:
    """Return the fields of `Batch` for one image: the whole image and its first `max_regions` boxes.

    Args:
        record: `image` (encoded bytes, where none are the mean color; or uint8 pixels [y, x, 3]), `image_size`
            (width, height) and, if precomputed, `features` [n, g] and perhaps `image_feature` [g]. If the pixels are
            resized already (`remembered_images`), `original` is the size (width, height) of the image.
        boxes: Boxes [n, 4] in pixels of the original image.
        layout: Shapes and options.
        flip: Whether to mirror the image.
        kept: Number of rows, with the whole image, that the sequence holds; `region_mask` is True for
            them. None = all rows.
        hidden: Boxes whose appearance is hidden; None where the task hides none.
        exact: As in `images.place_boxes`.

    Raises:
        ValueError: The features have another width than the config states.
    """
    rows = layout.max_regions + 1
    num_rows = min(len(boxes), layout.max_regions) + 1
    kept = num_rows if kept is None else kept
    pixels = None if layout.precomputed else decode_record(record)
    original = tuple(map(int, record["image_size"])) if pixels is None else record.get("original", pixels.shape[1::-1])
    size, factor = resized(original, layout.image_scale, layout.caffe_resize)
    placed = padded(place_boxes(boxes, original, size, flip, exact, factor)[:num_rows], rows)
    marked = np.zeros(len(boxes), bool) if hidden is None else hidden
    example = dict(
        boxes=placed,
        region_mask=np.arange(rows) < kept,
        region_hidden=padded(np.append(False, marked[: num_rows - 1]), rows),
        image_size=np.array([size], np.float32),
    )
    if pixels is not None:
        canvas = canvas_size(layout.image_scale, layout.orientation)
        image = place_image(pixels, size, canvas, flip, factor)
        if layout.caffe_resize and layout.hide_pixels:
            for x1, y1, x2, y2 in placed[example["region_hidden"]].astype(int):  # as on the device
                image[y1 : y2 + 1, x1 : x2 + 1] = 0
        example["pixels"] = image[None]
    else:
        example["region_features"] = _region_features(record, hidden, layout)
    if layout.geometry_dtype is not None:
        # Rows that are not read stay 0.
        geometry = np.zeros((rows, layout.regions.geometry_size), layout.geometry_dtype)
        geometry[:kept] = region_geometry(placed[:kept], example["image_size"][0], geometry.shape[1])
        example["box_geometry"] = geometry
    return example


def fields_of_images(records: Sequence[dict], layout: ImageLayout, flip: bool = False) -> Example:
    """Return the fields of `Batch` for the images of an example: their rows, one image after another.

    Args:
        records: A record of each image, as for `image_fields`, with `boxes`.
        layout: Shapes and options, of which `num_images` is the number of records.
        flip: Whether to mirror the image; several are never mirrored, because texts name their order.

    Raises:
        ValueError: The number of images is another one.
    """
    if len(records) != layout.num_images:
        raise ValueError(
            f"a record has {len(records)} images, but config.data.images_per_example is {layout.num_images}"
        )
    fields = [image_fields(record, record["boxes"], layout, flip and len(records) == 1) for record in records]
    return {name: np.concatenate([one[name] for one in fields]) for name in fields[0]}


def image_shapes(layout: ImageLayout) -> Shapes:
    """Return shapes and dtypes of the fields that `fields_of_images` returns."""
    images, rows = layout.num_images, layout.num_images * (layout.max_regions + 1)
    shapes = dict(
        boxes=((rows, 4), np.float32),
        region_mask=((rows,), bool),
        region_hidden=((rows,), bool),
        image_size=((images, 2), np.float32),
    )
    if layout.precomputed:
        shapes["region_features"] = (rows, layout.feature_size), np.float32
    else:
        canvas = canvas_size(layout.image_scale, layout.orientation)
        shapes["pixels"] = (images, *canvas, 3), np.float32 if layout.caffe_resize else np.uint8
    if layout.geometry_dtype is not None:
        shapes["box_geometry"] = (rows, layout.regions.geometry_size), layout.geometry_dtype
    return shapes


def usual_orientation(config) -> str:
    """Return the orientation of the canvas of most batches."""
    return "landscape" if has_orientations(config) else "square"


def orientation_of(record: dict) -> str:
    """Return the orientation of the image of a record."""
    width, height = record["image_size"]
    return "landscape" if width >= height else "portrait"


def decode_record(record: dict) -> np.ndarray:
    """Return the RGB image of a record, uint8 [y, x, 3]; the mean color where it is empty or cannot be read."""
    if isinstance(record["image"], np.ndarray):
        return record["image"]
    if record["image"]:
        try:
            return decode_image(record["image"])
        except ValueError as error:  # as in the official code: one damaged file must not end a run of days
            log.warning("record %s: %s; taken as an empty image", record.get("index"), error)
    width, height = record["image_size"]
    return np.full((height, width, 3), MEAN_RGB, np.uint8)


def remembered_images(config) -> Callable[[dict], dict] | None:
    """Return a function that replaces the encoded image of a record by resized pixels before it is remembered.

    Later epochs then neither decode nor resize. Return None if no record is remembered, or if images are not resized
    here.
    """
    d = config.data
    if not d.remember_records or is_precomputed(config) or d.get("caffe_resize", False):
        return None

    def prepared(record: dict) -> dict:
        pixels = decode_record(record)
        original = pixels.shape[1::-1]  # it may differ from `image_size`, the size for which the boxes were found
        size = resized_size(original, tuple(d.image_scale))
        return record | dict(image=resize_image(pixels, size), original=original)

    return prepared


def _region_features(record: dict, hidden: np.ndarray | None, layout: ImageLayout) -> Float32[np.ndarray, "r g"]:
    """Return the features of the regions after that of the whole image.

    The whole image has its own feature, or the mean over all boxes that are not hidden.
    """
    features = np.asarray(record["features"], np.float32)
    if not features.shape[1]:
        raise ValueError(
            "a record has no features of its regions, but config.data.features is precomputed: set it to image, or "
            "build the images with features"
        )
    check_width("features", features.shape[1], "feature_size", layout.feature_size)
    out = np.zeros((layout.max_regions + 1, layout.feature_size), np.float32)
    if len(record.get("image_feature", ())):
        out[0] = record["image_feature"]
    else:
        # The official code divides by the number + 1e-5 where regions are masked, and by the number elsewhere.
        seen = np.ones(len(features), bool) if hidden is None else ~hidden
        count = max(len(features), 1) if hidden is None else np.sum(seen) + 1e-5
        out[0] = np.einsum("n,ng->g", seen, features) / np.float32(count)  # a BLAS call would start threads
    out[1 : len(features) + 1] = features[: layout.max_regions]
    return out


def check_stored(record: dict, name: str, option: str, setting: str, otherwise: str = "") -> None:
    """Raise ValueError where a setting reads a field that the builder stores with an option, and it was not stored."""
    if name not in record:
        raise ValueError(
            f"config.{setting} is True, but the records have no {name}: build them with --{option}, or set "
            f"--config.{setting}=False{otherwise}."
        )


def check_width(what: str, number: int, field: str, expected: int) -> None:
    """Raise ValueError where a box has another number of values than the config states."""
    if number != expected:
        raise ValueError(
            f"a record has {number} {what} per box, but config.model.{field} is {expected}: set it to {number}, or let "
            "config.data name a table whose regions are from the detector of the model"
        )
