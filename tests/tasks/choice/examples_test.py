"""Examples of VCR are as expected: plain, mirrored, truncated, and with too many or no objects."""

import json

import cv2
import numpy as np
import pytest

from tests.helpers import GOLDEN
from vlbert_jax.batch import END, IMG, NO_IMAGE
from vlbert_jax.data.packing import RegionLayout
from vlbert_jax.data.tokenizer import load_tokenizer
from vlbert_jax.tasks.choice.examples import ChoiceLayout, choice_example, on_rois
from vlbert_jax.tasks.choice.texts import ALIGNED, cut_answers, cut_rationales, first_name, object_names

VOCAB = GOLDEN / "data/common/vocab.txt"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(VOCAB), len(VOCAB.read_text("utf-8").splitlines()))


def layout(**changes):
    fields = dict(
        precomputed=False, image_scale=(40, 80), orientation="landscape", max_regions=3,
        feature_size=0, geometry_dtype=None, subtask="q2a", sequence_length=31, text_length=24, roi_size=14,
        num_classes=81,
    )  # fmt: skip
    return ChoiceLayout(**(fields | changes))


def record(**changes):
    """Return two persons and a dog in an image of 60 x 40 pixels, which is not resized."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    shapes = np.zeros((3, 14, 14), np.uint8)
    shapes[0, 2, 3], shapes[1, :7], shapes[2] = 1, 1, 1
    fields = dict(
        annot_id="train-0",
        image=cv2.imencode(".png", pixels)[1].tobytes(),
        image_size=np.array([60, 40], np.int32),
        boxes=np.array([[10.0, 5, 30, 35], [0, 0, 20, 20], [40, 10, 70, 50]]),
        objects=["person", "dog", "person"],
        classes=np.array([1, 17, 1]),
        shapes=shapes,
        question=json.dumps(["Why", "is", [0, 2], "?"]),
        answers=[json.dumps(text) for text in ([[1], "."], ["yes"], ["no", "."], [[2], "is", "W."])],
        rationales=[json.dumps([word]) for word in ("one", "two", "three", "four")],
        answer_label=np.int64(2),
        rationale_label=np.int64(1),
    )
    return fields | changes


def ids_of(tokenizer, *words):
    return [token for word in words for token in sum(tokenizer.words(word), [])]


def test_an_example_element_by_element(tokenizer):
    example = choice_example(record(), False, tokenizer, layout(), start=11)
    question = ids_of(tokenizer, "why", "is", "pat", "and", "quinn", "?")
    pat, quinn = (len(ids_of(tokenizer, name)) for name in ("pat", "quinn"))
    start = len(ids_of(tokenizer, "why", "is"))
    regions = [0] * start + [1] * pat + [0] + [3] * quinn + [0] * len(ids_of(tokenizer, "?"))
    answers = [ids_of(tokenizer, *words) for words in (["dog", "."], ["yes"], ["no", "."], ["quinn", "is", "w."])]
    tags = [
        [2] * len(ids_of(tokenizer, "dog")) + [0], [0] * len(answers[1]), [0] * len(answers[2]),
        [3] * quinn + [0] * len(ids_of(tokenizer, "is", "w.")),
    ]  # fmt: skip
    image = [tokenizer.vocab_size + IMG] * 4 + [tokenizer.vocab_size + END]
    for n in range(4):
        text = [tokenizer.cls_id, *question, tokenizer.sep_id, *answers[n], tokenizer.sep_id]
        t, rest = len(text), 32 - len(text) - 5
        assert example["token_ids"][n].tolist() == text + image + [0] * rest
        assert example["region_ids"][n, : t + 5].tolist() == [0, *regions, 0, *tags[n], 0, 0, 1, 2, 3, NO_IMAGE]
        assert example["segment_ids"][n, : t + 5].tolist() == (
            [0] * (len(question) + 2) + [1] * (len(answers[n]) + 1) + [2] * 5
        )
        assert example["position_ids"][n, : t + 5].tolist() == [*range(t), t, t, t, t, t + 1]
        assert example["element_mask"][n].tolist() == [True] * (t + 5) + [False] * rest
        assert example["region_positions"][n].tolist() == [t, t + 1, t + 2, t + 3]
    assert example["image_size"].tolist() == [[60, 40]] and example["pixels"].shape == (1, 64, 96, 3)
    assert example["boxes"].tolist() == [[0, 0, 59, 39], [10, 5, 30, 35], [0, 0, 20, 20], [40, 10, 59, 39]]
    assert example["region_classes"].tolist() == [0, 1, 17, 1] and example["region_mask"].all()
    assert example["region_shapes"][0].all() and example["region_shapes"].dtype == np.float32
    np.testing.assert_array_equal(example["region_shapes"][1:], record()["shapes"])
    assert example["choice"] == 2 and not example["text_cut"]


def test_a_mirrored_example(tokenizer):
    plain = choice_example(record(), False, tokenizer, layout(), start=0)
    example = choice_example(record(), True, tokenizer, layout(), start=0)
    np.testing.assert_array_equal(example["region_shapes"], plain["region_shapes"][:, :, ::-1])
    assert example["boxes"][1].tolist() == [29, 5, 49, 35]
    np.testing.assert_array_equal(example["token_ids"], plain["token_ids"])


def test_boxes_are_computed_in_float64(tokenizer):
    boxes = np.random.default_rng(0).uniform(0, 38, (3, 4))
    example = choice_example(record(boxes=boxes), False, tokenizer, layout(image_scale=(33, 66)))
    assert example["image_size"].tolist() == [[49, 33]]
    np.testing.assert_array_equal(example["boxes"][1:], (boxes * ([49 / 60, 33 / 40] * 2)).clip(0, 48).astype("f4"))


def test_rationales_follow_the_right_answer(tokenizer):
    example = choice_example(record(), False, tokenizer, layout(subtask="qa2r"), start=11)
    context = ids_of(tokenizer, "why", "is", "pat", "and", "quinn", "?", "no", ".")
    for n, word in enumerate(("one", "two", "three", "four")):
        text = [tokenizer.cls_id, *context, tokenizer.sep_id, *ids_of(tokenizer, word), tokenizer.sep_id]
        assert example["token_ids"][n, : len(text)].tolist() == text
    assert example["choice"] == 1


@pytest.mark.parametrize("subtask", ["q2a", "qa2r"])
@pytest.mark.parametrize("arrangement", ["context", "response", "apart"])
def test_arrangements_of_siblings(arrangement, subtask, tokenizer):
    parts = layout(subtask=subtask, arrangement=arrangement, regions=RegionLayout(segment=1, end_token=False))
    example = choice_example(record(), False, tokenizer, parts, start=11)
    q, a, r = (ids_of(tokenizer, *text.split()) for text in ("why is pat and quinn ?", "no .", "two"))
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    if subtask == "q2a":
        row, ids = 2, cls + q + sep + a + sep
        opens = arrangement == "apart"
        segments = [0] * (len(q) + 2 - opens) + [2 if opens else 1] * (len(a) + 1 + opens)
    elif arrangement == "context":
        row, ids = 1, cls + q + a + sep + r + sep
        segments = [0] * (len(q + a) + 2) + [1] * (len(r) + 1)
    elif arrangement == "response":
        row, ids = 1, cls + q + sep + a + r + sep
        segments = [0] * (len(q) + 2) + [1] * (len(a + r) + 1)
    else:
        row, ids = 1, cls + q + sep + a + sep + r + sep
        segments = [0] * (len(q) + 1) + [2] * (len(a) + 1) + [3] * (len(r) + 2)
    assert example["token_ids"][row, : len(ids)].tolist() == ids
    assert example["segment_ids"][row, : len(ids) + 4].tolist() == segments + [1] * 4
    assert example["region_positions"][row].tolist() == [len(ids) + k for k in range(4)]


@pytest.mark.parametrize("subtask", ["q2a", "qa2r"])
def test_the_tail_of_a_response_is_kept(subtask, tokenizer):
    """VisualBERT cuts the beginning of the response; only a context that is too long by itself loses its end."""
    responses = ["yes", "one two no .", "W.", "dog"]
    texts = [json.dumps(text.split()) for text in responses]
    known = record(answer_label=np.int64(0), rationales=texts) | dict(answers=texts)
    context = ids_of(tokenizer, "why", "is", "pat", "and", "quinn", "?", *["yes"] * (subtask == "qa2r"))

    def sequences(limit):
        parts = layout(subtask=subtask, arrangement="context_tail", text_length=limit)
        example = choice_example(known, False, tokenizer, parts, start=11)
        ends = [ids.tolist().index(tokenizer.vocab_size + IMG) for ids in example["token_ids"]]
        return [ids[:end].tolist() for ids, end in zip(example["token_ids"], ends, strict=True)], example["text_cut"]

    for room in (20, 2, 0, -1):
        found, was_cut = sequences(len(context) + room)
        lengths = [len(ids_of(tokenizer, *response.split())) for response in responses]
        assert was_cut == (max(lengths) > room)
        for ids, response, length in zip(found, responses, lengths, strict=True):
            kept = ids_of(tokenizer, *response.split())[max(length - max(room, 0), 0) :]
            first = context[: len(context) + min(room, 0)]
            assert ids == [tokenizer.cls_id, *first, tokenizer.sep_id, *kept, tokenizer.sep_id]


@pytest.mark.parametrize("subtask", ["q2a", "qa2r"])
def test_regions_are_aligned_with_the_words_that_name_them(subtask, tokenizer):
    """Positions are numbers of words, as in VisualBERT's code; those of words that were cut are left out."""
    known = record(question=json.dumps(["W.", [0, 2], [0], "?"]), rationales=[json.dumps([[2], "x"])] * 4)
    example = choice_example(known, False, tokenizer, layout(subtask=subtask, align_regions=True), start=11)
    words = example["region_words"]
    assert words.shape == (4, 4, ALIGNED) and words.dtype == np.int32
    found = [[[int(place) for place in row if place >= 0] for row in sequence] for sequence in words]
    question = len(ids_of(tokenizer, "w.", "pat", "and", "quinn", "pat", "?"))
    if subtask == "q2a":
        assert found[0] == [[], [2, 4], [question + 2], [3]] and found[1] == [[], [2, 4], [], [3]]
    else:
        start = question + len(ids_of(tokenizer, "no", ".")) + 2
        assert found == [[[], [2, 4], [], [3, start]]] * 4
    cut = choice_example(known, False, tokenizer, layout(subtask="q2a", align_regions=True, text_length=4), start=11)
    assert cut["region_words"].max() < 4 + 3 and cut["text_cut"]
    fewer = choice_example(known, False, tokenizer, layout(subtask="q2a", align_regions=True, max_regions=1), start=11)
    assert fewer["region_words"][0, :, 0].tolist() == [-1, 2]


