"""TFDS builders `refcoco_images` and `refcoco`: RefCOCO, RefCOCO+ and RefCOCOg.

Source: the expressions of REFER (`refcoco+.zip` etc. of https://github.com/lichengunc/refer, which
states no terms), the images and boxes of COCO train2014 (https://cocodataset.org; annotations CC BY
4.0, images under the terms of their owners), and the regions of MAttNet's detector
(`detections.zip` of https://github.com/lichengunc/MAttNet, folder refcoco+_unc; MIT). The folder
`--source`, in the layout of the official VL-BERT repository:

    refcoco+/refs(unc).p                       or refcoco/, refcocog/; refs(google).p, refs(umd).p
    refcoco+/instances.json                    sizes of the images, the box of every reference
    annotations/instances_train2014.json       all boxes of the images
    train2014/COCO_train2014_000000580957.jpg  or train2014.zip
    refcoco+/proposal/res101_coco_minus_refer_notime_dets.json    for --proposals

    python -m data_prep.build refcoco --source=coco --data_dir=data \\
        --proposals=refcoco+/proposal/res101_coco_minus_refer_notime_dets.json

RefCOCO+ has 141,564 expressions of 49,856 references in 19,992 images: train 120,191, val 10,758,
testA (people) 5,726, testB (other objects) 4,889. Reading COCO's annotations takes about ten
seconds and 1.5 GB of memory. A CPU core checks and copies 300 images per second. The records take
about 3 GB, nearly all of it images.

An image has many expressions, so there are two tables. `refcoco_images` has one split, `images`, in
order of first appearance in the expressions. The number of a record is the `image_number` of an
expression:

    index        int64     number of the record
    image_id     bytes     number of the image in COCO
    image        bytes     the JPEG, RGB
    image_size   int32 2   width, height
    boxes        float32 n 4   x1 y1 x2 y2 of all annotations, crowds included, in file order
    ann_ids      int64 n   numbers of the annotations
    proposals    float32 m 4   boxes of the detector in file order; (0, 4) without --proposals

`refcoco` has one record per expression in official order. A batch holds one orientation, so each
split is two, `val_landscape` (width >= height of the image) and `val_portrait`:

    index        int64     number within the split: references in file order, then sentences
    ref_id       int64     the reference; several expressions share it
    sent_id      int64     number of the expression
    ann_id       int64     the annotation that the expression refers to
    image_number int64     record of `refcoco_images`
    box          float64 4 box of that annotation, x1 y1 x2 y2
    expression   bytes     its tokens, joined by spaces

An inconsistent download stops the build with a line that names the place. `manifest.json` lists
what is kept unchanged (boxes without area, images without a detection, expressions without a word)
and images that were encoded again. """

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import Made, OrderedBuilder, array_feature, image_features, oriented
from data_prep.manifest import SourceError
from data_prep.refcoco_files import ReferDownload, read_items
from data_prep.sources import ArchiveFolder, bad_boxes
from vlbert_jax.data.region_files import Unusable, fractions_of


