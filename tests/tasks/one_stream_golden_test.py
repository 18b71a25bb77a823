"""The recorded heads and losses of VL-BERT's one-stream siblings, through the shipped tasks: pre-training and VQA.

Recordings are in tests/golden/one_stream and, if that is set, in $VLBERT_GOLDEN/one_stream. Tolerances:
forward 1e-4 absolute; gradients 1e-4 of the largest entry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain as pretrain_recipes
from configs import vqa as vqa_recipes
from tests.helpers.golden_case import Case, close
from tests.helpers.golden_folders import by_turns, golden_folders
from tests.helpers.one_stream_case import (
    HEADS_OF_TASKS,
    architecture_of,
    compare_gradients,
    encoder_of,
    load_case,
    pack_case,
    sizes_of,
)
from vlbert_jax.batch import make_batch
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.answer.task import AnswerTargets
from vlbert_jax.tasks.pretrain.targets import PretrainTargets

GRADIENT = 1e-4
FIXTURES = [path for folder in golden_folders("one_stream") for path in sorted(folder.glob("*.json"))]
ELSEWHERE = HEADS_OF_TASKS + (  # of other tests
    "data_", "uniter_model_", "visualbert_model_", "oscar_model_", "b2t2_", "uniter_adamw_", "visualbert_bertadam_"
)  # fmt: skip
PRETRAINING = ("uniter_pretrain_", "visualbert_pretraining_", "visualbert_original_pretraining_", "oscar_pretraining_")
ANSWERS = ("uniter_vqa_", "uniter_ve_", "visualbert_vqa_", "oscar_vqa_")


def chosen(prefixes):
    return [path for path in FIXTURES if path.name.startswith(prefixes)]


def configured(recipe, case, feature_size, **execution):
    """Return a shipped config with the sizes of the case."""
    config, encoder = recipe(), encoder_of(case, **execution)
    config.compute_dtype = "float32"
    config.model.encoder = {name: getattr(encoder, name) for name in config.model.encoder}
    config.model.architecture, config.model.feature_size = architecture_of(case).name, feature_size
    return config


def loss_and_gradients(task, model, batch, config, names):
    """Return the weighted loss of an update, the single losses, and the gradients."""
    graphdef, trainable, rest = nnx.split(model, nnx.Param, ...)
    weights = task.loss_weights(config)

    def loss(trainable):
        sums, _ = task.loss_sums(nnx.merge(graphdef, trainable, rest), batch, None, config, names)
        counts = task.loss_counts(batch, config, names)
        losses = {name: sums[name] / counts[name] for name in names}
        return sum(weights[name] * value for name, value in losses.items()), losses

    (total, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    return total, losses, gradients


# --- Pre-training -------------------------------------------------------------------------------------------

UNITER_TASKS = {  # task of a recording -> options of config.losses
    "mlm": dict(),
    "mrc": dict(mrc=True, mrc_targets="object"),
    "mrckl": dict(mrc=True, mrc_targets="kl"),
    "mrfr": dict(regression=True),
    "itm": dict(relationship=True, transport=0.1),
}
LOSS_OF = dict(mlm="mlm_caption", mrc="mrc", mrckl="mrc", mrfr="regression")


def sparse(mask):
    """Return positions [b, k] of the True entries, and which are real."""
    counts = mask.sum(1)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : max(counts.max(), 1)]
    return order.astype(np.int32), np.arange(order.shape[1])[None] < counts[:, None]


def word_targets(labels) -> dict:
    positions, mask = sparse(labels >= 0)
    found = np.where(mask, np.take_along_axis(labels, positions, 1), 0).astype(np.int32)
    return dict(mlm_positions=positions[:, None], mlm_labels=found[:, None], mlm_mask=mask[:, None])


def region_targets(case, packed) -> dict:
    """Return the hidden regions: `img_mask_tgt` marks their elements."""
    positions, mask = sparse(case.inputs["img_mask_tgt"].astype(bool))
    rows = np.take_along_axis(packed.fields["region_ids"][:, 0], positions, 1)
    fields = dict(mrc_positions=positions, mrc_mask=mask, mrc_regions=np.where(mask, rows, 0).astype(np.int32))
    if "feat_targets" in case.inputs:
        # The recording has zeros there; here the model hides the features, which are the targets.
        packed.fields["region_features"] = packed.fields["region_features"].copy()
        packed.fields["region_features"][np.nonzero(mask)[0], rows[mask]] = case.inputs["feat_targets"]
        return fields
    given = case.inputs["label_targets"]
    targets = np.zeros((*mask.shape, given.shape[1]), np.float32)
    targets[mask] = given
    return fields | dict(mrc_targets=targets)


def belongs(case) -> int:
    """Return the recorded class of what belongs together; here it is 1."""
    return 0 if case.path.name.startswith("oscar_") else 1


def relationship_scores(case) -> str:
    names = ("seq_relationship_logits", "seq_relationship_score")
    return next(name for name in names if name in case.out)


def pretraining_case(case, execution):
    """Return config, batch and names of the losses."""
    packed = pack_case(case, **(dict(default_segment=0) if "original" in case.path.name else {}))
    config = configured(pretrain_recipes.base_prec_no_text, case, packed.feature_size, **execution)
    config.losses.update(dict(mlm=True, mrc=False))
    kind = case.meta.get("task")
    if kind is None:  # VisualBERT and Oscar: masked words and the relationship
        config.losses.relationship = True
        given = next(case.inputs[name] for name in ("labels", "masked_lm_labels") if name in case.inputs)
        names = ("sentence_image_labels", "is_random_next", "next_sentence_label")
        related = next(case.inputs[name] for name in names if name in case.inputs)
        packed.fields.update(word_targets(given[:, : case.inputs["input_ids"].shape[1]]))
        config.model.relationship_classes = classes = case.out[relationship_scores(case)].shape[1]
        packed.fields["relationship"] = ((related + (1 - belongs(case))) % classes).astype(np.int32)
        return config, packed, ("mlm_caption", "relationship")
    config.losses.update(UNITER_TASKS[kind])
    config.model.num_region_classes = case.meta["img_label_dim"]
    if kind == "itm":
        packed.fields["relationship"] = case.inputs["targets"].astype(np.int32)
        return config, packed, ("relationship", "transport")
    if kind == "mlm":
        packed.fields.update(word_targets(case.inputs["txt_labels"]))
    else:
        packed.fields.update(region_targets(case, packed))
    return config, packed, (LOSS_OF[kind],)


def with_all_heads(config, case):
    """Return the config of the whole model of the recording: every loss that has parameters."""
    full = config.copy_and_resolve_references()
    if case.meta.get("task"):
        full.losses.update(dict(mrc=True, regression=True, relationship=True))
    return full


@pytest.mark.parametrize(("path", "execution"), by_turns(chosen(PRETRAINING)))
def test_pretraining(path, execution):
    case, task = Case(path), get_task("pretrain")
    config, packed, names = pretraining_case(case, execution)
    model, reasons = load_case(lambda: task.build_model(with_all_heads(config, case), nnx.Rngs(0)), case)
    assert set(reasons.values()) <= {"duplicate"}, reasons
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields, PretrainTargets))
    total, losses, gradients = loss_and_gradients(task, model, batch, config, names)
    close(total, case.out["loss"])
    recorded = dict(mlm_caption="mlm_loss", relationship="itm_loss", transport="ot_loss")
    for name, value in losses.items():
        if recorded.get(name) in case.out:
            close(value, case.out[recorded[name]])
    compare_gradients(case, gradients, GRADIENT)
    compare_scores(case, model, batch, names)


def compare_scores(case, model, batch, names):
    """Compare the recorded scores, which are those of masked words, hidden regions or pairs."""
    states = nnx.jit(lambda m, b: m.states(b))(model, batch)
    targets, vocab_size = batch.targets, sizes_of(case)["vocab_size"]
    scores = {
        "mlm_caption": lambda: model.mlm_logits(states, targets.mlm_positions)[:, 0][targets.mlm_mask[:, 0]],
        "mrc": lambda: model.mrc_logits(states, targets.mrc_positions)[targets.mrc_mask],
        "regression": lambda: model.regressed_features(states, targets.mrc_positions)[targets.mrc_mask],
        "relationship": lambda: model.relationship_logits(states),
    }
    if "scores" in case.out:
        close(scores[names[0]]()[..., : case.out["scores"].shape[-1]], case.out["scores"])
        return
    recorded = np.roll(case.out[relationship_scores(case)], 1 - belongs(case), axis=-1)
    close(scores["relationship"](), recorded)
    words = next(case.out[name] for name in ("prediction_logits", "prediction_scores", "logits") if name in case.out)
    real = np.asarray(targets.mlm_mask[:, 0])
    at = np.take_along_axis(words, np.asarray(targets.mlm_positions[:, 0])[..., None], 1)[real]
    close(scores["mlm_caption"]()[:, :vocab_size], at)


# --- Answers ------------------------------------------------------------------------------------------------

HEADS = dict(uniter="pooler", visualbert="mask_linear", oscar="pooler_linear", vinvl="pooler_linear")


@pytest.mark.parametrize(("path", "execution"), by_turns(chosen(ANSWERS)))
def test_answers(path, execution):
    case, task = Case(path), get_task("answer")
    packed = pack_case(case)
    targets = case.inputs["targets" if "targets" in case.inputs else "labels"].astype(np.float32)
    config = configured(vqa_recipes.base, case, packed.feature_size, **execution)
    config.model.answer_head, config.model.num_answers = HEADS[architecture_of(case).name], targets.shape[1]
    config.losses.answer = "kl" if architecture_of(case).name == "visualbert" else "sigmoid"
    model, reasons = load_case(lambda: task.build_model(config, nnx.Rngs(0)), case)
    assert set(reasons.values()) <= {"vector of hidden regions"}, reasons
    lengths = (packed.fields["token_ids"] < sizes_of(case)["vocab_size"]) & packed.fields["element_mask"]
    positions = (lengths.sum((1, 2)) - 2).astype(np.int32)  # VisualBERT reads [MASK] before the last [SEP]
    packed.fields.update(answer_positions=positions, answer_targets=targets)
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields, AnswerTargets))
    total, _, gradients = loss_and_gradients(task, model, batch, config, ("answer",))
    close(total, case.out["loss"])
    compare_gradients(case, gradients, GRADIENT)
    logits = nnx.jit(lambda m, b: m.answer_logits(m.states(b), b.targets.answer_positions))(model, batch)
    close(logits, case.out["scores" if "scores" in case.out else "logits"])


def test_every_recording_has_a_check():
    known = PRETRAINING + ANSWERS + ELSEWHERE
    assert [path.name for path in FIXTURES if not path.name.startswith(known)] == []
    for prefix in PRETRAINING + ANSWERS:
        assert any(path.name.startswith(prefix) for path in FIXTURES), prefix
