"""TFDS builder `text_corpus`: lines of text files, one record per line, in their order.

Source: BooksCorpus and English Wikipedia as `bc1g.doc` and `wiki.doc` (links in the official
VL-BERT repository), or any UTF-8 text files; gzip, bzip2 and xz are decompressed. Lines are stripped
and blank lines are dropped. License: Wikipedia is CC BY-SA; BooksCorpus must not be redistributed.

    python -m data_prep.build text --source=bc1g.doc,wiki.doc --corpus=books_wikipedia
    --data_dir=data

The input pipeline joins short lines with the lines that follow, so records keep the order of the
file. Record:

    text    bytes   the line
    index   int64   number among the lines of its split that are not blank
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.builder import OrderedBuilder
from data_prep.manifest import Manifest, SourceError

# Pattern of the first bytes of a compressed file -> the module that opens it.
OPENERS = {rb"\x1f\x8b": gzip, rb"BZh[1-9]1A": bz2, rb"\xfd7zXZ\x00": lzma}
ZIP = b"PK\x03\x04"
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError)  # bz2 raises an OSError
LONGEST = 2**26  # bytes of a line; a small compressed file may have a line of any length
SAMPLE = 1000  # lines after which a file that is mostly not UTF-8 is refused


def open_text(path: pathlib.Path) -> BinaryIO:
    """Open a text file, which gzip, bzip2 or xz may have compressed; the first bytes decide.

    Raises:
      SourceError: the file is a zip archive.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(ZIP):
        raise SourceError(f"{path} is a zip archive; unpack it and give the text files")
    module = next((module for magic, module in OPENERS.items() if re.match(magic, start)), None)
    return cast(BinaryIO, open(path, "rb") if module is None else module.open(path, "rb"))


def read_lines(path: pathlib.Path, manifest: Manifest | None = None) -> Iterator[str]:
    """Yield the stripped lines of a text file, compressed or not, that are not blank.

    Bytes that are not UTF-8 become U+FFFD; the manifest, if there is one, lists the line.

    Raises:
      SourceError: the compressed data are damaged, most lines are not UTF-8, or a line has more than `LONGEST` bytes.
    """
    number, wrong = -1, 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST), b"")):
                if len(line) == LONGEST:
                    raise SourceError(
                        f"{path}: line {number + 1:,} has more than {LONGEST:,} bytes, so this is no text; give a text "
                        "file with a sentence or paragraph on each line"
                    )
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    text, wrong = line.decode("utf-8", errors="replace"), wrong + 1
                    if manifest:
                        manifest.note("repaired", str(path), number, f"the line is not UTF-8: {error.reason}")
                wrong += "\0" in text  # UTF-16 of ASCII is valid UTF-8
                if number + 1 == SAMPLE:
                    _check_encoding(path, SAMPLE, wrong)
                if text := text.strip():
                    yield text
    except DAMAGED as error:
        line = f"{path}: the file cannot be read after {number + 1:,} lines ({error}); download it again"
        raise SourceError(line) from None
    _check_encoding(path, number + 1, wrong)


def _check_encoding(path: pathlib.Path, lines: int, wrong: int):
    if 2 * wrong > lines:
        raise SourceError(
            f"{path}: {wrong:,} of {lines:,} lines are not UTF-8 text: it has another encoding, or is no text; "
            "convert it with `iconv -t UTF-8`"
        )


class TextCorpus(OrderedBuilder, skip_registration=True):
    """The builder of the splits `train` and, if it has a source or a fraction, `val`."""

    name = "text_corpus"
    RECORDS_PER_SHARD = 50_000

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        sources: Sequence[str | os.PathLike],
        val_sources: Sequence[str | os.PathLike] = (),
        val_fraction: float = 0.0,
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          sources: text files, which are concatenated in this order.
          val_sources: text files of `val`.
          val_fraction: fraction of the lines of `sources`, from the end, that becomes `val`; at
            least 0, below 1.

        Raises:
          ValueError: `val_fraction` is out of range, or there are `val_sources` as well.
        """
        if val_sources and val_fraction:
            raise ValueError(
                f"val_sources and val_fraction={val_fraction} exclude each other; give --val_source or --val_fraction"
            )
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction is {val_fraction}; it must be at least 0 and below 1")
        self.sources = [pathlib.Path(path) for path in sources]
        self.val_sources = [pathlib.Path(path) for path in val_sources]
        self.val_fraction = val_fraction
        source = ", ".join(map(str, self.sources + self.val_sources))
        options = dict(sources=[path.name for path in self.sources], val_fraction=val_fraction)
        options |= dict(val_sources=[path.name for path in self.val_sources])
        super().__init__(corpus, data_dir, source, options)

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        return dict(index=tfds.features.Scalar(np.int64), text=tfds.features.Text())

    def inputs(self) -> list[pathlib.Path]:
        """Return the text files."""
        return self.sources + self.val_sources

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the lines of train, then those of val. Raises SourceError if a file is missing."""
        for path in self.sources + self.val_sources:
            if not path.is_file():
                raise SourceError(f"{path}: there is no such text file; give its path in --source or --val_source")
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

    def _lines(self, paths: Sequence[pathlib.Path], split: str) -> Iterator[str]:
        for path in paths:
            lines = read_lines(path, self.manifest if split in ("train", "val") else None)
            yield from tqdm(lines, f"{split}: {path.name}", unit=" lines", mininterval=1)
