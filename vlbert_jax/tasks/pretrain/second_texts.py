"""The second part of a text in pre-training: names of the regions (Oscar), or a second caption (VisualBERT)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vlbert_jax.data.class_scores import are_distributions, best_classes
from vlbert_jax.data.examples import ImageLayout, check_stored
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.sibling_rules import cut_for_visualbert
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.tasks.layouts import names_of_regions


def names_of_classes(scores: Float[np.ndarray, "n c"], tokenizer: Tokenizer, layout: ImageLayout) -> list[int]:
    """Return the ids of the names of the best classes of regions, without those that have no distribution."""
    known = scores[are_distributions(scores)]
    return names_of_regions(dict(best_class=best_classes(known)[0] if len(known) else ()), tokenizer, layout)


def two_captions(record: dict, caption: Sequence[str], draws: Samples) -> tuple[Sequence[str], str]:
    """Return the first and the second caption; "" where the image has no other one.

    `caption` is that of the record, then the second is another one of the image; or it is that of another record, and
    then it is the second. Raises ValueError where the records have no such field.
    """
    check_stored(record, "other_captions", "other_captions", "data.second_caption", " to read one caption")
    if not len(others := record["other_captions"]):
        return caption, ""
    if caption is record["caption"]:
        return caption, others[int(draws.other * len(others))]  # no other record is chosen, so this number is free
    return record["caption"], " ".join(caption)


def cut_together(
    first: list[list[int]], second: list[list[int]], length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the words of two captions that VisualBERT keeps of a text of `length` with its three special tokens."""
    kept = cut_for_visualbert(_numbered(first), _numbered(second), length)
    return _by_word(kept[0]), _by_word(kept[1] or [])


def _numbered(words: list[list[int]]) -> list[tuple[int, int]]:
    """Return each token with the number of its word."""
    return [(number, token) for number, word in enumerate(words) for token in word]


def _by_word(numbered: list[tuple[int, int]]) -> list[list[int]]:
    words: dict[int, list[int]] = {}
    for number, token in numbered:
        words.setdefault(number, []).append(token)
    return list(words.values())
