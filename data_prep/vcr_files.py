"""The files of VCR: questions, metadata of images, and shapes of objects.

All are checked while they are read. These defects end a build with file, line, item and field: a
line that is not JSON, a missing field, a text that is not a list of words and object numbers, an
object that does not exist or is of an unknown category, another number of choices than four, a
label that is not one of them, an image or metadata file that is missing or damaged."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_prep.manifest import SourceError, described
from vlbert_jax.data.region_files import fits_float32
from vlbert_jax.files import parse_json

SPLITS = ("train", "val", "test")
NUM_CHOICES = 4
GRID = 14  # cells per side, as in RoIAlign
LABELS = ("answer_label", "rationale_label")
COCO_CATEGORIES = (
    "person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis "
    "snowboard sportsball kite baseballbat baseballglove skateboard surfboard tennisracket bottle wineglass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed "
    "diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock "
    "vase scissors teddybear hairdrier toothbrush"
).split()

# --- Shapes -----------------------------------------------------------------------------------


def inside(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return bool [GRID, GRID]: True for the integer points inside a polygon.

    This is the even-odd rule of `draw.polygon` in scikit-image up to 0.17, with which the authors
    trained. An edge includes its upper end and excludes its lower, so points on a left or upper
    border are inside and points on a right or lower border are outside. From 0.18 on scikit-image
    counts every border as inside.

    Args:
      rows: float64 [v], rows of the vertices.
      columns: float64 [v], columns of the vertices.
    """
    y, x = np.mgrid[:GRID, :GRID, :1][:2]  # [GRID, GRID, 1] against [v]
    next_rows, next_columns = np.roll(rows, 1), np.roll(columns, 1)
    crossed = (rows <= y) != (next_rows <= y)  # the edge crosses the row of the point
    height = np.where(rows == next_rows, 1.0, next_rows - rows)  # level edges are never crossed
    at = (next_columns - columns) * (y - rows) / height + columns
    return (crossed & (x < at)).sum(-1) % 2 == 1


def on_grid(polygon: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns), each float32 [v], of a polygon on the grid over its box.

    Points beyond the grid move to its border. As in `generate_instance_mask` of the official code,
    a side has x2 - x1 + 1 pixels.

    Args:
      polygon: [v, 2], x y of the vertices in pixels.
      box: x1 y1 x2 y2 in pixels.
    """
    polygon = np.asarray(polygon, np.float32)
    x1, y1, x2, y2 = (float(side) for side in box)
    columns = (polygon[:, 0] - x1) * (GRID / (x2 - x1 + 1))
    rows = (polygon[:, 1] - y1) * (GRID / (y2 - y1 + 1))
    return np.clip(rows, 0, GRID - 1), np.clip(columns, 0, GRID - 1)


def shape_of(polygons: list[np.ndarray], box: Sequence[float]) -> np.ndarray:
    """Return uint8 [GRID, GRID]: 1 inside any polygon [v, 2] of an object with this box."""
    shape = np.zeros((GRID, GRID), bool)
    for polygon in polygons:
        rows, columns = on_grid(polygon, box)
        shape |= inside(rows.astype(np.float64), columns.astype(np.float64))
    return shape.astype(np.uint8)


# --- Questions and metadata -------------------------------------------------------------------


FORMAT = "data_prep/README.md describes the format"
KINDS = {str: "a text", list: "a list", int: "an integer"}


class Invalid(Exception):
    """A line or file is invalid; the message says why, without the place."""


def _field(item: dict[str, Any], name: str, kind: type) -> Any:
    if name not in item:
        raise Invalid(f"the field {name} is missing")
    if type(item[name]) is not kind:  # a bool is not accepted as an int
        raise Invalid(f"{name} must be {KINDS[kind]}, not {described(item[name])}")
    return item[name]


def _check_text(name: str, text: Any, num_objects: int) -> None:
    if not isinstance(text, list) or not text:
        raise Invalid(f"{name} must be a list of words and lists of object numbers, not {described(text)}")
    for part in text:
        if isinstance(part, str):
            continue
        if not isinstance(part, list) or not part or any(type(number) is not int for number in part):
            raise Invalid(f"{name} has {str(part)[:60]!r}, which is neither a word nor a list of object numbers")
        for number in part:
            if not 0 <= number < num_objects:
                raise Invalid(f"{name} points to object {number}, but there are {num_objects} (from 0)")


def check_question(item: dict[str, Any], labeled: bool) -> None:
    """Check a line of a jsonl file; `labeled` = it must have its labels. Raises Invalid."""
    for name in ("annot_id", "img_fn", "metadata_fn"):
        if not _field(item, name, str):
            raise Invalid(f"{name} is empty")
    objects = _field(item, "objects", list)
    if wrong := [name for name in objects if not isinstance(name, str)]:
        raise Invalid(f"objects must be a list of category names; {described(wrong[0])} is not one")
    _check_text("question", _field(item, "question", list), len(objects))
    for name in ("answer_choices", "rationale_choices"):
        choices = _field(item, name, list)
        if len(choices) != NUM_CHOICES:
            raise Invalid(f"there are {len(choices)} {name}, not {NUM_CHOICES}")
        for number, text in enumerate(choices):
            _check_text(f"{name}[{number}]", text, len(objects))
    for name in LABELS:
        if (labeled or item.get(name) is not None) and _field(item, name, int) not in range(NUM_CHOICES):
            raise Invalid(f"{name} is {item[name]}, not a number from 0 to {NUM_CHOICES - 1}")


def read_questions(root: pathlib.Path, splits: Sequence[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (split, line from 0, checked question).

    Raises SourceError with file, line from 1 and remedy.
    """
    for split in splits:
        path = root / f"{split}.jsonl"
        if not path.is_file():
            raise SourceError(
                f"{path}: the file does not exist; --source must be the folder of the jsonl files of --splits"
            )
    for split in splits:
        path, known = root / f"{split}.jsonl", {}
        with open(path, "rb") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield split, number, _parse_question(path, number, line, known)
        if not known:
            raise SourceError(f"{path}: there is no question; download it again, or omit {split} from --splits")


