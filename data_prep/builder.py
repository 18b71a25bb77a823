"""The base class of all builders: it writes records in order, in one pass and in constant memory.

`GeneratorBasedBuilder` of TFDS collects a split before it writes it; above 1 GB it spills to disk
with TensorFlow, which is not a dependency. `tfds.core.SequentialWriter` needs neither, and one pass
over a download can fill several splits. TFDS still does the remaining work: the temporary directory
that is renamed after the last record, `dataset_info.json` and `features.json`."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep.inputs import marks_of
from data_prep.manifest import Manifest, SourceError
from data_prep.sources import map_ahead

_WRITE_EVERY = 256  # records per call of the writer; each call has a fixed cost

Note = tuple[str, str, int, str]  # arguments of `Manifest.note`: action, file, line, reason


@contextlib.contextmanager
def quiet_tfds():
    """Suppress what TFDS prints about downloads, of which there are none, and its warnings."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logger.setLevel(level)


def image_features() -> dict[str, Any]:
    """Return the features of every record with an image: number, name, image, (width, height)."""
    f = tfds.features
    return dict(
        index=f.Scalar(np.int64),
        image_id=f.Text(),
        image=f.Scalar(np.object_),  # bytes; the Image feature would decode them when reading
        image_size=f.Tensor(shape=(2,), dtype=np.int32),
    )


def array_feature(*shape: int | None, dtype: type | np.dtype = np.float32) -> tfds.features.Tensor:
    """Return the feature of an array; None = any length.

    Without this encoding TFDS would store float64 as float32.
    """
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def region_feature(is_stored: bool) -> tfds.features.Tensor:
    """Return the feature of region features [n, g]; [0, 0] if they are not stored.

    TFDS cannot read an empty array back if its shape is (None, None).
    """
    return array_feature(None, None) if is_stored else array_feature(0, 0)


def oriented(split: str, width: int, height: int) -> str:
    """Return the part of a split for images of this orientation; a batch holds one orientation."""
    return f"{split}_{'landscape' if width >= height else 'portrait'}"


class OrderedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of one table; subclasses define `record_features`, `inputs` and `records`.

    The records of a split keep the order in which `records` yields them. A build that fails or is
    killed leaves a directory named `incomplete.*`, which no reader accepts."""

    VERSION = tfds.core.Version("1.0.0")
    RECORDS_PER_SHARD = 2048
    # With a path TFDS would search for checksums next to it, with a package that may be missing.
    code_path = None

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, source: str, options: dict[str, Any]):
        """Create the builder.

        Args:
          corpus: name of the corpus; the records are written to `data_dir/NAME/corpus/VERSION`.
          data_dir: folder of all corpora.
          source: the download, as the manifest names it.
          options: options that change the records; a build with other options is refused.
        """
        with quiet_tfds():
            super().__init__(
                data_dir=str(data_dir),
                config=tfds.core.BuilderConfig(name=corpus, version=self.VERSION),
                file_format="array_record",
            )
        self.manifest = Manifest(source, options)

    def record_features(self) -> dict[str, Any]:
        """Return the TFDS feature of each field of a record."""
        raise NotImplementedError

    def inputs(self) -> Iterable[pathlib.Path]:
        """Return the files and folders that decide the records, in a fixed order."""
        raise NotImplementedError

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (split, record) in the order of the source. Raises SourceError."""
        raise NotImplementedError

    def targets(self, record: dict[str, Any]) -> Iterable[bool]:
        """Return whether each target of a record can be learned from; none if the table has no targets."""
        return ()

    def in_threads(self, function: Callable, items: Iterable, num_threads: int) -> Iterator[dict[str, Any]]:
        """Yield the records of some items in order, and list the notes about them in the manifest.

        Args:
          function: item -> (record, or None if the item is skipped; list of `Note`). It runs in
            threads.
          items: the items, read as they are needed.
          num_threads: number of threads.
        """
        for record, notes in map_ahead(function, items, num_threads):
            for note in notes:
                self.manifest.note(*note)
            if record is not None:
                yield record

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.record_features())
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        raise NotImplementedError("OrderedBuilder writes the records of records(); TFDS must not generate them")

    _generate_examples = _split_generators

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        """Write all records; TFDS calls this extension point in a temporary directory."""
        self.manifest.inputs = marks_of(self.inputs())  # before they are read: a later change is noticed
        info = self._info()  # unlike self.info, this one knows the temporary directory
        # The writer would rewrite dataset_info.json with every call. TFDS writes the file after the
        # last record, so its presence shows that a build is complete.
        info.write_to_directory = lambda *_, **__: None
        writer = tfds.core.SequentialWriter(info, self.RECORDS_PER_SHARD, file_format="array_record")
        waiting: dict[str, list] = {}

        def flush():
            writer.initialize_splits(list(waiting), fail_if_exists=False)
            writer.add_examples(waiting)
            waiting.clear()

        for number, (split, record) in enumerate(self.records(), 1):
            self.manifest.records[split] = self.manifest.records.get(split, 0) + 1
            self.manifest.tally(record)
            self.manifest.count_targets(self.targets(record))
            waiting.setdefault(split, []).append(record)
            if number % _WRITE_EVERY == 0:
                flush()
        flush()
        writer.close_all()
        self.info.set_splits(info.splits)
        if not self.manifest.records:
            raise SourceError(
                f"{self.manifest.source}: no usable item was found; data_prep/README.md describes the format"
            )
        self.manifest.check_texts()
        self.manifest.write(pathlib.Path(self.data_dir) / "manifest.json")
