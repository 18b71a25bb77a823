"""TFDS builder of the images of a corpus with their regions, which all tasks but VQA, VCR and RefCOCO share.

The table has one split, `images`. Record k is image number k; an image has one record however many
texts there are about it. Images are files, in folders or zip archives (`images.zip@/a.jpg`). Their
regions are one of:

    GridRegions     the cells of a 3 x 3 grid; no detector is needed
    FolderRegions   a folder that `data_prep.extract_regions` wrote, with features and classes if requested
    NoRegions       none, because the texts have their own boxes

The whole image is not among the regions: models that see it add it to them.

Record (n regions):

    index, image_id  int64, text    image number; path of the image
    image            bytes          upright RGB JPEG; empty without images
    image_size       int32 2        width, height
    boxes            float32 n 4    x1 y1 x2 y2 in pixels of the image
    features         float32 n g    (0, 0) without features
    image_feature    float32 g      feature of the whole image; empty in most files
    best_class       int32 n        with classes: the best one of the detector, from 1; its line in objects_vocab.txt
    best_score       float32 n      with classes: its score

Next to the records, `sizes.json` lists the path, width, height and number of regions of each image,
for the builders of texts (`placed_images`).

An image that is missing or cannot be read ends the build with one line, which names the file and
the line that asked for it. `manifest.json` lists images that were encoded again as JPEG, and boxes
that were dropped because they have no area inside their image."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_prep.builder import Made, Note, OrderedBuilder, array_feature, class_features, image_features, region_feature
from data_prep.manifest import SourceError
from data_prep.region_store import open_records, read_extraction
from data_prep.sources import ArchiveFolder, bad_boxes, name_of
from vlbert_jax.data.region_files import GRID, ImageRegions, Unusable, decode_regions, grid_boxes, parse_record
from vlbert_jax.files import parse_json

Size = tuple[int, int]  # width, height in pixels
NOTHING = np.zeros(0, np.float32)


# --- Regions ----------------------------------------------------------------------------------


class RegionSource(Protocol):
    """The regions of the images of a table."""

    options: dict[str, Any]  # for the manifest: what decides the regions besides files
    features: bool  # whether the regions have features
    classes: bool  # whether they have best classes

    def inputs(self) -> list[pathlib.Path]:
        """Return the files and folders that decide the regions."""
        ...

    def check(self, images: Mapping[str, str]) -> None:
        """Check that all images have regions; path -> where it is asked for. Raises SourceError."""
        ...

    def of_image(self, path: str, size: Size | None) -> tuple[str, ImageRegions]:
        """Return the id of the extractor, "" = none, and the regions of an image of this size, None = unknown.

        Raises Unusable.
        """
        ...


class _BoxesAlone:
    """Regions without features and files."""

    features = classes = False
    options: dict[str, Any] = {}

    def inputs(self) -> list[pathlib.Path]:
        return []

    def check(self, images: Mapping[str, str]) -> None:
        pass

    def boxes(self, size: Size) -> np.ndarray:
        raise NotImplementedError

    def of_image(self, path: str, size: Size | None) -> tuple[str, ImageRegions]:
        if size is None:
            raise Unusable("without the images there are no regions; store the images")
        return "", ImageRegions(size, self.boxes(size), NOTHING.reshape(0, 0), NOTHING)


class GridRegions(_BoxesAlone):
    """The cells of a grid, as predictions use them without a detector."""

    options = dict(regions=f"grid of {GRID} x {GRID}")

    def boxes(self, size: Size) -> np.ndarray:
        """Return the cells, row by row, float32 [9, 4]. Raises Unusable if the image is a line."""
        if min(size) < 2:
            raise Unusable(f"it has {size[0]} x {size[1]} pixels, too few for the cells of a grid; remove it")
        return grid_boxes(size)


class NoRegions(_BoxesAlone):
    """No regions, because the texts have their own boxes."""

    options = dict(regions="of the texts")

    def boxes(self, size: Size) -> np.ndarray:
        """Return float32 [0, 4]."""
        return np.zeros((0, 4), np.float32)


class FolderRegions:
    """Regions in a folder of `extract_regions`, or of JSON files in its format.

    The regions of `img/a.jpg` are named `img/a`, or `a` if the regions of the folder img were
    extracted."""

    def __init__(self, folder: str | pathlib.Path, features: bool = False, classes: bool = False):
        """Open the folder.

        Args:
          folder: the folder.
          features: read the features, too.
          classes: read the best class of each region and its score, too.

        Raises:
          SourceError: there is no such folder, or it has tables, which have no names of images.
        """
        self.folder, self.features, self.classes = pathlib.Path(folder), features, classes
        self.options = dict(regions="of files") | (dict(classes=True) if classes else {})
        if not self.folder.is_dir():
            raise SourceError(f"{self.folder}: there is no such folder; python -m data_prep.extract_regions writes it")
        is_store = (self.folder / "extraction.json").is_file()
        if is_store and read_extraction(self.folder)["format"] == "tsv":
            raise SourceError(
                f"{self.folder}: the regions are tables, which number images instead of naming them; extract them with "
                "--format=array_record"
            )
        self._records = open_records(self.folder)
        self._names: dict[str, str] = {}  # path of an image -> name of its regions

    def inputs(self) -> list[pathlib.Path]:
        """Return the folder."""
        return [self.folder]

    def _has(self, name: str) -> bool:
        return name in self._records if self._records else (self.folder / f"{name}.json").is_file()

    def check(self, images: Mapping[str, str]) -> None:
        """Find the regions of each image. Raises SourceError if some are missing or shared by two images."""
        first: dict[str, str] = {}
        for path, place in images.items():
            parts = name_of(path).split("/")
            candidates = ("/".join(parts[start:]) for start in range(len(parts)))
            name = next(filter(self._has, candidates), None)
            if name is None:
                raise SourceError(
                    f"{place}: {self.folder} has no regions of {path} (no {'/'.join(parts)}, no {parts[-1]}); extract "
                    "the regions of all images, or remove this line"
                )
            if name in first:
                raise SourceError(
                    f"{place}: {path} and {first[name]} would both have the regions {name} of {self.folder}; extract "
                    "the regions of the folder that holds both"
                )
            first[name] = path
            self._names[path] = name

    def of_image(self, path: str, size: Size | None) -> tuple[str, ImageRegions]:
        """Return the id of the extractor, "" = unknown, and the regions. Raises Unusable."""
        name = self._names[path]
        try:
            content = self._records.read(name) if self._records else (self.folder / f"{name}.json").read_bytes()
        except OSError as error:
            raise Unusable(f"the regions {name} cannot be read ({error})") from None
        record = parse_record(content)
        found = decode_regions(record, self.features, self.classes)
        if size and found.size != size:
            raise Unusable(f"its size is {size}, but the regions {name} were found in an image of {found.size}")
        return str(record.get("extractor", "")), found


def chosen_regions(
    root: pathlib.Path,
    images: Mapping[str, str],
    folder: str | pathlib.Path = "",
    detector: str = "",
    features: bool = False,
    num_threads: int = 4,
    classes: bool = False,
) -> RegionSource:
    """Return the regions that the options of a command choose; a grid without options.

    A detector is run now, and writes the folder `root/regions`; the same command continues.

    Args:
      root: folder to which the paths are relative.
      images: the images, as in `ImageTable`.
      folder: a folder that `extract_regions` wrote.
      detector: or weights of a detector.
      features: read the features of the regions, too.
      num_threads: number of threads that read images.
      classes: read the best class of each region and its score, too.

    Raises:
      SourceError: an image is missing, or the options contradict each other.
      ValueError: the weights cannot be used.
    """
    if folder and detector:
        raise SourceError(f"--regions={folder} and --detector={detector} exclude each other; give one")
    if detector:
        from data_prep.extract_regions import extract_images  # it imports JAX

        check_images(ArchiveFolder(root), images)
        folder = root / "regions"
        extract_images(root, list(images), detector, folder, num_threads)
    if folder:
        return FolderRegions(folder, features, classes)
    if features or classes:
        option = "--features" if features else "--classes"
        raise SourceError(f"{option} requires the regions of a detector; give --regions=FOLDER or --detector=WEIGHTS")
    return GridRegions()


# --- The table --------------------------------------------------------------------------------


class ImageTable(OrderedBuilder, skip_registration=True):
    """The builder of the images of a corpus."""

    def __init__(
        self,
        name: str,
        corpus: str,
        data_dir: str | pathlib.Path,
        root: str | pathlib.Path,
        images: Mapping[str, str],
        regions: RegionSource | None = None,
        store_images: bool = True,
        num_threads: int = 4,
    ):
        """Create the builder.

        Args:
          name: name of the table, such as "nlvr2_images".
          corpus: name of the corpus.
          data_dir: folder of all corpora.
          root: folder to which the paths are relative.
          images: path of each image, such as "img/a.jpg" or "img.zip@/a.jpg", in the order of their
            numbers -> where it is asked for, such as "photos/train.jsonl, line 3", for messages.
          regions: the regions; a grid by default.
          store_images: store the images; otherwise the regions must have features.
          num_threads: number of threads that read images.
        """
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]  # each task has its own tables
        self.files, self.images = ArchiveFolder(pathlib.Path(root)), images
        self.regions = GridRegions() if regions is None else regions
        self.store_images, self.num_threads = store_images, num_threads
        self._sizes: list[list] = []
        self._width = 0  # of the features so far
        listed = hashlib.sha256("\n".join(images).encode(errors="surrogateescape")).hexdigest()[:16]
        options = dict(number=len(images), paths=listed, images=store_images, features=self.regions.features)
        super().__init__(corpus, data_dir, str(root), options | self.regions.options)

    def inputs(self) -> list[pathlib.Path]:
        """Return the folders and archives of the images, and of the regions."""
        places = dict.fromkeys(self.files.place(path) for path in self.images)
        return [*places, *self.regions.inputs()]

    def record_features(self) -> dict[str, Any]:
        """Return the features; see the docstring of the module."""
        return image_features() | dict(
            boxes=array_feature(None, 4),
            features=region_feature(self.regions.features),
            image_feature=array_feature(None),
            **class_features(self.regions.classes),
        )

    def check(self) -> None:
        """Check that all images and regions exist, without reading them.

        Raises SourceError, which names the first that is missing and how many there are.
        """
        if not (self.store_images or self.regions.features):
            raise SourceError("without images and features a model sees nothing of an image; store one or both")
        if self.store_images:
            check_images(self.files, self.images)
        self.regions.check(self.images)

    def number_of_items(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def items(self) -> Iterator[tuple[int, str]]:
        """Return (number, path) of each image. Raises SourceError."""
        self.check()
        self.files.close()  # the processes that read images open their own archives
        return enumerate(self.images)

    def absorb(self, facts: list[tuple[int, list]]) -> None:
        """Keep the sizes, and check that all features have one width. Raises SourceError."""
        for found, (path, *size) in facts:
            self._width = self._width or found
            if found != self._width:
                raise SourceError(
                    f"{self.images[path]}: features of {path} are {found} wide, earlier ones {self._width}; use the "
                    "features of one detector"
                )
            self._sizes.append([path, *size])

    def conclude(self, folder: pathlib.Path) -> None:
        """Write sizes.json."""
        (folder / "sizes.json").write_text(json.dumps(self._sizes) + "\n")

    def make(self, item: tuple[int, str]) -> Made:
        """Return the record of an image. Raises SourceError."""
        number, path = item
        notes: list[Note] = []
        image, size = b"", None
        try:
            if self.store_images:
                image, size, conversion = self.files.read_jpeg(path, upright=True)
                if conversion:
                    notes.append(("converted", path, number, conversion))
            extractor, found = self.regions.of_image(path, size)
            bad = bad_boxes(found.boxes, *found.size)
            if bad.any() and bad.all():
                raise Unusable(f"no box is inside; the first is {found.boxes[0].tolist()}")
        except Unusable as error:
            raise SourceError(f"{self.images[path]}: the image {path} cannot be used: {error}") from None
        if self.regions.inputs():
            self.manifest.extracted(extractor, path)
        for box in found.boxes[bad]:
            notes.append(("repaired", path, number, f"dropped box {box.tolist()} of an image of {found.size}"))
        record: dict[str, Any] = dict(
            index=number, image_id=path, image=image, image_size=np.array(found.size, np.int32),
            boxes=found.boxes[~bad], features=found.features[~bad] if len(found.features) else found.features,
            image_feature=found.image_feature,
        )  # fmt: skip
        if self.regions.classes:
            record |= dict(best_class=found.best_class[~bad], best_score=found.best_score[~bad])
        shape = [path, *record["image_size"].tolist(), len(record["boxes"])]
        return Made("images", record, notes, fact=(record["features"].shape[-1], shape))


def check_images(files: ArchiveFolder, images: Mapping[str, str]) -> None:
    """Check that images exist; path -> where it is asked for. Raises SourceError, which names the first."""
    missing = [path for path in images if not files.has(path)]
    if missing:
        are = "is" if len(missing) == 1 else f"and {len(missing) - 1:,} more of {len(images):,} are"
        slashes = missing[0].replace("\\", "/")
        remedy = f"write {slashes}" if files.has(slashes) else "paths are relative to this folder"
        raise SourceError(f"{images[missing[0]]}: the image {missing[0]} {are} missing in {files.root}; {remedy}")


class PlacedImage(NamedTuple):
    """An image of a table."""

    number: int  # of its record
    width: int  # pixels
    height: int  # pixels
    regions: int = 0  # number of its regions; 0 = not known


def placed_images(table: str | pathlib.Path) -> dict[str, PlacedImage]:
    """Return the number and size of each image of a table, by its path.

    Args:
      table: the directory that the builder of images wrote.

    Raises:
      SourceError: sizes.json is missing or damaged.
    """
    sizes = pathlib.Path(table) / "sizes.json"
    try:
        rows = {str(path): tuple(map(int, numbers)) for path, *numbers in parse_json(sizes.read_bytes())}
        return {path: PlacedImage(number, *numbers) for number, (path, numbers) in enumerate(rows.items())}
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise SourceError(
            f"{sizes} is damaged ({error}); remove the folder {sizes.parent} and build again"
        ) from None
