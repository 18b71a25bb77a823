"""Ask a trained model about images.

    python -m vlbert_jax.predict --checkpoint=PATH --image=photo.jpg [--image=...] TEXTS [options]

PATH is a workdir, one checkpoint in it, any weights that `python -m vlbert_jax.convert` reads, hf:USER/NAME
of the Hugging Face hub, an address of these (gs://, s3://), or the name of a small demonstration model that
ships with the package; --checkpoint below lists them. TEXTS are questions, expressions or captions, as the
task of the model requires; see the options. Without a text the command prints the regions, and needs no
checkpoint. Each text is asked of every image.
--image takes files, folders, patterns ("*.jpg", quoted or expanded by the shell), and http or https
addresses. @FILE in place of a text stands for the lines of a UTF-8 file, as in
--question @questions.txt; @@ begins a text with @.
A model for retrieval scores how well a --text fits an image; with --gallery=FOLDER it finds the images that
fit a text best, and with --texts=FILE.txt the lines that fit an image best. A model of queries of an image and
a text takes both, --image and --text, with --gallery.
--attention=PAGE.html shows the attention of every layer and head in a web page.

Regions come from --detector=PATH, or from a file --boxes=FILE.json for each image: rows x1 y1 x2 y2 in
its pixels, an object with "boxes" and optionally "labels" and "features", or the file of the official
code for an image. --boxes=FOLDER stands for the file FOLDER/NAME.json of each image NAME.jpg. Without either
they are the whole image and a 3 x 3 grid. A detector of the published size describes 300 proposals, which is
most of the time of an answer on a CPU; --proposals=75 halves that time and finds fewer regions. Compiled
programs are kept in ~/.cache/vlbert_jax for the next command; JAX_COMPILATION_CACHE_DIR=FOLDER names
another place.

Examples:
  python -m vlbert_jax.predict --checkpoint=demo-pretrain --image=examples/scene.jpg --boxes=examples/scene.json \\
      --caption "the purple [MASK]"
  python -m vlbert_jax.predict --checkpoint=workdirs/demo --image=photo.jpg --caption="a [MASK] ball" --out=ball.png
  python -m vlbert_jax.predict --checkpoint=workdirs/run --image=photos/ --question @questions.txt --json
  python -m vlbert_jax.predict --image=photo.jpg --detector=detector/ --out=regions.png
"""

import argparse
import json
import os
import pathlib
import re
import sys

import vlbert_jax
from vlbert_jax.command import log_warnings, run_command
from vlbert_jax.compiled import keep_programs
from vlbert_jax.detector.options import add_arguments
from vlbert_jax.files import read_lines, user_file, user_path
from vlbert_jax.memory import keep_freed_memory
from vlbert_jax.tasks import TASKS
from vlbert_jax.weights.shipped import shipped_names

