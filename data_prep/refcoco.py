"""TFDS builders `refcoco_images` and `refcoco`: referring expressions (RefCOCO, RefCOCO+, RefCOCOg).

Source: the expressions of REFER (`refcoco+.zip` etc. of https://github.com/lichengunc/refer; terms not stated there),
the images and boxes of COCO train2014 (https://cocodataset.org; annotations CC BY 4.0, images under their owners'
terms), and the regions that MAttNet's detector found (`detections.zip` of https://github.com/lichengunc/MAttNet, folder
refcoco+_unc; MIT). The folder `--source`, as the official VL-BERT repository lays it out:

    refcoco+/refs(unc).p                       or refcoco/, refcocog/; refs(google).p, refs(umd).p
    refcoco+/instances.json                    sizes of the images, the box of every reference
    annotations/instances_train2014.json       all boxes of the images
    train2014/COCO_train2014_000000580957.jpg  or train2014.zip
    refcoco+/proposal/res101_coco_minus_refer_notime_dets.json    for --proposals

    python -m data_prep.build refcoco --source=coco --data_dir=data \\
        --proposals=refcoco+/proposal/res101_coco_minus_refer_notime_dets.json

RefCOCO+ has 141,564 expressions of 49,856 references in 19,992 images: train 120,191, val 10,758, testA (people) 5,726,
testB (other things) 4,889. Reading COCO's annotations takes about ten seconds and 1.5 GB of memory; a core checks and
copies 300 images a second. The records take about 3 GB, nearly all of it images.

An image has many expressions, hence two tables. `refcoco_images`, one split `images`, ordered by first appearance in
the expressions; its record number is the `image_number` of an expression:

    index        int64     the record's number
    image_id     bytes     COCO's number
    image        bytes     the JPEG, RGB
    image_size   int32 2   width, height
    boxes        float32 n 4   x1 y1 x2 y2 (x, y, x + width, y + height): all annotations in file order, crowds too
    ann_ids      int64 n   their numbers
    proposals    float32 m 4   the detector's boxes in file order; (0, 4) without --proposals

`refcoco`, an expression each, official order; a batch holds one orientation, so each split is two, `val_landscape`
(width >= height of the image) and `val_portrait`:

    index        int64     number within the split as REFER counts it: references in file order, their sentences
    ref_id       int64     the reference; several expressions share it
    sent_id      int64     the expression's own number
    ann_id       int64     the annotation that is meant
    image_number int64
    box          float64 4 of that annotation, x1 y1 x2 y2
    expression   bytes     its tokens, joined by spaces

A download that does not fit together stops the build with a line that says where. `manifest.json` lists what was kept
as it is (boxes without area, images without a detection, expressions without a word) and images that were encoded anew.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import OrderedBuilder, SourceError, image_features, oriented
from data_prep.refcoco_files import ReferDownload, read_items
from data_prep.sources import ArchiveFolder, bad_boxes, map_ahead, read_image


class RefCOCOImages(OrderedBuilder, skip_registration=True):
    """The images with their boxes. `annotations` and `proposals` are paths under the download's folder."""

    name = "refcoco_images"

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        download: ReferDownload,
        annotations: str = "annotations/instances_train2014.json",
        proposals: str = "",
        num_threads: int = 4,
    ):
        self.download, self.archive = download, ArchiveFolder(download.root)
        self.annotations, self.proposals, self.num_threads = annotations, proposals, num_threads
        options = download.options | dict(annotations=annotations, proposals=proposals)
        super().__init__(corpus, data_dir, str(download.root), options)

    def _info(self):
        f = tfds.features
        boxes = f.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes")
        features = image_features() | dict(
            boxes=boxes,
            ann_ids=f.Tensor(shape=(None,), dtype=np.int64, encoding="bytes"),
            proposals=boxes,
        )
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
        if not any((self.download.root / name).exists() for name in ("train2014", "train2014.zip")):
            raise SourceError(f"{self.download.root}: neither train2014 nor train2014.zip, COCO's images, is there")
        _ = self.download.reference_boxes  # the other table needs them: what does not fit shows before images are read
        sizes, of_image = self.download.sizes, self._annotations()
        detections = self._proposals()
        progress = tqdm(self.download.image_ids, "images", unit=" images", mininterval=1)
        for image_id, (image, repair) in map_ahead(self._image, progress, self.num_threads):
            if repair:
                number = self.download.image_ids[image_id]
                self.manifest.note("repaired", self._image_path(image_id), number, repair)
            ann_ids, boxes = of_image[image_id]
            yield "images", dict(
                index=self.download.image_ids[image_id], image_id=str(image_id), image=image,
                image_size=np.array(sizes[image_id], np.int32), boxes=boxes, ann_ids=ann_ids,
                proposals=detections.get(image_id, np.zeros((0, 4), np.float32)),
            )  # fmt: skip
        self.archive.close()

    def _annotations(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """By image: numbers and boxes of its annotations."""
        path = self.download.root / self.annotations
        found: dict[int, list] = {image_id: [] for image_id in self.download.image_ids}
        for line, (ann_id, image_id, box) in enumerate(read_items(path, "annotations", "id", "image_id", "bbox")):
            if image_id in found:
                found[image_id].append((line, ann_id, box))
        for _, reference in self.download.references:
            if reference.ann_id not in (ann_id for _, ann_id, _ in found[reference.image_id]):
                raise SourceError(
                    f"{path}: no annotation {reference.ann_id} of image {reference.image_id}, which ref_id "
                    f"{reference.ref_id} names; --annotations must be the file that the references were made from"
                )
        result = {}
        for image_id, items in found.items():
            boxes = np.array([box for *_, box in items])
            boxes[:, 2:] += boxes[:, :2]
            self._note_areas(path, [line for line, *_ in items], boxes, image_id)
            result[image_id] = np.array([ann_id for _, ann_id, _ in items]), boxes.astype(np.float32)
        return result

    def _proposals(self) -> dict[int, np.ndarray]:
        """The detector's boxes by image."""
        if not self.proposals:
            return {}
        path = self.download.root / self.proposals
        found: dict[int, list] = {image_id: [] for image_id in self.download.image_ids}
        for line, (image_id, box) in enumerate(read_items(path, None, "image_id", "box")):
            if image_id in found:
                found[image_id].append((line, box))
        result = {}
        for image_id, items in found.items():
            if not items:
                self.manifest.note("kept", self.proposals, -1, f"no region of image {image_id}")
                continue
            # Corners are computed in single precision, as officially.
            result[image_id] = boxes = np.array([box for _, box in items], np.float32)
            boxes[:, 2:] += boxes[:, :2]
            self._note_areas(path, [line for line, _ in items], boxes, image_id)
        return result

    def _note_areas(self, path: pathlib.Path, lines: list[int], boxes: np.ndarray, image_id: int) -> None:
        """Boxes without area stay, as officially: a choice that may be wrong, like others."""
        for i in np.flatnonzero(bad_boxes(boxes, *self.download.sizes[image_id])):
            reason = f"box {boxes[i].tolist()} has no area in image {image_id}"
            self.manifest.note("kept", str(path.relative_to(self.download.root)), lines[i], reason)

    def _image_path(self, image_id: int) -> str:
        return f"train2014/COCO_train2014_{image_id:012d}.jpg"

    def _image(self, image_id: int) -> tuple[int, tuple[bytes, str]]:
        """(number, (JPEG, what was repaired)). Raises SourceError."""
        path, root = self._image_path(image_id), self.download.root
        inside = "" if (root / "train2014").is_dir() else "train2014.zip@/"
        try:
            image, size, repair = read_image(self.archive.read(inside + path))
        except SourceError:
            raise
        except Exception as error:  # Pillow raises many kinds for bytes that are no whole image
            raise SourceError(
                f"{root / 'train2014'}: image {image_id}: {error}; --source must have all of COCO train2014, as the "
                "folder train2014 or as train2014.zip"
            ) from None
        if size != self.download.sizes[image_id]:
            raise SourceError(
                f"{root / path}: {size[0]}x{size[1]} pixels, but {self.download.instances.name} says "
                f"{self.download.sizes[image_id]}: the boxes would not fit; take the images as COCO gives them"
            )
        return image_id, (image, repair)


class RefCOCOExpressions(OrderedBuilder, skip_registration=True):
    """The expressions; `download` is that of `RefCOCOImages`, which numbers the images."""

    name = "refcoco"

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, download: ReferDownload):
        self.download = download
        super().__init__(corpus, data_dir, str(download.root), download.options)

    def _info(self):
        f = tfds.features
        numbers = ("index", "ref_id", "sent_id", "ann_id", "image_number")
        features = {name: f.Scalar(np.int64) for name in numbers}
        # Without encoding="bytes" TFDS would keep single precision.
        features |= dict(box=f.Tensor(shape=(4,), dtype=np.float64, encoding="bytes"), expression=f.Text())
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
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
