"""Regions of COCO images as the bottom-up-attention detector found them: a JSON file per image, or tables.

JSON, handed out with the official VL-BERT: image_w, image_h, num_boxes and float32 in base64: boxes [n, 4], features
[n, 2048]; some have `image_box_feature` [2048]. Tables, published by Anderson et al. (github.com/peteanderson80/
bottom-up-attention, MIT; `trainval.zip`, `test2015.zip` and the 36-region twins, unpacked): a line per image, six
columns between tabs, without a heading: image_id, image_w, image_h, num_boxes, boxes, features.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Container, Iterable, Sequence

from tqdm import tqdm

from data_prep.builder import Manifest, SourceError
from data_prep.region_store import read_extraction
from data_prep.sources import ArchiveFolder

PRECOMPUTED = "vgbua_res101_precomputed"
# As the official configs call them: (of train2014 and val2014, of test2015)
VARIANTS = {
    "10-100ada": ("trainval2014_resnet101_faster_rcnn_genome", "test2015_resnet101_faster_rcnn_genome"),
    "36": ("trainval_resnet101_faster_rcnn_genome_36", "test2015_resnet101_faster_rcnn_genome_36"),
}
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def prefix_of(files: ArchiveFolder, folder: str) -> str:
    """What the paths of a folder's files begin with: `folder.zip@/folder/` if the archive is there, else `folder/`.

    Raises SourceError if neither is there or the archive is broken.
    """
    if (files.root / f"{folder}.zip").is_file():
        prefix = f"{folder}.zip@/{folder.rpartition('/')[2]}/"
        files.check(prefix)  # opens it before threads do
        return prefix
    if (files.root / folder).is_dir():
        return f"{folder}/"
    raise SourceError(f"{files.root / folder}: neither this folder nor {folder}.zip is there; download it")


class RegionFiles:
    """A JSON file per image in `vgbua_res101_precomputed`; `regions` is a key of VARIANTS or `TRAINVAL,TEST`."""

    def __init__(self, files: ArchiveFolder, regions: str, image_sets: Iterable[str], manifest: Manifest):
        self.manifest = manifest
        trainval, _, test = regions.partition(",")
        names = VARIANTS.get(regions, (trainval, test))
        if not all(names):
            raise SourceError(f"--regions: {regions!r} is neither one of {', '.join(VARIANTS)} nor TRAINVAL,TEST")
        self.files = files
        self.prefixes = {
            image_set: prefix_of(files, f"{PRECOMPUTED}/{names[image_set == 'test2015']}")
            for image_set in image_sets
        }

    def read(self, image_set: str, image_id: int) -> tuple[str, dict]:
        """(file to name in messages, its object). Raises SourceError."""
        path = f"{self.prefixes[image_set]}{image_id}.json"
        file = str(self.files.root / path)
        try:
            record = json.loads(self.files.read(path))
        except OSError as error:
            raise SourceError(f"{file}: no regions of image {image_id} ({error}); download the folder again") from None
        except ValueError as error:
            raise SourceError(f"{file}: image {image_id}: not JSON ({error}); download it again") from None
        if not isinstance(record, dict):
            raise SourceError(f"{file}: image {image_id}: no JSON object; download it again")
        self.manifest.extracted(str(record.get("extractor", "")), file)
        return file, record


class RegionTable:
    """Tables of any size: the lines of wanted images are found in one pass and read when they are asked for."""

    def __init__(self, paths: Sequence[pathlib.Path], wanted: Container[int], manifest: Manifest):
        self.paths = paths
        self._places: dict[int, tuple[int, int, int]] = {}  # by image: file, first byte, bytes
        for number, path in enumerate(paths):
            if not path.is_file():
                raise SourceError(f"{path}: no such file; give the unpacked tables in --features_tsv")
            ours = (path.parent / "extraction.json").is_file()
            manifest.extracted(read_extraction(path.parent)["extractor"] if ours else "", str(path))
            self._find(number, path, wanted, manifest)

    def _find(self, number: int, path: pathlib.Path, wanted: Container[int], manifest: Manifest) -> None:
        start = 0
        progress = tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True, mininterval=1)
        with open(path, "rb") as lines, progress:
            for place, line in enumerate(lines):
                cell = line.partition(b"\t")[0]
                if not cell.isdigit() or line.count(b"\t") != len(COLUMNS) - 1:
                    raise SourceError(
                        f"{path}: line {place + 1} has not the {len(COLUMNS)} columns of a table, the first an image "
                        "number; unpack it again"
                    )
                image_id = int(cell)
                if image_id in self._places:
                    manifest.note("skipped", str(path), place, f"image {image_id} again: its first line counts")
                elif image_id in wanted:
                    self._places[image_id] = number, start, len(line)
                start += len(line)
                progress.update(len(line))

    def read(self, image_set: str, image_id: int) -> tuple[str, dict]:
        """(file to name in messages, the line by column). Raises SourceError."""
        if image_id not in self._places:
            told = ", ".join(map(str, self.paths))
            raise SourceError(f"{told}: no regions of image {image_id} ({image_set}); add its table to --features_tsv")
        number, start, length = self._places[image_id]
        with open(self.paths[number], "rb") as table:
            table.seek(start)
            cells = table.read(length).decode("latin-1").strip("\r\n").split("\t")
        return str(self.paths[number]), dict(zip(COLUMNS, cells, strict=True))
