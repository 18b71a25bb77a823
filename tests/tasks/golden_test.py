"""Logits, losses and gradients of the downstream tasks equal those of the official modules.

The shipped recipes build the models. Fixtures (vii_*) are found as in tests/model/golden_test.py.
The fixtures in this repository contain only the norms of gradients. The tolerance of forward values
is 1e-4 absolute. The tolerance of gradients is 1e-4 of the largest entry, or 5e-3 through a ResNet
because ReLU has kinks.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import refcoco as refcoco_recipes
from configs import vcr as vcr_recipes
from configs import vqa as vqa_recipes
from tests.helpers.golden_case import Case, close, compare_gradients, load
from tests.helpers.golden_folders import golden_folders
from tests.helpers.golden_task_case import adjust, fields_of
from vlbert_jax.batch import Batch, make_batch
from vlbert_jax.tasks.answer import task as answer_task
from vlbert_jax.tasks.choice import task as choice_task
from vlbert_jax.tasks.region import task as region_task
from vlbert_jax.weights import vlbert_names

REGION = region_task.RegionTask()

CHOICE = choice_task.ChoiceTask()

ANSWER = answer_task.AnswerTask()

FIXTURES = [path for folder in golden_folders("model") for path in sorted(folder.glob("vii_*.json"))]


def vqa_case(case):
    """Return (task, config, targets, check of the logits) of a fixture."""
    config = vqa_recipes.base()
    config.model.num_answers = case.inputs["label"].shape[1]
    targets = dict(answer_positions=case.out["ans_pos"].astype(np.int32), answer_targets=case.inputs["label"])

    def check(model, states, batch):
        close(model.answer_logits(states, batch.targets.answer_positions), case.out["label_logits"])

    return ANSWER, config, targets, check


def refcoco_case(case):
    config = refcoco_recipes.base_gt()
    real, labels = case.inputs["boxes"][..., 0] > -1.5, case.inputs["label"] > 0.5
    positions = np.where(real, fields_of(case)["region_positions"][:, 0], 0)[:, None]
    targets = dict(region_targets=labels & real, region_hits=labels & real, region_positions=positions)

    def check(model, states, batch):
        logits = np.asarray(model.region_logits(states, batch.targets.region_positions[:, 0]))
        close(logits[real], case.out["label_logits"][real])

    return REGION, config, targets, check


def vcr_case(case):
    config, boxes = vcr_recipes.q2a_base(), case.inputs["boxes"]
    config.losses.choice = "sigmoid" if case.network["CLASSIFIER_SIGMOID"] else "softmax"
    config.losses.object = case.network["CNN_LOSS_WEIGHT"]
    config.model.num_object_classes = len(case.sd["cnn_loss_reg.2.bias"])
    classes = np.where(boxes[..., 3] > -0.5, boxes[..., 5], -1).astype(np.int32)
    targets = dict(region_classes=classes, choice=case.inputs["answer_label"].astype(np.int32))

    def check(model, states, batch):
        close(model.choice_logits(states)[..., 0], case.out["label_logits"])

    return CHOICE, config, targets, check


CASES = {"vqa": vqa_case, "vcr": vcr_case, "refcoco": refcoco_case}
OFFICIAL_LOSSES = {
    "answer": "ans_loss", "choice": "ans_loss", "object": "cnn_regularization_loss", "region": "cls_loss",
}  # fmt: skip


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_module(path):
    case = Case(path)
    task, config, targets, check = CASES[case.meta["task"]](case)
    adjust(config, case)
    tensors = {vlbert_names.plain_name(name): array for name, array in case.sd.items()}
    vocab_size = config.model.encoder.vocab_size
    model, found = load(lambda: task.build_model(config, nnx.Rngs(0)), tensors, vocab_size)
    assert set(found.missing) <= set(vlbert_names.OF_PRETRAINING)
    names = {*Batch.names(), *task.targets.names()}
    fields = fields_of(case) | {name: jnp.asarray(array) for name, array in targets.items()}
    batch = make_batch({name: array for name, array in fields.items() if name in names}, task.targets)
    active = task.active_losses(config, 0)
    weights = task.loss_weights(config)
    graphdef, trainable, rest = nnx.split(
        model, nnx.All(nnx.Param, lambda path, _: not task.is_frozen(path, config)), ...
    )

    def loss(trainable):
        sums, _ = task.loss_sums(nnx.merge(graphdef, trainable, rest), batch, None, config, active)
        counts = task.loss_counts(batch, config, active)
        losses = {name: sums[name] / counts[name] for name in active}
        return sum(weights[name] * value for name, value in losses.items()), losses

    (total, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    close(total, case.out["loss"])
    for name, value in losses.items():
        close(value, case.out[OFFICIAL_LOSSES[name]])
    states = nnx.jit(lambda m, batch: m.encode(batch, m.region_states(batch, m.appearance(batch))))(model, batch)
    check(model, states, batch)
    case.grad = {vlbert_names.plain_name(name): array for name, array in case.grad.items()}
    case.meta["grad_norms"] = {vlbert_names.plain_name(name): norm for name, norm in case.meta["grad_norms"].items()}
    compare_gradients(case, gradients, vocab_size, tolerance=5e-3 if "image" in case.inputs else 1e-4)


def test_fixtures_are_found():
    assert {path.name.split("_")[1] for path in FIXTURES} >= set(CASES)
