"""Rules by which VL-BERT's siblings made sequences and chose regions, as in their code.

Masking is in `vlbert_jax/data/masking.py`, box geometry in `vlbert_jax/geometry.py`. A text with references
is a list of words and of lists of objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

Mixed = Sequence[str | Sequence[int]]  # words, and numbers of the objects that are referred to
IMAGE = "[IMAGE]"  # B2T2's token of the whole image
OBJECT = re.compile(r"\[OBJ-(\d+)\]")  # B2T2's token behind the name of an object
SLOTS = 4  # boxes of a B2T2 sequence


def kept_regions(confidences: Float[np.ndarray, "n"], threshold: float = 0.2, least: int = 10, most: int = 100) -> int:
    """Return how many of the regions, in falling order of confidence, UNITER keeps."""
    return min(max(least, int((confidences > threshold).sum())), most)


def cut_for_visualbert(first: list, second: list | None, length: int) -> tuple[list, list | None]:
    """Return the tokens of one or two texts that VisualBERT keeps of a sequence of `length`, special tokens counted.

    A single text loses its end. Of two texts both lose their beginning, and the second loses too much: the
    original code adds what the first one lost instead of subtracting it, so that nothing may be left of the second.
    """
    if second is None:
        return first[: length - 2], None
    over = len(first) + len(second) + 3 - length
    if over <= 0:
        return first, second
    lost = min((over + 1) // 2, max(len(first) - 32, 0))
    return first[lost:], second[over + lost :]


def words_of_regions(text: Mixed, offset: int) -> dict[int, list[int]]:
    """Return for each object the positions of the words that refer to it, as VisualBERT aligns them.

    A position is the number of the word plus `offset`, the position of the first word. The original code
    means the first token of that word, which differs once a word before it has several tokens; the
    published weights were trained with the numbers.
    """
    found: dict[int, list[int]] = {}
    number = offset
    for item in text:
        for obj in [item] if isinstance(item, str) else item:
            if not isinstance(obj, str):
                found.setdefault(obj, []).append(number)
            number += 1
    return found


def b2t2_tokens(text: Mixed, names: Sequence[str], tokenize: Callable[[str], list[str]]) -> list[str]:
    """Return the tokens of a text: an object is the tokens of its name and [OBJ-k]; "and" joins several."""
    tokens = []
    for item in text:
        if isinstance(item, str):
            tokens += tokenize(item)
            continue
        for place, obj in enumerate(item):
            tokens += (["and"] if place else []) + [*tokenize(names[obj]), f"[OBJ-{obj}]"]
    return tokens


def b2t2_cut(parts: Sequence[list[str]], limit: int) -> list[list[str]]:
    """Return the tokens of question, answer and perhaps rationale that B2T2 keeps, at most `limit` together.

    The longest part loses its end, the last one at ties.
    """
    parts = [list(part) for part in parts]
    while sum(map(len, parts)) > limit:
        max(reversed(parts), key=len).pop()
    return parts


def b2t2_sequence(parts: Sequence[list[str]]) -> tuple[list[str], list[int]]:
    """Return the tokens of a sequence and their segments: [CLS] [IMAGE] question [SEP] answer, rationale [SEP]."""
    first = ["[CLS]", IMAGE, *parts[0], "[SEP]"]
    second = [*(token for part in parts[1:] for token in part), "[SEP]"]
    return first + second, [0] * len(first) + [1] * len(second)


def box_slots(tokens: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the objects whose boxes a B2T2 sequence has, and for each token the slot of its box, -1 = none.

    There are four slots, for the first objects that the tokens [OBJ-k] name. Once the fourth is named, no
    later token carries a box, as in the original code.
    """
    objects: list[int] = []
    slots = [-1] * len(tokens)
    for place, token in enumerate(tokens):
        match = OBJECT.fullmatch(token)
        if match is None or len(objects) == SLOTS:
            continue
        obj = int(match[1])
        if obj not in objects:
            objects.append(obj)
        slots[place] = objects.index(obj)
    return objects, slots