def _parse_question(path: pathlib.Path, number: int, line: bytes, known: dict[str, int]) -> dict[str, Any]:
    """Return a question, and add its annot_id to those of the file, which must differ.

    Raises SourceError.
    """
    item = None
    try:
        item = parse_json(line)
        if not isinstance(item, dict):
            raise Invalid(f"the line is {described(item)}, not an object")
        check_question(item, labeled=path.stem != "test")
        if known.setdefault(item["annot_id"], number) != number:
            raise Invalid(f"annot_id also occurs in line {known[item['annot_id']] + 1}")
    except (Invalid, ValueError) as error:
        name = f" ({item['annot_id']})" if isinstance(item, dict) and "annot_id" in item else ""
        remedy = FORMAT if isinstance(error, Invalid) else "the line is not JSON: download the file again"
        raise SourceError(f"{path}, line {number + 1}{name}: {error}; {remedy}") from None
    return item


def image_key(item: dict[str, Any]) -> tuple:
    """Return the key of a record of images; the texts number the objects of its list."""
    return item["img_fn"], item["metadata_fn"], tuple(item["objects"])


def read_metadata(content: bytes, num_objects: int) -> tuple[dict[str, Any], np.ndarray, list[list[np.ndarray]]]:
    """Read the metadata file of an image.

    Args:
      content: bytes of the file.
      num_objects: number of objects that the question lists.

    Returns:
      The JSON object; boxes, float64 [n, 4]; the polygons of each object, each float64 [v, 2].

    Raises:
      Invalid: the content does not fit the objects or is damaged.
    """
    try:
        metadata = parse_json(content)
    except ValueError as error:
        raise Invalid(f"the file is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise Invalid(f"the file is {described(metadata)}, not an object")
    boxes, outlines = _field(metadata, "boxes", list), _field(metadata, "segms", list)
    if len(boxes) != num_objects or len(outlines) != num_objects:
        raise Invalid(f"there are {len(boxes)} boxes and {len(outlines)} segms for {num_objects} objects")
    try:
        boxes = np.array([box[:4] for box in boxes], np.float64).reshape(num_objects, 4)
    except (TypeError, ValueError, OverflowError):
        raise Invalid("a box does not have four numbers and a score") from None
    if not fits_float32(boxes) or (boxes[:, 2:] < boxes[:, :2]).any():
        raise Invalid("a box is not finite, or its second corner is before its first")
    return metadata, boxes, [_polygons(number, outline) for number, outline in enumerate(outlines)]


def _polygons(number: int, outline: Any) -> list[np.ndarray]:
    try:
        found = [np.array(polygon, np.float64).reshape(len(polygon), 2) for polygon in outline]
    except (TypeError, ValueError, OverflowError):
        raise Invalid(f"segms[{number}] is not a list of polygons [[x, y], ...]") from None
    if not all(map(fits_float32, found)):
        raise Invalid(f"segms[{number}] has a point that is not finite")
    return found


def unusual(
    metadata: dict[str, Any], boxes: np.ndarray, polygons: list[list[np.ndarray]], size: tuple[int, int]
) -> Iterator[str]:
    """Yield a description of all data of an image that is unusual but used as in the official code.

    Args:
      metadata, boxes, polygons: as `read_metadata` returns them.
      size: (width, height) of the image in pixels.
    """
    stated = metadata.get("width", size[0]), metadata.get("height", size[1])
    if stated != size:
        yield f"the image is {size}, the metadata state {stated}"
    outside = (boxes[:, :2] > np.array(size) - 1).any(1) | (boxes[:, 2:] < 0).any(1)
    if outside.any():
        yield f"boxes outside the image: {outside.sum()}"
    short = sum(len(polygon) < 3 for found in polygons for polygon in found)
    if short:
        yield f"polygons of fewer than three points, which cover nothing: {short}"
    # Clamping moves every polygon by less than a cell of the grid.
    beyond = sum(
        bool(len(polygon)) and ((polygon < box[:2] - cell) | (polygon > box[2:] + cell)).any()
        for box, cell, found in zip(boxes, (boxes[:, 2:] - boxes[:, :2] + 1) / GRID, polygons, strict=True)
        for polygon in found
    )
    if beyond:
        yield f"polygons more than a cell of the grid beyond their box, moved onto its border: {beyond}"


def read_categories(path: str | pathlib.Path) -> list[str]:
    """Return the names of the classes 1, 2, ... in a file, one per line. Raises SourceError."""
    try:
        lines = pathlib.Path(path).read_text("utf-8-sig").split("\n")  # universal newlines; a name may have spaces
        names = [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: the list of categories cannot be read ({error}); give a text file with one category per line"
        ) from None
    if not names or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), "")
        found = f"{twice!r} is listed twice" if twice else "the file is empty"
        raise SourceError(f"{path}: {found}; the list must have one category per line, each once")
    return names
