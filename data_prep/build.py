"""Build the records of a corpus: `python -m data_prep.build NAME --data_dir=data [...]`.

`NAME --help` lists the options of a corpus; data_prep/README.md describes all corpora. The
functions are also an API. They import the builders when they are called: TFDS takes seconds to
import, and `--help` needs none of it."""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence

from data_prep.build_options import listed, parse_options, workers_of
from data_prep.build_public import COMMANDS as PUBLIC_COMMANDS
from data_prep.manifest import SourceError
from data_prep.parts import ONE, Workers
from data_prep.scene_kinds import build_scene_explanations, build_scene_kinds, build_scene_questions
from data_prep.stored import local_places
from data_prep.tables import ShareWritten, draw_once, is_built, only_builder, run_builder, run_builders
from vlbert_jax.command import run_command

# --- The synthetic corpora --------------------------------------------------------------------


def build_scenes(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 12_000,
    num_val: int = 1_000,
    num_train_stories: int = 12_000,
    num_val_stories: int = 600,
    feature_width: int = 0,
    workers: Workers = ONE,
) -> dict[str, pathlib.Path]:
    """Generate the synthetic corpus of pre-training in `{data_dir}/scenes` and build its records.

    Nothing happens if they exist. The next call completes an interrupted one.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: scenes of the split train.
      num_val: scenes of the split val.
      num_train_stories: text documents of train.
      num_val_stories: text documents of val.
      feature_width: width of synthetic region features; 0 = no features.
      workers: the processes that make the records.

    Returns:
      The paths `source` (folder), `vocab` (file), `captions` and `text` (directories of records).

    Raises:
      SourceError: the corpus exists with other settings.
    """
    from data_prep.region_captions import RegionCaptions
    from data_prep.scenes import corpus
    from data_prep.text_corpus import TextCorpus

    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=corpus.VERSION, seed=seed, num_train=num_train, num_val=num_val,
        num_train_stories=num_train_stories, num_val_stories=num_val_stories, feature_width=feature_width,
    )  # fmt: skip
    source = data_dir / "scenes"
    with only_builder(data_dir):
        draw_once(source, settings, corpus.write_corpus, ("region_captions/scenes", "text_corpus/scenes"))
        captions = RegionCaptions("scenes", data_dir, source, features=bool(feature_width))
        text = TextCorpus("scenes", data_dir, [source / "train.doc"], [source / "val.doc"])
        captions, text = run_builders(captions, text, workers=workers)
        return dict(source=source, vocab=source / "vocab.txt", captions=captions, text=text)


def build_scene_tasks(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 3_000,
    num_val: int = 500,
    num_test: int = 300,
    feature_width: int = 0,
    tasks: Sequence[str] = ("vqa", "vcr", "refcoco"),
    workers: Workers = ONE,
) -> dict[str, pathlib.Path]:
    """Generate the synthetic corpora of the downstream tasks and build their records.

    The folder is `{data_dir}/scenes_downstream`. Nothing happens if they exist; the next call
    completes an interrupted one. A scene has several questions and expressions.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: scenes of train.
      num_val: scenes of val, and again of RefCOCO+'s val.
      num_test: scenes of test, and again of RefCOCO+'s testA and testB.
      feature_width: width of synthetic region features for VQA; 0 = no features.
      tasks: tasks whose records are built.
      workers: the processes that make the records.

    Returns:
      The paths `source` (folder), `vocab`, `answers` and `categories` (files).

    Raises:
      SourceError: the corpora exist with other settings.
    """
    from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
    from data_prep.refcoco_files import ReferDownload
    from data_prep.scenes import downstream
    from data_prep.vcr import VCRImages, VCRQuestions
    from data_prep.vcr_files import read_categories

    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=downstream.VERSION, seed=seed, num_train=num_train, num_val=num_val, num_test=num_test,
        feature_width=feature_width,
    )  # fmt: skip
    source = data_dir / "scenes_downstream"
    tables = [f"{name}{suffix}/scenes" for name in ("vqa", "vcr", "refcoco") for suffix in ("", "_images")]
    with only_builder(data_dir):
        draw_once(source, settings, downstream.write_downstream_corpus, tables)
        categories = read_categories(source / "categories.txt")
        vcr = ("scenes", data_dir, source / "vcr")
        refcoco = ("scenes", data_dir, ReferDownload(source / "coco"))
        detected = "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"
        if "vqa" in tasks:
            run_vqa(source / "coco", data_dir, "scenes", workers=workers, images=True, features=bool(feature_width))
        if "vcr" in tasks:
            run_builders(VCRImages(*vcr, categories), VCRQuestions(*vcr), workers=workers)
        if "refcoco" in tasks:
            images = RefCOCOImages(*refcoco, proposals=detected)
            run_builders(images, RefCOCOExpressions(*refcoco), workers=workers)
        return dict(
            source=source, vocab=source / "vocab.txt", answers=source / "answers_vqa.txt",
            categories=source / "categories.txt",
        )  # fmt: skip


