"""Statements about pairs of synthetic scenes, in the files of NLVR2.

    The left image shows a red ball.          Both images show a striped thing.
    At least one image shows a green thing.   Only the right image shows a car.
    There are exactly three things in the left image.
    There are more things in the left image than in the right image.
    Exactly two things are blue.              No image shows a dotted house.

Four pairs of scenes are a set. A statement is made about all pairs of its set and is true of exactly
two of them, so the best guess without the images is right in 0.50."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy as np

from data_prep.scenes import world
from data_prep.scenes.corpus import detector_json
from data_prep.scenes.crowded import CorpusScene

TASK = 5  # number of the random stream
PAIRS, STATEMENTS, ROUNDS = 4, 4, 2  # pairs and statements of a set; pairs of each scene
DIRECTORIES = 100  # folders of the images of train
SPLITS = {"train": "train", "val": "dev", "test": "test1"}
COUNTS = ("zero", "one", "two", "three", "four")
SIDES = ("left", "right")
WORDS = ("image", "images", "shows", "show", "left", "right", "exactly", "least", "only", *COUNTS[1:])  # new ones

Pair = tuple[world.Scene, world.Scene]
Statement = tuple[str, Callable[[Pair], bool]]


def _sample_thing(pairs: list[Pair], rng: np.random.Generator) -> world.Thing:
    things = pairs[rng.integers(len(pairs))][rng.integers(2)].things
    return things[rng.integers(len(things))]


def _description(pairs: list[Pair], rng: np.random.Generator) -> tuple[str, Callable[[world.Scene], bool]]:
    """Sample a description of a thing of the set; return it with the test whether a scene has such a thing."""
    thing = _sample_thing(pairs, rng)
    adjective = (thing.color, thing.pattern)[rng.random() < 0.2 and thing.pattern != "plain"]
    words = ((adjective, thing.category), (adjective, "thing"), (thing.category,))[rng.integers(3)]
    said = set(words) - {"thing"}
    return " ".join(words), lambda scene: any(said <= {t.color, t.pattern, t.category} for t in scene.things)


def _shows(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    name, has = _description(pairs, rng)
    side = int(rng.integers(2))
    return f"The {SIDES[side]} image shows a {name}.", lambda pair: has(pair[side])


def _both(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    name, has = _description(pairs, rng)
    return f"Both images show a {name}.", lambda pair: has(pair[0]) and has(pair[1])


def _at_least_one(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    name, has = _description(pairs, rng)
    return f"At least one image shows a {name}.", lambda pair: has(pair[0]) or has(pair[1])


def _none(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    name, has = _description(pairs, rng)
    return f"No image shows a {name}.", lambda pair: not (has(pair[0]) or has(pair[1]))


def _only(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    name, has = _description(pairs, rng)
    side = int(rng.integers(2))
    return f"Only the {SIDES[side]} image shows a {name}.", lambda pair: has(pair[side]) and not has(pair[1 - side])


def _count(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    number, side = int(rng.integers(2, 5)), int(rng.integers(2))
    text = f"There are exactly {COUNTS[number]} things in the {SIDES[side]} image."
    return text, lambda pair: len(pair[side].things) == number


def _more(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    side = int(rng.integers(2))
    text = f"There are more things in the {SIDES[side]} image than in the {SIDES[1 - side]} image."
    return text, lambda pair: len(pair[side].things) > len(pair[1 - side].things)


def _count_color(pairs: list[Pair], rng: np.random.Generator) -> Statement:
    color, number = _sample_thing(pairs, rng).color, int(rng.integers(1, 4))
    text = f"Exactly {COUNTS[number]} {'thing is' if number == 1 else 'things are'} {color}."
    return text, lambda pair: sum(t.color == color for scene in pair for t in scene.things) == number


# Kind of statement -> function, weight.
KINDS = {
    "shows": (_shows, 4), "both": (_both, 1), "at_least_one": (_at_least_one, 3), "none": (_none, 1),
    "only": (_only, 2), "count": (_count, 2), "more": (_more, 1), "count_color": (_count_color, 2),
}  # fmt: skip


def state(pairs: list[Pair], rng: np.random.Generator) -> list[tuple[str, list[bool]]]:
    """Sample different statements, each with whether it is true of each pair; it is true of half of them."""
    names, weights = list(KINDS), np.array([weight for _, weight in KINDS.values()], float)
    found: dict[str, list[bool]] = {}
    while len(found) < STATEMENTS:
        function = KINDS[names[rng.choice(len(names), p=weights / weights.sum())]][0]
        for _ in range(20):
            text, holds = function(pairs, rng)
            truths = [bool(holds(pair)) for pair in pairs]
            if 2 * sum(truths) == len(pairs):
                found.setdefault(text, truths)
                break
    return list(found.items())


def make_sets(scenes: list[CorpusScene], rng: np.random.Generator) -> list[list[tuple[CorpusScene, CorpusScene]]]:
    """Return sets of pairs of scenes; each scene is in two pairs, but for a remainder of the scenes."""
    sets, size = [], 2 * PAIRS
    for _ in range(ROUNDS):
        order = [scenes[i] for i in rng.permutation(len(scenes))]
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            sets.append(list(zip(chosen[::2], chosen[1::2], strict=True)))
    return sets


def image_path(split: str, number: int, pair: int, side: int) -> str:
    """Return the path of an image of NLVR2 under `images`; train has folders.

    Args:
      split: train, dev or test1.
      number: number of the set.
      pair: number of the pair in the set.
      side: 0 = left, 1 = right.
    """
    folder = f"train/{number % DIRECTORIES}" if split == "train" else split
    return f"{folder}/{split}-{number}-{pair}-img{side}.png"


def write_nlvr2(root: pathlib.Path, scenes: list[CorpusScene], seed: int, directions: np.ndarray | None) -> None:
    """Write data/{train,dev,test1}.json (a JSON object per line), images/ and regions/.

    As in the public files, the images are named .png whatever their format is.

    Args:
      root: folder of NLVR2.
      scenes: the scenes of all splits.
      seed: seed of the corpus.
      directions: see `corpus.detector_json`.
    """
    (root / "data").mkdir(parents=True)
    for i, (split, public) in enumerate(SPLITS.items()):
        lines = []
        rng = np.random.default_rng([seed, TASK, i])
        for number, pairs in enumerate(make_sets([one for one in scenes if one.split == split], rng)):
            for k, pair in enumerate(pairs):
                for side, one in enumerate(pair):
                    path = image_path(public, number, k, side)
                    record = detector_json(one.scene, one.image_id, rng, directions)
                    _write(root / "images" / path, one.scene.jpeg)
                    _write((root / "regions" / path).with_suffix(".json"), json.dumps(record).encode())
            statements = state([(left.scene, right.scene) for left, right in pairs], rng)
            for k in range(len(pairs)):
                lines += [_line(public, number, k, j, text, truths[k]) for j, (text, truths) in enumerate(statements)]
        order = rng.permutation(len(lines))
        text = "".join(json.dumps(lines[j]) + "\n" for j in order)
        (root / "data" / f"{public}.json").write_text(text, encoding="utf-8")


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _line(split: str, number: int, pair: int, statement: int, text: str, truth: bool) -> dict:
    label, url = str(truth), f"https://example.org/{number}/{pair}"
    line = dict(
        validation={"0": label}, sentence=text, left_url=f"{url}/0.jpg", writer="0", label=label,
        right_url=f"{url}/1.jpg", synset="thing", query=f"drawn things{number}",
        identifier=f"{split}-{number}-{pair}-{statement}",
    )  # fmt: skip
    extra = dict(directory=number % DIRECTORIES) if split == "train" else dict(extra_validations={"1": label})
    return line | extra
