"""The recipes of the siblings on synthetic data, on several devices; a run in two stages, and what it answers."""

import functools
import json
import logging
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vlbert_jax
from benchmarks import controlled
from configs import vqa as vqa_recipes
from data_prep.build import build_scene_tasks, build_scenes
from tests.helpers import predict_case
from tests.helpers.pretrain_case import FEATURES
from tests.helpers.pretrain_case import shrunk as shrunk_pretraining
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.one_stream import OneStream
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.layouts import trunk_options
from vlbert_jax.training import optimizer, sharding
from vlbert_jax.training.config import parse_command
from vlbert_jax.training.loop import train
from vlbert_jax.training.state import create_state, initial_weights
from vlbert_jax.visualization.attention import write_attention
from vlbert_jax.weights.family_names import table_of
from vlbert_jax.weights.two_stream_names import run_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=8, num_train_stories=20, num_val_stories=4, feature_width=FEATURES)
    build_scene_tasks(folder, num_train=24, num_val=8, num_test=4, feature_width=FEATURES)
    return folder


def short(config, **fields):
    """Return the config with two updates that change something."""
    config.init.scratch, config.total_steps, config.warmup_steps, config.report = True, 2, 0, False
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.update_from_flattened_dict(fields)
    return config


def shrunk(variant: str, data_dir, **fields):
    """Return a recipe of pre-training with the lengths of the corpus in place of its own."""
    config = shrunk_pretraining(variant, data_dir, **{"model.encoder.num_layers": 1, "model.num_attributes": 4})
    config.data.text_length, config.data.sequence_length = 17, 24
    config.data.max_regions = 0 if variant == "b2t2_large" else 6
    config.losses.update(dict(attributes=False, answers=False))  # the corpus has neither
    return short(config, **fields)


def on_devices(config, *sizes):
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    return sharding.make_mesh(config.mesh, jax.devices()[: math.prod(sizes)])


def parameters(state):
    return {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state.params)}


def updated(config, workdir, *sizes):
    """Run the recipe on a mesh of these sizes; return the names of the losses in the log, and the parameters."""
    _, state = train(config, get_task(config.task), workdir, on_devices(config, *sizes))
    assert int(state.step) == 2 and bool(state.finite)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    values = {name: value for row in rows if row["split"] == "train" for name, value in row.items()}
    return {name for name in values if name.endswith("_loss")}, parameters(state)


@pytest.fixture(scope="module")
def lxmert(data_dir, tmp_path_factory):
    """Return the workdir of a pre-training on four devices, its losses and its parameters."""
    workdir = tmp_path_factory.mktemp("lxmert")
    return workdir, *updated(shrunk("lxmert_base", data_dir), workdir, 2, 2, 1)


def test_lxmert(lxmert):
    _, losses, trained = lxmert
    assert losses == {"mlm_caption_loss", "relationship_loss", "objects_loss", "features_loss"}
    assert {path[0] for path in trained} == {"two_stream", "mlm_head", "relationship_head", "visual_head"}
    assert all(np.isfinite(values).all() for values in trained.values())


def test_vilbert(data_dir, tmp_path):
    losses, trained = updated(shrunk("vilbert_base", data_dir), tmp_path, 1, 2, 2)
    assert losses == {"mlm_caption_loss", "relationship_loss", "mrc_loss"}
    assert {path[0] for path in trained} == {"two_stream", "mlm_head", "relationship_head", "mrc_head"}


ONE_STREAM = ("visualbert_base", "uniter_base", "uniter_large", "unicoder_vl_base", "b2t2_large", "oscar_base")


