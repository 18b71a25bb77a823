"""The readers of foreign bytes, each with small correct files (seeds) that fuzz.py changes.

A reader reads one file in a folder of its own, which may have further files; the changed file replaces it. The modules
are imported by the readers that need them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.manifest import SourceError
from tests.faults import seeds
from tests.helpers import GOLDEN
from vlbert_jax.data.region_files import Unusable

ERRORS = (ValueError, OSError)
BUILD = (SourceError, ValueError, OSError)  # of data_prep.build
TASKS = GOLDEN / "tasks"
BY_NAME: dict[str, Reader] = {}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A function that reads a file, and how to make such files."""

    name: str
    file: str  # path in the folder
    make: Callable[[Path], Iterable[bytes]]  # writes the further files into a folder, and returns the seeds
    function: Callable[[Path], Any]  # of the path of the file
    errors: tuple[type[Exception], ...] = ERRORS  # that the commands print
    place: str | None = None  # what these errors name; None = the file, "" = nothing, because the callers add it
    limit_mb: int = 600  # address space beyond that of the start

    def prepare(self, folder: Path) -> tuple[Path, list[bytes]]:
        """Write the further files into a folder; return the path of the changed file, and the seeds."""
        made = list(self.make(folder))
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        for content in made:
            path.write_bytes(content)
            with contextlib.suppress(*self.errors):  # what is imported late is not counted
                self.function(path)
        return path, made


def reader(name: str, file: str, make: Callable[[Path], Iterable[bytes]], **options):
    """Register a function as a reader."""

    def register(function: Callable[[Path], Any]):
        BY_NAME[name] = Reader(name, file, make, function, **options)
        return function

    return register


