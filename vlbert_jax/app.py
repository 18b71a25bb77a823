"""Open a local web page on which trained models answer about an image.

    python -m vlbert_jax.app [--checkpoint=PATH ...] [--detector=PATH] [options]

Drop an image on the page, draw or delete boxes, ask, and see where each layer and head of the model looks
for each word. A tab for each checkpoint offers what the task of its model answers. Without --checkpoint
these are the small demonstration models that ship with the package: they know synthetic scenes only, and
the page opens with one.

Each PATH of --checkpoint is a workdir, one checkpoint in it, any weights that `python -m vlbert_jax.convert`
reads, or the name of a shipped model. Regions come from --detector=PATH; without it they are a 3 x 3 grid,
and boxes that are drawn replace them. The server is reachable from this machine only. It needs Gradio:
pip install 'vlbert_jax[app]'. Ctrl-C ends it.

Examples:
  python -m vlbert_jax.app
  python -m vlbert_jax.app --checkpoint=workdirs/first --checkpoint=workdirs/second --detector=detector/
"""

import argparse
import importlib.util
import os
import socket
import sys
import threading

import vlbert_jax
from vlbert_jax.command import log_warnings, run_command
from vlbert_jax.compiled import keep_programs
from vlbert_jax.detector.options import RULES, add_arguments
from vlbert_jax.files import user_path
from vlbert_jax.memory import keep_freed_memory
from vlbert_jax.weights.shipped import shipped_names

# The other imports are inside the functions: JAX takes two seconds to import, and --help needs none of it.

HOST = "127.0.0.1"  # the page has no password, so other machines cannot reach it
INSTALL = "pip install 'vlbert_jax[app]'"


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vlbert_jax {vlbert_jax.__version__}")
    shipped = ", ".join(shipped_names())
    parser.add_argument(
        "--checkpoint", type=user_path, action="append", metavar="PATH", help=f"a model; default: {shipped}"
    )
    add_arguments(parser)
    path = dict(type=user_path, default="")
    parser.add_argument("--vocab", metavar="vocab.txt", help="replaces config.data.vocab of the runs", **path)
    parser.add_argument("--answers", metavar="FILE", help="replaces config.data.answers of the runs", **path)
    parser.add_argument("--data_dir", metavar="DIR", help="replaces config.data.data_dir of the runs", **path)
    parser.add_argument("--port", type=int, metavar="N", help="port of the server; default: the first free from 7860")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for mistakes that are visible before anything is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"The page needs Gradio, which is not installed: {INSTALL}")
    if args.proposals < 1:
        raise ValueError(f"--proposals is {args.proposals}; it must be at least 1.")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; it must be from 1 to 65535.")
    if args.port is not None:
        try:
            socket.create_server((HOST, args.port)).close()
        except OSError as error:
            raise ValueError(f"--port is {args.port}, which cannot be used ({error.strerror}); leave it out.") from None


def start(args: argparse.Namespace) -> str:
    """Load the models, start the server in a thread, and return its address.

    Raises:
        ValueError, OSError: A model cannot be loaded, or no port is free.
    """
    # Gradio would report its use to its authors, and newer versions keep every answer in the browser.
    for setting in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"):
        os.environ.setdefault(setting, "False")
    from vlbert_jax.detector.detect import load_detector
    from vlbert_jax.web.models import ServedModel

    finder = None
    if args.detector:
        print(f"loading {args.detector}", file=sys.stderr)
        finder = load_detector(args.detector, RULES[args.rules](proposals_after=args.proposals))
    models, options = [], dict(vocab=args.vocab, answers=args.answers, data_dir=args.data_dir)
    for path in args.checkpoint or sorted(shipped_names(), reverse=True):
        print(f"loading {path}", file=sys.stderr)
        models.append(ServedModel(vlbert_jax.load(path, detector=finder, **options)))
    from vlbert_jax.web.page import build_page, serve  # it imports Gradio

    return serve(build_page(models, finder), HOST, args.port)


def serve_until_stopped(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError, OSError: As `check_arguments` and `start` do.
    """
    check_arguments(args)
    try:
        print(f"The page is at {start(args)} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0 after Ctrl-C, or 2 after an error, which one line explains."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    log_warnings()
    keep_programs()
    keep_freed_memory()
    return run_command(lambda: serve_until_stopped(args), ["vlbert_jax.web.models"])


if __name__ == "__main__":
    sys.exit(main())
