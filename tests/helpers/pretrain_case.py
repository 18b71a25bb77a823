"""Provide the shipped recipes of pre-training with tiny sizes, their models, and the gradients of their losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import pretrain as recipes
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.data.records import open_split
from vlbert_jax.model.visual_linguistic import region_head_is_frozen
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.tasks.pretrain.batches import train_batches
from vlbert_jax.tasks.pretrain.losses import loss_counts, loss_sums

PRETRAIN = pretrain.PretrainTask()
FEATURES = 12  # size of a precomputed feature


def shrunk(variant: str, data_dir, **fields):
    """Return the shipped recipe on the synthetic corpus; only its sizes are changed."""
    config, demo = recipes.get_config(variant), recipes.demo()
    names = ("captions", "text", "vocab", "class_names", "visual_words", "group_words")
    shrink(config, demo, data_dir, num_layers=2, names=names)
    config.model.feature_size, config.model.num_region_classes = FEATURES, 81
    config.data.update(dict(max_regions=6, sequence_length=24, text_min_words=22, max_mlm_targets=12))
    config.data.max_mrc_targets, config.data.second_caption = 4, False  # the corpus has one caption for an image
    config.batch_size, config.init.scratch = 16, True
    config.update_from_flattened_dict(fields)
    return config


def records_of_train(data_dir, captions):
    """Return all records of the split train of a corpus of captions."""
    splits = [open_split(data_dir, captions, f"train_{side}", optional=True) for side in ("landscape", "portrait")]
    return [split[number] for split in splits for number in range(len(split))]


def first_batch(config):
    return jax.tree.map(jnp.asarray, next(train_batches(config, 0, 0, 1)))


def build(config):
    return PRETRAIN.build_model(config, nnx.Rngs(0))


def losses_and_gradients(config, batch, model, names=None, key=None):
    """Return each loss, and the names of the trained parameters with a nonzero gradient of it."""
    names = names or PRETRAIN.active_losses(config, 0)
    graphdef, trained, rest = nnx.split(
        model, nnx.All(nnx.Param, lambda path, _: not region_head_is_frozen(path, config)), ...
    )
    counts = loss_counts(batch, config, names)

    @jax.jit
    @functools.partial(jax.jacrev, has_aux=True)
    def run(trained):
        sums, _ = loss_sums(nnx.merge(graphdef, trained, rest), batch, key, config, names)
        losses = {name: sums[name] / counts[name] for name in names}
        return losses, losses

    gradients, losses = run(trained)
    reached = {
        name: {"/".join(map(str, path)) for path, v in nnx.to_flat_state(gradient) if np.asarray(v[...]).any()}
        for name, gradient in gradients.items()
    }
    return {name: float(value) for name, value in losses.items()}, reached
