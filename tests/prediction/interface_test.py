"""Test the Python interface: lists, what is shown in a notebook, and errors that name arguments of Python."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import skimage
from PIL import Image

import vlbert_jax
from tests.helpers import ROOT
from tests.helpers.predict_case import shrunk, write_model, write_words

CAT, COFFEE = (f"{skimage.data_dir}/{name}.png" for name in ("chelsea", "coffee"))  # 451 x 300, 600 x 400
SCENE, BOXES = ROOT / "examples/scene.jpg", ROOT / "examples/scene.json"
NOT_TO_LOAD = {
    "array_record", "grain", "huggingface_hub", "orbax", "pyarrow", "tensorboardX", "tensorflow_datasets", "torch",
    "transformers",
}  # fmt: skip
QUESTIONS = ("what color is the large fish?", "what is the purple thing?", "where are the things?")


@pytest.fixture(scope="module")
def demo():
    return vlbert_jax.load("demo-vqa")


@pytest.fixture(scope="module")
def chooser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_words(folder)
    return vlbert_jax.load(write_model(folder / "vcr", shrunk("vcr", folder)))


def alike(found, expected):
    """Compare lists of answers: the same texts, and probabilities within the rounding of a batch."""
    assert [[answer.text for answer in answers] for answers in found] == [[a.text for a in e] for e in expected]
    for answers, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose([a.probability for a in answers], [a.probability for a in wanted], atol=1e-6)


def test_lists_give_the_single_answers_from_few_programs(demo):
    tall = Image.open(COFFEE).rotate(90, expand=True).resize((60, 90))
    images = [SCENE, tall, CAT, SCENE, np.asarray(Image.open(SCENE))]
    boxes = [BOXES, [[3, 4, 40, 50]], None, None, BOXES]
    texts = [*QUESTIONS, QUESTIONS[0], QUESTIONS[1]]
    expected = [demo.answer(*each) for each in zip(images, texts, boxes, strict=True)]
    assert len({answers[0].text for answers in expected}) > 2
    alike(demo.answer(images, texts, boxes), expected)
    alike(demo.ask([*images, SCENE], QUESTIONS[2])[2:3], [demo.answer(CAT, QUESTIONS[2])])
    pictures = demo.look(images, boxes)
    assert [len(picture.regions) for picture in pictures] == [3, 1, 9, 9, 3]
    alike(demo.answer(pictures, texts), expected)
    # Ten texts are batches of 8 and 2; five and six are batches of 8.
    many = [QUESTIONS[number % 3] for number in range(10)]
    alike(demo.answer(pictures[0], many), [demo.answer(pictures[0], text) for text in many])
    assert demo._predict.func._cache_size() == 3  # batches of 1, 2 and 8
    assert demo.answer([], QUESTIONS[0]) == [] and demo.look([]) == []


def test_lists_of_states_and_attention(demo):
    pictures = demo.look([SCENE, CAT], [BOXES, None])
    texts = ("what color is the large fish?", "is it red?")
    for each, picture, text in zip(demo.encode(pictures, texts), pictures, texts, strict=True):
        single = demo.encode(picture, text)
        assert each.tokens == single.tokens and len(each.regions) == len(picture.regions) + 1
        np.testing.assert_allclose(each.text, single.text, atol=1e-5)
        np.testing.assert_allclose(each.regions, single.regions, atol=1e-5)
    for each, picture, text in zip(demo.attention(pictures, texts), pictures, texts, strict=True):
        single = demo.attention(picture, text)
        assert each.regions == single.regions
        np.testing.assert_allclose(each.probabilities, single.probabilities, atol=1e-6)


def test_each_text_may_have_its_choices(chooser):
    texts, boxes = ["what is [1] ?", "is [1] red ?"], [[1, 2, 30, 40]]
    choices = [["a red ball", "a box", "yes"], ["yes", "no", "the box"]]
    found = chooser.choose(CAT, texts, choices, boxes)
    for row, text, own in zip(found, texts, choices, strict=True):
        np.testing.assert_allclose(row, chooser.choose(CAT, text, own, boxes), atol=1e-6)
    same = chooser.choose(CAT, texts, choices[0], boxes)
    np.testing.assert_allclose(same[0], found[0], atol=1e-6)
    assert not np.allclose(same[1], found[1], atol=1e-4)
    with pytest.raises(ValueError, match=r"needs texts to choose from: call choose\(image, question, choices\)"):
        chooser.ask(CAT, "what is [1] ?")


def test_a_predictor_says_what_it_is(demo, chooser):
    told = repr(demo)
    size = "2 layers x 128, 806,644 parameters"
    for part in ("demo-vqa", "visual question answering with vlbert", size, "36 answers", "answer(image"):
        assert part in told
    assert "visual commonsense" in repr(chooser) and "choose(image, question, choices)" in repr(chooser)


def test_a_notebook_shows_images(demo):
    picture = demo.look(SCENE, BOXES)
    assert repr(picture) == f"Picture({str(SCENE)!r}, 118 x 124, 3 regions from {BOXES})"
    drawn = Image.open(io.BytesIO(picture._repr_png_()))
    answered = demo.show(SCENE, list(QUESTIONS[:2]), boxes=BOXES)
    assert answered.width == drawn.width == 640 and answered.height > drawn.height + 2 * 2 * 27  # two lines for each
    one = demo.show(picture, QUESTIONS[0])
    assert np.array_equal(np.asarray(one)[: drawn.height], np.asarray(answered)[: drawn.height])
    assert (np.asarray(drawn) != np.asarray(demo.show(SCENE, QUESTIONS[0]))[: drawn.height]).any()  # the grid


BAD_CALLS = (
    (lambda demo: demo.ground(SCENE, "x"), r"call answer\(image, question\) or ask. ground needs a model for refer"),
    (lambda demo: demo.ask(SCENE, "x", ["a"]), r"demo-vqa takes no choices: call answer\(image, question\)"),
    (lambda demo: demo.ask(SCENE, "x", "abc"), "choices must be a list of texts, not 'abc'"),
    (lambda demo: demo.answer(SCENE, None), "a text must be a string, not None of type NoneType"),
    (lambda demo: demo.answer([SCENE], ["a", "b"]), "the lists have different lengths: image 1, text 2"),
    (lambda demo: demo.answer([SCENE], "a", [BOXES, BOXES]), "different lengths: image 1, boxes 2"),
    (lambda demo: demo.answer([SCENE], "a", BOXES), "takes a list of boxes: one entry for each image, or None"),
    (lambda demo: demo.answer(SCENE, ["a", " "]), "the text is empty"),
    (lambda demo: demo.answer("nowhere.jpg", "a"), "nowhere.jpg: there is no such file"),
    (lambda demo: vlbert_jax.load("demo-vqa", vocab="nowhere.txt"), "Give it as vocab=FILE, or the folder that holds"),
    (lambda demo: vlbert_jax.load("demo-vqa", answers="nowhere.txt"), "give it as answers=FILE, or the folder"),
    (
        lambda demo: vlbert_jax.load("demo-vqa", detector="unc-nlp/frcnn-vg-finetund"),
        "no weights at unc-nlp/frcnn-vg-finetund; did you mean unc-nlp/frcnn-vg-finetuned",
    ),
    (
        lambda demo: vlbert_jax.load("demo-vqa", detector="/nowhere"),
        "no weights at /nowhere; check the path, or name a model: the Hugging Face hub has unc-nlp/frcnn-vg-finet",
    ),
)


@pytest.mark.parametrize("call, message", BAD_CALLS)
def test_errors_name_arguments_of_python(demo, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        call(demo)
    assert "\n" not in str(caught.value) and not re.search(r"(^|\s|\()--\w", str(caught.value))


def test_errors_of_load_name_what_is_near(tmp_path, monkeypatch):
    """A misspelt name, a path without anything, and folders without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("workdirs/demo/checkpoints/7", "workdirs/vqa", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "workdirs/vqa/versions.json").write_text("{}")
    for path, message in (
        ("demo-vqqa", "there are no weights at demo-vqqa; did you mean demo-vqa?"),
        ("workdirs/demmo", "there are no weights at workdirs/demmo; did you mean workdirs/demo?"),
        ("/no/such.model", "there are no weights at /no/such.model; check the path, or name a model: "),
        ("nothing/here", "there are no weights at nothing/here, and as a name of the Hugging Face hub .* cannot be re"),
        ("empty", "empty contains neither a vlbert_jax checkpoint nor .*; give the folder of a model"),
        ("workdirs", "workdirs contains neither .*; models are in workdirs/demo$"),
        ("workdirs/vqa", "workdirs/vqa contains neither .*: the run has not saved a checkpoint yet; continue it"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            vlbert_jax.load(path)
        assert "\n" not in str(caught.value)


def test_help_shows_the_parameters_of_load():
    """`vlbert_jax.load` is imported when it is used, and help, dir and completion see it.

    To load a model imports no library that only training, tables or other formats need.
    """
    program = (
        "import json, pydoc, sys, vlbert_jax; vlbert_jax.load('demo-vqa'); "
        "print(json.dumps([pydoc.plain(pydoc.render_doc(vlbert_jax.load)), dir(vlbert_jax), "
        "pydoc.plain(pydoc.render_doc(vlbert_jax)), sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    shown, names, package, imported = json.loads(done.stdout)
    assert "jax" in imported and not NOT_TO_LOAD & set(imported)
    for part in ("load(", "path:", "detector:", "vocab:", "answers:", "data_dir:", "Args:", "name of a shipped model"):
        assert part in shown
    assert {"load", "__version__"} <= set(names) and "load(" in package
