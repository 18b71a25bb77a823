"""Finds regions in images with the bottom-up-attention detector and stores them as the builders and the official code
read them.

    python -m data_prep.extract_regions IMAGES --detector=DETECTOR --out=FOLDER [options]

IMAGES is a folder, a zip archive, a list of paths (.txt) or a table of Conceptual Captions (.tsv); DETECTOR a folder
that `python -m vlbert_jax.convert ... --task=detector` wrote, or a .caffemodel, .pth, .pkl, or Hugging Face folder or
name. Formats:

    array_record    regions-*.array_record: compact; the builders read it as they read a folder of JSON files
    json            a file per image, NAME.json, as `generate_tsv_v2` of the official repositories writes it
    tsv             regions-*.tsv, the tables of Anderson et al., without class scores

With a table of captions and --out=SOURCE/train_frcnn, the index SOURCE/train_frcnn.json is written when the last image
is done, and `python -m data_prep.build conceptual_captions --source=SOURCE` goes on from there.

Several processes or hosts share the work, each with its own --shard=i/n (i from 0) and the same --out. A run that ends
early goes on where it stopped when it is started again: no image twice, none lost. Images that cannot be read are
listed with the reason in broken.txt. The extractor's fingerprint (weights, settings, code) is in the folder, its short
form in every record; regions of another extractor are refused there, and when a corpus is built.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from data_prep.builder import SourceError
from data_prep.region_store import FORMATS, Part, RegionStore, check_parts, official_record
from data_prep.sources import Source, image_number, map_ahead, open_source
from vlbert_jax import __version__
from vlbert_jax.data.image_files import open_image
from vlbert_jax.detector.detect import Detector, load_detector
from vlbert_jax.detector.options import Selection, Settings
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import atomic_write

AHEAD = 8  # batches among which images of one shape are looked for


def extract(
    source: Source,
    detector: Detector,
    out: pathlib.Path,
    *,
    form: str = "array_record",
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 4,
) -> RegionStore:
    """Writes the regions of every image of a shard, as far as they are not there. Raises SourceError, OSError."""
    store = RegionStore(out, detector.fingerprint, source.names, form, shard[1])
    parts = store.shard(shard[0])
    total = len(range(shard[0], len(source.paths), shard[1]))
    with tqdm(total=total, desc=out.name, unit=" images", smoothing=0) as progress:
        for part in parts:
            before = len(part.numbers) - len(part.waiting)
            progress.initial += before  # no part of the rate
            progress.update(before)
            _extract_part(source, detector, part, progress, num_threads)
            if not part.done:
                for line in part.finish():
                    progress.write(f"broken: {line['name']}: {line['error']}", file=sys.stderr)
    with store.alone():
        if store.is_complete():
            _conclude(source, store)
    return store


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


def _record(regions: Regions, image: np.ndarray, image_id: int) -> dict:
    arrays = dict(
        boxes=regions.boxes,
        classes=regions.class_probabilities,
        attrs=regions.attribute_probabilities,
        features=regions.features,
    )
    return official_record(image_id, image.shape[1::-1], arrays)


def _conclude(source: Source, store: RegionStore) -> None:
    """When the last part of all shards is there: the list of broken images, and the index of captions."""
    broken = "".join(f"{line}\n" for line in check_parts(store.folder))
    with atomic_write(store.folder / "broken.txt") as beside:
        beside.write_text(broken)
    if source.captions is None:
        return
    bad = {line.partition(":")[0] for line in broken.splitlines()}
    lines = [
        dict(image=path, caption=caption.split(" "), frcnn=f"{store.folder.name}.zip@/{name}.json")
        for path, caption, name in zip(source.paths, source.captions, source.names, strict=True)
        if name not in bad
    ]
    with atomic_write(store.folder.with_name(f"{store.folder.name}.json")) as beside:
        beside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1, as 0/4")
    return int(number), int(of)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m data_prep.extract_regions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, selection = parser.add_argument, Selection()
    add("--version", action="version", version=f"vlbert_jax {__version__}")
    add("images", metavar="IMAGES")
    add("--detector", required=True, help="its weights")
    add("--lists", help="folder of objects_vocab.txt and attributes_vocab.txt, if not beside the weights")
    add("--out", required=True, type=pathlib.Path, help="a new folder, or one of this extraction")
    add("--format", choices=FORMATS, default=FORMATS[0], help="(default: %(default)s)")
    add("--images", dest="image_folder", default="", help="folder or zip of a table's images, beside it")
    add("--shard", type=_shard, default=(0, 1), metavar="i/n", help="the part of the work that is this process's")
    add("--threshold", type=float, default=selection.threshold, help="Anderson et al. took 0.2 (default: %(default)s)")
    add("--fewest", type=int, default=selection.fewest, help="regions of an image (default: %(default)s)")
    add("--most", type=int, default=selection.most, help="36 with --fewest=36: always 36 (default: %(default)s)")
    proposals = Settings().proposals_after
    add("--proposals", type=int, default=proposals, help="to choose from: fewer are faster (default: %(default)s)")
    add("--roi", choices=("pool", "align"), default="pool", help="align: as VL-BERT's region head (default: pool)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the convolutions")
    add("--batch_size", type=int, default=1, help="images at once; more on accelerators (default: %(default)s)")
    add("--num_threads", type=int, default=4, help="that read images (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if not 1 <= args.fewest <= args.most:
            raise SourceError(f"--fewest={args.fewest} --most={args.most}: from 1 up, the second not below the first")
        if args.proposals < args.fewest:
            raise SourceError(f"--proposals={args.proposals} are not enough for --fewest={args.fewest} regions")
        source = open_source(args.images, args.image_folder)
        settings = Settings(proposals_after=args.proposals, roi_operation=args.roi)
        selection = Selection(threshold=args.threshold, fewest=args.fewest, most=args.most)
        options = dict(lists=args.lists, batch_size=args.batch_size, dtype=args.dtype)
        detector = load_detector(args.detector, settings, selection, **options)
        store = extract(source, detector, args.out, form=args.format, shard=args.shard, num_threads=args.num_threads)
    except (SourceError, ValueError, OSError) as error:
        again = f"; {args.out} is whole as far as it goes: make room and give the command again"
        told = f"{error}{again if 'No space left' in str(error) else ''}"
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on: {args.out}", file=sys.stderr)
        return 130
    number = sum(1 for _ in check_parts(store.folder))
    print(f"{args.out}: {len(source.paths):,} images, extractor {store.extractor}, {number:,} broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
