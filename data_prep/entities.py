"""The files of Flickr30k Entities: phrases of captions and the boxes that they mean.

Source: annotations.zip of https://github.com/BryanPlummer/flickr30k_entities (terms not stated); images of Flickr30k by
the form of its authors, for research only. The folder `--source`:

    Sentences/36979.txt, Annotations/36979.xml        unpacked
    train.txt, val.txt, test.txt                      numbers of images, one a line
    UNRELATED_CAPTIONS                                sentences that do not describe their image
    flickr30k-images/36979.jpg                        or flickr30k_images; may be a .zip

    python -m data_prep.build entities --source=flickr30k --regions=flickr30k/regions --data_dir=data

There are 29,783 images in train and 1,000 each in val and test, with five sentences each; 14,481 phrases of val and
17,519 of test have boxes. A record is such a phrase (`expression`) of its sentence (`context`), with the boxes of its
chain (`gold`, in pixels from 0, as the official reader returns them). Phrases without a box, of the scene or of nothing
visible, are left out, as in all published evaluations. `extra` has the image, the numbers of sentence and phrase, the
types, and whether the sentence is unrelated to the image."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.entities_files import read_boxes, read_sentences, read_unrelated
from data_prep.json_lines import chosen_splits
from data_prep.manifest import SourceError
from data_prep.public_texts import Corpus, PublicExample, image_prefix
from vlbert_jax.files import read_lines

SPLITS = ("train", "val", "test")
NONE = np.zeros(0, np.int64)


class Entities(Corpus):
    """The reader of Flickr30k Entities."""

    name, kind = "entities", "region"

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.folder = pathlib.Path(source)
        super().__init__(source, chosen_splits(splits, SPLITS, self._file))

    def _file(self, split: str) -> pathlib.Path:
        return self.folder / f"{split}.txt"

    def files(self) -> list[pathlib.Path]:
        """Return the lists of the splits and the folders of annotations."""
        lists = [self._file(split) for split in self.splits]
        return [*lists, *(self.folder / name for name in ("Sentences", "Annotations", "UNRELATED_CAPTIONS"))]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the phrases that have boxes. Raises SourceError."""
        prefix = image_prefix(self.root, "flickr30k-images", "flickr30k_images")
        unrelated = read_unrelated(self.folder / "UNRELATED_CAPTIONS")
        for number, image in enumerate(map(str.strip, read_lines(self._file(split))), 1):
            if not image:
                continue
            if not image.isdigit():
                raise SourceError(
                    f"{self._file(split)}, line {number}: {image!r} is not the number of an image; download it again"
                )
            boxes = read_boxes(self.folder / f"Annotations/{image}.xml").boxes
            path = self.folder / f"Sentences/{image}.txt"
            for i, sentence in enumerate(read_sentences(path)):
                for k, phrase in enumerate(phrase for phrase in sentence.phrases if phrase.chain in boxes):
                    extra = dict(image_id=image, sentence_id=i, phrase=k, types=phrase.types)
                    extra |= dict(unrelated=True) if (image, i) in unrelated else {}
                    fields = dict(expression=phrase.text, context=sentence.text, choices=NONE, targets=NONE)
                    fields |= dict(gold=np.array(boxes[phrase.chain], np.float64), extra=json.dumps(extra))
                    place = f"{path}, line {i + 1}"
                    yield PublicExample(f"{image}#{i}#{k}", place, (f"{prefix}{image}.jpg",), fields)
