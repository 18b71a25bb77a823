"""Test that a predictor gives the results of evaluation, without a program per image size."""

import io
import itertools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import skimage
from PIL import Image
from safetensors import safe_open

import vlbert_jax
from data_prep.build import build_scene_tasks
from tests.helpers.predict_case import RECIPES, WIDTH, in_float32, on_model, shrunk, write_model
from vlbert_jax.batch import make_batch
from vlbert_jax.convert import main
from vlbert_jax.data.examples import orientation_of
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.tables import Split, eval_parts
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.resnet import Stage
from vlbert_jax.prediction import loading
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.answer import task as answer_task
from vlbert_jax.tasks.answer_lists import answers_of
from vlbert_jax.tasks.choice import task as choice_task
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example
from vlbert_jax.tasks.pretrain.targets import PretrainTargets
from vlbert_jax.tasks.region import task as region_task
from vlbert_jax.tasks.region.examples import ExpressionLayout, asked_example, candidates, original_boxes
from vlbert_jax.weights.stored_config import SCHEMA

REGION = region_task.RegionTask()

CHOICE = choice_task.ChoiceTask()

ANSWER = answer_task.AnswerTask()

CAT, COFFEE = (f"{skimage.data_dir}/{name}.png" for name in ("chelsea", "coffee"))
QUESTION = "what color is the ball?"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_tasks(folder, num_train=4, num_val=6, num_test=2, feature_width=WIDTH)
    return folder


@pytest.fixture(scope="module")
def models(data_dir):
    """Return the config and the path of the model of each task."""
    configs = {recipe: shrunk(recipe, data_dir) for recipe in RECIPES}
    configs["precomputed"] = shrunk("vqa", data_dir, "base", **{"data.sequence_length": 31, "data.max_regions": 6})
    return {name: (config, write_model(data_dir / f"model_{name}", config)) for name, config in configs.items()}


@pytest.fixture(scope="module")
def predictors(models):
    return {name: vlbert_jax.load(path) for name, (_, path) in models.items()}


def test_few_regions_of_padding_are_computed(models, monkeypatch):
    """The four boxes and the whole image take two chunks of four; the size of a chunk changes no feature."""
    counted, stage = [], Stage.__call__

    def counting(self, x, *rest, **options):
        if x.shape[1:3] == (2, 2):  # the regions of the tiny recipe; feature maps are larger
            jax.debug.callback(lambda: counted.append(len(x)))
        return stage(self, x, *rest, **options)

    monkeypatch.setattr(Stage, "__call__", counting)
    boxes = [[10 * i, 5 * i, 10 * i + 40, 5 * i + 60] for i in range(4)]
    found = {}
    for chunk in (4, 16):
        monkeypatch.setattr(loading, "CPU_CHUNK", chunk)
        counted.clear()
        predictor = vlbert_jax.load(models["vqa"][1])
        found[chunk] = predictor.look(CAT, boxes).appearance
        jax.effects_barrier()
        assert counted == {4: [4, 4], 16: [10]}[chunk]  # of ten rows
    np.testing.assert_allclose(found[4], found[16], rtol=1e-5, atol=1e-6)  # sums in another order


def test_a_model_is_built_once(models, monkeypatch):
    """It is not built again to sample what the weights lack: vectors of pre-training, and rows that no word has."""
    build, built = answer_task.AnswerTask.build_model, []
    monkeypatch.setattr(answer_task.AnswerTask, "build_model", lambda *args: built.append(args) or build(*args))
    predictor = vlbert_jax.load(models["vqa"][1])
    assert len(built) == 1
    table = predictor._state["vlbert"]["token_embeddings"][...]
    assert table[: predictor.tokenizer.vocab_size].all() and not table[predictor.tokenizer.vocab_size + 3 :].any()


def evaluated(task, config, path, maker):
    """Return each record of the validation split with its prediction, computed as in evaluation.

    The predictions are computed in float32.
    """
    config = in_float32(config)
    predict, rows = on_model(path, config, lambda model, batch: task.predict(model, batch, config)), []
    parts = eval_parts(config, maker, task.example_shapes(config), task.targets, 0, 1)
    for batch in itertools.chain.from_iterable(parts):
        found = jax.device_get(predict(batch))
        rows += [(int(i), {k: v[n] for k, v in found.items()}) for n, i in enumerate(batch.index) if i >= 0]
    config.data.remember_records = 0  # the images are asked about as files
    split = Split(config, "val")
    return [(split[i], row) for i, row in rows]


def image_of(record):
    return Image.open(io.BytesIO(record["image"]))