class RefCOCOImages(OrderedBuilder, skip_registration=True):
    """The builder of the images with their boxes."""

    name = "refcoco_images"
    NOT_SENT = ("download", "_meant")

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        download: ReferDownload,
        annotations: str = "annotations/instances_train2014.json",
        proposals: str = "",
        num_threads: int = 4,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          download: the expressions, which decide the images and their order.
          annotations: path of all boxes, under the folder of the download.
          proposals: path of the detector's boxes, likewise; empty = no proposals.
          num_threads: number of threads that read images.
        """
        self.download, self.files = download, ArchiveFolder(download.root)
        self.annotations, self.proposals, self.num_threads = annotations, proposals, num_threads
        options = download.options | dict(annotations=annotations, proposals=proposals)
        super().__init__(corpus, data_dir, str(download.root), options)

    def inputs(self) -> list[pathlib.Path]:
        """Return the references, all boxes and the images."""
        files = [self.download.refs, self.download.instances, self.download.root / self.annotations]
        files += [self.download.root / self.proposals] if self.proposals else []
        folder = self.download.root / "train2014"
        return [*files, folder if folder.is_dir() else self.download.root / "train2014.zip"]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        boxes = array_feature(None, 4)
        return image_features() | dict(boxes=boxes, ann_ids=array_feature(None, dtype=np.int64), proposals=boxes)

    def number_of_items(self) -> int:
        """Return the number of images. Raises SourceError."""
        return len(self.download.image_ids)

    def items(self) -> Iterator[tuple[int, dict[str, Any], list[tuple[float, ...]]]]:
        """Return (number in COCO, fields of the record from other files, boxes of expressions) of each image.

        Raises SourceError.
        """
        if not any((self.download.root / name).exists() for name in ("train2014", "train2014.zip")):
            raise SourceError(
                f"{self.download.root}: neither train2014 nor train2014.zip, the images of COCO, exists; download one"
            )
        # Fail before any image is read if the other table cannot be built.
        _ = self.download.reference_boxes
        sizes, annotations, detections = self.download.sizes, self._annotations(), self._proposals()
        none = np.zeros((0, 4), np.float32)

        def fields(image_id: int, number: int) -> dict[str, Any]:
            ann_ids, boxes = annotations[image_id]
            return dict(
                index=number, image_id=str(image_id), image_size=np.array(sizes[image_id], np.int32), boxes=boxes,
                ann_ids=ann_ids, proposals=detections.get(image_id, none),
            )  # fmt: skip

        numbered = self.download.image_ids.items()
        return ((image_id, fields(image_id, number), self._meant.get(image_id, [])) for image_id, number in numbered)

    def make(self, item: tuple[int, dict[str, Any], list[tuple[float, ...]]]) -> Made:
        """Return the record of an image; its targets are the boxes that a detection overlaps by half.

        Raises SourceError.
        """
        image_id, fields, meant = item
        path, root = f"train2014/COCO_train2014_{image_id:012d}.jpg", self.files.root
        inside = "" if (root / "train2014").is_dir() else "train2014.zip@/"
        try:
            image, size, conversion = self.files.read_jpeg(inside + path)
        except Unusable as error:
            raise SourceError(
                f"{root / 'train2014'}: image {image_id} cannot be read ({error}); --source must contain all images of "
                "COCO train2014, as the folder train2014 or as train2014.zip"
            ) from None
        stated = tuple(fields["image_size"].tolist())
        if size != stated:
            raise SourceError(
                f"{root / path}: the image has {size[0]}x{size[1]} pixels, but instances.json states {stated}, so the "
                "boxes would not fit; use the unchanged images of COCO"
            )
        notes = [("converted", path, fields["index"], conversion)] if conversion else []
        usable = [_overlaps(fields["proposals"], box) for box in meant] if self.proposals else []
        return Made("images", fields | dict(image=image), notes, usable)

    @functools.cached_property
    def _meant(self) -> dict[int, list[tuple[float, ...]]]:
        """Map image_id to the boxes of its references."""
        found: dict[int, list] = {}
        for _, reference in self.download.references:
            found.setdefault(reference.image_id, []).append(self.download.reference_boxes[reference.ref_id])
        return found

    def _items(self, path: pathlib.Path, field: str | None, *names: str) -> dict[int, list[tuple]]:
        """Return (number in the file, *fields except image_id) of the items of each image."""
        found: dict[int, list] = {image_id: [] for image_id in self.download.image_ids}
        at = names.index("image_id")
        for line, item in enumerate(read_items(path, field, *names)):
            if item[at] in found:
                found[item[at]].append((line, *item[:at], *item[at + 1 :]))
        return found

    def _annotations(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return numbers, int64 [n], and boxes, float32 [n, 4], of each image's annotations."""
        path = self.download.root / self.annotations
        found = self._items(path, "annotations", "id", "image_id", "bbox")
        for _, reference in self.download.references:
            if reference.ann_id not in (ann_id for _, ann_id, _ in found[reference.image_id]):
                raise SourceError(
                    f"{path}: annotation {reference.ann_id} of image {reference.image_id}, which ref_id "
                    f"{reference.ref_id} names, is missing; --annotations must be the file from which the references "
                    "were made"
                )
        self._check_unit(path, found)
        result = {}
        for image_id, items in found.items():
            boxes = self._corners(path, image_id, items, np.float64)
            result[image_id] = np.array([ann_id for _, ann_id, _ in items]), boxes.astype(np.float32)
        return result

    def _proposals(self) -> dict[int, np.ndarray]:
        """Return the boxes of the detector, float32 [m, 4], for each image that has any."""
        if not self.proposals:
            return {}
        path = self.download.root / self.proposals
        found, result = self._items(path, None, "image_id", "box"), {}
        self._check_unit(path, found)
        for image_id, items in found.items():
            if items:
                # The official code computes these corners in single precision.
                result[image_id] = self._corners(path, image_id, items, np.float32)
            else:
                self.manifest.note("kept", self.proposals, -1, f"no region of image {image_id}")
        return result

    def _check_unit(self, path: pathlib.Path, found: dict[int, list[tuple]]) -> None:
        """Check that the boxes of a file are not fractions of their images. Raises SourceError."""
        boxes = np.array([box for items in found.values() for *_, box in items])
        if reason := fractions_of(boxes, next(iter(self.download.sizes.values()))):
            raise SourceError(f"{path}: {reason}")

    def _corners(self, path: pathlib.Path, image_id: int, items: list[tuple], dtype: type) -> np.ndarray:
        """Return the corners of boxes [x, y, width, height], and list boxes without area.

        Such boxes are kept, as in the official code: they are wrong choices.
        """
        boxes = np.array([box for *_, box in items], dtype)
        boxes[:, 2:] += boxes[:, :2]
        for i in np.flatnonzero(bad_boxes(boxes, *self.download.sizes[image_id])):
            reason = f"box {boxes[i].tolist()} has no area in image {image_id}"
            self.manifest.note("kept", str(path.relative_to(self.download.root)), items[i][0], reason)
        return boxes


