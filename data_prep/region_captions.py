"""TFDS builder `region_captions`: images with captions and regions, for pre-training.

Source: Conceptual Captions (captions and image addresses from Google, free to use; images under the
terms of their owners), prepared as the official VL-BERT repository describes: the images are
downloaded, and the bottom-up-attention detector finds 10 to 100 regions per image. The folder
`--source`:

    train_frcnn.json  val_frcnn.json    per line: {"image": "train_image.zip@/00000000.jpg",
                                        "caption": ["a", "dog"],
                                        "frcnn": "train_frcnn.zip@/00000000.json"}
    train_image.zip   or  train_image/  X.zip@/name is `name` in the archive X.zip or the folder X
    train_frcnn.zip   or  train_frcnn/  per image: image_w, image_h, num_boxes; float32 in base64:
                                        boxes [n, 4], classes [n, 1601], features [n, 2048], attrs
                                        [n, 401] with "no attribute" first (with --attributes)

    python -m data_prep.build captions --source=conceptual-captions --data_dir=data

One CPU core builds about 100 images of 800x600 pixels with 100 regions per second. Such a record
takes 0.4 MB (class scores 0.32, compressed 0.23), with `--features` 0.8 MB more. With
`--scores=top64` it takes 0.2 MB: the 64 largest class scores of a region are exact, and the others
are stored as their mean, so their sum stays. Labels and their scores stay the same. The soft
targets of hidden regions are flatter among the other classes: their loss differs by at most the
probability of these, 1537 times `other_score`, times the range of the model's log-probabilities.
A batch holds one orientation, so each official split becomes two: `train_landscape` (width >=
height) and `train_portrait`, likewise `val`.

Record (n regions in descending order of their highest class score, background included; ties keep
the file's order):

    index         int64     line of the official file, from 0
    image_id      bytes     `image` of that line
    image         bytes     the downloaded JPEG, RGB; empty with --no_images, and if it cannot be
                            read (the official code then uses an image of the mean color)
    image_size    int32 2   width, height of the image; those of the region file if the image is
                            empty or with --features
    caption       bytes *   words as in the file
    boxes         float32 n 4   x1 y1 x2 y2 in pixels of the image, not clipped
    class_scores  float16 or float32 n c; (0, 0) with --grid
    with --scores=top64 instead: class_scores n 64, the largest of each region; class_ids int32 n 64,
                  their columns; other_score float32 n, the mean of the others; num_classes int64, c
    features      float32 n g; (0, 0) without --features
    attribute_scores  float n a   as class_scores, without "no attribute"; only with --attributes
    answers       bytes *   with --answers: those of the question that the caption is, and
    answer_scores float32 * their scores; none for a caption. The field "answers" of a line of the
                            index is an object answer -> score, as {"red": 1, "pink": 0.3}
    other_captions bytes *  with --other_captions: those of the other lines of its split with the same
                            image, words separated by spaces, without those of questions

With --detector, --grid or --regions the command makes the index from SPLIT.tsv: SPLIT_frcnn.json,
SPLIT_grid.json or SPLIT_regions.json. A third column there has the answers. The regions of a grid
have no class scores, so masked regions cannot be classified in pre-training: it ends unless
config.losses.mrc=False.

Defects of the download never stop a build. `manifest.json` lists each defect with its file, its
line and the action: kept (as in the official code), repaired (changed) or skipped (no record)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.builder import Made, Note, OrderedBuilder, array_feature, image_features, oriented, region_feature
from data_prep.caption_answers import answer_scores
from data_prep.manifest import SourceError
from data_prep.sources import ArchiveFolder, bad_boxes
from vlbert_jax.data.class_scores import are_distributions, class_scores, largest_scores, rounded
from vlbert_jax.data.region_files import Detections, Unusable, decode_detections, grid_boxes, parse_record
from vlbert_jax.files import parse_json


@dataclasses.dataclass
class _Item:
    """A line of the index while its record is made."""

    line: int
    image_id: str
    detections: str  # path of the region file
    caption: Any  # as the line states it
    answers: Any  # likewise; None = the caption is not a question
    notes: list[Note]

    def note(self, action: str, file: str, reason: str) -> None:
        self.notes.append((action, file, self.line, reason))


class RegionCaptions(OrderedBuilder, skip_registration=True):
    """The builder; `python -m data_prep.build captions --help` explains the options."""

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
        index: str = "frcnn",
        attributes: bool = False,
        answers: bool = False,
        top_scores: int = 0,
        other_captions: bool = False,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          source: folder of the index files.
          splits: official splits.
          dtype: "float16" or "float32", the type of the class scores.
          features: store the region features.
          images: store the images.
          drop_unreadable: skip items whose image cannot be read; otherwise their image is empty.
          num_threads: number of threads that read images.
          index: the index of a split is SPLIT_INDEX.json; "grid" = without regions, which are a grid.
          attributes: store the scores of the detector's attributes.
          answers: store the answers of captions that are questions.
          top_scores: number of class scores of a region that are stored, the largest; 0 = all.
          other_captions: store with a caption the other captions of its image.
        """
        self.indices = {split: f"{split}_{index}.json" for split in splits}
        self.has_scores = index != "grid"
        self.files = ArchiveFolder(pathlib.Path(source))
        self.splits, self.dtype, self.num_threads = splits, np.dtype(dtype), num_threads
        self.features, self.images, self.drop_unreadable = features, images, drop_unreadable
        self.attributes, self.answers, self.top_scores = attributes, answers, top_scores
        self.other_captions = other_captions
        self._without: collections.Counter[tuple[str, str]] = collections.Counter()
        self._first: dict[tuple[str, str], str] = {}  # reason
        options = dict(splits=list(splits), dtype=dtype, features=features, images=images)
        options |= dict(drop_unreadable=drop_unreadable)
        options |= dict(index=index) if index != "frcnn" else {}
        options |= {name: True for name in ("attributes", "answers", "other_captions") if getattr(self, name)}
        options |= dict(scores=f"top{top_scores}") if top_scores else {}
        super().__init__(corpus, data_dir, str(source), options)

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        found = image_features() | dict(
            caption=tfds.features.Sequence(tfds.features.Text()),
            boxes=array_feature(None, 4),
            class_scores=array_feature(*(None, None) if self.has_scores else (0, 0), dtype=self.dtype),
            features=region_feature(self.features),
        )
        if self.top_scores:
            ids, number = array_feature(None, None, dtype=np.int32), tfds.features.Scalar(np.int64)
            found |= dict(class_ids=ids, other_score=array_feature(None), num_classes=number)
        if self.attributes:
            found["attribute_scores"] = array_feature(None, None, dtype=self.dtype)
        if self.answers:
            found |= dict(answers=tfds.features.Sequence(tfds.features.Text()), answer_scores=array_feature(None))
        if self.other_captions:
            found["other_captions"] = tfds.features.Sequence(tfds.features.Text())
        return found

    def inputs(self) -> list[pathlib.Path]:
        """Return the indices, and the archives or folders of their first lines."""
        indices = [self.files.root / index for index in self.indices.values()]
        data = (self.files.place(path) for index in indices for path in self._first_paths(index))
        return indices + list(dict.fromkeys(data))

    @functools.cached_property
    def _lines(self) -> dict[str, int]:
        """Count the lines of the index of each split; one of them must be a question if answers are stored."""
        counts, asked = {}, False
        for split in self.splits:
            self._check(self.files.root / self.indices[split])
        for split in self.splits:
            with open(self.files.root / self.indices[split], "rb") as index:
                counts[split] = 0
                for line in index:
                    counts[split] += 1
                    asked |= b'"answers"' in line
        if self.answers and not asked:
            names = ", ".join(str(self.files.root / index) for index in self.indices.values())
            raise SourceError(f'{names}: no line has the field "answers"; leave out --answers')
        self.files.close()  # the processes that read images open their own archives
        return counts

    def number_of_items(self) -> int:
        """Return the number of lines. Raises SourceError if an index, an archive or every answer is missing."""
        return sum(self._lines.values())

    def items(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (split, number in its index, line)."""
        for split in self.splits:
            with open(self.files.root / self.indices[split], "rb") as index:
                for number, line in enumerate(index):
                    yield split, number, line

    def make(self, item: tuple[str, int, bytes]) -> Made:
        """Return the record of a line of the index."""
        split = item[0]
        record, notes = self._record(item)
        action = "skipped" if record is None else "" if record["image"] else "kept"
        reason = next((f"{file}: {reason}" for found, file, _, reason in notes if found == action), "")
        fact = split, action, reason
        if record is None:
            return Made(notes=notes, fact=fact)
        usable = are_distributions(class_scores(record)).tolist()
        return Made(oriented(split, *record["image_size"]), record, notes, usable, fact)

    def absorb(self, facts: list[tuple[str, str, str]]) -> None:
        """Count the lines of each split without a record ("skipped") and those without an image ("kept")."""
        for split, action, reason in facts:
            self._without[split, action] += 1
            self._first.setdefault((split, action), reason)

    def conclude(self, folder: pathlib.Path) -> None:
        """Check that each split has a record, and an image if images are stored.

        Raises:
          SourceError: a fault of everything is one of the download, not of its items.
        """
        for split, total in self._lines.items():
            number = total - self._without[split, "skipped"]
            readable = number - self._without[split, "kept"]
            if number and (readable or not self.images):
                continue
            first = self._first[split, "kept" if number else "skipped"]
            reason = f", such as {first}" if first else ""
            what = f"none of the images of {number:,} records" if number else f"none of {total:,} lines"
            raise SourceError(f"{self.files.root / self.indices[split]}: {what} can be used{reason}")

    def _check(self, index: pathlib.Path) -> None:
        """Check that an index and the archives of its first line exist. Raises SourceError."""
        if not index.is_file():
            raise SourceError(f"{index}: the file does not exist; --source must be the folder of the index files")
        for path in self._first_paths(index):
            self.files.check(path)

    def _first_paths(self, index: pathlib.Path) -> list[str]:
        """Return the paths in the first line of an index; none if it cannot be read."""
        try:
            with open(index, "rb") as lines:
                entry = parse_json(lines.readline())
            paths = [str(entry["frcnn"])] if self.has_scores else []
            return paths + ([str(entry["image"])] if self.images else [])
        except (KeyError, TypeError, ValueError, OSError):
            return []  # the manifest will list this line

    def _record(self, item: tuple[str, int, bytes]) -> tuple[dict[str, Any] | None, list[Note]]:
        """Return the record of a line of the index, None if it is skipped, and the notes."""
        split, number, line = item
        notes: list[Note] = []
        file = self.indices[split]
        try:
            entry = _parse_line(number, line, notes, self.has_scores)
            file = entry.detections or entry.image_id
            words = _words(entry.caption)
            answers = _answers(entry.answers) if self.answers else {}
            if not self.has_scores:
                image, size, regions = self._with_grid(entry)
            else:
                regions = self._regions(entry)
                image, size = b"", regions.size
                if self.images:
                    file = entry.image_id
                    image, size = self._image(entry, regions)
                    file = entry.detections
                regions = _usable_regions(entry, regions, size)
        except Unusable as error:
            notes.append(("skipped", file, number, str(error)))
            return None, notes
        if self.has_scores:
            order = np.argsort(-regions.scores.max(1), kind="stable")
            regions = _of_rows(regions, order)
        record = dict(
            index=number, image_id=entry.image_id, image=image, image_size=np.array(size, np.int32),
            caption=words, boxes=regions.boxes, class_scores=rounded(regions.scores, self.dtype),
            features=regions.features,
        )  # fmt: skip
        if self.top_scores:
            if self.top_scores > regions.scores.shape[1]:
                has = f"{entry.detections} has {regions.scores.shape[1]} class scores per region"
                raise SourceError(f"{has}, fewer than --scores=top{self.top_scores}; choose a smaller number")
            record |= largest_scores(record["class_scores"], self.top_scores)
        if self.attributes:
            record["attribute_scores"] = rounded(regions.attributes, self.dtype)
        if self.answers:
            record |= dict(answers=list(answers), answer_scores=np.array([*answers.values()], np.float32))
        if self.other_captions:
            captions = self._captions[split][entry.image_id]
            record["other_captions"] = [caption for line, caption in captions if line != number]
        return record, notes

    @functools.cached_property
    def _captions(self) -> dict[str, dict[str, list[tuple[int, str]]]]:
        """Read for each split and image the lines with its captions, without questions and unusable lines."""
        found = {split: collections.defaultdict(list) for split in self.splits}
        for split, number, line in self.items():
            try:
                entry = _parse_line(number, line, [], self.has_scores)
                if entry.answers is None:
                    found[split][entry.image_id].append((number, " ".join(_words(entry.caption))))
            except Unusable:
                continue  # the manifest will list this line
        return found

    def _with_grid(self, item: _Item) -> tuple[bytes, tuple[int, int], Detections]:
        """Return the image, its size and the regions of a grid. Raises Unusable if it cannot be read."""
        image, size, conversion = self.files.read_jpeg(item.image_id, upright=True)
        if conversion:
            item.note("converted", item.image_id, conversion)
        empty = np.zeros((0, 0), np.float32)
        return image, size, Detections("", size, grid_boxes(size), empty, empty, empty)

    def _regions(self, item: _Item) -> Detections:
        try:
            content = self.files.read(item.detections)
        except OSError as error:
            raise Unusable(f"the region file cannot be read: {error}") from None
        regions = decode_detections(parse_record(content), self.features, self.attributes)
        self.manifest.extracted(regions.extractor, item.detections)
        return regions

    def _image(self, item: _Item, regions: Detections) -> tuple[bytes, tuple[int, int]]:
        """Return the image, empty if it cannot be read, and the size to which the boxes refer."""
        try:
            image, size, conversion = self.files.read_jpeg(item.image_id, upright=bool(regions.extractor))
        except Unusable as error:
            if self.drop_unreadable:
                raise Unusable(f"the image cannot be read: {error}") from None
            item.note("kept", item.image_id, f"the image is left empty: {error}")
            return b"", regions.size
        if conversion:
            item.note("converted", item.image_id, conversion)
        if size != regions.size:
            item.note("kept", item.image_id, f"the size is {size}, the detector saw {regions.size}")
        return image, regions.size if self.features else size


def _parse_line(number: int, line: bytes, notes: list[Note], has_regions: bool) -> _Item:
    try:
        entry = parse_json(line)
        detections = str(entry["frcnn"]) if has_regions else ""
        image_id, caption = str(entry["image"]), entry["caption"]
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"the line of the index cannot be used: {type(error).__name__} {error}") from None
    return _Item(number, image_id, detections, caption, entry.get("answers"), notes)


def _words(caption: Any) -> list[str]:
    if not isinstance(caption, list) or not "".join(map(str, caption)).strip():
        raise Unusable("the caption is not a list of words, or is empty")
    return [str(word) for word in caption]


def _answers(given: Any) -> dict[str, float]:
    """Return answer -> score, nothing for a caption. Raises Unusable."""
    try:
        return {} if given is None else answer_scores(given)
    except ValueError as error:
        raise Unusable(str(error)) from None


def _of_rows(regions: Detections, rows: np.ndarray) -> Detections:
    """Return some regions, by number or by a mask, in this order."""
    names = ("boxes", "scores", "features", "attributes")
    arrays = {name: getattr(regions, name) for name in names}
    return regions._replace(**{name: array[rows] for name, array in arrays.items() if array.size})


def _usable_regions(item: _Item, regions: Detections, size: tuple[int, int]) -> Detections:
    """Return the regions without bad boxes, and list these and dubious class scores.

    Raises Unusable.
    """
    bad = bad_boxes(regions.boxes, *size)
    if bad.all():
        raise Unusable(f"no box is inside the image of {size}; the first is {regions.boxes[0].tolist()}")
    for box in regions.boxes[bad]:
        item.note("repaired", item.detections, f"dropped box {box.tolist()} of an image of {size}")
    regions = _of_rows(regions, ~bad)
    off = ~are_distributions(regions.scores)
    if off.any():
        reason = f"the class scores of {off.sum()} regions do not sum to 1, so these are never a target"
        item.note("kept", item.detections, reason)
    return regions
