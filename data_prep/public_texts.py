"""TFDS builder of the texts of public tasks, and the two tables of a task.

The files of a task are read by a `Corpus`, such as `NLVR2` in nlvr2.py. `run_public` builds its
images (image_table.py) and its texts. A split is two, `dev_landscape` (width >= height of the first
image) and `dev_portrait`, because a batch holds one orientation. Records keep the order of the
files.

Record of every task:

    index          int64    number in the split
    example_id     text     identifier in the files
    image_number   int64    record of the table of images; `image_numbers` int64 m for m images
    extra          text     JSON object of what the official score reads besides, "" without it

and by kind:

    answer     question_id int64, question text, answer_type text, answers text *  as in vqa.py; an answer that all
               annotators gave is there ten times; none = not known
    classify   text, text2 text ("" = none), labels text *, values float32 *, known bool (False: not labeled)
    match      text text, text_id int64; one record for each text of an image
    region     expression text, context text ("" = none), choices int64 *, targets int64 *, gold float64 * 4; see
               vlbert_jax/tasks/region/listed.py; and where the texts have boxes: boxes float32 * 4, box_ids int64 *

The labels of `classify` are listed in `NAME/CORPUS_labels.txt`, one a line."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_prep.builder import Made, OrderedBuilder, array_feature, example_features, oriented
from data_prep.image_table import ImageTable, NoRegions, chosen_regions, placed_images
from data_prep.manifest import SourceError
from data_prep.parts import ONE, Workers
from data_prep.sources import ArchiveFolder
from data_prep.stored_boxes import StoredBoxes
from data_prep.tables import is_built, run_builders
from vlbert_jax.files import atomic_write
from vlbert_jax.storage.mirror import fetch_file, store_file


class PublicExample(NamedTuple):
    """An example of a split."""

    name: str  # identifier, unique in its split
    place: str  # file and line, for messages
    images: tuple[str, ...]  # paths as `ArchiveFolder` reads them
    fields: dict[str, Any]  # of the record; `example_id` replaces the name


class Corpus:
    """The files of a public task; subclasses read them."""

    name = ""  # of the tables
    kind = ""  # answer, classify, match or region
    has_boxes = False  # whether each text has its own boxes; then the images have no regions
    images_per_example = 1
    labels: tuple[str, ...] = ()  # of classify

    def __init__(self, source: str | pathlib.Path, splits: list[str]):
        self.root, self.splits = pathlib.Path(source), splits

    def files(self) -> list[pathlib.Path]:
        """Return the files that decide the texts."""
        raise NotImplementedError

    def examples(self, split: str) -> Iterator[PublicExample]:
        """Yield the examples of a split in the order of its file. Raises SourceError."""
        raise NotImplementedError

    def places(self, split: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield name, place and images of each example. Raises SourceError."""
        for example in self.examples(split):
            yield example.name, example.place, example.images

    def images(self) -> dict[str, str]:
        """Return the place of the first example of each image, in order.

        Raises SourceError, also where two examples of a split have one identifier.
        """
        found: dict[str, str] = {}
        files, remedy = ", ".join(map(str, self.files()[:4])), "download the files again"
        for split in self.splits:
            first: dict[str, str] = {}
            for name, place, paths in self.places(split):
                if name in first:
                    raise SourceError(f"{place}: the identifier {name} is that of {first[name]}, too; keep one of them")
                first[name] = place
                for path in paths:
                    found.setdefault(path, place)
            if not first:
                raise SourceError(f"{files}: there is no example in the split {split}; {remedy}, or omit the split")
        if not found:
            raise SourceError(f"{files}: there is no example; {remedy}")
        return found


def image_prefix(root: pathlib.Path, *folders: str) -> str:
    """Return the start of the paths of images: `folder.zip@/folder/` or `folder/`, of the first that exists.

    Args:
      root: folder of the download.
      *folders: names that the folder may have; the first one if none exists, because regions may
        replace the images.
    """
    for folder in folders:
        if (root / f"{folder}.zip").is_file():
            return f"{folder}.zip@/{folder.rpartition('/')[2]}/"
        if (root / folder).is_dir():
            return f"{folder}/"
    return f"{folders[0]}/"


