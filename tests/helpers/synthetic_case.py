"""Provide tiny recipes of every task and synthetic batches for them, without a corpus."""

from __future__ import annotations

import jax
import ml_collections
import numpy as np
from flax import nnx

from configs import pretrain, refcoco, vcr, vqa
from tests.helpers.batch_case import fields_of
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import Batch, make_batch
from vlbert_jax.data.packing import pack
from vlbert_jax.geometry import box_geometry
from vlbert_jax.tasks import get_task

RECIPES = {
    "pretrain": (pretrain, "base_e2e"),
    "pretrain_precomputed": (pretrain, "base_prec"),
    "vqa": (vqa, "base"),
    "refcoco": (refcoco, "base_gt"),
    "vcr": (vcr, "q2a_base"),
}


def tiny_config(recipe: str, **fields) -> ml_collections.ConfigDict:
    """Return the shipped recipe with tiny widths, no dropout and nonzero visual gains."""
    module, variant = RECIPES[recipe]
    config = getattr(module, variant)()
    names = ("sequence_length", "max_regions", "text_length")
    shrink(config, module.demo(), "", num_layers=2, names=[name for name in names if name in config.data])
    config.batch_size = 8
    config.model.feature_size = 12
    config.model.encoder.update(dict(dropout_rate=0.0, text_visual_gain_init=0.5, region_visual_gain_init=0.5))
    config.model.region_head.dropout_rate = 0.0
    for name, size in dict(num_answers=20, num_region_classes=7, num_object_classes=6).items():
        if name in config.model:
            config.model[name] = size
    if recipe == "pretrain":  # the recipe with all losses
        config.model.encoder.pooler = True
        config.losses.update(dict(relationship=True, region=0.5))
    config.update_from_flattened_dict(fields)
    return config


def synthetic_batch(config, seed: int = 0) -> Batch:
    """Return a batch with the shapes of the recipe, random values and padding.

    Only padding is in the last example, as in the last batch of an evaluation.
    """
    rng = np.random.default_rng(seed)
    abstract = get_task(config.task).batch_shapes(config)
    shapes = fields_of(abstract)
    b, n, s = abstract.token_ids.shape
    r = abstract.boxes.shape[1]
    fields = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    has_text = "mlm_mask" in fields and n > 1  # the last sequence has no image
    num_regions = rng.integers(2, r, b)
    num_words = rng.integers(4, s - r, (b, n))
    num_regions[-1] = num_words[-1] = 0
    fields["region_mask"] = np.arange(r) < num_regions[:, None]
    region_mask = fields["region_mask"]
    if "region_hidden" in fields:
        fields["region_hidden"] = region_mask & (rng.random((b, r)) < 0.3) & (np.arange(r) > 0)
    vocab_size = config.model.encoder.vocab_size
    for i in range(b - 1):
        for j in range(n):
            words, alone = num_words[i, j], has_text and j == n - 1
            carried = np.full(words, -1 if alone else 0)
            ids = rng.integers(5, vocab_size, words)
            count = 0 if alone else int(num_regions[i])
            sequence = pack(ids, ids % 2, count, fields["region_hidden"][i], carried, s - 1, vocab_size)
            for name, values in sequence.items():
                fields[name][i, j] = values
    fields["region_ids"][-1] = -1
    if "pixels" in fields:
        height, width = fields["pixels"].shape[2:4]
        fields["pixels"][...] = rng.integers(0, 256, fields["pixels"].shape)
    else:
        height, width = 32, 48
        fields["region_features"][...] = rng.normal(size=fields["region_features"].shape) * region_mask[..., None]
    fields["image_size"][...] = [width - 4, height - 2]
    corner = rng.uniform(0, 0.5, (b, r, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (b, r, 2))], -1)
    fields["boxes"] = (boxes * np.tile([width - 5, height - 3], 2) * region_mask[..., None]).astype(np.float32)
    if "box_geometry" in fields:
        fields["box_geometry"] = box_geometry(fields["boxes"], fields["image_size"][:, 0])
    _add_targets(fields, config, rng, num_words, num_regions)
    fields = {name: value.astype(shapes[name].dtype) for name, value in fields.items()}
    return make_batch(fields, type(abstract.targets))