def build_explained_scenes(data_dir: str | pathlib.Path) -> None:
    """Generate and build `scenes` and the texts of `scene_explanations`, for pre-training with both."""
    build_scenes(data_dir)
    build_scene_explanations(data_dir)


def draw_missing(corpus: str, fields: Mapping[str, str]) -> None:
    """Generate and build a synthetic corpus unless all its tables exist.

    Args:
      corpus: "scenes", "scene_explanations" (also builds `scenes`), "scene_questions", "scene_tasks" or "scene_kinds".
      fields: `config.data` of a recipe: `data_dir`, `vocab`, and `captions` and `text` (perhaps empty), or
        `texts` and `images`.

    Raises:
      ValueError: there is no such corpus.
    """
    corpora = dict(
        scenes=build_scenes, scene_explanations=build_explained_scenes, scene_questions=build_scene_questions,
        scene_tasks=build_scene_tasks, scene_kinds=build_scene_kinds,
    )  # fmt: skip
    if corpus not in corpora:
        raise ValueError(f"config.data.embedded is {corpus!r}; it must be empty or one of {', '.join(corpora)}")
    data_dir = pathlib.Path(fields["data_dir"])
    # An interrupted build leaves the folder of a table without its version.
    tables = [data_dir / fields[name] for name in ("captions", "text", "texts", "images") if fields.get(name, "")]
    is_complete = all(any(table.glob("*.*.*/manifest.json")) for table in tables)
    if not is_complete or not (data_dir / fields["vocab"]).is_file():
        print(f"{data_dir}: building the synthetic corpus {corpus}, about a minute", flush=True)
        # The records of the other tasks are built when they are needed.
        own = {} if "texts" not in fields else dict(tasks=[fields["texts"].partition("/")[0]])
        corpora[corpus](data_dir, **own)


# --- Public downloads -------------------------------------------------------------------------


def run_vqa(
    source: str | pathlib.Path,
    data_dir: pathlib.Path,
    corpus: str = "vqa_v2",
    splits: tuple[str, ...] = (),
    answers: int = 0,
    workers: Workers = ONE,
    **options,
) -> dict[str, pathlib.Path]:
    """Build the two tables and the answer vocabulary of VQA.

    Args:
      source: folder of the download.
      data_dir: folder of all corpora.
      corpus: name of the corpus.
      splits: requested splits; empty = all with a question file.
      answers: number of entries of the answer vocabulary; 0 = copy the official file.
      workers: the processes that make the records.
      **options: options of `VQAImages`.

    Returns:
      The paths `images` and `questions` (directories of records) and `answers` (file).

    Raises:
      SourceError: the download cannot be built.
    """
    from data_prep.vqa import VQAImages, VQAQuestions
    from data_prep.vqa_files import VQADownload, write_answers

    download = VQADownload(source, splits)
    vocabulary = data_dir / "vqa" / f"{corpus}_answers.txt"
    images = VQAImages(corpus, data_dir, download, **options)
    questions = VQAQuestions(corpus, data_dir, download, images.data_dir)
    for table in (images, questions):  # before the vocabulary is written
        is_built(table)
    if workers.shards > 1:
        run_builder(images, workers)
    if not write_answers(download, vocabulary, answers):
        print(f"{vocabulary}: not written, because neither --answers nor {source}/vqa/answers_vqa.txt exists")
    images, questions = run_builders(images, questions, workers=workers)
    return dict(images=images, questions=questions, answers=vocabulary)


# --- The command ------------------------------------------------------------------------------


def _scenes(args: argparse.Namespace) -> None:
    numbers = args.num_train, args.num_val, args.num_train
    build_scenes(args.data_dir, args.seed, *numbers, feature_width=args.features, workers=workers_of(args))


def _scene_tasks(args: argparse.Namespace) -> None:
    numbers = args.num_train, args.num_val, args.num_test
    build_scene_tasks(args.data_dir, args.seed, *numbers, args.features, workers=workers_of(args))


def _scene_kinds(args: argparse.Namespace) -> None:
    numbers = args.num_train, args.num_val, args.num_test
    build_scene_kinds(args.data_dir, args.seed, *numbers, args.features, workers=workers_of(args))


def _scene_questions(args: argparse.Namespace) -> None:
    numbers = args.num_train, args.num_val
    build_scene_questions(args.data_dir, args.seed, *numbers, args.features, workers=workers_of(args))


def _scene_explanations(args: argparse.Namespace) -> None:
    build_scene_explanations(args.data_dir, args.seed, args.num_train, args.num_val, workers_of(args))


