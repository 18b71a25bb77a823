"""Test the answers, the attention and the messages of the page's models, without a browser."""

import base64
import json
import re

import numpy as np
import pytest

import vlbert_jax
from tests.helpers import ROOT
from tests.helpers.predict_case import shrunk, write_model, write_words
from vlbert_jax.web import scene as scenes
from vlbert_jax.web.models import ServedModel

QUESTION = "what color is the large fish?"


@pytest.fixture(scope="module")
def example():
    return scenes.example_scene(None)[0]


@pytest.fixture(scope="module")
def vqa():
    return ServedModel(vlbert_jax.load("demo-vqa"))


@pytest.fixture(scope="module")
def choosing(tmp_path_factory):
    """Return a tiny model with random weights whose task takes choices."""
    folder = tmp_path_factory.mktemp("data")
    write_words(folder)
    return ServedModel(vlbert_jax.load(write_model(folder / "tiny", shrunk("vcr", folder))))


def test_an_answer_and_the_same_without_the_box(vqa, example):
    assert vqa.ask(example, QUESTION).lines[0].startswith("orange ")
    without = vqa.ask(scenes.delete_box(example, 1), QUESTION)  # box 2 is around the large fish
    assert not without.lines[0].startswith("orange ") and not without.marks
    assert "small demonstration model" in vqa.notice and vqa.option == "question"


def test_an_expression_marks_its_region(example):
    model = ServedModel(vlbert_jax.load("demo-refcoco"))
    reply = model.ask(example, "the large fish")
    assert list(reply.marks) == [1] and reply.marks[1].startswith("the large fish ")
    assert list(model.ask(example, "the purple thing").marks) == [0]
    without = scenes.delete_box(example, 0)
    assert not model.ask(without, "the purple thing").marks  # the whole image, because no box is left for it
    drawn = scenes.draw_box(without, (51.0, 63.0, 82.0, 85.0))
    assert list(model.ask(drawn, "the purple thing").marks) == [2]


def test_unknown_words_are_reported_on_the_page_only(vqa, example, capsys):
    assert vqa.ask(example, "what color is the Ω?").warnings == ["'Ω' is not in the model's vocabulary"]
    assert capsys.readouterr().err == ""


def test_what_cannot_be_asked(vqa, choosing, example, monkeypatch):
    with pytest.raises(ValueError, match="the text is empty"):
        vqa.ask(example, "  ")
    with pytest.raises(ValueError, match="there is no choice"):
        choosing.ask(example, "why is [1] here ?")
    monkeypatch.setitem(choosing.predictor.config.data, "features", "precomputed")
    features = np.zeros((3, 12), np.float32)
    described = scenes.dataclasses.replace(example.regions, features=features)
    scene = scenes.dataclasses.replace(example, found=described, regions=described)
    with pytest.raises(ValueError, match="features that a detector computes .* a drawn box has none"):
        choosing.ask(scenes.draw_box(scene, (1.0, 1.0, 50.0, 50.0)), "why is [1] here ?", ("red", "blue"))


@pytest.fixture(scope="module")
def gallery():
    return scenes.example_gallery(None)


def test_labels_follow_from_a_text_and_one_or_two_images(example, gallery):
    one, two = (ServedModel(vlbert_jax.load(name)) for name in ("demo-classify", "demo-nlvr2"))
    assert (one.label, one.kind) == ("Classify", "classify")
    assert (two.label, two.kind) == ("Classify two images", "classify_pair")
    assert one.ask(example, "The purple thing is a fish.").lines[0].startswith("entailment ")
    assert one.shows_attention and not two.shows_attention
    assert two.ask(example, "Only the left image shows a fish.", (), gallery[4]).lines[0].startswith("True ")
    with pytest.raises(ValueError, match="needs a second image"):
        two.ask(example, "Both images show a car.")
    with pytest.raises(ValueError, match="takes no second image"):
        one.ask(example, "The car is red.", (), gallery[4])


def test_captions_need_no_text(gallery):
    model = ServedModel(vlbert_jax.load("demo-caption"))
    assert (model.label, model.registered.takes_text, model.shows_attention) == ("Describe", False, False)
    assert model.ask(gallery[6], "").lines[0].endswith("the orange moon and the blue star on the beach.")


def test_texts_are_ranked_and_images_are_ordered(example, gallery):
    model = ServedModel(vlbert_jax.load("demo-retrieval"))
    texts = ["two cars", "a purple fish and an orange fish", "a blue ball"]
    lines = model.rank_texts(example, texts).lines
    assert lines[0].endswith(texts[1]) and sorted(line.split("  ")[-1] for line in lines) == sorted(texts)
    order, warnings = model.order_images(example, "a blue star above an orange moon", gallery)
    assert list(order)[0] == 6 and sorted(order) == list(range(8)) and not warnings
    expected = model.predictor.search(
        "a blue star above an orange moon", [str(ROOT / f"examples/gallery/{n}.jpg") for n in range(1, 9)],
        boxes=[str(ROOT / f"examples/gallery_boxes/{n}.json") for n in range(1, 9)],
    )  # fmt: skip
    assert list(order) == [one.number for one in expected]
    assert order[6].split() == [f"{expected[0].probability:.0%}", f"{expected[0].score:.1f}"]
    assert model.order_images(example, "a blue Ω", gallery)[1] == ["'Ω' is not in the model's vocabulary"]
    for wrong in (lambda: model.rank_texts(example, []), lambda: model.order_images(example, " ", gallery)):
        with pytest.raises(ValueError, match="the text is empty"):
            wrong()


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_attention_of_every_word(vqa, example):
    reply = vqa.ask(example, QUESTION)
    data = page_data(vqa.attention(example, reply))
    assert data["tokens"][:4] == ["[CLS]", "what", "color", "is"]
    assert data["regions"] == ["whole image", "region 1", "region 2", "region 3"]
    size = len(data["tokens"]) + len(data["regions"]) + 1
    found = vqa.predictor.attention(vqa.look(example), QUESTION).probabilities
    assert found.shape == (data["layers"], data["heads"], size, size)
    stored = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(found.shape)
    np.testing.assert_allclose(stored / 255, np.sqrt(found), atol=1 / 500)


def test_attention_is_that_of_the_best_choice(choosing, example):
    reply = choosing.ask(example, "what is [1] ?", ("red", "blue fish"))
    assert reply.best in ("red", "blue fish")
    assert reply.best.split()[-1] in page_data(choosing.attention(example, reply))["tokens"]
