"""The recorded values of LXMERT and ViLBERT: embeddings, every layer, attention, pooled vectors, gradients.

Recordings are in tests/golden/two_stream and, if that is set, in $VLBERT_GOLDEN/two_stream.
Tolerances: forward 1e-4 absolute, sums of hundreds of terms 1e-3; gradients 1e-4 of the largest entry,
2e-4 in vilbert_model_b.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import close
from tests.helpers.two_stream_case import (
    Holder,
    TwoStreamCase,
    compare_two_stream_gradients,
    load,
    name_of,
    text_and_regions,
    two_stream_fixtures,
)

FIXTURES = two_stream_fixtures()


@pytest.fixture(params=[(True, "full"), (False, "none")], ids=str)
def execution(request):
    """Return the pair (scan_layers, remat)."""
    return dict(scan_layers=request.param[0], remat=request.param[1])


@nnx.jit
def everything(model, inputs):
    """Return the embeddings, what every block computed, the last states and the pooled vectors."""
    ids = (inputs[name] for name in ("token_ids", "segment_ids", "position_ids"))
    words = model.embed_words(*ids, inputs.get("task"))
    regions = model.embed_regions(inputs["features"], inputs["geometry"])
    states = dict(text=words[:, 0], visual=regions[:, 0])
    masks = dict(text=inputs["word_mask"][:, 0], visual=inputs["region_mask"][:, 0])
    last, blocks = model.encoder(states, masks, collect=True)
    alone = model(**inputs)
    return states, blocks, last, (alone, model.pooled_parts(alone))


def check_states(ours, official, mask):
    """Compare the real elements of states [..., b, s, d]."""
    assert ours.shape == official.shape
    mask = np.broadcast_to(np.asarray(mask), official.shape[:-1])
    close(np.asarray(ours)[mask], official[mask])


def check_attention(ours, official, mask):
    """Compare attention [layers, b, heads, s, k] of real elements."""
    check_states(jnp.moveaxis(ours, 2, 3).reshape(*official.shape[:2], official.shape[3], -1),
                 np.moveaxis(official, 2, 3).reshape(*official.shape[:2], official.shape[3], -1), mask)  # fmt: skip


def gradients_of(model, inputs, cotangents):
    """Return the sum of the outputs times fixed numbers, and its gradients."""

    @nnx.jit
    def run(model):
        def loss(model):
            states = model.two_stream(**inputs)
            outputs = states.text[:, 0], states.visual[:, 0], *(x[:, 0] for x in model.two_stream.pooled_parts(states))
            return sum(jnp.vdot(x, c) for x, c in zip(outputs, cotangents, strict=True))

        return nnx.value_and_grad(loss)(model)

    return run(model)


def check_lxmert_model(case):
    model, found = load(lambda: Holder(case.config, nnx.Rngs(0)), case.sd, case.config)
    assert not found.unused
    inputs, c, out = text_and_regions(case.inputs), case.meta["config"], dict(case.out)
    states, blocks, last, (alone, (pooled,)) = everything(model.two_stream, inputs)
    words, regions = inputs["word_mask"][:, 0], inputs["region_mask"][:, 0]
    check_states(states["text"], out.pop("embedding_output"), words)
    check_states(states["visual"], out.pop("visual_embedding_output"), regions)
    (text, text_attention), (visual, visual_attention) = blocks["t"], blocks["v"]
    check_states(text["text"], out.pop("language_hidden_states"), words)
    check_states(visual["visual"], out.pop("vision_hidden_states"), regions)
    check_attention(text_attention["text"][: c["l_layers"]], out.pop("language_attentions"), words)
    check_attention(visual_attention["visual"][: c["r_layers"]], out.pop("vision_attentions"), regions)
    check_attention(blocks["x"][1]["text"], out.pop("cross_encoder_attentions"), words)
    for recorded in (out, case.original):
        for name, array, mask in (("language", alone.text[:, 0], words), ("vision", alone.visual[:, 0], regions)):
            check_states(array, recorded.pop(f"{name}_output"), mask)
        close(pooled[:, 0], recorded.pop("pooled_output"))
        assert not recorded.keys() - {"loss"}
    check_states(last["text"], np.asarray(alone.text[:, 0]), words)
    loss, gradients = gradients_of(
        model, inputs, [case.inputs[f"cotangent/{name}"] for name in ("language", "vision", "pooled")]
    )
    close(loss, out["loss"], 1e-3)
    compare_two_stream_gradients(case, gradients, 1e-4)


def check_vilbert_model(case):
    model, found = load(lambda: Holder(case.config, nnx.Rngs(0)), case.sd, case.config)
    assert all("biOutput.q_dense" in name for name in found.unused), found.unused
    order = "".join(kinds * times for kinds, times in case.config.layers).replace("xf", "c").upper()
    assert order == "".join(layer[0] for layer in case.meta["layer_order"])
    inputs, out = text_and_regions(case.inputs), dict(case.out)
    states, blocks, _, (alone, pooled) = everything(model.two_stream, inputs)
    masks = dict(text=inputs["word_mask"][:, 0], visual=inputs["region_mask"][:, 0])
    streams = dict(t="text", v="visual")
    for letter, stream in streams.items():
        check_states(states[stream], out.pop(f"embedding_{letter}"), masks[stream])
    for name in list(out):
        if layer := re.fullmatch(r"([tv])_layer_(\d+)", name):
            kind, stream, i = layer[1], streams[layer[1]], int(layer[2])
        elif layer := re.fullmatch(r"c_layer_(\d+)_([tv])", name):
            kind, stream, i = "f", streams[layer[2]], int(layer[1])
        else:
            continue
        check_states(blocks[kind][0][stream][i], out.pop(name), masks[stream])
    for recorded in (out, case.original):
        for (letter, stream), part in zip(streams.items(), pooled, strict=True):
            check_states(getattr(alone, stream)[:, 0], recorded.pop(f"sequence_output_{letter}"), masks[stream])
            close(part[:, 0], recorded.pop(f"pooled_output_{letter}"))
        assert not recorded.keys() - {"loss"}
    loss, gradients = gradients_of(
        model, inputs, [case.inputs[f"cotangent/{name}"] for name in ("t", "v", "pooled_t", "pooled_v")]
    )
    close(loss, out["loss"], 1e-3)
    compare_two_stream_gradients(case, gradients, 2e-4 if case.path.stem == "vilbert_model_b" else 1e-4)


CHECKS = {"lxmert_model": check_lxmert_model, "vilbert_model": check_vilbert_model}


@pytest.mark.parametrize("path", [path for path in FIXTURES if name_of(path) in CHECKS], ids=lambda path: path.stem)
def test_fixture(path, execution):
    CHECKS[name_of(path)](TwoStreamCase(path, **execution))


def test_fixtures_are_found():
    assert {name_of(path) for path in FIXTURES} >= set(CHECKS)