def _add_targets(fields: dict, config, rng, num_words, num_regions) -> None:
    """Fill the fields of the targets in place."""
    b, n, s = fields["token_ids"].shape
    region_mask = fields["region_mask"]
    real = np.arange(b) < b - 1
    if "mlm_mask" in fields:
        places = np.arange(fields["mlm_mask"].shape[2])
        fields["mlm_mask"] = (places < num_words[..., None] // 2) & real[:, None, None]
        fields["mlm_positions"] = np.where(fields["mlm_mask"], 2 * places, 0)
        labels = rng.integers(5, config.model.encoder.vocab_size, fields["mlm_mask"].shape)
        fields["mlm_labels"] = np.where(fields["mlm_mask"], labels, 0)
        places = np.arange(fields["mrc_mask"].shape[1])
        fields["mrc_mask"] = places < num_regions[:, None] - 1
        fields["mrc_positions"] = np.where(fields["mrc_mask"], num_words[:, :1] + places + 1, 0)
        targets = rng.dirichlet(np.ones(config.model.num_region_classes), fields["mrc_mask"].shape)
        fields["mrc_targets"] = targets * fields["mrc_mask"][..., None]
    if "region_classes" in fields:
        classes = rng.integers(0, 6, region_mask.shape)
        fields["region_classes"] = np.where(region_mask & (np.arange(region_mask.shape[1]) > 0), classes, -1)
    if "region_positions" in fields:
        positions = num_words[..., None] + np.arange(region_mask.shape[1])
        fields["region_positions"] = np.where(region_mask[:, None], positions, 0)
    if "region_shapes" in fields:
        fields["region_shapes"] = rng.random(fields["region_shapes"].shape) * region_mask[..., None, None]
    for name in ("region_targets", "region_hits"):
        if name in fields:
            fields[name] = region_mask & (rng.random(region_mask.shape) < 0.5)
    if "answer_targets" in fields:
        fields["answer_positions"] = np.where(real, 2, 0)
        fields["answer_targets"] = np.where(real[:, None], rng.random(fields["answer_targets"].shape), -1)
    if "choice" in fields:
        fields["choice"] = np.where(real, rng.integers(0, n, b), -1)
    if "relationship" in fields:
        fields["relationship"] = rng.integers(0, 2, b) * real
    if "index" in fields:
        fields["index"] = np.where(real, np.arange(b), -1)


def build(config) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Return the task's model as (graphdef, trained parameters, constants)."""
    task = get_task(config.task)
    model = nnx.jit(lambda: task.build_model(config, nnx.Rngs(0)))()
    return nnx.split(model, nnx.All(nnx.Param, lambda path, _: not task.is_frozen(tuple(map(str, path)), config)), ...)


def gradient_function(config):
    """Return a compiled function that computes the gradients of the weighted loss.

    The function is (parameters, constants, batch) -> (gradients, values). `values` are the sums,
    the counts and the metrics. The dropout key is constant.
    """
    task = get_task(config.task)
    graphdef, *_ = build(config)
    names, weights = task.active_losses(config, 0), task.loss_weights(config)
    key = jax.random.key(0, impl="threefry2x32")

    @jax.jit
    def run(trained, constants, batch):
        def loss(trained):
            sums, scores = task.loss_sums(nnx.merge(graphdef, trained, constants), batch, key, config, names)
            counts = task.loss_counts(batch, config, names)
            total = sum(weights[name] * sums[name] / counts[name] for name in names)
            return total, (sums, counts, scores)

        return jax.grad(loss, has_aux=True)(trained)

    return run