@pytest.mark.parametrize("name", ["vqa", "precomputed"])
def test_answers_are_those_of_evaluation(name, models, predictors, data_dir):
    config, path = models[name]
    predictor, checked = predictors[name], set()
    for record, row in evaluated(ANSWER, config, path, ANSWER.example_maker):
        if record["question"] in checked or len(checked) == 4:
            continue
        checked.add(record["question"])
        folder = data_dir / "scenes_downstream/coco/vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
        image = data_dir / f"scenes_downstream/coco/val2014/COCO_val2014_{int(record['image_id']):012d}.jpg"
        found = predictor.answer(image, record["question"], folder / f"{record['image_id']}.json")
        assert [answer.text for answer in found] == [answers_of(predictor.config).entries[i] for i in row["answer"]]
        np.testing.assert_allclose([answer.probability for answer in found], row["probability"], atol=1e-5)
    assert len(checked) == 4


def test_places_are_those_of_evaluation(models, predictors):
    config, path = models["refcoco"]
    for record, row in evaluated(REGION, config, path, REGION.example_maker)[:4]:
        boxes = candidates(record, "detected")
        found = predictors["refcoco"].ground(image_of(record), record["expression"], boxes)
        count = len(found)
        assert [place.region for place in found] == row["region"][:count].tolist() and count == min(5, len(boxes) + 1)
        np.testing.assert_allclose([place.probability for place in found], row["probability"][:count], atol=1e-5)
        expected = original_boxes(record, "detected", tuple(config.data.image_scale))[row["region"][:count]]
        # The official code scales the boxes to the resized image and back, which clips them at its
        # last pixel.
        np.testing.assert_allclose([place.box for place in found], expected, atol=1)


def test_phrases_are_read_after_their_sentence(models, predictors):
    """The regions of a phrase are those of a record with its sentence; other words around it change them."""
    config, path = models["refcoco"]
    record, _ = evaluated(REGION, config, path, REGION.example_maker)[0]
    boxes, sentence = candidates(record, "detected"), f"{record['expression']} and the ball"
    layout = ExpressionLayout.of(in_float32(config), orientation_of(record), train=False)
    asked = record | dict(expression="the ball", context=sentence, boxes=boxes)
    example = asked_example(asked, boxes, False, tokenizer_of(config), layout)
    batch = make_batch({name: value[None] for name, value in example.items()}, REGION.targets)
    row = on_model(path, config, lambda model, batch: REGION.predict(model, batch, in_float32(config)))(batch)
    found, first = predictors["refcoco"].ground(image_of(record), sentence, boxes, ["the ball", record["expression"]])
    count = len(found)
    assert [place.region for place in found] == row["region"][0, :count].tolist()
    np.testing.assert_allclose([place.probability for place in found], row["probability"][0, :count], atol=1e-5)
    alone = predictors["refcoco"].ground(image_of(record), "the ball", boxes)
    assert [place.probability for place in alone] != pytest.approx([place.probability for place in found], abs=1e-4)
    assert len(first) == count


def test_choices_are_those_of_evaluation(models, predictors):
    """The probabilities equal those of evaluation.

    A user gives boxes without outlines, so the records of evaluation get rectangles as outlines.
    """
    config, path = models["vcr"]

    def maker(config, orientation, train):
        make = CHOICE.example_maker(config, orientation, train)
        return lambda record, flip: make(record | dict(shapes=np.ones_like(record["shapes"])), flip)

    def text(parts):
        return " ".join(p if isinstance(p, str) else f"[{','.join(str(i + 1) for i in p)}]" for p in json.loads(parts))

    record, row = evaluated(CHOICE, config, path, maker)[0]
    boxes = dict(boxes=record["boxes"].tolist(), labels=list(record["objects"]))
    predictor = predictors["vcr"]
    file = path / "boxes.json"
    file.write_text(json.dumps(boxes))
    found = predictor.choose(image_of(record), text(record["question"]), list(map(text, record["answers"])), file)
    expected = np.exp(row["logits"] - row["logits"].max())
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-5)
    assert sum(found) == pytest.approx(1)
    # The number of sequences is padded to 2, 4, 8 or 16, so other numbers of choices compile no
    # further program.
    compiled = predictor._predict.func._cache_size()
    fewer = predictor.choose(image_of(record), text(record["question"]), ["yes", "no", "the red ball"], file)
    assert len(fewer) == 3 and sum(fewer) == pytest.approx(1)
    assert predictor._predict.func._cache_size() == compiled
    with pytest.raises(ValueError, match=r"\[9\] in 'is \[9\] red': regions are 1 to"):
        predictor.choose(image_of(record), "is [9] red", ["yes"], file)


