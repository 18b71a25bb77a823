"""Convert weights of BERT, VL-BERT, its siblings, ResNet-101 and the detector, in and out.

    python -m vlbert_jax.convert SOURCE TARGET [options]

SOURCE is detected by its content:
  BERT        a Hugging Face folder or hub name, pytorch_model.bin, model.safetensors; any size
  VL-BERT     an official .model file: pre-trained, fine-tuned
  a sibling   VisualBERT (Hugging Face folder or name, .th), UNITER .pt, Oscar and VinVL folders,
              LXMERT (Hugging Face folder or name, .pth), ViLBERT and 12-in-1 .bin
  ResNet-101  resnet101-pt-vgbua-0000.model, torchvision's names, or the detector's .caffemodel
  detector    with --task=detector: a .caffemodel, a .pth of bottom-up-attention.pytorch, a
              detectron2 .pkl, Hugging Face's frcnn, folder or hub name; objects_vocab.txt and
              attributes_vocab.txt are next to it or in --lists
  vlbert_jax  a workdir, one checkpoint in it, a folder that this tool wrote, hf:USER/NAME of the
              Hugging Face hub, an address of these (gs://, s3://), or a model that ships with the
              package, such as demo-pretrain
TARGET is chosen by its suffix or by --format:
  DIR              orbax: a complete model of --task, for --config.init.checkpoint; parameters that
                   the source lacks are initialized. With --task=detector: the detector with its
                   lists, for region extraction and prediction
  *.safetensors    the same with official names; a ResNet keeps torchvision's names
  *.pt, *.model    pt (also .pth, .th, .bin): the same as a PyTorch file that the official code
                   loads; VisualBERT in .th and LXMERT in .pth have the names of their authors
  --format=hf      a folder for Hugging Face's BertForPreTraining, BertModel and AutoTokenizer: the
                   text model, and the tokenizer of the source or of --vocab; of VisualBERT and
                   LXMERT, the whole model for its class

TARGET may be an address (gs://, s3://), where the files appear when all are written.

Each folder gets a model card, README.md. --push=USER/NAME uploads the folder, and nothing else, to the
Hugging Face hub (`hf auth login` first).

PyTorch files need PyTorch. The smallest one that does:
  pip install torch --index-url https://download.pytorch.org/whl/cpu
Other formats do not need it.
Examples:
  python -m vlbert_jax.convert bert-base-uncased/ bert_base
  python -m vlbert_jax.convert vl-bert-base-e2e.model vl_bert_base --dry_run
  python -m vlbert_jax.convert vl-bert-base-e2e.model start --task=TASK
  python -m vlbert_jax.convert resnet101_faster_rcnn_final.caffemodel resnet101.safetensors
  python -m vlbert_jax.convert resnet101_faster_rcnn_final.caffemodel detector --task=detector
  python -m vlbert_jax.convert workdirs/base_e2e vl-bert-mine.model
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import vlbert_jax
from vlbert_jax.command import run_command
from vlbert_jax.files import is_address, required_path, user_file, user_path, with_addresses
from vlbert_jax.tasks import RENAMED, TASKS

if TYPE_CHECKING:
    from vlbert_jax.data.tokenizer import Tokenizer
    from vlbert_jax.weights.conversion import Conversion

# JAX takes two seconds to import and --help needs none of it, so other imports are in the
# functions.

DETECTOR = "detector"
FORMATS = {".safetensors": "safetensors", "": "orbax"} | dict.fromkeys((".pt", ".pth", ".th", ".bin", ".model"), "pt")
DTYPES = ("float32", "float16", "bfloat16")
MOST_NAMED = 20  # tensors that a message names


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    parser.add_argument("source", type=required_path, metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", type=target_path)
    models = (*TASKS, DETECTOR)
    parser.add_argument(
        "--task", type=lambda name: RENAMED.get(name, name), choices=models,
        help="model to make; pre-trained weights become its start (default: the source's)",
    )  # fmt: skip
    parser.add_argument("--lists", type=user_path, metavar="DIR", help="folder of a detector's two lists of names")
    parser.add_argument(
        "--format", choices=("orbax", "safetensors", "pt", "hf"), help="format to write (default: by TARGET's suffix)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="type of the values to write (default: float32)")
    parser.add_argument(
        "--num_heads", type=int, help="attention heads, for a source without config.json (default: hidden size / 64)"
    )
    parser.add_argument(
        "--vocab", type=user_path, metavar="vocab.txt", help="tokenizer for --format=hf (default: the source's)",
    )  # fmt: skip
    tolerance = parser.add_mutually_exclusive_group()
    tolerance.add_argument("--strict", action="store_true", help="treat unknown tensors, NaN and infinity as errors")
    tolerance.add_argument("--partial", action="store_true", help="accept a source that lacks tensors")
    parser.add_argument(
        "--push", metavar="USER/NAME", help="upload the folder TARGET to the Hugging Face hub; new ones are private"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the table and write nothing")
    return parser.parse_args(argv)


def target_path(text: str) -> Path | str:
    """Return the path of a target, or its address as it is."""
    return text if is_address(text) else user_file(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 after an error of one line, or 130 after Ctrl-C."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    work, interrupted = (lambda: write_weights(args)), f"stopped by Ctrl-C; {args.target} is unchanged"
    return run_command(work, ["vlbert_jax.weights.export"], interrupted=interrupted)


def write_weights(args: argparse.Namespace) -> None:
    """Convert the source, and upload the target if that is asked for.

    Raises:
        ValueError, OSError: The arguments contradict each other, or a file cannot be used.
    """
    form, replace = choose_format(Path(args.target), args.format), args.overwrite or args.dry_run
    if args.vocab and form != "hf":
        raise ValueError("--vocab is for --format=hf; other formats hold no tokenizer")
    if args.push is not None:
        check_upload(args, form)
    convert = convert_detector if args.task == DETECTOR else convert_model
    with local_target(args, replace) as args.target, full_disk(args.target):
        convert(args, form)
        uploaded = upload(args.target, args.push) if args.push and not args.dry_run else ""
    if not args.dry_run:
        print(f"written: {with_addresses(str(args.target))} ({form})")
    if uploaded:
        print(f"uploaded: {uploaded}; in vlbert_jax its name is hf:{args.push}")


@contextlib.contextmanager
def local_target(args: argparse.Namespace, replace: bool) -> Iterator[Path]:
    """Yield the target, or where it is at an address a path on local disk, which is stored there at the end."""
    if not is_address(args.target):
        check_target(Path(args.source), args.target, replace)
        yield args.target
        return
    from vlbert_jax.storage.target import stored_at  # folders need nothing of it
    from vlbert_jax.weights.export import WRITTEN

    with stored_at(args.target, replace, WRITTEN) as path:
        yield path


def choose_format(target: Path, form: str | None) -> str:
    """Return the format to write: `form`, or without it the one of the target's suffix."""
    form = form or FORMATS.get(target.suffix)
    if form is None:
        raise ValueError(f"{target} has the suffix {target.suffix!r}, which is not of a known format; give --format")
    return form


