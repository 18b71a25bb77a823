"""Masking of words and regions for pre-training."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int

# --- Masking ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Samples:
    """The random numbers of one example. Uniform numbers are in [0, 1)."""

    flip: float  # mirrored if below the flip probability
    relationship: float  # its own caption if below 0.5, where the task is on
    other: float  # which other record's caption if not: a fraction of their number
    words: Float64[np.ndarray, "w"]  # uniform, per basic word
    replacements: Int[np.ndarray, "p"]  # a random WordPiece per piece of the text
    regions: Float64[np.ndarray, "n"]  # uniform, per box (not the whole image)


def draw_samples(
    rng: np.random.Generator, length: int, num_regions: int, ordinary_ids: Int[np.ndarray, "v"]
) -> Samples:
    """All draws of one example of at most `length` words and pieces.

    Replacements come from `ordinary_ids`. The official code draws from the whole vocabulary: [PAD] there
    makes a hole in the text, [unused] pieces occur nowhere else.
    """
    return Samples(
        flip=rng.random(),
        relationship=rng.random(),
        other=rng.random(),
        words=rng.random(length),
        replacements=rng.choice(ordinary_ids, length),
        regions=rng.random(num_regions),
    )


def mask_words(
    words: list[list[int]], draws: Samples, probability: float, mask_id: int
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Whole-word masking: (ids, labels) of the pieces, label -1 = not asked for; `words` are piece ids.

    A word is asked for with `probability`; of those, 80 % become [MASK], 10 % random pieces, 10 % stay
    (official `random_word_wwm`). Raises ValueError if there are fewer draws than words or pieces.
    """
    num_pieces = sum(len(word) for word in words)
    if len(words) > len(draws.words) or num_pieces > len(draws.replacements):
        raise ValueError(f"{len(words)} words of {num_pieces} pieces, draws for {len(draws.words)} words")
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
    return ids, labels


def mask_regions(draws: Samples, probability: float) -> tuple[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """(asked, hidden) per box: asked with `probability`, hidden in 90 % of these (`random_mask_region`)."""
    asked = draws.regions < probability
    return asked, asked & (draws.regions / max(probability, 1e-12) < 0.9)
