"""Hypotheses about synthetic scenes, in the files of SNLI-VE.

    The ball is red.   The red thing is a ball.   The ball is striped.   The ball is above the box.

A hypothesis is entailed if it is true, and a contradiction if it is false. It is neutral if the image
does not show the thing that it is about. The three labels are equally likely, whatever the hypothesis
says: the best guess without the image (the most frequent label of the same hypothesis or, if it is
rare, of all, learned from 3,000 scenes and scored on 800) is right in 0.34. The premise, which is not
read, is a caption of the scene."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from data_prep.scenes import glyphs, world
from data_prep.scenes.captions import write_caption
from data_prep.scenes.crowded import CorpusScene, another

TASK = 6  # number of the random stream
PER_IMAGE = 4
LABELS = ("entailment", "neutral", "contradiction")
FILES = {"train": "train", "val": "dev", "test": "test"}


def _single(things: tuple[world.Thing, ...], field: str) -> list[world.Thing]:
    """Return the things of which no other has the same color (or category, ...)."""
    values = [getattr(thing, field) for thing in things]
    return [thing for thing in things if values.count(getattr(thing, field)) == 1]


def _absent(things: tuple[world.Thing, ...], field: str, all_of: tuple[str, ...], rng: np.random.Generator) -> str:
    return str(rng.choice([word for word in all_of if word not in [getattr(thing, field) for thing in things]]))


def _said(thing: world.Thing, field: str, all_of: tuple[str, ...], things, truth: bool, rng) -> str:
    """Return the thing's color (or category, ...), or a wrong one."""
    right = getattr(thing, field)
    return right if truth else another(right, all_of, [getattr(t, field) for t in things], rng)


def _color(things: tuple[world.Thing, ...], label: str, rng: np.random.Generator) -> str:
    known = _single(things, "category")
    if not known:
        return ""
    thing = known[rng.integers(len(known))]
    color = _said(thing, "color", world.COLORS, things, label != "contradiction", rng)
    noun = _absent(things, "category", glyphs.CATEGORIES, rng) if label == "neutral" else thing.category
    return f"The {noun} is {color}."


def _category(things: tuple[world.Thing, ...], label: str, rng: np.random.Generator) -> str:
    known = _single(things, "color")
    if not known:
        return ""
    thing = known[rng.integers(len(known))]
    category = _said(thing, "category", glyphs.CATEGORIES, things, label != "contradiction", rng)
    color = _absent(things, "color", world.COLORS, rng) if label == "neutral" else thing.color
    return f"The {color} thing is a {category}."


def _pattern(things: tuple[world.Thing, ...], label: str, rng: np.random.Generator) -> str:
    pattern, known = str(rng.choice(("striped", "dotted"))), _single(things, "category")
    groups = [[thing for thing in known if (thing.pattern == pattern) == true] for true in (False, True)]
    if not all(groups):
        return ""  # all labels must be possible, so that they are equally likely
    those = groups[label == "entailment"]
    noun = those[rng.integers(len(those))].category
    noun = _absent(things, "category", glyphs.CATEGORIES, rng) if label == "neutral" else noun
    return f"The {noun} is {pattern}."


def _relation(things: tuple[world.Thing, ...], label: str, rng: np.random.Generator) -> str:
    known = _single(things, "category")
    pairs = [(a, b) for a in known for b in known if world.relation(a, b) == "above"]
    if not pairs:
        return ""
    names = [thing.category for thing in pairs[rng.integers(len(pairs))]]
    true = ("above", "below")[rng.integers(2)]
    names = names if true == "above" else names[::-1]
    word = true if label == "entailment" else {"above": "below", "below": "above"}[true]
    if label == "neutral":
        names[rng.integers(2)] = _absent(things, "category", glyphs.CATEGORIES, rng)
    return f"The {names[0]} is {word} the {names[1]}."


# Kind of hypothesis -> function, weight. A function returns "" for all labels or for none.
KINDS = {"color": (_color, 4), "category": (_category, 3), "pattern": (_pattern, 2), "relation": (_relation, 2)}


def suppose(scene: world.Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Sample different hypotheses, each with its label; the labels are sampled first."""
    names, weights = list(KINDS), np.array([weight for _, weight in KINDS.values()], float)
    found: dict[str, str] = {}
    for label in [*rng.permutation(LABELS), *rng.choice(LABELS, PER_IMAGE - len(LABELS))]:
        for _ in range(40):  # a scene whose things are all alike has fewer
            function = KINDS[names[rng.choice(len(names), p=weights / weights.sum())]][0]
            text = function(scene.things, label, rng)
            if text and text not in found:
                found[text] = str(label)
                break
    return list(found.items())


def write_snli_ve(root: pathlib.Path, scenes: list[CorpusScene]) -> None:
    """Write data/snli_ve_{train,dev,test}.jsonl; the images are those of Flickr30k.

    Args:
      root: folder of SNLI-VE.
      scenes: the scenes of all splits.
    """
    (root / "data").mkdir(parents=True)
    for split, name in FILES.items():
        lines = []
        for one in scenes:
            if one.split != split:
                continue
            rng = one.rng(TASK)
            premise = " ".join(write_caption(one.scene.things, one.scene.place, rng)).capitalize() + "."
            for i, (text, label) in enumerate(suppose(one.scene, rng)):
                caption = f"{one.image_id}.jpg#{i}"
                line = dict(Flickr30K_ID=str(one.image_id), annotator_labels=[label] * 5, captionID=caption)
                line |= dict(gold_label=label, pairID=f"{caption}r1{label[0]}")
                for k, sentence in enumerate((premise, text), 1):
                    line |= {f"sentence{k}": sentence, f"sentence{k}_binary_parse": f"( {sentence} )"}
                    line |= {f"sentence{k}_parse": f"(ROOT ( {sentence} ))"}
                lines.append(json.dumps(line, sort_keys=True) + "\n")
        (root / "data" / f"snli_ve_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
