"""TFDS builders `vcr_images` and `vcr`: images and questions of Visual Commonsense Reasoning.

Source: VCR 1.0 from visualcommonsense.com (account and agreement required; for research only, the
images belong to the makers of the films). The folder `--source`:

    train.jsonl  val.jsonl  test.jsonl  per line a question: annot_id, objects, img_fn, metadata_fn,
                                        question, answer_choices [4], rationale_choices [4] and,
                                        except in test, answer_label, rationale_label. A text is a
                                        list of words and of lists of object numbers
    vcr1images.zip  or  vcr1images/     img_fn: a JPEG; metadata_fn: {"boxes": [[x1, y1, x2, y2,
                                        score], ...], "segms": [polygons [[[x, y], ...], ...] of
                                        each object, ...]}

    python -m data_prep.build vcr --source=vcr --data_dir=data

There are 110,000 images and 290,000 questions. Two CPU cores build about 150 images of 1280x720
pixels with 12 objects per second, then 5,000 questions per second. The records take as much space
as the images, and 0.4 KB per question.

Record of `vcr_images/CORPUS`, split `images`, one per image and list of objects, in order of first
mention:

    index         int64         number of the record, from 0: `image_number` of the questions
    image_id      bytes         img_fn
    image         bytes         the downloaded JPEG, RGB
    image_size    int32 2       width, height
    boxes         float64 n 4   x1 y1 x2 y2 in pixels of the image, not clipped
    objects       bytes * n     names of their categories
    classes       int64 n       line in `--categories`, from 1; the default is COCO's 80
    shapes        uint8 n 14 14    1 inside the object, on a grid over its box

Record of `vcr/CORPUS`, splits `{train,val,test}_{landscape,portrait}` (landscape: width >= height),
in file order:

    index         int64     line of the jsonl file, from 0
    annot_id      bytes
    image_number  int64     record of `vcr_images/CORPUS`
    question      bytes     the text as a JSON list, as in the file
    answers, rationales     bytes * 4, texts likewise
    answer_label, rationale_label   int64, 0 to 3; -1 in test

`vcr_files.py` lists the defects that end a build. `manifest.json` lists unusual data that is used
as in the official code: polygons of fewer than three points (they cover nothing) or beyond their
box (moved onto its border), a box outside its image, metadata with another image size."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import Made, Note, OrderedBuilder, array_feature, image_features, oriented
from data_prep.manifest import SourceError
from data_prep.sources import ArchiveFolder
from data_prep.vcr_files import (
    COCO_CATEGORIES,
    GRID,
    LABELS,
    SPLITS,
    Invalid,
    image_key,
    read_metadata,
    read_questions,
    shape_of,
    unusual,
)
from vlbert_jax.data.region_files import Unusable, fractions_of


class VCRImages(OrderedBuilder, skip_registration=True):
    """The builder of the images that the questions are about."""

    name = "vcr_images"
    NOT_SENT = ("_found",)

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        source: str | pathlib.Path,
        categories: Sequence[str] = COCO_CATEGORIES,
        splits: Sequence[str] = SPLITS,
        num_threads: int = 4,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          source: folder of the download.
          categories: names of the classes 1, 2, ...
          splits: the splits whose questions decide the images.
          num_threads: number of threads that read images.
        """
        self.root, self.splits, self.num_threads = pathlib.Path(source), tuple(splits), num_threads
        self.class_of = {name: number for number, name in enumerate(categories, 1)}
        self.files = ArchiveFolder(self.root)
        # In an archive the files are in a folder of its name.
        self.inner = "vcr1images/" if (self.root / "vcr1images.zip").is_file() else ""
        options = dict(splits=list(self.splits), categories=" ".join(categories))
        super().__init__(corpus, data_dir, str(source), options)

    def inputs(self) -> list[pathlib.Path]:
        """Return the questions and the images."""
        questions = [self.root / f"{split}.jsonl" for split in self.splits]
        return [*questions, self.files.place("vcr1images.zip@/")]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        return image_features() | dict(
            boxes=array_feature(None, 4, dtype=np.float64),
            objects=tfds.features.Sequence(tfds.features.Text()),
            classes=array_feature(None, dtype=np.int64),
            shapes=array_feature(None, GRID, GRID, dtype=np.uint8),
        )

    @functools.cached_property
    def _found(self) -> dict[tuple, tuple[int, str, int]]:
        """Map the images with their lists of objects to (number of the record, split, line of the first mention)."""
        found: dict[tuple, tuple[int, str, int]] = {}
        for split, line, item in read_questions(self.root, self.splits):
            unknown = [name for name in item["objects"] if name not in self.class_of]
            if unknown:
                raise SourceError(
                    f"{self.root / split}.jsonl, line {line + 1} ({item['annot_id']}): objects has {unknown[0]!r}, "
                    f"which is not one of the {len(self.class_of)} categories; list yours in --categories=FILE"
                )
            found.setdefault(image_key(item), (len(found), split, line))
        return found

    def number_of_items(self) -> int:
        """Return the number of images, each of which counts once for each list of objects. Raises SourceError."""
        return len(self._found)

    def items(self) -> Iterable[tuple[tuple, tuple]]:
        """Return each image and list of objects, and where it is mentioned first. Raises SourceError."""
        self.files.check("vcr1images.zip@/")
        self.files.close()  # the processes that read images open their own archives
        return self._found.items()

    def make(self, item: tuple[tuple, tuple]) -> Made:
        """Return the record of an image. Raises SourceError."""
        (image_id, metadata_id, objects), (index, split, line) = item
        file = metadata_id
        try:
            content = self.files.read(f"vcr1images.zip@/{self.inner}{metadata_id}")
            metadata, boxes, polygons = read_metadata(content, len(objects))
            file = image_id
            image, size, conversion = self.files.read_jpeg(f"vcr1images.zip@/{self.inner}{image_id}")
            if reason := fractions_of(boxes, size):
                file = metadata_id
                raise Invalid(reason)
        except (OSError, ValueError, Invalid, Unusable) as error:
            place = f"{self.root / split}.jsonl, line {line + 1}"
            raise SourceError(
                f"{self.root / 'vcr1images' / file} (of {place}): {error}; correct it, or download vcr1images.zip again"
            ) from None
        notes: list[Note] = [("converted", image_id, line, conversion)] if conversion else []
        notes += [("kept", metadata_id, line, reason) for reason in unusual(metadata, boxes, polygons, size)]
        shapes = [shape_of(found, box) for found, box in zip(polygons, boxes, strict=True)]
        record = dict(
            index=index, image_id=image_id, image=image, image_size=np.array(size, np.int32), boxes=boxes,
            objects=list(objects), classes=np.array([self.class_of[name] for name in objects], np.int64),
            shapes=np.array(shapes, np.uint8).reshape(-1, GRID, GRID),
        )  # fmt: skip
        return Made("images", record, notes)


