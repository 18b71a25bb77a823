"""Test texts about synthetic scenes: they are true, unambiguous and unknown without the image."""

import collections
import itertools
import zlib

import numpy as np
import pytest

from data_prep.scenes import refcoco, vcr, vqa, world
from data_prep.scenes.crowded import GROUPS
from data_prep.scenes.downstream import NEW_WORDS, vocabulary
from data_prep.scenes.refcoco import SENTENCES_PER_REF, detections, refer
from data_prep.scenes.vqa import KINDS, QUESTIONS_PER_IMAGE
from tests.helpers.scene_truth import draw_many, is_true, matching, true_answers, words_of

NUM_FITTED, NUM_SCORED = 900, 300  # scenes of the blind baselines


@pytest.fixture(scope="module")
def fitted():
    return list(draw_many(0, NUM_FITTED))


@pytest.fixture(scope="module")
def scored():
    return list(draw_many(1, NUM_SCORED))


def test_things_of_a_scene_differ(fitted):
    shared = collections.Counter()
    for one in fitted:
        things = one.scene.things
        assert 2 <= len(things) <= 4 and len({(t.color, t.category) for t in things}) == len(things)
        shared["category"] += len({t.category for t in things}) < len(things)
        shared["color"] += len({t.color for t in things}) < len(things)
        for thing, polygons in zip(things, one.outlines, strict=True):
            points = np.array(polygons[0])
            assert len(points) >= 3 and len(polygons) <= 3
            low, high = np.subtract(points.min(0), thing.box[:2]), np.subtract(thing.box[2:], points.max(0))
            assert (low >= 0).all() and (high >= 0).all() and (low < 4).all() and (high < 5).all()
    assert min(shared.values()) > 0.35 * len(fitted)
    for group, members in GROUPS.items():
        for one in draw_many(2, 20, group):
            assert {t.category for t in one.scene.things} & set(members)


def test_vocabulary_has_every_word(fitted):
    used = set()
    for one in fitted[:300]:
        used |= {word for _, _, q, a, _ in vqa.ask(one.scene, one.rng(1)) for word in words_of(q) + [a]}
        used |= {word for _, texts in refer(one, one.rng(2)) for t in texts for word in t.split()}
        for question, answers, rationales in vcr.ask(one.scene, one.rng(3)):
            tokens = itertools.chain(question, *answers, *rationales)
            used |= {token.lower() for token in tokens if isinstance(token, str)}
    assert used <= set(vocabulary()) and set(NEW_WORDS) <= used


# --- VQA ------------------------------------------------------------------------------------------


def test_vqa_answers_are_true(fitted):
    kinds = collections.Counter()
    for one in fitted:
        asked = vqa.ask(one.scene, one.rng(vqa.TASK))
        assert len({question for _, _, question, _, _ in asked}) == len(asked) == QUESTIONS_PER_IMAGE
        for kind, question_type, question, answer, _ in asked:
            kinds[kind] += 1
            assert question.lower().startswith(question_type)
            assert true_answers(question, one.scene) == {answer}, (question, one.scene.things)
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 50


def test_text_alone_does_not_answer_vqa(fitted, scored):
    """The most frequent answer to the question, or to its kind, in other scenes is often wrong."""
    by_question, by_kind = (collections.defaultdict(collections.Counter) for _ in range(2))
    for one in fitted:
        for kind, _, question, answer, _ in vqa.ask(one.scene, one.rng(vqa.TASK)):
            by_question[question][answer] += 1
            by_kind[kind][answer] += 1
    correct = collections.defaultdict(list)
    for one in scored:
        for kind, _, question, answer, answer_type in vqa.ask(one.scene, one.rng(vqa.TASK)):
            counts = by_question[question]
            counts = counts if sum(counts.values()) >= 10 else by_kind[kind]
            correct[answer_type].append(counts.most_common(1)[0][0] == answer)
            correct["all"].append(correct[answer_type][-1])
            correct[kind].append(correct[answer_type][-1])
    shares = {name: float(np.mean(found)) for name, found in correct.items()}
    print("VQA without the image:", {name: round(share, 3) for name, share in shares.items()})
    assert shares["all"] < 0.4 and shares["yes/no"] < 0.58 and shares["number"] < 0.5 and shares["other"] < 0.22


# --- VCR ------------------------------------------------------------------------------------------


def test_vcr_has_one_correct_choice(fitted):
    firsts = collections.Counter()
    for one in fitted:
        for question, answers, rationales in vcr.ask(one.scene, one.rng(vcr.TASK)):
            for choices in (answers, rationales):
                assert [is_true(choice, one.scene.things) for choice in choices] == [True, False, False, False]
            asked = " ".join(word if isinstance(word, str) else "+" * len(word) for word in question)
            firsts[asked if question[:2] != ["What", "is"] else "What is"] += 1
    assert set(firsts) == {"What color is + ?", "What color are ++ ?", "Where is + ?", "What is"}
    assert min(firsts.values()) > 100


