"""The command line of `data_prep.build`; its imports are fast, so that `--help` answers at once."""

from __future__ import annotations

import argparse

import vlbert_jax
from data_prep.parts import Workers, cores
from data_prep.refcoco_files import SPLITS as REFER_SPLITS
from data_prep.vcr_files import SPLITS as VCR_SPLITS
from vlbert_jax.files import required_path, user_path, user_paths

CLASSES = "store the best class of each region and its score, by which Oscar names regions and UNITER chooses them"


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Return the options; `name` is the command. Exits with status 2 after a usage error."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.build",
        description="Build the records of a corpus; `python -m data_prep.build NAME --help` lists its options.",
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    synthetic = _scenes, _scene_tasks, _scene_kinds, _scene_questions, _scene_explanations
    for add in (*synthetic, _captions, _vqa, _vcr, _refcoco, _text, _own, _public):
        add(commands)
    return parser.parse_args(argv)


def listed(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated option; none if it is empty."""
    return tuple(part for part in text.split(",") if part)


def _command(commands, name: str, description: str, *aliases: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=description, description=description, aliases=aliases)
    parser.add_argument(
        "--data_dir", type=required_path, default="data", metavar="FOLDER",
        help="folder or address (gs://, s3://) of the records; files and folders that the command reads may be at "
        "addresses, too (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--num_processes", type=_positive, default=cores(), metavar="N",
        help="processes that make records, which do not depend on N; a table of up to 256 images, or 20,000 texts, "
        "is built by one (default: the number of cores, %(default)s)",
    )  # fmt: skip
    parser.set_defaults(shard=(0, 1))
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, at least 1")
    return int(text)


def kept_scores(text: str) -> int:
    """Return how many class scores of a region are stored; 0 = all."""
    if text == "exact":
        return 0
    number = text.removeprefix("top")
    if not text.startswith("top") or not (number.isascii() and number.isdigit()) or int(number) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be exact, or topK such as top64, with K from 2 (a background, and an object)"
        )
    return int(number)


def share(text: str) -> tuple[int, int]:
    """Return (i, n) of an option i/n. Raises ArgumentTypeError."""
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} must be i/n with i from 0 to n - 1, such as 0/4")
    return int(number), int(of)


def workers_of(args: argparse.Namespace) -> Workers:
    """Return the processes that the options choose."""
    return Workers(args.num_processes, *args.shard)


def _download(parser: argparse.ArgumentParser, source: str, corpus: str, threads: str, default: str = "") -> None:
    """Add the options that all downloads with images share; `default` describes an empty `corpus`."""
    parser.add_argument("--source", type=required_path, required=True, help=source)
    parser.add_argument("--corpus", default=corpus, help=f"name of the corpus (default: {corpus or default})")
    parser.add_argument(
        "--num_threads", type=int, default=4, help=f"threads of a process that read {threads} (default: 4)"
    )
    parser.add_argument(
        "--shard", type=share, metavar="i/n",
        help="make only share i, from 0, of the records of images, on one of n machines with the same --data_dir; "
        "after all shares, the same command without --shard completes the corpus",
    )  # fmt: skip


def _scenes(commands) -> None:
    parser = _command(commands, "scenes", "synthetic scenes with captions and stories; no download")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--num_train", type=int, default=12_000, help="scenes and stories (default: %(default)s)")
    parser.add_argument("--num_val", type=int, default=1_000, help="scenes (default: %(default)s)")
    parser.add_argument("--features", type=int, default=0, metavar="WIDTH", help="also write region features")


def _scene_tasks(commands) -> None:
    parser = _command(commands, "scene_tasks", "VQA, VCR and RefCOCO+ about synthetic scenes; no download")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--num_train", type=int, default=3_000, help="scenes (default: %(default)s)")
    parser.add_argument("--num_val", type=int, default=500, help="scenes (default: %(default)s)")
    parser.add_argument("--num_test", type=int, default=300, help="scenes (default: %(default)s)")
    parser.add_argument("--features", type=int, default=0, metavar="WIDTH", help="also write region features for VQA")


def _scene_kinds(commands) -> None:
    about = "statements, hypotheses, captions, phrases and questions about synthetic scenes, and own data; no download"
    parser = _command(commands, "scene_kinds", about)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--num_train", type=int, default=3_000, help="scenes (default: %(default)s)")
    parser.add_argument("--num_val", type=int, default=500, help="scenes (default: %(default)s)")
    parser.add_argument("--num_test", type=int, default=500, help="scenes (default: %(default)s)")
    parser.add_argument("--features", type=int, default=0, metavar="WIDTH", help="also write region features")


def _scene_questions(commands) -> None:
    about = "captions and questions about synthetic scenes, and attributes, for pre-training; no download"
    parser = _command(commands, "scene_questions", about)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--num_train", type=int, default=6_000, help="scenes (default: %(default)s)")
    parser.add_argument("--num_val", type=int, default=500, help="scenes (default: %(default)s)")
    parser.add_argument(
        "--features", type=int, default=64, metavar="WIDTH", help="width of region features (default: %(default)s)"
    )


def _scene_explanations(commands) -> None:
    about = "long texts about synthetic scenes that give reasons, for pre-training; no download"
    parser = _command(commands, "scene_explanations", about)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--num_train", type=int, default=6_000, help="documents (default: %(default)s)")
    parser.add_argument("--num_val", type=int, default=300, help="documents (default: %(default)s)")


def _captions(commands) -> None:
    about = "images with captions: your own tables, or Conceptual Captions in the official layout"
    parser = _command(commands, "captions", about, "conceptual_captions")
    files = "folder with train_frcnn.json and val_frcnn.json; with an option of regions: train.tsv, val.tsv, images"
    _download(parser, files, "conceptual_captions", "images")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--detector", type=user_path, default="",
        help="weights of a detector: first find the regions of the images of the tables, or continue to",
    )  # fmt: skip
    choice.add_argument(
        "--regions", type=user_path, default="", metavar="FOLDER",
        help="or the regions of the images of all tables, which extract_regions wrote",
    )  # fmt: skip
    choice.add_argument(
        "--grid", action="store_true", help="or a grid of 3 x 3 cells; pre-train with --config.losses.mrc=False"
    )
    parser.add_argument("--splits", default="train,val", help="official splits (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="type of the class scores (default: float16)"
    )
    parser.add_argument(
        "--scores", type=kept_scores, default="exact", metavar="exact|topK",
        help="store all class scores, or the K largest of each region and the mean of the others, as top64; smaller "
        "records, with slightly other targets of hidden regions (default: exact)",
    )  # fmt: skip
    parser.add_argument("--features", action="store_true", help="store the region features of the detector")
    parser.add_argument("--attributes", action="store_true", help="store the scores of the detector's attributes")
    about = "store the answers of captions that are questions: a third column of the tables"
    parser.add_argument("--answers", action="store_true", help=about)
    about = "store with a caption the other captions of its image, for models that read two (VisualBERT)"
    parser.add_argument("--other_captions", action="store_true", help=about)
    parser.add_argument("--no_images", action="store_true", help="omit the images (with --features)")
    parser.add_argument("--drop_unreadable", action="store_true", help="skip items whose image cannot be read")


def _vqa(commands) -> None:
    parser = _command(commands, "vqa", "VQA v2: images with regions, questions, answers")
    _download(parser, "folder with vqa/, regions and images; see data_prep/vqa.py", "vqa_v2", "regions and images")
    parser.add_argument("--splits", default="", help="of train,val,test_dev,test (default: all with a question file)")
    parser.add_argument("--features", action="store_true", help="store the region features of the detector")
    parser.add_argument("--classes", action="store_true", help=CLASSES)
    parser.add_argument("--images", action="store_true", help="store the images of train2014, val2014, test2015")
    parser.add_argument(
        "--regions", type=user_paths, default="10-100ada",
        help="10-100ada, 36, or two folders TRAINVAL,TEST (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--features_tsv", type=user_paths, default="", help="tables of regions to read instead, comma-separated"
    )
    parser.add_argument(
        "--answers", type=int, default=0, metavar="N",
        help="create an answer vocabulary of N entries, 3129 in the official code (default: copy the official file)",
    )  # fmt: skip


def _vcr(commands) -> None:
    parser = _command(commands, "vcr", "Visual Commonsense Reasoning: images with objects, questions with choices")
    _download(parser, "folder with train.jsonl, ... and vcr1images.zip", "vcr", "images")
    parser.add_argument("--splits", default=",".join(VCR_SPLITS), help="official splits (default: %(default)s)")
    parser.add_argument(
        "--categories", type=user_path, default="", metavar="FILE",
        help="names of object categories, one per line (default: COCO's)",
    )  # fmt: skip


def _refcoco(commands) -> None:
    parser = _command(commands, "refcoco", "referring expressions: RefCOCO, RefCOCO+, RefCOCOg")
    source = "folder with refcoco+/, annotations/, train2014/; see data_prep/README.md"
    _download(parser, source, "", "images", "DATASET_SPLITBY")
    datasets, authors = (sorted({pair[i] for pair in REFER_SPLITS}) for i in range(2))
    parser.add_argument("--dataset", choices=datasets, default="refcoco+", help="(default: %(default)s)")
    parser.add_argument("--split_by", choices=authors, default="unc", help="author of the split (default: %(default)s)")
    parser.add_argument("--splits", default="", help="comma-separated (default: all of the dataset)")
    parser.add_argument(
        "--annotations", type=required_path, default="annotations/instances_train2014.json",
        help="file of all boxes, under the source (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--proposals", type=user_path, default="", metavar="FILE", help="the detector's boxes, under the source"
    )


def _text(commands) -> None:
    parser = _command(commands, "text", "documents as lines of text files")
    parser.add_argument(
        "--source", type=user_paths, required=True,
        help="text files in order, comma-separated; gzip, bzip2 and xz are decompressed",
    )  # fmt: skip
    parser.add_argument("--corpus", default="books_wikipedia", help="name of the corpus (default: %(default)s)")
    parser.add_argument(
        "--val_source", type=user_paths, default="", help="text files of the val split, comma-separated"
    )
    parser.add_argument(
        "--val_fraction", type=float, default=0.0, help="or this fraction of the lines, from the end (default: 0)"
    )


def _own(commands) -> None:
    parser = _command(commands, "own", "your own images and texts; docs/own_data.md describes the files")
    files = "folder with train.jsonl, val.jsonl, perhaps test.jsonl (or .csv, .tsv)"
    _download(parser, files, "", "images", "the folder's")
    parser.add_argument(
        "--images", type=user_path, default="", metavar="FOLDER",
        help="folder to which the paths of images are relative (default: the source)",
    )  # fmt: skip
    regions(parser)
    parser.add_argument(
        "--answers", type=int, default=0, metavar="N", help="entries of the vocabulary of answers (default: all)"
    )
    parser.add_argument(
        "--positive", default="", metavar="LABEL", help="label that AUROC is of (default: the second of two)"
    )


# command -> description, files in the source, splits
PUBLIC = dict(
    nlvr2=("NLVR2: sentences about two images", "data/, images/, util/", "train,dev,test1,test2"),
    snli_ve=("SNLI-VE: whether an image entails a sentence", "snli_ve_*.jsonl, flickr30k_images/", "train,dev,test"),
    hateful_memes=("Hateful Memes, or data in its form", "train.jsonl, ..., img/", "train, dev*, test*"),
    retrieval=(
        "retrieval and captioning: Karpathy's splits of Flickr30k and COCO", "dataset_*.json and the images",
        "train,val,test, and restval of COCO",
    ),
    gqa=(
        "GQA: compositional questions", "*_balanced_questions.json, images/",
        "train,val,testdev,test,challenge, each also with _all, and submission",
    ),
    vizwiz=("VizWiz: questions of blind people", "train.json, ..., train/, ...", "train,val,test"),
    ok_vqa=("OK-VQA: questions that need outside knowledge", "OpenEnded_mscoco_*.json, *2014/", "train,val"),
    entities=(
        "Flickr30k Entities: phrases of captions with boxes", "Sentences/, Annotations/, train.txt, ..., the images",
        "train,val,test",
    ),
    visual7w=("Visual7W: pointing questions", "dataset_v7w_pointing.json, images/", "train,val,test"),
)  # fmt: skip


def _public(commands) -> None:
    """Add the commands of public tasks, whose images and regions have the same options."""
    for name, (about, files, splits) in PUBLIC.items():
        parser = _command(commands, name, about)
        is_retrieval = name == "retrieval"
        source = f"folder with {files}; see data_prep/{name}.py"
        _download(parser, source, "" if is_retrieval else name, "images", "the dataset")
        parser.add_argument("--splits", default="", help=f"of {splits} (default: those whose file exists)")
        if is_retrieval:
            datasets = ("flickr30k", "coco")
            parser.add_argument("--dataset", choices=datasets, default=datasets[0], help="(default: %(default)s)")
        if name in ("gqa", "vizwiz", "ok_vqa"):
            parser.add_argument(
                "--answers", type=int, default=0, metavar="N", help="number of entries of the answer vocabulary"
                + (" (default: all)" if name == "gqa" else ", with <unk> (default: none is written)"),
            )  # fmt: skip
        regions(parser)
        parser.add_argument("--drop_missing", action="store_true", help="skip texts of which an image is missing")


def regions(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the regions of a table of images."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--grid", action="store_true", help="regions are a grid of 3 x 3 cells (default)")
    choice.add_argument(
        "--regions", type=user_path, default="", metavar="FOLDER", help="or those that extract_regions wrote"
    )
    choice.add_argument("--detector", type=user_path, default="", help="or weights of a detector, to find them now")
    parser.add_argument("--features", action="store_true", help="store the region features of the detector")
    parser.add_argument("--classes", action="store_true", help=CLASSES)
    parser.add_argument("--no_images", action="store_true", help="omit the images (with --features)")