class VCRQuestions(OrderedBuilder, skip_registration=True):
    """The builder of the questions; `VCRImages` of the same corpus must have been built."""

    name = "vcr"

    def __init__(
        self, corpus: str, data_dir: str | pathlib.Path, source: str | pathlib.Path, splits: Sequence[str] = SPLITS
    ):
        """Create the builder; the arguments are those of `VCRImages`."""
        self.root, self.splits = pathlib.Path(source), tuple(splits)
        self.images = pathlib.Path(data_dir) / VCRImages.name / corpus / str(VCRImages.VERSION)
        super().__init__(corpus, data_dir, str(source), dict(splits=list(self.splits)))

    def inputs(self) -> list[pathlib.Path]:
        """Return the questions."""
        return [self.root / f"{split}.jsonl" for split in self.splits]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        f = tfds.features
        return dict(
            index=f.Scalar(np.int64),
            annot_id=f.Text(),
            image_number=f.Scalar(np.int64),
            question=f.Text(),
            answers=f.Sequence(f.Text()),
            rationales=f.Sequence(f.Text()),
            answer_label=f.Scalar(np.int64),
            rationale_label=f.Scalar(np.int64),
        )

    def make(self, item: tuple[str, dict[str, Any]]) -> Made:
        """Return a record; the labeled answer and rationale are targets if another choice differs from them."""
        split, record = item
        labeled = [(record[f"{name}s"], record[f"{name}_label"]) for name in ("answer", "rationale")]
        return Made(split, record, usable=[len(set(choices)) > 1 for choices, label in labeled if label >= 0])

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield a record per question. Raises SourceError if the images are of another download."""
        source = tfds.builder_from_directory(self.images).as_data_source("images")  # pyright: ignore[reportCallIssue]
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
            )  # fmt: skip
            yield oriented(split, width, height), record
