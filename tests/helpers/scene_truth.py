"""Evaluate texts about synthetic scenes independently of the code that writes the texts."""

import itertools

import numpy as np

from data_prep.scenes import world
from data_prep.scenes.crowded import CorpusScene, draw_crowded


def draw_many(stream, number, group=""):
    """Yield `number` scenes; each stream has other scenes."""
    for i in range(number):
        seed = (11, stream, i)
        scene, outlines = draw_crowded(np.random.default_rng(seed), group)
        yield CorpusScene("train", i, i + 1, scene, outlines, seed)


def words_of(text):
    return text.lower().replace("?", " ?").split()


def matching(name, things):
    """Return the things that a name such as "the small red ball" matches."""
    words = name.removeprefix("the ").split()

    def matches(word, thing):
        sizes = dict(small=thing.extent < world.SMALL, large=thing.extent > world.LARGE, thing=True)
        return sizes.get(word, word in (thing.color, thing.category, thing.pattern))

    return [thing for thing in things if all(matches(word, thing) for word in words)]


def true_answers(question, scene):
    """Return all true answers to a question; no question asks for a size."""
    words = words_of(question)[:-1]
    things = scene.things

    def place_of(a, b):
        down, across = b.center[1] - a.center[1], abs(b.center[0] - a.center[0])
        return "level" if abs(down) <= max(across, 20) else "above" if down > 0 else "below"

    match words:
        case ["where", *_]:
            return {scene.place}
        case ["how", "many", "things", "are", "there"]:
            return {str(len(things))}
        case ["how", "many", "things", "are", word]:
            return {str(sum(word in (t.color, t.pattern) for t in things))}
        case ["is", *name, "there"]:
            return {"yes" if matching(" ".join(name), things) else "no"}
        case ["is", *rest] if {"above", "below"} & set(rest):
            (at,) = [i for i, word in enumerate(rest) if word in ("above", "below")]
            pairs = itertools.product(*(matching(" ".join(name), things) for name in (rest[:at], rest[at + 1 :])))
            return {"yes" if place_of(a, b) == rest[at] else "no" for a, b in pairs}
        case ["is", *name, word]:
            return {"yes" if word in (t.color, t.pattern) else "no" for t in matching(" ".join(name), things)}
    what = "color" if words[1] == "color" else "category"
    words = words[2:] if words[:2] != ["what", "color"] else words[3:]
    (at,) = [i for i, word in enumerate(words) if word in ("above", "below", "beside")] or [None]
    if at is None:
        return {getattr(t, what) for t in matching(" ".join(words), things)}
    (other,) = matching(" ".join(words[at + 1 :]), things)
    if words[at] == "beside":
        found = [t for t in things if t is not other and place_of(t, other) == "level"
                 and abs(t.center[0] - other.center[0]) > 1.5 * abs(t.center[1] - other.center[1])]  # fmt: skip
    else:
        found = [t for t in things if t is not other and place_of(t, other) == words[at]]
    return {getattr(t, what) for t in found}


def is_true(tokens, things):
    """Return whether the tokens of a choice, "[0] is red and [1] is above [2] .", are true."""
    tokens = [token for token in tokens if token not in ("because", ".", "the")]
    parts = [list(group) for is_and, group in itertools.groupby(tokens, lambda t: t == "and") if not is_and]
    for (i,), _, *rest in parts:
        thing, words = things[i], [word for word in rest if isinstance(word, str)]
        others = [things[k] for (k,) in (token for token in rest if isinstance(token, list))]
        if words[0] in ("above", "below"):
            down = others[0].center[1] - thing.center[1]
            assert abs(down) > 20  # a relation always has a clear margin
            if (down > 0) != (words.pop(0) == "above"):
                return False
            thing = others[0]  # "[0] is above the red [1]"
        assert len(words) <= 1
        found = {word: matching(f"the {word}", [thing]) for word in words}
        if not all(found.values()):
            return False
    return True
