"""The files of SNLI-VE: whether an image entails a sentence.

Source: https://github.com/necla-ml/SNLI-VE (made from SNLI 1.0, CC BY-SA 4.0); images of Flickr30k by the form of its
authors, for research only. The folder `--source`:

    snli_ve_{train,dev,test}.jsonl       or data/snli_ve_...; one JSON object a line
    flickr30k_images/4639494838.jpg      or flickr30k-images; may be a .zip

    python -m data_prep.build snli_ve --source=snli_ve --regions=snli_ve/regions --features --data_dir=data

train has 529,527 examples, dev 17,858 and test 17,901. The hypothesis (`sentence2`) is the text; the premise is not
used. The number of the image is in `Flickr30K_ID` or, in older files, in `Flikr30kID`; it may end in `.jpg`. Lines
whose annotators agree on no label ("-") are left out, as the generator of the files does."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.json_lines import chosen_splits, field, read_json_lines
from data_prep.manifest import SourceError, described
from data_prep.public_texts import Corpus, PublicExample, image_prefix

SPLITS = ("train", "dev", "test")
LABELS = ("contradiction", "entailment", "neutral")
UNDECIDED = "-"
IMAGE_FIELDS = ("Flickr30K_ID", "Flikr30kID")


class SNLIVE(Corpus):
    """The reader of SNLI-VE."""

    name, kind, labels = "snli_ve", "classify", LABELS

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        self.folder = pathlib.Path(source)
        if (self.folder / "data").is_dir() and not any(self.folder.glob("snli_ve_*.jsonl")):
            self.folder = self.folder / "data"
        super().__init__(source, chosen_splits(splits, SPLITS, self._file))

    def _file(self, split: str) -> pathlib.Path:
        return self.folder / f"snli_ve_{split}.jsonl"

    def files(self) -> list[pathlib.Path]:
        """Return the files of the splits."""
        return [self._file(split) for split in self.splits]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the examples of a split. Raises SourceError."""
        prefix = image_prefix(self.root, "flickr30k_images", "flickr30k-images")
        for place, item in read_json_lines(self._file(split)):
            label = field(item, "gold_label", str, place)
            if label == UNDECIDED:
                continue
            if label not in LABELS:
                raise SourceError(f"{place}: gold_label is {described(label)}, not {', '.join(LABELS)} or '-'")
            spelling = IMAGE_FIELDS[1] if IMAGE_FIELDS[1] in item else IMAGE_FIELDS[0]
            image = str(item[spelling]) if type(item.get(spelling)) is int else field(item, spelling, str, place)
            text = field(item, "sentence2", str, place)
            fields = dict(text=text, text2="", labels=[label], values=np.zeros(0, np.float32), known=True)
            path = f"{prefix}{image.removesuffix('.jpg')}.jpg"
            yield PublicExample(field(item, "pairID", str, place), place, (path,), fields)
