"""A TFDS builder that writes its records as they come: in order, in one pass, in constant memory.

`GeneratorBasedBuilder` gathers a split before it writes it; above 1 GB it spills to disk by means of
TensorFlow, which is not installed here. `tfds.core.SequentialWriter` needs neither. Several splits can grow
from one pass over the download, and TFDS still does the rest: a temporary directory that is renamed when all
is written, `dataset_info.json`, `features.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_WRITE_EVERY = 256  # records; each call of the writer has its price


class SourceError(Exception):
    """The download is not as it must be: what, where, and what to do about it."""


def mixed(first: str, extractor: str, second: str, other: str) -> str:
    """What to say where regions of two extractors meet; "" is one that left no name."""

    def told(name):
        return f"by extractor {name}" if name else "by an extractor that left no name"

    return (
        f"{first} was made {told(extractor)}, {second} {told(other)}: features of different detectors, weights or "
        "settings do not go together; extract both with the same"
    )


class Manifest:
    """What became of each item of the download; `manifest.json` beside the records."""

    def __init__(self, source: str, options: dict[str, Any]):
        self.source = source
        self.options = options  # of the builder, as far as they shape the records
        self.records: dict[str, int] = {}  # by split
        self.problems: list[dict[str, Any]] = []
        self.extractor: str | None = None  # of the regions, as `extractor.extractor_id` calls it; "" = unknown
        self._extracted = ""  # the first file of it

    def extracted(self, extractor: str, file: str) -> None:
        """Notes what made the regions in a file. Raises SourceError if it is another than before."""
        if self.extractor is None:
            self.extractor, self._extracted = extractor, file
        if extractor != self.extractor:
            raise SourceError(mixed(self._extracted, self.extractor, file, extractor))

    def note(self, action: str, file: str, line: int, reason: str) -> None:
        """Lists an item: `action` is skipped (no record), repaired (changed) or kept (as it is)."""
        self.problems.append(dict(action=action, file=file, line=line, reason=reason))

    def count(self, action: str) -> int:
        return sum(problem["action"] == action for problem in self.problems)

    def write(self, path: pathlib.Path) -> None:
        counts = {action: self.count(action) for action in ("skipped", "repaired", "kept")}
        content = dict(source=self.source, options=self.options, records=self.records, **counts)
        content |= dict(extractor=self.extractor) if self.extractor is not None else {}
        content |= dict(problems=self.problems)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet_tfds():
    """TFDS announces downloads that there are not, on stdout, and warns that the corpus is none of its own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logger.setLevel(level)


def image_features() -> dict[str, Any]:
    """What every record with an image has: its number, its name, the encoded image, (width, height)."""
    f = tfds.features
    return dict(
        index=f.Scalar(np.int64),
        image_id=f.Text(),
        image=f.Scalar(np.object_),  # bytes, so that nothing decodes them on the way
        image_size=f.Tensor(shape=(2,), dtype=np.int32),
    )


def oriented(split: str, width: int, height: int) -> str:
    """The part of a split that an image belongs to: a batch holds one orientation."""
    return f"{split}_{'landscape' if width >= height else 'portrait'}"


class OrderedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Subclasses give `_info` and `records`; records of a split keep the order in which they are given.

    A build that fails or is killed leaves a directory named `incomplete.*`, never one that can be read.
    """

    VERSION = tfds.core.Version("1.0.0")
    RECORDS_PER_SHARD = 2048
    code_path = None  # TFDS would look for checksums beside it, by a package that may be missing

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, source: str, options: dict[str, Any]):
        with quiet_tfds():
            super().__init__(
                data_dir=str(data_dir),
                config=tfds.core.BuilderConfig(name=corpus, version=self.VERSION),
                file_format="array_record",
            )
        self.manifest = Manifest(source, options)

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (split, record) in the order of the source. Raises SourceError."""
        raise NotImplementedError

    def _split_generators(self, dl_manager):
        raise NotImplementedError("records come from records()")

    _generate_examples = _split_generators

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        info = self._info()  # another than self.info: it knows the temporary directory
        # The writer would renew dataset_info.json all the time; TFDS writes it when all is there, so that its
        # presence means just that.
        info.write_to_directory = lambda *_, **__: None
        writer = tfds.core.SequentialWriter(info, self.RECORDS_PER_SHARD, file_format="array_record")
        waiting: dict[str, list] = {}

        def flush():
            writer.initialize_splits(list(waiting), fail_if_exists=False)
            writer.add_examples(waiting)
            waiting.clear()

        for number, (split, record) in enumerate(self.records(), 1):
            self.manifest.records[split] = self.manifest.records.get(split, 0) + 1
            waiting.setdefault(split, []).append(record)
            if number % _WRITE_EVERY == 0:
                flush()
        flush()
        writer.close_all()
        self.info.set_splits(info.splits)
        if not self.manifest.records:
            raise SourceError(f"{self.manifest.source}: nothing usable; data_prep/README.md has the format")
        self.manifest.write(pathlib.Path(self.data_dir) / "manifest.json")
