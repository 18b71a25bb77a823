"""The files of Hateful Memes, and of data in its form: an image with its text, hateful or not.

Source: the Hateful Memes Challenge (license of its own, for research); images of several modes are encoded as RGB JPEG.
The folder `--source`:

    {train,dev,test}.jsonl                  and dev_seen, dev_unseen, test_seen, test_unseen
    img/42953.png                           as the field img of a line says; img may be a .zip

    python -m data_prep.build hateful_memes --source=hateful_memes --regions=hateful_memes/regions --features

A line is {"id": 42953, "img": "img/42953.png", "label": 0, "text": "..."}; test files need no label. train has 8,500
lines, dev_seen 500, dev_unseen 540, test_seen 1,000 and test_unseen 2,000. The labels are "0" and "1"."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.json_lines import chosen_splits, field, read_json_lines
from data_prep.manifest import SourceError, described
from data_prep.public_texts import Corpus, PublicExample, image_prefix

SPLITS = ("train", "dev", "dev_seen", "dev_unseen", "test", "test_seen", "test_unseen")
LABELS = ("0", "1")


class HatefulMemes(Corpus):
    """The reader of Hateful Memes."""

    name, kind, labels = "hateful_memes", "classify", LABELS

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        root = pathlib.Path(source)
        super().__init__(root, chosen_splits(splits, SPLITS, lambda split: root / f"{split}.jsonl"))

    def files(self) -> list[pathlib.Path]:
        """Return the files of the splits."""
        return [self.root / f"{split}.jsonl" for split in self.splits]

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the examples of a split. Raises SourceError."""
        for place, item in read_json_lines(self.root / f"{split}.jsonl"):
            identifier = item.get("id")
            if type(identifier) not in (int, str):
                identifier = field(item, "id", int, place)
            folder, _, name = field(item, "img", str, place).rpartition("/")
            path = image_prefix(self.root, folder) + name if folder else name
            label = item.get("label")
            if label is not None and str(label) not in LABELS:
                raise SourceError(f"{place}: label is {described(label)}, not 0 or 1")
            fields = dict(
                text=field(item, "text", str, place), text2="", labels=[] if label is None else [str(label)],
                values=np.zeros(0, np.float32), known=label is not None,
            )  # fmt: skip
            yield PublicExample(str(identifier), place, (path,), fields)