class PublicTexts(OrderedBuilder, skip_registration=True):
    """The builder of the texts of a public task; `images` is the directory of its images."""

    NOT_SENT = ("source", "missing")

    def __init__(
        self,
        corpus: str,
        data_dir: str | pathlib.Path,
        source: Corpus,
        images: str | pathlib.Path,
        missing: Collection[str] = (),
    ):
        """Create the builder.

        Args:
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          source: the files of the task.
          images: directory of the table of images.
          missing: images whose texts are skipped.
        """
        self.name = source.name  # pyright: ignore[reportAttributeAccessIssue]
        self.source, self.images, self.missing = source, pathlib.Path(images), missing
        options: dict[str, Any] = dict(splits=source.splits)
        options |= dict(missing_images=len(missing)) if missing else {}
        super().__init__(corpus, data_dir, str(source.root), options)

    def inputs(self) -> list[pathlib.Path]:
        """Return the files of the task."""
        return self.source.files()

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        boxes = dict(boxes=array_feature(None, 4), box_ids=array_feature(None, dtype=np.int64))
        fields = example_features(self.source.kind, self.source.images_per_example)
        return fields | (boxes if self.source.has_boxes else {})

    def records(self) -> Iterator[Made]:
        """Yield a record per text. Raises SourceError."""
        placed = placed_images(self.images)
        stored = None if self.source.has_boxes else StoredBoxes(self.images)
        for split in self.source.splits:
            progress = tqdm(self.source.examples(split), split, unit=" texts", mininterval=1)
            for index, example in enumerate(progress):
                if gone := [path for path in example.images if path in self.missing]:
                    self.manifest.note("skipped", example.place, index, f"the image {gone[0]} is missing")
                    continue
                if lost := [path for path in example.images if path not in placed]:
                    raise SourceError(
                        f"{example.place}: the table {self.images} lacks the image {lost[0]}; remove this folder and "
                        "build again"
                    )
                found = [placed[path] for path in example.images]
                numbers = np.array([image.number for image in found], np.int64)
                several = len(found) > 1
                record = dict(index=index, example_id=example.name, extra="")
                record |= dict(image_numbers=numbers) if several else dict(image_number=numbers[0])
                usable = stored.usable(found[0].number, example.fields.get("gold", ())) if stored else []
                part = oriented(split, found[0].width, found[0].height)
                yield Made(part, record | example.fields, usable=usable)


def run_public(
    source: Corpus,
    corpus: str,
    data_dir: str | pathlib.Path,
    regions: str | pathlib.Path = "",
    detector: str = "",
    features: bool = False,
    store_images: bool = True,
    num_threads: int = 4,
    drop_missing: bool = False,
    workers: Workers = ONE,
    classes: bool = False,
) -> dict[str, pathlib.Path]:
    """Build the two tables of a public task and its list of labels.

    Args:
      source: the files of the task.
      corpus: name of the corpus.
      data_dir: folder of all corpora.
      regions: folder of regions; see `chosen_regions`.
      detector: or weights of a detector; without both, regions are a grid.
      features: store the features of the regions.
      store_images: store the images.
      num_threads: number of threads that read images.
      drop_missing: skip texts of which an image is missing, instead of raising SourceError.
      workers: the processes that make the records.
      classes: store the best class of each region and its score.

    Returns:
      The paths `images` and `texts` (directories of records).

    Raises:
      SourceError: the download cannot be built.
      ValueError: the weights of the detector cannot be used.
    """
    data_dir, paths = pathlib.Path(data_dir), source.images()
    if source.has_boxes and (regions or detector or features or classes):
        given = "--regions, --detector, --features and --classes"
        raise SourceError(f"the texts of {source.name} have their own boxes; omit {given}")
    missing: set[str] = set()
    if drop_missing:
        if not store_images:
            raise SourceError("--drop_missing looks for the images, which --no_images leaves out; omit one of them")
        files = ArchiveFolder(source.root)
        with contextlib.closing(files):
            missing = {path for path in paths if not files.has(path)}
        if len(missing) == len(paths):
            path = next(iter(paths))
            raise SourceError(f"{paths[path]}: {path} and all other images are missing in {source.root}")
        paths = {path: place for path, place in paths.items() if path not in missing}
    options = regions, detector, features, num_threads, classes
    chosen = NoRegions() if source.has_boxes else chosen_regions(source.root, paths, *options)
    where = f"{source.name}_images", corpus, data_dir, source.root, paths, chosen
    images = ImageTable(*where, store_images=store_images, num_threads=num_threads)
    texts = PublicTexts(corpus, data_dir, source, images.data_dir, missing)
    for table in (images, texts):
        is_built(table)
    built = run_builders(images, texts, workers=workers)
    if source.labels:
        content = "".join(f"{label}\n" for label in source.labels)
        write_once(data_dir / source.name / f"{corpus}_labels.txt", content)
    return dict(images=built[0], texts=built[1])


def write_once(path: pathlib.Path, content: str) -> None:
    """Write a text file atomically, unless it exists with this content. Raises SourceError if it has another one."""
    fetch_file(path)
    if path.exists():
        if path.read_text("utf-8") != content:
            raise SourceError(f"{path} has other content than this command would write: remove it, or change --corpus")
        return
    with atomic_write(path) as partial:
        partial.write_text(content, "utf-8")
    store_file(path)
