"""Builds a corpus: `python -m data_prep.build NAME --data_dir=data [...]`; `NAME --help` tells the rest."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from data_prep.builder import OrderedBuilder, SourceError, quiet_tfds
from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
from data_prep.refcoco_files import SPLITS as REFER_SPLITS
from data_prep.refcoco_files import ReferDownload
from data_prep.region_captions import RegionCaptions
from data_prep.scenes import corpus, downstream
from data_prep.scenes.corpus import write_corpus
from data_prep.scenes.downstream import write_downstream_corpus
from data_prep.text_corpus import TextCorpus
from data_prep.vcr import COCO_CATEGORIES, VCRImages, VCRQuestions, read_categories
from data_prep.vcr import SPLITS as VCR_SPLITS
from data_prep.vqa import VQADownload, VQAImages, VQAQuestions, write_answers
from vlbert_jax import __version__


@contextlib.contextmanager
def only_builder(data_dir: pathlib.Path):
    """Waits until no other process on this machine builds in `data_dir`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".build_lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_builder(builder: OrderedBuilder) -> pathlib.Path:
    """Builds unless it is there already; returns the directory. Leftovers of killed builds are removed."""
    directory = pathlib.Path(builder.data_dir)
    if directory.exists():
        found = json.loads((directory / "manifest.json").read_text())["options"]
        if found != builder.manifest.options:
            raise SourceError(
                f"{directory} was built with {found}, not {builder.manifest.options}: remove it, or change --corpus"
            )
        print(f"{directory}: already built")
        return directory
    for leftover in directory.parent.glob("incomplete.*"):
        shutil.rmtree(leftover)
    # Nothing is downloaded, TFDS makes a folder for it anyway.
    with tempfile.TemporaryDirectory() as downloads, quiet_tfds():
        builder.download_and_prepare(download_dir=downloads)
    manifest = builder.manifest
    counts = ", ".join(f"{split} {number:,}" for split, number in manifest.records.items())
    print(f"{directory}: {counts}")
    if manifest.problems:
        told = ", ".join(f"{manifest.count(a):,} {a}" for a in ("skipped", "repaired", "kept"))
        print(f"{directory / 'manifest.json'} lists what was wrong in the source: {told}")
    return directory


def draw_once(source: pathlib.Path, settings: dict, write: Callable, tables: Sequence[str]) -> None:
    """Calls `write(folder, settings)` unless `source` is there already, which then must have these settings.

    `tables`: directories of records, under the parent of `source`, that a former drawing may have left.
    An interrupted call leaves `{source}.incomplete`, which the next removes. Raises SourceError.
    """
    if source.exists():
        there = source / f"{source.name}.json"
        found = json.loads(there.read_text()) if there.is_file() else None
        if found != settings:
            raise SourceError(f"{source} was made with {found}, not {settings}; remove it or take another data_dir")
        return
    drawing = source.with_name(f"{source.name}.incomplete")
    for stale in (*(source.parent / table for table in tables), drawing):
        shutil.rmtree(stale, ignore_errors=True)
    drawing.mkdir()
    write(drawing, settings)
    drawing.rename(source)


def build_scenes(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 12_000,
    num_val: int = 1_000,
    num_train_stories: int = 12_000,
    num_val_stories: int = 600,
    feature_width: int = 0,
) -> dict[str, pathlib.Path]:
    """Draws the embedded corpus into `{data_dir}/scenes` and builds its records; does nothing if it is there.

    Returns the paths: source (folder), vocab (file), captions, text (directories of records).
    Raises SourceError if other settings made what is there. An interrupted call is made up for by the next.
    """
    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=corpus.VERSION, seed=seed, num_train=num_train, num_val=num_val,
        num_train_stories=num_train_stories, num_val_stories=num_val_stories, feature_width=feature_width,
    )
    source = data_dir / "scenes"
    with only_builder(data_dir):
        draw_once(source, settings, write_corpus, ("region_captions/scenes", "text_corpus/scenes"))
        captions = RegionCaptions("scenes", data_dir, source, features=bool(feature_width))
        text = TextCorpus("scenes", data_dir, [source / "train.doc"], [source / "val.doc"])
        return dict(
            source=source, vocab=source / "vocab.txt", captions=run_builder(captions), text=run_builder(text)
        )


