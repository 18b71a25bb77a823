"""Access to the regions of COCO images for VQA: a JSON file per image, or tables.

The official VL-BERT repository distributes JSON files with features [n, 2048], some of them with
`image_box_feature`. Anderson et al. published tables
(github.com/peteanderson80/bottom-up-attention, MIT; `trainval.zip`, `test2015.zip` and their
variants with 36 regions, unpacked). `vlbert_jax.data.region_files` defines both formats."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Container, Iterable, Sequence
from typing import Any

from tqdm import tqdm

from data_prep.manifest import Manifest, SourceError
from data_prep.region_store import store_extractor
from data_prep.sources import ArchiveFolder
from vlbert_jax.data.region_files import COLUMNS, Unusable, parse_record, parse_row

PRECOMPUTED = "vgbua_res101_precomputed"
# As the official configs name them: (folder of train2014 and val2014, folder of test2015).
VARIANTS = {
    "10-100ada": ("trainval2014_resnet101_faster_rcnn_genome", "test2015_resnet101_faster_rcnn_genome"),
    "36": ("trainval_resnet101_faster_rcnn_genome_36", "test2015_resnet101_faster_rcnn_genome_36"),
}


def path_prefix(files: ArchiveFolder, folder: str) -> str:
    """Return the start of all paths in a folder.

    It is `folder.zip@/folder/` if the archive exists, else `folder/`.

    Raises SourceError if neither exists or the archive is damaged.
    """
    if (files.root / f"{folder}.zip").is_file():
        prefix = f"{folder}.zip@/{folder.rpartition('/')[2]}/"
        files.check(prefix)  # opens the archive before threads use it
        return prefix
    if (files.root / folder).is_dir():
        return f"{folder}/"
    raise SourceError(f"{files.root / folder}: neither this folder nor {folder}.zip exists; download it")


def region_folders(regions: str) -> list[str]:
    """Return the folders of train2014 and val2014 and of test2015, under the download.

    Args:
      regions: a key of `VARIANTS`, or two folders: TRAINVAL,TEST.

    Raises:
      SourceError: `regions` is neither.
    """
    trainval, _, test = regions.partition(",")
    names = VARIANTS.get(regions, (trainval, test))
    if not all(names):
        raise SourceError(f"--regions={regions} must be one of {', '.join(VARIANTS)} or two folders, TRAINVAL,TEST")
    return [f"{PRECOMPUTED}/{name}" for name in names]


class RegionFiles:
    """A JSON file per image in `vgbua_res101_precomputed`."""

    def __init__(self, files: ArchiveFolder, regions: str, image_sets: Iterable[str]):
        """Find the folders.

        Args:
          files: the download.
          regions: a key of `VARIANTS`, or two folders: TRAINVAL,TEST.
          image_sets: the image sets that will be read, such as "train2014".

        Raises:
          SourceError: `regions` is neither, or a folder does not exist.
        """
        self.files, folders = files, region_folders(regions)
        self.prefixes = {
            image_set: path_prefix(files, folders[image_set == "test2015"]) for image_set in image_sets
        }

    def read(self, image_set: str, image_id: int) -> tuple[str, dict[str, Any]]:
        """Return the path of an image's file, for messages, and its JSON object.

        Raises SourceError.
        """
        path = f"{self.prefixes[image_set]}{image_id}.json"
        file = str(self.files.root / path)
        try:
            record = parse_record(self.files.read(path))
        except OSError as error:
            raise SourceError(
                f"{file}: there are no regions of image {image_id} ({error}); download the folder again"
            ) from None
        except Unusable as error:
            raise SourceError(f"{file}: image {image_id}: {error}; download it again") from None
        return file, record


class RegionTable:
    """Tables of any size: one pass finds the lines; each is read when it is needed.

    Published tables have lines that were cut, and cut lines in which the next one starts. Of two
    lines of one image the first that is not cut is used. A heading and blank lines are passed over.
    """

    def __init__(self, paths: Sequence[pathlib.Path], image_ids: Container[int], manifest: Manifest):
        """Find the lines.

        Args:
          paths: the tables.
          image_ids: numbers of the images that will be read.
          manifest: it records the extractors, the images that occur twice, and damaged lines.

        Raises:
          SourceError: a table does not exist or has another format.
        """
        self.paths, self.manifest = paths, manifest
        # By image: number of the table, first byte, number of bytes.
        self._places: dict[int, tuple[int, int, int]] = {}
        self._cut: set[int] = set()  # images of which only a cut line was found so far
        # (number of the table, byte after the number of the image, end), line, possible images
        self._glued: list[tuple[tuple[int, int, int], int, list[int]]] = []
        for number, path in enumerate(paths):
            if not path.is_file():
                raise SourceError(f"{path}: there is no such file; list the unpacked tables in --features_tsv")
            if zipfile.is_zipfile(path):
                raise SourceError(f"{path}: this is a zip archive; unpack it and list its tables in --features_tsv")
            manifest.extracted(store_extractor(path.parent), str(path))
            self._find(number, path, image_ids)
        for place, line, candidates in self._glued:
            self._add_glued(place, line, [image_id for image_id in candidates if self._is_wanted(image_id)])

    def _is_wanted(self, image_id: int) -> bool:
        return image_id not in self._places or image_id in self._cut

    def _find(self, number: int, path: pathlib.Path, image_ids: Container[int]) -> None:
        """Find the lines of a table. Raises SourceError if it has none."""
        start, rows, first = 0, 0, ""
        progress = tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, mininterval=1)
        with open(path, "rb") as lines, progress:
            for place, line in enumerate(lines):
                cells = line.rstrip(b"\r\n").split(b"\t")
                if len(cells) >= len(COLUMNS) and cells[0].isdigit():
                    rows += 1
                    self._add(place, cells, (number, start, len(line)), image_ids)
                elif line.strip() and not _is_heading(cells):
                    start_of_line = line[:40].decode("latin-1")
                    first = first or f"line {place + 1} has {len(cells)} and starts with {start_of_line!r}"
                    reason = f"the line does not have the {len(COLUMNS)} columns of a table: it was cut"
                    self.manifest.note("skipped", str(path), place, reason)
                start += len(line)
                progress.update(len(line))
        if not rows:
            raise SourceError(
                f"{path}: no line has the {len(COLUMNS)} columns of a table, {', '.join(COLUMNS)}, separated by tabs"
                f" ({first or 'the file is empty'}); give a table in this form"
            )

    def _add(self, line: int, cells: list[bytes], place: tuple[int, int, int], image_ids: Container[int]) -> None:
        """Use a line for its image unless another line of that image is better, and note what is not used."""
        image_id, path = int(cells[0]), str(self.paths[place[0]])
        is_whole = _is_whole(cells)
        if len(cells) > len(COLUMNS):
            self._split(line, cells, place, image_ids)
        if image_id in self._places and not is_whole:
            self.manifest.note("skipped", path, line, f"image {image_id}: the line is cut")
        elif image_id in self._places and image_id not in self._cut:
            self.manifest.note("skipped", path, line, self._repeated(image_id, cells, path, line))
        elif image_id in image_ids:
            if is_whole and image_id in self._cut:
                reason = f"image {image_id}: its line before this one is cut, so this one is used"
                self.manifest.note("repaired", path, line, reason)
            self._places[image_id] = place
            self._cut.discard(image_id) if is_whole else self._cut.add(image_id)

    def _repeated(self, image_id: int, cells: list[bytes], path: str, line: int) -> str:
        """Return the note about a second line of an image. Raises SourceError if it is of another image."""
        first_path, first = self._line(image_id)
        stored = first.split(b"\t")
        if stored[1:3] != cells[1:3]:
            one, other = (b"x".join(numbers[1:3]).decode() for numbers in (stored, cells))
            raise SourceError(
                f"{path}: line {line + 1} is of image {image_id} with {other} pixels, but {first_path} has an image "
                f"{image_id} with {one} pixels: two images have one number; rename one and extract its regions again"
            )
        others = "" if stored[4] == cells[4] else " although the boxes differ: if these are two images, rename one"
        return f"image {image_id} occurs again; its first line is used{others}"

    def _line(self, image_id: int) -> tuple[str, bytes]:
        """Return the path of the table of an image, and its line."""
        number, start, length = self._places[image_id]
        path = str(self.paths[number])
        with open(path, "rb") as table:
            table.seek(start)
            return path, table.read(length)

    def _split(self, line: int, cells: list[bytes], place: tuple[int, int, int], image_ids: Container[int]) -> None:
        """Find the last line that starts in the middle of a cut one.

        Its number follows the cut array without a separator, so more than one number is possible.
        """
        head, *tail = cells[-len(COLUMNS) :]
        digits = head[len(head.rstrip(b"0123456789")) :]
        candidates = [int(digits[i:]) for i in range(len(digits)) if digits[i : i + 1] != b"0"]
        if _is_whole([b"0", *tail]):
            end = place[1] + sum(map(len, cells)) + len(cells) - 1
            after = end - sum(map(len, tail)) - len(tail)  # the separator after the number
            self._glued.append(((place[0], after, end), line, [i for i in candidates if i in image_ids]))

    def _add_glued(self, place: tuple[int, int, int], line: int, candidates: list[int]) -> None:
        """Use a line that starts within a cut one if its image is known and has no better line."""
        table, after, end = place
        path = str(self.paths[table])
        if len(candidates) == 1:
            (image_id,) = candidates
            start = after - len(str(image_id))
            self._places[image_id] = table, start, end - start
            self._cut.discard(image_id)
            self.manifest.note("repaired", path, line, f"image {image_id}: its line starts within a line that was cut")
        elif candidates:
            found = f"it may be of image {' or '.join(map(str, candidates))}"
            self.manifest.note("skipped", path, line, f"a line starts within a line that was cut: {found}")

    def read(self, image_set: str, image_id: int) -> tuple[str, dict[str, Any]]:
        """Return the path of an image's table, for messages, and its JSON object.

        Raises SourceError.
        """
        if image_id not in self._places:
            paths = ", ".join(map(str, self.paths))
            raise SourceError(
                f"{paths}: there are no regions of image {image_id} ({image_set}); add its table to --features_tsv"
            )
        path, line = self._line(image_id)
        if line.count(b"\t") >= len(COLUMNS):
            raise SourceError(
                f"{path}: the only line of image {image_id} was cut, and another line starts in it; extract the "
                "regions of this image again and add their table to --features_tsv"
            )
        return path, parse_row(line)


def _is_heading(cells: list[bytes]) -> bool:
    return tuple(cell.decode("latin-1") for cell in cells) == COLUMNS


def _is_whole(cells: list[bytes]) -> bool:
    """Return whether a line has all columns and its arrays have rows for its number of boxes."""
    if len(cells) != len(COLUMNS) or not all(cell.isdigit() for cell in cells[:4]):
        return False
    number, boxes, features = int(cells[3]), *map(_num_bytes, cells[4:])
    return number > 0 and boxes == 16 * number and features > 0 and features % (4 * number) == 0


def _num_bytes(base64: bytes) -> int:
    """Return the number of bytes that a base64 text encodes, -1 if it is cut."""
    return -1 if len(base64) % 4 else len(base64) // 4 * 3 - base64[-2:].count(b"=")
