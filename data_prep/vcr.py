"""TFDS builders `vcr_images` and `vcr`: Visual Commonsense Reasoning, its images with objects and its questions.

Source: VCR 1.0 from visualcommonsense.com (account and agreement needed; for research only, the images belong to the
makers of the films). The folder `--source`:

    train.jsonl  val.jsonl  test.jsonl     a question each: annot_id, objects, img_fn, metadata_fn, question,
                                           answer_choices [4], rationale_choices [4] and, but for test, answer_label,
                                           rationale_label. A text is a list of words and of lists of object numbers
    vcr1images.zip  or  vcr1images/        img_fn: a JPEG; metadata_fn: {"boxes": [[x1, y1, x2, y2, score], ...],
                                           "segms": [polygons [[[x, y], ...], ...] of each object, ...]}

    python -m data_prep.build vcr --source=vcr --data_dir=data

110,000 images, 290,000 questions. Two CPU cores build about 150 images of 1280x720 with 12 objects a second, then 5,000
questions a second; the records take as much room as the images, 0.4 KB more for a question.

Record of `vcr_images/CORPUS`, split `images`, one for each image and list of objects, in order of first mention:

    index         int64         row, from 0: `image_number` of the questions
    image_id      bytes         img_fn
    image         bytes         the JPEG as downloaded, RGB
    image_size    int32 2       width, height
    boxes         float64 n 4   x1 y1 x2 y2 in pixels of the image, not clipped
    objects       bytes * n     names of their categories
    classes       int64 n       the category's line in `--categories` from 1; by default COCO's 80 without spaces
    shapes        uint8 n 14 14    1 where the object is, on a grid over its box, not flipped; all 0 without a polygon

Record of `vcr/CORPUS`, splits `{train,val,test}_{landscape,portrait}` (landscape: width >= height), in file order:

    index         int64     line of the jsonl file, from 0
    annot_id      bytes
    image_number  int64     row of `vcr_images/CORPUS`
    question      bytes     the text as a JSON list, as in the file
    answers, rationales     bytes * 4, texts likewise
    answer_label, rationale_label   int64, 0 to 3; -1 in test

What cannot be right in a benchmark ends the build and is named with its place: a line that is no JSON, a missing field,
a text that is no list of words and object numbers, an object that is not there or of an unknown category, not four
choices, a label that is none of them, an image or metadata file that is missing or damaged. `manifest.json` lists what
is odd and taken as the official code takes it: polygons of less than three points (they cover nothing) or beyond their
box (moved onto its border), a box outside its image, metadata with another image size.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import OrderedBuilder, SourceError, image_features, oriented
from data_prep.sources import ArchiveFolder, map_ahead, read_image

SPLITS = ("train", "val", "test")
NUM_CHOICES = 4
GRID = 14  # cells a side, those of RoIAlign
LABELS = ("answer_label", "rationale_label")
COCO_CATEGORIES = (
    "person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis "
    "snowboard sportsball kite baseballbat baseballglove skateboard surfboard tennisracket bottle wineglass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed "
    "diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock "
    "vase scissors teddybear hairdrier toothbrush"
).split()

# --- Shapes -------------------------------------------------------------------------------------------------


def inside(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bool [GRID, GRID]: the integer points inside a polygon, given the float64 [v] coordinates of its vertices.

    The even-odd rule, with edges that take their upper end and leave their lower, so that a point on a left or upper
    border is in and one on a right or lower border is out: scikit-image's `draw.polygon` up to 0.17, which the authors
    trained with. From 0.18 on it counts every border as in.
    """
    y, x = np.mgrid[:GRID, :GRID, :1][:2]  # [GRID, GRID, 1] against [v]
    next_rows, next_columns = np.roll(rows, 1), np.roll(columns, 1)
    crossed = (rows <= y) != (next_rows <= y)  # the edge passes from above the point's row to below, or back
    height = np.where(rows == next_rows, 1.0, next_rows - rows)  # level edges are never crossed
    at = (next_columns - columns) * (y - rows) / height + columns
    return (crossed & (x < at)).sum(-1) % 2 == 1


