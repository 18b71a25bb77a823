"""Access to the regions of COCO images for VQA: a JSON file per image, or tables.

The official VL-BERT repository distributes JSON files with features [n, 2048], some of them with
`image_box_feature`. Anderson et al. published tables
(github.com/peteanderson80/bottom-up-attention, MIT; `trainval.zip`, `test2015.zip` and their
variants with 36 regions, unpacked). `vlbert_jax.data.region_files` defines both formats."""

from __future__ import annotations

import pathlib
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

    def __init__(self, files: ArchiveFolder, regions: str, image_sets: Iterable[str], manifest: Manifest):
        """Find the folders.

        Args:
          files: the download.
          regions: a key of `VARIANTS`, or two folders: TRAINVAL,TEST.
          image_sets: the image sets that will be read, such as "train2014".
          manifest: it records the extractor of each file.

        Raises:
          SourceError: `regions` is neither, or a folder does not exist.
        """
        self.manifest = manifest
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
        self.manifest.extracted(str(record.get("extractor", "")), file)
        return file, record


class RegionTable:
    """Tables of any size: one pass finds the lines; each is read when it is needed."""

    def __init__(self, paths: Sequence[pathlib.Path], image_ids: Container[int], manifest: Manifest):
        """Find the lines.

        Args:
          paths: the tables.
          image_ids: numbers of the images that will be read.
          manifest: it records the extractors and the images that occur twice.

        Raises:
          SourceError: a table does not exist or has another format.
        """
        self.paths = paths
        # By image: number of the table, first byte, number of bytes.
        self._places: dict[int, tuple[int, int, int]] = {}
        for number, path in enumerate(paths):
            if not path.is_file():
                raise SourceError(f"{path}: there is no such file; list the unpacked tables in --features_tsv")
            manifest.extracted(store_extractor(path.parent), str(path))
            self._find(number, path, image_ids, manifest)

    def _find(self, number: int, path: pathlib.Path, image_ids: Container[int], manifest: Manifest) -> None:
        start = 0
        progress = tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, mininterval=1)
        with open(path, "rb") as lines, progress:
            for place, line in enumerate(lines):
                cell = line.partition(b"\t")[0]
                if not cell.isdigit() or line.count(b"\t") != len(COLUMNS) - 1:
                    raise SourceError(
                        f"{path}: line {place + 1} does not have the {len(COLUMNS)} columns of a table, of which the "
                        "first is an image number; unpack it again"
                    )
                image_id = int(cell)
                if image_id in self._places:
                    reason = f"image {image_id} occurs again; its first line is used"
                    manifest.note("skipped", str(path), place, reason)
                elif image_id in image_ids:
                    self._places[image_id] = number, start, len(line)
                start += len(line)
                progress.update(len(line))

    def read(self, image_set: str, image_id: int) -> tuple[str, dict[str, Any]]:
        """Return the path of an image's table, for messages, and its JSON object.

        Raises SourceError.
        """
        if image_id not in self._places:
            paths = ", ".join(map(str, self.paths))
            raise SourceError(
                f"{paths}: there are no regions of image {image_id} ({image_set}); add its table to --features_tsv"
            )
        number, start, length = self._places[image_id]
        with open(self.paths[number], "rb") as table:
            table.seek(start)
            return str(self.paths[number]), parse_row(table.read(length))
