"""Find regions in images with the bottom-up-attention detector and store them.

The builders and the official code read the result.

    python -m data_prep.extract_regions IMAGES --detector=DETECTOR --out=FOLDER [options]

IMAGES is a folder, a zip archive, a list of paths (.txt) or a table of captions (.tsv).
DETECTOR is a folder that `python -m vlbert_jax.convert ... --task=detector` wrote, or a
.caffemodel, .pth, .pkl, or Hugging Face folder or name. Formats:

    array_record    regions-*.array_record: compact; the builders read it like JSON files
    json            a file per image, NAME.json, as `generate_tsv_v2` of the official code writes it
    tsv             regions-*.tsv, the tables of Anderson et al., without class scores

With a table of captions and --out=SOURCE/train_frcnn, the index SOURCE/train_frcnn.json is written
after the last image; then `python -m data_prep.build captions --source=SOURCE` builds
the corpus.

Several processes or machines share the work, each with its own --shard=i/n (i from 0) and the same
--out. The same command continues a run that ended early: no image is processed twice or lost.
broken.txt lists images that cannot be read, with the reason. The folder stores the extractor's
fingerprint (weights, settings, code), and every record its short form. Regions of another extractor
are refused in the same folder, and in one corpus."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import vlbert_jax
from data_prep.build_options import share
from data_prep.caption_tables import write_index
from data_prep.manifest import SourceError
from data_prep.region_store import FORMATS, Part, RegionStore, broken_images
from data_prep.sources import Source, image_number, map_ahead, open_source, source_of
from data_prep.stored import local_places
from vlbert_jax.command import run_command
from vlbert_jax.compiled import keep_programs
from vlbert_jax.data.image_files import open_image, passed_over
from vlbert_jax.data.region_files import encode_regions
from vlbert_jax.detector.options import RULES, SELECTIONS, Selection, Settings
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import atomic_write, required_path, user_path
from vlbert_jax.memory import keep_freed_memory
from vlbert_jax.storage.mirror import store_file, store_next_to

if TYPE_CHECKING:  # JAX takes two seconds to import, and --help needs none of it
    from vlbert_jax.detector.detect import Detector

AHEAD = 8  # batches of images that are read ahead to find images of one shape


def extract(
    source: Source,
    detector: Detector,
    out: pathlib.Path,
    *,
    form: str = "array_record",
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 4,
) -> RegionStore:
    """Store the regions of all images of a shard that are not stored yet.

    Args:
      source: the images.
      detector: the detector.
      out: folder of the store.
      form: a format of `data_prep.region_store.FORMATS`.
      shard: (number from 0, number of shards).
      num_threads: number of threads that read images.

    Returns:
      The store.

    Raises:
      SourceError: the folder has another extraction, or two images would have one number in a table.
      OSError: the regions cannot be written.
    """
    if form == "tsv":
        _check_numbers(source)
    sizes = [source.files.size_of(path) for path in source.paths]
    store = RegionStore(out, detector.fingerprint, source.names, form, shard[1], sizes)
    parts = store.shard(shard[0])
    total = len(range(shard[0], len(source.paths), shard[1]))
    with tqdm(total=total, desc=out.name, unit=" images", smoothing=0) as progress:
        for part in parts:
            finished = len(part.numbers) - len(part.waiting)
            progress.initial += finished  # the rate does not count them
            progress.update(finished)
            _extract_part(source, detector, part, progress, num_threads)
            if not part.done:
                for line in part.finish():
                    progress.write(f"broken: {line['name']}: {line['error']}", file=sys.stderr)
            store.parts.store(part.path.stem)
    with store.alone():
        if store.is_complete():
            _conclude(source, store)
    return store


def _check_numbers(source: Source) -> None:
    """Check that the number of an image, its only key in a table, is not that of another.

    Raises SourceError.
    """
    first: dict[int, str] = {}
    for position, (name, path) in enumerate(zip(source.names, source.paths, strict=True)):
        number = image_number(name, position)
        if first.setdefault(number, path) != path:
            raise SourceError(
                f"{first[number]} and {path} would both be image {number} of a table, which has no other name; choose "
                "another --format, or rename one of them"
            )


def _extract_part(source: Source, detector: Detector, part: Part, progress: tqdm, num_threads: int) -> None:
    def opened(number: int):
        name = source.paths[number]
        try:
            return number, open_image(source.files.read(name), name), ""
        except (OSError, ValueError) as error:
            return number, None, " ".join(str(error).split())

    names = part.store.names
    window = 1 if detector.batch_size == 1 else AHEAD * detector.batch_size
    for items in _batched(map_ahead(opened, part.waiting, num_threads), window):
        found = iter(detector.detect([image for _, image, _ in items if image is not None]))
        for number, image, error in items:
            name = names[number]
            record = None if image is None else _record(next(found), image, image_number(name, number))
            part.add(name, record, error)
            progress.update()


def _batched(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _record(regions: Regions, image: np.ndarray, image_id: int) -> dict[str, Any]:
    arrays = dict(
        boxes=regions.boxes,
        classes=regions.class_probabilities,
        attrs=regions.attribute_probabilities,
        features=regions.features,
    )
    return encode_regions(image_id, image.shape[1::-1], arrays)


def _conclude(source: Source, store: RegionStore) -> None:
    """Write the list of broken images and the index of captions; all parts are complete."""
    broken = dict(broken_images(store.folder))
    with atomic_write(store.folder / "broken.txt") as partial:
        partial.write_text("".join(f"{name}: {error}\n" for name, error in broken.items()))
    store_file(store.folder / "broken.txt")
    if source.captions is None:
        return
    folder = store.folder
    index = folder.with_name(f"{folder.name}.json")
    write_index(source, index, f"{folder.name}.zip@/", broken)
    store_next_to(folder, index.name)


# --- The command ------------------------------------------------------------------------------


def extract_tables(tables: Mapping[str, Source], source: pathlib.Path, weights: str, num_threads: int) -> None:
    """Find the regions of the images of tables, and write them and the index next to each table.

    Finished images are not processed again.

    Args:
      tables: split -> table (`open_tables`).
      source: folder of the tables.
      weights: weights of the detector, which has its usual settings.
      num_threads: number of threads that read images.

    Raises:
      SourceError: no image of a table can be read, and as `extract` does.
      ValueError: the weights cannot be used.
    """
    from vlbert_jax.detector.detect import load_detector

    detector = load_detector(weights)
    for split, table in tables.items():
        store = extract(table, detector, source / f"{split}_frcnn", num_threads=num_threads)
        broken = [name for name, _ in broken_images(store.folder)]
        if len(broken) == len(table.paths):
            raise SourceError(f"{source / split}.tsv: no image could be read; {store.folder}/broken.txt lists reasons")
        print(f"{store.folder}: {len(table.paths):,} images, extractor {store.extractor}, {len(broken):,} broken")


def extract_images(
    root: pathlib.Path, images: Sequence[str], weights: str, out: pathlib.Path, num_threads: int
) -> None:
    """Find the regions of some images with the usual settings; finished images are not processed again.

    Args:
      root: folder to which the paths are relative.
      images: paths, also in archives: "img.zip@/a.jpg".
      weights: weights of the detector.
      out: folder of the regions.
      num_threads: number of threads that read images.

    Raises:
      SourceError: two images have one name, or `out` has regions of other images or another detector.
      ValueError: the weights cannot be used.
    """
    from vlbert_jax.detector.detect import load_detector

    source = source_of(root, root, images)
    detector = load_detector(weights)
    store = extract(source, detector, out, num_threads=num_threads)
    print(f"{store.folder}: {len(source.paths):,} images, extractor {store.extractor}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        "python -m data_prep.extract_regions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, usual, other = parser.add_argument, SELECTIONS["caffe"], SELECTIONS["huggingface"]
    add("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    add("images", type=required_path, metavar="IMAGES", help="folder, zip archive, list (.txt) or table (.tsv)")
    add("--detector", type=required_path, required=True, help="weights of the detector")
    add(
        "--lists", type=user_path,
        help="folder of objects_vocab.txt and attributes_vocab.txt (default: the folder of the weights)",
    )  # fmt: skip
    add("--out", required=True, type=required_path, help="new folder or address, or that of this extraction")
    add("--format", choices=FORMATS, default=FORMATS[0], help="format of the regions (default: %(default)s)")
    add(
        "--images", dest="image_folder", type=user_path, default="",
        help="folder or zip of the images of a table, next to the table",
    )  # fmt: skip
    add("--shard", type=share, default=(0, 1), metavar="i/n", help="the share of the images of this process")
    add(
        "--rules", choices=tuple(SELECTIONS), default="",
        help="of boxes, pixels and selection; huggingface = those of its frcnn, for LXMERT (default: those that the "
        "weights were made for)",
    )  # fmt: skip
    add(
        "--threshold", type=float,
        help="smallest confidence of a region, with Caffe's rules only; 0.2 in Anderson et al. "
        f"(default: {usual.threshold})",
    )  # fmt: skip
    add(
        "--fewest", type=int,
        help=f"regions per image (default: {usual.fewest}, with --rules=huggingface {other.fewest})",
    )  # fmt: skip
    add(
        "--most", type=int,
        help=f"regions per image; with --fewest=36 --most=36 always 36 (default: {usual.most}, with "
        f"--rules=huggingface {other.most})",
    )  # fmt: skip
    add(
        "--proposals", type=int, default=Settings().proposals_after,
        help="proposals from which regions are chosen; fewer are faster (default: %(default)s)",
    )  # fmt: skip
    add("--roi", choices=("pool", "align"), default="pool", help="align = as in VL-BERT's region head (default: pool)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the convolutions (default: float32)")
    add("--batch_size", type=int, default=1, help="images per batch; more on accelerators (default: %(default)s)")
    add("--num_threads", type=int, default=4, help="threads that read images (default: %(default)s)")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> None:
    """Check the options, and extract regions."""
    from vlbert_jax.detector.weights import read_detector, rules_of

    args.rules = args.rules or rules_of(read_detector(args.detector))
    given = {name: getattr(args, name) for name in ("threshold", "fewest", "most")}
    selection = dataclasses.replace(
        SELECTIONS[args.rules], **{name: value for name, value in given.items() if value is not None}
    )
    if args.rules == "huggingface" and args.threshold is not None:
        raise SourceError("--threshold has no effect with --rules=huggingface, which keeps a number of regions")
    if not 1 <= selection.fewest <= selection.most:
        raise SourceError(
            f"--fewest={selection.fewest} --most={selection.most}: both must be at least 1, and --fewest at most --most"
        )
    if args.proposals < selection.fewest:
        raise SourceError(
            f"--proposals={args.proposals} is too few for --fewest={selection.fewest} regions; give at least as many"
        )
    with local_places(args, "out", (".txt", ".tsv")):
        _extract_as(args, selection)


def _extract_as(args: argparse.Namespace, selection: Selection) -> None:
    """Extract regions to a folder with these options, and print a summary."""
    from vlbert_jax.detector.detect import load_detector

    source, out = open_source(args.images, args.image_folder), pathlib.Path(args.out)
    others = passed_over(source.passed_over)
    if others:  # before hours of work, and again after them
        print(f"warning: {args.images}: {others}", file=sys.stderr)
    settings = RULES[args.rules](proposals_after=args.proposals, roi_operation=args.roi)
    options = dict(lists=args.lists, batch_size=args.batch_size, dtype=args.dtype)
    detector = load_detector(args.detector, settings, selection, **options)
    store = extract(source, detector, out, form=args.format, shard=args.shard, num_threads=args.num_threads)
    broken = sum(1 for _ in broken_images(store.folder))
    if broken == len(source.paths):
        raise SourceError(f"{args.images}: no image could be read; {args.out}/broken.txt lists the reasons")
    others = f"; {others}" if others else ""
    print(f"{args.out}: {len(source.paths):,} images, extractor {store.extractor}, {broken:,} broken{others}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is 2 after an error, which one line explains, and 130 after Ctrl-C.
    """
    args = parse_arguments(argv)
    keep_programs()
    keep_freed_memory()
    remedy = "; the regions so far are stored: free some space and run the same command again"
    return run_command(
        lambda: _run(args),
        ["vlbert_jax.detector.detect"],
        (SourceError, ValueError, OSError),
        f"stopped; the same command continues the extraction in {args.out}",
        lambda message: f"{message}{remedy if 'No space left' in message else ''}",
    )


if __name__ == "__main__":
    sys.exit(main())