def build_scene_tasks(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 3_000,
    num_val: int = 500,
    num_test: int = 300,
    feature_width: int = 0,
) -> dict[str, pathlib.Path]:
    """Draws the downstream corpora into `{data_dir}/scenes_downstream`; does nothing if they are there.

    Numbers are of scenes; each has several questions and expressions. Returns the paths: source (folder), vocab,
    answers, categories (files). Raises SourceError if other settings made what is there. An interrupted call is made
    up for by the next.
    """
    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=downstream.VERSION, seed=seed, num_train=num_train, num_val=num_val, num_test=num_test,
        feature_width=feature_width,
    )
    source = data_dir / "scenes_downstream"
    tables = [f"{name}{suffix}/scenes" for name in ("vqa", "vcr", "refcoco") for suffix in ("", "_images")]
    with only_builder(data_dir):
        draw_once(source, settings, write_downstream_corpus, tables)
        categories = read_categories(source / "categories.txt")
        vcr = ("scenes", data_dir, source / "vcr")
        refcoco = ("scenes", data_dir, ReferDownload(source / "coco"))
        detected = "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"
        run_vqa(source / "coco", data_dir, "scenes", images=True, features=bool(feature_width))
        for builder in (
            VCRImages(*vcr, categories), VCRQuestions(*vcr),
            RefCOCOImages(*refcoco, proposals=detected), RefCOCOExpressions(*refcoco),
        ):  # fmt: skip
            run_builder(builder)
        return dict(
            source=source, vocab=source / "vocab.txt", answers=source / "answers_vqa.txt",
            categories=source / "categories.txt",
        )


def draw_missing(corpus: str, fields: Mapping[str, str]) -> None:
    """Makes `corpus`, scenes or scene_tasks, in `fields["data_dir"]` unless all that the others name is there.

    Raises ValueError for another corpus.
    """
    drawn = dict(scenes=build_scenes, scene_tasks=build_scene_tasks)
    if corpus not in drawn:
        raise ValueError(f"config.data.embedded is {corpus!r}; it can be empty, {' or '.join(drawn)}")
    data_dir = pathlib.Path(fields["data_dir"])
    # A build that was interrupted leaves a table's folder without its version.
    tables = [data_dir / fields[name] for name in ("captions", "text", "texts", "images") if name in fields]
    whole = all(any(table.glob("*.*.*/manifest.json")) for table in tables)
    if not whole or not (data_dir / fields["vocab"]).is_file():
        drawn[corpus](data_dir)


def run_vqa(
    source: str | pathlib.Path,
    data_dir: pathlib.Path,
    corpus: str = "vqa_v2",
    splits: tuple[str, ...] = (),
    answers: int = 0,
    **options,
) -> dict[str, pathlib.Path]:
    """Builds the two tables and the answer vocabulary of VQA; `options` are those of `VQAImages`.

    Returns the paths: images, questions (directories of records), answers (file). Raises SourceError.
    """
    download = VQADownload(source, splits)
    vocabulary = data_dir / "vqa" / f"{corpus}_answers.txt"
    if not write_answers(download, vocabulary, answers):
        print(f"{vocabulary}: not written, as there is neither --answers nor {source}/vqa/answers_vqa.txt")
    images = run_builder(VQAImages(corpus, data_dir, download, **options))
    questions = run_builder(VQAQuestions(corpus, data_dir, download, images))
    return dict(images=images, questions=questions, answers=vocabulary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep.build", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vlbert_jax {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")

    def command(name, about):
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("--data_dir", default="data", help="where the records go (default: %(default)s)")
        return made

    made = command("scenes", "the embedded corpus: drawn, no download")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--num_train", type=int, default=12_000, help="scenes, stories (default: %(default)s)")
    made.add_argument("--num_val", type=int, default=1_000, help="scenes (default: %(default)s)")
    made.add_argument("--features", type=int, default=0, metavar="WIDTH", help="also write region features")

    made = command("scene_tasks", "VQA, VCR and RefCOCO+ about drawn scenes, no download")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--num_train", type=int, default=3_000, help="scenes (default: %(default)s)")
    made.add_argument("--num_val", type=int, default=500, help="scenes (default: %(default)s)")
    made.add_argument("--num_test", type=int, default=300, help="scenes (default: %(default)s)")
    made.add_argument("--features", type=int, default=0, metavar="WIDTH", help="also write region features for VQA")

    made = command("conceptual_captions", "images, captions and regions in the official layout")
    made.add_argument("--source", required=True, help="folder with train_frcnn.json and val_frcnn.json")
    made.add_argument("--corpus", default="conceptual_captions", help="name it gets (default: %(default)s)")
    made.add_argument("--splits", default="train,val", help="official splits (default: %(default)s)")
    made.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of class scores")
    made.add_argument("--features", action="store_true", help="keep the detector's region features")
    made.add_argument("--no_images", action="store_true", help="leave the images out (with --features)")
    made.add_argument("--drop_unreadable", action="store_true", help="skip what has no readable image")
    made.add_argument("--num_threads", type=int, default=4, help="that read images (default: %(default)s)")

    made = command("vqa", "VQA v2: images with regions, questions, answers")
    made.add_argument("--source", required=True, help="folder with vqa/, regions and images; see data_prep/vqa.py")
    made.add_argument("--corpus", default="vqa_v2", help="name it gets (default: %(default)s)")
    made.add_argument("--splits", default="", help="of train,val,test_dev,test (default: all that are there)")
    made.add_argument("--features", action="store_true", help="keep the detector's region features")
    made.add_argument("--images", action="store_true", help="keep the images of train2014, val2014, test2015")
    made.add_argument("--regions", default="10-100ada", help="10-100ada, 36, or two folders: TRAINVAL,TEST")
    made.add_argument("--features_tsv", default="", help="tables of regions instead, comma-separated")
    made.add_argument("--answers", type=int, default=0, metavar="N", help="make a vocabulary of N entries (3129)")
    made.add_argument("--num_threads", type=int, default=4, help="that read regions (default: %(default)s)")

    made = command("vcr", "Visual Commonsense Reasoning: images with objects, questions with choices")
    made.add_argument("--source", required=True, help="folder with train.jsonl, ... and vcr1images.zip")
    made.add_argument("--corpus", default="vcr", help="name it gets (default: %(default)s)")
    made.add_argument("--splits", default=",".join(VCR_SPLITS), help="official splits (default: %(default)s)")
    made.add_argument("--categories", default="", metavar="FILE", help="names of objects, one per line, if not COCO's")
    made.add_argument("--num_threads", type=int, default=4, help="that read images (default: %(default)s)")

    made = command("refcoco", "referring expressions: RefCOCO, RefCOCO+, RefCOCOg")
    made.add_argument("--source", required=True, help="folder with refcoco+/, annotations/, train2014/; see README")
    made.add_argument("--dataset", choices=sorted({name for name, _ in REFER_SPLITS}), default="refcoco+")
    made.add_argument("--split_by", choices=sorted({by for _, by in REFER_SPLITS}), default="unc")
    made.add_argument("--splits", default="", help="comma-separated (default: all of the dataset)")
    made.add_argument("--corpus", default="", help="name it gets (default: DATASET_SPLITBY)")
    made.add_argument("--annotations", default="annotations/instances_train2014.json", help="all boxes, under source")
    made.add_argument("--proposals", default="", metavar="FILE", help="the detector's boxes, under source")
    made.add_argument("--num_threads", type=int, default=4, help="that read images (default: %(default)s)")

    made = command("text", "documents as lines of text files")
    made.add_argument("--source", required=True, help="text files in order, comma-separated; .gz is fine")
    made.add_argument("--corpus", default="books_wikipedia", help="name it gets (default: %(default)s)")
    made.add_argument("--val_source", default="", help="text files of the val split")
    made.add_argument("--val_fraction", type=float, default=0.0, help="or this share of lines, from the end")
    return parser


