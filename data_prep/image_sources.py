"""Where images come from: a folder, a zip archive, a list of paths, a table of Conceptual Captions with its images."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import zipfile

from data_prep.ordered_builder import SourceError
from data_prep.region_captions import ArchiveFolder

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
