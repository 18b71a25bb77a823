"""The formats in which the regions of an image are stored: encoding, decoding and validation.

This module imports no JAX, so that `data_prep` can use it. The formats:

- The per-image JSON object of the official code: `image_id`, `image_w`, `image_h`, `num_boxes`, and
  arrays of float32 in base64: `boxes` [n, 4], `features` [n, g], and, in some files, `classes` [n,
  c], `attrs` [n, a], `image_box_feature` [g]. Files of `data_prep.extract_regions` also have
  `extractor`, the id of the detector.
- A line of the tables of Anderson et al.: the values of `COLUMNS`, separated by tabs.
- A packed record: the same object as NumPy's .npz, three quarters of the size of the JSON object.

All three are read as the JSON object, a dict that the functions below call `record`.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlbert_jax.data.class_scores import best_classes
from vlbert_jax.files import parse_json

ARRAYS = ("boxes", "classes", "attrs", "features")  # float32 arrays with a row per region
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")  # of the tables
NO_CLASSES = "give regions of data_prep.extract_regions, or omit --classes"  # remedy where a file has no class scores
GRID = 3  # cells along each side of an image for which no regions are known


class Unusable(Exception):
    """An item of a download cannot be used; the message says why, without the name of the file."""


class ImageRegions(NamedTuple):
    """The decoded regions of an image."""

    size: tuple[int, int]  # width, height in pixels
    boxes: np.ndarray  # float32 [n, 4], x1 y1 x2 y2 in pixels
    features: np.ndarray  # float32 [n, g]; [0, 0] where features were not requested
    image_feature: np.ndarray  # float32 [g], feature of the whole image; [0] where there is none
    best_class: np.ndarray = np.zeros(0, np.int32)  # int32 [n], from 1; [0] where classes were not requested
    best_score: np.ndarray = np.zeros(0, np.float32)  # float32 [n], the score of that class; [0] as well


class Detections(NamedTuple):
    """The decoded regions of an image with the class scores of the detector."""

    extractor: str  # id of the detector that found them, "" = unknown
    size: tuple[int, int]  # width, height in pixels
    boxes: np.ndarray  # float32 [n, 4], x1 y1 x2 y2 in pixels
    scores: np.ndarray  # float32 [n, c], column 0 is the background
    features: np.ndarray  # float32 [n, g]; [0, 0] where features were not requested
    attributes: np.ndarray  # float32 [n, a] without "no attribute"; [0, 0] where they were not requested


# --- Encoding ---------------------------------------------------------------------------------


def encode_floats(array: np.ndarray) -> str:
    """Return the values of an array as little-endian float32 in base64."""
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def encode_regions(image_id: int, size: tuple[int, int], arrays: Mapping[str, np.ndarray | None]) -> dict[str, Any]:
    """Return the JSON object of an image.

    Args:
      image_id: number of the image.
      size: (width, height) in pixels.
      arrays: `boxes` [n, 4] and further arrays of `ARRAYS`, float [n, ...]; None = not stored.
    """
    texts = {name: encode_floats(array) for name, array in arrays.items() if array is not None}
    number = len(arrays["boxes"])
    return dict(image_id=image_id, image_h=size[1], image_w=size[0], num_boxes=number) | texts


def pack(record: Mapping[str, Any]) -> bytes:
    """Return the packed form of a JSON object; `unpack` is the inverse."""
    file = io.BytesIO()
    arrays = {
        name: np.frombuffer(base64.b64decode(value), "<f4") if name in ARRAYS else np.asarray(value)
        for name, value in record.items()
    }
    np.savez(file, **arrays)
    return file.getvalue()


def unpack(content: bytes) -> dict[str, Any]:
    """Return the JSON object that `pack` stored. Raises ValueError."""
    try:
        with np.load(io.BytesIO(content)) as arrays:
            return {
                name: encode_floats(arrays[name]) if name in ARRAYS else arrays[name].item() for name in arrays.files
            }
    except Exception as error:  # zip, zlib and the parser of NumPy's headers raise errors of many classes
        raise ValueError(f"these are not packed regions: {type(error).__name__} {error}") from None


def table_row(record: Mapping[str, Any]) -> str:
    """Return the line of a table for a JSON object, with its end."""
    return "\t".join(str(record[column]) for column in COLUMNS) + "\n"


def parse_row(line: bytes) -> dict[str, str]:
    """Return the JSON object of a line of a table; its numbers are strings of digits."""
    cells = line.decode("latin-1").strip("\r\n").split("\t")
    return dict(zip(COLUMNS, cells, strict=True))


# --- Decoding ---------------------------------------------------------------------------------


def parse_record(content: bytes) -> dict[str, Any]:
    """Return the JSON object in the bytes of a file. Raises Unusable."""
    try:
        record = parse_json(content)
    except ValueError as error:
        raise Unusable(f"the region file is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise Unusable("the region file does not contain a JSON object")
    return record


def _counted(record: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the record with an integer `num_boxes`, and (width, height). Raises Unusable."""
    try:
        size = int(record["image_w"]), int(record["image_h"])
        number = int(record["num_boxes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Unusable(f"image_w, image_h and num_boxes must all be integers ({reason})") from None
    if number < 1 or min(size) < 1 or max(size) >= 2**31:
        raise Unusable(f"the file lists {number} regions in an image of {size[0]} x {size[1]} pixels")
    return {**record, "num_boxes": number}, size


def decode_floats(record: Mapping[str, Any], field: str) -> np.ndarray:
    """Return the float32 array `field` of a JSON object as [num_boxes, width]. Raises Unusable."""
    try:
        flat = np.frombuffer(base64.b64decode(record[field], validate=True), "<f4")
    except KeyError:
        raise Unusable(f"the region file has no field {field!r}") from None
    except (binascii.Error, ValueError, TypeError) as error:
        raise Unusable(f"{field}: the content is not float32 in base64 ({error})") from None
    number = record["num_boxes"]
    if flat.size % number or (field == "boxes" and flat.size != 4 * number):
        raise Unusable(f"{field}: {flat.size} values do not fit {number} boxes")
    return flat.reshape(number, -1)


def fractions_of(boxes: np.ndarray, size: tuple[int, int]) -> str:
    """Return the reason why boxes [n, 4] are not in pixels, "" if they may be.

    Some programs store corners as fractions of the image; as pixels they would all be one.
    """
    if len(boxes) and 0 <= boxes.min() and boxes.max() <= 1 and min(size) > 2:
        return (
            f"all corners are within 0 and 1, but boxes are in pixels of the image of {size[0]} x {size[1]}; multiply "
            "x by the width and y by the height"
        )
    return ""


def decode_regions(record: Mapping[str, Any], with_features: bool, with_classes: bool = False) -> ImageRegions:
    """Return the regions of a JSON object; features and the best classes only if requested. Raises Unusable."""
    record, size = _counted(record)
    scores = np.zeros((0, 0), "f4")
    if with_classes:
        if "classes" not in record:
            raise Unusable(f"the region file has no class scores (field 'classes'); {NO_CLASSES}")
        scores = decode_floats(record, "classes")
        if scores.shape[1] < 2:
            raise Unusable("classes: there is no class next to column 0, the background")
    boxes, features, image_feature = decode_floats(record, "boxes"), np.zeros((0, 0), "f4"), np.zeros(0, "f4")
    if with_features:
        features = decode_floats(record, "features")
        if not features.size:
            raise Unusable("features: the array is empty")
        if "image_box_feature" in record:
            image_feature = decode_floats(record | dict(num_boxes=1), "image_box_feature")[0]
    arrays = dict(classes=scores, boxes=boxes, features=features, image_box_feature=image_feature)
    for field, array in arrays.items():
        if not np.isfinite(array).all():
            raise Unusable(f"{field}: some values are not finite")
    if reason := fractions_of(boxes, size):
        raise Unusable(reason)
    return ImageRegions(size, boxes, features, image_feature, *(best_classes(scores) if with_classes else ()))


def decode_detections(record: Mapping[str, Any], with_features: bool, with_attributes: bool = False) -> Detections:
    """Return the regions of a JSON object with class scores; features and attributes only if requested.

    Boxes may have values that are not finite: the caller drops these boxes. Raises Unusable.
    """
    record, size = _counted(record)
    boxes, scores = decode_floats(record, "boxes"), decode_floats(record, "classes")
    features = decode_floats(record, "features") if with_features else np.zeros((0, 0), np.float32)
    if not scores.size:
        raise Unusable("classes: the array is empty")
    attributes = np.zeros((0, 0), np.float32)
    if with_attributes:
        attributes = decode_floats(record, "attrs")[:, 1:]  # column 0 is "no attribute"
        if not attributes.size:
            raise Unusable('attrs: there is no attribute next to column 0, "no attribute"')
    if not all(np.isfinite(array).all() for array in (scores, features, attributes)):
        raise Unusable("classes, attrs or features: some values are not finite")
    if reason := fractions_of(boxes, size):
        raise Unusable(reason)
    return Detections(str(record.get("extractor", "")), size, boxes, scores, features, attributes)


# --- Without a detector -----------------------------------------------------------------------


def fits_float32(numbers: Any) -> bool:
    """Return whether all numbers are finite in float32, in which records store boxes."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(numbers, np.float64).astype(np.float32)).all())


def grid_boxes(size: tuple[int, int]) -> np.ndarray:
    """Return the cells of a grid over an image of `size` (width, height), row by row, float32 [GRID², 4]."""
    x, y = (np.linspace(0, side, GRID + 1, dtype=np.float32) for side in size)
    cells = [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(GRID) for i in range(GRID)]
    return np.array(cells, np.float32)