def on_grid(polygon: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a polygon's [v, 2] x, y on the grid over its box, moved onto the border where beyond.

    In float32 and on sides of x2 - x1 + 1 pixels, as in the official `generate_instance_mask`.
    """
    polygon = np.asarray(polygon, np.float32)
    x1, y1, x2, y2 = (float(side) for side in box)
    columns = (polygon[:, 0] - x1) * (GRID / (x2 - x1 + 1))
    rows = (polygon[:, 1] - y1) * (GRID / (y2 - y1 + 1))
    return np.clip(rows, 0, GRID - 1), np.clip(columns, 0, GRID - 1)


def shape_of(polygons: list[np.ndarray], box: Sequence[float]) -> np.ndarray:
    """uint8 [GRID, GRID]: the union of an object's polygons, each [v, 2]; without one, nothing."""
    shape = np.zeros((GRID, GRID), bool)
    for polygon in polygons:
        rows, columns = on_grid(polygon, box)
        shape |= inside(rows.astype(np.float64), columns.astype(np.float64))
    return shape.astype(np.uint8)


# --- The files ----------------------------------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong, without its place."""


def _field(item: dict, name: str, kind: type):
    if name not in item:
        raise Wrong(f"no {name}")
    if type(item[name]) is not kind:  # a bool is no int here
        raise Wrong(f"{name} is no {kind.__name__}: {str(item[name])[:60]!r}")
    return item[name]


def _check_text(name: str, text, num_objects: int) -> None:
    if not isinstance(text, list) or not text:
        raise Wrong(f"{name} is no list of words and lists of object numbers: {str(text)[:60]!r}")
    for part in text:
        if isinstance(part, str):
            continue
        if not isinstance(part, list) or not part or any(type(number) is not int for number in part):
            raise Wrong(f"{name} has {str(part)[:60]!r}, neither a word nor a list of object numbers")
        for number in part:
            if not 0 <= number < num_objects:
                raise Wrong(f"{name} points to object {number}, there are {num_objects} (from 0)")


def check_question(item: dict, labelled: bool) -> None:
    """Raises Wrong where a line of a jsonl file is not as it must be; `labelled` = it must have its labels."""
    for name in ("annot_id", "img_fn", "metadata_fn"):
        if not _field(item, name, str):
            raise Wrong(f"{name} is empty")
    objects = _field(item, "objects", list)
    if not all(isinstance(name, str) for name in objects):
        raise Wrong(f"objects is no list of category names: {str(objects)[:60]!r}")
    _check_text("question", _field(item, "question", list), len(objects))
    for name in ("answer_choices", "rationale_choices"):
        choices = _field(item, name, list)
        if len(choices) != NUM_CHOICES:
            raise Wrong(f"{len(choices)} {name}, not {NUM_CHOICES}")
        for number, text in enumerate(choices):
            _check_text(f"{name}[{number}]", text, len(objects))
    for name in LABELS:
        if (labelled or item.get(name) is not None) and _field(item, name, int) not in range(NUM_CHOICES):
            raise Wrong(f"{name} is {item[name]}, none of 0 to {NUM_CHOICES - 1}")


def read_questions(root: pathlib.Path, splits: Sequence[str]) -> Iterator[tuple[str, int, dict]]:
    """Yields (split, line from 0, the checked question). Raises SourceError with file, line from 1 and remedy."""
    for split in splits:
        path = root / f"{split}.jsonl"
        if not path.is_file():
            raise SourceError(f"{path}: not there; --source must be the folder of the jsonl files of --splits")
    for split in splits:
        path, known = root / f"{split}.jsonl", {}
        with open(path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                item = None
                try:
                    item = json.loads(line)
                    if not isinstance(item, dict):
                        raise Wrong("no JSON object")
                    check_question(item, labelled=split != "test")
                    if known.setdefault(item["annot_id"], number) != number:
                        raise Wrong(f"annot_id is that of line {known[item['annot_id']] + 1} too")
                except (Wrong, ValueError) as error:
                    name = f" ({item['annot_id']})" if isinstance(item, dict) and "annot_id" in item else ""
                    raise SourceError(f"{path}, line {number + 1}{name}: {error}; download it again") from None
                yield split, number, item


def image_key(item: dict) -> tuple:
    """What makes a row of the image table: texts number the objects of this list."""
    return item["img_fn"], item["metadata_fn"], tuple(item["objects"])


def read_metadata(content: bytes, num_objects: int) -> tuple[dict, np.ndarray, list[list[np.ndarray]]]:
    """(all of it, boxes float64 [n, 4], polygons [v, 2] of each object). Raises Wrong."""
    try:
        metadata = json.loads(content)
    except ValueError as error:
        raise Wrong(f"no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise Wrong("no JSON object")
    boxes, outlines = _field(metadata, "boxes", list), _field(metadata, "segms", list)
    if len(boxes) != num_objects or len(outlines) != num_objects:
        raise Wrong(f"{len(boxes)} boxes and {len(outlines)} segms for {num_objects} objects")
    try:
        boxes = np.array([box[:4] for box in boxes], np.float64).reshape(num_objects, 4)
    except (TypeError, ValueError):
        raise Wrong("boxes are not four numbers and a score each") from None
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        raise Wrong("a box is not finite, or its second corner lies before its first")
    polygons = []
    for number, outline in enumerate(outlines):
        try:
            found = [np.array(polygon, np.float64).reshape(len(polygon), 2) for polygon in outline]
        except (TypeError, ValueError):
            raise Wrong(f"segms[{number}] is no list of polygons [[x, y], ...]") from None
        if not all(np.isfinite(polygon).all() for polygon in found):
            raise Wrong(f"segms[{number}] has a point that is not finite")
        polygons.append(found)
    return metadata, boxes, polygons


def oddities(metadata: dict, boxes: np.ndarray, polygons: list, size: tuple[int, int]) -> Iterator[str]:
    """What is kept as it is, or as the official code takes it, and named in the manifest."""
    named = metadata.get("width", size[0]), metadata.get("height", size[1])
    if named != size:
        yield f"image is {size}, the metadata say {named}"
    outside = (boxes[:, :2] > np.array(size) - 1).any(1) | (boxes[:, 2:] < 0).any(1)
    if outside.any():
        yield f"{outside.sum()} boxes outside the image"
    short = sum(len(polygon) < 3 for found in polygons for polygon in found)
    if short:
        yield f"{short} polygons of less than three points cover nothing"
    # Less than a cell of the grid is what clamping does to every polygon.
    beyond = sum(
        bool(len(polygon)) and ((polygon < box[:2] - cell) | (polygon > box[2:] + cell)).any()
        for box, cell, found in zip(boxes, (boxes[:, 2:] - boxes[:, :2] + 1) / GRID, polygons, strict=True)
        for polygon in found
    )
    if beyond:
        yield f"{beyond} polygons more than a cell of the grid beyond their box, moved onto its border"


def read_categories(path: str | pathlib.Path) -> list[str]:
    """The names of a file, one per line, which stand for the classes 1, 2, ... Raises SourceError."""
    try:
        names = pathlib.Path(path).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as a list of categories, one per line ({error})") from None
    if not names or len(set(names)) < len(names):
        raise SourceError(f"{path}: must have a category per line, each once")
    return names


# --- The builders -------------------------------------------------------------------------------------------


class VCRImages(OrderedBuilder, skip_registration=True):
    """Every image that the questions of `splits` are about. `categories`: names of the classes 1, 2, ..."""

    name = "vcr_images"

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        source: str | pathlib.Path,
        categories: Sequence[str] = COCO_CATEGORIES,
        splits: Sequence[str] = SPLITS,
        num_threads: int = 4,
    ):
        self.root, self.splits, self.num_threads = pathlib.Path(source), tuple(splits), num_threads
        self.class_of = {name: number for number, name in enumerate(categories, 1)}
        self.files = ArchiveFolder(self.root)
        # In an archive the files lie in a folder of its name.
        self.inner = "vcr1images/" if (self.root / "vcr1images.zip").is_file() else ""
        options = dict(splits=list(self.splits), categories=" ".join(categories))
        super().__init__(corpus, data_dir, str(source), options)

    def _info(self):
        f = tfds.features
        features = image_features() | dict(
            boxes=f.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),
            objects=f.Sequence(f.Text()),
            classes=f.Tensor(shape=(None,), dtype=np.int64, encoding="bytes"),
            shapes=f.Tensor(shape=(None, GRID, GRID), dtype=np.uint8, encoding="bytes"),
        )
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
        found: dict[tuple, tuple[int, str, int]] = {}
        for split, line, item in read_questions(self.root, self.splits):
            unknown = [name for name in item["objects"] if name not in self.class_of]
            if unknown:
                raise SourceError(
                    f"{self.root / split}.jsonl, line {line + 1} ({item['annot_id']}): objects has {unknown[0]!r}, "
                    f"which is none of the {len(self.class_of)} categories; give yours by --categories=FILE"
                )
            found.setdefault(image_key(item), (len(found), split, line))
        self.files.check("vcr1images.zip@/")
        items = tqdm(found.items(), "images", mininterval=1)
        for record, notes in map_ahead(self._record, items, self.num_threads):
            for note in notes:
                self.manifest.note(*note)
            yield "images", record
        self.files.close()

    def _record(self, item: tuple[tuple, tuple]) -> tuple[dict, list[tuple]]:
        """The record of an image, and the manifest's notes about it."""
        (image_id, metadata_id, objects), (index, split, line) = item
        file, notes = metadata_id, []
        try:
            content = self.files.read(f"vcr1images.zip@/{self.inner}{metadata_id}")
            metadata, boxes, polygons = read_metadata(content, len(objects))
            file = image_id
            image, size, repair = read_image(self.files.read(f"vcr1images.zip@/{self.inner}{image_id}"))
        except SourceError:
            raise
        except Exception as error:  # Pillow raises many kinds for bytes that are no whole image
            place = f"{self.root / split}.jsonl, line {line + 1}"
            told = f"{self.root / 'vcr1images' / file} (of {place}): {error}"
            raise SourceError(f"{told}; download vcr1images.zip again") from None
        if repair:
            notes.append(("repaired", image_id, line, repair))
        for oddity in oddities(metadata, boxes, polygons, size):
            notes.append(("kept", metadata_id, line, oddity))
        shapes = [shape_of(found, box) for found, box in zip(polygons, boxes, strict=True)]
        record = dict(
            index=index, image_id=image_id, image=image, image_size=np.array(size, np.int32), boxes=boxes,
            objects=list(objects), classes=np.array([self.class_of[name] for name in objects], np.int64),
            shapes=np.array(shapes, np.uint8).reshape(-1, GRID, GRID),
        )
        return record, notes


class VCRQuestions(OrderedBuilder, skip_registration=True):
    """The questions, after `VCRImages` of the same corpus, `data_dir` and `splits` has been built."""

    name = "vcr"
    RECORDS_PER_SHARD = 50_000

    def __init__(
        self, corpus: str, data_dir: str | pathlib.Path, source: str | pathlib.Path, splits: Sequence[str] = SPLITS
    ):
        self.root, self.splits = pathlib.Path(source), tuple(splits)
        self.images = pathlib.Path(data_dir) / VCRImages.name / corpus / str(VCRImages.VERSION)
        super().__init__(corpus, data_dir, str(source), dict(splits=list(self.splits)))

    def _info(self):
        f = tfds.features
        features = dict(
            index=f.Scalar(np.int64),
            annot_id=f.Text(),
            image_number=f.Scalar(np.int64),
            question=f.Text(),
            answers=f.Sequence(f.Text()),
            rationales=f.Sequence(f.Text()),
            answer_label=f.Scalar(np.int64),
            rationale_label=f.Scalar(np.int64),
        )
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features), disable_shuffling=True)

    def records(self) -> Iterator[tuple[str, dict]]:
        source = tfds.builder_from_directory(self.images).as_data_source("images")
        rows = tqdm(source, "sizes", mininterval=1)
        images = [(row["image_id"].decode(), *row["image_size"].tolist()) for row in rows]
        numbers: dict[tuple, int] = {}
        for split, line, item in tqdm(read_questions(self.root, self.splits), "questions", mininterval=1):
            number = numbers.setdefault(image_key(item), len(numbers))
            if number >= len(images) or images[number][0] != item["img_fn"]:
                raise SourceError(f"{self.images} was built from another download: remove it and build both again")
            _, width, height = images[number]
            record = dict(
                index=line, annot_id=item["annot_id"], image_number=number, question=json.dumps(item["question"]),
                answers=[json.dumps(text) for text in item["answer_choices"]],
                rationales=[json.dumps(text) for text in item["rationale_choices"]],
                **{name: -1 if item.get(name) is None else item[name] for name in LABELS},
            )
            yield oriented(split, width, height), record
