"""The regions of one picture: what a detector finds, what a file says, or, without either, a grid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vlbert_jax.data.region_files import Unusable, decode_regions
from vlbert_jax.detector.detect import Detector

GRID = 3  # cells along a side
LEAST_SCORE = 0.2  # of an attribute that is named


@dataclasses.dataclass(frozen=True)
class Found:
    """Regions of a picture, best first, without the whole image, which every model adds."""

    boxes: Float32[np.ndarray, "r 4"]  # x1 y1 x2 y2 in pixels of the picture
    source: str  # where they come from, for people
    labels: tuple[str, ...]  # one for each, "" where nobody knows
    scores: tuple[float, ...] | None = None  # of the labels
    attributes: tuple[str, ...] = ()  # as brown: one for each, "" where none is sure, or none at all
    features: Float32[np.ndarray, "r g"] | None = None  # precomputed appearance
    image_feature: Float32[np.ndarray, " g"] | None = None  # of the whole image; None = the mean over the regions
    extractor: str = ""  # which detector, with which settings, made the features; empty = not told

    def __len__(self) -> int:
        return len(self.boxes)

    def first(self, number: int) -> Found:
        """The best ones."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        one_each = ("boxes", "labels", "scores", "attributes", "features")
        return Found(**{n: v[:number] if n in one_each and v is not None else v for n, v in fields.items()})

    def name(self, row: int) -> str:
        """What a row of the model shows; row 0 is the whole image."""
        if row == 0:
            return "whole image"
        attribute = self.attributes[row - 1] if self.attributes else ""
        return f"{attribute} {self.labels[row - 1]}".strip() or f"region {row}"


def grid_regions(size: tuple[int, int]) -> Found:
    """The cells of a grid over a picture of (width, height), row by row."""
    x, y = (np.linspace(0, side, GRID + 1, dtype=np.float32) for side in size)
    boxes = [(x[i], y[j], x[i + 1], y[j + 1]) for j in range(GRID) for i in range(GRID)]
    source = f"a {GRID} x {GRID} grid, as there is neither a detector nor a file of boxes"
    return Found(np.array(boxes, np.float32), source, ("",) * GRID**2)


def detected_regions(regions, class_names, attribute_names) -> Found:
    """What a detector found (`detector.Regions`), by the names it has."""
    labels = tuple(class_names[number] for number in regions.class_ids)
    attributes = ("",) * len(labels)
    if regions.attribute_ids is not None:
        best = zip(regions.attribute_ids, regions.attribute_scores, strict=True)
        attributes = tuple(attribute_names[i] if score >= LEAST_SCORE else "" for i, score in best)
    scores = tuple(map(float, regions.class_scores))
    return Found(regions.boxes, "the detector", labels, scores, attributes, regions.features)


def given_regions(boxes, size: tuple[int, int]) -> Found:
    """Boxes from a file (str, Path) or as rows x1 y1 x2 y2, for a picture of (width, height).

    A file is JSON: rows; or an object with `boxes` and perhaps `labels`, `scores`, `features`; or the object that the
    official code has for each image, its arrays in base64 (`image_w`, `image_h`, `num_boxes`, `boxes`, perhaps
    `features`, `image_box_feature`). Raises FileNotFoundError, or ValueError that names the file and the row.
    """
    if not isinstance(boxes, str | Path):
        return _checked("boxes", dict(boxes=boxes), size)
    try:
        content = json.loads(Path(boxes).read_bytes())
    except ValueError as error:
        raise ValueError(f"{boxes}: not JSON: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("boxes"), str):
        content = _decoded(str(boxes), content, size)
    elif not isinstance(content, dict):
        content = dict(boxes=content)
    return _checked(str(boxes), content, size)


def _decoded(path: str, record: dict, size: tuple[int, int]) -> dict:
    try:
        made_for, boxes, features, image_feature = decode_regions(record, with_features="features" in record)
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    if made_for != size:
        raise ValueError(f"{path}: boxes for a picture of {made_for[0]} x {made_for[1]}, this is {size[0]} x {size[1]}")
    content = dict(boxes=boxes, extractor=record.get("extractor", ""))
    if "features" in record:
        content["features"] = features
    return content | (dict(image_feature=image_feature) if len(image_feature) else {})


def _checked(name: str, content: dict, size: tuple[int, int]) -> Found:
    def numbers(field: str, width: int | None) -> np.ndarray:
        try:
            array = np.asarray(content[field], np.float32)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{name}: {field!r} are not rows of numbers") from None
        if array.size == 0:
            array = array.reshape(0, width or 0)
        if array.ndim != 2 or (width and array.shape[1] != width) or not np.isfinite(array).all():
            raise ValueError(f"{name}: {field!r} must be rows of {width or 'as many'} finite numbers each")
        return array

    boxes = numbers("boxes", 4)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if x1 > x2 or y1 > y2:
            raise ValueError(f"{name}: box {i} is [{x1:g}, {y1:g}, {x2:g}, {y2:g}]: it ends (x2 y2) before it begins")
        if x1 >= size[0] or y1 >= size[1] or x2 < 0 or y2 < 0:
            raise ValueError(f"{name}: box {i} lies outside the picture of {size[0]} x {size[1]} pixels")
    labels, scores = content.get("labels", [""] * len(boxes)), content.get("scores")
    if not isinstance(labels, list) or not isinstance(scores, list | None):
        raise ValueError(f"{name}: labels and scores must be lists")
    features = numbers("features", None) if "features" in content else None
    for field, values in dict(labels=labels, scores=scores, features=features).items():
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{name}: {len(boxes)} boxes, but {len(values)} {field}")
    try:
        scores = None if scores is None else tuple(map(float, scores))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: scores must be numbers") from None
    about = dict(image_feature=content.get("image_feature"), extractor=str(content.get("extractor", "")))
    return Found(boxes, name, tuple(map(str, labels)), scores, (), features, **about)


def find_regions(pixels: UInt8[np.ndarray, "y x 3"], boxes: Any, finder: Detector | None) -> Found:
    """The regions of a picture: the boxes that are given, else the detector's, else a grid."""
    size = pixels.shape[1::-1]
    if isinstance(boxes, Found):
        return boxes
    if boxes is not None:
        return given_regions(boxes, size)
    if finder is None:
        return grid_regions(size)
    (found,) = finder.detect([pixels])
    return detected_regions(found, finder.class_names, finder.attribute_names)
