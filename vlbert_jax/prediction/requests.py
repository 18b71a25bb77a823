"""What a user asks about images, one request per answer, and the batches that answer them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlbert_jax.batch import Arrays, Batch, Example, make_batch

MOST = 8  # examples of a batch; smaller batches have 1, 2 or 4, so that four programs answer any list


class Request(NamedTuple):
    """One text about one image."""

    image: Any
    text: str
    choices: Sequence[str]
    boxes: Any


def requests_of(image: Any, text: Any, choices: Any = (), boxes: Any = None) -> tuple[list[Request], bool]:
    """Return one request per answer, and whether an image or a text was a list.

    Args:
        image: One image, or a list of them.
        text: One text, or a list of them. Two lists go together entry by entry.
        choices: Texts to choose from; with several requests, also one list of texts for each.
        boxes: Regions of one image; of a list of images a list, None = no boxes.

    Raises:
        ValueError: The lengths of the lists differ, a text is no string, or it is empty.
    """
    lists = {name: value for name, value in dict(image=image, text=text).items() if _is_list(value)}
    count = len(next(iter(lists.values()))) if lists else 1
    if _is_list(choices) and any(_is_list(entry) for entry in choices):
        lists["choices"] = choices
    elif not _is_list(choices):
        raise ValueError(f"choices must be a list of texts, not {choices!r}")
    if "image" in lists and boxes is not None:
        if not _is_list(boxes):
            raise ValueError("a list of images takes a list of boxes: one entry for each image, or None")
        lists["boxes"] = boxes
    lengths = {name: len(value) for name, value in lists.items()}
    if any(length != count for length in lengths.values()):
        raise ValueError(f"the lists have different lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
    columns = [
        lists.get(name, [value] * count)
        for name, value in dict(image=image, text=text, choices=choices, boxes=boxes).items()
    ]
    requests = [Request(*row) for row in zip(*columns, strict=True)]
    for each in [text for request in requests for text in (request.text, *request.choices)]:
        if not isinstance(each, str):
            raise ValueError(f"a text must be a string, not {each!r} of type {type(each).__name__}")
    if not all(request.text.strip() for request in requests):
        raise ValueError("the text is empty")
    return requests, bool(lists.keys() & {"image", "text"})


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def in_batches(examples: Sequence[Example], targets: type[Arrays]) -> Iterator[tuple[list[int], Batch]]:
    """Yield the numbers of at most `MOST` examples of equal shapes, and their batch.

    Copies of the last example fill a batch up to a power of two.
    """
    alike = defaultdict(list)
    for number, example in enumerate(examples):
        alike[tuple((name, np.shape(value)) for name, value in example.items())].append(number)
    for numbers in alike.values():
        for start in range(0, len(numbers), MOST):
            part = numbers[start : start + MOST]
            size = 1 << (len(part) - 1).bit_length()
            filled = [examples[number] for number in part + part[-1:] * (size - len(part))]
            yield part, make_batch({name: np.stack([e[name] for e in filled]) for name in filled[0]}, targets)
