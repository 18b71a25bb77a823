"""The shipped recipes with each one-stream architecture: two updates on synthetic data, layouts, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import refcoco as refcoco_recipes
from configs import vcr as vcr_recipes
from configs import vqa as vqa_recipes
from data_prep.build import build_scene_tasks, build_scenes
from tests.helpers.pretrain_case import FEATURES
from tests.helpers.pretrain_case import shrunk as shrunk_pretraining
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import END, IMG, NO_IMAGE
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.architectures import ARCHITECTURES, ONE_STREAM
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.layouts import region_layout
from vlbert_jax.tasks.region.examples import ExpressionLayout, asked_example
from vlbert_jax.training import metrics, sharding
from vlbert_jax.training.loop import train
from vlbert_jax.weights.conversion import prepare_conversion, write_conversion
from vlbert_jax.weights.read import read_weights

SIBLINGS = [a.name for a in ONE_STREAM if a.name != "vlbert"]
GEOMETRY = dict(visualbert=None, uniter=7, oscar=6, vinvl=6, b2t2=None, b2t2_positions=4, unicoder_vl=5)
HIDES = ("uniter", "unicoder_vl")  # architectures that can hide a region with a precomputed feature


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=8, num_train_stories=20, num_val_stories=4, feature_width=FEATURES)
    build_scene_tasks(folder, num_train=24, num_val=8, num_test=4, feature_width=FEATURES)
    return folder


def shrunk_vqa(variant: str, data_dir):
    config, demo = getattr(vqa_recipes, variant)(), vqa_recipes.demo()
    names = ("texts", "images", "vocab", "answers", "sequence_length", "max_regions")
    shrink(config, demo, data_dir, num_layers=1, names=names)
    config.model.feature_size, config.model.num_answers, config.batch_size = FEATURES, demo.model.num_answers, 8
    return config


def recipe(task: str, data_dir, architecture: str):
    if task == "pretrain":
        config = shrunk_pretraining("base_prec", data_dir)
        config.model.encoder.num_layers = 1
        config.losses.mrc = architecture in HIDES
    else:
        config = shrunk_vqa("base", data_dir)
    config.model.architecture = architecture
    config.init.scratch = True
    config.total_steps, config.warmup_steps, config.report = 2, 1, False
    config.eval_every_steps = config.checkpoint_every_steps = 0
    return config


# sibling_recipes_test.py pre-trains the other architectures by their recipes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("pretrain", "vinvl"), ("pretrain", "b2t2_positions"), *(("answer", sibling) for sibling in SIBLINGS)],
)
def test_two_updates(name, architecture, data_dir, tmp_path):
    config, task = recipe(name, data_dir, architecture), get_task(name)
    batch = next(task.train_batches(config, 0, 0, 1))
    shapes, promised = ({jax.tree_util.keystr(path): (a.shape, a.dtype) for path, a in jax.tree.leaves_with_path(tree)}
                        for tree in (batch, task.batch_shapes(config)))  # fmt: skip
    assert shapes == promised
    geometry = GEOMETRY[architecture]
    assert batch.box_geometry is None if geometry is None else batch.box_geometry.shape[-1] == geometry
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    _, state = train(config, task, tmp_path, mesh)
    assert int(state.step) == 2
    trained = {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state.params)}
    assert all(np.isfinite(v).all() for v in trained.values())
    assert "vlbert/text_only_visual" not in trained


@pytest.mark.slow
def test_two_streams_on_eight_devices(data_dir, tmp_path):
    """Losses and gradients of two updates equal those on one device; each device reads a copy of the token table."""
    config, task = recipe("pretrain", data_dir, "vilbert"), get_task("pretrain")
    config.batch_size, config.model.encoder.dropout_rate, config.model.region_head.dropout_rate = 16, 0.0, 0.0
    rows = {}
    for count in (1, 8):
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:count])
        with jax.set_mesh(mesh):
            train(config, task, tmp_path / str(count), mesh)
        found = metrics.read_rows(tmp_path / str(count) / "metrics.jsonl")
        rows[count] = [row for row in found if row["split"] == "train"]
    for one, many in zip(*rows.values(), strict=True):
        for name in ("loss", "grad_norm", "mlm_caption_loss"):
            assert many[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["uniter", "oscar", "b2t2_positions"])
def test_two_updates_from_pixels(architecture, data_dir, tmp_path):
    """The region head is trained along; hidden regions have no pixels, so no architecture needs a replacement."""
    config, task = shrunk_pretraining("base_e2e", data_dir), get_task("pretrain")
    config.model.architecture, config.model.encoder.num_layers = architecture, 1
    config.total_steps, config.warmup_steps, config.report = 2, 0, False
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.learning_rate = 1e-3
    assert config.losses.mrc and config.data.hide_pixels
    _, state = train(config, task, tmp_path, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert int(state.step) == 2 and bool(state.finite)
    trained = {"/".join(map(str, path[:2])) for path, _ in nnx.to_flat_state(state.params)}
    assert {"fast_rcnn/c5", "fast_rcnn/projection", "mrc_head/classes"} <= trained


@pytest.mark.parametrize("architecture", SIBLINGS)
def test_layout_of_a_sequence(architecture, data_dir):
    config = recipe("answer", data_dir, architecture)
    switches, vocab_size = ARCHITECTURES[architecture], config.model.encoder.vocab_size
    batch = next(get_task("answer").train_batches(config, 0, 0, 1))
    row = {name: getattr(batch, name)[0, 0] for name in ("token_ids", "region_ids", "segment_ids", "position_ids")}
    real = batch.element_mask[0, 0]
    is_region = row["token_ids"] >= vocab_size + IMG
    t, rows = int((real & ~is_region).sum()), int(batch.region_mask[0].sum())
    first = 0 if switches.whole_image else 1
    np.testing.assert_array_equal(row["region_ids"][is_region], np.arange(first, rows))
    assert (row["region_ids"][:t] == NO_IMAGE).all()  # no sibling's words carry the whole image
    assert (row["segment_ids"][is_region] == switches.region_segment_id).all()
    places = dict(own=0, none=0, shared=t, running=t + np.arange(rows - first))[switches.region_position]
    assert (row["position_ids"][is_region] == places).all()
    assert (vocab_size + END in row["token_ids"]) == switches.end_token


def test_hidden_regions_require_a_replacement(data_dir):
    config = recipe("pretrain", data_dir, "visualbert")
    config.losses.mrc = True
    with pytest.raises(ValueError, match="losses.mrc is True, but visualbert has nothing that replaces"):
        get_task("pretrain").build_model(config, nnx.Rngs(0))


def test_positions_of_hidden_regions(data_dir):
    config = recipe("pretrain", data_dir, "uniter")
    config.data.mask_regions = 0.9
    batch = next(get_task("pretrain").train_batches(config, 0, 0, 1))
    targets, seen = batch.targets, 0
    for i, mask in enumerate(targets.mrc_mask):
        elements = batch.region_ids[i, 0][targets.mrc_positions[i][mask]]
        np.testing.assert_array_equal(elements, targets.mrc_regions[i][mask])
        seen += mask.sum()
    assert seen


def shrunk_demo(recipes, data_dir, architecture: str, **fields):
    """Return a demo of regions or choices with small sizes, for another architecture."""
    config = recipes.demo()
    names = ("texts", "images", "vocab", "sequence_length", "max_regions")
    shrink(config, recipes.demo(), data_dir, num_layers=1, names=names)
    config.model.architecture, config.model.encoder.pooler = architecture, True
    config.init.scratch, config.total_steps, config.warmup_steps, config.batch_size = True, 2, 0, 8
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.data.one_orientation = False
    config.update_from_flattened_dict(fields)
    return config


RECIPES = dict(choice=vcr_recipes, region=refcoco_recipes)


@pytest.mark.parametrize("architecture", ["uniter", "oscar", "vilbert", "lxmert"])
@pytest.mark.parametrize("name", RECIPES)
def test_elements_of_regions(name, architecture, data_dir):
    """They are where their positions say; the whole image may be chosen where the model reads it."""
    config, task = shrunk_demo(RECIPES[name], data_dir, architecture), get_task(name)
    batch = next(task.train_batches(config, 0, 0, 1))
    shapes, promised = ({jax.tree_util.keystr(path): (a.shape, a.dtype) for path, a in jax.tree.leaves_with_path(tree)}
                        for tree in (batch, task.batch_shapes(config)))  # fmt: skip
    assert shapes == promised
    first, length = region_layout(config).first_row, batch.token_ids.shape[-1]
    assert first == (0 if architecture == "vilbert" else 1)
    for example, n in np.ndindex(*batch.token_ids.shape[:2]):
        rows = np.flatnonzero(batch.region_mask[example])[first:]
        places = batch.targets.region_positions[example, n, rows]
        if region_layout(config).apart:
            np.testing.assert_array_equal(places, length + rows - first)
        else:
            np.testing.assert_array_equal(batch.region_ids[example, n, places], rows)
    if name == "region" and first:
        assert not batch.targets.region_choices[:, 0].any() and not batch.targets.region_hits[:, 0].any()
        np.testing.assert_array_equal(batch.targets.region_choices[:, 1:], batch.region_mask[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"), [("choice", "lxmert"), ("region", "uniter"), ("region", "vilbert")]
)
def test_regions_and_choices(name, architecture, data_dir, tmp_path):
    config, task = shrunk_demo(RECIPES[name], data_dir, architecture), get_task(name)
    batch = next(task.train_batches(config, 0, 0, 1))
    _, state = train(config, task, tmp_path, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert int(state.step) == 2 and bool(state.finite)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0))))
    model = nnx.merge(graphdef, state.params, state.constants)
    predicted = jax.device_get(nnx.jit(lambda m, b: task.predict(m, b, config))(model, batch))
    if name == "region":
        chosen, first = predicted["region"][:, 0], region_layout(config).first_row
        assert (chosen >= first).all() and batch.region_mask[np.arange(len(chosen)), chosen].all()
    else:
        assert predicted["logits"].shape == (8, 4) and np.isfinite(predicted["logits"]).all()
        assert len(np.unique(predicted["logits"][0])) == 4
    if architecture == "uniter":  # it has a ResNet, as VL-BERT has, and the head of VL-BERT
        source, file = prepare_conversion(tmp_path, name), tmp_path / "model.safetensors"
        tensors = dict(source.tensors)
        write_conversion(source, file, "safetensors", "float32")
        assert read_weights(file).architecture == architecture
        found = prepare_conversion(file, name).tensors
        assert found.keys() == tensors.keys() and any(name.startswith("image_feature_extractor.") for name in found)
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_names_of_regions_follow_the_expression(data_dir):
    config = shrunk_demo(refcoco_recipes, data_dir, "oscar")
    tokenizer, layout = tokenizer_of(config), ExpressionLayout.of(config)
    record = dict(image=np.zeros((20, 40, 3), np.uint8), image_size=np.array([40, 20]), expression="red ball")
    record |= dict(labels=["fish", "car"])
    boxes = np.array([[0, 0, 10, 10], [20, 10, 39, 19]], np.float32)
    example = asked_example(record, boxes, False, tokenizer, layout)
    words = {word: tokenizer.words(word)[0][0] for word in ("red", "ball", "fish", "car")}
    expected = [tokenizer.cls_id, words["red"], words["ball"], tokenizer.sep_id, words["fish"], words["car"],
                tokenizer.sep_id]  # fmt: skip
    assert example["token_ids"][0, :7].tolist() == expected
    assert example["segment_ids"][0, :7].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert example["region_positions"][0, 1:3].tolist() == [7, 8]
    short = asked_example(record, boxes, False, tokenizer, dataclasses.replace(layout, text_length=6))
    assert short["token_ids"][0, :7].tolist() == [*expected[:5], tokenizer.sep_id, config.model.encoder.vocab_size]


def test_features_of_regions_are_those_of_a_table(data_dir):
    config = shrunk_demo(refcoco_recipes, data_dir, "uniter", **{"data.features": "precomputed"})
    with pytest.raises(ValueError, match="precomputed, but config.data.train_boxes is 'both', whose regions have no"):
        ExpressionLayout.of(config)
    config.data.train_boxes = "listed"
    layout = ExpressionLayout.of(config)
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    record = dict(image_size=np.array([40, 20]), expression="red ball", features=np.zeros((1, 0), np.float32))
    with pytest.raises(ValueError, match="a record has no features of its regions.* set it to image, or build"):
        asked_example(record, boxes, False, tokenizer_of(config), layout)
    record["features"] = np.ones((1, layout.feature_size), np.float32)
    example = asked_example(record, boxes, False, tokenizer_of(config), layout)
    assert "pixels" not in example and example["region_features"][:2].all()


def test_the_layout_of_vlbert_is_the_default(data_dir):
    config = shrunk_vqa("base", data_dir)
    assert region_layout(config) == type(region_layout(config))()


# --- Heads and losses of the siblings -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_losses_of_uniter(data_dir, tmp_path):
    config = recipe("pretrain", data_dir, "uniter")
    config.losses.update(dict(mrc=True, mrc_targets="kl", regression=True, relationship=True, transport=0.1))
    config.model.encoder.pooler = True
    task = get_task("pretrain")
    names = task.active_losses(config, 0)
    assert set(names) == {"mlm_caption", "mlm_text", "mrc", "relationship", "regression", "transport"}
    assert {name: task.loss_weights(config)[name] for name in ("mrc", "transport")} == dict(mrc=1.0, transport=0.1)
    _, state = train(config, task, tmp_path, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert int(state.step) == 2 and bool(state.finite)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any({f"{name}_loss" for name in names} <= {key.rpartition("/")[2] for key in row} for row in rows), rows


@pytest.mark.parametrize(("kind", "reads_pooler", "hidden"), [
    ("mask", False, 16), ("mask_linear", False, 0), ("pooler", True, 32), ("pooler_linear", True, 0),
])  # fmt: skip
def test_answer_heads(kind, reads_pooler, hidden, data_dir):
    config = recipe("answer", data_dir, "uniter")
    config.model.answer_head, config.model.encoder.pooler = kind, reads_pooler
    task = get_task("answer")
    model = task.build_model(config, nnx.Rngs(0))
    head = model.answer_head
    assert hidden == (head.transform.kernel.shape[1] if hasattr(head, "transform") else 0)
    batch = jax.tree.map(jnp.asarray, next(task.train_batches(config, 0, 0, 1)))
    other = batch.replace(token_ids=batch.token_ids.at[:, :, 1].set(7))  # another word changes every head's input
    moved = batch.targets.replace(answer_positions=batch.targets.answer_positions - 1)
    run = nnx.jit(lambda m, b: m.states(b))
    states = run(model, batch)
    logits = model.answer_logits(states, batch.targets.answer_positions)
    assert logits.shape == (8, config.model.num_answers) and logits.dtype == jnp.float32
    assert np.array_equal(logits, model.answer_logits(states, moved.answer_positions)) == reads_pooler
    assert not np.array_equal(logits, model.answer_logits(run(model, other), batch.targets.answer_positions))
    before = np.asarray(head.classes.kernel[...])
    task.initialize_heads(model, config, set())
    assert np.array_equal(before, head.classes.kernel[...]) == reads_pooler


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("answer", {"model.answer_head": "cls"}, "answer_head is 'cls'; it must be one of mask, mask_linear"),
        ("answer", {"model.answer_head": "pooler"}, "'pooler' requires config.model.encoder.pooler=True"),
        ("pretrain", {"losses.regression": True, "data.hide_pixels": True}, "these must be replaced, not their pixels"),
        ("pretrain", {"losses.transport": 0.1}, "set config.losses.relationship=True as well"),
    ],
)
def test_contradictions_are_refused(name, fields, message, data_dir):
    config = recipe(name, data_dir, "uniter")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        get_task(name).build_model(config, nnx.Rngs(0))
