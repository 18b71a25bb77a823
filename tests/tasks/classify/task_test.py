"""Classification trains and evaluates every kind of target, counts each example once, and writes its predictions."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.classify_case import SIZES, text_record, tiny, use_corpus
from vlbert_jax.batch import Batch
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.classify.losses import class_losses, class_metrics, class_weights
from vlbert_jax.tasks.classify.results import SCORERS, Predicted, conclude_split
from vlbert_jax.tasks.classify.task import ClassTargets
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate, evaluate_run, make_score
from vlbert_jax.training.loop import train

CLASSIFY = get_task("classify")
TRAINED = {"total_steps": 2, "batch_size": 8, "warmup_steps": 1, "report": True}


def mesh_of(config, devices: int):
    return sharding.make_mesh(config.mesh, jax.devices()[:devices])


@pytest.fixture(scope="module")
def corpus():
    with pytest.MonkeyPatch.context() as patch:
        use_corpus(patch, images=2)
        yield


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """Train on pairs of images from pixels; return the config and the workdir."""
    workdir, config = tmp_path_factory.mktemp("run"), tiny(2, **TRAINED)
    train(config, CLASSIFY, workdir, mesh_of(config, 1))
    return config, workdir


# --- Losses and scores ------------------------------------------------------------------------------------------


def targets_of(label_targets, known=(True, True, False)) -> ClassTargets:
    return ClassTargets(label_targets=jnp.asarray(label_targets, jnp.float32), known=jnp.asarray(known))


OUTPUTS = jnp.array([[2.0, -1.0], [0.5, 0.0], [9.0, 9.0]])


def test_one_label():
    config = tiny(1)
    targets = targets_of([[1, 0], [0, 1], [1, 0]])
    losses, weights = class_losses(OUTPUTS, targets, config)
    logs = jax.nn.log_softmax(OUTPUTS)
    np.testing.assert_allclose(losses, [-logs[0, 0], -logs[1, 1], 0], rtol=1e-6)
    assert weights.tolist() == [1, 1, 0]
    assert [float(x) for x in class_metrics(OUTPUTS, targets, config)["classify_accuracy"]] == [1, 2]
    config.losses.class_weights = "1,3"
    weighted, weights = class_losses(OUTPUTS, targets, config)
    np.testing.assert_allclose(weighted, losses * jnp.array([1, 3, 0]), rtol=1e-6)
    assert weights.tolist() == [1, 3, 0]
    unlisted = targets_of([[1, 0], [0, 0], [0, 0]])  # the label of the second is not one of the model's
    losses, weights = class_losses(OUTPUTS, unlisted, config)
    assert weights.tolist() == [1, 0, 0] and losses[1] == 0
    assert [float(x) for x in class_metrics(OUTPUTS, unlisted, config)["classify_accuracy"]] == [1, 2]


def test_any_number_of_labels():
    config = tiny(1, **{"losses.classify": "sigmoid"})
    targets = targets_of([[1, 1], [0, 0], [1, 1]])
    losses, _ = class_losses(OUTPUTS, targets, config)
    p = np.asarray(jax.nn.sigmoid(OUTPUTS))
    np.testing.assert_allclose(losses, [-np.log(p[0]).sum(), -np.log(1 - p[1]).sum(), 0], rtol=1e-5)
    # Chosen: one of two right labels, and both of none; one hit.
    assert [float(x) for x in class_metrics(OUTPUTS, targets, config)["classify_micro_f1"]] == [2, 3 + 2]
    config.losses.class_weights = "2,5"
    weighted, weights = class_losses(OUTPUTS, targets, config)
    np.testing.assert_allclose(weighted[0], -(np.log(p[0]) * [2, 5]).sum(), rtol=1e-5)
    np.testing.assert_allclose(weighted[1], losses[1], rtol=1e-6)
    assert weights.tolist() == [1, 1, 0]


def test_numbers():
    config = tiny(1, **{"losses.classify": "squared", "data.labels": "", "data.value_deviations": (2.0, 1.0)})
    targets = targets_of([[1, 0], [0.5, 1], [0, 0]])
    losses, _ = class_losses(OUTPUTS, targets, config)
    np.testing.assert_allclose(losses, [2, 1, 0], rtol=1e-6)
    error, count = class_metrics(OUTPUTS, targets, config)["classify_squared_error"]
    np.testing.assert_allclose(error / count, ((4 + 1) / 2 + (0 + 1) / 2) / 2, rtol=1e-6)
    config.losses.class_weights = "1,2"
    with pytest.raises(ValueError, match="is for classes and labels"):
        class_weights(config)


def test_balanced_weights(corpus):
    labels = [text_record(number, 2, "train")["labels"][0] for number in range(SIZES["train"])]
    counts = np.array([labels.count("False"), labels.count("True")])
    config = tiny(2, **{"losses.class_weights": "balanced"})
    np.testing.assert_allclose(class_weights(config), 12 / (2 * counts))
    config.losses.classify = "sigmoid"
    np.testing.assert_allclose(class_weights(config), (12 - counts) / counts)
    config.losses.class_weights = "1,-2"
    with pytest.raises(ValueError, match="must be 'balanced', or 2 positive numbers .*: False, True"):
        class_weights(config)


# --- Training and evaluation ------------------------------------------------------------------------------------


def test_a_run_writes_predictions_and_a_report(run):
    config, workdir = run
    scores = evaluate_run(config, CLASSIFY, workdir, mesh_of(config, 1))
    assert {"classify_accuracy", "classify_macro_f1", "classify_auroc", "classify_loss"} <= scores.keys()
    rows = [json.loads(line) for line in (workdir / "predictions/val.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"val-{number}" for number in range(SIZES["val"])]  # as in the file
    right = 0
    for row in rows:
        number, chances = int(row["id"].removeprefix("val-")), row["probabilities"]
        assert row["label"] == max(chances, key=chances.get) and sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row.get("note") == (number if number % 2 else None)  # a field of the user's file
        right += row["label"] == text_record(number, 2, "val")["labels"][0]
    assert scores["classify_accuracy"] == pytest.approx(right / len(rows))
    with (workdir / "predictions/val.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert float(table[0]["probability of True"]) == rows[0]["probabilities"]["True"]
    page = (workdir / "report/index.html").read_text()
    assert "Classes of pairs of images" in page and "Confusion of the classes" in page and "Calibration" in page
    assert "✓" in page  # cards of examples


def test_a_split_without_labels_is_predicted(corpus, tmp_path):
    config = tiny(2, **{"data.eval_split": "test", "data.scorer": "hateful_memes"})
    rows = dict(index=np.arange(SIZES["test"]), probabilities=np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]))
    assert conclude_split(tmp_path, rows, config) == {}
    table = [line.split(",") for line in (tmp_path / "test.csv").read_text().splitlines()]
    # Numbers 0 and 2 are landscape and come first in a table; files have the order of the user's.
    assert table == [["id", "proba", "label"], ["test-0", "0.5", "False"], ["test-1", "0", "False"],
                     ["test-2", "0.75", "True"]]  # fmt: skip
    config.data.eval_split = config.data.train_split = "test"
    with pytest.raises(ValueError, match="An example of test in texts has no label"):
        next(CLASSIFY.train_batches(config, 0, 0, 1))


def test_files_of_public_tasks(tmp_path):
    """Two groups of sentences: of the first one pair is right and one wrong."""
    names, labels = ("dev-1-0-0", "dev-1-1-0", "dev-2-0-0", "dev-2-0-1"), ("True", "False", "True", "True")
    records = [dict(example_id=n, labels=[label], known=True) for n, label in zip(names, labels, strict=True)]
    chances = np.array([[0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7]])
    predicted = Predicted("dev", records, ("False", "True"), chances, "softmax", 1)
    scores = SCORERS["nlvr2"](tmp_path, predicted)
    assert (tmp_path / "dev.csv").read_text().splitlines() == [f"{name},True" for name in names]
    assert scores["accuracy"] == 0.75 and scores["consistency"] == 2 / 3 and "auroc" in scores
    hidden = dataclasses.replace(predicted, records=[record | dict(known=False) for record in records])
    assert SCORERS["nlvr2"](tmp_path, hidden) == {}
    config = tiny(2, **{"data.scorer": "other"})
    with pytest.raises(ValueError, match="scorer is 'other'; it must be empty or one of hateful_memes, nlvr2"):
        conclude_split(tmp_path, {}, config)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_every_example_counts_once(corpus, devices):
    """Precomputed features, attention between two sequences, without the image: one small program for each mesh."""
    config = tiny(2, **{
        "data.features": "precomputed", "model.pair": "attention", "model.read": "cls", "model.encoder.pooler": True,
        "model.label_head": "linear", "batch_size": 24, "blind": devices == 8, "data.geometry_on_device": True,
        "best_metric": "classify_auroc",
    })  # fmt: skip
    model = CLASSIFY.build_model(config, nnx.Rngs(0))
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)
    mesh = mesh_of(config, devices)
    score = make_score(graphdef, CLASSIFY, config, mesh)  # as in training: rows for AUROC, which chooses the best
    with jax.set_mesh(mesh):
        scores, rows = evaluate(score, params, constants, CLASSIFY, config, mesh, lambda: False)
    assert rows["index"].tolist() == list(range(SIZES["val"]))
    labels = [text_record(number, 2, "val")["labels"][0] for number in (0, 2, 4, 6, 1, 3, 5)]
    answers = ["False" if row[0] > row[1] else "True" for row in rows["probabilities"]]
    assert scores["classify_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(answers, labels, strict=True)]))
    chances = rows["probabilities"][:, 1].astype(float)
    is_true = np.array(labels) == "True"
    above = [(a > b) + 0.5 * (a == b) for a in chances[is_true] for b in chances[~is_true]]
    assert scores["classify_auroc"] == pytest.approx(np.mean(above)) and "classify_average_precision" in scores
    config.best_metric = "classify_accuracy"
    batch = next(CLASSIFY.eval_batches(config, 0, 1)["examples"])
    assert CLASSIFY.joint_rows(model, batch, config) == {}


def test_the_blind_model_does_not_see_the_images(corpus):
    fields = {"data.features": "precomputed", "data.geometry_on_device": True, "model.pair": "both"}
    config = tiny(2, **fields)
    batch = jax.tree.map(jnp.asarray, next(CLASSIFY.eval_batches(config, 0, 1)["examples"]))
    model = CLASSIFY.build_model(config, nnx.Rngs(0))

    @nnx.jit
    def difference(model, batch: Batch):
        """Return by how much other features change the answers, blind and with the image."""
        other = batch.replace(region_features=-batch.region_features)
        runs = (tiny(2, **fields | {"blind": blind}) for blind in (True, False))
        return [
            jnp.abs(CLASSIFY.predict(model, batch, run)["probabilities"]
                    - CLASSIFY.predict(model, other, run)["probabilities"]).max()
            for run in runs
        ]  # fmt: skip

    blind, sighted = difference(model, batch)
    assert blind == 0 and sighted > 1e-6
