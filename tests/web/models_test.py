"""Test the answers, the attention and the messages of the page's models, without a browser."""

import base64
import json
import re

import numpy as np
import pytest

import vlbert_jax
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
