"""Questions, answers and rationales about the synthetic scenes, in the files of VCR.

    What color is [0] ?    [0] is red .                 because [1] is above [2] and [2] is blue .
    What color are [0,1] ? [0] is red and [1] is blue . because [0] is striped and [1] is below [2]
    .
    Where is [0] ?         [0] is above the red [1] .   because [0] is green and [2] is white .
    What is red ?          [2] is red .                 because [0] is small and [2] is beside [1] .

[i] is a tag, the list [i] in the file; a model reads its category and sees its region. A rationale
states two further facts of the scene, which neither the question nor the answer reveals.

The text of the four choices carries no information. With one fact, the choices are the true color
and three others. With two facts, each is true or false in all four combinations, so that no choice
has more in common with the others. The false colors differ from the true ones and from all stated
ones, because no two things share color and category. "What is red ?" requires four things. The best
score without the image is 0.25 for answers and for rationales (measured: 0.26 and 0.24 of 2,000
questions with a linear model of words, pairs of words and shared words of the choices, learned from
5,000). With boxes but without the image, relations and sizes give 0.32 and 0.39."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np

from data_prep.scenes import world
from data_prep.scenes.corpus import jitter
from data_prep.scenes.crowded import CorpusScene, another, size_word

TASK = 3  # number of the random stream
QUESTIONS_PER_IMAGE = 3  # at most
KIND_WEIGHTS = dict(color=4, relation=2, pattern=2, size=1)  # of the facts of rationales
SEEN = ("color", "pattern")  # kinds that boxes do not reveal; a rationale has one of them
OPPOSITES = (("above", "below"), ("striped", "dotted"), ("small", "large"))


@dataclasses.dataclass(frozen=True)
class Fact:
    """A true statement about a scene: [things[0]] is `right` ([things[1]])."""

    kind: str  # color, pattern, size or relation
    things: tuple[int, ...]
    right: str  # the true word

    def tokens(self, word: str) -> list:
        """Return the tokens of the statement with another word."""
        first, *second = ([i] for i in self.things)
        return [first, "is", word, *second]


def facts(scene: world.Scene) -> list[Fact]:
    """Return all facts that are visibly different from their opposites."""
    things, found = scene.things, []
    for i, thing in enumerate(things):
        found.append(Fact("color", (i,), thing.color))
        if thing.pattern != "plain":
            found.append(Fact("pattern", (i,), thing.pattern))
        if word := size_word(thing):
            found.append(Fact("size", (i,), word))
    for i, j in itertools.permutations(range(len(things)), 2):
        if (word := world.relation(things[i], things[j])) in ("above", "below"):
            found.append(Fact("relation", (i, j), word))
    return found


def wrong_words(chosen: list[Fact], stated: set[Fact], scene: world.Scene, rng: np.random.Generator) -> list[str]:
    """Return a false word for each fact.

    False colors differ from each other, from the true ones and from the stated ones.

    Args:
      chosen: the facts.
      stated: facts that the question or the answer has stated.
      scene: the scene.
      rng: source of randomness.
    """
    words: list[str] = []
    for fact in chosen:
        if fact.kind == "color":
            taken = {f.right for f in [*chosen, *stated]} | set(words)
            free = tuple(color for color in world.COLORS if color not in taken)
            words.append(another(fact.right, free, [t.color for t in scene.things if t.color in free], rng))
        else:
            (word,) = (a if b == fact.right else b for a, b in OPPOSITES if fact.right in (a, b))
            words.append(word)
    return words


def combinations(
    chosen: list[Fact], stated: set[Fact], scene: world.Scene, rng: np.random.Generator, write
) -> list[list]:
    """Return four token lists, the true one first.

    Args:
      chosen: two facts.
      stated: facts that the question or the answer has stated.
      scene: the scene.
      rng: source of randomness.
      write: function of a word for each fact, true or false, that returns the tokens.
    """
    (a, b), (wrong_a, wrong_b) = (f.right for f in chosen), wrong_words(chosen, stated, scene, rng)
    return [write(first, second) for first, second in ((a, b), (wrong_a, b), (a, wrong_b), (wrong_a, wrong_b))]


def compatible(a: Fact, b: Fact) -> bool:
    """Return whether neither fact reveals the other, and their colors differ.

    No two things share color and category, so a stated color would reveal something of other
    things."""
    mirrored = a.kind == b.kind == "relation" and set(a.things) == set(b.things)
    return a != b and not mirrored and not (a.kind == b.kind == "color" and a.right == b.right)


def _color(scene: world.Scene, known: list[Fact], rng):
    fact = _pick([f for f in known if f.kind == "color"], rng)
    others = rng.permutation([c for c in world.COLORS if c != fact.right])
    near = sorted(others, key=lambda c: c not in {t.color for t in scene.things} or rng.random() < 0.4)
    choices = [[*fact.tokens(str(word)), "."] for word in (fact.right, *near[:3])]
    return ["What", "color", "is", [fact.things[0]], "?"], choices, {fact}


def _colors(scene: world.Scene, known: list[Fact], rng):
    a = _pick([f for f in known if f.kind == "color"], rng)
    b = _pick([f for f in known if f.kind == "color" and compatible(a, f)], rng)
    if b is None:
        return None

    def write(first, second):
        return [*a.tokens(first), "and", *b.tokens(second), "."]

    question = ["What", "color", "are", [*a.things, *b.things], "?"]
    return question, combinations([a, b], set(), scene, rng, write), {a, b}


def _where(scene: world.Scene, known: list[Fact], rng):
    where = _pick([f for f in known if f.kind == "relation"], rng)
    if where is None:
        return None
    i, j = where.things
    color = Fact("color", (j,), scene.things[j].color)

    def write(first, second):
        return [[i], "is", first, "the", second, [j], "."]

    return ["Where", "is", [i], "?"], combinations([where, color], set(), scene, rng, write), {where, color}


def _which(scene: world.Scene, known: list[Fact], rng):
    colors = [t.color for t in scene.things]
    if len(colors) != 4:
        return None
    fact = _pick([f for f in known if f.kind == "color" and colors.count(f.right) == 1], rng)
    if fact is None:
        return None
    tags = [fact.things[0], *(int(i) for i in rng.permutation(4) if i != fact.things[0])]
    return ["What", "is", fact.right, "?"], [[[i], "is", fact.right, "."] for i in tags], {fact}


def _pick(options: list[Fact], rng) -> Fact | None:
    return options[rng.integers(len(options))] if options else None


KINDS = (_color, _colors, _where, _which)


def reasons(scene: world.Scene, known: list[Fact], stated: set[Fact], rng: np.random.Generator) -> list[list] | None:
    """Return four rationales, the true one first; None if there are no two facts to state."""
    pair: list[Fact] = []
    for allowed in (SEEN, tuple(KIND_WEIGHTS)):
        options = [f for f in known if f.kind in allowed and all(compatible(f, other) for other in (*stated, *pair))]
        kinds = sorted({f.kind for f in options})
        if not kinds:
            return None
        weights = np.array([KIND_WEIGHTS[kind] for kind in kinds])
        kind = rng.choice(kinds, p=weights / weights.sum())
        pair.append(_pick([f for f in options if f.kind == kind], rng))
    if rng.random() < 0.5:
        pair.reverse()

    def write(first, second):
        return ["because", *pair[0].tokens(first), "and", *pair[1].tokens(second), "."]

    return combinations(pair, stated, scene, rng, write)


def ask(scene: world.Scene, rng: np.random.Generator) -> list[tuple[list, list[list], list[list]]]:
    """Return (question, four answers, four rationales) of several kinds, true choices first."""
    known, asked = facts(scene), []
    for i in rng.permutation(len(KINDS)):
        found = KINDS[i](scene, known, rng)
        if found and (rationales := reasons(scene, known, found[2], rng)):
            asked.append((found[0], found[1], rationales))
    return asked[:QUESTIONS_PER_IMAGE]


def plain(tokens: list, objects: list[str]) -> str:
    """Return the text with names of objects in place of tags."""
    words = [" and ".join(f"the {objects[i]}" for i in t) if isinstance(t, list) else t for t in tokens]
    return " ".join(words)


def metadata(one: CorpusScene, rng: np.random.Generator) -> dict:
    """Return the metadata of an image: boxes with scores, polygons within them, category names."""
    things, (width, height) = one.scene.things, (one.scene.width, one.scene.height)
    boxes, segments = [], []
    for thing, polygons in zip(things, one.outlines, strict=True):
        x1, y1, x2, y2 = map(float, jitter(thing.box, width, height, rng))
        boxes.append([x1, y1, x2, y2, float(rng.uniform(0.7, 1))])
        segments.append([[[min(max(x, x1), x2), min(max(y, y1), y2)] for x, y in polygon] for polygon in polygons])
    names = [thing.category for thing in things]
    return dict(boxes=boxes, segms=segments, names=names, width=width, height=height)


def write_vcr(root: pathlib.Path, scenes: list[CorpusScene]) -> None:
    """Write {train,val,test}.jsonl and vcr1images/ into the folder `root`."""
    for split in ("train", "val", "test"):
        movie = f"scenes_{split}"
        images = root / "vcr1images" / movie
        images.mkdir(parents=True)
        lines = []
        for one in scenes:
            if one.split != split:
                continue
            rng = one.rng(TASK)
            name = f"{movie}/{one.number:06d}@0"
            record = metadata(one, rng)
            (root / "vcr1images" / f"{name}.jpg").write_bytes(one.scene.jpeg)
            (root / "vcr1images" / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
            for i, (question, answers, rationales) in enumerate(ask(one.scene, rng)):
                texts = (question, answers, rationales)
                lines.append(_line(split, movie, name, record["names"], len(lines), i, texts, rng))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _line(split, movie, name, objects, index, number, texts, rng) -> dict:
    question, answers, rationales = texts
    orders = [[int(i) for i in rng.permutation(4)] for _ in range(2)]
    line = dict(
        movie=movie, objects=objects, img_fn=f"{name}.jpg", metadata_fn=f"{name}.json", img_id=f"{split}-{name}",
        question=question, answer_choices=[answers[i] for i in orders[0]],
        rationale_choices=[rationales[i] for i in orders[1]], question_number=number, annot_id=f"{split}-{index}",
        match_fold=f"{split}-0", match_index=index,
    )  # fmt: skip
    if split != "test":
        line |= dict(
            interesting_scores=[0], answer_likelihood="likely", question_orig=plain(question, objects),
            answer_orig=plain(answers[0], objects), rationale_orig=plain(rationales[0], objects),
            answer_match_iter=orders[0], answer_sources=[index] * 4, answer_label=orders[0].index(0),
            rationale_match_iter=orders[1], rationale_sources=[index] * 4, rationale_label=orders[1].index(0),
        )  # fmt: skip
    return line
