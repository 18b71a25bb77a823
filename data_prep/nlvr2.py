"""The files of NLVR2: sentences about two images, true or false.

Source: https://github.com/lil-lab/nlvr, folder nlvr2 (terms of the annotations are not stated); images by the form of
its authors, or by their addresses, for research only. The folder `--source`:

    data/{train,dev,test1,test2}.json              one JSON object a line
    data/{balanced,unbalanced}/*_{dev,test1}.json  subsets, if they exist
    util/annotated_dev_examples.txt                categories of 800 sentences of dev, if it exists
    images/train/DIRECTORY/train-1-0-img0.png      or images/train/train-1-0-img0.png
    images/{dev,test1,test2}/dev-1-0-img0.png      image 0 is the left one; each folder may be a .zip

    python -m data_prep.build nlvr2 --source=nlvr2 --regions=nlvr2/regions --features --data_dir=data

train has 86,373 examples, dev 6,982, test1 6,967 (published as test-P) and test2 6,970 (test-U). A record has the
label "True" or "False"; `extra` names the subset (balanced or unbalanced) and the categories of the sentence."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.json_lines import chosen_splits, field, read_json_lines
from data_prep.manifest import SourceError, described
from data_prep.public_texts import Corpus, PublicExample, image_prefix
from data_prep.sources import ArchiveFolder
from vlbert_jax.files import read_lines

SPLITS = ("train", "dev", "test1", "test2")
SUBSETS = ("balanced", "unbalanced")
LABELS = ("False", "True")
IDENTIFIER = re.compile(r"(.+)-\d+")  # split, set and pair; number of the sentence


class NLVR2(Corpus):
    """The reader of NLVR2."""

    name, kind, images_per_example, labels = "nlvr2", "classify", 2, LABELS

    def __init__(self, source: str | pathlib.Path, splits: Iterable[str] = ()):
        root = pathlib.Path(source)
        super().__init__(root, chosen_splits(splits, SPLITS, lambda split: root / f"data/{split}.json"))

    def files(self) -> list[pathlib.Path]:
        """Return the files of the splits, and those of subsets and categories that exist."""
        files = [self.root / f"data/{split}.json" for split in self.splits]
        more = [self._subset(name, split) for split in self.splits for name in SUBSETS] + [self._categories]
        return files + [path for path in more if path.exists()]

    @property
    def _categories(self) -> pathlib.Path:
        return self.root / "util/annotated_dev_examples.txt"

    def _subset(self, name: str, split: str) -> pathlib.Path:
        return self.root / f"data/{name}/{name}_{split}.json"

    def _more(self, split: str) -> tuple[dict[str, str], dict[str, list[str]]]:
        """Return identifier -> subset, and sentence -> categories. Raises SourceError."""
        subsets = {
            field(item, "identifier", str, place): name
            for name in SUBSETS if (path := self._subset(name, split)).exists()
            for place, item in read_json_lines(path)
        }  # fmt: skip
        if split != "dev" or not self._categories.exists():
            return subsets, {}
        blocks = "\n".join(read_lines(self._categories)).split("\n\n")
        parts = [block.strip().split("\n") for block in blocks if block.strip()]
        return subsets, {sentence: [line.removeprefix("* ") for line in lines] for sentence, *lines in parts}

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the examples of a split. Raises SourceError."""
        subsets, categories = self._more(split)
        prefix, files = image_prefix(self.root, f"images/{split}"), ArchiveFolder(self.root)
        is_flat: bool | None = None
        for place, item in read_json_lines(self.root / f"data/{split}.json"):
            identifier = field(item, "identifier", str, place)
            sentence = field(item, "sentence", str, place)
            found = IDENTIFIER.fullmatch(identifier)
            if found is None:
                raise SourceError(f"{place}: the identifier is {identifier!r}, not such as 'dev-850-0-0'")
            names = [f"{found[1]}-img{side}.png" for side in range(2)]
            if "directory" in item:
                folder = f"{field(item, 'directory', int, place)}/"
                is_flat = files.has(f"{prefix}{names[0]}") if is_flat is None else is_flat
                names = names if is_flat else [folder + name for name in names]
            label = item.get("label")
            if label is not None and label not in LABELS:
                raise SourceError(f"{place}: label is {described(label)}, not 'True' or 'False'")
            extra = dict(subset=subsets[identifier]) if identifier in subsets else {}
            extra |= dict(categories=categories[sentence]) if sentence in categories else {}
            fields = dict(
                text=sentence, text2="", labels=[label] if label else [], values=np.zeros(0, np.float32),
                known=bool(label), extra=json.dumps(extra) if extra else "",
            )  # fmt: skip
            yield PublicExample(identifier, place, tuple(prefix + name for name in names), fields)