def check_target(source: Path, target: Path, replace: bool) -> None:
    """Raise FileExistsError if writing the target would delete files that it must not."""
    from vlbert_jax.weights.export import may_replace

    if target.exists() and not replace:
        raise FileExistsError(f"{target} exists; choose another target, or replace it with --overwrite")
    if source.exists() and source.resolve().is_relative_to(target.resolve()):
        raise FileExistsError(f"{target} is or contains the source; choose another target")
    if not may_replace(target):
        raise FileExistsError(f"{target} contains other files and is not replaced; choose another target")


def check_upload(args: argparse.Namespace, form: str) -> None:
    """Raise ValueError where the target cannot be uploaded."""
    from vlbert_jax.weights.hub import check_push

    if form not in ("orbax", "hf"):
        raise ValueError(f"--push uploads a folder with its model card, but {args.target} is a file; name a folder")
    check_push(args.push)


def upload(target: Path, name: str) -> str:
    """Upload what `convert` wrote to a repository of the Hugging Face hub, and return its address."""
    from vlbert_jax.weights.export import WRITTEN
    from vlbert_jax.weights.hub import push_folder

    print(f"uploading {target} to {name}", flush=True)
    return push_folder(target, name, WRITTEN)


@contextlib.contextmanager
def full_disk(target: Path) -> Iterator[None]:
    """Turn the errors of a full disk, whose class depends on the library, into one OSError that names the target."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            raise OSError(f"no space left on device while writing {target}; free some space and try again") from error
        raise


def convert_model(args: argparse.Namespace, form: str) -> None:
    """Convert weights of BERT, VL-BERT or ResNet-101."""
    from vlbert_jax.data.tokenizer import write_tokenizer
    from vlbert_jax.weights.conversion import (
        conversion_table,
        hugging_face_class,
        prepare_conversion,
        write_conversion,
    )
    from vlbert_jax.weights.family_heads import heads_not_read
    from vlbert_jax.weights.read import not_finite
    from vlbert_jax.weights.unstated import unstated

    conversion = prepare_conversion(args.source, args.task, args.num_heads)
    if form == "hf" and conversion.source.kind == "resnet":
        raise ValueError(f"{args.source} is a ResNet, but --format=hf writes a text model; choose another format")
    if form == "hf" and conversion.source.kind == "sibling":
        hugging_face_class(args.source, conversion.task, conversion.architecture)
    print(conversion_table(conversion, form))
    warn_of_assumed_heads(conversion, args.num_heads)
    heads = heads_not_read(conversion.found.unused, conversion.architecture)
    if heads and conversion.found.missing:
        print(
            f"warning: a model for {conversion.task} does not read the head {name_some(heads)} of {args.source}; its "
            "own is initialized, and needs fine-tuning",
            file=sys.stderr,
        )
    if form == "pt" and (lost := unstated(conversion)):
        print(
            f"warning: a PyTorch file has no config, so {args.target} will be read without {name_some(lost)}; write "
            ".safetensors or a folder, which keep the config",
            file=sys.stderr,
        )
    if conversion.absent and not args.partial:
        raise ValueError(
            f"{args.source} lacks {len(conversion.absent)} tensors: {name_some(conversion.absent)}; --partial "
            "initializes them"
        )
    surprises = [f"{name} is unknown" for name in conversion.unknown]
    surprises += [f"{name} has NaN or infinite values" for name in not_finite(conversion.tensors)]
    report_surprises(args.source, surprises, args.strict)
    beside = form == "orbax" and conversion.source.vocab  # a converted folder keeps the vocabulary of its source
    tokenizer = find_tokenizer(conversion, args.vocab) if form == "hf" or beside else None
    if not args.dry_run:
        add_files = functools.partial(write_tokenizer, tokenizer) if tokenizer else None
        write_conversion(conversion, args.target, form, args.dtype, add_files)


def find_tokenizer(conversion: Conversion, vocab: str | None) -> Tokenizer | None:
    """Return the tokenizer at `vocab`, or without it that of the source; None, with a warning, where it has none.

    Raises:
        ValueError, OSError: the tokenizer does not fit the weights, or cannot be read.
    """
    from vlbert_jax.data.tokenizer import load_tokenizer
    from vlbert_jax.weights.shipped import locate_weights
    from vlbert_jax.weights.stored_config import own_vocabularies

    source, here = conversion.source.path, locate_weights(conversion.source.path).expanduser()
    data = (conversion.source.config or {}).get("data", {})
    places = [Path(place) for place in (own_vocabularies(source).get("vocab"), data.get("vocab")) if place]
    places += [Path(data["data_dir"], data["vocab"])] if data.get("vocab") and data.get("data_dir") else []
    places += [Path(conversion.source.vocab)] if conversion.source.vocab else []
    if conversion.source.kind == "bert":
        places.append(here if here.is_dir() else here.parent)
    names = ("", "vocab.txt", "tokenizer.json")  # the place itself, or a file in it
    found = vocab or next((str(place) for place in places if any((place / name).is_file() for name in names)), None)
    if found is None and conversion.source.kind == "bert" and not here.exists():
        found = source  # a name of the Hugging Face hub
    if found is None:
        print(f"warning: {source} has no tokenizer, so none is written; --vocab=vocab.txt adds one", file=sys.stderr)
        return None
    return load_tokenizer(found, conversion.config.model.encoder.vocab_size)


def convert_detector(args: argparse.Namespace, form: str) -> None:
    """Convert a complete detector."""
    from vlbert_jax.detector.weights import detector_summary, list_files, read_detector, write_detector
    from vlbert_jax.weights.export import cast_tensors
    from vlbert_jax.weights.read import not_finite

    if form == "hf":
        raise ValueError(
            f"{args.source} is a detector, but --format=hf writes a text model; choose a folder, .safetensors or .pth"
        )
    tensors, lists = read_detector(args.source), list_files(args.source, args.lists)
    print(detector_summary(args.source, tensors, lists))
    report_surprises(args.source, [f"{name} has NaN or infinite values" for name in not_finite(tensors)], args.strict)
    if not args.dry_run:
        write_detector(cast_tensors(tensors, args.dtype), lists, args.target, form)


def warn_of_assumed_heads(conversion: Conversion, num_heads: int | None) -> None:
    """Print a warning if neither the source nor the user gives the number of attention heads."""
    if conversion.source.kind in ("bert", "vlbert") and not (num_heads or conversion.source.num_heads):
        heads = conversion.config.model.encoder.num_heads
        print(
            f"warning: {conversion.source.path} has no config.json with the number of attention heads; {heads} are "
            "assumed, --num_heads sets another number",
            file=sys.stderr,
        )


def report_surprises(source: str, surprises: Sequence[str], strict: bool) -> None:
    """Print a warning per surprise, or raise ValueError with all of them if `strict` is set."""
    if surprises and strict:
        raise ValueError(f"{source}: {name_some(surprises)}")
    for surprise in surprises:
        print(f"warning: {surprise}", file=sys.stderr)


def name_some(items: Sequence[str]) -> str:
    """Return the first items, separated by commas, and the number of the others."""
    more = f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
    return ", ".join(items[:MOST_NAMED]) + more


if __name__ == "__main__":
    sys.exit(main())