def traced(config):
    """Trace the losses of a batch of the corpus; return the batch and the shapes of the parameters."""
    task = get_task("pretrain")
    batch, names = next(task.train_batches(config, 0, 0, 1)), task.active_losses(config, 0)
    model = nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0)))
    compute = functools.partial(task.loss_sums, key=jax.random.key(0), config=config, names=names)
    sums, _ = nnx.eval_shape(compute, model, batch)
    assert set(sums) == set(names) and "mlm_caption" in names
    return batch, {"/".join(map(str, path)): v.shape for path, v in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("variant", ["vilbert_base", *ONE_STREAM])
def test_every_recipe_can_be_traced(variant, data_dir):
    config = shrunk(variant, data_dir)
    _, shapes = traced(config)
    assert ("two_stream/visual_pooler/kernel" if variant == "vilbert_base" else "vlbert/pooler/kernel") in shapes
    if variant == "uniter_base":  # the model of any recipe can be exchanged
        config.model.architecture, config.losses.transport, config.losses.regression = "lxmert", 0.0, False
        config.losses.ratios.update(dict.fromkeys(config.losses.ratios, 0.0))
        assert "two_stream/encoder/groups/2/x/both/attention_norm/scale" in traced(config)[1]


def test_the_controlled_study(data_dir):
    """Five architectures read the same words and regions, with one kind of box, hidden region and pooled vector."""
    seen = {}
    for architecture in ("vlbert", "uniter", "visualbert", "vilbert", "lxmert"):
        config = shrunk("controlled", data_dir, **{"model.architecture": architecture})
        seen[architecture], shapes = traced(config)
        two_streams = architecture in ("vilbert", "lxmert")
        poolers = [f"two_stream/{x}_pooler/kernel" for x in ("text", "visual")] if two_streams else [
            "vlbert/pooler/kernel", "vlbert/region_pooler/kernel"]  # fmt: skip
        assert [shapes[name] for name in poolers] == [(16, 16)] * 2 and shapes["relationship_head/kernel"] == (16, 2)
        assert "fast_rcnn/hidden_appearance" not in shapes and "mrc_head/classes/kernel" in shapes
        paths = {tuple(name.split("/")): shape for name, shape in shapes.items()}
        named = table_of(get_architecture(architecture))(paths, config.model.encoder.vocab_size)
        assert {entry.path for entry in named} == set(paths)  # without a name the weights start no other task
        options, _ = trunk_options(config)
        assert not two_streams or options.visual.hidden_size == 16
    numbers = {name: batch.box_geometry.shape[-1] for name, batch in seen.items() if batch.box_geometry is not None}
    assert numbers == dict(vlbert=2048, uniter=5, vilbert=5, lxmert=5)
    for name, batch in seen.items():
        for field in ("region_features", "region_mask"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(seen["vlbert"], field))
        first = batch.region_ids == 0  # the whole image is an element, or region 0 of a stream
        is_region = batch.token_ids >= 256
        assert name in ("vilbert", "lxmert") or (first & is_region).any(-1).all()


def test_the_product_of_both_pooled_vectors(data_dir):
    config = shrunk("controlled", data_dir, **{"model.architecture": "uniter"})
    options, _ = trunk_options(config)
    trunk = OneStream(options, nnx.Rngs(0))
    states = jax.random.normal(jax.random.key(0), (2, 5, 16))
    ids = np.array([[2, 9, 3, 256, 257], [2, 3, 256, 256, 0]])  # regions begin at 3 and at 2
    words, regions = trunk.pooler(states[:, 0]), trunk.region_pooler(states[np.arange(2), [3, 2]])
    expected = np.maximum(words, 0) * np.maximum(regions, 0)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(trunk.pool_both(states, jnp.asarray(ids)), expected, rtol=1e-5, atol=1e-7)


def test_the_benchmark_of_the_controlled_study(tmp_path, monkeypatch, capsys):
    """A row is a pre-training and a fine-tuning of one architecture; a row that exists is not repeated."""
    ran = []

    def write_results(command, **options):
        config, workdir, *_ = parse_command(command[2:])  # the fields exist in both recipes
        ran.append(config)
        number = len(ran) / 100
        scores = dict(visual_word_accuracy=0.5 + number, visual_word_accuracy_blind=0.1, answer_accuracy=number)
        rows = [dict(step=1, split="val", **dict.fromkeys(scores, 0.9)), dict(step=2, split="val", **scores)]
        rows.append(rows[0] | dict(split="train"))
        (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (workdir / "versions.json").write_text(json.dumps(dict(machine="2 cores", revision="0")))

    def table(*seeds, only=()):
        controlled.main([*options, f"--seeds={','.join(map(str, seeds))}", *only])
        return capsys.readouterr().out.splitlines()[-2:]

    monkeypatch.setattr(controlled.runs, "subprocess", types.SimpleNamespace(run=write_results))
    monkeypatch.setattr(controlled.runs, "revision", lambda root: "0")
    options = ["--architectures=uniter,lxmert", f"--workdirs={tmp_path}", f"--results={tmp_path}/rows"]
    options += ["--flag=--config.total_steps=2", "--flag=--config.model.encoder.hidden_size=16"]
    assert table(3, only=["--table"]) == ["| uniter | 0 | – | – | – |", "| lxmert | 0 | – | – | – |"]
    assert table(3) == ["| uniter | 1 | 0.510 | 0.100 | 0.020 |", "| lxmert | 1 | 0.530 | 0.100 | 0.040 |"]
    assert table(3, 4)[0] == "| uniter | 2 | 0.530 ± 0.028 | 0.100 ± 0.000 | 0.040 ± 0.028 |"
    assert [(config.model.architecture, config.seed, config.task) for config in ran] == [
        (name, seed, task) for seed in (3, 4) for name in ("uniter", "lxmert") for task in ("pretrain", "answer")
    ]
    for config in ran:
        assert (config.total_steps, config.model.encoder.hidden_size) == (2, 16)
        switches = {name: config.model.switches[name] for name in ("whole_image", "box_numbers", "hidden", "pool")}
        assert switches == dict(whole_image=True, box_numbers=5, hidden="zeros", pool="mul")
        assert config.task == "pretrain" or config.init.checkpoint.endswith(f"_{config.seed}/pretrain")


@pytest.mark.parametrize("variant", [*(v for v in ONE_STREAM if v != "uniter_large"), "controlled"])
def test_every_recipe_trains(variant, data_dir, tmp_path):
    losses, _ = updated(shrunk(variant, data_dir), tmp_path, 2, 1, 1)
    assert "mlm_caption_loss" in losses


# --- From pre-training to questions -------------------------------------------------------------------------


def questions(variant: str, data_dir, **fields):
    config, demo = getattr(vqa_recipes, variant)(), vqa_recipes.demo()
    shrink(config, demo, data_dir, num_layers=1, names=("texts", "images", "vocab", "answers"))
    config.model.feature_size, config.model.num_answers, config.batch_size = FEATURES, demo.model.num_answers, 8
    config.data.update(dict(text_length=24, sequence_length=31, max_regions=6))
    return short(config, **fields)


def initial(config):
    """Return the parameters that a run starts with."""
    task, mesh = get_task(config.task), on_devices(config, 1, 1, 1)
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    graphdef, _, shardings, create = create_state(config, task, tx, mesh)
    return parameters(initial_weights(config, task, graphdef, create(), shardings, complete=False))


def test_questions_start_from_pre_training(lxmert, data_dir, caplog):
    workdir, _, trained = lxmert
    config = questions("lxmert_base", data_dir, **{"init.checkpoint": str(workdir)})
    with caplog.at_level(logging.INFO, "vlbert_jax"):
        started = initial(config)
    trunk = {path for path in started if path[0] == "two_stream"}
    assert trunk and {path[0] for path in started} == {"two_stream", "answer_head"}
    for path in trunk:  # rows of the table of words that no token has are those of the run
        np.testing.assert_array_equal(started[path][:256], trained[path][:256], err_msg=str(path))
    assert "lxmert, pretrain in orbax" in caplog.text
    assert "parameters of two_stream/encoder: " in caplog.text
    assert "parameters of answer_head: 6 from scratch" in caplog.text


def test_a_head_of_other_answers_has_their_rows(data_dir, tmp_path, caplog):
    """A file of pre-training has LXMERT's 9,500 answers, of which a run with 36 takes its own, and zeros for others."""
    config = questions("lxmert_base", data_dir, **{"init.checkpoint": str(tmp_path / "model.safetensors")})
    state = nnx.state(nnx.eval_shape(lambda: get_task("answer").build_model(config, nnx.Rngs(0))))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    table = table_of(get_architecture("lxmert"))
    rng, official = np.random.default_rng(0), {}
    for entry in table(shapes, 256):
        shape = entry.to_official(entry.part(np.zeros(shapes[entry.path], np.float32))).shape
        shape = (9_500, *shape[1:]) if entry.official.startswith("answer_head.logit_fc.3.") else shape
        official[f"lxmert.{entry.official}"] = rng.standard_normal(shape, dtype=np.float32)
    official |= {"cls.predictions.bias": np.zeros(256, np.float32)}  # of pre-training
    for name in [name for name in official if ".answer_head." in name]:
        official[name.removeprefix("lxmert.")] = official.pop(name)
    save_file(official, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(dict(num_attention_heads=2, hidden_act="gelu")))
    with caplog.at_level(logging.INFO, "vlbert_jax"):
        started = initial(config)
    rows = get_task("answer").answer_rows(config, 9_500)
    assert rows.shape == (36,) and rows.min() == -1
    assert f"its head has 9500 answers; {(rows >= 0).sum()} of the 36 of the run are among them" in caplog.text
    assert "parameters of answer_head: 6 from init.checkpoint" in caplog.text
    for name, array in (("kernel", "weight"), ("bias", "bias")):
        last, given = started["answer_head", "classes", name].T, official[f"answer_head.logit_fc.3.{array}"]
        np.testing.assert_array_equal(last, np.where((rows >= 0).reshape(-1, *[1] * (given.ndim - 1)), given[rows], 0))
    kernel = started["answer_head", "transform", "kernel"]
    np.testing.assert_array_equal(kernel.T, official["answer_head.logit_fc.0.weight"])
    words = official["lxmert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(started["two_stream", "token_embeddings"][:256], words)
    config.model.answer_head = "mask"  # with another hidden layer
    with caplog.at_level(logging.INFO, "vlbert_jax"):
        initial(config)
    assert "its head has 9500 answers and that of the run 36, so it is initialized" in caplog.text


def test_the_words_stream_starts_from_bert(data_dir, tmp_path):
    config = shrunk("vilbert_base", data_dir, **{"model.two_stream.layers": (2, 1, 1)})
    state = nnx.state(nnx.eval_shape(lambda: get_task("pretrain").build_model(config, nnx.Rngs(0))))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    rng, bert, expected = np.random.default_rng(0), {}, []
    for entry in run_table(shapes, 256):
        if entry.official.startswith(("embeddings.", "encoder.layer.")):
            shape = entry.to_official(entry.part(np.zeros(shapes[entry.path], np.float32))).shape
            bert[f"bert.{entry.official}"] = rng.standard_normal(shape, dtype=np.float32)
            expected.append((entry, bert[f"bert.{entry.official}"]))
    assert len(bert) == 5 + 2 * 16
    save_file(bert, tmp_path / "model.safetensors")
    config.init.bert = str(tmp_path / "model.safetensors")
    started = initial(config)
    for entry, array in expected:
        np.testing.assert_array_equal(entry.to_official(entry.part(started[entry.path])), array)


@pytest.mark.parametrize("architecture", ["lxmert", "vilbert"])
def test_a_model_answers(architecture, data_dir, tmp_path):
    """A folder of the model is loaded; it answers from pixels, and every map of attention sums to 1 over its part."""
    sizes = dict(layers=(2, 1, 1), visual=(32, 4, 32), cross=(32, 2))
    config = predict_case.shrunk("vqa", data_dir, **{"model.architecture": architecture, "model.answer_head": "pooler"})
    config.model.two_stream.update(sizes)
    predictor = vlbert_jax.load(predict_case.write_model(tmp_path / "model", config))
    boxes = [[2, 2, 30, 30], [40, 10, 80, 60]]
    image, question = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8), "what color is the ball?"
    picture = predictor.look(image, boxes)
    answers = predictor.answer(picture, question)
    other = predictor.answer(image, question, [[0, 0, 20, 60], [50, 30, 90, 60]])
    assert len(answers) == 5 and [a.probability for a in answers] != [a.probability for a in other]
    first = 1 if architecture == "lxmert" else 0  # of the regions that the model reads
    encoded = predictor.encode(picture, question)
    assert encoded.text.shape == (len(encoded.tokens), 32) and encoded.regions.shape == (3 - first, 32)
    assert "[MASK]" not in encoded.tokens  # the head reads the pooler
    seen = predictor.attention(picture, question)
    t, size = len(seen.tokens), len(seen.tokens) + len(seen.regions) + 1
    assert len(seen.regions) == 3 and seen.probabilities.shape == (len(seen.layers), 4, size, size)
    words, regions = slice(0, t), slice(t + first, t + 3)
    sides = {"words": (words, words), "regions": (regions, regions), "words to regions": (words, regions),
             "regions to words": (regions, words)}  # fmt: skip
    assert {name.rsplit(" ", 1)[0] for name in seen.layers} == set(sides)
    for name, maps in zip(seen.layers, seen.probabilities, strict=True):
        read, given = sides[name.rsplit(" ", 1)[0]]
        heads = 2 if " to " in name else 4
        np.testing.assert_allclose(maps[:heads, read, given].sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(maps.sum((1, 2))[:heads], read.stop - read.start, rtol=1e-5)  # zeros elsewhere
    write_attention(tmp_path / "page.html", image, picture.regions.boxes, *seen[:3], "title", "", seen.layers)
    assert '"words to regions 1"' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", ["mask", "mask_linear", "pooler_linear"])
def test_other_heads_read_two_streams_too(kind, data_dir):
    """A head that reads [MASK] finds it among the words, and starts from the words of the answers."""
    config, task = questions("vilbert_base", data_dir, **{"model.answer_head": kind}), get_task("answer")
    batch = next(task.train_batches(config, 0, 0, 1))
    mask_id = tokenizer_of(config).mask_id
    at = np.take_along_axis(batch.token_ids[:, 0], batch.targets.answer_positions[:, None], axis=1)
    assert (at == mask_id).all() if kind.startswith("mask") else not (batch.token_ids == mask_id).any()
    model = task.build_model(config, nnx.Rngs(0))
    compute = functools.partial(task.loss_sums, key=None, config=config, names=("answer",))
    assert nnx.eval_shape(compute, model, batch)[0]["answer"].shape == ()
    before = np.asarray(model.answer_head.classes.kernel[...])
    task.initialize_heads(model, config, set())
    assert np.array_equal(before, model.answer_head.classes.kernel[...]) == (kind == "pooler_linear")