# The other imports are inside the functions: JAX takes two seconds to import, and --help needs none of it.


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    several = dict(action="extend", nargs="+", default=[])
    parser.add_argument("--checkpoint", type=user_path, help=f"the model; shipped: {', '.join(shipped_names())}")
    parser.add_argument("--head", default="", help="second head of a task in 12-in-1: gqa (questions), snli_ve (texts)")
    parser.add_argument("--image", type=user_path, metavar="FILE", **several)
    for option in text_options():
        uses = [f"{task.title}: {task.help}" for task in TASKS.values() if task.option == option]
        if all(task.takes_text for task in TASKS.values() if task.option == option):
            parser.add_argument(option, metavar="TEXT", help="; ".join(uses), **several)
        else:
            parser.add_argument(option, action="store_const", const=["captions"], default=[], help="; ".join(uses))
    parser.add_argument("--choices", metavar="TEXT", **several)
    for option, use in further_options().items():
        is_image = option.startswith("--image")
        kind: dict = dict(type=user_path, metavar="FILE") if is_image else dict(metavar="TEXT")
        parser.add_argument(option, help=use, **kind, **several)
    help_of_gallery = "images to search for --text, or for --image with --text"
    parser.add_argument("--gallery", type=user_path, metavar="FOLDER", help=help_of_gallery)
    parser.add_argument("--texts", type=user_path, metavar="FILE.txt", help="texts, one a line, to search for --image")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="best candidates of a search to print")
    parser.add_argument(
        "--boxes", type=user_path, metavar="FILE.json", help="regions: a file for each image, or a folder", **several
    )
    add_arguments(parser)
    parser.add_argument("--out", metavar="IMAGE.png", type=user_file, help="image with boxes and answers; numbered")
    parser.add_argument(
        "--attention", metavar="PAGE.html", type=user_file, help="web page of the attention; numbered"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    path = dict(type=user_path, default="")
    parser.add_argument("--vocab", metavar="vocab.txt", help="replaces config.data.vocab of the run", **path)
    parser.add_argument("--answers", metavar="FILE", help="replaces config.data.answers of the run", **path)
    parser.add_argument("--data_dir", metavar="DIR", help="replaces config.data.data_dir of the run", **path)
    # argparse takes only one value after "=" and rejects the second of --image=a.jpg b.jpg, so "=" is split off.
    lists = tuple(f"{option}=" for option in ("--image", "--choices", "--boxes", *text_options(), *further_options()))
    return parser.parse_args([part for arg in argv for part in (arg.split("=", 1) if arg.startswith(lists) else [arg])])


def text_options() -> list[str]:
    """Return the options that take the texts of a task."""
    return list(dict.fromkeys(task.option for task in TASKS.values() if task.option))


def further_options() -> dict[str, str]:
    """Return the options that only some tasks take, with their help."""
    return {option: use for task in TASKS.values() for option, use in task.options}


def texts_of(args: argparse.Namespace) -> list[str]:
    """Return all texts that the user gave."""
    return [text for option in text_options() for text in getattr(args, option.removeprefix("--"))]


def complete_arguments(args: argparse.Namespace) -> None:
    """Replace folders and patterns by the files in them, and @FILE by the lines of the file, in place.

    Raises:
        ValueError: there is no such image or file, the file has no lines, or nothing is sought in a gallery.
    """
    from vlbert_jax.data.image_files import find_images

    if args.gallery and not args.text:
        raise ValueError("--gallery needs the --text to search for.")
    gallery = [args.gallery] if args.gallery else []
    args.image, args.image2, args.gallery = (
        find_images(given) if given else [] for given in (args.image, args.image2, gallery)
    )
    if len(args.boxes) == 1 and os.path.isdir(args.boxes[0]):
        args.boxes = boxes_of(images_of(args), args.boxes[0])
    for option in (*text_options(), "--choices", "--text2", "--phrases"):
        name = option.removeprefix("--")
        setattr(args, name, [line for text in getattr(args, name) for line in lines_of(text, option)])


def images_of(args: argparse.Namespace) -> list[str]:
    """Return all images that the user gave, in the order of their files of boxes."""
    return [*args.image, *args.image2, *args.gallery]


def boxes_of(images: list[str], folder: str) -> list[str]:
    """Return the file of each image in a folder of boxes: NAME.json of the image NAME.jpg.

    Raises:
        ValueError: there is no such file, or two images would have the same one.
    """
    paths = [os.path.join(folder, f"{pathlib.PurePath(image).stem}.json") for image in images]
    owners: dict[str, str] = {}
    for path, image in zip(paths, images, strict=True):
        if not os.path.isfile(path):
            raise ValueError(f"--boxes={folder}: there is no file {path}, which would have the boxes of {image}.")
        if owners.setdefault(path, image) != image:
            raise ValueError(f"--boxes={folder}: {path} would be of {owners[path]} and of {image}; rename one of them.")
    return paths


def lines_of(text: str, option: str) -> list[str]:
    """Return the texts that one value of an option stands for: itself, or with @FILE the lines that are not empty."""
    if not text.startswith("@") or text.startswith("@@"):
        return [text.removeprefix("@")]
    try:
        lines = read_lines(user_path(text[1:]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{option} {text}: the file {text[1:]} cannot be read as UTF-8 text ({error}); "
            "@@ begins a text that starts with @"
        ) from None
    if texts := [line.strip() for line in lines if line.strip()]:
        return texts
    raise ValueError(f"{option} {text}: the file {text[1:]} has no text; give one text per line")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for mistakes that are visible before anything is loaded."""
    from vlbert_jax.visualization.drawing import SUFFIXES

    texts = texts_of(args)
    if not args.gallery and not args.image:
        raise ValueError("Give --image=FILE, or --gallery=FOLDER with --text.")
    if args.top < 1:
        raise ValueError(f"--top is {args.top}; it must be at least 1.")
    if (texts or args.texts) and not args.checkpoint:
        raise ValueError("A text needs --checkpoint; without it only the regions are found.")
    if args.head and not args.checkpoint:
        raise ValueError("--head needs the --checkpoint whose head it names.")
    images = images_of(args)
    if args.boxes and len(args.boxes) != len(images):
        raise ValueError(
            f"There are {len(images)} images but {len(args.boxes)} files in --boxes; give one for each image."
        )
    for option, given, firsts in (("--text2", args.text2, args.text), ("--image2", args.image2, args.image)):
        lonely = given and not args.text and (option == "--text2" or texts or not args.checkpoint)
        if len(given) not in (0, 1, len(firsts)) or lonely:
            name = option.rstrip("2")
            raise ValueError(
                f"{option} goes with --text; give one for all or one for each {name}: there are {len(given)}, and "
                f"{len(firsts)} of {name}."
            )
    with_choices = {task.option for task in TASKS.values() if task.takes_choices}
    if args.choices and not any(getattr(args, option.removeprefix("--")) for option in with_choices):
        raise ValueError(f"--choices needs the {' or '.join(with_choices)} that they answer.")
    if args.phrases and not args.expression:
        raise ValueError("--phrases needs the --expression that is their sentence.")
    if args.attention and (args.image2 or args.text2 or args.phrases):
        raise ValueError("--attention shows one text about one image: leave out --image2, --text2 and --phrases.")
    if args.attention and not texts:
        raise ValueError(f"--attention needs a text: {', '.join(text_options())}.")
    if args.proposals < 1:
        raise ValueError(f"--proposals is {args.proposals}; it must be at least 1.")
    if args.out and args.out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out is {args.out}; its suffix must be one of {', '.join(SUFFIXES)}.")
    for path in filter(None, (args.out, args.attention)):
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}.")
        if path.is_dir():
            raise ValueError(f"{path} cannot be written: it is a folder; give the path of a file.")


def with_flags(message: str) -> str:
    """Return a message of the Python interface with the options of the command in place of its arguments."""
    return re.sub(r"(?<![\w./-])(vocab|answers|data_dir|detector|boxes)=", r"--\1=", message)


def answer(args: argparse.Namespace) -> None:
    """Print what the arguments ask for.

    Raises:
        ValueError, OSError: The arguments or a file that they name cannot be used.
    """
    from vlbert_jax.prediction.gallery import search_images
    from vlbert_jax.prediction.output import predict_images, say

    complete_arguments(args)
    check_arguments(args)
    results = search_images(args) if args.gallery or args.texts else predict_images(args)
    if args.json:
        say(json.dumps(results, indent=2, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 after an error, which one line explains, or 130 after Ctrl-C."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    log_warnings()
    if sys.stderr.isatty() and (args.checkpoint or args.detector):
        print("loading the model; the first image then takes some seconds to compile", file=sys.stderr)
    keep_programs()
    keep_freed_memory()
    return run_command(lambda: answer(args), ["vlbert_jax.prediction.output"], reworded=with_flags)


if __name__ == "__main__":
    sys.exit(main())