def test_filled_words_are_those_of_masking_in_training(models, predictors):
    """The guesses equal those for a pre-training example with the same masked words."""
    config, path = models["pretrain"]
    predictor, words = predictors["pretrain"], "a red ball above the box".split()
    boxes = np.array([[100, 50, 300, 250], [10, 5, 90, 80]], np.float32)
    pixels = np.asarray(Image.open(CAT))
    record = dict(
        image=pixels, image_size=np.array(pixels.shape[1::-1]), caption=words, boxes=boxes, image_feature=(),
        class_scores=np.full((2, 81), 1 / 81, np.float32),
    )
    uniform = np.ones(24)
    uniform[[1, 3]] = 0
    config = in_float32(config)
    samples = Samples(1.0, 0.0, 0.0, uniform, np.zeros(24, np.int64), np.ones(2))
    tokenizer, layout = tokenizer_of(config), CaptionLayout.of(config, train=False)
    example = caption_example(record, samples, tokenizer, layout)
    assert example["mlm_mask"].sum() == 2
    batch = make_batch({name: value[None] for name, value in example.items()}, PretrainTargets)
    guess = on_model(path, config, lambda m, batch: get_task("pretrain").predict_text(m, batch, config))
    expected = guess(batch)
    found = predictor.fill(pixels, "a [MASK] ball [MASK] the box", boxes)
    for i, mask in enumerate(found):
        for name, guesses in dict(words=mask.words, words_blind=mask.blind).items():
            probabilities, ids = (np.asarray(array)[0, 0, i] for array in expected[name])
            assert [word.text for word in guesses] == [tokenizer.backend.id_to_token(int(k)) for k in ids]
            np.testing.assert_allclose([word.probability for word in guesses], probabilities, atol=1e-5)
    assert found[0].words != found[0].blind
    with pytest.raises(ValueError, match="has no .MASK."):
        predictor.fill(CAT, "a red ball")
    with pytest.raises(ValueError, match=r"14 of the 30 \[MASK\]"):
        predictor.fill(CAT, "[MASK] " * 30)
    with pytest.raises(ValueError, match="empty"):
        predictors["vqa"].answer(CAT, " ")


def test_images_of_any_size_share_two_programs(predictors):
    predictor = predictors["vqa"]
    prepared = predictor.look(CAT)
    assert len(prepared.regions) == 9 and "3 x 3 grid" in prepared.regions.source
    first = predictor.answer(prepared, QUESTION)
    assert first == predictor.answer(np.asarray(Image.open(CAT)), QUESTION)
    with pytest.raises(ValueError, match="has its regions already"):
        predictor.answer(prepared, QUESTION, [[1, 2, 3, 4]])
    turned = Image.open(COFFEE).transpose(Image.Transpose.ROTATE_90)
    assert predictor.answer(turned, QUESTION) != first
    counts = [f.func._cache_size() for f in (predictor._appearance, predictor._predict)]
    for image in (COFFEE, Image.new("RGB", (1, 1)), Image.new("RGB", (2000, 3)), turned.resize((70, 300))):
        answers = predictor.answer(image, QUESTION)
        assert np.isfinite([answer.probability for answer in answers]).all()
    assert [f.func._cache_size() for f in (predictor._appearance, predictor._predict)] == counts
    assert counts[0] <= 2 and counts[1] == 1


def test_states_and_attention(models, predictors):
    for name in ("vqa", "vcr"):
        predictor, text = predictors[name], "what is red"
        encoded, seen = predictor.encode(CAT, text), predictor.attention(CAT, text)
        assert encoded.tokens == seen.tokens and encoded.tokens[:4] == ("[CLS]", "what", "is", "red")
        assert encoded.text.shape == (len(encoded.tokens), 32) and encoded.regions.shape == (10, 32)
        size = len(encoded.tokens) + 10 + 1
        assert seen.regions[:2] == ("whole image", "region 1") and seen.probabilities.shape == (2, 4, size, size)
        np.testing.assert_allclose(seen.probabilities.sum(-1), 1, atol=1e-5)
    # The states are those of the encoder, so the head on them gives the answer.
    predictor, (config, path) = predictors["vqa"], models["vqa"]
    mask = predictor.encode(CAT, "what is red").text[5]
    logits = on_model(path, config, lambda model: model.answer_head(jax.numpy.asarray(mask)[None])[0])()
    best = predictor.answer(CAT, "what is red")[0]
    assert answers_of(predictor.config).entries[int(logits.argmax())] == best.text
    np.testing.assert_allclose(jax.nn.sigmoid(logits.max()), best.probability, atol=1e-5)


