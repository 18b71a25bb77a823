"""Masking of words and regions for pre-training.

Sampling is separate from its use: `draw_samples` makes all random numbers of an example, and everything
else is a function of them, so that a test can replay the random numbers of the official code.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int


@dataclasses.dataclass(frozen=True)
class Samples:
    """The random numbers of one example; uniform ones are in [0, 1)."""

    flip: float  # uniform; the image is mirrored below the flip probability
    relationship: float  # uniform; below 0.5 the image keeps its own caption
    other: float  # uniform; which other record the caption comes from, as a fraction of their number
    words: Float64[np.ndarray, "w"]  # uniform, per basic word
    replacements: Int[np.ndarray, "p"]  # a random token id per token of the text
    regions: Float64[np.ndarray, "n"]  # uniform, per box (not the whole image)
    region: float = 0.0  # uniform; the box that is selected where one must be, as a fraction of their number
    # Uniform; the record and the box of it whose feature a box may get, as fractions of their numbers.
    swaps: Float64[np.ndarray, "m 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))


def draw_samples(
    rng: np.random.Generator, length: int, num_regions: int, ordinary_ids: Int[np.ndarray, "v"]
) -> Samples:
    """Return all random numbers of an example.

    Args:
        rng: Generator of the example.
        length: Largest number of words and of tokens.
        num_regions: Number of boxes, without the whole image.
        ordinary_ids: Token ids that may replace a word. The official code samples from the whole
            vocabulary, where [PAD] makes a hole in the text and [unused] tokens occur nowhere else.
    """
    return Samples(
        flip=rng.random(),
        relationship=rng.random(),
        other=rng.random(),
        words=rng.random(length),
        replacements=rng.choice(ordinary_ids, length),
        regions=rng.random(num_regions),
        region=rng.random(),
        swaps=rng.random((num_regions, 2)),
    )


def mask_words(
    words: list[list[int]], draws: Samples, probability: float, mask_id: int, least_one: bool = False
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Mask whole words, and return (ids, labels) of their tokens; label -1 = not to be predicted.

    A word is selected with `probability`. Of the selected words 80 % become [MASK], 10 % random tokens,
    and 10 % stay (`random_word_wwm` of the official code). Words of one token each are the rule of UNITER
    and VisualBERT, which mask every token for itself.

    Args:
        words: Token ids of each word.
        draws: Random numbers of the example.
        probability: Share of words to select.
        mask_id: Token id of [MASK].
        least_one: Whether the first word becomes [MASK] where none is selected (UNITER).

    Raises:
        ValueError: There are fewer random numbers than words or tokens.
    """
    num_pieces = sum(len(word) for word in words)
    if len(words) > len(draws.words) or num_pieces > len(draws.replacements):
        raise ValueError(f"{len(words)} words of {num_pieces} tokens, but random numbers for {len(draws.words)} words")
    ids = np.empty(num_pieces, np.int32)
    labels = np.full(num_pieces, -1, np.int32)
    at = 0
    for word, uniform in zip(words, draws.words.tolist(), strict=False):
        here = slice(at, at + len(word))
        at = here.stop
        ids[here] = word
        if uniform >= probability:
            continue
        labels[here] = word
        share = uniform / probability
        if share < 0.8:
            ids[here] = mask_id
        elif share < 0.9:
            ids[here] = draws.replacements[here]
    if least_one and words and (labels < 0).all():
        first = slice(0, len(words[0]))
        ids[first], labels[first] = mask_id, words[0]
    return ids, labels


def mask_regions(
    draws: Samples, probability: float, hidden_share: float = 0.9, least_one: bool = False
) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Return (selected, hidden) per box: selected with `probability`, a share of these hidden (`random_mask_region`).

    With `least_one` a box is selected where no other is (UNITER, which hides all that it selects).
    """
    asked = draws.regions < probability
    hidden = asked & (draws.regions / max(probability, 1e-12) < hidden_share)
    if least_one and len(asked) and not asked.any():
        forced = int(draws.region * len(asked))
        asked[forced] = hidden[forced] = True
    return asked, hidden


def swapped_regions(
    draws: Samples, probability: float, hidden_share: float, swapped_share: float
) -> Int[np.ndarray, "k"]:
    """Return the selected boxes that get the feature of another image's box; hidden boxes do not.

    LXMERT hides 80 % of the selected boxes, swaps 10 % and leaves 10 % as they are.
    """
    place = draws.regions / max(probability, 1e-12)
    selected = draws.regions < probability
    return np.flatnonzero(selected & (place >= hidden_share) & (place < hidden_share + swapped_share))
