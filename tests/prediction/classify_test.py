"""A model of pairs of images answers from Python and from the command as it does in evaluation."""

import json

import jax
import numpy as np
import pytest

import vlbert_jax
from tests.helpers.classify_case import image_record, tiny
from tests.helpers.predict_case import in_float32, on_model, write_model
from vlbert_jax import predict
from vlbert_jax.batch import Batch, make_batch
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.prediction.requests import Request, needs_of, requests_of
from vlbert_jax.tasks import TASKS, get_task
from vlbert_jax.tasks.classify.examples import ClassLayout, class_example, labels_of
from vlbert_jax.tasks.classify.task import Value

CLASSIFY = get_task("classify")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the folder, the config and the predictor of a model of pairs, and two images with their boxes."""
    folder = tmp_path_factory.mktemp("pair")
    config = tiny(2, **{"data.image_scale": (32, 48), "data.sequence_length": 24, "data.max_regions": 9})
    write_model(folder / "model", config)
    images = []
    for number in (0, 1):  # landscape and portrait
        record = image_record(number)
        (folder / f"{number}.png").write_bytes(record["image"])
        (folder / f"{number}.json").write_text(json.dumps(record["boxes"].tolist()))
        images.append((str(folder / f"{number}.png"), record["boxes"]))
    return folder, config, vlbert_jax.load(folder / "model"), images


def expected(folder, config, numbers, text, text2="") -> np.ndarray:
    """Return the probabilities that evaluation computes."""
    config = in_float32(config)
    text = dict(text=text, text2=text2, labels=[], values=[], known=False)
    record = dict(images=[image_record(number) for number in numbers]) | text
    layout = ClassLayout.of(config, "square")
    example = class_example(record, False, tokenizer_of(config), layout, labels_of(config))
    batch = make_batch({name: value[None] for name, value in example.items()}, CLASSIFY.targets)
    batch = jax.tree.map(jax.numpy.asarray, batch)
    program = on_model(folder / "model", config, lambda model, batch: CLASSIFY.predict(model, batch, config))
    return np.asarray(program(batch)["probabilities"][0])


def test_answers_equal_evaluation(pair):
    folder, config, predictor, ((first, boxes), (second, boxes2)) = pair
    pictures = predictor.look([first, second], [boxes, boxes2])
    answers = predictor.classify(pictures[0], "the red one", image2=pictures[1])
    chances = expected(folder, config, (0, 1), "the red one")
    assert answers[0].probability == pytest.approx(chances.max(), abs=1e-5)
    assert {answer.text: answer.probability for answer in answers} == pytest.approx(
        dict(zip(("False", "True"), map(float, chances), strict=True)), abs=1e-5
    )
    swapped = predictor.classify(pictures[1], "the red one", image2=pictures[0])
    assert abs(swapped[0].probability - answers[0].probability) > 1e-4
    lists = predictor.classify(pictures[0], ["the red one", ""], ["", "is it left"], image2=pictures[1])
    assert [one.text for one in lists[0]] == [one.text for one in answers]
    without = expected(folder, config, (0, 1), "", "is it left")
    assert lists[1][0].probability == pytest.approx(without.max(), abs=1e-5)
    with pytest.raises(ValueError, match=r"needs a second image \(--image2 of the command\): call classify"):
        predictor.classify(pictures[0], "the red one")


def test_the_command_takes_two_images_and_two_texts(pair, capsys):
    folder, config, _, ((first, _), (second, _)) = pair
    boxes = [f"--boxes={folder}/0.json", str(folder / "1.json")]
    given = ["--json", f"--checkpoint={folder}/model", f"--image={first}", f"--image2={second}", *boxes]
    assert predict.main([*given, "--text", "the red one", "--text2=is it left"]) == 0
    (asked,) = json.loads(capsys.readouterr().out)[0]["asked"]
    chances = expected(folder, config, (0, 1), "the red one", "is it left")
    assert asked["text"] == "the red one" and asked["text2"] == "is it left" and asked["image2"] == second
    assert asked["answers"][0]["probability"] == pytest.approx(chances.max(), abs=1e-4)
    assert predict.main(given) == 0  # without a text the images alone are classified
    (asked,) = json.loads(capsys.readouterr().out)[0]["asked"]
    assert asked["answers"][0]["probability"] == pytest.approx(expected(folder, config, (0, 1), "").max(), abs=1e-4)
    assert predict.main(["--checkpoint=demo-vqa", f"--image={first}", f"--image2={second}"]) == 2
    assert "--image2 goes with --text, but" in capsys.readouterr().err
    assert predict.main([*given, "--text2=is it left"]) == 2
    assert "--text2 goes with --text" in capsys.readouterr().err
    assert predict.main([*given[:-1], "--text", "the red one"]) == 2
    assert "There are 2 images but 1 files in --boxes" in capsys.readouterr().err


def test_numbers_are_named():
    config = tiny(1, **{"losses.classify": "squared", "data.labels": ""})
    batch = Batch(*(np.zeros((1, 1, 1), kind) for kind in (*[np.int32] * 4, bool)))
    answers = CLASSIFY.decode(dict(probabilities=np.array([[0.25, -3.5]])), np.zeros((1, 4)), (), batch, config)
    assert answers == [Value("value 1", 0.25), Value("value 2", -3.5)]
    described = CLASSIFY.describe(answers)
    assert described == {"values": [dict(name="value 1", value=0.25), dict(name="value 2", value=-3.5)]}
    assert CLASSIFY.lines(described) == ["value 1 0.25   value 2 -3.5"]


@pytest.mark.parametrize("task, fields, images, message", [
    ("classify", dict(choices=("a",)), 1, "takes no choices"),
    ("classify", dict(image2="b.png"), 1, "takes no second image"),
    ("answer", dict(text2="more"), 1, "takes no second text"),
    ("choice", {}, 1, "needs texts to choose from"),
    ("classify", dict(image2="b.png", text2="more"), 2, ""),
])  # fmt: skip
def test_what_does_not_go_with_a_model_is_named(task, fields, images, message):
    request = Request("a.png", "what", (), None)._replace(**fields)
    assert needs_of(request, TASKS[task], tiny(images)) == message


def test_lists_go_together():
    requests, several = requests_of(["a", "b"], "x", text2=["", "y"], image2=["c", "d"], text_optional=True)
    assert several and [(r.image, r.text2, r.image2) for r in requests] == [("a", "", "c"), ("b", "y", "d")]
    with pytest.raises(ValueError, match="different lengths: image 2, image2 3"):
        requests_of(["a", "b"], "x", image2=["c", "d", "e"])
    with pytest.raises(ValueError, match="the text is empty"):
        requests_of("a", "")
