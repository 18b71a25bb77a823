"""The VQA task has the expected examples, losses and scores, and trains shrunk recipes."""

import itertools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain as pretrain_recipes
from configs import vqa as recipes
from data_prep.build import build_scene_tasks, run_vqa
from tests.helpers import GOLDEN
from tests.helpers.batch_case import fields_of
from tests.helpers.golden_data_case import load_tokenizer
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import END, IMG, Batch
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import load_tokenizer as load_tokenizer_
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.visual_linguistic import region_head_is_frozen
from vlbert_jax.tasks import answer_lists
from vlbert_jax.tasks.answer import accuracy
from vlbert_jax.tasks.answer import task as answer_task
from vlbert_jax.tasks.answer.examples import QuestionLayout, question_example
from vlbert_jax.tasks.answer_lists import answers_of
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train
from vlbert_jax.training.preemption import Preemption, Stopped
from vlbert_jax.weights import export, vlbert_names

PRETRAIN = pretrain.PretrainTask()

ANSWER = answer_task.AnswerTask()

FEATURES = 12
VOCABULARY = "scenes_downstream/vocab.txt"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_tasks(folder, num_train=24, num_val=11, num_test=4, feature_width=FEATURES)
    return folder


def shrunk(variant: str, data_dir, **fields):
    """Return a shipped recipe with small sizes for the synthetic corpus; other fields are kept."""
    config, demo = getattr(recipes, variant)(), recipes.demo()
    names = ("texts", "images", "vocab", "answers", "sequence_length", "max_regions")
    shrink(config, demo, data_dir, num_layers=2, names=names)
    config.model.feature_size, config.model.num_answers = FEATURES, demo.model.num_answers
    config.batch_size = 8
    config.update_from_flattened_dict(fields)
    return config

@pytest.mark.parametrize("name, found", [("vqa", 3_124), ("gqa", 1_736)])
def test_rows_of_the_head_of_lxmerts_pre_training(name, found, tmp_path):
    """Answers of LXMERT's lists are found in the rows that its code finds, and others as its code writes them."""
    config = recipes.lxmert_gqa()
    config.data.answers = f"lxmert_{name}.json"
    config.model.num_answers = {"vqa": 3_129, "gqa": 1_842}[name]
    rows = ANSWER.answer_rows(config, 9_500)
    assert rows.tolist() == json.loads((GOLDEN / "names/lxmert_answer_rows.json").read_text())[name]
    assert (rows >= 0).sum() == found
    assert ANSWER.answer_rows(config, 41) is None
    (tmp_path / "list.json").write_text('["A man.", "man", "<unk>"]')
    config.data.answers, config.model.num_answers = str(tmp_path / "list.json"), 3
    config.data.answers_have_unknown = True
    man, same, unknown = np.asarray(ANSWER.answer_rows(config, 9_500))
    assert man == same >= 0 and unknown == -1


def test_a_share_of_a_split(data_dir):
    """The share is of each orientation, rounded up; it is the same in every run and a part of larger shares."""
    config = shrunk("demo", data_dir)

    def ids(name):
        split = Split(config, name)
        numbers = range(len(split)), range(split.num_landscape)
        return [{int(split.texts[number]["question_id"]) for number in part} for part in numbers]

    whole, landscape = ids("train")
    assert ids("train[:100%]") == [whole, landscape]
    kept = set()
    for percent in (0.5, 10, 37.5):
        share, of_landscape = ids(f"train[:{percent}%]")
        assert len(of_landscape) == math.ceil(len(landscape) * percent / 100) and of_landscape <= landscape
        assert len(share) == len(of_landscape) + math.ceil((len(whole) - len(landscape)) * percent / 100)
        assert kept < share < whole
        kept = share
    (val, _), (both, _) = ids("val"), ids("train[:37.5%]+val")
    assert both == kept | val
    config.data.train_split = "train[:10%]"
    batches = itertools.islice(ANSWER.train_batches(config, 0, 0, 1), 20)
    seen = {int(index) for batch in batches for index in batch.index}
    assert seen == set(range(len(ids("train[:10%]")[0])))
    for wrong in ("train[:0%]", "train[:101%]", "train[10%]", "train[:-3%]", "train[:3]", "train[:3%"):
        with pytest.raises(ValueError, match=r"the split 'train\[.* has a share that is not of the form \[:P%\]"):
            ids(wrong)



# --- The example ----------------------------------------------------------------------------------


