"""Scores of captions by pycocoevalcap, the code of the COCO captioning challenge.

    python -m vlbert_jax.tasks.caption.scores --annotations=captions_val2014.json --results=test.json

BLEU, METEOR, ROUGE-L and CIDEr, of captions that its PTB tokenizer has split. The tokenizer and METEOR run
Java. SPICE, which downloads further programs, is left out. Nothing replaces the library where it or Java is
missing: other tokenizers give other numbers under the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlbert_jax.command import run_command
from vlbert_jax.files import parse_json, user_file

REMEDY = "Captions are scored by pycocoevalcap (pip install 'vlbert_jax[captions]') and Java, such as the package "
REMEDY += "default-jre-headless."


def missing_programs() -> str:
    """Return which programs the scores lack, as a sentence with the remedy; "" if none."""
    lacking = [] if importlib.util.find_spec("pycocoevalcap") else ["the package pycocoevalcap"]
    lacking += [] if shutil.which("java") else ["the program java"]
    return f"{' and '.join(lacking).capitalize()} cannot be found. {REMEDY}" if lacking else ""


def caption_scores(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> dict[str, float]:
    """Return `bleu_1` to `bleu_4`, `meteor`, `rouge_l` and `cider`, as fractions; CIDEr is ten times a mean cosine.

    They are those of the images in `captions`: CIDEr counts documents among the references of these images.

    Args:
        captions: Image -> caption.
        references: Image -> its captions by people; further images are not read.

    Raises:
        ValueError: An image has no reference, or there is no caption.
        ImportError: A program is missing.
    """
    if not captions:
        raise ValueError("There is no caption to score.")
    if absent := [image for image in captions if not references.get(image)]:
        raise ValueError(f"{len(absent)} images have no reference captions, such as {absent[0]}.")
    if reason := missing_programs():
        raise ImportError(reason)

    def made(module: str, name: str, *arguments: int) -> Any:
        return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)(*arguments)

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the library prints
        tokenizer = made("tokenizer.ptbtokenizer", "PTBTokenizer")
        given = {image: [dict(caption=text)] for image, text in captions.items()}
        known = {image: [dict(caption=text) for text in references[image]] for image in captions}
        known, given = tokenizer.tokenize(known), tokenizer.tokenize(given)
        found: dict[str, Any] = {}
        for number, value in enumerate(made("bleu.bleu", "Bleu", 4).compute_score(known, given, verbose=0)[0], 1):
            found[f"bleu_{number}"] = value
        found["meteor"] = made("meteor.meteor", "Meteor").compute_score(known, given)[0]
        found["rouge_l"] = made("rouge.rouge", "Rouge").compute_score(known, given)[0]
        found["cider"] = made("cider.cider", "Cider").compute_score(known, given)[0]
    return {name: float(value) for name, value in found.items()}


def _read(path: Path) -> Any:
    """Return the value of a JSON file. Raises ValueError."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: the file is not JSON ({error}); write or download it again.") from None


def _pair(entry: Any) -> tuple[int, str]:
    """Return image_id and caption. Raises KeyError or TypeError."""
    if type(entry["image_id"]) is not int or not isinstance(entry["caption"], str):
        raise TypeError(f"{str(entry)[:80]} is not an image_id, an integer, and a caption, a text")
    return entry["image_id"], entry["caption"]


def read_references(path: Path) -> dict[int, list[str]]:
    """Return image_id -> captions of a file of annotations of COCO; raise ValueError where it is none."""
    found: dict[int, list[str]] = {}
    try:
        for entry in _read(path)["annotations"]:
            image, caption = _pair(entry)
            found.setdefault(image, []).append(caption)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no list `annotations` of image_id and caption ({error!r}).") from None
    return found


def read_results(path: Path) -> dict[int, str]:
    """Return image_id -> caption of a file of results; raise ValueError where it is none or names an image twice."""
    found: dict[int, str] = {}
    try:
        for entry in _read(path):
            image, caption = _pair(entry)
            if image in found:
                raise ValueError(f"{path} has two captions of image {image}.")
            found[image] = caption
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of image_id and caption ({error!r}).") from None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores of a file of results as JSON; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vlbert_jax.tasks.caption.scores", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for name in ("annotations", "results"):
        parser.add_argument(f"--{name}", type=user_file, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)

    def work() -> None:
        print(json.dumps(caption_scores(read_results(args.results), read_references(args.annotations)), indent=2))

    return run_command(work, errors=(ValueError, OSError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
