"""The recipes of siblings for VCR, RefCOCO+ and retrieval have the published settings and valid shapes at full size."""

import jax
import pytest
from flax import nnx

from configs import refcoco, retrieval, vcr
from vlbert_jax.tasks import get_task

EPOCH = 212_923 // 64  # updates of 64 questions of VCR
# Recipe -> (architecture, examples of an update, updates, rate, head, loss).
WANTED = {
    vcr.q2a_visualbert: ("visualbert", 32, 8 * (212_923 // 32), 2e-5, "score", "softmax"),
    vcr.qa2r_visualbert: ("visualbert", 32, 12 * (212_923 // 32), 2e-5, "score", "softmax"),
    vcr.q2a_vilbert: ("vilbert", 64, 20 * EPOCH, 2e-5, "score", "softmax"),
    vcr.qa2r_vilbert: ("vilbert", 64, 20 * EPOCH, 2e-5, "score", "softmax"),
    vcr.q2a_uniter: ("uniter", 144, 8_000, 6e-5, "hidden", "classes"),
    vcr.qa2r_uniter: ("uniter", 144, 8_000, 6e-5, "hidden", "classes"),
    vcr.q2a_b2t2: ("b2t2", 8, 5 * (212_923 // 8), 2e-5, "classes", "classes"),
    vcr.qa2r_b2t2: ("b2t2", 8, 5 * (212_923 // 8), 2e-5, "classes", "classes"),
    refcoco.uniter_detected: ("uniter", 128, 10_000, 6e-5, "norm", "softmax"),
    refcoco.vilbert_detected: ("vilbert", 256, 9_390, 4e-5, "linear", "sigmoid"),
    retrieval.flickr30k_uniter: ("uniter", 1_280, 20_000, 5e-5, "score", "hinge"),
    retrieval.flickr30k_vilbert: ("vilbert", 64, 45_312, 4e-5, "score", "softmax"),
    retrieval.coco_oscar: ("oscar", 256, 20 * 2_214, 2e-5, "classes", "sigmoid"),
    retrieval.coco_oscar_large: ("oscar", 128, 30 * 4_428, 1e-5, "classes", "sigmoid"),
    retrieval.coco_vinvl: ("vinvl", 128, 30 * 4_428, 2e-5, "classes", "sigmoid"),
}
FIELDS = dict(
    choice=("choice_head", "choice"), region=("grounding_head", "grounding"), match=("matching_head", "match")
)
# Architecture -> optimizer, share of warm-up, decay.
OPTIMIZERS = dict.fromkeys(("visualbert", "vilbert", "b2t2"), ("bertadam", 10, 0.01)) | dict(uniter=("adamw", 10, 0.01))
OPTIMIZERS |= dict.fromkeys(("oscar", "vinvl"), ("adamw", 0, 0.05))


def test_every_recipe_is_checked():
    variants = {v for module in (vcr, refcoco, retrieval) for v in module.VARIANTS}
    assert {v for v in variants if v().model.architecture != "vlbert"} == set(WANTED)


@pytest.mark.parametrize("recipe", WANTED, ids=lambda recipe: recipe.__name__)
def test_settings_and_shapes(recipe):
    config = recipe()
    head, loss = FIELDS[config.task]
    found = (config.model.architecture, config.batch_size, config.total_steps, config.learning_rate)
    assert (*found, config.model[head], config.losses[loss]) == WANTED[recipe]
    name, percent, decay = OPTIMIZERS[config.model.architecture]
    assert config.optimizer.name == name and config.data.flip_probability == 0
    assert config.warmup_steps == config.total_steps * percent // 100 and config.optimizer.weight_decay == decay
    if config.task == "choice":
        assert config.subtask == recipe.__name__.split("_")[0] and not config.losses.object
    for devices in (1, 2, 4):
        assert config.batch_size % (config.grad_accumulation_steps * devices) == 0
    batch = get_task(config.task).batch_shapes(config)
    assert batch.token_ids.shape[0] == config.batch_size


LOSSES = (vcr.qa2r_uniter, vcr.qa2r_b2t2, refcoco.uniter_detected, refcoco.vilbert_detected,
          retrieval.flickr30k_uniter, retrieval.flickr30k_vilbert, retrieval.coco_vinvl)  # fmt: skip


@pytest.mark.parametrize("recipe", LOSSES, ids=lambda recipe: recipe.__name__)
def test_losses(recipe):
    """The losses of a full-size model have valid shapes; no values are computed."""
    config = recipe()
    task = get_task(config.task)
    names, batch = task.active_losses(config, 0), task.batch_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sums, _ = nnx.eval_shape(
        lambda batch, key: task.loss_sums(task.build_model(config, nnx.Rngs(0)), batch, key, config, names), batch, key
    )
    assert {name: value.shape for name, value in sums.items()} == dict.fromkeys(names, ())