def example_of(data_dir, flip=False, room=31, **record):
    config = shrunk("base", data_dir, **{"data.sequence_length": room, "data.max_regions": 2})
    record = dict(
        question="what is left ?",
        answers=["left"] * 2 + ["red"] * 8,
        image_size=np.array([100, 50], np.int32),
        boxes=np.array([[10, 5, 40, 30], [50, 0, 90, 45]], np.float32),
        features=np.arange(24, dtype=np.float32).reshape(2, 12),
        image_feature=np.zeros(0, np.float32),
        image=b"",
    ) | record
    vocabulary = answer_lists.AnswerVocabulary(["left", "right", "red", "<unk>"])
    tokenizer = load_tokenizer()
    return question_example(record, flip, tokenizer, QuestionLayout.of(config), vocabulary), tokenizer


def test_example_by_hand(data_dir):
    example, tokenizer = example_of(data_dir)
    words = [tokenizer.backend.token_to_id(word) for word in ("what", "is", "left", "?")]
    text = [tokenizer.cls_id, *words, tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id]
    regions = [tokenizer.vocab_size + IMG] * 3
    assert example["token_ids"][0, :12].tolist() == [*text, *regions, tokenizer.vocab_size + END]
    assert example["segment_ids"][0, :12].tolist() == [0] * 6 + [1] * 2 + [2] * 4
    assert example["region_ids"][0, :11].tolist() == [0] * 8 + [0, 1, 2]
    assert example["position_ids"][0, :12].tolist() == [*range(8), 8, 8, 8, 9]
    assert example["answer_positions"] == 6 and example["element_mask"].sum() == 12
    np.testing.assert_allclose(example["answer_targets"], [0.6, 0, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(example["region_features"][0], np.arange(12) + 6)  # the mean over boxes
    with_own, _ = example_of(data_dir, image_feature=np.full(12, 7, np.float32))
    assert (with_own["region_features"][0] == 7).all()


def test_a_mirrored_image_swaps_left_and_right(data_dir):
    plain, tokenizer = example_of(data_dir)
    example, _ = example_of(data_dir, flip=True)
    assert example["token_ids"][0, 3] == tokenizer.backend.token_to_id("right")
    np.testing.assert_allclose(example["answer_targets"], [0, 0.6, 1, 0], rtol=1e-6)
    width = plain["image_size"][0, 0]
    np.testing.assert_allclose(example["boxes"][1, [0, 2]], width - 1 - plain["boxes"][1, [2, 0]], rtol=1e-6)


def test_a_long_question_is_truncated_and_counted(data_dir):
    example, tokenizer = example_of(data_dir, room=9)
    assert example["text_cut"] and not example_of(data_dir)[0]["text_cut"]
    text = example["token_ids"][0, :6].tolist()
    assert text[3:] == [tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id]
    assert example["region_mask"].sum() == 3  # all regions are kept


# --- Loss, score, head ----------------------------------------------------------------------------


def known_batch(targets) -> Batch:
    zeros = jnp.zeros((len(targets), 1, 2), jnp.int32)
    targets = answer_task.AnswerTargets(answer_targets=jnp.asarray(targets, jnp.float32))
    return Batch(zeros, zeros, zeros, zeros, zeros == 0, targets=targets)


def test_losses_and_score_on_known_logits(data_dir, monkeypatch):
    config = shrunk("base", data_dir)
    logits = jnp.array([[2.0, -1.0, 0.0], [0.0, 0.0, 3.0], [5.0, 0.0, 0.0]])
    monkeypatch.setattr(answer_task, "_logits", lambda model, batch, config, key=None: logits)
    batch = known_batch([[0.9, 0.3, 0.0], [1.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])  # the last has no answers
    model = object.__new__(answer_task.AnswerModel)
    sums, metrics = ANSWER.loss_sums(model, batch, None, config, ("answer",))
    p = jax.nn.sigmoid(logits[:2])
    t = batch.targets.answer_targets[:2]
    np.testing.assert_allclose(sums["answer"], -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(), rtol=1e-5)
    assert ANSWER.loss_counts(batch, config, ("answer",))["answer"] == 2
    np.testing.assert_allclose(metrics["answer_accuracy"], (0.9, 2), rtol=1e-6)
    config.losses.answer = "softmax"
    scores = batch.targets.answer_targets * jnp.array([[1], [0], [1]])
    none = batch.replace(targets=batch.targets.replace(answer_targets=scores))  # the second has no known answer
    assert ANSWER.loss_counts(none, config, ("answer",))["answer"] == 1
    sums, _ = ANSWER.loss_sums(model, batch, None, config, ("answer",))
    np.testing.assert_allclose(sums["answer"], -jax.nn.log_softmax(logits)[[0, 1], [0, 0]].sum(), rtol=1e-5)
    config.losses.answer = "other"
    with pytest.raises(ValueError, match="losses.answer is 'other'; it must be sigmoid, softmax or kl"):
        ANSWER.loss_sums(model, batch, None, config, ("answer",))


def test_the_last_layer_is_initialized_with_the_words_of_the_answers(data_dir):
    config = shrunk("base", data_dir)
    model = ANSWER.build_model(config, nnx.Rngs(0))
    before = np.asarray(model.answer_head.classes.kernel[...])
    ANSWER.initialize_heads(model, config, {("answer_head", "classes", "kernel")})  # the kernel was loaded
    np.testing.assert_array_equal(model.answer_head.classes.kernel[...], before)
    ANSWER.initialize_heads(model, config, set())
    tokenizer, entries = tokenizer_of(config), answers_of(config).entries
    words = np.asarray(model.vlbert.token_embeddings[...])
    for column, answer in enumerate(entries):
        tokens = sum(tokenizer.words(answer), [])
        expected = words[tokens].mean(0)
        np.testing.assert_allclose(model.answer_head.classes.kernel[:, column], expected, rtol=1e-5, atol=1e-6)
    assert any(len(sum(tokenizer.words(answer), [])) > 1 for answer in entries)


# --- The shipped recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["demo", "base", "large"])
def test_shipped_recipes_train(variant, data_dir):
    gains = {f"model.encoder.{kind}_visual_gain_init": 0.1 for kind in ("text", "region")}
    config = shrunk(variant, data_dir, **gains)
    batch = jax.tree.map(jnp.asarray, next(ANSWER.train_batches(config, 0, 0, 1)))
    model = ANSWER.build_model(config, nnx.Rngs(0))
    trainable = nnx.All(nnx.Param, lambda p, _: not region_head_is_frozen(p, config))
    graphdef, trained, rest = nnx.split(model, trainable, ...)

    def loss(trained):
        sums, _ = ANSWER.loss_sums(nnx.merge(graphdef, trained, rest), batch, None, config, ("answer",))
        return sums["answer"] / ANSWER.loss_counts(batch, config, ("answer",))["answer"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(trained)
    assert abs(value - config.model.num_answers * np.log(2)) < 3  # the loss of logits near 0
    reached = {"/".join(map(str, path)) for path, v in nnx.to_flat_state(gradient) if np.asarray(v[...]).any()}
    assert "answer_head/classes/kernel" in reached and "fast_rcnn/projection/kernel" in reached
    assert any("backbone" in name for name in reached) == config.model.train_region_head


def run(config, workdir: Path, mode: str = "train"):
    """Train or evaluate on one device, as `main.run` does."""
    workdir.mkdir(exist_ok=True)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    if mode == "evaluate":
        return evaluate_run(config, ANSWER, workdir, mesh)
    return train(config, ANSWER, workdir, mesh)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """Run four updates from scratch, and again with a stop after two.

    Returns:
        The config, the workdir of the uninterrupted run, and that of the resumed run.
    """
    workdirs = [tmp_path_factory.mktemp(name) for name in ("whole", "parts")]
    fields = {"total_steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2, "eval_every_steps": 0}
    config = shrunk("demo", data_dir, **fields, **{"init.scratch": True, "data.embedded": ""})
    config.report = True
    run(config, workdirs[0])
    config.report = False
    with pytest.MonkeyPatch.context() as patch:
        calls = iter((False, True))
        patch.setattr(Preemption, "reached", lambda self: next(calls))
        with pytest.raises(Stopped, match="step 2 is saved"):
            run(config, workdirs[1])
    run(config, workdirs[1])
    return config, *workdirs


@pytest.fixture(scope="module")
def small_run(data_dir, tmp_path_factory):
    """Return the config and workdir of a run of one update on precomputed features."""
    config = shrunk("base", data_dir, **{"total_steps": 1, "init.scratch": True})
    workdir = tmp_path_factory.mktemp("small")
    run(config, workdir)
    return config, workdir


def rows(workdir: Path) -> list[dict]:
    read = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time" not in k and "per_sec" not in k} for row in read]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run(trained):
    _, whole, parts = trained
    assert rows(whole) == rows(parts) and len(rows(whole)) == 5
    assert 0 <= rows(whole)[-1]["answer_accuracy"] <= 1
    page = (whole / "report/index.html").read_text()
    assert "Visual question answering" in page and page.count('class="card prediction"') == 12
    # The examples shown are right about as often as those of the split; here there are few to choose from.
    accuracy = 100 * rows(whole)[-1]["answer_accuracy"]
    shown, measured = re.search(r"mean score of these 12 answers is (\d+) %; .* split is ([\d.]+) %", page).groups()
    assert measured == f"{accuracy:.1f}" and abs(float(shown) - accuracy) < 10
    assert "questions answered right" in page and "--question" in page and "cores of" in page


def test_evaluation_writes_a_submission_for_evalai(small_run):
    config, workdir = small_run
    scores = run(config, workdir, "evaluate")
    split = Split(config, "val")
    submitted = json.loads((workdir / "predictions/val.json").read_text())
    assert [set(item) for item in submitted] == [{"question_id", "answer"}] * len(split)
    asked = {int(split.texts[i]["question_id"]): split.texts[i] for i in range(len(split))}
    assert [type(item["question_id"]) for item in submitted] == [int] * len(split)
    assert sorted(item["question_id"] for item in submitted) == sorted(asked)
    official = [accuracy.answer_accuracy(i["answer"], asked[i["question_id"]]["answers"]) for i in submitted]
    assert scores["vqa_official_accuracy"] == accuracy.percent(official) / 100
    assert {"vqa_official_accuracy_yes_no", "vqa_official_accuracy_number"} <= scores.keys()
    # A split without annotations has a submission and no scores.
    config = config.copy_and_resolve_references()
    config.data.eval_split = "test"
    assert not any("accuracy" in name or "loss" in name for name in run(config, workdir, "evaluate"))
    assert len(json.loads((workdir / "predictions/test.json").read_text())) == len(Split(config, "test"))


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_question_counts_once(devices, small_run):
    config, workdir = small_run
    config = config.copy_and_resolve_references()
    config.batch_size = 9 if devices == 3 else 8
    assert len(Split(config, "val")) % config.batch_size
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    scores = evaluate_run(config, ANSWER, workdir, mesh)
    recorded = rows(workdir)[-1]
    np.testing.assert_allclose(scores["answer_accuracy"], recorded["answer_accuracy"], rtol=1e-6)
    np.testing.assert_allclose(scores["answer_loss"], recorded["answer_loss"], rtol=1e-5)


# --- Errors ---------------------------------------------------------------------------------------


def test_missing_weights_are_reported(small_run, tmp_path):
    config, workdir = small_run
    config = config.copy_and_resolve_references()
    config.init.scratch = False
    with pytest.raises(ValueError, match="make demo.*--config.init.checkpoint=WORKDIR.*--config.init.scratch=True"):
        run(config, tmp_path / "new", "train")
    with pytest.raises(FileNotFoundError, match="nothing to evaluate"):
        run(config, tmp_path / "new", "evaluate")
    config.init.checkpoint = str(workdir)  # a fine-tuned checkpoint is accepted
    assert run(config, tmp_path / "again", "evaluate")["step"] == 0


def test_weights_of_pretraining_start_a_run_but_are_not_evaluated(data_dir, tmp_path, caplog):
    """The weights are a `.safetensors` file with official names, as converted releases are."""
    config = shrunk("base", data_dir, **{"total_steps": 1, "learning_rate": 0.0})
    own = config.copy_and_resolve_references()
    own.data.hide_pixels, own.losses = False, pretrain_recipes.base_prec().losses
    own.opening.steps, own.model.num_region_classes = 0, 81
    state = nnx.state(PRETRAIN.build_model(own, nnx.Rngs(3)))
    ours = {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}
    official = vlbert_names.official_state_dict(vlbert_names.to_official(ours, 256), {})
    config.init.checkpoint = str(tmp_path / "pretrained.safetensors")
    export.write_safetensors(Path(config.init.checkpoint), official)
    with pytest.raises(ValueError, match="2 tensors of a model for answer are missing, such as final_mlp.2"):
        run(config, tmp_path / "evaluated", "evaluate")
    with caplog.at_level("INFO"):
        _, state = run(config, tmp_path / "trained")
    assert "parameters of answer_head: 2 from scratch, 4 from init.checkpoint" in caplog.text
    hidden_layer = state.params["answer_head"]["transform"]["kernel"][...]
    np.testing.assert_array_equal(hidden_layer, ours["mlm_head", "transform", "kernel"])


@pytest.mark.parametrize("variant", ["demo", "base"])
def test_shapes_are_known_without_data(data_dir, variant):
    config = shrunk(variant, data_dir, **{"data.one_orientation": False})
    ours, real = fields_of(ANSWER.batch_shapes(config)), fields_of(next(ANSWER.train_batches(config, 0, 0, 1)))
    assert {k: (x.shape, x.dtype) for k, x in real.items() if x is not None} == {
        k: (x.shape, x.dtype) for k, x in ours.items() if x is not None
    }


def test_wrong_answer_vocabularies(small_run, tmp_path):
    config, workdir = small_run
    config = config.copy_and_resolve_references()
    few = tmp_path / "few.txt"
    few.write_text("yes\nno\n<unk>\n")
    config.data.answers = str(few)
    with pytest.raises(ValueError, match="few.txt has 3 answers, but config.model.num_answers is 36"):
        run(config, workdir, "evaluate")
    config.model.num_answers = 3
    with pytest.raises(ValueError, match="differ: model.num_answers"):
        run(config, workdir, "evaluate")
    config.init.checkpoint = str(workdir)
    with pytest.raises(ValueError, match="final_mlp.2.*has shape"):
        run(config, tmp_path / "other", "evaluate")
    config.data.answers, config.model.num_answers = "nowhere.txt", 36
    with pytest.raises(FileNotFoundError, match="no answer vocabulary at .*nowhere.txt"):
        run(config, tmp_path / "other", "evaluate")


def test_a_vocabulary_without_any_answer_of_the_corpus_is_refused(data_dir, tmp_path):
    """All targets would be 0: the loss falls, the accuracy stays 0."""
    others = tmp_path / "others.txt"
    others.write_text("<unk>\nmauve\n")
    config = shrunk("base", data_dir, **{"data.answers": str(others), "model.num_answers": 2})
    with pytest.raises(ValueError, match="None of .* records of train.* in vqa/scenes has a usable target"):
        next(ANSWER.train_batches(config, 0, 0, 1))
    with pytest.raises(ValueError, match="None of .* records of val in vqa/scenes has a usable target"):
        ANSWER.eval_batches(config, 0, 1)
    config.data.eval_split = "test"  # without known answers there is nothing to check
    assert ANSWER.eval_batches(config, 0, 1)


def test_tables_without_answers_or_images_are_reported(data_dir, tmp_path):
    config = shrunk("base", data_dir, **{"data.train_split": "test"})
    refusal = "of test has no answers to learn from: choose another config.data.train_split"
    with pytest.raises(ValueError, match=refusal):
        next(ANSWER.train_batches(config, 0, 0, 1))
    run_vqa(data_dir / "scenes_downstream/coco", tmp_path, "scenes", features=True)
    config = shrunk("demo", data_dir, **{"data.data_dir": str(tmp_path), "data.vocab": str(data_dir / VOCABULARY)})
    with pytest.raises(ValueError, match="was built without images, but config.data.features is image"):
        next(ANSWER.train_batches(config, 0, 0, 1))


def test_a_sequence_without_room_for_a_question_is_reported(data_dir):
    config = shrunk("base", data_dir, **{"data.max_regions": 26})
    with pytest.raises(ValueError, match="sequence_length 31 has no room for 26 regions"):
        next(ANSWER.eval_batches(config, 0, 1)["questions"])


def test_missing_splits_and_tables_are_reported(data_dir, tmp_path):
    config = shrunk("base", data_dir, **{"data.eval_split": "nothing", "init.scratch": True, "total_steps": 1})
    with pytest.raises(ValueError, match="vqa/scenes has no split 'nothing_landscape'; there are: .*val_"):
        next(ANSWER.eval_batches(config, 0, 1)["questions"])
    config.data.texts = "vqa/other"
    with pytest.raises(FileNotFoundError, match="python -m data_prep.build vqa"):
        next(ANSWER.train_batches(config, 0, 0, 1))


def test_vocabulary_of_the_questions(data_dir):
    """The vocabulary contains all tokens of the questions."""
    tokenizer = load_tokenizer_(str(data_dir / "scenes_downstream/vocab.txt"), 256)
    unknown = tokenizer.backend.token_to_id("[UNK]")
    split = Split(shrunk("demo", data_dir), "val")
    for number in range(len(split)):
        assert unknown not in sum(tokenizer.words(split.texts[number]["question"]), [])
