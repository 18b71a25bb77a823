"""The RefCOCO+ task has the expected losses, scores and predictions, and trains shrunk recipes."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import refcoco as recipes
from data_prep.build import build_scene_tasks, run_builder
from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
from data_prep.refcoco_files import ReferDownload
from tests.helpers.batch_case import fields_of
from tests.helpers.report_case import write_report
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import Batch, empty_example, make_batch
from vlbert_jax.data.records import open_split
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.geometry import box_iou
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.region import model as region_model
from vlbert_jax.tasks.region import task as region_task
from vlbert_jax.tasks.region.examples import (
    KINDS,
    ExpressionLayout,
    hits,
)
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train

REGION = region_task.RegionTask()

NUM_VAL = 12  # number of scenes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    source = build_scene_tasks(folder, num_train=30, num_val=NUM_VAL, num_test=6)["source"]
    bare = ("bare", folder, ReferDownload(source / "coco"))  # without detections
    for builder in (RefCOCOImages(*bare), RefCOCOExpressions(*bare)):
        run_builder(builder)
    return folder


def shrunk(variant: str, data_dir, **fields):
    """Return a shipped recipe with small sizes for the synthetic corpus; other fields are kept."""
    config, demo = recipes.get_config(variant), recipes.demo()
    names = ("embedded", "texts", "images", "vocab", "max_regions", "sequence_length")
    shrink(config, demo, data_dir, num_layers=1, names=names)
    config.batch_size, config.init.scratch = 16, True
    config.update_from_flattened_dict(fields)
    return config


def mesh_of(config, devices=1):
    return sharding.make_mesh(config.mesh, jax.devices()[:devices])


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


def build(config):
    return REGION.build_model(config, nnx.Rngs(0))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data.eval_boxes": "proposal"}, "config.data.eval_boxes is 'proposal', not one of gt, detected, both"),
        ({"data.sequence_length": 15}, "sequence_length 15 has no room for 12 regions"),
        ({"data.features": "precomputed"}, "precomputed, but config.data.train_boxes is .both., whose regions"),
        ({"data.images": "refcoco_images/bare"}, "refcoco_images/bare in .* has no detections: .* --proposals"),
        ({"data.eval_split": "testC"}, "refcoco/scenes has no split 'testC_landscape'; there are: "),
        ({"data.texts": "refcoco/other"}, "no records in .*refcoco/other; build them"),
    ],
)
def test_wrong_fields_are_reported(data_dir, fields, message):
    config = shrunk("demo", data_dir, **fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        next(REGION.eval_batches(config, 0, 1)["expressions"])


# --- Losses and scores ----------------------------------------------------------------------------


def known_batch():
    """Return two expressions and a padding example; the last row of the second is padding."""
    none = jnp.zeros((3, 1, 1), jnp.int32)
    flags = functools.partial(jnp.asarray, dtype=bool)
    return Batch(
        *[none] * 4, none == 0, region_mask=flags([[1, 1, 1], [1, 1, 0], [0, 0, 0]]), targets=region_task.RegionTargets(
            region_targets=flags([[0, 1, 0], [0, 1, 0], [0, 0, 0]]),
            region_hits=flags([[0, 1, 1], [0, 1, 0], [0, 0, 0]]),
        ),
    )  # fmt: skip


def test_loss_and_accuracies_on_known_logits(data_dir):
    config, batch = shrunk("demo", data_dir), known_batch()
    logits = jnp.asarray([[0.5, -1.0, 2.0], [3.0, 1.0, -np.inf], [-np.inf] * 3])
    # The loss is -log sigmoid(z) of targets and -log sigmoid(-z) of the other regions, five in all.
    each = [np.log1p(np.exp(z)) for z in (0.5, 1.0, 2.0, 3.0, -1.0)]
    losses = np.where(batch.region_mask, region_model.region_losses(logits, batch), 0)
    np.testing.assert_allclose(losses.sum(), sum(each), rtol=1e-6)
    assert REGION.loss_counts(batch, config, ("region",))["region"] == 5
    assert REGION.loss_weights(config) == {"region": 1.0} and REGION.active_losses(config, 0) == ("region",)
    metrics = region_model.accuracies(logits, batch)
    assert {name: tuple(map(float, value)) for name, value in metrics.items()} == dict(
        grounding_accuracy=(1, 2),  # row 2 of the first is a hit, row 0 of the second is not
        region_accuracy=(1, 5),  # only row 1 of the second is right
        positive_region_accuracy=(1, 2),
        positive_region_fraction=(2, 5),
    )


def test_padding_is_never_chosen_and_has_no_gradient(data_dir):
    config = shrunk("demo", data_dir)
    batch, model = next(REGION.train_batches(config, 0, 0, 1)), build(config)
    empty = make_batch(empty_example(fields_of(batch), region_task.RegionTargets), region_task.RegionTargets)

    @nnx.jit
    def gradient_and_logits(model, batch):
        def loss(model):
            return REGION.loss_sums(model, batch, None, config, ("region",))[0]["region"]

        return nnx.grad(loss)(model), region_model.region_logits(model, batch, model.appearance(batch))

    gradient, logits = gradient_and_logits(model, on_device(batch))
    assert (np.isinf(logits) == ~batch.region_mask).all() and not batch.region_mask.all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    gradient, _ = gradient_and_logits(model, on_device(empty))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))  # np.any is also true for NaN
    assert REGION.loss_counts(on_device(empty), config, ("region",))["region"] == 1


def test_baselines_ignore_their_removed_inputs(data_dir):
    """The blind baseline ignores pixels, the wordless one ignores words; both depend on boxes."""
    config = shrunk("demo", data_dir, **{"model.encoder.text_visual_gain_init": 1.0})
    batch, model = on_device(next(REGION.train_batches(config, 0, 0, 1))), build(config)
    tokenizer = tokenizer_of(config)
    is_word = np.isin(batch.token_ids, tokenizer.ordinary_ids)
    others = dict(
        pixels=batch.replace(pixels=255 - batch.pixels),
        words=batch.replace(token_ids=jnp.where(is_word, tokenizer.ordinary_ids[0], batch.token_ids)),
        places=batch.replace(boxes=batch.boxes / 2, box_geometry=batch.box_geometry[:, ::-1]),
    )

    @nnx.jit
    def logits(model, batch):
        trained_blind = region_model.region_logits(model, batch, region_model.appearance_of(model, batch, True))
        return region_model.baseline_logits(model, batch, config) | dict(trained_blind=trained_blind)

    own = logits(model, batch)
    np.testing.assert_array_equal(own.pop("trained_blind"), own["_blind"])  # as with config.blind
    for what, other in others.items():
        found = logits(model, other)
        changed = {name for name in own if not np.allclose(own[name], found[name], rtol=0, atol=1e-6)}
        assert changed == {"", "_blind", "_wordless"} - {dict(pixels="_blind", words="_wordless").get(what)}, what


# --- The shipped recipes --------------------------------------------------------------------------


def test_recipes():
    """Recipes equal the official YAML files; a rate there is per example of a batch of 32."""
    for variant in ("base_detected", "base_gt", "large_detected", "large_gt"):
        config = recipes.get_config(variant)
        assert config.learning_rate == pytest.approx(32 * 8e-7) and config.batch_size == 32
        assert (config.warmup_steps, config.optimizer.schedule, config.optimizer.clip_norm) == (3750, "triangle", 1.0)
        # Batches of the official loaders have 16 examples, and an update takes two of them.
        assert config.total_steps == 20 * -(-120_191 // 16) // 2
        kinds = ("gt", "gt") if variant.endswith("gt") else ("both", "detected")
        assert (config.data.train_boxes, config.data.eval_boxes) == kinds
        assert (config.model.encoder.num_layers == 24) == variant.startswith("large") and not config.init.scratch
        assert ExpressionLayout.of(config).sequence_length == 160
    with pytest.raises(ValueError, match="there are: demo, base_detected, base_gt, large_detected, large_gt"):
        recipes.get_config("huge")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """Return config, workdir and last state of the shrunk demo: three updates, two checkpoints."""
    fields = dict(total_steps=3, warmup_steps=0, eval_every_steps=0, checkpoint_every_steps=2, log_every_steps=1)
    square = {"data.one_orientation": False}  # one shape, so one program
    config, workdir = shrunk("demo", data_dir, **fields, **square), tmp_path_factory.mktemp("run")
    return config, workdir, train(config, REGION, workdir, mesh_of(config))[1]


def test_the_shipped_recipe_trains(run):
    _, workdir, state = run
    first, *_, validation = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    assert first["region_loss"] == pytest.approx(np.log(2), abs=0.5)  # the loss of a random guess
    assert validation["grounding_accuracy_possible"] >= validation["grounding_accuracy"]
    assert int(state.step) == 3 and bool(state.finite)


def test_a_resumed_run_equals_an_uninterrupted_run(run, tmp_path):
    config, workdir, whole = run
    shutil.copytree(workdir / "checkpoints/2", tmp_path / "checkpoints/2")
    _, resumed = train(config, REGION, tmp_path, mesh_of(config))
    for ours, theirs in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- Evaluation and predictions -------------------------------------------------------------------


def expressions_of(data_dir, split):
    parts = [open_split(data_dir, "refcoco/scenes", f"{split}_{o}", True) for o in ("landscape", "portrait")]
    return sorted((part[i] for part in parts for i in range(len(part))), key=lambda record: record["index"])


@pytest.mark.parametrize("hosts", [1, 2])
def test_every_expression_is_evaluated_once(hosts, data_dir):
    config = shrunk("demo", data_dir)
    parts = [list(REGION.eval_batches(config, host, hosts)["expressions"]) for host in range(hosts)]
    assert len({len(part) for part in parts}) == 1
    numbers = np.concatenate([batch.index for part in parts for batch in part])
    assert sorted(numbers[numbers >= 0]) == list(range(len(expressions_of(data_dir, "val"))))
    for batch in (batch for part in parts for batch in part):
        real = batch.index >= 0
        assert not batch.region_mask[~real].any() and not batch.targets.region_hits[~real].any()
        assert batch.region_mask[real, 0].all()


def overlaps_of(path, data_dir):
    """Check the form of a prediction file; return the IoU of each box with its target."""
    rows, records = json.loads(path.read_text()), expressions_of(data_dir, "val")
    ids = [(row["ref_id"], row["sent_id"]) for row in rows]
    assert ids == [(record["ref_id"], record["sent_id"]) for record in records]  # official order
    boxes, meant = (np.array(x, np.float64) for x in ([row["box"] for row in rows], [r["box"] for r in records]))
    return np.array([box_iou(box[None], other)[0] for box, other in zip(boxes, meant, strict=True)])


def test_predictions(run, data_dir):
    config, workdir, _ = run
    config = config.copy_and_resolve_references()
    config.data.eval_boxes = "both"
    scores = evaluate_run(config, REGION, workdir, mesh_of(config))
    shared = overlaps_of(workdir / "predictions/val.json", data_dir)
    assert scores["grounding_accuracy"] == pytest.approx(np.mean(shared >= 0.5))
    assert 0 <= scores["grounding_identity_accuracy"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_given_choices(kind, data_dir, tmp_path):
    """The choices are the last hit of each expression, or else the last region."""
    config = shrunk("demo", data_dir, **{"data.eval_boxes": kind})
    split = Split(config, "val")
    regions, possible, exact = [], [], []
    for record in map(split.__getitem__, range(len(split))):
        before = [] if kind == "gt" else [-1] * len(record["proposals"])
        ids = [-1, *before, *([] if kind == "detected" else record["ann_ids"])]
        found = np.flatnonzero(hits(record, kind, tuple(config.data.image_scale)))
        regions.append(found[-1] if len(found) else len(ids) - 1)
        possible.append(len(found) > 0)
        exact.append(ids[regions[-1]] == record["ann_id"])
    rows = dict(index=np.arange(len(split)), region=np.array(regions)[:, None])
    scores = REGION.conclude(tmp_path, {"": rows}, config)
    assert np.sum(overlaps_of(tmp_path / "val.json", data_dir) >= 0.5) == np.sum(possible) > 0.7 * len(split)
    assert scores == ({} if kind == "detected" else dict(grounding_identity_accuracy=np.mean(exact)))
    assert kind == "detected" or np.mean(exact) > 0.8  # synthetic objects seldom overlap


def test_the_report_shows_the_chosen_regions(run, tmp_path):
    config, workdir, _ = run
    history = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    write_report(REGION, tmp_path, build(config), config, history)
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/") == 12 and "region 1" in page and "meant: " in page and 'src="http' not in page
    assert page.count('<b class="right">✓') + page.count('<b class="wrong">✗') == 12


def test_chance_and_the_highest_possible_accuracy(data_dir):
    config = shrunk("demo", data_dir, **{"data.eval_boxes": "gt", "data.one_orientation": False})
    model, sums = build(config), {}
    score = nnx.jit(lambda model, batch: REGION.score(model, batch, config))
    for batch in REGION.eval_batches(config, 0, 1)["expressions"]:
        for name, (total, count) in score(model, on_device(batch)).items():
            sums[name] = sums.get(name, 0) + np.array([total, count], np.float64)
    images = open_split(data_dir, "refcoco_images/scenes", "images")
    records = expressions_of(data_dir, "val")
    chance = []
    for record in records:
        image = images[int(record["image_number"])]
        whole = np.array([[0, 0, image["image_size"][0] - 1, image["image_size"][1] - 1]])
        rows = np.concatenate([whole, image["boxes"]]).astype(np.float64)
        chance.append(np.mean(box_iou(rows, record["box"]) >= 0.5))
    np.testing.assert_allclose(sums["grounding_accuracy_chance"], [sum(chance), len(records)], rtol=1e-5)
    np.testing.assert_array_equal(sums["grounding_accuracy_possible"], len(records))  # one candidate is the annotation
    baselines = [f"grounding_accuracy{kind}" for kind in ("", "_blind", "_wordless")]
    assert all(sums[name][1] == len(records) for name in (*baselines, "text_cut"))


def test_shapes_are_known_without_data(data_dir):
    config = shrunk("base_gt", data_dir, **{"data.one_orientation": False})
    ours, real = fields_of(REGION.batch_shapes(config)), fields_of(next(REGION.train_batches(config, 0, 0, 1)))
    assert {k: (x.shape, x.dtype) for k, x in real.items() if x is not None} == {
        k: (x.shape, x.dtype) for k, x in ours.items() if x is not None
    }


def test_the_task_is_registered():
    assert isinstance(get_task("region"), region_task.RegionTask)
