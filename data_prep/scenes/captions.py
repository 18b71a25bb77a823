"""Captions and stories about synthetic scenes."""

from __future__ import annotations

import string

import numpy as np

from data_prep.scenes import glyphs
from data_prep.scenes.world import COLORS, LARGE, PLACE_NAMED, PLACES, SMALL, Thing, category_weights, relation

MAX_CAPTION_WORDS = 16
VOCAB_SIZE = 256

# Each line has 8 to 30 words; {a} and {b} are things such as "the red ball", {p} is the place.
OPENINGS = (
    "once {a} and {b} were together {p} .",
    "{p} we see {a} and not far from it {b} .",
    "this is a story of {a} and {b} {p} .",
)
SENTENCES = (
    "{a} is above {b} and stays there .",
    "{a} is below {b} but nobody sees it .",
    "then {a} moves to {b} and stops beside it .",
    "{a} is large but {b} is small .",
    "{a} looks at {b} and likes it very much .",
    "a child sees {a} and takes it to {b} .",
    "now {a} and {b} are beside each other {p} .",
    "{a} was far from {b} but now it is near .",
    "the child likes {a} more than {b} and says so .",
    "{a} is striped , {b} is dotted , and both are old .",
    "in the end {a} and {b} go home {p} .",
)


def write_caption(things: tuple[Thing, ...], place: str, rng: np.random.Generator) -> tuple[str, ...]:
    """Return a caption of at most 16 words.

    It names every thing once, in random order, each with its relation to the one before.

    Args:
      things: the things of the scene.
      place: a key of `PLACES`.
      rng: source of randomness.
    """
    order = [things[i] for i in rng.permutation(len(things))]
    words, extras = [], []
    for i, thing in enumerate(order):
        if i:
            clear = rng.random() >= 0.3
            words.append(clear and relation(order[i - 1], thing) or "and")
        words.append("the")
        if rng.random() < 0.2 and not SMALL <= thing.extent <= LARGE:
            extras.append(len(words))
            words.append("small" if thing.extent < SMALL else "large")
        if rng.random() < 0.5 and thing.pattern != "plain":
            extras.append(len(words))
            words.append(thing.pattern)
        words += [thing.color, thing.category]
    if rng.random() < PLACE_NAMED:
        words += PLACES[place][0].split()
    for i in reversed(extras[: max(0, len(words) - MAX_CAPTION_WORDS)]):
        del words[i]
    return tuple(words)


def write_story(rng: np.random.Generator) -> list[str]:
    """Return a document: 3 to 5 lines of 8 to 30 words about two or three things."""
    place = tuple(PLACES)[rng.integers(len(PLACES))]
    categories = rng.choice(glyphs.CATEGORIES, int(rng.integers(2, 4)), replace=False, p=category_weights(place))
    names = [f"the {rng.choice(COLORS)} {category}" for category in categories]
    lines = [str(rng.choice(OPENINGS)), *rng.choice(SENTENCES, int(rng.integers(2, 5)), replace=False)]
    story = []
    for line in lines:
        a, b = rng.permutation(names)[:2]
        story.append(str(line).format(a=a, b=b, p=PLACES[place][0]))
    return story


def vocabulary() -> list[str]:
    """Return the lines of vocab.txt.

    They are the special ids of BERT, punctuation, the words of the world, letters and unused
    entries."""
    sentences = [*OPENINGS, *SENTENCES, *(name for name, _ in PLACES.values()), *COLORS, *glyphs.CATEGORIES]
    text = " ".join([*sentences, "small large striped dotted plain and above below beside"])
    words = dict.fromkeys(w for w in text.split() if w.isalpha() and len(w) > 1)
    head = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    body = [*".,'-!?", *words, *letters, *("##" + letter for letter in letters)]
    unused = [f"[unused{99 + i}]" for i in range(VOCAB_SIZE - len(head) - len(body))]
    return head + body + unused
