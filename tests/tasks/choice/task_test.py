"""The VCR task has the expected losses and scores, trains shrunk recipes and writes its files."""

import csv
import html
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import vcr as recipes
from data_prep.build import build_scene_tasks
from tests.helpers.report_case import write_report
from tests.helpers.vcr_case import shrunk
from vlbert_jax.batch import Batch
from vlbert_jax.data.tables import Split
from vlbert_jax.model.visual_linguistic import region_head_is_frozen
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.choice import task as choice_task
from vlbert_jax.tasks.choice.model import choice_losses
from vlbert_jax.tasks.choice.texts import readable
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train

CHOICE = choice_task.ChoiceTask()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_tasks(folder, num_train=20, num_val=10, num_test=4)
    return folder


def build(config):
    return CHOICE.build_model(config, nnx.Rngs(0))


def on_device(batch) -> Batch:
    return jax.tree.map(jnp.asarray, batch)


def one_device(config):
    return sharding.make_mesh(config.mesh, jax.devices()[:1])


# --- Configs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data.arrangement": "other"}, "'other'; it must be one of context, context_tail, response, inline, apart"),
        ({"data.arrangement": "apart"}, "num_segments is 3: set it to 4"),
        ({"data.align_regions": True}, "align_regions is for VisualBERT, .* is vlbert: set"),
        ({"subtask": "q2ar"}, "config.subtask is 'q2ar', not one of q2a, qa2r"),
        ({"data.features": "precomputed"}, "have no stored features, as in VCR: set config.data.features=image"),
        ({"data.max_regions": 60}, "sequence_length is 38, but 28 tokens of text, 3 special ones, 60 regions"),
        ({"model.num_object_classes": 3}, "num_object_classes is 3; it counts"),
        ({"data.train_split": "test"}, "has no label to learn from: choose another config.data.train_split"),
    ],
    ids=str,
)
def test_inconsistent_configs_are_reported(fields, message, data_dir):
    config = shrunk("demo_q2a", data_dir, **fields)
    with pytest.raises(ValueError, match=message):
        next(CHOICE.train_batches(config, 0, 0, 1))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model.encoder.pooler": False}, "config.model.encoder.pooler is False"),
        ({"model.choice_head": "other"}, "choice_head is 'other'; it must be one of score, classes, hidden"),
        ({"model.num_object_classes": 0}, "config.losses.object is 1.0, but config.model.num_object_classes=0"),
    ],
)
def test_fields_of_the_model_that_do_not_fit(fields, message, data_dir):
    with pytest.raises(ValueError, match=message):
        build(shrunk("demo_q2a", data_dir, **fields))


# --- Losses and scores ----------------------------------------------------------------------------


def test_losses_of_known_logits():
    logits = jnp.array([[0.0, 0, 0, 0], [10, -10, -10, -10], [2, 1, 0, -1]])[..., None]
    choice = jnp.array([1, 0, 1])
    sigmoid = [np.log(2), np.log1p(np.exp(-10)), np.mean(np.log1p(np.exp([2, -1, 0, -1])))]
    np.testing.assert_allclose(choice_losses(logits, choice, "sigmoid"), sigmoid, rtol=1e-5)
    softmax = [np.log(4), np.log1p(3 * np.exp(-20)), np.log(np.sum(np.exp([2.0, 1, 0, -1]))) - 1]
    np.testing.assert_allclose(choice_losses(logits, choice, "softmax"), softmax, rtol=1e-5, atol=1e-7)
    both = jnp.concatenate([jnp.full_like(logits, 3.0), logits + 3], axis=-1)  # the difference is the one output
    np.testing.assert_allclose(choice_losses(both, choice, "classes"), sigmoid, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="choice is 'hinge'; it must be one of sigmoid, softmax, classes"):
        choice_losses(logits, choice, "hinge")
    with pytest.raises(ValueError, match="classes does not fit a head with 1 outputs .* one of sigmoid, softmax, or"):
        choice_losses(logits, choice, "classes")
    with pytest.raises(ValueError, match="softmax does not fit a head with 2 outputs .* one of classes, or choose"):
        choice_losses(both, choice, "softmax")


VARIANTS = [variant.__name__ for variant in recipes.VARIANTS if variant is not recipes.demo]


