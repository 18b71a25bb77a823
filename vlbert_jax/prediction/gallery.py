"""The searches of the prediction command: images of a gallery for a text, and texts of a file for an image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vlbert_jax.data.examples import images_per_example
from vlbert_jax.files import read_lines
from vlbert_jax.prediction.expected import expectation_of
from vlbert_jax.prediction.output import load_models, say
from vlbert_jax.prediction.search import Found, ranked
from vlbert_jax.weights.shipped import notice_of


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
    images = args.gallery or args.image
    texts = args.text if args.gallery else _lines(args.texts)
    model, _ = load_models(args)
    notes = dict(notice=notice_of(args.checkpoint), features=expectation_of(model.config))
    notes = {field: note for field, note in notes.items() if note}
    boxes, results = args.boxes or None, []
    if args.gallery and args.image:
        model.require("similarity")
        if images_per_example(model.config) != 2:
            raise ValueError(
                f"{model.path} is not a model for queries of an image and a text, so --gallery takes no --image with "
                "it: to find texts for an image, give --texts=FILE.txt."
            )
        count = len(args.image)
        of_queries, of_gallery = (boxes[:count], boxes[count:]) if boxes else (None, None)
        asked = [*zip(args.image, model.look(args.image, of_queries), strict=True)]
        for (image, picture), text in zip(asked * (len(texts) if count == 1 else 1), texts, strict=True):
            found = model.search((picture, text), images, args.top, of_gallery)
            results.append(dict(image=image, text=text, images=_rows("image", found)))
        return _printed(results, notes, args)
    scores = model.similarity(images, texts, boxes)
    if args.gallery:
        for number, text in enumerate(texts):
            best = ranked(images, scores[:, number], args.top)
            results.append(dict(text=text, images=_rows("image", best)))
    else:
        for number, image in enumerate(images):
            best = ranked(texts, scores[number], args.top)
            results.append(dict(image=image, texts=_rows("text", best)))
    return _printed(results, notes, args)


def _printed(results: list[dict[str, Any]], notes: dict[str, str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the notes about the model and what was found, unless --json is given; return what was found with them."""
    lines = list(notes.values())
    for *asked, rows in (result.values() for result in results):
        lines.append(" + ".join(asked))
        lines += [f"{row['probability']:6.1%}  {row['score']:7.2f}  {next(iter(row.values()))}" for row in rows]
    if not args.json:
        say("\n".join(lines))
    return [result | notes for result in results]


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
