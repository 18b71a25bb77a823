"""What builders share: folders and archives, sources of images, checks, and threads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import lzma
import os
import pathlib
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_prep.caption_answers import answers_of_column
from data_prep.manifest import SourceError
from data_prep.region_store import open_records
from vlbert_jax.data import image_files
from vlbert_jax.data.image_files import IMAGE_SUFFIXES, ORIENTATION, has_image_name, is_plain
from vlbert_jax.data.region_files import Unusable

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
LARGEST = 2**30  # bytes of a file of an archive, all of which are decompressed into the memory
ENCRYPTED = 0x1  # flag of an entry of a zip archive
COCO = re.compile(r"COCO_\w+_0*(\d+)")


# --- Folders and archives ---------------------------------------------------------------------


def archive_folders(archive: str) -> tuple[str, str]:
    """Return the folders that may replace an archive.

    In the official code the parts of a split archive (`X.zip.0`, `X.0.zip`) share one folder.
    """
    folder = archive.removesuffix(".zip")
    return folder, folder.rsplit(".", 1)[0].removesuffix(".zip")


def unreadable_archive(path: pathlib.Path, reason: str) -> SourceError:
    """Return the error for an archive of which nothing can be read."""
    return SourceError(f"{path}: the zip archive cannot be read ({reason}); unpack it, or pack it again with `zip -0`")


def open_archive(path: pathlib.Path) -> zipfile.ZipFile:
    """Open a zip archive. Raises SourceError if it is damaged, or packed in a way that cannot be read."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise SourceError(f"{path}: the zip archive is not complete ({error}); download it again") from None
    for entry in archive.infolist():
        if not entry.filename:
            raise unreadable_archive(path, "a file in it has no name")
        if entry.flag_bits & ENCRYPTED:
            raise unreadable_archive(path, f"{entry.filename} needs a password")
        if entry.compress_type not in METHODS:
            reason = f"{entry.filename} is compressed by method {entry.compress_type}, which is not supported"
            raise unreadable_archive(path, reason)
    return archive


class ArchiveFolder:
    """A reader of `X.zip@/name`: from the archive X.zip if it exists, otherwise from the folder X.

    In a folder that `extract_regions` wrote, `name.json` is also searched among its records.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._archives: dict[str, zipfile.ZipFile | None] = {}
        self._open_records = functools.cache(open_records)

    def __reduce__(self):  # another process opens its own archives
        return ArchiveFolder, (self.root,)

    def _archive(self, name: str) -> zipfile.ZipFile | None:
        if name not in self._archives:
            path = self.root / name
            self._archives[name] = open_archive(path) if os.path.isfile(path) else None
        return self._archives[name]

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises OSError if the file is missing or cannot be read, SourceError if the archive is
        damaged."""
        archive, _, inner = path.rpartition("@/")
        if archive and (opened := self._archive(archive)):
            try:
                if (size := opened.getinfo(inner).file_size) > LARGEST:
                    raise OSError(f"{inner} in {archive} claims {size:,} bytes, more than {LARGEST:,}")
                return opened.read(inner)
            except KeyError:
                raise FileNotFoundError(f"there is no {inner} in {archive}") from None
            except (NotImplementedError, RuntimeError) as error:  # true of all that was packed in this way
                raise unreadable_archive(self.root / archive, str(error)) from None
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error, MemoryError) as error:
                raise OSError(f"{inner} in {archive}: {error or 'damaged, or too large for the memory'}") from None
        if not archive:
            archive, _, inner = inner.rpartition("/")
            return self._read(self.root / archive, inner)
        for folder in archive_folders(archive):
            if os.path.isdir(self.root / folder):
                with contextlib.suppress(FileNotFoundError):
                    return self._read(self.root / folder, inner)
        raise FileNotFoundError(f"there is no {archive_folders(archive)[-1]}/{inner}")

    def _read(self, folder: pathlib.Path, inner: str) -> bytes:
        if inner.endswith(".json") and (records := self._open_records(folder)):
            return records.read(inner.removesuffix(".json"))
        try:
            return (folder / inner).read_bytes()
        except ValueError as error:  # a name that no file can have
            raise FileNotFoundError(f"there is no {inner!r} in {folder} ({error})") from None

    def has(self, path: str) -> bool:
        """Return whether a file exists; it may be damaged."""
        return self.size_of(path) >= 0

    def size_of(self, path: str) -> int:
        """Return the number of bytes of a file, -1 if it is missing."""
        archive, _, inner = path.rpartition("@/")
        if opened := self._archive(archive):
            return opened.NameToInfo[inner].file_size if inner in opened.NameToInfo else -1
        files = (os.path.join(self.root, folder, inner) for folder in archive_folders(archive))
        # os.path.isfile is False for names that no file can have, too; they come from foreign files.
        return next((os.path.getsize(file) for file in files if os.path.isfile(file)), -1)

    def read_jpeg(self, path: str, upright: bool = False) -> tuple[bytes, tuple[int, int], str]:
        """Return what `as_jpeg` returns for the image in a file.

        Raises Unusable if the image is missing or cannot be decoded, SourceError if the archive is
        damaged."""
        try:
            content = self.read(path)
        except OSError as error:
            raise Unusable(str(error)) from None
        try:
            return as_jpeg(content, upright)
        except Exception as error:  # Pillow raises many types for damaged images
            raise Unusable(image_files.unreadable_reason(error, content)) from None

    def check(self, path: str) -> None:
        """Open the archive of a path.

        Raises SourceError if neither the archive nor its folder exists.
        """
        archive = path.rpartition("@/")[0]
        if not archive or self._archive(archive):
            return
        folders = archive_folders(archive)
        if not any(os.path.isdir(self.root / folder) for folder in folders):
            raise SourceError(
                f"{self.root / archive}: neither this archive nor the folder {folders[-1]} exists; download it, or put "
                "the files into this folder"
            )

    def place(self, path: str) -> pathlib.Path:
        """Return the archive, or the folder that replaces it, in which a file is."""
        archive, _, inner = path.rpartition("@/")
        if not archive:
            return (self.root / inner).parent
        folders = [self.root / archive, *(self.root / folder for folder in archive_folders(archive))]
        return next((folder for folder in folders if os.path.exists(folder)), folders[0])

    def close(self) -> None:
        """Close all archives."""
        for archive in filter(None, self._archives.values()):
            archive.close()
        self._archives.clear()


