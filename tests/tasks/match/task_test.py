"""Retrieval draws negatives of other images, scores every pair like one pair alone, and trains and evaluates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import retrieval
from tests.helpers.batch_case import fields_of
from tests.helpers.retrieval_case import build_tables, images_of, shrunk, texts_of
from vlbert_jax.batch import make_batch
from vlbert_jax.data.examples import image_fields
from vlbert_jax.data.packing import RegionLayout, pack
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.match import model as models
from vlbert_jax.tasks.match.batches import candidates_of
from vlbert_jax.tasks.match.examples import PairLayout, pair_on_device, text_ids
from vlbert_jax.tasks.match.recall import retrieval_scores
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate, evaluate_run, make_score
from vlbert_jax.training.loop import train
from vlbert_jax.training.state import split_model

MATCH = get_task("match")
GAINS = {"model.encoder.region_visual_gain_init": 1.0, "model.encoder.init_deviation": 0.3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_tables(tmp_path_factory.mktemp("data"))


def tiny(data_dir, **fields):
    return shrunk(retrieval.flickr30k(), data_dir, **GAINS | fields)


def one_device(config):
    return sharding.make_mesh(config.mesh, jax.devices()[:1])


# --- Training -------------------------------------------------------------------------------------


def words_of(batch, config, i, k):
    backend = tokenizer_of(config).backend
    ids = batch.token_ids[i, k][batch.token_ids[i, k] < config.model.encoder.vocab_size]
    return " ".join(str(backend.id_to_token(int(token))) for token in ids if token)


def test_negatives_are_never_of_the_same_image(data_dir):
    """Sequence 0 is the pair; then come texts of other images, and other images; each with its own regions."""
    config = tiny(data_dir, **{"data.flip_probability": 0.0, "data.negative_images": 2, "data.features": "image"})
    split, batches = Split(config, "train"), MATCH.train_batches(config, 0, 0, 1)
    texts = {number: texts_of(colors, number) for number, _, colors in images_of("train", 8)}
    layout, pixels = PairLayout.of(config), set()
    drawn = set()
    for _ in range(15):
        batch = next(batches)
        for i, index in enumerate(batch.index):
            own = split[int(index)]
            written = {f"[CLS] {text.replace(',', ' [UNK]')} [SEP]" for text in texts[int(own["image_number"])]}
            text = f"[CLS] {own['text'].replace(',', ' [UNK]')} [SEP]"
            said = [words_of(batch, config, i, k) for k in range(5)]
            assert said[0] == said[3] == said[4] == text and not written & {said[1], said[2]}
            drawn |= {said[1], said[2]}
            image = image_fields(own, own["boxes"], PairLayout.of(config, _orientation(own)), False)
            assert np.array_equal(batch.pixels[i, 0], image["pixels"][0])
            for k in (1, 2):
                assert not np.array_equal(batch.pixels[i, k], batch.pixels[i, 0])
                pixels.add(batch.pixels[i, k].tobytes())
            rows = layout.max_regions + 1
            for k, place in enumerate((0, 0, 0, 1, 2)):
                carried = batch.region_ids[i, k][batch.region_ids[i, k] >= 0]
                assert set(carried) == set(place * rows + np.flatnonzero(batch.region_mask[i].reshape(3, rows)[place]))
    assert len(drawn) > 8 and len(pixels) == 8  # of all images
    assert fields_of(MATCH.batch_shapes(config)).keys() == {*fields_of(batch)}


def _orientation(record):
    return "landscape" if record["image_size"][0] >= record["image_size"][1] else "portrait"


def test_batches_do_not_depend_on_the_number_of_hosts(data_dir):
    config = tiny(data_dir)
    whole = MATCH.train_batches(config, 2, 0, 1)
    halves = [MATCH.train_batches(config, 2, host, 2) for host in range(2)]
    for _ in range(3):
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(next(half) for half in halves))
        jax.tree.map(np.testing.assert_array_equal, next(whole), joined)


def test_a_mirrored_example_exchanges_left_and_right_in_every_text(data_dir):
    config, swap = tiny(data_dir), dict(left="right", right="left")
    plain, flipped = (
        next(MATCH.train_batches(tiny(data_dir, **{"data.flip_probability": p}), 0, 0, 1)) for p in (0.0, 1.0)
    )
    for i in range(4):
        for k in range(4):
            words = words_of(plain, config, i, k).split()
            assert words_of(flipped, config, i, k).split() == [swap.get(word, word) for word in words]
    assert not np.array_equal(plain.boxes, flipped.boxes)


def test_hard_negatives(data_dir, tmp_path):
    path = tmp_path / "hard.json"
    path.write_text(json.dumps({str(i): [(i + 1) % 8] for i in range(8)}))
    config = tiny(data_dir, **{"data.hard_negatives": str(path), "data.flip_probability": 0.0})
    texts = {number: texts_of(colors, number) for number, _, colors in images_of("train", 8)}
    split, batches = Split(config, "train"), MATCH.train_batches(config, 0, 0, 1)
    for batch in (next(batches) for _ in range(4)):
        for i, index in enumerate(batch.index):
            like = texts[(int(split[int(index)]["image_number"]) + 1) % 8]
            assert words_of(batch, config, i, 2) in {f"[CLS] {text.replace(',', ' [UNK]')} [SEP]" for text in like}
    path.write_text(json.dumps({"0": [1], "1": [1]}))
    with pytest.raises(ValueError, match="hard.json names no other image of train for image"):
        MATCH.train_batches(config, 0, 0, 1)


def test_losses_of_known_scores():
    scores, choice = jnp.array([[0.0, 0, 0], [10, -10, -10], [2, 1, 0], [5, 5, 5]]), jnp.array([0, 0, 1, -1])
    softmax = [np.log(3), np.log1p(2 * np.exp(-20)), np.log(np.sum(np.exp([2.0, 1, 0]))) - 1]
    np.testing.assert_allclose(models.match_losses(scores, choice, "softmax", 0.2)[:3], softmax, rtol=1e-5, atol=1e-7)
    chance = 1 / (1 + np.exp(-np.array([2.0, 1, 0])))
    hinge = [0.2, 0, (max(0, 0.2 + chance[0] - chance[1]) + max(0, 0.2 + chance[2] - chance[1])) / 2]
    np.testing.assert_allclose(models.match_losses(scores, choice, "hinge", 0.2)[:3], hinge, rtol=1e-5)
    with pytest.raises(ValueError, match="config.losses.match is 'triplet'; it must be one of softmax, hinge"):
        models.match_losses(scores, choice, "triplet", 0.2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data.sequence_length": 12}, "is 12, but 10 elements of text .* and 3 regions need 13"),
        ({"data.text_length": 2}, "text_length is 2; "),
        ({"data.negative_texts": 0, "data.negative_images": 0}, "nothing to choose from"),
    ],
    ids=str,
)
def test_inconsistent_configs_are_reported(fields, message, data_dir):
    with pytest.raises(ValueError, match=message):
        next(MATCH.train_batches(tiny(data_dir, **fields), 0, 0, 1))


def test_one_image_has_no_negatives(tmp_path):
    with pytest.raises(ValueError, match="have the same image; a choice needs two images"):
        next(MATCH.train_batches(tiny(build_tables(tmp_path, 1)), 0, 0, 1))


# --- Evaluation -----------------------------------------------------------------------------------

LAYOUTS = {
    "vlbert": RegionLayout(),
    "running": RegionLayout(positions="running", words_carry="none", end_token=False, segment=1),
    "named": RegionLayout(positions="zero", words_carry="named", whole_image=False),
    "apart": RegionLayout(apart=True, words_carry="none", end_token=False),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pairs_of_the_device_are_those_of_the_host(layout):
    texts = [[7, 5, 8], [7, 5, 6, 5, 8]]
    ids = np.array([[*text, *[0] * (6 - len(text))] for text in texts])
    length, rows = 10, np.array([1, 3, 4])
    found = pair_on_device(jnp.asarray(ids), jnp.array([3, 5]), jnp.asarray(rows), length, 9, layout)
    for i, count in enumerate(rows.tolist()):
        for k, text in enumerate(texts):
            zeros = np.zeros(len(text), np.int32)
            packed = pack(text, zeros, count, np.zeros(count, bool), zeros, length, 9, layout=layout)
            for name, value in packed.items():
                np.testing.assert_array_equal(found[name][i, k], value, err_msg=name)


@pytest.fixture(scope="module")
def built(data_dir):
    config = tiny(data_dir)
    return config, split_model(MATCH.build_model(config, nnx.Rngs(0)), MATCH, config)


@pytest.fixture(scope="module")
def brute_force(built):
    """Return the score of every text of val with every image, each pair computed alone: [images, texts]."""
    config, (graphdef, params, constants) = built
    split, tokenizer = Split(config, "val"), tokenizer_of(config)
    texts = sorted((split.texts[i] for i in range(len(split))), key=lambda text: text["text_id"])
    fields = []
    for image in sorted({int(text["image_number"]) for text in texts}):
        record = split.images[image]
        layout = PairLayout.of(config, "square")
        for text in texts:
            seen = image_fields(record, record["boxes"], layout, False)
            ids, _ = text_ids(text["text"], tokenizer, 10)
            kept, zeros = int(seen["region_mask"].sum()), np.zeros(len(ids), np.int32)
            packed = pack(ids, zeros, kept, np.zeros(kept, bool), zeros, 13, tokenizer.vocab_size)
            fields.append({name: value[None] for name, value in packed.items()} | seen)
    batch = make_batch({name: np.stack([each[name] for each in fields]) for name in fields[0]}, MATCH.targets)

    @jax.jit
    def score(params, constants, batch):
        model = nnx.merge(graphdef, params, constants)
        return model.pair_scores(model.states(batch), batch.token_ids)

    return np.array(score(params, constants, batch)).reshape(-1, len(texts))


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_evaluation_equals_pairs_scored_alone(built, brute_force, devices):
    config, (graphdef, params, constants) = built
    config = config.copy_and_resolve_references()
    config.batch_size = 6 if devices == 3 else 8
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    score = make_score(graphdef, MATCH, config, mesh, predict=True)
    with jax.set_mesh(mesh):
        values, rows = evaluate(score, params, constants, MATCH, config, mesh, lambda: False)
    np.testing.assert_array_equal(rows["index"], np.arange(8))
    np.testing.assert_allclose(rows["scores"], brute_force, atol=2e-5)
    assert min(np.ptp(brute_force, axis=axis).min() for axis in (0, 1)) > 0.01  # else any scores would agree
    assert values["candidates"] == brute_force.shape[1] and values["text_cut"] == 0
    candidates = candidates_of(config)
    expected = retrieval_scores(rows["scores"].T, candidates.image_of_text)
    assert {name: values[name] for name in expected} == expected
    assert devices != 3 or values["candidates_per_second"] > 0  # the rate is known from the second batch on


def test_every_image_comes_once_over_all_hosts(data_dir):
    config = tiny(data_dir, **{"data.one_orientation": True, "data.features": "image"})
    parts = [list(MATCH.eval_batches(config, host, 2)["images"]) for host in range(2)]
    assert len(parts[0]) == len(parts[1]) > 1  # batches of both orientations
    seen = np.concatenate([batch.index for part in parts for batch in part])
    assert sorted(seen[seen >= 0]) == list(range(8))


def test_candidates_are_ordered_and_can_be_fewer(data_dir):
    config = tiny(data_dir)
    found, split = candidates_of(config), Split(config, "val")
    assert found.images == tuple(range(8, 16)) and sorted(sum(found.parts.values(), ())) == list(range(8))
    assert [int(split.texts[i]["text_id"]) for i in found.records] == sorted(
        int(split.texts[i]["text_id"]) for i in range(len(split))
    )
    config.data.eval_candidates = 3
    few, owners = candidates_of(config), [int(split.texts[i]["image_number"]) for i in range(len(split))]
    assert few.images == (8, 9, 10) and len(few.lengths) == sum(owner < 11 for owner in owners)


def test_runs_and_the_files_of_predictions(data_dir, tmp_path):
    # The same program evaluates while the model is trained and afterwards.
    config = tiny(data_dir, total_steps=2, warmup_steps=1, **{"data.eval_candidates": 0, "data.eval_folds": 2})
    train(config, MATCH, tmp_path, one_device(config))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"match_accuracy", "match_loss"} <= rows[0].keys() and 0 <= rows[-1]["mean_recall"] <= 1
    scores = evaluate_run(config, MATCH, tmp_path, one_device(config))
    assert {"image_recall_1", "text_recall_10", "mean_recall", "mean_recall_of_folds"} <= scores.keys()
    lines = [json.loads(line) for line in (tmp_path / "predictions/val_images.jsonl").read_text().splitlines()]
    candidates = candidates_of(config)
    assert [line["id"] for line in lines] == [str(1008 + place) for place in candidates.image_of_text]
    assert [line.get("place") for line in lines[:1]] == ["shelf"] and any("place" not in line for line in lines)
    hits = [line["images"][0][0] == line["image"] for line in lines]
    assert len(lines) == len(candidates.lengths) and np.mean(hits) == pytest.approx(scores["image_recall_1"])
    texts = [json.loads(line) for line in (tmp_path / "predictions/val_texts.jsonl").read_text().splitlines()]
    assert [line["image"] for line in texts] == [f"{number}.png" for number in range(8, 16)]
    hits = [lines[line["texts"][0][0]]["image"] == line["image"] for line in texts]
    assert np.mean(hits) == pytest.approx(scores["text_recall_1"])
    assert all(lines[place]["text"] == text for line in texts for place, text, _ in line["texts"])