def test_without_labels_rationales_follow_every_answer(tokenizer):
    unknown = record(answer_label=np.int64(-1), rationale_label=np.int64(-1))
    example = choice_example(unknown, False, tokenizer, layout(subtask="qa2r"), start=0)
    assert example["token_ids"].shape[0] == example["region_positions"].shape[0] == 16 and example["choice"] == -1
    for label in range(4):
        known = record(answer_label=np.int64(label))
        alone = choice_example(known, False, tokenizer, layout(subtask="qa2r"), start=0)
        np.testing.assert_array_equal(example["token_ids"][4 * label : 4 * label + 4], alone["token_ids"])
    assert choice_example(unknown, False, tokenizer, layout(), start=0)["choice"] == -1


def test_objects_beyond_the_limit_are_dropped(tokenizer):
    """Words that name dropped objects refer to the whole image."""
    example = choice_example(record(), False, tokenizer, layout(max_regions=2), start=11)
    full = choice_example(record(), False, tokenizer, layout(), start=11)
    count = int(np.sum(full["region_ids"][0] == 3)) - 1  # not counting the element of the region
    assert count > 0 and example["region_classes"].tolist() == [0, 1, 17]
    assert set(example["region_ids"][0]) == {0, 1, 2, NO_IMAGE}
    np.testing.assert_array_equal(example["region_ids"][0] == 1, full["region_ids"][0] == 1)


