"""The synthetic corpus `scene_explanations`: long texts about scenes, without images.

Source: generated here from a seed; no download, no license. The folder has the files of a text
corpus:

    train.doc  val.doc         documents of three lines each, one line after the other
    vocab.txt                  that of `scenes_downstream`: the ids of the words of `scenes` are equal
    scene_explanations.json    the settings

A document is about one scene (crowded.py) that no other corpus has. Each of its lines has 20 to 43 words
and states four facts, the last two as reasons; it may begin with the question that the first answers:

    the box is small and the white box is above the cup because the green tree is large and the cup is large .
    what color is the cup ? the cup is green and the white thing is small because the cup is below the box and the box
    is white .
    where is the large cup ? the large cup is below the white thing and the box is small because the large cup is green
    and the box is white .

The captions of `scenes` are short and put colors before nouns. These texts say "is red" and "because",
as the rationales of VCR do (vcr.py), and only they have sentences of this length. A masked word can
often be found in another line, which states the same fact in other words, or the opposite relation.
"""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np
from tqdm import tqdm

from data_prep.scenes import downstream
from data_prep.scenes.crowded import describe, draw_crowded
from data_prep.scenes.vcr import Fact, compatible, facts
from data_prep.scenes.world import Scene

VERSION = 1  # version of the generator; it changes with the texts
STREAM = 40  # the seeds are [seed, 40 or 41, number]; those of the other corpora are below
SPLITS = ("train", "val")
LINES = 3  # per document
FACTS = 4  # per line
QUESTIONS = {"color": "what color is", "relation": "where is"}  # of kinds of facts


def state(fact: Fact, scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return a sentence without its period: a thing, "is", the true word, and the other thing of a relation.

    The descriptions fit one thing only, and that of the first thing does not contain the true word. The list is empty
    if there are no such descriptions.
    """
    first, *second = (scene.things[i] for i in fact.things)
    named = [describe(first, scene.things, rng, fact.right), *(describe(t, scene.things, rng) for t in second)]
    return [named[0], "is", fact.right, *named[1:]] if all(named) else []


def write_line(scene: Scene, rng: np.random.Generator) -> str:
    """Return a line of `FACTS` different facts; "" if the scene does not have so many.

    The first fact is a question and its answer if it is a color or a relation, in two of three lines.
    """
    known, chosen = facts(scene), []
    for i in rng.permutation(len(known)):
        if len(chosen) < FACTS and all(compatible(known[i], other) for other in chosen):
            chosen.append(known[i])
    said = [state(fact, scene, rng) for fact in chosen]
    if len(said) < FACTS or not all(said):
        return ""
    first, second, third, fourth = (" ".join(words) for words in said)
    question = QUESTIONS.get(chosen[0].kind)
    asked = f"{question} {said[0][0]} ? " if question and rng.random() < 2 / 3 else ""
    return f"{asked}{first} and {second} because {third} and {fourth} ."


def write_document(rng: np.random.Generator) -> list[str]:
    """Return `LINES` lines about a new scene."""
    while True:
        scene, _ = draw_crowded(rng)
        lines = (write_line(scene, rng) for _ in range(2 * LINES))
        if len(found := list(itertools.islice(filter(None, lines), LINES))) == LINES:
            return found


def write_explanations(folder: pathlib.Path, settings: dict) -> None:
    """Write the corpus; the same settings give the same bytes.

    Args:
      folder: an existing empty folder; `scene_explanations.json` is written last.
      settings: seed, num_train and num_val (documents).
    """
    for stream, split in enumerate(SPLITS):
        numbers = tqdm(range(settings[f"num_{split}"]), f"generating {split}", unit=" documents", mininterval=1)
        with open(folder / f"{split}.doc", "w", encoding="utf-8") as file:
            for number in numbers:
                lines = write_document(np.random.default_rng([settings["seed"], STREAM + stream, number]))
                file.writelines(f"{line}\n" for line in lines)
    (folder / "vocab.txt").write_text("\n".join(downstream.vocabulary()) + "\n", encoding="utf-8")
    (folder / "scene_explanations.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