@pytest.mark.parametrize("variant", VARIANTS)
def test_shipped_recipes_have_valid_shapes(variant, data_dir):
    """The losses and metrics of each recipe have valid shapes; no values are computed."""
    config = shrunk(variant, data_dir)
    batch, names = on_device(next(CHOICE.train_batches(config, 0, 0, 1))), CHOICE.active_losses(config, 0)
    sums, metrics = nnx.eval_shape(
        lambda: CHOICE.loss_sums(CHOICE.build_model(config, nnx.Rngs(0)), batch, jax.random.key(0), config, names)
    )
    counts = dict(choice=4, object=4 * batch.region_mask.sum())
    if config.model.architecture != "vlbert":  # no sibling classifies objects
        counts.pop("object")
        assert (batch.targets.region_classes == -1).all()
    assert set(sums) == set(names) == set(counts) and set(CHOICE.loss_weights(config)) == {"choice", "object"}
    assert set(metrics) == {f"{name}_accuracy" for name in counts}
    assert CHOICE.loss_counts(batch, config, names) == counts
    assert (batch.region_words is not None) == (config.model.architecture == "visualbert")


def test_losses_start_at_chance_and_have_the_expected_gradients(data_dir):
    config = shrunk("q2a_base", data_dir)
    config.model.encoder.region_visual_gain_init = config.model.encoder.text_visual_gain_init = 0.1
    names, model = CHOICE.active_losses(config, 0), build(config)
    batch = on_device(next(CHOICE.train_batches(config, 0, 0, 1)))
    graphdef, trained, rest = nnx.split(
        model, nnx.All(nnx.Param, lambda path, _: not region_head_is_frozen(tuple(map(str, path)), config)), ...
    )
    counts = CHOICE.loss_counts(batch, config, names)

    @jax.jit
    @lambda losses: jax.jacrev(losses, has_aux=True)
    def run(trained):
        sums, _ = CHOICE.loss_sums(nnx.merge(graphdef, trained, rest), batch, None, config, names)
        losses = {name: sums[name] / counts[name] for name in names}
        return losses, losses

    gradients, losses = run(trained)
    assert abs(losses["choice"] - np.log(2)) < 0.1 and abs(losses["object"] - np.log(11)) < 0.3
    for name in names:
        arrays = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(gradients[name])}
        reached = {"/".join(map(str, path)) for path, array in arrays.items() if array.any()}
        assert any(path.startswith("vlbert/encoder") for path in reached)
        assert any(path.startswith("fast_rcnn/c5") for path in reached)
        assert not any(path.endswith(("gain", "offset")) or "stem" in path for path in reached)  # frozen
        assert ("choice_head/kernel" in reached) == ("vlbert/pooler/kernel" in reached) == (name == "choice")
        assert ("object_head/classes/kernel" in reached) == (name == "object")


def test_recipes_are_those_of_the_official_files():
    for variant in VARIANTS:
        config = recipes.get_config(variant)
        assert config.subtask == next(name for name in ("qa2r", "q2a") if name in variant)
        if "demo" in variant or config.model.architecture != "vlbert":
            continue
        assert (config.batch_size, config.optimizer.name, config.learning_rate) == (64, "sgd", 4.48e-3)
        rate = optimizer.learning_rate_schedule(config)
        rates = [float(rate(step)) for step in (14 * 3327 - 1, 14 * 3327, 18 * 3327 - 1, 18 * 3327)]
        np.testing.assert_allclose(rates, np.array([1, 0.1, 0.1, 0.01]) * 4.48e-3, rtol=1e-5)
        assert config.total_steps == 20 * 3327
        assert config.data.image_scale == (600, 1200) and config.optimizer.clip_norm == 10.0
        assert config.model.encoder.num_layers == (24 if "large" in variant else 12)
    assert recipes.get_config() == recipes.demo_q2a() == recipes.get_config("demo")


