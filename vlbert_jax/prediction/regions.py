"""Regions for one image: from a detector, from user-supplied boxes, or from a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlbert_jax.data.region_files import GRID, Unusable, decode_regions, fractions_of, grid_boxes
from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import distinct_fields, parse_json

BEYOND = 0.1  # share of the side of an image by which a box may be beyond it, as those of some detectors are


def find_regions(pixels: UInt8[np.ndarray, "y x 3"], boxes: Any, finder: Detector | None) -> Regions:
    """Return the regions of an image.

    Args:
        pixels: the image, RGB.
        boxes: `Regions`, rows or a file as in `given_regions`, or None.
        finder: the detector that is run when `boxes` is None, or None for a grid.
    """
    size = pixels.shape[1::-1]
    if isinstance(boxes, Regions):
        return boxes
    if boxes is not None:
        return given_regions(boxes, size)
    if finder is None:
        return grid_regions(size)
    (found,) = finder.detect([pixels])
    return found


def grid_regions(size: tuple[int, int]) -> Regions:
    """Return the cells of a grid over an image of `size` (width, height), row by row."""
    source = f"a {GRID} x {GRID} grid, because neither a detector nor a file of boxes was given"
    return Regions(boxes=grid_boxes(size), source=source, labels=("",) * GRID**2)


def given_regions(boxes: Any, size: tuple[int, int]) -> Regions:
    """Check user-supplied boxes and return them as regions.

    A file holds JSON in one of three forms: rows of numbers; an object with `boxes` and optionally
    `labels`, `scores` and `features`; or the object of the official code with base64 arrays
    (`image_w`, `image_h`, `num_boxes`, `boxes`, optionally `features` and `image_box_feature`).

    Args:
        boxes: path of a JSON file (str or Path), or rows of x1 y1 x2 y2 in pixels.
        size: width and height of the image in pixels.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The content is not valid; the message names the file and the row.
    """
    if not isinstance(boxes, str | Path):
        return _check_regions("boxes", dict(boxes=boxes), size)
    try:
        content = parse_json(Path(boxes).read_bytes(), pairs_hook=distinct_fields)
    except ValueError as error:
        raise ValueError(f"{boxes}: the file is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        content = dict(boxes=content)
    elif isinstance(content.get("boxes"), str):
        content = _decode_official(str(boxes), content, size)
    return _check_regions(str(boxes), content, size)


def _decode_official(path: str, record: dict, size: tuple[int, int]) -> dict:
    """Return the fields of a record of the official code, with arrays in place of base64."""
    try:
        found = decode_regions(record, with_features="features" in record)
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    if found.size != size:
        raise ValueError(
            f"{path}: the boxes are of an image of {found.size[0]} x {found.size[1]} pixels, but this image has "
            f"{size[0]} x {size[1]}; give the file that belongs to the image"
        )
    content = dict(boxes=found.boxes, extractor=record.get("extractor", ""))
    if "features" in record:
        content["features"] = found.features
    return content | (dict(image_feature=found.image_feature) if len(found.image_feature) else {})


def _check_regions(name: str, content: dict, size: tuple[int, int]) -> Regions:
    if "boxes" not in content:
        raise ValueError(f"{name}: the field 'boxes' is missing; the fields are {', '.join(content) or 'none'}")
    boxes = _number_rows(name, content, "boxes", width=4)
    _check_boxes(name, boxes, size)
    labels, scores = content.get("labels", [""] * len(boxes)), content.get("scores")
    if not isinstance(labels, list) or not isinstance(scores, list | None):
        raise ValueError(f"{name}: labels and scores must be lists with one entry per box")
    features = _number_rows(name, content, "features") if "features" in content else None
    for field, values in dict(labels=labels, scores=scores, features=features).items():
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{name}: there are {len(boxes)} boxes but {len(values)} {field}; give one per box")
    try:
        scores = None if scores is None else tuple(map(float, scores))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: scores must be numbers") from None
    if not np.isfinite(scores or ()).all():
        raise ValueError(f"{name}: scores must be finite numbers; leave the field out where there are none")
    return Regions(
        boxes=boxes,
        source=name,
        labels=tuple("" if label is None else str(label) for label in labels),
        scores=scores,
        features=features,
        image_feature=content.get("image_feature"),
        extractor=str(content.get("extractor", "")),
    )


def _number_rows(name: str, content: dict, field: str, width: int | None = None) -> np.ndarray:
    """Return a field as float32 rows of `width` numbers, None = any number, equal for all rows."""
    try:
        with np.errstate(over="ignore"):  # too large a number becomes infinite
            array = np.asarray(content[field], np.float32)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: {field!r} must be rows of numbers, all of the same length") from None
    if array.size == 0:
        array = array.reshape(0, width or 0)
    if array.ndim != 2 or (width and array.shape[1] != width) or not np.isfinite(array).all():
        count = width or "equally many"
        raise ValueError(f"{name}: {field!r} must be rows of {count} finite numbers")
    return array


def _check_boxes(name: str, boxes: np.ndarray, size: tuple[int, int]) -> None:
    if reason := fractions_of(boxes, size):
        raise ValueError(f"{name}: {reason}")
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        box = f"box {i} is [{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
        if x1 > x2 or y1 > y2:
            raise ValueError(f"{name}: {box}, but x1 y1 must not be beyond x2 y2")
        if x1 >= size[0] or y1 >= size[1] or x2 < 0 or y2 < 0:
            raise ValueError(f"{name}: {box}, which is outside the image of {size[0]} x {size[1]} pixels")
        if min(x1 / size[0], y1 / size[1]) < -BEYOND or max(x2 / size[0], y2 / size[1]) > 1 + BEYOND:
            raise ValueError(
                f"{name}: {box}, which is far beyond the image of {size[0]} x {size[1]} pixels; give boxes in pixels "
                "of this image, not of another size of it"
            )