# --- Sources of images ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Images in a fixed order."""

    files: ArchiveFolder
    paths: tuple[str, ...]  # as `files` reads them
    captions: tuple[str, ...] | None = None  # of the lines if the source is a table of captions
    images_of_captions: tuple[int, ...] = ()  # position in `paths` of the image of each line
    answers: tuple[dict[str, float], ...] = ()  # of each line, answer -> score if the caption is a question
    passed_over: tuple[str, ...] = ()  # files of a folder or archive that are not taken for images

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names under which the regions are stored: the path without archive and suffix.

        Images of COCO are named by their number.
        """
        return tuple(name_of(path) for path in self.paths)


def name_of(path: str) -> str:
    """Return the name under which the regions of an image are stored; see `Source.names`."""
    inner = pathlib.PurePosixPath(path.rpartition("@/")[2])
    coco = COCO.fullmatch(inner.stem)
    parts = [part for part in inner.with_name(coco[1] if coco else inner.stem).parts if part not in ("/", "..", ".")]
    return "/".join(parts)


def image_number(name: str, position: int) -> int:
    """Return the digits at the end of an image's name, otherwise its position in the source."""
    digits = re.search(r"\d+$", name)
    return int(digits[0]) if digits else position


def open_source(path: str | pathlib.Path, images: str = "") -> Source:
    """Return the images at `path`.

    Args:
      path: a folder, a zip archive, a list or a table. A list (.txt) has one path per line,
        relative to the list; the path may be inside an archive, such as `train_image.zip@/1.jpg`. A
        table (.tsv) has a caption and the name of an image per line, and for a question its answers
        (`answers_of_column`); images are in `train_image` or `val_image` next to the table, which
        may be archives or folders, and an image may have several captions. If there is an address
        or another text in place of the name, the image of line 7, counted from 0, is `00000007.jpg`.
      images: archive or folder of the images of a table, if it is another one.

    Raises:
      SourceError: the source does not exist, has another format or has two images of one name.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _chosen(path, path, "", (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file or folder")
    root = path.parent
    if zipfile.is_zipfile(path):
        with open_archive(path) as archive:
            inside = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        return _chosen(path, root, f"{path.name}@/", inside)
    if path.suffix not in (".txt", ".tsv"):
        raise SourceError(
            f"{path}: the source must be a folder, a zip archive, a list (.txt) or a table of captions (.tsv)"
        )
    try:
        # Only line ends separate lines: captions of the web contain U+2028 and other separators of `splitlines`.
        lines = re.split(r"\r\n|\n|\r", path.read_bytes().decode("utf-8-sig").removesuffix("\n").removesuffix("\r"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: the text is not UTF-8 ({error})") from None
    if path.suffix == ".txt":
        return source_of(path, root, [line.strip() for line in lines if line.strip()])
    return _caption_table(path, lines, images)


def _chosen(path: pathlib.Path, root: pathlib.Path, prefix: str, files: Iterable[str]) -> Source:
    """Return the images among the files of a folder or archive, by name, and what is passed over."""
    files = sorted(files)
    images = [file for file in files if has_image_name(file)]
    others = tuple(file for file in files if not has_image_name(file))
    if not images and others:
        raise SourceError(f"{path}: there is no image; {image_files.passed_over(others)}")
    source = source_of(path, root, [f"{prefix}{file}" for file in images])
    return dataclasses.replace(source, passed_over=others)


def _caption_table(path: pathlib.Path, lines: list[str], images: str) -> Source:
    answers = []
    for number, line in enumerate(lines, 1):
        if line.count("\t") not in (1, 2):
            raise SourceError(f"{path}: line {number} must have a caption, a tab and an image or address")
        try:
            answers.append(answers_of_column(line.split("\t", 2)[2] if line.count("\t") == 2 else ""))
        except ValueError as error:
            raise SourceError(f"{path}: line {number}, column 3: {error}") from None
    images = images or f"{'train' if 'train' in path.name.lower() else 'val'}_image"
    archive = f"{images.removesuffix('/').removesuffix('.zip')}.zip"
    captions, names = zip(*(line.split("\t")[:2] for line in lines), strict=True)
    names = [name.strip() for name in names]
    files = ArchiveFolder(path.parent)
    files.check(f"{archive}@/")
    # Tables that were made for numbered images may have anything in the second column.
    is_named = files.has(f"{archive}@/{names[0]}") or not (
        "://" in names[0] or files.has(f"{archive}@/00000000.jpg")
    )
    if is_named and not any(files.has(f"{archive}@/{name}") for name in names[:100]):
        raise SourceError(
            f"{path}: neither {names[0]}, the image of line 1, nor 00000000.jpg is in {archive} or its folder; the "
            "second column must name the images, or the images must be numbered by line"
        )
    if not is_named:
        names = [f"{number:08d}.jpg" for number in range(len(lines))]
    position = {name: number for number, name in enumerate(dict.fromkeys(names))}
    source = source_of(path, path.parent, [f"{archive}@/{name}" for name in position])
    places = tuple(position[name] for name in names)
    return dataclasses.replace(source, captions=captions, images_of_captions=places, answers=tuple(answers))


def source_of(path: pathlib.Path, root: pathlib.Path, paths: Iterable[str]) -> Source:
    """Return some images as a source.

    Args:
      path: the folder, archive or list that names them, for messages.
      root: folder to which the paths are relative.
      paths: the images, each as `ArchiveFolder` reads it.

    Raises:
      SourceError: there is none, or two of them have one name.
    """
    paths = list(paths)
    source = Source(ArchiveFolder(root), tuple(paths))
    if not paths:
        raise SourceError(f"{path}: there is no image; supported suffixes are {', '.join(IMAGE_SUFFIXES)}")
    first: dict[str, str] = {}
    if nameless := [image for image in paths if not pathlib.PurePosixPath(image.rpartition("@/")[2]).name]:
        raise SourceError(f"{path}: {nameless[0]!r} names no file; remove or correct it")
    for name, image in zip(source.names, paths, strict=True):
        if first.setdefault(name, image) != image:
            raise SourceError(f"{path}: {first[name]} and {image} would both be named {name}; rename one of them")
    if len(first) != len(paths):
        raise SourceError(f"{path}: an image is listed twice; list it once")
    return source


# --- Images and boxes -------------------------------------------------------------------------


def as_jpeg(content: bytes, upright: bool = False) -> tuple[bytes, tuple[int, int], str]:
    """Return an image as an RGB JPEG; an image of another format or mode is encoded again.

    Args:
      content: bytes of an image file.
      upright: rotate as EXIF says and show transparent pixels white, as `extract_regions` does; the
        official code does neither.

    Returns:
      The JPEG; (width, height); a description of the conversion, "" if the content is unchanged.

    Raises:
      Exception: an exception of Pillow, mostly OSError, if the image cannot be decoded completely.
    """
    image = Image.open(io.BytesIO(content))
    if is_plain(image) if upright else (image.format == "JPEG" and image.mode == "RGB"):
        size = image.size
        # Decoding at an eighth of the size reads the whole file in a third of the time.
        image.draft("RGB", (1, 1))
        image.load()
        return content, size, ""
    encoded = io.BytesIO()
    rgb = image_files.upright(image) if upright else image.convert("RGB")
    rgb.save(encoded, "JPEG", quality=98, subsampling=0)
    turned = ", rotated as EXIF says," if upright and image.getexif().get(ORIENTATION, 1) != 1 else ""
    return encoded.getvalue(), rgb.size, f"{image.format} in mode {image.mode}{turned} encoded as an RGB JPEG"


def bad_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return bool [n]: True for boxes that are not finite, inverted or without area inside."""
    with np.errstate(invalid="ignore"):
        low = np.clip(boxes[:, :2], 0, (width - 1, height - 1))
        high = np.clip(boxes[:, 2:], 0, (width - 1, height - 1))
        return ~(np.isfinite(boxes).all(1) & (high > low).all(1))


# --- Threads ----------------------------------------------------------------------------------


def map_ahead(function: Callable, items: Iterable, num_threads: int) -> Iterator:
    """Yield `function(item)` in the order of the items, computed in threads some items ahead."""
    with ThreadPoolExecutor(num_threads) as pool:
        items = iter(items)
        pending = deque(pool.submit(function, item) for item in itertools.islice(items, 4 * num_threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
