"""Questions and answers about the synthetic scenes, in the files of VQA v2.

    What color is the striped ball?  red             other, one of 8 answers
    What color is the thing above the box?  blue     other, one of 8
    What is below the red cup?  moon                 other, one of 10
    What is the red thing?  house                    other, one of 10
    Where are the things?  beach                     other, one of 5
    Is the ball red?  Is the red ball there?         yes/no
    Is the ball above the red box?                   yes/no
    Is the cup dotted?                               yes/no
    How many things are there?                       number
    How many things are red?                         number
    How many things are dotted?                      number

The answers to each kind of question are nearly uniform. Without the image, the best guess is right
in 0.50 of yes/no, 0.42 of number, 0.13 of other and 0.33 of all questions (the most frequent answer
to the same question or, if it is rare, to its kind, learned from 3,000 scenes and scored on 800).
Ten annotators answer: nine in ten correctly, some of them with a synonym, a few wrongly. The right
answer always has a soft target of 1."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from data_prep.scenes import glyphs, world
from data_prep.scenes.corpus import detector_json
from data_prep.scenes.crowded import CorpusScene, another, describe, related

TASK = 1  # number of the random stream
QUESTIONS_PER_IMAGE = 6
SYNONYMS = {  # answers of some annotators
    "purple": "violet", "ball": "sphere", "cup": "mug", "road": "street", "night": "dark", "star": "a star",
    "0": "none", "1": "one", "2": "two", "yes": "yeah",
}  # fmt: skip
# These answers are missing in answers_vqa.txt, so they become <unk>.
UNLISTED = ("none", "one", "two", "yeah", "a star", "not sure")
COUNTS = ("0", "1", "2", "3", "4")
# Part of the file name: image folder, folder of regions, split of scenes.
SUBSETS = {
    "train2014": ("train2014", "trainval2014_resnet101_faster_rcnn_genome", "train"),
    "val2014": ("val2014", "trainval2014_resnet101_faster_rcnn_genome", "val"),
    "test-dev2015": ("test2015", "test2015_resnet101_faster_rcnn_genome", "test"),
    "test2015": ("test2015", "test2015_resnet101_faster_rcnn_genome", "test"),
}
INFO = dict(
    description="drawn scenes in the format of VQA v2", url="", version="2.0", year=2017, contributor="vlbert_jax",
    date_created="2017-04-26 17:07:13",
)  # fmt: skip


def answer_vocabulary() -> list[str]:
    """Return the lines of answers_vqa.txt."""
    words = ["yes", "no", *COUNTS, *world.COLORS, *glyphs.CATEGORIES, *world.PLACES]
    return [*words, *(word for word in SYNONYMS.values() if word not in UNLISTED), "<unk>"]


def _color_of(scene: world.Scene, rng):
    thing = scene.things[rng.integers(len(scene.things))]
    name = describe(thing, scene.things, rng, thing.color)
    return name and ("what color is the", f"What color is {name}?", thing.color)


def _color_of_related(scene: world.Scene, rng):
    thing, word = scene.things[rng.integers(len(scene.things))], rng.choice(("above", "below", "beside"))
    found = related(thing, word, scene.things)
    name = describe(thing, scene.things, rng)
    return found and ("what color is the", f"What color is the thing {word} {name}?", found.color)


def _category_of_related(scene: world.Scene, rng):
    thing, word = scene.things[rng.integers(len(scene.things))], rng.choice(("above", "below", "beside"))
    found = related(thing, word, scene.things)
    return found and ("what is", f"What is {word} {describe(thing, scene.things, rng)}?", found.category)


def _category_of(scene: world.Scene, rng):
    thing = scene.things[rng.integers(len(scene.things))]
    name = describe(thing, scene.things, rng, thing.category)
    return name and ("what is the", f"What is {name}?", thing.category)


def _place(scene: world.Scene, rng):
    return "where are the", "Where are the things?", scene.place


def _is_color(scene: world.Scene, rng):
    thing = scene.things[rng.integers(len(scene.things))]
    name = describe(thing, scene.things, rng, thing.color)
    other = another(thing.color, world.COLORS, [t.color for t in scene.things], rng)
    said, answer = ((thing.color, "yes"), (other, "no"))[rng.integers(2)]
    return name and ("is the", f"Is {name} {said}?", answer)


def _is_there(scene: world.Scene, rng):
    thing = scene.things[rng.integers(len(scene.things))]
    there = [(t.color, t.category) for t in scene.things]
    if rng.random() < 0.5:
        return "is the", f"Is the {thing.color} {thing.category} there?", "yes"
    pair = there[0]
    while pair in there:
        pair = (thing.color, another(thing.category, glyphs.CATEGORIES, [t.category for t in scene.things], rng))
        if rng.random() < 0.5:
            pair = (another(thing.color, world.COLORS, [t.color for t in scene.things], rng), thing.category)
    return "is the", f"Is the {pair[0]} {pair[1]} there?", "no"


def _is_related(scene: world.Scene, rng):
    a, b = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    true = world.relation(a, b)
    if true not in ("above", "below"):
        return None
    said = ("above", "below")[rng.integers(2)]
    names = [describe(thing, scene.things, rng) for thing in (a, b)]
    return "is the", f"Is {names[0]} {said} {names[1]}?", "yes" if said == true else "no"


def _is_pattern(scene: world.Scene, rng):
    pattern = rng.choice(("striped", "dotted"))
    groups = [[t for t in scene.things if (t.pattern == pattern) == true] for true in (False, True)]
    if not all(groups):
        return None  # both answers must be possible, so that they are equally likely
    answer = rng.integers(2)
    thing = groups[answer][rng.integers(len(groups[answer]))]
    return "is the", f"Is the {thing.color} {thing.category} {pattern}?", ("no", "yes")[answer]


def _count(scene: world.Scene, rng):
    return "how many", "How many things are there?", str(len(scene.things))


def _count_color(scene: world.Scene, rng):
    colors = [t.color for t in scene.things]
    count = rng.choice(sorted({colors.count(color) for color in world.COLORS}))
    color = rng.choice([color for color in world.COLORS if colors.count(color) == count])
    return "how many", f"How many things are {color}?", str(count)


def _count_pattern(scene: world.Scene, rng):
    patterns = [t.pattern for t in scene.things]
    counts = sorted({patterns.count(pattern) for pattern in ("striped", "dotted")})
    if counts == [0]:
        return None  # otherwise nearly all answers would be 0
    count = rng.choice(counts)
    pattern = rng.choice([pattern for pattern in ("striped", "dotted") if patterns.count(pattern) == count])
    return "how many", f"How many things are {pattern}?", str(count)


# The first kinds are more frequent: they bind a word to a region, as captions do.
KINDS = {
    "color_of": (_color_of, 4, "other"), "color_of_related": (_color_of_related, 2, "other"),
    "category_of_related": (_category_of_related, 2, "other"), "category_of": (_category_of, 3, "other"),
    "place": (_place, 1, "other"), "is_color": (_is_color, 3, "yes/no"), "is_there": (_is_there, 2, "yes/no"),
    "is_related": (_is_related, 2, "yes/no"), "is_pattern": (_is_pattern, 1, "yes/no"),
    "count": (_count, 1, "number"), "count_color": (_count_color, 2, "number"),
    "count_pattern": (_count_pattern, 1, "number"),
}  # fmt: skip


def ask(scene: world.Scene, rng: np.random.Generator) -> list[tuple[str, str, str, str, str]]:
    """Sample different questions: (kind, question_type, question, answer, answer_type) each."""
    names, weights = list(KINDS), np.array([weight for _, weight, _ in KINDS.values()], float)
    asked: dict[str, tuple] = {}
    while len(asked) < QUESTIONS_PER_IMAGE:
        kind = names[rng.choice(len(names), p=weights / weights.sum())]
        function, _, answer_type = KINDS[kind]
        if found := function(scene, rng):
            asked.setdefault(found[1], (kind, *found, answer_type))
    return list(asked.values())


def _alternatives(answer: str) -> tuple[str, ...]:
    (kin,) = (k for k in (("yes", "no"), COUNTS, world.COLORS, glyphs.CATEGORIES, tuple(world.PLACES)) if answer in k)
    return tuple(word for word in kin if word != answer)


def annotate(answer: str, rng: np.random.Generator) -> list[dict]:
    """Sample the answers of ten annotators, of whom at least six give `answer`."""
    wrong, said = _alternatives(answer), []
    while said.count(answer) < 6:
        said = []
        for chance in rng.random(10):
            word = SYNONYMS.get(answer, answer) if chance < 0.12 else "not sure" if chance < 0.13 else answer
            said.append(wrong[rng.integers(len(wrong))] if chance < 0.05 else word)
    return [
        dict(answer=word, answer_confidence="yes" if word == answer else "maybe", answer_id=i)
        for i, word in enumerate(said, 1)
    ]


def write_vqa(root: pathlib.Path, scenes: list[CorpusScene], directions: np.ndarray | None) -> None:
    """Write questions, annotations, answers and detections.

    Args:
      root: folder of COCO.
      scenes: the scenes of all splits.
      directions: [81, width], for synthetic region features, see `corpus.detector_json`; None = no
        features.
    """
    folder = root / "vqa"
    folder.mkdir(parents=True)
    (folder / "answers_vqa.txt").write_text("\n".join(answer_vocabulary()) + "\n", encoding="utf-8")
    common = dict(info=INFO, license=dict(url="", name="drawn, none needed"), data_type="mscoco")
    for name, (_, detections, split) in SUBSETS.items():
        (root / "vgbua_res101_precomputed" / detections).mkdir(parents=True, exist_ok=True)
        questions, annotations = [], []
        for one in scenes:
            if one.split != split or (name == "test-dev2015" and one.number % 2):
                continue
            rng = one.rng(TASK)
            record = detector_json(one.scene, one.image_id, rng, directions)
            del record["classes"]  # the public files have no class scores
            path = root / "vgbua_res101_precomputed" / detections / f"{one.image_id}.json"
            path.write_text(json.dumps(record), encoding="utf-8")
            for i, (_, question_type, question, answer, answer_type) in enumerate(ask(one.scene, rng)):
                ids = dict(image_id=one.image_id, question_id=1000 * one.image_id + i)
                questions.append(dict(question=question, **ids))
                annotations.append(
                    dict(
                        question_type=question_type, multiple_choice_answer=answer, answers=annotate(answer, rng),
                        answer_type=answer_type, **ids,
                    )
                )  # fmt: skip
        subset = dict(common, data_subtype=name)
        path = folder / f"v2_OpenEnded_mscoco_{name}_questions.json"
        path.write_text(json.dumps(dict(subset, task_type="Open-Ended", questions=questions)), encoding="utf-8")
        if split != "test":
            path = folder / f"v2_mscoco_{name}_annotations.json"
            path.write_text(json.dumps(dict(subset, annotations=annotations)), encoding="utf-8")