def test_the_choice_layer_has_xavier_initialization_unless_it_was_loaded(data_dir):
    config = shrunk("demo_q2a", data_dir)
    model = build(config)
    before = np.array(model.choice_head.kernel[...])
    CHOICE.initialize_heads(model, config, {("choice_head", "kernel")})
    np.testing.assert_array_equal(model.choice_head.kernel[...], before)
    CHOICE.initialize_heads(model, config, set())
    kernel, bound = np.array(model.choice_head.kernel[...]), np.sqrt(6 / 17)
    assert (kernel != before).all() and np.abs(kernel).max() < bound and np.abs(kernel).max() > bound / 2


def test_scores_count_each_question_once(data_dir):
    """The counts are exact on two hosts and with padding examples."""
    config = shrunk("demo_qa2r", data_dir)
    graphdef, state = nnx.split(build(config))
    score = jax.jit(lambda state, batch: CHOICE.score(nnx.merge(graphdef, state), batch, config))
    number = len(Split(config, "val"))
    counts, seen, objects = {}, [], 0
    for host in range(2):
        config.batch_size = 8
        for batch in CHOICE.eval_batches(config, host, 2)["questions"]:
            seen += batch.index[batch.index >= 0].tolist()
            objects += 4 * int(batch.region_mask.sum())
            for name, (_, count) in score(state, on_device(batch)).items():
                counts[name] = counts.get(name, 0) + float(count)
    assert sorted(seen) == list(range(number))
    for name in ("choice_accuracy", "choice_accuracy_blind", "choice_loss", "text_cut"):
        assert counts[name] == number
    assert counts["object_accuracy"] == counts["object_loss"] == objects > 8 * number


def test_a_blind_model_ignores_the_image(data_dir):
    """Pixels and boxes change the predictions of a model, but not those of a blind one."""
    fields = {"model.encoder.region_visual_gain_init": 1.0, "model.encoder.text_visual_gain_init": 1.0}
    config = shrunk("demo_q2a", data_dir, **fields)
    batch = on_device(next(CHOICE.eval_batches(config, 0, 1)["questions"]))
    other = batch.replace(pixels=255 - batch.pixels, boxes=batch.boxes / 2)
    model = build(config)
    for blind in (False, True):
        config.blind = blind
        predict = nnx.jit(lambda model, batch: CHOICE.predict(model, batch, config)["logits"])
        assert np.array_equal(predict(model, batch), predict(model, other)) == blind
        names = CHOICE.active_losses(config, 0)
        assert names == (("choice",) if blind else ("choice", "object"))
        scores = nnx.eval_shape(lambda model: CHOICE.score(model, batch, config), model)
        assert ("choice_accuracy_blind" in scores) == ("object_loss" in scores) == (not blind)


# --- Runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return the config, workdir and last state of a finished run."""
    fields = {"total_steps": 3, "warmup_steps": 1, "checkpoint_every_steps": 2, "model.encoder.init_deviation": 0.3}
    config, workdir = shrunk("q2a_base", data_dir, **fields), tmp_path_factory.mktemp("q2a")
    return config, workdir, train(config, CHOICE, workdir, one_device(config))[1]


def test_a_run_continues_from_its_checkpoint(finished, tmp_path):
    config, workdir, state = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(1, "train"), (2, "train"), (3, "train"), (3, "val")]
    assert {"choice_accuracy", "choice_accuracy_blind", "choice_loss", "object_loss"} <= set(rows[-1])
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/3")  # imitates a run that was killed after step 2
    _, resumed = train(config, CHOICE, tmp_path / "run", one_device(config))
    assert int(resumed.step) == 3
    for ours, expected in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(ours, expected)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def official_order(config, split):
    records = Split(config, split).texts
    return sorted(map(records.__getitem__, range(len(records))), key=lambda text: text["index"])


def test_the_leaderboard_file_of_test(finished, tmp_path):
    """An evaluation with both subtasks writes one file; both models have the same weights here."""
    config = finished[0].copy_and_resolve_references()
    config.init.checkpoint = config.companion = str(finished[1])
    config.data.eval_split = "test"
    with pytest.raises(ValueError, match="is a run of q2a; it must be one of qa2r"):
        CHOICE.companions(config)
    config.companion = str(shutil.copytree(finished[1], tmp_path / "rationales"))
    about = tmp_path / "rationales/config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | dict(subtask="qa2r")))
    scores = evaluate_run(config, CHOICE, tmp_path, one_device(config))
    assert set(scores) == {"step", "object_accuracy", "object_loss", "text_cut"}
    header, rows = table(tmp_path / "predictions/test.csv")
    conditioned = [f"rationale_conditioned_on_a{i}_{j}" for i in range(4) for j in range(4)]
    assert header == ["annot_id", *(f"answer_{i}" for i in range(4)), *conditioned]
    assert [row[0] for row in rows] == [text["annot_id"] for text in official_order(config, "test")]
    values = np.array([row[1:] for row in rows], float).reshape(len(rows), 5, 4)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
    assert not np.allclose(values[:, 1], values[:, 2], atol=1e-5)  # the choice depends on the answer


