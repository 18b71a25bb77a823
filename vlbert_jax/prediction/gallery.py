"""The searches of the prediction command: images of a gallery for a text, and texts of a file for an image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vlbert_jax.data.image_files import find_images
from vlbert_jax.files import read_lines
from vlbert_jax.prediction.output import load_models, say
from vlbert_jax.prediction.search import Found, ranked


def search_images(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what a command with --gallery or --texts finds as plain values; print it as well unless --json is given.

    Raises:
        ValueError, OSError: There is no image or text, or the weights are of another task.
    """
    if args.gallery and args.image:
        raise ValueError("--gallery takes texts, but not --image: to find texts for an image, give --texts=FILE.txt.")
    images = find_images([args.gallery]) if args.gallery else args.image
    texts = args.text if args.gallery else _lines(args.texts)
    model, _ = load_models(args)
    scores = model.similarity(images, texts)
    results = []
    if args.gallery:
        for number, text in enumerate(texts):
            best = ranked(images, scores[:, number], args.top)
            results.append(dict(text=text, images=_rows("image", best)))
    else:
        for number, image in enumerate(images):
            best = ranked(texts, scores[number], args.top)
            results.append(dict(image=image, texts=_rows("text", best)))
    for result in () if args.json else results:
        asked, rows = result.values()
        lines = [f"{row['probability']:6.1%}  {row['score']:7.2f}  {next(iter(row.values()))}" for row in rows]
        say("\n".join([asked, *lines]))
    return results


def _lines(path: str) -> list[str]:
    """Return the texts in a file, one a line."""
    try:
        texts = [line.strip() for line in read_lines(path) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--texts={path}: the file cannot be read as UTF-8 text ({error}).") from None
    if not texts:
        raise ValueError(f"--texts={path}: the file has no text; write one text per line.")
    return texts


def _rows(name: str, found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {name: str(one.name), "score": round(one.score, 4), "probability": round(one.probability, 4)} for one in found
    ]
