"""Where images come from: a folder, a zip archive, a list of paths, a table of Conceptual Captions with its images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import pathlib
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_prep.builder import SourceError
from data_prep.region_store import open_records
from vlbert_jax.data import image_files
from vlbert_jax.data.image_files import ORIENTATION, is_plain

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
COCO = re.compile(r"COCO_\w+_0*(\d+)")


@dataclasses.dataclass(frozen=True)
class Source:
    """Images in a fixed order: `paths` as `files` reads them; `captions` where the source is a table of these."""

    files: ArchiveFolder
    paths: tuple[str, ...]
    captions: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What an image's regions are called: its path without archive and suffix, of COCO's files the number."""
        return tuple(_name(path) for path in self.paths)


def _name(path: str) -> str:
    inner = pathlib.PurePosixPath(path.rpartition("@/")[2])
    coco = COCO.fullmatch(inner.stem)
    parts = [part for part in inner.with_name(coco[1] if coco else inner.stem).parts if part not in ("/", "..", ".")]
    return "/".join(parts)


def image_number(name: str, position: int) -> int:
    """An image's number: what its name ends in, else its place in the source."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else position


def open_source(path: str | pathlib.Path, images: str = "") -> Source:
    """The images at `path`; `images` is the archive or folder of those of a table. Raises SourceError.

    A list (.txt) has a path a line, relative to the list, perhaps inside an archive: `train_image.zip@/1.jpg`. A table
    (.tsv) has a caption and an address a line; line 7's image is `00000007.jpg`, counted from 0, in `train_image` or
    `val_image` beside it, zip or folder.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        paths = [str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
        return _source(path, path, sorted(paths))
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder")
    root = path.parent
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = sorted(name for name in archive.namelist() if name.lower().endswith(SUFFIXES))
        return _source(path, root, [f"{path.name}@/{name}" for name in inside])
    if path.suffix not in (".txt", ".tsv"):
        raise SourceError(f"{path}: neither a folder, a zip archive, a list (.txt) nor a table of captions (.tsv)")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 ({error})") from None
    if path.suffix == ".txt":
        return _source(path, root, [line.strip() for line in lines if line.strip()])
    for number, line in enumerate(lines):
        if line.count("\t") != 1:
            raise SourceError(f"{path}: line {number + 1} is not a caption, a tab and an address")
    images = images or f"{'train' if 'train' in path.name.lower() else 'val'}_image"
    archive = f"{images.removesuffix('/').removesuffix('.zip')}.zip"
    source = _source(path, root, [f"{archive}@/{number:08d}.jpg" for number in range(len(lines))])
    source.files.check(source.paths[0])
    return dataclasses.replace(source, captions=tuple(line.partition("\t")[0] for line in lines))


def _source(path: pathlib.Path, root: pathlib.Path, paths: list[str]) -> Source:
    source = Source(ArchiveFolder(root), tuple(paths))
    if not paths:
        raise SourceError(f"{path}: no image; known are {', '.join(SUFFIXES)}")
    first: dict[str, str] = {}
    for name, image in zip(source.names, paths, strict=True):
        if first.setdefault(name, image) != image:
            raise SourceError(f"{path}: {first[name]} and {image} would both be called {name}; rename one")
    if len(first) != len(paths):
        raise SourceError(f"{path}: an image stands there twice; keep it once")
    return source


def folders(archive: str) -> tuple[str, str]:
    """Folders that stand for an archive; the parts of one (`X.zip.0`, `X.0.zip`) officially share a folder."""
    folder = archive.removesuffix(".zip")
    return folder, folder.rsplit(".", 1)[0].removesuffix(".zip")


class ArchiveFolder:
    """Reads `X.zip@/name` from the archive X.zip or the folder X, whichever is there; the archive first.

    In a folder that `extract_regions` wrote, `name.json` is found among its records too.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._archives: dict[str, zipfile.ZipFile | None] = {}
        self._open_records = functools.cache(open_records)

    def _archive(self, name: str) -> zipfile.ZipFile | None:
        if name not in self._archives:
            path = self.root / name
            try:
                self._archives[name] = zipfile.ZipFile(path) if path.is_file() else None
            except zipfile.BadZipFile as error:
                raise SourceError(f"{path}: not a whole zip archive ({error}); download it again") from None
        return self._archives[name]

    def read(self, path: str) -> bytes:
        """Raises OSError for what is not there or cannot be read, SourceError for a broken archive."""
        archive, _, inner = path.rpartition("@/")
        if archive and (opened := self._archive(archive)):
            try:
                return opened.read(inner)
            except KeyError:
                raise FileNotFoundError(f"no {inner} in {archive}") from None
            except (zipfile.BadZipFile, zlib.error) as error:
                raise OSError(f"{inner} in {archive}: {error}") from None
        if not archive:
            archive, _, inner = inner.rpartition("/")
            return self._read(self.root / archive, inner)
        for folder in folders(archive):
            if (self.root / folder).is_dir():
                with contextlib.suppress(FileNotFoundError):
                    return self._read(self.root / folder, inner)
        raise FileNotFoundError(f"no {folders(archive)[-1]}/{inner}")

    def _read(self, folder: pathlib.Path, inner: str) -> bytes:
        if inner.endswith(".json") and (records := self._open_records(folder)):
            return records.read(inner.removesuffix(".json"))
        return (folder / inner).read_bytes()

    def check(self, path: str) -> None:
        """Opens the archive of that path. Raises SourceError if neither it nor the folder is there."""
        archive = path.rpartition("@/")[0]
        if archive and not self._archive(archive) and not any((self.root / f).is_dir() for f in folders(archive)):
            raise SourceError(f"{self.root / archive}: neither this archive nor the folder {folders(archive)[-1]}")

    def close(self) -> None:
        for archive in filter(None, self._archives.values()):
            archive.close()
        self._archives.clear()


def read_image(content: bytes, upright: bool = False) -> tuple[bytes, tuple[int, int], str]:
    """(JPEG bytes, (width, height), what was repaired). An image that is no RGB JPEG is encoded again.

    `upright` turns it as EXIF says and shows transparent pixels white, as `extract_regions` sees it; the official code
    does neither. Raises what Pillow raises (OSError mostly) where the whole of it cannot be decoded.
    """
    image = Image.open(io.BytesIO(content))
    if is_plain(image) if upright else (image.format == "JPEG" and image.mode == "RGB"):
        size = image.size
        image.draft("RGB", (1, 1))  # at an eighth of the size: reads all of the file in a third of the time
        image.load()
        return content, size, ""
    encoded = io.BytesIO()
    rgb = image_files.upright(image) if upright else image.convert("RGB")
    rgb.save(encoded, "JPEG", quality=98, subsampling=0)
    turned = ", turned as EXIF says" if upright and image.getexif().get(ORIENTATION, 1) != 1 else ""
    return encoded.getvalue(), rgb.size, f"{image.format} in mode {image.mode}{turned} encoded as an RGB JPEG"


def bad_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bool [n]: boxes that are not finite, inverted, or without area inside the image."""
    with np.errstate(invalid="ignore"):
        low = np.clip(boxes[:, :2], 0, (width - 1, height - 1))
        high = np.clip(boxes[:, 2:], 0, (width - 1, height - 1))
        return ~(np.isfinite(boxes).all(1) & (high > low).all(1))


def map_ahead(function: Callable, items: Iterable, num_threads: int) -> Iterator:
    """Like `map`, in order, but some items ahead in threads."""
    with ThreadPoolExecutor(num_threads) as pool:
        items = iter(items)
        pending = deque(pool.submit(function, item) for item in itertools.islice(items, 4 * num_threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