@pytest.mark.parametrize("subtask, other", [("q2a", "qa2r"), ("qa2r", "q2a")])
def test_both_subtasks_joined_on_val(data_dir, tmp_path, subtask, other):
    config, label = shrunk(f"{subtask}_base", data_dir), dict(q2a="answer_label", qa2r="rationale_label")
    texts = Split(config, "val").texts
    texts = [texts[i] for i in range(len(texts))]  # in the order of the index, landscape first
    index, sharp = np.arange(len(texts)), 5 * np.eye(4, dtype=np.float32)
    own = dict(index=index, logits=sharp[[text[label[subtask]] for text in texts]])  # all choices are right
    theirs = dict(index=index, logits=sharp[[(text[label[other]] + (i == 0)) % 4 for i, text in enumerate(texts)]])
    assert CHOICE.conclude(tmp_path, {"": own}, config) == {}
    columns = dict(q2a=[f"answer_{i}" for i in range(4)], qa2r=[f"rationale_{i}" for i in range(4)])
    assert table(tmp_path / f"val_{subtask}.csv")[0] == ["annot_id", *columns[subtask]]
    scores = CHOICE.conclude(tmp_path, {"": own, other: theirs}, config)
    all_but_one = 1 - 1 / len(texts)
    assert scores[f"vcr_{subtask}_accuracy"] == 1
    assert scores[f"vcr_{other}_accuracy"] == scores["vcr_q2ar_accuracy"] == pytest.approx(all_but_one)
    header, rows = table(tmp_path / "val.csv")
    assert header == ["annot_id", *columns["q2a"], *columns["qa2r"]]
    in_file_order = official_order(config, "val")
    assert [text["index"] for text in texts] != [text["index"] for text in in_file_order]
    assert [row[0] for row in rows] == [text["annot_id"] for text in in_file_order]
    chosen = np.array([row[1:] for row in rows], float).reshape(-1, 2, 4).argmax(-1)
    right = chosen == [[text["answer_label"], text["rationale_label"]] for text in in_file_order]
    assert right.sum() == 2 * len(texts) - 1 and right[:, ("q2a", "qa2r").index(subtask)].all()
    with pytest.raises(ValueError, match="not evaluated on the same questions"):
        CHOICE.conclude(tmp_path, {"": own, other: theirs | dict(index=index[::-1])}, config)


def test_the_report_shows_questions_with_their_choices(finished, tmp_path):
    config = shrunk("qa2r_base", finished[0].data.data_dir)
    write_report(CHOICE, tmp_path, build(config), config, [dict(split="val", step=3, choice_accuracy=0.5)])
    page = html.unescape((tmp_path / "index.html").read_text())
    record = Split(config, "val")[0]
    # Persons would have first names, but the synthetic scenes have none.
    names = [f"{name} {region}" for region, name in enumerate(record["objects"], 1)]
    asked = (record["question"], record["answers"][record["answer_label"]])
    assert " ".join(readable(text, names) for text in asked) in page and "data:image/" in page
    assert all(readable(text, names) in page for text in record["rationales"])


def test_a_companion_is_the_other_subtask_with_separate_weights(data_dir):
    config = shrunk("q2a_base", data_dir, companion="elsewhere", **{"init.bert": "bert"})
    ((name, other),) = CHOICE.companions(config).items()
    assert (name, other.subtask, other.companion) == ("qa2r", "qa2r", "")
    assert (other.init.checkpoint, other.init.bert) == ("elsewhere", "") and config.init.bert == "bert"
    assert not CHOICE.companions(other)
    assert isinstance(get_task("choice"), choice_task.ChoiceTask)