def _listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated option; none if it is empty."""
    return tuple(part for part in text.split(",") if part)


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        if args.name == "scenes":
            build_scenes(
                args.data_dir, args.seed, args.num_train, args.num_val, args.num_train,
                feature_width=args.features,
            )
            return 0
        if args.name == "scene_tasks":
            build_scene_tasks(args.data_dir, args.seed, args.num_train, args.num_val, args.num_test, args.features)
            return 0
        if args.name == "vqa":
            if not (args.images or args.features):
                raise SourceError("give --features, --images or both: without them there is nothing to look at")
            if args.answers and args.answers < 2:
                raise SourceError(f"--answers={args.answers} leaves none beside <unk>; the official number is 3129")
            with only_builder(pathlib.Path(args.data_dir)):
                run_vqa(
                    args.source, pathlib.Path(args.data_dir), args.corpus, _listed(args.splits), args.answers,
                    regions=args.regions, features_tsv=_listed(args.features_tsv), features=args.features,
                    images=args.images, num_threads=args.num_threads,
                )
            return 0
        if args.name == "vcr":
            where, splits = (args.corpus, args.data_dir, args.source), _listed(args.splits)
            categories = read_categories(args.categories) if args.categories else COCO_CATEGORIES
            builders = [VCRImages(*where, categories, splits, args.num_threads), VCRQuestions(*where, splits)]
        elif args.name == "refcoco":
            corpus = args.corpus or f"{args.dataset}_{args.split_by}"
            download = ReferDownload(args.source, args.dataset, args.split_by, _listed(args.splits))
            where = corpus, args.data_dir, download
            images = RefCOCOImages(*where, args.annotations, args.proposals, args.num_threads)
            builders = [images, RefCOCOExpressions(*where)]
        elif args.name == "conceptual_captions":
            if args.no_images and not args.features:
                raise SourceError("--no_images without --features leaves nothing to look at")
            captions = RegionCaptions(
                args.corpus, args.data_dir, args.source, tuple(args.splits.split(",")), args.dtype,
                args.features, not args.no_images, args.drop_unreadable, args.num_threads,
            )
            builders = [captions]
        else:
            sources = _listed(args.source), _listed(args.val_source)
            builders = [TextCorpus(args.corpus, args.data_dir, *map(list, sources), args.val_fraction)]
        with only_builder(pathlib.Path(args.data_dir)):
            for builder in builders:
                run_builder(builder)
    except (SourceError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