def _captions(args: argparse.Namespace) -> None:
    from data_prep.caption_tables import open_tables, write_indices
    from data_prep.region_captions import RegionCaptions

    if args.no_images and not args.features:
        raise SourceError("--no_images without --features leaves neither images nor features; add --features")
    if args.grid and (args.features or args.attributes):
        option = "--features" if args.features else "--attributes"
        raise SourceError(f"{option} requires the regions of a detector, but --grid has none; leave one out")
    if args.grid and args.scores:
        raise SourceError("--scores requires the classes of a detector, but --grid has none; leave one out")
    source, splits = pathlib.Path(args.source), listed(args.splits)
    if args.detector:
        from data_prep.extract_regions import extract_tables  # it imports JAX
        extract_tables(open_tables(source, splits, args.answers), source, args.detector, args.num_threads)
    index = "grid" if args.grid else "regions" if args.regions else "frcnn"
    if args.grid or args.regions:
        with only_builder(pathlib.Path(args.data_dir)):
            write_indices(source, splits, index, args.regions, args.answers)
    builder = RegionCaptions(
        args.corpus, args.data_dir, args.source, tuple(args.splits.split(",")), args.dtype,
        args.features, not args.no_images, args.drop_unreadable, args.num_threads, index, args.attributes, args.answers,
        args.scores, args.other_captions,
    )  # fmt: skip
    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        run_builder(builder, workers_of(args))


def _vqa(args: argparse.Namespace) -> None:
    if not (args.images or args.features):
        raise SourceError("without --features and --images a model sees neither features nor images; give one or both")
    if args.answers and args.answers < 2:
        raise SourceError(f"--answers={args.answers} leaves no answer except <unk>; the official number is 3129")
    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        run_vqa(
            args.source, pathlib.Path(args.data_dir), args.corpus, listed(args.splits), args.answers, workers_of(args),
            regions=args.regions, features_tsv=listed(args.features_tsv), features=args.features,
            images=args.images, num_threads=args.num_threads, classes=args.classes,
        )  # fmt: skip


def _vcr(args: argparse.Namespace) -> None:
    from data_prep.vcr import VCRImages, VCRQuestions
    from data_prep.vcr_files import COCO_CATEGORIES, read_categories

    where, splits = (args.corpus, args.data_dir, args.source), listed(args.splits)
    categories = read_categories(args.categories) if args.categories else COCO_CATEGORIES
    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        images = VCRImages(*where, categories, splits, args.num_threads)
        run_builders(images, VCRQuestions(*where, splits), workers=workers_of(args))


def _refcoco(args: argparse.Namespace) -> None:
    from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
    from data_prep.refcoco_files import ReferDownload

    corpus = args.corpus or f"{args.dataset}_{args.split_by}"
    download = ReferDownload(args.source, args.dataset, args.split_by, listed(args.splits))
    where = corpus, args.data_dir, download
    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        images = RefCOCOImages(*where, args.annotations, args.proposals, args.num_threads)
        run_builders(images, RefCOCOExpressions(*where), workers=workers_of(args))


def _own(args: argparse.Namespace) -> None:
    from data_prep.own import build_own

    with only_builder(pathlib.Path(args.data_dir), workers_of(args)):
        build_own(
            args.source, args.data_dir, args.corpus, args.images, args.regions, args.detector, args.features,
            args.answers, args.positive, not args.no_images, args.num_threads, workers=workers_of(args),
            classes=args.classes,
        )  # fmt: skip


def _text(args: argparse.Namespace) -> None:
    from data_prep.text_corpus import TextCorpus

    sources = listed(args.source), listed(args.val_source)
    builder = TextCorpus(args.corpus, args.data_dir, *sources, args.val_fraction)
    with only_builder(pathlib.Path(args.data_dir)):
        run_builder(builder, workers_of(args))


COMMANDS = dict(
    scenes=_scenes, scene_tasks=_scene_tasks, scene_kinds=_scene_kinds, scene_questions=_scene_questions,
    scene_explanations=_scene_explanations, captions=_captions, conceptual_captions=_captions, vqa=_vqa, vcr=_vcr,
    refcoco=_refcoco, text=_text, own=_own,
) | PUBLIC_COMMANDS  # fmt: skip


class _Terminated(BaseException):
    """SIGTERM has come."""


def _terminate(*_) -> None:
    raise _Terminated


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    It is 2 after an error, which one line explains, 130 after Ctrl-C and 143 after SIGTERM."""
    args = parse_options(argv)
    interrupted = "stopped by {}; the same command builds the tables that " + str(args.data_dir) + " lacks"

    def work():
        if args.shard[1] > 1 and getattr(args, "detector", ""):
            raise SourceError("--shard and --detector exclude each other; first share data_prep.extract_regions")
        with local_places(args):
            try:
                COMMANDS[args.name](args)
            except ShareWritten as share:
                print(share)

    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        errors = SourceError, ValueError, OSError
        return run_command(work, ["data_prep.builder"], errors, interrupted.format("Ctrl-C"))
    except _Terminated:
        status = 143
    finally:
        signal.signal(signal.SIGTERM, before)
    print(interrupted.format("SIGTERM"), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
