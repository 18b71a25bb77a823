"""The recorded heads of VL-BERT's one-stream siblings for tasks without data here: logits, each loss, gradients.

These are pairs of images, choices, retrieval, expressions and phrases. Recordings are in
tests/golden/one_stream and, if that is set, in $VLBERT_GOLDEN/one_stream. Tolerances: forward 1e-4
absolute; gradients 1e-4 of the largest entry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import Case, close
from tests.helpers.golden_folders import by_turns, golden_folders
from tests.helpers.one_stream_case import (
    HEADS_OF_TASKS,
    architecture_of,
    bert_names,
    compare_gradients,
    encoder_of,
    joined,
    load_case,
    pack_case,
    positions_of_regions,
    region_head_of,
)
from vlbert_jax.batch import make_batch
from vlbert_jax.model.one_stream_heads import OneStreamModel
from vlbert_jax.tasks import one_stream_losses as losses
from vlbert_jax.tasks.two_stream_losses import label_loss
from vlbert_jax.weights.family_heads import one_stream_heads

FIXTURES = [
    path
    for folder in golden_folders("one_stream")
    for path in sorted(folder.glob("*.json"))
    if path.name.startswith(HEADS_OF_TASKS)
]


def labels_of(case):
    given = next(case.inputs[name] for name in ("targets", "labels", "label") if name in case.inputs)
    return jnp.asarray(given.astype(np.float32 if given.dtype.kind == "f" else np.int32))


def all_real(labels):
    return jnp.ones(labels.shape, bool)


def pair_of(case, packed):
    labels = labels_of(case)
    packed = joined(packed, len(packed.fields["token_ids"]) // len(labels))

    def compute(model, states, batch):
        logits = model.pair_logits(states, batch.element_mask)
        return logits, label_loss(logits, labels, all_real(labels))

    return packed, compute


def classes_of(name):
    """Return the check of a head with classes for each sequence."""

    def check(case, packed):
        labels = labels_of(case).reshape(-1, 1)

        def compute(model, states, batch):
            logits = getattr(model, f"{name}_logits")(states)
            scores = logits[..., 1:] if case.out.get("scores", logits).shape[-1] == 1 else logits  # the class "right"
            return scores[:, 0], label_loss(logits, labels, all_real(labels))

        return packed, compute

    return check


def choice_of(case, packed):
    labels = labels_of(case)

    def compute(model, states, batch):
        logits = model.choice_logits(states)[..., 0]
        return logits, label_loss(logits, labels, all_real(labels))

    return joined(packed, len(packed.fields["token_ids"]) // len(labels)), compute


def rank_of(case, packed):
    size = case.meta["scalars"]["in/sample_size"]

    def compute(model, states, batch):
        scores = model.matching_logits(states)[..., 0]
        return scores.reshape(-1, 1), losses.rank_loss(scores, all_real(scores))

    return joined(packed, size), compute


def expression_of(case, packed):
    labels = labels_of(case)
    positions, real = positions_of_regions(packed)

    def compute(model, states, batch):
        scores = model.grounding_logits(states, positions)
        return scores[:, 0], losses.region_choice_loss(scores, labels, real)

    return packed, compute


def phrases_of(case, packed):
    labels = labels_of(case)[:, None]
    name = "flickr_position" if "flickr_position" in case.inputs else "region_to_phrase_position"
    phrases = jnp.maximum(case.inputs[name], 0)[:, None].astype(jnp.int32)
    positions, real = positions_of_regions(packed)

    def compute(model, states, batch):
        scores = model.phrase_logits(states, phrases, positions)
        return scores[:, 0], losses.phrase_loss(scores, labels, real)

    return packed, compute


CHECKS = {
    "uniter_nlvr2_": pair_of,
    "uniter_retrieval_": rank_of,
    "uniter_refcoco_": expression_of,
    "uniter_vcr_": classes_of("choice"),
    "visualbert_nlvr2_": pair_of,
    "visualbert_vcr_": choice_of,
    "visualbert_flickr_": phrases_of,
    "visualbert_original_nlvr_": pair_of,
    "visualbert_original_multichoice_": choice_of,
    "visualbert_original_flickr_": phrases_of,
    "oscar_nlvr2_": pair_of,
    "oscar_retrieval_": classes_of("matching"),
}


def is_real(case, packed, expected):
    """Return which recorded scores are of real regions; the original writes constants for the others."""
    if case.path.name.startswith(("uniter_refcoco_", "visualbert_flickr_")):
        real = positions_of_regions(packed)[1]
        return np.broadcast_to(real if expected.ndim == 3 else real[:, 0], expected.shape)
    return np.ones(expected.shape, bool)


@pytest.mark.parametrize(("path", "execution"), by_turns(FIXTURES))
def test_logits_loss_and_gradients(path, execution):
    case = Case(path)
    options = dict(default_segment=0) if "original" in path.name else {}
    prepare = next(check for prefix, check in CHECKS.items() if path.name.startswith(prefix))
    packed = pack_case(case, **options)
    width = packed.feature_size
    packed, compute = prepare(case, packed)
    shapes = {name: array.shape for name, array in bert_names(case, case.sd).items()}
    heads = one_stream_heads(shapes, architecture_of(case))
    encoder = encoder_of(case, **execution)
    model, reasons = load_case(
        lambda: OneStreamModel(encoder, region_head_of(case, width), heads, nnx.Rngs(0)), case
    )
    unused = {name.split(".")[0] for name, reason in reasons.items() if reason == "head of another task"}
    assert unused <= {"cls", "itm_output"}, reasons  # of pre-training
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields))
    graphdef, trainable, rest = nnx.split(model, nnx.Param, ...)

    def loss(trainable):
        model = nnx.merge(graphdef, trainable, rest)
        logits, (value, count) = compute(model, model.states(batch), batch)
        return value / count, logits

    (total, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    close(total, case.out["loss"])
    expected = next((case.out[n] for n in ("scores", "rank_scores", "logits") if n in case.out), None)
    if expected is not None:
        real = is_real(case, packed, expected)
        close(np.asarray(logits)[real], expected[real])
    compare_gradients(case, gradients, 1e-4)


def test_every_head_has_a_recording():
    assert HEADS_OF_TASKS == tuple(CHECKS)
    for prefix in CHECKS:
        assert any(path.name.startswith(prefix) for path in FIXTURES), prefix
