"""What a user asks about images, one request per answer, and the batches that answer them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlbert_jax.batch import Arrays, Batch, Example, make_batch
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.tasks import Registered

LONGEST = 120  # characters of a text in a message
MOST = 8  # examples of a batch; smaller batches have 1, 2 or 4, so that four programs answer any list


class Request(NamedTuple):
    """One text about one image."""

    image: Any
    text: str
    choices: Sequence[str]
    boxes: Any
    text2: str = ""  # second text, or a phrase of the text
    image2: Any = None


def needs_of(request: Request, task: Registered, config) -> str:
    """Return what is wrong with the parts of a request to a model of a task, as a predicate; "" = nothing."""
    if bool(request.choices) != task.takes_choices:
        return "takes no choices" if request.choices else "needs texts to choose from"
    if request.text2 and not {"--text2", "--phrases"} & dict(task.options).keys():
        return "takes no second text"
    pairs = config.data.get("images_per_example", 1) == 2
    if pairs != (request.image2 is not None):
        return "needs a second image (--image2 of the command)" if pairs else "takes no second image"
    return ""


def requests_of(
    image: Any, text: Any, choices: Any = (), boxes: Any = None, text2: Any = "", image2: Any = None,
    text_optional: bool = False,
) -> tuple[list[Request], bool]:  # fmt: skip
    """Return one request per answer, and whether an image or a text was a list.

    Args:
        image: One image, or a list of them.
        text: One text, or a list of them. Two lists go together entry by entry.
        choices: Texts to choose from; with several requests, also one list of texts for each.
        boxes: Regions of one image; of a list of images a list, None = no boxes.
        text2: Second text, or a list of them.
        image2: Second image, or a list of them; None = none.
        text_optional: Whether a text may be empty.

    Raises:
        ValueError: The lengths of the lists differ, a text is no string, or it is empty.
    """
    asked = dict(image=image, text=text, text2=text2, image2=image2)
    lists = {name: value for name, value in asked.items() if _is_list(value)}
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
        for name, value in dict(
            image=image, text=text, choices=choices, boxes=boxes, text2=text2, image2=image2
        ).items()
    ]
    requests = [Request(*row) for row in zip(*columns, strict=True)]
    for each in [text for request in requests for text in (request.text, request.text2, *request.choices)]:
        if not isinstance(each, str):
            raise ValueError(f"a text must be a string, not {each!r} of type {type(each).__name__}")
    if not text_optional and not all(request.text.strip() for request in requests):
        raise ValueError("the text is empty")
    return requests, bool(lists.keys() & asked.keys())


def cut_texts(
    request: Request, task: Registered, example_of: Callable[[Request], Example], tokenizer: Tokenizer
) -> list[str]:
    """Return the texts of a request that were cut, shortened for a message.

    The candidates of a search are in sequences of their own. Texts that share one are cut at the longest.
    """
    texts = [request.text, *filter(None, (request.text2, *request.choices))]
    if request.choices and not task.takes_choices:
        cut = [text for text in texts if example_of(request._replace(text=text, choices=()))["text_cut"]]
    else:
        cut = [max(texts, key=lambda text: len(tokenizer.encode(text).ids))]
    return [text if len(text) <= LONGEST else f"{text[: LONGEST - 20]} ... {text[-15:]}" for text in cut]


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
