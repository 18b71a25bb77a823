"""TFDS builder `text_corpus`: documents as lines of text files, one record per line, in their order.

Source: BooksCorpus and English Wikipedia as `bc1g.doc` and `wiki.doc` (links in the official VL-BERT
repository), or any UTF-8 text files; `.gz` is read as it is. Lines are stripped, blank ones dropped. Licence:
Wikipedia CC BY-SA, BooksCorpus is not to be passed on.

    python -m data_prep.build text --source=bc1g.doc,wiki.doc --corpus=books_wikipedia --data_dir=data

Short lines are joined with the ones that follow when they are read, so a record's neighbour is its
neighbour in the file. Record: `text`, `index` (among the lines of its split that are not blank).
"""

from __future__ import annotations

import gzip
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import Manifest, OrderedBuilder, SourceError


def read_lines(path: pathlib.Path, manifest: Manifest | None = None) -> Iterator[str]:
    """Yields the lines of a text file, `.gz` or not, stripped, without blank ones.

    Bytes that are not UTF-8 become U+FFFD, and the manifest lists the line.
    """
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        for number, line in enumerate(file):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                text = line.decode("utf-8", errors="replace")
                if manifest:
                    manifest.note("repaired", str(path), number, f"not UTF-8: {error.reason}")
            if text := text.strip():
                yield text


class TextCorpus(OrderedBuilder, skip_registration=True):
    """Splits `train` and, if there is a source or a fraction for it, `val`.

    `val_fraction` holds out that share of the lines, from the end. Files are concatenated in the order given.
    """

    name = "text_corpus"
    RECORDS_PER_SHARD = 500_000

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        sources: Sequence[str | os.PathLike],
        val_sources: Sequence[str | os.PathLike] = (),
        val_fraction: float = 0.0,
    ):
        if val_sources and val_fraction:
            raise ValueError("give val_sources or val_fraction, not both")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and below 1, not {val_fraction}")
        self.sources = [pathlib.Path(path) for path in sources]
        self.val_sources = [pathlib.Path(path) for path in val_sources]
        self.val_fraction = val_fraction
        source = ", ".join(map(str, self.sources + self.val_sources))
        options = dict(sources=[path.name for path in self.sources], val_fraction=val_fraction)
        options |= dict(val_sources=[path.name for path in self.val_sources])
        super().__init__(corpus, data_dir, source, options)

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"index": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _lines(self, paths: Sequence[pathlib.Path], split: str) -> Iterator[str]:
        for path in paths:
            lines = read_lines(path, self.manifest if split in ("train", "val") else None)
            yield from tqdm(lines, f"{split}: {path.name}", unit=" lines", mininterval=1)

    def records(self) -> Iterator[tuple[str, dict]]:
        for path in self.sources + self.val_sources:
            if not path.is_file():
                raise SourceError(f"{path}: no such text file; give its path in --source or --val_source")
        num_train = float("inf")
        if self.val_fraction:
            total = sum(1 for _ in self._lines(self.sources, "counting"))
            num_train = total - round(total * self.val_fraction)
        for index, text in enumerate(self._lines(self.sources, "train")):
            if index < num_train:
                yield "train", dict(index=index, text=text)
            else:
                yield "val", dict(index=int(index - num_train), text=text)
        for index, text in enumerate(self._lines(self.val_sources, "val")):
            yield "val", dict(index=index, text=text)
