"""REFER's files: which expression means which box of which image. Checked while reading.

`refs(*.p)` is a pickle, which could hold code: one that asks for more than plain containers is refused. What does not
fit together raises SourceError with file, item and remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import pathlib
from collections.abc import Iterator

import numpy as np

from data_prep.builder import SourceError
from vlbert_jax.weights.safe_pickle import load_pickle

# By dataset and who split it: the splits there are.
SPLITS = {
    ("refcoco+", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "unc"): ("train", "val", "testA", "testB"),
    ("refcoco", "google"): ("train", "val", "test"),
    ("refcocog", "umd"): ("train", "val", "test"),
    ("refcocog", "google"): ("train", "val"),
}


# --- The references -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reference:
    """One thing in one image, and the expressions that people found for it."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[tuple[int, str], ...]  # sent_id, expression


def _text(value) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _list(value) -> list:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is no list")
    return list(value)


def read_references(path: pathlib.Path) -> list[Reference]:
    """The references of a `refs(*.p)` file in its order. Raises SourceError that names the first bad one.

    Byte strings of Python 2 become str: UTF-8, or else Latin-1.
    """
    try:
        items = _list(load_pickle(path, ("utf-8", "latin-1")))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); data_prep/README.md has the layout") from None
    except ValueError as error:
        raise SourceError(f"{error}; download it again") from None
    except TypeError:
        raise SourceError(f"{path}: not a list of references; download it again") from None
    references: dict[int, Reference] = {}
    for number, item in enumerate(items):
        try:
            reference = Reference(
                *(operator.index(item[name]) for name in ("ref_id", "ann_id", "image_id")),
                split=_text(item["split"]),
                sentences=tuple(
                    (operator.index(sentence["sent_id"]), " ".join(map(_text, _list(sentence["tokens"]))))
                    for sentence in _list(item["sentences"])
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise SourceError(f"{path}: reference {number} (from 0): {reason}; download it again") from None
        if reference.ref_id in references:
            raise SourceError(f"{path}: reference {number} (from 0): ref_id {reference.ref_id} occurs twice")
        references[reference.ref_id] = reference
    return list(references.values())


def in_split(of_reference: str, split: str) -> bool:
    """REFER's rule: `test` is every test split together, and a reference of `testAB` is in testA and in testB."""
    if split == "test":
        return "test" in of_reference
    if split.startswith("test"):
        return of_reference.startswith("test") and split[-1] in of_reference[4:]
    return of_reference == split


# --- Boxes --------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path):
    """A JSON file; polygons are dropped while reading, as they are nearly all of its size. Raises SourceError."""

    def without_polygons(item: dict) -> dict:
        item.pop("segmentation", None)
        return item

    try:
        with open(path, "rb") as file:
            return json.load(file, object_hook=without_polygons)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); data_prep/README.md has the layout") from None
    except ValueError as error:  # no JSON, no text
        raise SourceError(f"{path}: not JSON ({error}); download it again") from None


def read_items(path: pathlib.Path, field: str | None, *names: str) -> Iterator[tuple]:
    """`names` of every item of the list in a JSON file, under `field` if given; `bbox` and `box` as 4 numbers.

    Raises SourceError that names the first item that is not so.
    """
    content = read_json(path)
    items = content.get(field) if field and isinstance(content, dict) else content
    if not isinstance(items, list):
        raise SourceError(f"{path}: no list{f' under {field!r}' if field else ''}; download it again")
    where = field or "item"
    for number, item in enumerate(items):
        try:
            yield tuple(_box(item[name]) if "box" in name else operator.index(item[name]) for name in names)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise SourceError(f"{path}: {where} {number} (from 0): {reason}; download it again") from None


def _box(values) -> tuple[float, ...]:
    """x, y, width, height."""
    box = tuple(map(float, _list(values)))
    if len(box) != 4 or not np.isfinite(box).all():
        raise ValueError(f"the box {values} is not four finite numbers")
    return box


class ReferDownload:
    """The files of a dataset under `source`, checked against each other as far as a builder reads them.

    `splits` empty = all there are.
    """

    def __init__(
        self,
        source: str | pathlib.Path,
        dataset: str = "refcoco+",
        split_by: str = "unc",
        splits: tuple[str, ...] = (),
    ):
        if (dataset, split_by) not in SPLITS:
            known = ", ".join(f"{name} by {by}" for name, by in SPLITS)
            raise SourceError(f"there is no {dataset} split by {split_by}; there are: {known}")
        self.root = pathlib.Path(source)
        self.refs = self.root / dataset / f"refs({split_by}).p"
        self.instances = self.root / dataset / "instances.json"
        self.splits = splits or SPLITS[dataset, split_by]
        self.options = dict(dataset=dataset, split_by=split_by, splits=list(self.splits))

    @functools.cached_property
    def references(self) -> list[tuple[str, Reference]]:
        """(split, reference): the splits one after another, in each the order of the file."""
        read = read_references(self.refs)
        chosen = [(split, item) for split in self.splits for item in read if in_split(item.split, split)]
        missing = set(self.splits) - {split for split, _ in chosen}
        if missing:
            there = ", ".join(sorted({item.split for item in read})) or "none"
            raise SourceError(f"{self.refs}: no reference of {', '.join(sorted(missing))} (--splits); there: {there}")
        return chosen

    @functools.cached_property
    def image_ids(self) -> dict[int, int]:
        """COCO's number of an image -> its record."""
        order = dict.fromkeys(reference.image_id for _, reference in self.references)
        return {image_id: number for number, image_id in enumerate(order)}

    @functools.cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """(width, height) of every image that is referred to."""
        items = read_items(self.instances, "images", "id", "width", "height")
        sizes = {image_id: (width, height) for image_id, width, height in items}
        for _, reference in self.references:
            if reference.image_id not in sizes:
                raise SourceError(
                    f"{self.instances}: no image {reference.image_id}, which ref_id {reference.ref_id} of "
                    f"{self.refs.name} is about; take both files from one download"
                )
        return sizes

    @functools.cached_property
    def reference_boxes(self) -> dict[int, tuple[float, ...]]:
        """ref_id -> x1 y1 x2 y2 (REFER's `getRefBox`)."""
        items = read_items(self.instances, "annotations", "id", "image_id", "bbox")
        annotations = {ann_id: (image_id, box) for ann_id, image_id, box in items}
        boxes = {}
        for _, reference in self.references:
            about = f"annotation {reference.ann_id}, which ref_id {reference.ref_id} of {self.refs.name} names"
            if reference.ann_id not in annotations:
                raise SourceError(f"{self.instances}: no {about}; take both files from one download")
            image_id, (x, y, width, height) = annotations[reference.ann_id]
            if image_id != reference.image_id:
                raise SourceError(
                    f"{self.instances}: {about}, is of image {image_id}, not {reference.image_id}; "
                    "take both files from one download"
                )
            if width <= 0 or height <= 0:
                raise SourceError(f"{self.instances}: {about}, has a box without area: {(x, y, width, height)}")
            boxes[reference.ref_id] = (x, y, x + width, y + height)
        return boxes
