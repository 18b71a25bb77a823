"""Queries of an image and a text: pairs of the device and the host, batches, evaluation, a run, and a search."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import vlbert_jax
from configs import own, vqa
from data_prep.own import build_own
from tests.helpers.predict_case import write_model
from tests.helpers.retrieval_case import COLORS, SPECIAL, VOCAB_SIZE, WORDS
from tests.helpers.tiny_recipes import shrink
from vlbert_jax import predict
from vlbert_jax.batch import make_batch
from vlbert_jax.data.examples import image_fields
from vlbert_jax.data.packing import RegionLayout, pack_images
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.prediction import gallery
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.match.batches import gallery_of
from vlbert_jax.tasks.match.examples import PairLayout, choice_of_pairs, query_on_device
from vlbert_jax.tasks.match.queries import queries_of
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate, make_score
from vlbert_jax.training.state import split_model

MATCH = get_task("match")
PAIRS = [(a, b) for a in COLORS for b in COLORS if a != b]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of images of two colors, and queries that ask for another color on the right."""
    root = tmp_path_factory.mktemp("queries") / "photos"
    root.mkdir()
    for number, (left, right) in enumerate(PAIRS):
        pixels = np.zeros((32, 48, 3) if number % 3 else (48, 32, 3), np.uint8)
        half = pixels.shape[1] // 2
        pixels[:, :half], pixels[:, half:] = COLORS[left], COLORS[right]
        PIL.Image.fromarray(pixels).save(root / f"{left}_{right}.png")
    splits = dict(train=(("red", "green"), 6), val=(("blue", "white"), 5), test=(("black",), 2))
    for split, (colors, count) in splits.items():
        asked = [(a, b, c) for a in colors for b in COLORS for c in COLORS if len({a, b, c}) == 3][:count]
        lines = [
            dict(id=f"{split}{i}", image=f"{a}_{b}.png", text=f"a {c} square on the right", targets=[f"{a}_{c}.png"],
                 place="shelf")
            for i, (a, b, c) in enumerate(asked)
        ]  # fmt: skip
        gallery = [dict(image=f"{a}_{b}.png") for a, b in PAIRS if a in colors or split == "val"]
        if split == "val":
            lines[0]["targets"].append("white_black.png")
        if split == "test":
            lines = [{k: v for k, v in line.items() if k != "targets"} for line in lines]
        for name, rows in {split: lines, f"{split}_gallery": gallery}.items():
            (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def config(photos):
    data_dir = photos.parent / "data"
    build_own(photos, data_dir, "photos")
    config = own.get_config(f"@{data_dir}/own/photos")
    assert config.task == "match" and config.data.images_per_example == 2
    (data_dir / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *WORDS)))
    shrink(config, vqa.demo(), data_dir, num_layers=1, names=())
    config.model.encoder.update(dict(vocab_size=VOCAB_SIZE, region_visual_gain_init=1.0, init_deviation=0.3))
    config.data.update(dict(vocab="vocab.txt", max_regions=9, text_length=10, sequence_length=30))
    config.batch_size, config.total_steps, config.warmup_steps, config.init.scratch = 6, 2, 1, True
    config.log_every_steps, config.eval_every_steps, config.checkpoint_every_steps = 1, 0, 0
    return config


# --- The pairs ------------------------------------------------------------------------------------

