"""The files of REFER: expressions, the references that they describe, and boxes.

All are checked while they are read. `refs(*.p)` is a pickle, which could contain code: a pickle
that needs more than plain containers is refused. Data that is inconsistent raises SourceError with
file, item and remedy."""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Iterator
from typing import Any

from data_prep.manifest import SourceError, described, is_stored
from vlbert_jax.data.region_files import fits_float32
from vlbert_jax.files import parse_json
from vlbert_jax.weights.safe_pickle import load_pickle

FORMAT = "data_prep/README.md describes the format"
# (dataset, author of the split) -> splits.
SPLITS = {
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}


# --- References -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reference:
    """An object in an image, and the expressions that annotators wrote for it."""

    ref_id: int
    ann_id: int  # number of its annotation in COCO
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]  # sent_id, expression


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"a word is {described(value)}, not a text")
    return value


def _list(item: dict, name: str) -> list:
    if not isinstance(item[name], list | tuple):
        raise TypeError(f"{name} is {described(item[name])}, not a list")
    return list(item[name])


def _reason(error: Exception, item: Any) -> str:
    return f"the field {error} is missing in {described(item)}" if isinstance(error, KeyError) else str(error)


def _fields(item: Any) -> dict:
    if not isinstance(item, dict):
        raise TypeError(f"it is {described(item)}, not an object with fields")
    return item


def _integer(item: dict, name: str) -> int:
    try:
        number = operator.index(item[name])  # also an integer of NumPy
    except TypeError:
        several = "; expressions for several objects or none, as in gRefCOCO, are not supported"
        remark = several if name == "ann_id" and isinstance(item[name], list) else ""
        raise TypeError(f"{name} is {described(item[name])}, not an integer{remark}") from None
    if not is_stored(number):
        raise TypeError(f"{name} is {described(number)}, which has more than 64 bits")
    return number


def _reference(item: Any) -> Reference:
    return Reference(
        *(_integer(_fields(item), name) for name in ("ref_id", "ann_id", "image_id")),
        split=_text(item["split"]),
        sentences=tuple(
            (_integer(_fields(sentence), "sent_id"), " ".join(map(_text, _list(sentence, "tokens"))))
            for sentence in _list(item, "sentences")
        ),
    )


def read_references(path: pathlib.Path) -> list[Reference]:
    """Return the references of a `refs(*.p)` file in its order.

    Raises SourceError that names the first bad one.

    Byte strings of Python 2 are decoded as UTF-8, or as Latin-1 if that fails.
    """
    try:
        items = load_pickle(path, ("utf-8", "latin-1"))
    except OSError as error:
        raise SourceError(
            f"{path}: the file cannot be read ({error.strerror}); data_prep/README.md describes the layout"
        ) from None
    except ValueError as error:
        raise SourceError(f"{error}; download it again") from None
    if not isinstance(items, list | tuple):
        raise SourceError(f"{path}: the file is {described(items)}, not a list of references; {FORMAT}")
    references: dict[int, Reference] = {}
    for number, item in enumerate(items):
        try:
            reference = _reference(item)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: reference {number} (from 0): {_reason(error, item)}; {FORMAT}") from None
        if reference.ref_id in references:
            raise SourceError(
                f"{path}: reference {number} (from 0): ref_id {reference.ref_id} occurs twice; keep one of them"
            )
        references[reference.ref_id] = reference
    return list(references.values())


def in_split(of_reference: str, split: str) -> bool:
    """Return whether a reference belongs to a split by the rule of REFER.

    `test` is the union of all test splits; a reference of `testAB` is in testA and in testB.

    Args:
      of_reference: the split that the reference states.
      split: the requested split.
    """
    if split == "test":
        return "test" in of_reference
    if split.startswith("test"):
        return of_reference.startswith("test") and split[-1] in of_reference[4:]
    return of_reference == split


# --- Boxes ------------------------------------------------------------------------------------


def read_json(path: pathlib.Path) -> Any:
    """Return the content of a JSON file without polygons, which are most of its size.

    Raises SourceError.
    """

    def without_polygons(item: dict) -> dict:
        item.pop("segmentation", None)
        return item

    try:
        return parse_json(path.read_bytes(), without_polygons)
    except OSError as error:
        raise SourceError(
            f"{path}: the file cannot be read ({error.strerror}); data_prep/README.md describes the layout"
        ) from None
    except ValueError as error:  # neither JSON nor text
        raise SourceError(f"{path}: the file is not JSON ({error}); download it again") from None


