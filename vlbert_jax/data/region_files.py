"""Region files in the format of the official code: boxes and features in base64."""

from __future__ import annotations

import base64
import binascii

import numpy as np


class Unusable(Exception):
    """An item that gives no record; the message says why."""


def decode_floats(record: dict, field: str) -> np.ndarray:
    """The base64 float32 array `field` as [num_boxes, width]. Raises Unusable."""
    try:
        flat = np.frombuffer(base64.b64decode(record[field], validate=True), "<f4")
    except KeyError:
        raise Unusable(f"detector file has no {field}") from None
    except (binascii.Error, ValueError, TypeError) as error:
        raise Unusable(f"{field}: not base64 float32 ({error})") from None
    number = record["num_boxes"]
    if flat.size % number or (field == "boxes" and flat.size != 4 * number):
        raise Unusable(f"{field}: {flat.size} numbers do not fit {number} boxes")
    return flat.reshape(number, -1)


def decode_regions(
    record: dict, with_features: bool
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """(width, height), boxes [n, 4], features [n, g] and the image's feature [g] or [0].

    Without features the latter are [0, 0] and [0]. Raises Unusable.
    """
    try:
        size = int(record["image_w"]), int(record["image_h"])
        record = record | dict(num_boxes=int(record["num_boxes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"image_w, image_h and num_boxes are not all numbers ({type(error).__name__} {error})") from None
    if record["num_boxes"] < 1 or min(size) < 1:
        raise Unusable(f"{record['num_boxes']} regions in an image of {size}")
    boxes, features, image_feature = decode_floats(record, "boxes"), np.zeros((0, 0), "f4"), np.zeros(0, "f4")
    if with_features:
        features = decode_floats(record, "features")
        if not features.size:
            raise Unusable("features: none")
        if "image_box_feature" in record:
            image_feature = decode_floats(record | dict(num_boxes=1), "image_box_feature")[0]
    for field, array in (("boxes", boxes), ("features", features), ("image_box_feature", image_feature)):
        if not np.isfinite(array).all():
            raise Unusable(f"{field}: not all numbers are finite")
    return size, boxes, features, image_feature
