"""An image with its regions, as the page of the app shows it and as its visitor changes it."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vlbert_jax import examples
from vlbert_jax.data.image_files import open_image, read_image
from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.prediction.regions import find_regions
from vlbert_jax.visualization.attention import data_address
from vlbert_jax.visualization.drawing import PALE, STRONG

SMALLEST_SIDE = 1 / 200  # of the image; a box with a shorter side is a click that slipped
MOST_IMAGES = 100  # of a gallery; more would take minutes and much of the server's memory
EDITED = ", changed by hand"


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image with its regions; every change makes a new one."""

    name: str
    pixels: UInt8[np.ndarray, "y x 3"]
    found: Regions  # before any change
    regions: Regions  # after the changes

    @property
    def has_drawn_boxes(self) -> bool:
        """Whether a box was drawn, which no detector has described."""
        return self.found.features is not None and self.regions.features is None


def open_scene(image: Any, finder: Detector | None, boxes: Any = None, name: str = "") -> Scene:
    """Read an image and find its regions.

    Args:
        image: As in `Predictor`.
        finder: The detector that finds the regions where no boxes are given, or None for a grid.
        boxes: As in `Predictor`.
        name: Name of the image, by default that of its file.

    Raises:
        ValueError, OSError: The image or the boxes cannot be read.
    """
    read_name, pixels = read_image(image)
    found = find_regions(pixels, boxes, finder)
    if isinstance(boxes, str | Path):
        found = dataclasses.replace(found, source=Path(boxes).name)
    return Scene(name or Path(read_name).name, pixels, found, found)


def open_dropped(name: str, address: str, finder: Detector | None) -> Scene:
    """Read an image that the browser sends as a data: address. Raises ValueError where it is none."""
    try:
        content = base64.b64decode(address.partition(",")[2], validate=True)
    except binascii.Error:
        raise ValueError(f"{name}: the browser sent no file") from None
    return open_scene(open_image(content, name), finder, name=name)


def open_gallery(files: Sequence[Mapping[str, str]], finder: Detector | None) -> list[Scene]:
    """Read images that the browser sends, each a `name` and its `data` address.

    Raises:
        ValueError: One of them is no image, or there are more than MOST_IMAGES.
    """
    if len(files) > MOST_IMAGES:
        raise ValueError(f"there are {len(files)} images; the page takes {MOST_IMAGES} at once")
    return [open_dropped(str(file["name"]), str(file["data"]), finder) for file in files]


def example_gallery(finder: Detector | None) -> list[Scene]:
    """Return the scenes of the example gallery, with the boxes of their files as in `example_scene`."""
    folder = Path(next(iter(examples.__path__)))
    images = sorted((folder / "gallery").glob("*.jpg"))
    boxes = [None if finder else folder / "gallery_boxes" / f"{image.stem}.json" for image in images]
    return [open_scene(image, finder, of_image) for image, of_image in zip(images, boxes, strict=True)]


def example_scene(finder: Detector | None) -> tuple[Scene, dict[str, list[str]]]:
    """Return the example scene, and texts about it for each kind of `ServedModel`.

    Its regions are those of its file of boxes; a detector, where there is one, finds others.
    """
    folder = Path(next(iter(examples.__path__)))
    boxes = folder / "scene.json"
    scene = open_scene(folder / "scene.jpg", finder, None if finder else boxes)
    return scene, json.loads(boxes.read_text("utf-8"))["texts"]


def draw_box(scene: Scene, corners: Sequence[float]) -> Scene:
    """Return the scene with one more box.

    Args:
        scene: The scene.
        corners: x y x y of two opposite corners in pixels of the image, in any order; what is
            outside the image is cut off.

    Raises:
        ValueError: The box is too small, or these are not four finite numbers.
    """
    numbers = np.asarray(corners, np.float64)
    if numbers.shape != (4,) or not np.isfinite(numbers).all():
        raise ValueError(f"a box has four numbers, x y x y, not {list(corners)}")
    height, width = scene.pixels.shape[:2]
    (x1, x2), (y1, y2) = (np.sort(np.clip(numbers[i::2], 0, side - 1)) for i, side in enumerate((width, height)))
    if x2 - x1 < SMALLEST_SIDE * width or y2 - y1 < SMALLEST_SIDE * height:
        raise ValueError("this box is too small; drag from one corner of a thing to the opposite one")
    return _changed(scene, scene.regions.with_box((x1, y1, x2, y2)))


def delete_box(scene: Scene, row: int) -> Scene:
    """Return the scene without the box of a row, counted from 0. Raises ValueError where there is no such row."""
    if not 0 <= row < len(scene.regions):
        raise ValueError(f"there is no box {row + 1} to delete; the image has {len(scene.regions)}")
    return _changed(scene, scene.regions.without(row))


def reset_boxes(scene: Scene) -> Scene:
    """Return the scene with the regions as they were found."""
    return dataclasses.replace(scene, regions=scene.found)


def _changed(scene: Scene, regions: Regions) -> Scene:
    source = scene.found.source.removesuffix(EDITED) + EDITED
    return dataclasses.replace(scene, regions=dataclasses.replace(regions, source=source))


def board_value(scene: Scene, marks: dict[int, str] | None = None) -> dict[str, Any]:
    """Return what the board (board.js) draws, as plain values.

    Args:
        scene: The scene.
        marks: Label of each box to draw strongly, by row from 0.
    """
    marks, regions = marks or {}, scene.regions
    colors = {row: STRONG[i % len(STRONG)] for i, row in enumerate(marks)}
    rows = [
        dict(
            box=[round(side, 1) for side in box],
            name=regions.name(i + 1) if regions.labels[i] else f"region {i + 1}",
            mark=marks.get(i, ""),
            color=colors.get(i, PALE),
        )
        for i, box in enumerate(regions.boxes.tolist())
    ]
    height, width = scene.pixels.shape[:2]
    count = f"{len(rows)} region{'' if len(rows) == 1 else 's'}"
    about = f"{scene.name}: {width} × {height} pixels, {count} from {regions.source}"
    return dict(image=data_address(scene.pixels), width=width, height=height, about=about, boxes=rows)


def shelf_value(shown: Sequence[Scene], several: bool, lines: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return what the shelf (shelf.js) shows, as plain values.

    Args:
        shown: The images, in the order of their numbers.
        several: Whether the visitor may open several images at once.
        lines: Number of each image in the order in which they are shown -> line below it; None = as they are.
    """
    order = dict.fromkeys(range(len(shown)), "") if lines is None else lines
    images = [
        dict(image=data_address(shown[i].pixels), name=shown[i].name, line=line, best=bool(line) and place == 0)
        for place, (i, line) in enumerate(order.items())
    ]
    return dict(images=images, several=several)