def test_attention_runs_the_same_encoder(models):
    config, path = models["vqa"]
    batch = next(iter(ANSWER.eval_batches(config, 0, 1)["questions"]))
    (states, attention), same = on_model(path, config, lambda m, b: (m.attention(b), m.states(b)))(batch)
    np.testing.assert_allclose(states, same, atol=1e-6)
    b, n, s, _ = states.shape
    assert attention.shape == (2, b, n, 4, s, s)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert (np.asarray(attention)[:, 0][..., ~batch.element_mask[0, 0]] == 0).all()


def test_invalid_inputs_are_refused(models, predictors, data_dir, tmp_path):
    calls = (("vqa", "ground", "answer(image, question)"), ("refcoco", "fill", "ground(image, expression)"))
    for name, method, call in calls:
        with pytest.raises(ValueError, match=rf"is a model for .*: call {re.escape(call)} or ask. {method} needs"):
            getattr(predictors[name], method)(CAT, "what")
    with pytest.raises(ValueError, match="features of a detector. Give the detector .detector=PATH."):
        predictors["precomputed"].answer(CAT, QUESTION)
    config, path = models["precomputed"]
    other = write_model(tmp_path / "other", shrunk("vqa", data_dir, "base", **{"data.extractor": "abc"}))
    file = tmp_path / "regions.json"
    boxes = dict(boxes=[[1, 2, 30, 40]], features=[[0.5] * WIDTH])
    for extractor, fits in (("abc", True), ("", True), ("abd", False)):
        file.write_text(json.dumps(boxes | dict(extractor=extractor)))
        if fits:
            assert len(vlbert_jax.load(other).look(CAT, file).regions) == 1
            continue
        with pytest.raises(ValueError, match="trained on features of extractor abc, but these are of abd"):
            vlbert_jax.load(other).look(CAT, file)
    _, path = models["vqa"]
    with pytest.raises(ValueError, match="no vocabulary at .*Give it as vocab=FILE"):
        vlbert_jax.load(path, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no answer vocabulary [^.]*\.txt \(.*; give it as answers=FILE"):
        vlbert_jax.load(path, vocab=str(data_dir / "scenes_downstream/vocab.txt"), data_dir=str(tmp_path))
    blind = write_model(tmp_path / "blind", shrunk("vqa", data_dir, blind=True))
    with pytest.raises(ValueError, match="without the image"):
        vlbert_jax.load(blind)


def test_weights_that_lack_a_head(data_dir, tmp_path):
    config = shrunk("vqa", data_dir)
    path = write_model(tmp_path / "model", config)
    about = json.loads((path / "config.json").read_text())
    about["newly_initialized"] = ["final_mlp.2.weight"]
    (path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="of a trained model for answer are missing, such as final_mlp.2.weight"):
        vlbert_jax.load(path)


def test_a_safetensors_file_has_the_config_of_its_run(models, predictors, data_dir, tmp_path):
    """The metadata of the file has the fields that shapes do not determine, such as strides."""
    config, path = models["vqa"]
    file = tmp_path / "vqa.safetensors"
    assert main([str(path), str(file)]) == 0
    predictor = vlbert_jax.load(file, data_dir=data_dir)
    for block in ("model", "losses"):
        assert predictor.config[block].to_dict() == predictors["vqa"].config[block].to_dict()
    assert predictor.config.data.max_regions == predictors["vqa"].config.data.max_regions
    assert predictor.answer(CAT, QUESTION) == predictors["vqa"].answer(CAT, QUESTION)
    with safe_open(file, "np") as opened:
        stored = json.loads(opened.metadata()["vlbert_jax.config"])
    assert "data_dir" not in stored["data"] and stored["schema"] == SCHEMA


def test_a_file_without_a_config(models, data_dir, tmp_path):
    """The weights determine the sizes, and the published recipe determines the other fields."""
    _, path = models["vqa"]
    file = tmp_path / "vqa.model"
    assert main([str(path), str(file)]) == 0
    words = dict(vocab=data_dir / "scenes_downstream/vocab.txt", answers=data_dir / "vqa/scenes_answers.txt")
    predictor = vlbert_jax.load(file, **words)
    assert predictor.task.name == "answer" and predictor.config.data.image_scale == (600, 1000)
    assert predictor.config.data.max_regions == 100 and predictor.config.losses.answer == "sigmoid"
    answers = predictor.answer(CAT, QUESTION)
    assert len(answers) == 5 and 0 < answers[0].probability < 1
    with pytest.raises(ValueError, match="no vocabulary at .*nowhere.txt"):
        vlbert_jax.load(file, vocab=str(tmp_path / "nowhere.txt"))


def test_importing_the_package_is_cheap():
    code = "import sys, vlbert_jax; print('jax' in sys.modules, callable(vlbert_jax.load))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
