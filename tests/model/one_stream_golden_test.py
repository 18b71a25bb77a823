"""The recorded values of VL-BERT's one-stream siblings: embeddings, states of every layer, pooler, gradients.

Recordings of UNITER, VisualBERT, Oscar, VinVL and B2T2 are in tests/golden/one_stream and, if that is
set, in $VLBERT_GOLDEN/one_stream. Tolerances: forward 1e-4 absolute; gradients 1e-4 of the largest entry.
Each is ten times what float32 leaves against float64, or more.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import FORWARD, Case, close
from tests.helpers.golden_folders import by_turns, golden_folders
from tests.helpers.one_stream_case import (
    architecture_of,
    compare_gradients,
    encoder_of,
    load_case,
    pack_case,
    region_head_of,
)
from vlbert_jax.batch import NO_IMAGE, make_batch
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.tasks.losses import cross_entropy

GRADIENT = 1e-4
PREFIXES = ("uniter_model_", "visualbert_model_", "oscar_model_", "b2t2_")
FIXTURES = [
    path
    for folder in golden_folders("one_stream")
    for path in sorted(folder.glob("*.json"))
    if path.name.startswith(PREFIXES)
]


def identify(path) -> str:
    return path.stem


def load(case, packed, execution):
    def build():
        return VisualLinguisticModel(
            encoder_of(case, **execution), region_head_of(case, packed.feature_size), nnx.Rngs(0)
        )

    return load_case(build, case)[0]


def run(model, batch):
    """Return embeddings, the states of every layer and the pooled state."""
    embedded = model.embed(batch, model.region_states(batch, model.appearance(batch)))[:, 0]
    last, layers, _ = model.vlbert.encoder(embedded, batch.element_mask[:, 0], collect=True)
    return embedded, layers, model.vlbert.pool(last)


def compare_elements(ours, original, rows):
    for i, (theirs, here) in enumerate(rows):
        close(np.asarray(ours)[i, here], original[i, theirs])


@pytest.mark.parametrize(("path", "execution"), by_turns(FIXTURES))
def test_states_and_gradients(path, execution):
    case = Case(path)
    packed = pack_case(case)
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields))
    model = load(case, packed, execution)
    embedded, layers, pooled = nnx.jit(run)(model, batch)
    compare_elements(embedded, case.out["embeddings"], packed.rows)
    for number, states in enumerate(layers):
        compare_elements(states, case.out[f"layers/{number}"], packed.rows)
    assert f"layers/{len(layers)}" not in case.out
    close(pooled, case.out["pooled"])

    graphdef, trainable, rest = nnx.split(model, nnx.Param, ...)
    cotangent = None
    if "cotangent" in case.inputs:
        cotangent = np.zeros(embedded.shape, np.float32)
        for i, (theirs, here) in enumerate(packed.rows):
            cotangent[i, here] = case.inputs["cotangent"][i, theirs]
    head = {name: jnp.asarray(case.sd[f"bert/output_{name}"]) for name in ("weights", "bias") if cotangent is None}

    def loss(trainable, head):
        _, layers, pooled = run(nnx.merge(graphdef, trainable, rest), batch)
        if cotangent is not None:
            return (layers[-1] * cotangent).sum() + (pooled * case.inputs["cotangent"][:, 0]).sum()
        logits = pooled @ head["weights"].T + head["bias"][None]
        return cross_entropy(logits, jnp.asarray(case.inputs["label"])).mean()

    total, (gradients, of_head) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(trainable, head)
    # The loss is a sum of thousands of terms, so its noise is relative.
    np.testing.assert_allclose(total, case.out["loss"], rtol=1e-5, atol=FORWARD)
    names = dict(weights="choice.weight", bias="choice.bias")
    compare_gradients(case, gradients, GRADIENT, {names[name]: np.asarray(v) for name, v in of_head.items()})


@pytest.mark.parametrize("path", [p for p in FIXTURES if "uniter_model_" in p.name], ids=identify)
def test_text_alone_and_regions_alone(path):
    case = Case(path)
    if "text_only" not in case.out:
        pytest.skip("the recording has only both")
    packed = pack_case(case)
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields))
    model = load(case, packed, {})
    is_region = np.asarray(batch.region_ids) != NO_IMAGE
    text = batch.replace(element_mask=batch.element_mask & ~is_region, region_features=None)
    regions = batch.replace(
        element_mask=batch.element_mask & is_region, region_hidden=jnp.zeros_like(batch.region_hidden)
    )  # the recording of regions alone hides none
    states = {name: np.asarray(nnx.jit(lambda m, b: run(m, b)[1][-1])(model, b)) for name, b in
              dict(text_only=text, image_only=regions).items()}  # fmt: skip
    for i, (_, here) in enumerate(packed.rows):
        t = sum(not is_region[i, 0, j] for j in here)
        close(states["text_only"][i, :t], case.out["text_only"][i, :t])
        close(states["image_only"][i, t : len(here)], case.out["image_only"][i, : len(here) - t])


@pytest.mark.parametrize("path", [p for p in FIXTURES if "visualbert_model_" in p.name], ids=identify)
def test_the_default_segment_of_regions(path):
    """Hugging Face takes 1 where the original code takes 0."""
    case = Case(path)
    if "last_default_types" not in case.out:
        pytest.skip("the recording has only given segments")
    del case.inputs["visual_token_type_ids"]
    packed = pack_case(case, default_segment=1)
    _, layers, _ = nnx.jit(run)(load(case, packed, {}), jax.tree.map(jnp.asarray, make_batch(packed.fields)))
    compare_elements(layers[-1], case.out["last_default_types"], packed.rows)


def test_fixtures_are_found():
    found = {(architecture_of(Case(path)).name, "alignment" in path.name) for path in FIXTURES}
    assert found >= {("uniter", False), ("visualbert", False), ("visualbert", True), ("oscar", False),
                     ("vinvl", False), ("b2t2", False), ("b2t2_positions", False)}  # fmt: skip