LAYOUTS = {
    "vlbert": RegionLayout(),
    "running": RegionLayout(positions="running", words_carry="none", end_token=False, segment=1),
    "named": RegionLayout(positions="zero", words_carry="named", whole_image=False),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_queries_of_the_device_are_those_of_the_host(layout):
    ids, lengths = np.array([[7, 5, 8, 0, 0], [7, 5, 6, 5, 8]]), [3, 5]
    rows = np.array([[1, 4], [3, 2]])  # of four of each image
    found = query_on_device(
        jnp.asarray(ids), jnp.asarray(lengths), jnp.asarray(rows), 4, 4, 12, 9, layout
    )
    for i, (first, second) in enumerate(rows):
        of_images = [np.arange(first), 4 + np.arange(second)]
        segments = np.zeros(lengths[i], int)
        packed = pack_images(ids[i, : lengths[i]], segments, of_images, 12, 9, 4, layout)
        for name, value in packed.items():
            np.testing.assert_array_equal(found[name][i, 0], value, err_msg=name)


def test_training_compares_the_target_with_other_images_and_other_texts(config):
    split, batches, names = Split(config, "train"), MATCH.train_batches(config, 0, 0, 1), set()
    candidates, layout = gallery_of(config, "train"), PairLayout.of(config, "square")
    for batch in (next(batches) for _ in range(4)):
        for i, index in enumerate(batch.index):
            text = split.texts[int(index)]
            (target,) = text["targets"]
            seen = [split.images[int(number)] for number in (text["image_number"], target)]
            example = choice_of_pairs([text["text"]], seen, False, tokenizer_of(config), layout)
            for name in ("token_ids", "region_ids", "segment_ids", "position_ids"):
                np.testing.assert_array_equal(getattr(batch, name)[i, 0], example[name][0])
            np.testing.assert_array_equal(batch.pixels[i, :2], example["pixels"])
            # Sequence 1 has the words of another query about the same two images, 2 and 3 have further images.
            assert not np.array_equal(batch.token_ids[i, 1], batch.token_ids[i, 0])
            images = [{int(row) // 10 for row in batch.region_ids[i, k] if row >= 0} for k in range(4)]
            assert images == [{0, 1}, {0, 1}, {0, 2}, {0, 3}]
            shown = [_pixels(split, number, layout) for number in candidates]
            others = [n for n, pixels in zip(candidates, shown, strict=True)
                      if any(np.array_equal(batch.pixels[i, k], pixels) for k in (2, 3))]  # fmt: skip
            assert others and target not in others
            names |= set(others)
    assert len(names) > 4 and batch.targets.choice.tolist() == [0] * 6


def _pixels(split, number, layout):
    record = split.images[number]
    return image_fields(record, record["boxes"], layout, False)["pixels"][0]


# --- Evaluation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(config):
    """Return the folder of a model with random weights."""
    folder = Path(config.data.data_dir) / "model"
    write_model(folder, config)
    return folder


@pytest.fixture(scope="module")
def built(config, weights):
    _, graphdef, state = load_trained(weights, 9, "match")
    return split_model(nnx.merge(graphdef, state), MATCH, config)


@pytest.fixture(scope="module")
def brute_force(config, built):
    """Return the score of every query of val with every candidate, each pair computed alone."""
    split, tokenizer, layout = Split(config, "val"), tokenizer_of(config), PairLayout.of(config, "square")
    texts = sorted((split.texts[i] for i in range(len(split))), key=lambda text: text["text_id"])
    candidates, pairs = gallery_of(config, "val"), []
    for text in texts:
        for image in candidates:
            seen = [split.images[int(number)] for number in (text["image_number"], image)]
            pairs.append(choice_of_pairs([text["text"]], seen, False, tokenizer, layout))
    batch = make_batch({name: np.stack([pair[name] for pair in pairs]) for name in pairs[0]}, MATCH.targets)
    graphdef, params, constants = built

    @jax.jit
    def score(params, constants, batch):
        model = nnx.merge(graphdef, params, constants)
        return model.pair_scores(model.pair_states(batch), batch.token_ids)

    return np.array(score(params, constants, batch)).reshape(len(texts), len(candidates))


@pytest.fixture(scope="module")
def rows():
    """Return the rows of an evaluation, and the function that made them, of the test that evaluates."""
    return {}


@pytest.mark.parametrize("devices", [8, 1])
def test_evaluation_equals_pairs_scored_alone(config, built, brute_force, rows, devices):
    graphdef, params, constants = built
    config = config.copy_and_resolve_references()
    config.batch_size = 8 if devices == 8 else 6
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    score = make_score(graphdef, MATCH, config, mesh, predict=True)
    with jax.set_mesh(mesh):
        values, found = evaluate(score, params, constants, MATCH, config, mesh, lambda: False)
    rows.update(all=found, score=lambda batch: jax.device_get(score(params, constants, batch))[1])
    queries = queries_of(config)
    found = queries.scores(found["scores"])
    np.testing.assert_allclose(found, brute_force, atol=2e-5)
    assert min(np.ptp(brute_force, axis=axis).min() for axis in (0, 1)) > 1e-3  # else any scores would agree
    assert values["candidates"] == len(PAIRS) and values["text_cut"] == 0
    split = Split(config, "val")
    targets = [split.texts[number]["targets"].tolist() for number in queries.records]
    best = [[queries.images[k] for k in np.argsort(-row)] for row in found]
    for k in (1, 5, 10):
        hits = [any(image in own for image in row[:k]) for row, own in zip(best, targets, strict=True)]
        assert values[f"image_recall_{k}"] == pytest.approx(np.mean(hits))
    assert [len(own) for own in targets] == [2, 1, 1, 1, 1] and "text_recall_1" not in values


def test_fewer_candidates_are_the_targets_of_the_first_queries_and_others(config):
    few = config.copy_and_resolve_references()
    few.data.eval_candidates = 4
    found = queries_of(few)
    assert found.right.shape == (4, 5) and found.known.all()  # the four queries have five targets
    few.data.eval_split = "test"
    found = queries_of(few)
    assert found.right.shape == (2, 4) and not found.known.any()


# --- What is written, and a search ----------------------------------------------------------------


def test_the_file_of_predictions_and_the_report(config, rows, tmp_path):
    assert MATCH.conclude(tmp_path, {"": rows["all"]}, config) == {}
    lines = [json.loads(line) for line in (tmp_path / "val_images.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"val{i}" for i in range(5)] and lines[0]["place"] == "shelf"
    hits = [line["images"][0][0] in line["targets"] for line in lines]
    scores = MATCH.joint_scores(rows["all"], config)
    assert np.mean(hits) == scores["image_recall_1"] and all(len(line["images"]) == 10 for line in lines)
    with pytest.raises(ValueError, match="config.data.scorer is 'vollta'; it must be empty or one of scan, volta"):
        MATCH.joint_scores({}, ml_collections.ConfigDict(dict(data=dict(scorer="vollta"))))
    shown = [(batch, rows["score"](batch)) for batch in MATCH.report_batches(config)]
    cards = MATCH.report_examples(shown, config, scores).cards
    assert len(cards) == 5 and all(card.question.startswith("a ") for card in cards)
    targets = {line["text"]: line["targets"] for line in lines}
    for card in cards:
        text, about = card.question.split(" (left: the query; right: the image it asks for, ")
        assert about == "among 5 of such images)" and card.image.shape[1] > 48  # both images
        assert [bool(answer.score) for answer in card.answers] == [a.text in targets[text] for a in card.answers]


def test_search(config, weights, photos, brute_force, monkeypatch, capsys):
    predictor = vlbert_jax.load(weights)
    split = Split(config, "val")
    text = next(one for one in map(split.texts.__getitem__, range(len(split))) if one["example_id"] == "val0")
    query = photos / str(split.images[int(text["image_number"])]["image_id"]), text["text"]
    names = [str(split.images[number]["image_id"]) for number in gallery_of(config, "val")]
    found = predictor.search(query, [photos / name for name in names], top=len(names))
    # The table has JPEG files of the images.
    np.testing.assert_allclose([one.score for one in found], brute_force[0, [one.number for one in found]], atol=5e-3)
    assert np.ptp(brute_force[0]) > 0.02 and sorted(found, key=lambda one: -one.score) == found
    with pytest.raises(ValueError, match=r"queries of an image and a text: call search\(\(image, text\), images\)"):
        predictor.search(query[1], [query[0]])
    monkeypatch.setattr(gallery, "load_models", lambda args: (predictor, None))
    argv = ["--checkpoint", "model", "--gallery", str(photos), "--text", query[1], "--top=3"]
    assert predict.main([*argv, "--image", str(query[0])]) == 0
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert heading == f"{query[0]} + {query[1]}" and first.endswith(found[0].name.name)


def test_other_kinds_refuse_the_table_in_one_line(config):
    table = f"{config.data.data_dir}/own/photos"
    for kind in ("caption", "classify", "answer", "choice", "region"):
        with pytest.raises(ValueError, match=rf"photos has data of match \(field `targets`\), but own.py:{kind} reads"):
            own.get_config(f"{kind}@{table}")
    alone = config.copy_and_resolve_references()
    alone.data.images_per_example = 1
    with pytest.raises(ValueError, match=r"train of own/photos has queries .*: set config.data.images_per_example=2"):
        MATCH.train_batches(alone, 0, 0, 1)
    other = config.copy_and_resolve_references()
    other.data.texts = "own_images/photos"
    with pytest.raises(ValueError, match="There is no gallery .*own_images/photos_train_gallery.json"):
        gallery_of(other, "train")
