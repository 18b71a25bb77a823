"""Tables that list the right regions: examples, losses, files of predictions and scores; shrunk recipes train."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import refcoco as recipes
from data_prep.build import build_scene_kinds
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import Batch
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.region import model as region_model
from vlbert_jax.tasks.region import task as region_task
from vlbert_jax.tasks.region.entities import Phrase, phrase_recall
from vlbert_jax.tasks.region.examples import ExpressionLayout
from vlbert_jax.tasks.region.listed import choosable_rows, listed_example, right_rows

REGION = region_task.RegionTask()
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_kinds(folder, num_train=16, num_val=8, num_test=8, tasks=("entities", "visual7w"))
    return folder


def shrunk(variant, data_dir, **fields):
    """Return a shipped recipe with small sizes; square canvases, so one program."""
    config, demo = recipes.get_config(variant), recipes.get_config(f"{variant}_demo")
    names = ("embedded", "texts", "images", "vocab", "max_regions", "sequence_length")
    shrink(config, demo, data_dir, num_layers=1, names=names)
    config.batch_size, config.init.scratch, config.grad_accumulation_steps = 16, True, 1
    config.data.one_orientation = False
    config.update_from_flattened_dict(fields)
    return config


# --- Records and examples -------------------------------------------------------------------------


def record_by_hand(**fields):
    boxes = np.array([[0, 0, 10, 10], [20, 10, 39, 19], [20, 10, 30, 19]], np.float32)
    record = dict(image=np.zeros((20, 40, 3), np.uint8), image_size=np.array([40, 20], np.int32), boxes=boxes)
    record |= dict(expression="the ball", context="", choices=NONE, targets=NONE, gold=np.zeros((0, 4)))
    return record | fields


def test_right_rows_and_rows_to_choose_from():
    gold = np.array([[0.0, 0, 10, 10], [20, 10, 39, 19]])
    assert right_rows(record_by_hand(gold=gold), 0).tolist() == [False, True, True, True]  # the last: exactly 0.526
    assert right_rows(record_by_hand(gold=np.array([[0.0, 0, 39, 12]])), 0).tolist() == [True, False, False, False]
    assert choosable_rows(record_by_hand(), 0).tolist() == [True] * 4
    chosen = record_by_hand(choices=np.array([0, 2]), targets=np.array([2]))
    assert choosable_rows(chosen, 0).tolist() == [False, True, False, True]
    assert right_rows(chosen, 0).tolist() == [False, False, False, True]
    assert not right_rows(chosen | dict(targets=np.array([1])), 0).any()  # it cannot be chosen


def test_the_sentence_comes_before_the_phrase(data_dir):
    config = shrunk("entities", data_dir)
    tokenizer, layout = tokenizer_of(config), ExpressionLayout.of(config)
    words = {word: tokenizer.backend.token_to_id(word) for word in ("the", "ball", "is", "red")}
    sentence, phrase = [words[w] for w in ("the", "ball", "is", "red")], [words["the"], words["ball"]]
    record = record_by_hand(context="the ball is red", gold=np.array([[0.0, 0, 10, 10]]))
    example = listed_example(record, False, tokenizer, layout)
    text = [tokenizer.cls_id, *sentence, tokenizer.sep_id, *phrase, tokenizer.sep_id]
    assert example["token_ids"][0, : len(text)].tolist() == text and not example["text_cut"]
    assert example["segment_ids"][0, : len(text) + 1].tolist() == [0] * 6 + [1] * 3 + [2]
    assert example["region_positions"][0, :4].tolist() == [9, 10, 11, 12]
    rows = layout.max_regions + 1
    assert example["region_targets"].tolist() == example["region_hits"].tolist() == [False, True] + [False] * (rows - 2)
    assert example["region_choices"].tolist() == [True] * 4 + [False] * (rows - 4)
    # A sentence that is too long loses its end; the phrase stays.
    long = listed_example(record | dict(context="the ball is red " * 20), False, tokenizer, layout)
    num_text = layout.sequence_length - 4
    assert long["text_cut"] and long["element_mask"].all()
    assert long["token_ids"][0, num_text - 4 : num_text].tolist() == [tokenizer.sep_id, *phrase, tokenizer.sep_id]
    assert long["segment_ids"][0, num_text - 4 : num_text].tolist() == [0, 1, 1, 1]


# --- Losses ---------------------------------------------------------------------------------------


def known_batch():
    """Return three examples of four rows: two right regions, none, one among two that may be chosen."""
    none, flags = jnp.zeros((3, 1, 1), jnp.int32), lambda rows: jnp.asarray(rows, bool)
    right = flags([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    choices = flags([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    targets = region_task.RegionTargets(region_targets=right, region_hits=right, region_choices=choices)
    return Batch(*[none] * 4, none == 0, region_mask=flags(np.ones((3, 4))), targets=targets)


def test_losses_on_known_logits(data_dir):
    batch, z = known_batch(), np.array([[0.5, -1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0], [9.0, 1.0, -1.0, 9.0]])
    logits = jnp.where(region_model.choosable(batch), z, -jnp.inf)
    first, third = np.log(np.exp(z[0, :3]).sum()), np.log(np.exp(z[2, 1:3]).sum())
    # The divergence from targets of 1/m: of 1/2 each in the first, of 1 in the third; the second teaches nothing.
    expected = (first - z[0, 1:3].mean() - np.log(2)) + (third - z[2, 2])
    total, count = region_model.summed_loss(logits, batch, "softmax")
    np.testing.assert_allclose((total, count), (expected, 2), rtol=1e-6)
    gradient = jax.grad(lambda logits: region_model.summed_loss(logits, batch, "softmax")[0])(logits)
    chosen = np.exp(z[0, :3]) / np.exp(z[0, :3]).sum() - [0, 0.5, 0.5]
    np.testing.assert_allclose(gradient[:2], [[*chosen, 0], [0] * 4], atol=1e-6)
    total, count = region_model.summed_loss(logits, batch, "sigmoid")
    signs = np.array([[-1, 1, 1, 0], [-1, -1, -1, -1], [0, -1, 1, 0]])
    np.testing.assert_allclose((total, count), (np.log1p(np.exp(-signs * z))[signs != 0].sum(), 9), rtol=1e-6)
    assert tuple(map(float, region_model.choice_accuracy(logits, batch))) == (1, 3)
    # An example whose right region is not known has no part in any score.
    unknown = batch.replace(targets=batch.targets.replace(region_known=jnp.array([True, False, False])))
    assert tuple(map(float, region_model.choice_accuracy(logits, unknown))) == (1, 1)
    assert region_model.summed_loss(logits, unknown, "sigmoid")[1] == 3
    assert region_model.accuracies(logits, unknown)["positive_region_fraction"] == (2, 3)
    config = shrunk("entities", data_dir)
    assert REGION.loss_counts(batch, config, ("region",))["region"] == 2
    config.losses.grounding = "hinge"
    with pytest.raises(ValueError, match="config.losses.grounding is 'hinge'; it must be one of sigmoid, softmax"):
        REGION.loss_weights(config)


# --- The shipped recipes --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["entities", "visual7w"])
def evaluated(request, data_dir, tmp_path_factory):
    """Evaluate a shrunk recipe without training; return its config, the folder of its files, scores and predictions."""
    config, directory = shrunk(request.param, data_dir), tmp_path_factory.mktemp("predictions")
    model = REGION.build_model(config, nnx.Rngs(0))
    program = nnx.jit(lambda model, batch: (REGION.score(model, batch, config), REGION.predict(model, batch, config)))
    sums, rows = {}, []
    for batch in REGION.eval_batches(config, 0, 1)["expressions"]:
        metrics, found = jax.device_get(program(model, jax.tree.map(jnp.asarray, batch)))
        real = batch.index >= 0
        rows.append({name: value[real] for name, value in (found | dict(index=batch.index)).items()})
        for name, pair in metrics.items():
            sums[name] = sums.get(name, 0) + np.array(pair, np.float64)
    rows = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    scores = {name: total / count for name, (total, count) in sums.items() if count}
    concluded = REGION.conclude(directory, {"": rows}, config)
    assert concluded.get("grounding_accuracy", scores["grounding_accuracy"]) == scores["grounding_accuracy"]
    return config, directory, scores | concluded, rows


def test_scores_are_those_of_the_written_files(evaluated):
    config, directory, scores, _ = evaluated
    split = Split(config, "val")
    records = sorted((split[i] for i in range(len(split))), key=lambda record: int(record["index"]))
    lines = [json.loads(line) for line in (directory / "val.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [record["example_id"] for record in records]
    for line, record in zip(lines, records, strict=True):
        assert set(line) == {"id", "boxes", "probabilities"}
        assert {i + 1 for i in line["boxes"]} <= set(np.flatnonzero(choosable_rows(record, 0)))
        assert line["probabilities"] == sorted(line["probabilities"], reverse=True)
        assert config.losses.grounding == "sigmoid" or sum(line["probabilities"]) == pytest.approx(1, abs=1e-3)
    best = np.mean([right_rows(r, 0)[line["boxes"][0] + 1] for line, r in zip(lines, records, strict=True)])
    assert scores["grounding_accuracy"] == pytest.approx(best) and 0 < scores["grounding_accuracy_possible"] <= 1
    written = json.loads((directory / "val.json").read_text())
    if config.data.scorer == "visual7w":
        assert scores["pointing_accuracy"] == pytest.approx(best) and scores["grounding_accuracy_chance"] == 0.25
        for item, line, record in zip(written, lines, records, strict=True):
            assert item["qa_id"] == int(record["example_id"]) and item["question"] == record["expression"]
            assert [c["answer"] for c in item["candidates"]] == record["box_ids"][line["boxes"]].tolist()
        return
    phrases: dict = {}
    found = [boxes for item in written for boxes in item["boxes"]]
    for record, line, boxes in zip(records, lines, found, strict=True):
        places = np.concatenate([record["boxes"], [[0, 0, *(record["image_size"] - 1)]]])  # -1 is the whole image
        np.testing.assert_allclose(boxes, places[line["boxes"]] + 1)
        about = json.loads(record["extra"])
        phrase = Phrase(tuple(about["types"]), record["gold"] + 1)  # corners of the files count from 1
        phrases.setdefault((about["image_id"], about["sentence_id"]), []).append(phrase)
    for prefix, any_box in (("grounding_accuracy", True), ("grounding_merged_accuracy", False)):
        for among, shares in phrase_recall(phrases, written, any_box).items():
            name = prefix + {"R@1": "", "R@5": "_top5", "R@10": "_top10"}[among]
            assert scores[name] == pytest.approx(shares["all"])
            assert scores[f"{name}_vehicles"] == pytest.approx(shares["vehicles"])


def test_the_report_shows_sentence_and_phrase(evaluated):
    config, _, _, rows = evaluated
    record = Split(config, "val")[int(rows["index"][0])]
    shown = dict(image=np.zeros((4, 4, 3), np.uint8), boxes=np.zeros((len(record["boxes"]) + 1, 4), np.float32))
    card = REGION.card(record, shown, {name: value[0] for name, value in rows.items()}, config)
    assert card.question == (f"{record['context']} — " if record["context"] else "") + record["expression"]
    right = [f"region {i}" for i in np.flatnonzero(right_rows(record, 0))]
    assert {answer.text for answer in card.answers if answer.score} <= set(right) and card.title.startswith("meant: ")


def test_wrong_tables_and_scorers_are_reported(data_dir):
    config = shrunk("entities", data_dir, **{"data.scorer": "flickr"})
    with pytest.raises(ValueError, match="scorer is 'flickr'; it must be empty or one of entities, visual7w"):
        REGION.example_maker(config, "square", True)
    other = {"data.texts": "retrieval/scenes", "data.images": "retrieval_images/scenes"}
    config = shrunk("entities", data_dir, **other)
    build_scene_kinds(data_dir, num_train=16, num_val=8, num_test=8, tasks=("retrieval",))
    with pytest.raises(ValueError, match="the records have no context, so their table lists no right regions"):
        REGION.example_maker(config, "square", True)
    assert get_task("region").targets is region_task.RegionTargets