def choice_features(context, choices, objects, size=4096):
    """Return hashed features of four choices, [4, size].

    The features are words, pairs of words, and words shared with the context or the other choices.
    A tag becomes its number and its category.
    """

    def named(tokens):
        words = []
        for token in tokens:
            words += [w for i in token for w in (f"[{i}]", objects[i])] if isinstance(token, list) else [token]
        return words

    rows = np.zeros((4, size), np.float32)
    context_words, choice_words = named(context), [named(choice) for choice in choices]
    for row, words in zip(rows, choice_words, strict=True):
        others = sum((other for other in choice_words if other is not words), [])
        found = [*words, *itertools.pairwise(words), *itertools.pairwise(words[::2])]
        found += [("told", word) for word in set(words) & set(context_words)]
        found += [("colors", w, t) for w in words for t in context_words if {w, t} <= set(world.COLORS)]
        found += [("shared", min(3, others.count(word)), word in world.COLORS) for word in words]
        for feature in found:
            row[zlib.crc32(repr(feature).encode()) % size] += 1
    return rows


def linear_accuracy(train, test, steps=60):
    """Return the accuracy of softmax regression over four choices; the first one is correct.

    The regression is fitted to `train` and evaluated on `test`.
    """
    x = np.stack(train)
    weights = np.zeros(x.shape[-1], np.float32)
    for _ in range(steps):
        logits = x @ weights
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[:, 0] -= 1
        weights -= 0.5 * (np.einsum("bc,bcf->f", p, x) / len(x) + 1e-4 * weights)
    logits = np.stack(test) @ weights
    return float(np.mean([(row[0] > row[1:]).all() + ((row == row.max()).mean() if (row[0] == row[1:].max()) else 0)
                          for row in logits]))  # fmt: skip


def test_text_alone_does_not_answer_vcr(fitted, scored):
    rows = dict(answer=([], []), rationale=([], []))
    for into, scenes in enumerate((fitted, scored)):
        for one in scenes:
            objects = [thing.category for thing in one.scene.things]
            for question, answers, rationales in vcr.ask(one.scene, one.rng(vcr.TASK)):
                rows["answer"][into].append(choice_features(question, answers, objects))
                rows["rationale"][into].append(choice_features(question + answers[0], rationales, objects))
    shares = {name: linear_accuracy(*sets) for name, sets in rows.items()}
    print("VCR from text alone:", shares)
    assert shares["answer"] < 0.33 and shares["rationale"] < 0.33


# --- RefCOCO+ -------------------------------------------------------------------------------------


def test_expressions_describe_appearance_and_are_unambiguous(fitted):
    lengths, needed = collections.Counter(), 0
    for one in fitted:
        for i, texts in refer(one, one.rng(refcoco.TASK)):
            assert 1 <= len(texts) == len(set(texts)) <= SENTENCES_PER_REF
            for text in texts:
                assert matching(text, one.scene.things) == [one.scene.things[i]]
                assert not set(text.split()) & {"above", "below", "beside", "left", "right", *world.PLACES}
                lengths[len(text.split())] += 1
                *front, noun = text.split()
                parts = [part for part in (front, ["the", noun]) if len(part) > 1]
                alone = [matching(" ".join(part), one.scene.things) for part in parts]
                needed += len(alone) == 2 and max(map(len, alone)) > 1
    total = sum(lengths.values())
    print("words of expressions:", dict(lengths), "share that needs the noun and the words before it:", needed / total)
    assert set(lengths) == {2, 3, 4, 5} and needed > 0.5 * total


def overlap(a, b):
    inter = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1, 0, None))
    return inter / (np.prod(a[2:] - a[:2] + 1) + np.prod(b[2:] - b[:2] + 1) - inter)


def test_detections_have_misses_and_false_positives(fitted):
    hit, things, num_found = [], 0, 0
    for one in fitted:
        found = detections(one, one.rng(9))
        assert found
        boxes = [np.array([x, y, x + w - 1, y + h - 1]) for x, y, w, h in (detection["box"] for detection in found)]
        best = [max(overlap(box, np.array(thing.box)) for box in boxes) for thing in one.scene.things]
        hit += [value > 0.5 for value in best]
        num_found += len(found)
        things += len(best)
    assert 0.93 < np.mean(hit) < 0.97
    assert 0.05 < (num_found - sum(hit)) / things < 0.25


def test_boxes_alone_do_not_solve_refcoco(fitted, scored):
    """A random box, and the box whose shape fits the words best, are often wrong."""
    shapes = collections.defaultdict(list)

    def shape(thing):
        w, h = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
        return np.log([w / h, max(w, h)])

    for one in fitted:
        for i, texts in refer(one, one.rng(refcoco.TASK)):
            for word in set(itertools.chain(*(text.split() for text in texts))):
                shapes[word].append(shape(one.scene.things[i]))
        shapes["any"] += [shape(thing) for thing in one.scene.things]
    moments = {word: (np.mean(found, 0), np.std(found, 0)) for word, found in shapes.items() if len(found) > 20}

    def likely(thing, text):
        total = 0.0
        for word in text.split():
            for (mean, deviation), sign in ((moments.get(word, moments["any"]), 1), (moments["any"], -1)):
                total -= sign * np.sum(((shape(thing) - mean) / deviation) ** 2 / 2 + np.log(deviation))
        return total

    chance, by_shape = [], []
    for one in scored:
        for i, texts in refer(one, one.rng(refcoco.TASK)):
            for text in texts:
                chance.append(1 / len(one.scene.things))
                by_shape.append(int(np.argmax([likely(thing, text) for thing in one.scene.things])) == i)
    print("RefCOCO+ without the image:", np.mean(chance), "by the shape of the boxes:", np.mean(by_shape))
    assert np.mean(chance) < 0.38 and np.mean(by_shape) < 0.65
