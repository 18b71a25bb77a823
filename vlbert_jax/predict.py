"""Ask a trained model about pictures of your own.

    python -m vlbert_jax.predict --checkpoint=PATH --image=photo.jpg [--image=...] QUESTIONS [options]

PATH is a workdir, one checkpoint in it, or any weights that `python -m vlbert_jax.convert` knows. QUESTIONS are
texts for the task of the model (see the options), or
  nothing                                   the regions that are found; needs no checkpoint
Each may be given several times and is asked of every picture. --attention=PAGE.html shows where each layer and head
looks: open it in any browser.

Regions come from --detector=PATH (see vlbert_jax.detector), or from --boxes=FILE.json for each picture: rows
x1 y1 x2 y2 in its pixels, an object with "boxes" and perhaps "labels" and "features", or the official file of an image.
Without either they are the whole image and a 3 x 3 grid. A detector of the published size describes 300 proposals, most
of the time that an answer takes on a CPU; --proposals=75 takes half of it and finds other, fewer regions. Whoever asks
often sets JAX_COMPILATION_CACHE_DIR=FOLDER: what a command compiles is kept there for the next.

Examples:
  python -m vlbert_jax.predict --checkpoint=workdirs/demo --image=photo.jpg --caption="a [MASK] ball" --out=ball.png
  python -m vlbert_jax.predict --image=photo.jpg --detector=detector/ --out=regions.png
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import vlbert_jax
from vlbert_jax.detector.options import Settings
from vlbert_jax.tasks import TASKS

# The other imports are inside the functions: JAX takes two seconds to import, and --help needs none of it.


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    several = dict(action="extend", nargs="+", default=[])
    parser.add_argument("--checkpoint", help="the trained model")
    parser.add_argument("--image", required=True, metavar="FILE", **several)
    for option in text_options():
        uses = [f"{task.title}: {task.help}" for task in TASKS.values() if task.option == option]
        parser.add_argument(option, metavar="TEXT", help="; ".join(uses), **several)
    parser.add_argument("--choices", metavar="TEXT", **several)
    parser.add_argument("--boxes", metavar="FILE.json", help="regions, a file for each picture", **several)
    parser.add_argument("--detector", metavar="PATH", help="what finds the regions")
    usual = Settings().proposals_after
    parser.add_argument("--proposals", type=int, default=usual, metavar="N", help="that it chooses from (%(default)s)")
    parser.add_argument("--out", metavar="PICTURE.png", type=Path, help="with boxes and answers; numbered if several")
    parser.add_argument("--attention", metavar="PAGE.html", type=Path, help="where words and regions look")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--vocab", default="", metavar="vocab.txt", help="in place of the run's config.data.vocab")
    parser.add_argument("--answers", default="", metavar="FILE", help="in place of the run's config.data.answers")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="in place of the run's config.data.data_dir")
    # Behind "=" argparse takes one value only, and calls the second of --image=a.jpg b.jpg unrecognized.
    lists = tuple(f"{option}=" for option in ("--image", "--choices", "--boxes", *text_options()))
    return parser.parse_args([part for arg in argv for part in (arg.split("=", 1) if arg.startswith(lists) else [arg])])


def text_options() -> list[str]:
    """Return the options that take the texts of a task."""
    return list(dict.fromkeys(task.option for task in TASKS.values()))


def texts_of(args: argparse.Namespace) -> list[str]:
    """Return all texts that the user gave."""
    return [text for option in text_options() for text in getattr(args, option.removeprefix("--"))]


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for what can be told before anything is loaded."""
    from vlbert_jax.visualization.drawing import SUFFIXES

    texts = args.question + args.expression + args.caption
    if texts and not args.checkpoint:
        raise ValueError("a question needs --checkpoint; without it only the regions are found")
    if args.boxes and len(args.boxes) != len(args.image):
        raise ValueError(f"{len(args.image)} pictures, but {len(args.boxes)} files in --boxes: one for each")
    with_choices = {task.option for task in TASKS.values() if task.takes_choices}
    if args.choices and not any(getattr(args, option.removeprefix("--")) for option in with_choices):
        raise ValueError(f"--choices needs the {' or '.join(with_choices)} that they answer")
    if args.attention and not texts:
        raise ValueError(f"--attention needs a text: {', '.join(text_options())}")
    if args.proposals < 1:
        raise ValueError(f"--proposals={args.proposals}: one at least")
    if args.out and args.out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out={args.out}: the name of a picture ends in one of {', '.join(SUFFIXES)}")
    for path in filter(None, (args.out, args.attention)):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    from vlbert_jax.prediction.output import predict_images, say

    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        check_arguments(args)
        results = predict_images(args)
        if args.json:
            say(json.dumps(results, indent=2, ensure_ascii=False))
    except (ValueError, OSError) as error:
        if os.environ.get("VLBERT_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
