"""TFDS builder `region_captions`: images with captions and a detector's regions, for pre-training.

Source: Conceptual Captions (captions and image addresses from Google, free to use, images under their
owners' terms) prepared as the official VL-BERT repository describes: images downloaded, 10 to 100 regions per
image from the bottom-up-attention detector. The folder `--source`:

    train_frcnn.json  val_frcnn.json       a line each: {"image": "train_image.zip@/00000000.jpg",
                                           "caption": ["a", "dog"], "frcnn": "train_frcnn.zip@/00000000.json"}
    train_image.zip   or  train_image/     X.zip@/name is `name` in the archive X.zip or in the folder X
    train_frcnn.zip   or  train_frcnn/     per image: image_w, image_h, num_boxes; float32 in base64: boxes
                                           [n, 4], classes [n, 1601], features [n, 2048]

    python -m data_prep.build conceptual_captions --source=conceptual-captions --data_dir=data

One CPU core builds about 100 images of 800x600 with 100 regions a second; such a record takes 0.4 MB
(class scores 0.32), with `--features` 0.8 MB more. A batch holds one orientation, so each official
split becomes two: `train_landscape` (width >= height), `train_portrait`, and the same for `val`.

Record (n regions, sorted by their highest class score, background included, descending; ties in file order):

    index         int64     line of the official file, from 0
    image_id      bytes     `image` of that line
    image         bytes     the JPEG as downloaded, RGB; empty where it could not be read: then the official
                            code takes one of the mean colour, of `image_size`. Empty with --no_images
    image_size    int32 2   width, height of the image, of the detector's JSON if empty or with --features
    caption       bytes *   words as in the file
    boxes         float32 n 4   x1 y1 x2 y2 in pixels of the image, not clipped
    class_scores  float16 or float32 n c
    features      float32 n g; (0, 0) without --features

What is wrong in the download never stops a build. `manifest.json` lists each case with its file, its line
and what was done: kept (as the official code does), repaired (changed) or skipped (no record).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import OrderedBuilder, SourceError, image_features, oriented
from data_prep.sources import ArchiveFolder, bad_boxes, map_ahead, read_image
from vlbert_jax.data.region_files import Unusable, decode_floats

SUM_TOLERANCE = 0.1  # class scores further from 1 are no target (official rule)


def read_detections(content: bytes, with_features: bool) -> tuple[str, tuple[int, int], np.ndarray, ...]:
    """Extractor ("" if unknown), (width, height), boxes, class scores, features of a detector file. Raises Unusable."""
    try:
        record = json.loads(content)
        size = int(record["image_w"]), int(record["image_h"])
        record["num_boxes"] = int(record["num_boxes"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"detector file: {type(error).__name__} {error}") from None
    if record["num_boxes"] < 1:
        raise Unusable("no region")
    if min(size) < 1:
        raise Unusable(f"image size {size}")
    boxes, scores = decode_floats(record, "boxes"), decode_floats(record, "classes")
    features = decode_floats(record, "features") if with_features else np.zeros((0, 0), np.float32)
    if not np.isfinite(scores).all() or not np.isfinite(features).all():
        raise Unusable("class scores or features that are not finite")
    return str(record.get("extractor", "")), size, boxes, scores, features


class RegionCaptions(OrderedBuilder, skip_registration=True):
    """`python -m data_prep.build conceptual_captions --help` explains the options."""

    name = "region_captions"

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        source: str | pathlib.Path,
        splits: tuple[str, ...] = ("train", "val"),
        dtype: str = "float16",
        features: bool = False,
        images: bool = True,
        drop_unreadable: bool = False,
        num_threads: int = 4,
    ):
        self.root = ArchiveFolder(pathlib.Path(source))
        self.splits, self.dtype, self.num_threads = splits, np.dtype(dtype), num_threads
        self.features, self.images, self.drop_unreadable = features, images, drop_unreadable
        options = dict(splits=list(splits), dtype=dtype, features=features, images=images)
        options |= dict(drop_unreadable=drop_unreadable)
        super().__init__(corpus, data_dir, str(source), options)

    def _info(self):
        f = tfds.features
        feature_shape = (None, None) if self.features else (0, 0)  # (None, None) cannot be read back if empty
        features = image_features() | dict(
            caption=f.Sequence(f.Text()),
            boxes=f.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes"),
            class_scores=f.Tensor(shape=(None, None), dtype=self.dtype, encoding="bytes"),
            features=f.Tensor(shape=feature_shape, dtype=np.float32, encoding="bytes"),
        )
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
        for split in self.splits:
            path = self.root.root / f"{split}_frcnn.json"
            if not path.is_file():
                raise SourceError(f"{path}: not there; --source must be the folder of the index files")
            self._check_archives(path)
        for split in self.splits:
            with open(self.root.root / f"{split}_frcnn.json", "rb") as index:
                total = sum(1 for _ in index)
                index.seek(0)
                progress = tqdm(index, split, total, unit=" images", mininterval=1)
                items = ((split, number, line) for number, line in enumerate(progress))
                for record, notes in map_ahead(self._record, items, self.num_threads):
                    for note in notes:
                        self.manifest.note(*note)
                    if record:
                        width, height = record["image_size"]
                        yield oriented(split, width, height), record
        self.root.close()

    def _check_archives(self, index: pathlib.Path) -> None:
        with open(index, "rb") as lines:
            try:
                entry = json.loads(lines.readline())
                paths = [str(entry["frcnn"]), str(entry["image"])][: 1 + self.images]
            except (KeyError, TypeError, ValueError):
                return  # the manifest will list this line
        for path in paths:
            self.root.check(path)

    def _record(self, item: tuple[str, int, bytes]) -> tuple[dict | None, list[tuple]]:
        """The record of an index line, None if there is none, and the manifest's notes about it."""
        split, number, line = item
        file, notes = f"{split}_frcnn.json", []

        def note(action, reason):
            notes.append((action, file, number, reason))

        try:
            try:
                entry = json.loads(line)
                image_id, detections, caption = str(entry["image"]), str(entry["frcnn"]), entry["caption"]
            except (KeyError, TypeError, ValueError) as error:
                raise Unusable(f"index line: {type(error).__name__} {error}") from None
            file = detections
            if not isinstance(caption, list) or not "".join(map(str, caption)).strip():
                raise Unusable("the caption is not a list of words, or empty")
            try:
                content = self.root.read(detections)
            except OSError as error:
                raise Unusable(f"detector file: {error}") from None
            extractor, size, boxes, scores, features = read_detections(content, self.features)
            self.manifest.extracted(extractor, detections)
            image = b""
            if self.images:
                file = image_id
                try:
                    image, image_size, repair = read_image(self.root.read(image_id), upright=bool(extractor))
                except SourceError:
                    raise
                except Exception as error:  # Pillow raises many kinds for bytes that are no whole image
                    if self.drop_unreadable:
                        raise Unusable(f"image: {error}") from None
                    note("kept", f"image left empty: {error}")
                else:
                    if repair:
                        note("repaired", repair)
                    if image_size != size:
                        note("kept", f"image is {image_size}, the detector saw {size}")
                    if not self.features:
                        size = image_size
            file = detections
            bad = bad_boxes(boxes, *size)
            if bad.all():
                raise Unusable(f"no region inside the image of {size}, the first is {boxes[0].tolist()}")
            if bad.any():
                for box in boxes[bad]:
                    note("repaired", f"dropped box {box.tolist()} of an image of {size}")
                boxes, scores, features = boxes[~bad], scores[~bad], features[~bad[: len(features)]]
            off = np.abs(scores.sum(1) - 1) >= SUM_TOLERANCE
            if off.any():
                note("kept", f"class scores of {off.sum()} regions do not sum to 1: these are never a target")
            order = np.argsort(-scores.max(1), kind="stable")
            record = dict(
                index=number, image_id=image_id, image=image, image_size=np.array(size, np.int32),
                caption=[str(word) for word in caption], boxes=boxes[order],
                class_scores=scores[order].astype(self.dtype),
                features=features[order] if len(features) else features,
            )
            return record, notes
        except Unusable as error:
            note("skipped", str(error))
            return None, notes
