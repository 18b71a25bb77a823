"""Convert weights of BERT, VL-BERT, ResNet-101 and the detector, in and out.

    python -m vlbert_jax.convert SOURCE TARGET [options]

SOURCE, told by its content:
  BERT        a Hugging Face folder or hub name, pytorch_model.bin, model.safetensors; any size
  VL-BERT     an official .model file: pre-training, fine-tuned
  ResNet-101  resnet101-pt-vgbua-0000.model, torchvision's names, or the detector's .caffemodel
  detector    with --task=detector: a .caffemodel, a .pth of bottom-up-attention.pytorch, a detectron2 .pkl, Hugging
              Face's frcnn, folder or hub name; objects_vocab.txt and attributes_vocab.txt beside it or in --lists
  ours        a workdir, one checkpoint in it, or a folder that this tool wrote
TARGET, by its suffix or --format:
  DIR              orbax: a whole model of --task, what the source lacks newly drawn; for --config.init.checkpoint
                   Of --task=detector: the detector with its lists, for region extraction and prediction
  *.safetensors    the same with official names; of a ResNet its own, with torchvision's
  *.pt, *.model    pt (also .pth, .bin): the same as a PyTorch file that the official code loads
  --format=hf      a folder for Hugging Face's BertForPreTraining and BertModel: the text side

PyTorch files need `pip install 'vlbert_jax[convert]'`; safetensors, Caffe and our own checkpoints do not.
Examples:
  python -m vlbert_jax.convert bert-base-uncased/ bert_base
  python -m vlbert_jax.convert vl-bert-base-e2e.model vl_bert_base --dry-run
  python -m vlbert_jax.convert vl-bert-base-e2e.model start --task=TASK
  python -m vlbert_jax.convert resnet101_faster_rcnn_final.caffemodel resnet101.safetensors
  python -m vlbert_jax.convert resnet101_faster_rcnn_final.caffemodel detector --task=detector
  python -m vlbert_jax.convert workdirs/base_e2e vl-bert-mine.model
"""

import argparse
import logging
import sys
from pathlib import Path

import vlbert_jax
from vlbert_jax.tasks import TASKS

# The other imports are inside the functions: JAX takes two seconds to import, and --help needs none of it.

FORMATS = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".bin": "pt", ".model": "pt", "": "orbax"}
DTYPES = ("float32", "float16", "bfloat16")


# --- The command ------------------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", metavar="TARGET", type=Path)
    models = (*TASKS, "detector")
    parser.add_argument("--task", choices=models, help="the model to make; weights of pre-training become its start")
    parser.add_argument("--lists", metavar="DIR", help="of a detector: the folder of its two lists of names")
    parser.add_argument("--format", choices=("orbax", "safetensors", "pt", "hf"), help="else by TARGET's suffix")
    parser.add_argument("--dtype", choices=DTYPES, help="of the numbers written; else float32")
    parser.add_argument("--num_heads", type=int, help="attention heads, where no config.json tells; else columns / 64")
    surprises = parser.add_mutually_exclusive_group()
    surprises.add_argument("--strict", action="store_true", help="unknown tensors, NaN and infinity are errors too")
    surprises.add_argument("--partial", action="store_true", help="go on where the source lacks tensors it should have")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET")
    parser.add_argument("--dry-run", action="store_true", help="print the table and write nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    from vlbert_jax.weights import export
    from vlbert_jax.weights.conversion import _some, conversion_table, prepare_conversion, write_conversion
    from vlbert_jax.weights.read import not_finite

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        form, source = args.format or FORMATS.get(args.target.suffix), Path(args.source).expanduser()
        if form is None:
            raise ValueError(f"no format has the suffix {args.target.suffix!r}; choose one with --format")
        if args.target.exists() and not (args.overwrite or args.dry_run):
            raise FileExistsError(f"{args.target} exists; --overwrite replaces it")
        if source.exists() and source.resolve().is_relative_to(args.target.resolve()):
            raise FileExistsError(f"{args.target} is or holds the source; choose another target")
        if not export.may_replace(args.target):
            raise FileExistsError(f"{args.target} holds other files too and is not replaced; choose another target")
        if args.task == "detector":
            return _convert_detector(args, form)
        conversion = prepare_conversion(args.source, args.task, args.num_heads)
        if form == "hf" and conversion.source.kind == "resnet":
            raise ValueError(f"{args.source} is a ResNet; a Hugging Face BERT folder holds the text side of a model")
        print(conversion_table(conversion, form))
        if conversion.source.kind != "resnet" and not (args.num_heads or conversion.source.num_heads):
            heads = conversion.config.model.encoder.num_heads
            print(f"warning: {heads} attention heads assumed: no config.json tells (--num_heads)", file=sys.stderr)
        if conversion.absent and not args.partial:
            raise ValueError(
                f"{args.source} lacks {len(conversion.absent)} tensors: {_some(conversion.absent, 20)}; "
                "--partial goes on without them"
            )
        surprises = [f"{name} is unknown" for name in conversion.unknown]
        surprises += [f"{name} has NaN or infinite numbers" for name in not_finite(conversion.tensors)]
        if surprises and args.strict:
            raise ValueError(f"{args.source}: {_some(surprises, 20)}")
        for surprise in surprises:
            print(f"warning: {surprise}", file=sys.stderr)
        if not args.dry_run:
            write_conversion(conversion, args.target, form, args.dtype)
            print(f"written: {args.target} ({form})")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _convert_detector(args: argparse.Namespace, form: str) -> int:
    from vlbert_jax.detector.weights import detector_summary, list_files, read_detector, write_detector
    from vlbert_jax.weights.conversion import _cast, _some
    from vlbert_jax.weights.read import not_finite

    if form == "hf":
        raise ValueError("--format=hf is for BERT; a detector goes into a folder, .safetensors or .pth")
    tensors, lists = read_detector(args.source), list_files(args.source, args.lists)
    print(detector_summary(args.source, tensors, lists))
    if bad := not_finite(tensors):
        surprise = f"NaN or infinite numbers in {_some(bad)}"
        if args.strict:
            raise ValueError(f"{args.source}: {surprise}")
        print(f"warning: {surprise}", file=sys.stderr)
    if not args.dry_run:
        write_detector(_cast(tensors, args.dtype), lists, args.target, form)
        print(f"written: {args.target} ({form})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
