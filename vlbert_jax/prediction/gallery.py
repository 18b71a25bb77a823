"""The searches of the prediction command: images of a gallery for a text, and texts of a file for an image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vlbert_jax.data.examples import images_per_example
from vlbert_jax.data.image_files import find_images
from vlbert_jax.files import read_lines
from vlbert_jax.prediction.output import load_models, say
from vlbert_jax.prediction.search import Found, ranked


def search_images(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what a command with --gallery or --texts finds as plain values; print it as well unless --json is given.

    With --gallery, a query is a --text, or an --image with a --text for models of such queries.

    Raises:
        ValueError, OSError: There is no image or text, or the weights are of another task.
    """
    if args.gallery and len(args.image) not in (0, 1, len(args.text)):
        raise ValueError(
            f"--image goes with --text in a query; give one for all or one for each: there are {len(args.image)}, and "
            f"{len(args.text)} of --text."
        )
    images = find_images([args.gallery]) if args.gallery else args.image
    texts = args.text if args.gallery else _lines(args.texts)
    model, _ = load_models(args)
    results = []
    if args.gallery and args.image:
        model.require("similarity")
        if images_per_example(model.config) != 2:
            raise ValueError(
                f"{model.path} is not a model for queries of an image and a text, so --gallery takes no --image with "
                "it: to find texts for an image, give --texts=FILE.txt."
            )
        asked = args.image * len(texts) if len(args.image) == 1 else args.image
        for image, text in zip(asked, texts, strict=True):
            found = model.search((image, text), images, args.top)
            results.append(dict(image=image, text=text, images=_rows("image", found)))
        _print(results, args)
        return results
    scores = model.similarity(images, texts)
    if args.gallery:
        for number, text in enumerate(texts):
            best = ranked(images, scores[:, number], args.top)
            results.append(dict(text=text, images=_rows("image", best)))
    else:
        for number, image in enumerate(images):
            best = ranked(texts, scores[number], args.top)
            results.append(dict(image=image, texts=_rows("text", best)))
    _print(results, args)
    return results


def _print(results: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print what was found, unless --json is given."""
    for result in () if args.json else results:
        *asked, rows = result.values()
        lines = [f"{row['probability']:6.1%}  {row['score']:7.2f}  {next(iter(row.values()))}" for row in rows]
        say("\n".join([" + ".join(asked), *lines]))


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