def _overlaps(boxes: np.ndarray, box: tuple[float, ...]) -> bool:
    """Return whether one of some boxes [n, 4] has half of the union with `box` in common; last pixels count."""
    meant = np.asarray(box, np.float64)
    common = np.minimum(boxes[:, 2:], meant[2:]) - np.maximum(boxes[:, :2], meant[:2]) + 1
    common = np.maximum(common, 0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1) + (meant[2:] - meant[:2] + 1).prod()
    return bool((2 * common >= areas - common).any())


class RefCOCOExpressions(OrderedBuilder, skip_registration=True):
    """The builder of the expressions; `download` is that of `RefCOCOImages`."""

    name = "refcoco"
    NOT_SENT = ("download",)

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, download: ReferDownload):
        self.download = download
        super().__init__(corpus, data_dir, str(download.root), download.options)

    def inputs(self) -> list[pathlib.Path]:
        """Return the references and their boxes."""
        return [self.download.refs, self.download.instances]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        numbers = ("index", "ref_id", "sent_id", "ann_id", "image_number")
        features = {name: tfds.features.Scalar(np.int64) for name in numbers}
        return features | dict(box=array_feature(4, dtype=np.float64), expression=tfds.features.Text())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a record per expression. Raises SourceError."""
        sizes, boxes, image_ids = self.download.sizes, self.download.reference_boxes, self.download.image_ids
        count = dict.fromkeys(self.download.splits, 0)
        for split, reference in tqdm(self.download.references, "references", unit=" references", mininterval=1):
            width, height = sizes[reference.image_id]
            for sent_id, expression in reference.sentences:
                if not expression.strip():
                    self.manifest.note("kept", self.download.refs.name, count[split], f"sent_id {sent_id} has no word")
                yield oriented(split, width, height), dict(
                    index=count[split], ref_id=reference.ref_id, sent_id=sent_id, ann_id=reference.ann_id,
                    image_number=image_ids[reference.image_id], box=np.array(boxes[reference.ref_id]),
                    expression=expression,
                )  # fmt: skip
                count[split] += 1
