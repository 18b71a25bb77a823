"""The file of Visual7W's pointing questions: which of four boxes is meant.

Source: dataset_v7w_pointing.zip of http://ai.stanford.edu/~yukez/visual7w (toolkit MIT); images of COCO under the terms
of their owners. The folder `--source`:

    dataset_v7w_pointing.json
    images/v7w_2366274.jpg            as `filename` says; may be images.zip

    python -m data_prep.build visual7w --source=visual7w --data_dir=data

47,300 images have 188,068 questions, of which 36,990 are in val. A record is a question (`expression`). Its `boxes` are
the four to choose from (`choices`), in the order of their numbers, and then the other boxes of the image, for
comparison; `box_ids` has their numbers in the file, `targets` the place of the right one. The table of images has no
regions."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from data_prep.json_lines import field, read_json
from data_prep.manifest import SourceError
from data_prep.public_texts import Corpus, PublicExample, image_prefix

SPLITS = ("train", "val", "test")


class Visual7W(Corpus):
    """The reader of Visual7W's pointing questions."""

    name, kind, has_boxes = "visual7w", "region", True

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        """Read the file.

        Args:
          source: folder of the download.
          splits: requested splits; empty = all.

        Raises:
          SourceError: the file is missing or not of this form, or a split is unknown or empty.
        """
        self.file, given = pathlib.Path(source) / "dataset_v7w_pointing.json", list(splits)
        if unknown := [split for split in given if split not in SPLITS]:
            raise SourceError(f"--splits: there is no split {unknown[0]!r}; choose from {', '.join(SPLITS)}")
        content = read_json(self.file, dict)
        self._boxes: dict[int, dict[int, list[float]]] = {}  # image -> number of a box -> corners
        for number, box in enumerate(field(content, "boxes", list, str(self.file))):
            place = f"{self.file}, box {number} (from 0)"
            x, y, width, height = (float(field(box, name, int, place)) for name in ("x", "y", "width", "height"))
            if width <= 0 or height <= 0:
                raise SourceError(f"{place}: the box is {width:g} x {height:g} pixels, without area; correct it")
            of_image = self._boxes.setdefault(field(box, "image_id", int, place), {})
            of_image[field(box, "box_id", int, place)] = [x, y, x + width, y + height]
        self._images: dict[str, list[tuple[str, dict[str, Any]]]] = {split: [] for split in SPLITS}
        for number, image in enumerate(field(content, "images", list, str(self.file))):
            place = f"{self.file}, image {number} (from 0)"
            split = field(image, "split", str, place)
            if split not in SPLITS:
                raise SourceError(f"{place}: the split is {split!r}, not {', '.join(SPLITS)}; download it again")
            self._images[split].append((place, image))
        super().__init__(source, [split for split in SPLITS if (split in given if given else self._images[split])])

    def files(self) -> list[pathlib.Path]:
        """Return the file."""
        return [self.file]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the questions of a split. Raises SourceError."""
        prefix = image_prefix(self.root, "images")
        for place, image in self._images[split]:
            path = prefix + field(image, "filename", str, place)
            boxes = self._boxes.get(field(image, "image_id", int, place), {})
            for number, item in enumerate(field(image, "qa_pairs", list, place)):
                about = f"{place}, question {number} (from 0)"
                right, others = field(item, "answer", int, about), field(item, "multiple_choices", list, about)
                if not others or any(type(box_id) is not int for box_id in others):
                    raise SourceError(f"{about}: multiple_choices is {others}, not a list of numbers of boxes")
                choices = sorted({right, *others})
                if missing := [box_id for box_id in choices if box_id not in boxes]:
                    raise SourceError(f"{about}: box {missing[0]} is not among the image's boxes; download it again")
                box_ids = [*choices, *(box_id for box_id in boxes if box_id not in choices)]
                fields = dict(
                    expression=field(item, "question", str, about), context="",
                    boxes=np.array([boxes[box_id] for box_id in box_ids], np.float32), box_ids=np.array(box_ids),
                    choices=np.arange(len(choices)), targets=np.array([choices.index(right)]),
                    gold=np.zeros((0, 4)),
                )  # fmt: skip
                yield PublicExample(str(field(item, "qa_id", int, about)), about, (path,), fields)
