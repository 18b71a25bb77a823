"""The base class of all builders: items of a source, in order, become records.

data_prep/parts.py writes the records, in several processes and in constant memory.
`GeneratorBasedBuilder` of TFDS collects a split before it writes it; above 1 GB it spills to disk
with TensorFlow, which is not a dependency. The shards of `ShardBasedBuilder` are of one split each,
are written by one process without Apache Beam, and are written again after a kill. TFDS still
serializes the records, and writes `dataset_info.json` and `features.json`."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data_prep.manifest import Manifest, SourceError

Note = tuple[str, str, int, str]  # arguments of `Manifest.note`: action, file, line, reason


class Made(NamedTuple):
    """What a builder makes of an item."""

    split: str = ""
    record: dict[str, Any] | None = None  # None = the item is skipped
    notes: Sequence[Note] = ()
    usable: Sequence[bool] = ()  # for each target of the record, whether it can be learned from
    fact: Any = None  # what `absorb` must know, as JSON; None = nothing


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


def example_features(kind: str, images: int) -> dict[str, Any]:
    """Return the features of a record about `images` images: those of every kind of task, and those of `kind`.

    Builders add fields of their own, such as the boxes of a text.
    """
    f = tfds.features
    number, text, texts = f.Scalar(np.int64), f.Text(), f.Sequence(f.Text())
    numbers = array_feature(None, dtype=np.int64)
    fields = dict(index=number, example_id=text, extra=text)
    fields |= dict(image_number=number) if images == 1 else dict(image_numbers=array_feature(images, dtype=np.int64))
    return fields | dict(
        answer=dict(question_id=number, question=text, answer_type=text, answers=texts),
        choice=dict(text=text, choices=texts, label=number),
        classify=dict(text=text, text2=text, labels=texts, values=array_feature(None), known=f.Scalar(np.bool_)),
        match=dict(text=text, text_id=number),
        region=dict(
            expression=text, context=text, choices=numbers, targets=numbers,
            gold=array_feature(None, 4, dtype=np.float64),
        ),
    )[kind]  # fmt: skip


def region_feature(is_stored: bool) -> tfds.features.Tensor:
    """Return the feature of region features [n, g]; [0, 0] if they are not stored.

    TFDS cannot read an empty array back if its shape is (None, None).
    """
    return array_feature(None, None) if is_stored else array_feature(0, 0)


def class_features(are_stored: bool) -> dict[str, Any]:
    """Return the features of the best class of each region and its score; none if they are not stored."""
    return dict(best_class=array_feature(None, dtype=np.int32), best_score=array_feature(None)) if are_stored else {}


def oriented(split: str, width: int, height: int) -> str:
    """Return the part of a split for images of this orientation; a batch holds one orientation."""
    return f"{split}_{'landscape' if width >= height else 'portrait'}"


class OrderedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of one table; `data_prep.tables.run_builder` builds it.

    A table of images defines `record_features`, `inputs`, `items`, `number_of_items` and `make`.
    Any other table defines `record_features`, `inputs` and `records`. The records of a split keep
    the order of the items. A build that fails or is killed leaves a directory named `incomplete.*`,
    which no reader accepts."""

    VERSION = tfds.core.Version("1.0.0")
    RECORDS_PER_SHARD = 20_000  # of a table whose number of items is not known; some items have no record
    FEWEST, MOST = 256, 4096  # items per shard of any other table
    SHARDS = 64  # number of shards of such a table, within these bounds
    NOT_SENT: tuple[str, ...] = ()  # attributes that `make` does not need; they can be as large as the corpus
    num_threads = 0  # threads of a process that call `make`; 0 = none
    # With a path TFDS would search for checksums next to it, with a package that may be missing.
    code_path = None

    def __init__(self, corpus: str, data_dir: str | pathlib.Path, source: str, options: dict[str, Any]):
        """Create the builder.

        Args:
          corpus: name of the corpus; the records are written to `data_dir/NAME/corpus/VERSION`.
          data_dir: folder of all corpora.
          source: the download, as the manifest names it.
          options: options that change the records; a build with other options is refused.

        Raises SourceError where the name of the corpus is not the plain name of a folder.
        """
        if corpus.strip() != corpus or corpus in ("", ".", "..") or "/" in corpus or not corpus.isprintable():
            raise SourceError(
                f"the name of the corpus is {corpus!r}, which would be outside of {data_dir} or hard to give; choose "
                "--corpus=NAME without slashes, line breaks, and spaces at its ends"
            )
        before = set(vars(self))
        with quiet_tfds():
            super().__init__(
                data_dir=str(data_dir),
                config=tfds.core.BuilderConfig(name=corpus, version=self.VERSION),
                file_format="array_record",
            )
        self._of_tfds = {"_of_tfds", *vars(self)} - before
        self.manifest = Manifest(source, options)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to call `make`."""
        left_out = self._of_tfds.union(self.NOT_SENT)
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the attributes; the builder can then call `make`, and nothing of TFDS."""
        vars(self).update(state)

    def record_features(self) -> dict[str, Any]:
        """Return the TFDS feature of each field of a record."""
        raise NotImplementedError

    def inputs(self) -> Iterable[pathlib.Path]:
        """Return the files and folders that decide the records, in a fixed order."""
        raise NotImplementedError

    def records(self) -> Iterator[tuple]:
        """Yield (split, record), or more fields of `Made`, in the order of the source. Raises SourceError."""
        raise NotImplementedError

    def number_of_items(self) -> int:
        """Return the number of items; 0 if `records` generates them and shows its own progress."""
        return 0

    def items(self) -> Iterable[Any]:
        """Return the items in the order of the source; they can be pickled. Raises SourceError.

        The main process calls this method, once, before any process calls `make`.
        """
        return self.records()

    def make(self, item: Any) -> Made:
        """Return the record of an item. Raises SourceError.

        Threads of other processes call this method, on copies of the builder.
        """
        return Made(*item)

    def absorb(self, facts: list[Any]) -> None:
        """Check or keep the facts of the next shard; the main process calls it. Raises SourceError."""

    def conclude(self, folder: pathlib.Path) -> None:
        """Write other files of the table to `folder`, after the last shard. Raises SourceError."""

    def items_per_shard(self) -> int:
        """Return the number of items of a shard, which does not depend on the number of processes."""
        number = self.number_of_items()
        return min(self.MOST, max(self.FEWEST, -(-number // self.SHARDS))) if number else self.RECORDS_PER_SHARD

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(self.record_features())
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        raise NotImplementedError("use data_prep.tables.run_builder; TFDS must not generate the records")

    _generate_examples = _split_generators