def files(*paths: str | Path, root: str | Path = "") -> Callable[[Path], list[bytes]]:
    """Return a function that copies the folder `root` of the recordings and returns the content of some files."""

    def make(folder: Path) -> list[bytes]:
        if root:
            shutil.copytree(TASKS / root, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.jpg", "*.png"))
        return [(TASKS / root / path).read_bytes() for path in paths]

    return make


# --- Weights -----------------------------------------------------------------------------------------------


@reader("caffe", "net.caffemodel", lambda _: seeds.caffe_files())
@reader("safetensors", "model.safetensors", seeds.safetensors_files)
@reader("pytorch", "model.pt", seeds.torch_files)
@reader("pickled_arrays", "weights.pkl", lambda folder: seeds.pickles(folder, dict(a=np.ones(3), b=dict(c=np.eye(2)))))
def weights(path: Path) -> None:
    from vlbert_jax.weights.containers import read_files, stored_in_file

    _, container = read_files(path)
    if container == "safetensors":
        stored_in_file(path)


@reader("weights", "model.safetensors", seeds.bert_files)
@reader("weights_config", "config.json", seeds.bert_configs)
@reader("weights_index", "model.safetensors.index.json", seeds.weight_indices)
def known_weights(path: Path) -> None:
    from vlbert_jax.weights.read import read_weights

    try:
        read_weights(path.parent)
    except ValueError as error:  # of the folder that the user gave
        raise ValueError(f"{path.name}: {error}") from error


@reader("checksums", "checksums.json", seeds.checksums)
def checksums(path: Path) -> None:
    from vlbert_jax.weights.checksums import damage_of

    damage_of(path.parent)


# --- Images, texts, archives -------------------------------------------------------------------------------


@reader("image_files", "image", lambda _: seeds.images(), limit_mb=2500)
def image_files(path: Path) -> None:
    from vlbert_jax.data.image_files import open_image

    open_image(path)


@reader("stored_images", "image.jpg", lambda _: seeds.images(), place="", limit_mb=2500)
def stored_images(path: Path) -> None:
    from vlbert_jax.data.images import decode_image

    decode_image(path.read_bytes())


@reader("downloaded_images", "image.jpg", lambda _: seeds.images(), errors=(*BUILD, Unusable), place="",
        limit_mb=2500)  # fmt: skip
def downloaded_images(path: Path) -> None:
    from data_prep.sources import ArchiveFolder

    for upright in (False, True):
        ArchiveFolder(path.parent).read_jpeg(path.name, upright)


@reader("zip", "images.zip", lambda _: seeds.archives(), errors=BUILD)
def archives(path: Path) -> None:
    from data_prep.sources import open_source

    source = open_source(path)
    for image in source.paths:
        try:
            source.files.read_jpeg(image)
        except Unusable:
            continue
        finally:
            source.files.close()


@reader("text", "corpus.doc", lambda _: seeds.texts(), errors=BUILD)
def text_corpus(path: Path) -> None:
    from data_prep.text_corpus import read_lines

    for _ in read_lines(path):
        pass


@reader("list_of_images", "list.txt", seeds.lists, errors=BUILD)
@reader("captions_tsv", "train.tsv", seeds.caption_tables, errors=BUILD)
def captions(path: Path) -> None:
    from data_prep.sources import open_source

    open_source(path)


# --- Records and regions -----------------------------------------------------------------------------------


@reader("region_records", f"regions-{seeds.PART}.array_record", seeds.region_records, errors=BUILD)
@reader("region_part", f"parts/{seeds.PART}.json", seeds.region_parts, errors=BUILD, place="region_part")
@reader("region_store", "extraction.json", seeds.extractions, errors=BUILD, place="region_store")
def region_folder(path: Path) -> None:
    from data_prep.image_table import FolderRegions
    from data_prep.region_store import broken_images

    folder = path.parents[path.parent.name == "parts"]
    regions = FolderRegions(folder, features=True)
    regions.check({f"{name}.jpg": "list.txt, line 1" for name in seeds.IMAGES})
    for name in seeds.IMAGES:
        try:
            regions.of_image(f"{name}.jpg", None)
        except Unusable:
            continue
    list(broken_images(folder))


@reader("packed_regions", "regions.npz", lambda _: seeds.packed_regions(), errors=(Unusable, ValueError), place="")
def packed_regions(path: Path) -> None:
    from vlbert_jax.data.region_files import decode_regions, unpack

    decode_regions(unpack(path.read_bytes()), True)


@reader("region_json", "1.json", lambda _: seeds.region_files(), errors=(Unusable,), place="")
def region_json(path: Path) -> None:
    from vlbert_jax.data.region_files import decode_detections, decode_regions, parse_record

    record = parse_record(path.read_bytes())
    decode_detections(record, True)
    decode_regions(record, True)


@reader("region_tsv", "trainval.tsv", lambda _: seeds.region_tables(), errors=(*BUILD, Unusable))
def region_table(path: Path) -> None:
    from data_prep.manifest import Manifest
    from data_prep.vqa_regions import RegionTable
    from vlbert_jax.data.region_files import decode_regions

    table = RegionTable([path], range(1, 4), Manifest("", {}))
    for image_id in range(1, 4):
        _, record = table.read("train2014", image_id)
        try:
            decode_regions(record, True)
        except Unusable:
            continue


@reader("boxes", "boxes.json", lambda _: seeds.boxes())
def given_boxes(path: Path) -> None:
    from vlbert_jax.prediction.regions import given_regions

    given_regions(path, (60, 40))


@reader("gallery_cache", "gallery.npz", seeds.gallery_caches)
def gallery_cache(path: Path) -> None:
    from vlbert_jax.prediction.search import _read_cache

    _read_cache(path)


@reader("table_records", f"{seeds.TABLE}/photos_images-images.array_record-00000", seeds.table_records)
@reader("table_features", f"{seeds.TABLE}/features.json", seeds.table_features, place="photos_images")
@reader("table_info", f"{seeds.TABLE}/dataset_info.json", seeds.table_infos, place="photos_images")
def table(path: Path) -> None:
    from vlbert_jax.data.records import open_split

    split = open_split(path.parents[3], "photos_images/c", "images")
    for number in range(min(len(split), 8)):
        split[number]


@reader("table_sizes", "sizes.json", lambda _: [b'[["a.jpg", 3, 4, 1], ["b.jpg", 3, 4, 9]]'], errors=BUILD)
def table_sizes(path: Path) -> None:
    from data_prep.image_table import placed_images

    placed_images(path.parent)


# --- Vocabularies and lists --------------------------------------------------------------------------------


@reader("vocabulary", "vocab.txt", seeds.vocabularies, place="")
@reader("tokenizer_config", "tokenizer_config.json", seeds.tokenizer_configs)
def tokenizer(path: Path) -> None:
    from vlbert_jax.data.tokenizer import load_tokenizer

    load_tokenizer(str(path.parent), seeds.VOCABULARY).words("What color is the Ball?")


@reader("object_names", "objects_vocab.txt", lambda _: [b"dog\ncat,kitten\n"])
def object_names(path: Path) -> None:
    from vlbert_jax.files import read_lines

    read_lines(path)


@reader("answers", "answers.txt", lambda _: [b"yes\nno\n<unk>\n2.5\n"])
@reader("answers_json", "answers.json", lambda _: [b'["yes", "no", "caf\\u00e9"]', b'{"yes": 0, "no": 1}'])
def answers(path: Path) -> None:
    from vlbert_jax.tasks.answer_lists import load_answers

    load_answers(path)


@reader("categories", "categories.txt", lambda _: [b"person\ntraffic light\n"], errors=BUILD)
def categories(path: Path) -> None:
    from data_prep.vcr_files import read_categories

    read_categories(path)
