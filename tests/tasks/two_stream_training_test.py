"""Two-stream architectures in the tasks: what a model reads of a batch, losses, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import vqa as vqa_recipes
from data_prep.build import build_scene_tasks, build_scenes
from tests.helpers.pretrain_case import FEATURES
from tests.helpers.pretrain_case import shrunk as shrunk_pretraining
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.data.masking import draw_samples
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.geometry import box_numbers
from vlbert_jax.model.two_stream_config import STREAMS
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example

pytestmark = pytest.mark.slow
TWO_STREAMS = ("lxmert", "vilbert")
FIRST_ROW = dict(lxmert=1, vilbert=0)  # of the regions that the model reads


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=40, num_val=8, num_train_stories=20, num_val_stories=4, feature_width=FEATURES)
    build_scene_tasks(folder, num_train=24, num_val=8, num_test=4, feature_width=FEATURES)
    return folder


def recipe(name: str, data_dir, architecture: str, **fields):
    if name == "pretrain":
        config = shrunk_pretraining("base_prec", data_dir)
    else:
        config, demo = vqa_recipes.base(), vqa_recipes.demo()
        names = ("texts", "images", "vocab", "answers", "sequence_length", "max_regions")
        shrink(config, demo, data_dir, num_layers=1, names=names)
        config.model.feature_size, config.model.num_answers, config.batch_size = FEATURES, demo.model.num_answers, 8
        config.model.answer_head = "pooler"
    config.model.architecture, config.init.scratch = architecture, True
    config.total_steps, config.warmup_steps, config.report = 2, 0, False
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.update_from_flattened_dict(fields)
    return config


def first_batch(config):
    return next(get_task(config.task).train_batches(config, 0, 0, 1))


@pytest.mark.parametrize("architecture", TWO_STREAMS)
def test_what_the_model_reads_of_a_batch(architecture, data_dir):
    """The states are those of the trunk on words, features and boxes that are written out here."""
    config = recipe("pretrain", data_dir, architecture, **{"data.mask_regions": 0.5})
    batch = first_batch(config)
    assert batch.token_ids.shape[1] == 2  # a caption, and a text without an image
    model = get_task("pretrain").build_model(config, nnx.Rngs(0))
    first = FIRST_ROW[architecture]
    real, size = batch.region_mask, batch.image_size
    assert not real.all() and batch.region_hidden.any()
    features = np.where((real & ~batch.region_hidden)[..., None], batch.region_features, 0)
    numbers = np.where(real[..., None], box_numbers(batch.boxes, size[:, 0], {0: 5, 1: 4}[first]), 0)
    if architecture == "vilbert":
        numbers[:, 0] = 0, 0, 1, 1, 1
        count = (real & ~batch.region_hidden)[:, 1:].sum(1)[:, None] + 1e-5
        np.testing.assert_allclose(features[:, 0], features[:, 1:].sum(1) / count, rtol=1e-4)
    assert batch.token_ids.shape[-1] == config.data.sequence_length and batch.token_ids.max() < 256  # words alone

    @nnx.jit
    def compare(model, batch, features, numbers):
        ours = model.encode(batch, model.region_states(batch, model.appearance(batch)), wanted=STREAMS)
        words = (batch.token_ids, batch.segment_ids, batch.position_ids, batch.element_mask)
        captions, texts = ([array[:, number : number + 1] for array in words] for number in (0, 1))
        regions = (x[:, None, first:] for x in (features, numbers, batch.region_mask))
        by_hand = model.two_stream(*captions, *regions)
        words = model.two_stream.embed_words(*texts[:3])
        alone, _ = model.two_stream.encode(words, texts[3], None, None, wanted=("text",))
        return ours, by_hand, alone, model.first_regions_at(ours, batch.targets.mrc_positions)

    spoilt = batch.replace(
        region_features=np.where(real[..., None], batch.region_features, np.nan),
        boxes=np.where(real[..., None], batch.boxes, np.nan), box_geometry=None,
    )  # fmt: skip
    ours, by_hand, alone, at_targets = compare(model, jax.tree.map(jnp.asarray, spoilt), features, numbers)
    np.testing.assert_allclose(ours.text, np.concatenate([by_hand.text, alone.text], axis=1), atol=1e-6)
    rows = np.broadcast_to(real[:, None, first:, None], by_hand.visual.shape)
    np.testing.assert_allclose(np.where(rows, ours.visual, 0), np.where(rows, by_hand.visual, 0), atol=1e-6)
    targets, seen = batch.targets, 0
    for i, mask in enumerate(targets.mrc_mask):
        np.testing.assert_array_equal(at_targets[i][mask], ours.visual[i, 0][targets.mrc_regions[i][mask] - first])
        seen += mask.sum()
    assert seen


@pytest.mark.parametrize("architecture", TWO_STREAMS)
def test_text_alone_trains_a_new_model(architecture, data_dir):
    """Its gradient is about as large as that of captions, and no region gets one from it."""
    config = recipe("pretrain", data_dir, architecture)
    task, batch = get_task("pretrain"), jax.tree.map(jnp.asarray, first_batch(config))
    model = task.build_model(config, nnx.Rngs(0))

    def gradients(loss):
        return nnx.jit(nnx.grad(lambda m: task.loss_sums(m, batch, None, config, (loss,))[0][loss]))(model)

    captions, texts = gradients("mlm_caption"), gradients("mlm_text")
    assert optax.tree.norm(texts) < 10 * optax.tree.norm(captions)
    assert not optax.tree.norm(texts["two_stream"]["appearance"])
    regions = model.region_states(batch, model.appearance(batch))
    of_update = nnx.jit(lambda m: m.encode(batch, regions).of_sequence(1).text)(model)
    nothing = dict.fromkeys(("boxes", "region_mask", "region_hidden", "region_features", "image_size", "box_geometry"))
    words = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
    alone = batch.replace(**nothing, **{name: getattr(batch, name)[:, 1:] for name in words})
    of_evaluation = nnx.jit(lambda m: m.encode(alone, None).text)(model)
    np.testing.assert_allclose(of_update, of_evaluation, atol=1e-6)


def test_the_losses_of_lxmert(data_dir):
    """Objects and features as in NumPy: weighted by confidence, over all rows of the regions of real examples."""
    fields = {"losses.objects": True, "losses.features": True, "losses.mrc": False, "losses.relationship": True}
    config = recipe("pretrain", data_dir, "lxmert", **fields, **{"losses.text_only": False, "data.mask_regions": 0.5})
    task, batch = get_task("pretrain"), first_batch(config)
    names = task.active_losses(config, 0)
    assert names == ("mlm_caption", "relationship", "objects", "features")
    model = task.build_model(config, nnx.Rngs(0))

    @nnx.jit
    def compute(model, batch):
        states = model.encode(batch, model.region_states(batch, model.appearance(batch)))
        sums, _ = task.loss_sums(model, batch, None, config, names)
        return sums, task.loss_counts(batch, config, names), model.visual_predictions(states)

    sums, counts, predictions = compute(model, jax.tree.map(jnp.asarray, batch))
    real, targets, examples = batch.region_mask[:, 1:], batch.targets, len(batch.token_ids)
    assert float(counts["objects"]) == float(counts["features"]) == examples * 6  # rows of padding count
    logits = np.asarray(predictions["objects"])
    assert logits.shape == (examples, 6, 80)
    log_sums = np.log(np.exp(logits).sum(-1))
    ids = targets.objects[:, 1:]
    assert (ids[real] >= 0).all() and (ids[~real] == -1).all() and (targets.objects[:, 0] == -1).all()
    losses = log_sums - np.take_along_axis(logits, np.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    expected = (np.where(real, losses, 0) * targets.object_scores[:, 1:]).sum() / 0.15
    np.testing.assert_allclose(sums["objects"], expected, rtol=1e-5)
    asked = np.zeros_like(real)
    for i, mask in enumerate(targets.mrc_mask):
        asked[i, targets.mrc_regions[i][mask] - 1] = True
    assert asked.any() and (asked <= real).all() and not (asked <= batch.region_hidden[:, 1:]).all()
    error = np.abs(np.asarray(predictions["features"]) - batch.region_features[:, 1:])
    smooth = np.where(error < 1, error**2 / 2, error - 0.5).mean(-1)
    np.testing.assert_allclose(sums["features"], smooth[asked].sum() / 0.15, rtol=1e-5)


def test_objects_and_attributes_of_a_record(data_dir):
    """The best class without the background, and the best attribute, with their scores."""
    fields = {"losses.objects": True, "losses.attributes": True, "model.num_attributes": 3}
    config = recipe("pretrain", data_dir, "lxmert", **fields)
    layout, tokenizer = CaptionLayout.of(config), tokenizer_of(config)
    scores = np.eye(81)[[0, 5]] * 0.6 + np.eye(81)[[7, 0]] * 0.4
    record = dict(
        caption=["a", "red", "ball"], boxes=np.array([[0.0, 0, 9, 9], [4, 4, 20, 30]]), class_scores=scores,
        features=np.ones((2, FEATURES)), image_size=(40, 32),
    )  # fmt: skip
    draws = draw_samples(np.random.default_rng(0), layout.num_draws, 2, tokenizer.ordinary_ids)
    with pytest.raises(ValueError, match="losses.attributes is True, but the records have no attribute_scores"):
        caption_example(record, draws, tokenizer, layout)
    record["attribute_scores"] = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    example = caption_example(record, draws, tokenizer, layout)
    assert example["objects"].tolist() == [-1, 6, 4, -1, -1, -1, -1]
    assert example["attributes"].tolist() == [-1, 1, 0, -1, -1, -1, -1]
    np.testing.assert_allclose(example["object_scores"][:3], [0, 0.4, 0.6])
    np.testing.assert_allclose(example["attribute_scores"][:3], [0, 0.7, 0.5])


def test_only_matching_pairs_count(data_dir):
    fields = {"losses.relationship": True, "losses.text_only": False, "data.mask_words": 0.5, "data.mask_regions": 0.5}
    config = recipe("pretrain", data_dir, "vilbert", **fields)
    batch, names = jax.tree.map(jnp.asarray, first_batch(config)), ("mlm_caption", "mrc", "relationship")
    counts = {}
    for config.losses.only_matched in (False, True):
        counts[config.losses.only_matched] = get_task("pretrain").loss_counts(batch, config, names)
    matched = batch.targets.relationship == 1
    assert 0 < matched.sum() < len(matched)
    assert float(counts[True]["mlm_caption"]) == batch.targets.mlm_mask[matched].sum() < counts[False]["mlm_caption"]
    assert float(counts[True]["mrc"]) == batch.targets.mrc_mask[matched].sum() < counts[False]["mrc"]
    assert float(counts[True]["relationship"]) == len(matched)


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("uniter", {"losses.objects": True}, "losses.objects is True, but uniter has no such head"),
        ("lxmert", {"losses.transport": 0.1, "losses.relationship": True}, "lxmert has two streams: set it to 0"),
        ("vilbert", {"losses.regression": True}, "set config.losses.mrc or config.losses.regression to False"),
        ("lxmert", {"losses.features": True, "data.hide_pixels": True}, "set config.data.hide_pixels=False"),
        ("lxmert", {"model.two_stream.layers": (9, 5)}, r"two_stream.layers is \(9, 5\); it must be 3 numbers"),
        ("vilbert", {"model.two_stream.layers": (2, 2, 4)}, "more connections than layers"),
        ("vilbert", {"model.two_stream.cross": (10, 3)}, "two_stream.cross: 3 heads do not divide a width of 10"),
        ("vilbert", {"model.two_stream.task_number": 4}, "task_number is 4; with task_tokens=0 it must be below 1"),
        ("lxmert", {"model.two_stream.visual": (24, 2, 32)}, "visual has a width of 24; lxmert shares cross-attention"),
        ("lxmert", {"data.max_regions": 0}, "config.data.max_regions is 0, but lxmert reads regions alone"),
        ("lxmert", {"model.switches.pool": "sum"}, "config.model.switches.pool is 'sum'; it must be one of text, mul"),
        ("uniter", {"model.switches.hidden": "blank"}, "config.model.switches.hidden is 'blank'; it must be one of"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(architecture, fields, message, data_dir):
    config = recipe("pretrain", data_dir, architecture, **fields)
    with pytest.raises(ValueError, match=message):
        get_task("pretrain").build_model(config, nnx.Rngs(0))