def read_items(path: pathlib.Path, field: str | None, *names: str) -> Iterator[tuple]:
    """Yield some fields of every item of the list in a JSON file.

    Args:
      path: the file.
      field: name of the list in the file; None = the file is the list.
      *names: fields of an item; `bbox` and `box` are four floats, all others integers.

    Raises:
      SourceError: the file or an item has another form; the message names the first such item.
    """
    content = read_json(path)
    items = content.get(field) if field and isinstance(content, dict) else content
    if not isinstance(items, list):
        found = items if items is not None else content
        where = f" under {field!r}" if field else ""
        raise SourceError(f"{path}: there is no list{where}, but {described(found)}; {FORMAT}")
    for number, item in enumerate(items):
        try:
            yield tuple(_box(_fields(item), name) if "box" in name else _integer(_fields(item), name) for name in names)
        except (KeyError, TypeError, ValueError) as error:
            place = f"{field or 'item'} {number} (from 0)"
            raise SourceError(f"{path}: {place}: {_reason(error, item)}; {FORMAT}") from None


def _box(item: dict, name: str) -> tuple[float, ...]:
    """Return x, y, width, height."""
    values = item[name]
    try:
        box = tuple(map(float, _list(item, name)))
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} is {described(values)}, not a list of four finite numbers") from None
    if len(box) != 4 or not fits_float32([*box, box[0] + box[2], box[1] + box[3]]):
        raise ValueError(f"{name} is {values}, not four finite numbers")
    return box


class ReferDownload:
    """The files of a dataset, checked against each other as far as a builder reads them."""

    def __init__(
        self,
        source: str | pathlib.Path,
        dataset: str = "refcoco+",
        split_by: str = "unc",
        splits: tuple[str, ...] = (),
    ):
        """Locate the files; they are read when they are needed.

        Args:
          source: folder that contains the folder of the dataset.
          dataset: "refcoco+", "refcoco" or "refcocog".
          split_by: author of the split: "unc", "google" or "umd".
          splits: requested splits; empty = all of the dataset.

        Raises:
          SourceError: the dataset has no split by this author.
        """
        if (dataset, split_by) not in SPLITS:
            known = ", ".join(f"{name} by {by}" for name, by in SPLITS)
            raise SourceError(f"there is no {dataset} split by {split_by}; the possible choices are: {known}")
        self.root = pathlib.Path(source)
        self.refs = self.root / dataset / f"refs({split_by}).p"
        self.instances = self.root / dataset / "instances.json"
        self.splits = splits or SPLITS[dataset, split_by]
        self.options = dict(dataset=dataset, split_by=split_by, splits=list(self.splits))

    @functools.cached_property
    def references(self) -> list[tuple[str, Reference]]:
        """Read (split, reference): the splits in order, each in the order of the file."""
        read = read_references(self.refs)
        chosen = [(split, item) for split in self.splits for item in read if in_split(item.split, split)]
        missing = set(self.splits) - {split for split, _ in chosen}
        if missing:
            there = ", ".join(sorted({item.split for item in read})) or "none"
            raise SourceError(
                f"{self.refs}: there is no reference of {', '.join(sorted(missing))} (--splits); the file has: {there}"
            )
        return chosen

    @functools.cached_property
    def image_ids(self) -> dict[int, int]:
        """Map the COCO number of an image to its record, in order of first appearance."""
        order = dict.fromkeys(reference.image_id for _, reference in self.references)
        return {image_id: number for number, image_id in enumerate(order)}

    @functools.cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Map the COCO number of every image with a reference to its (width, height)."""
        items = read_items(self.instances, "images", "id", "width", "height")
        sizes = {image_id: (width, height) for image_id, width, height in items}
        for _, reference in self.references:
            if reference.image_id not in sizes:
                raise SourceError(
                    f"{self.instances}: image {reference.image_id} of ref_id {reference.ref_id} in {self.refs.name} is "
                    "missing; take both files from one download"
                )
        return sizes

    @functools.cached_property
    def reference_boxes(self) -> dict[int, tuple[float, ...]]:
        """Map ref_id to x1 y1 x2 y2, as `getRefBox` of REFER does."""
        items = read_items(self.instances, "annotations", "id", "image_id", "bbox")
        annotations = {ann_id: (image_id, box) for ann_id, image_id, box in items}
        boxes = {}
        for _, reference in self.references:
            about = f"annotation {reference.ann_id} of ref_id {reference.ref_id} in {self.refs.name}"
            remedy = "take both files from one download"
            if reference.ann_id not in annotations:
                raise SourceError(f"{self.instances}: {about} is missing; {remedy}")
            image_id, (x, y, width, height) = annotations[reference.ann_id]
            if image_id != reference.image_id:
                other = f"is of image {image_id}, not {reference.image_id}"
                raise SourceError(f"{self.instances}: {about} {other}; {remedy}")
            if width <= 0 or height <= 0:
                raise SourceError(
                    f"{self.instances}: {about} has a box without area: {(x, y, width, height)}; correct it"
                )
            boxes[reference.ref_id] = (x, y, x + width, y + height)
        return boxes