def test_an_image_without_objects(tokenizer):
    bare = record(
        objects=[], classes=np.zeros(0, np.int64), boxes=np.zeros((0, 4)), shapes=np.zeros((0, 14, 14), np.uint8),
        question='["Why", "?"]', answers=['["yes"]'] * 4,
    )  # fmt: skip
    example = choice_example(bare, False, tokenizer, layout())
    assert example["region_mask"].tolist() == [True, False, False, False]
    assert example["region_classes"].tolist() == [0, -1, -1, -1]


def test_names_of_persons():
    objects = ["person", "dog", "person", "person"]
    assert object_names(objects, 11) == ["Pat", "dog", "Quinn", "Casey"]
    starts = [first_name(f"train-{i}") for i in range(1300)]
    assert starts[:5] == [first_name(f"train-{i}") for i in range(5)]
    assert min(np.bincount(starts, minlength=13)) > 60  # about 100 each


def test_truncation_by_hand():
    # The longer text is truncated first; at a tie it is the question, also for later answers.
    assert cut_answers(5, [3, 9, 5], limit=10) == (5, [3, 5, 5])
    assert cut_answers(6, [6, 2], limit=7) == (3, [4, 2])
    assert cut_answers(8, [2, 6], limit=8) == (4, [2, 4])
    assert cut_rationales(3, 2, [9, 3], limit=10) == (3, 2, [5, 3])
    assert cut_rationales(3, 6, [4, 1], limit=8) == (1, 3, [4, 1])
    assert cut_rationales(2, 2, [3], limit=8) == (2, 2, [3])


def test_shapes_on_another_grid_are_averages():
    shapes = np.zeros((1, 14, 14), np.uint8)
    shapes[0, :2, :1], shapes[0, 13, 13] = 1, 1
    expected = np.zeros((7, 7))
    expected[0, 0], expected[6, 6] = 0.5, 0.25
    np.testing.assert_allclose(on_rois(shapes, 7, False)[0], expected, atol=1e-6)
    np.testing.assert_allclose(on_rois(shapes, 7, True)[0], expected[:, ::-1], atol=1e-6)
