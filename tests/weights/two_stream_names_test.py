"""Names of LXMERT and ViLBERT: every published tensor has a place or a reason, and comes back under its name."""

import math

import numpy as np
import pytest
from flax import nnx

from tests.helpers.weights_case import official_shapes
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.two_stream_config import TWO_STREAM_MODELS, TwoStreamConfig, connected_layers
from vlbert_jax.model.two_stream_heads import TwoStreamModel
from vlbert_jax.weights import two_stream_names as names
from vlbert_jax.weights.family_names import original_state_dict
from vlbert_jax.weights.two_stream_options import config_from_tensors, heads_from_tensors

# List of names -> the published model of these sizes.
LISTS = {
    "hf_lxmert_base_uncased": "lxmert",
    "hf_lxmert_vqa_uncased": "lxmert",
    "hf_lxmert_gqa_uncased": "lxmert",
    "airsplay_lxmert_pretrain": "lxmert",
    "airsplay_lxmert_vqa": "lxmert",
    "airsplay_lxmert_gqa": "lxmert",
    "airsplay_lxmert_nlvr2": "lxmert",
    "vilbert_beta_2layer_pretrain": "vilbert_2layer",
    "vilbert_beta_4layer_pretrain": "vilbert_4layer",
    "vilbert_beta_6layer_pretrain": "vilbert",
    "vilbert_beta_8layer_pretrain": "vilbert_8layer",
    "vilbert_beta_6layer_vqa": "vilbert",
    "vilbert_beta_6layer_vcr_retrieval_refcoco": "vilbert",
    "vilbert_multitask_pretrain": "vilbert",
    "vilbert_multitask_12in1": "vilbert_12in1",
}
# Parameters of published models in millions, the tied decoder once.
MILLIONS = {
    "hf_lxmert_base_uncased": 228.05,
    "hf_lxmert_vqa_uncased": 213.93,
    "hf_lxmert_gqa_uncased": 211.95,
    "vilbert_beta_2layer_pretrain": 160.8,
    "vilbert_beta_4layer_pretrain": 205.4,
    "vilbert_beta_6layer_pretrain": 250.0,
    "vilbert_beta_8layer_pretrain": 294.7,
    "vilbert_beta_6layer_vqa": 258.6,
    "vilbert_multitask_12in1": 268.0,
}


def zeros(shapes) -> dict[str, np.ndarray]:
    """Arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(name.endswith("weight_v")), shape) for name, shape in shapes.items()}


def places(tensors):
    """Return the options, the shapes of the parameters, and which tensors fill them."""
    shapes = {name: array.shape for name, array in tensors.items()}
    config, heads = config_from_tensors(shapes), heads_from_tensors(shapes)
    state = nnx.state(nnx.eval_shape(lambda: TwoStreamModel(config, heads, nnx.Rngs(0))))
    parameters = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    return config, parameters, names.match_two_stream(tensors, parameters, config)


@pytest.mark.parametrize("name", LISTS)
def test_every_tensor_has_a_place_or_a_reason(name):
    official = official_shapes(name)
    tensors = names.plain_tensors(zeros(official))
    config, parameters, found = places(tensors)
    assert config == TWO_STREAM_MODELS[LISTS[name]]
    assert not found.missing
    assert {names.reason_not_wanted(unused) for unused in found.unused} <= {
        "duplicate", "never used by the official code"
    }  # fmt: skip
    assert len(set(found.matched)) == len(found.matched)
    tables = {("two_stream", "token_embeddings"), ("mlm_head", "bias")}  # with rows that no token has
    stored = sum(math.prod(shape) for path, shape in parameters.items() if path not in tables)
    stored += config.vocab_size * sum(math.prod(parameters[path][1:]) for path in tables & parameters.keys())
    lengths = sum(official_name.endswith("weight_g") for official_name in official)
    unused = sum(tensors[unused].size for unused in found.unused)
    assert stored == sum(map(math.prod, official.values())) - unused - lengths
    if name in MILLIONS:
        dead = sum(tensors[x].size for x in found.unused if "q_dense" in x)
        assert abs((stored + dead + lengths) / 1e6 - MILLIONS[name]) < 0.06


@pytest.mark.parametrize("name", LISTS)
def test_the_way_back_has_every_name(name):
    official = official_shapes(name)
    tensors = names.plain_tensors(zeros(official))
    config, parameters, found = places(tensors)
    values = {path: np.broadcast_to(np.float32(1), shape) for path, shape in parameters.items()}
    architecture = get_architecture(names.family_of(config))
    suffix = ".pth" if name.startswith("airsplay") else ".bin"
    back = original_state_dict(names.official_two_stream(values, config), architecture, suffix)
    assert {name: array.shape for name, array in back.items()} == official


def test_prefixes_and_old_names():
    assert names.plain_name("module.lxrt_encoder.model.module.bert.pooler.dense.weight") == "pooler.dense.weight"
    assert names.plain_name("lxrt_encoder.model.bert.pooler.dense.bias") == "pooler.dense.bias"
    assert names.plain_name("lxmert.embeddings.LayerNorm.gamma") == "embeddings.LayerNorm.weight"
    assert names.plain_name("module.bert.embeddings.LayerNorm.beta") == "embeddings.LayerNorm.bias"
    assert names.plain_name("encoder.layer.0.attention.self.query.bias") == "encoder.layer.0.attention.self.query.bias"


def test_reasons():
    assert names.reason_not_wanted("embeddings.position_ids") == "position counter"
    assert names.reason_not_wanted("vil_tri_prediction.weight") == "head of another task"
    assert names.reason_not_wanted("encoder.c_layer.3.biOutput.q_dense2.bias") == "never used by the official code"
    assert names.reason_not_wanted("encoder.c_layer.3.biOutput.dense2.bias") == ""


def test_weights_with_a_length():
    """The product of length and direction, and back: equal to rounding."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4, 3)).astype(np.float32)
    raw = {"vil_prediction.main.0.weight_v": direction, "vil_prediction.main.0.weight_g": np.float32(2.5)}
    raw = {name: np.asarray(array) for name, array in raw.items()}
    (weight,) = names.plain_tensors(raw).values()
    np.testing.assert_allclose(np.linalg.norm(weight), 2.5, rtol=1e-6)
    np.testing.assert_allclose(weight / direction, np.full((4, 3), weight[0, 0] / direction[0, 0]), rtol=1e-6)
    back = names.official_state_dict({"vil_prediction.main.0.weight": weight}, TWO_STREAM_MODELS["vilbert"])
    assert back["vil_prediction.main.0.weight_g"].shape == ()
    np.testing.assert_allclose(names.plain_tensors(back)["vil_prediction.main.0.weight"], weight, rtol=3e-7)


def test_a_decoder_that_is_not_tied_is_refused():
    table = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="decoder.weight differs from embeddings.word_embeddings.weight"):
        names.plain_tensors(
            {"bert.embeddings.word_embeddings.weight": table, "cls.predictions.decoder.weight": table + 1}
        )


def test_the_head_of_matching_has_one_meaning():
    """Row 0 of ViLBERT's head means that the text belongs to the image; here row 1 does, as in LXMERT."""
    official = np.arange(6, dtype=np.float32).reshape(2, 3)
    kernel, bias = ("relationship_head", "kernel"), ("relationship_head", "bias")
    for config, module, expected in (
        (TWO_STREAM_MODELS["vilbert"], "cls.bi_seq_relationship", official[::-1].T),
        (TWO_STREAM_MODELS["lxmert"], "cls.seq_relationship", official.T),
    ):
        tensors = {f"{module}.weight": official, f"{module}.bias": official[:, 0]}
        found = names.match_two_stream(tensors, {kernel: (3, 2), bias: (2,)}, config)
        filled = {kernel: np.zeros((3, 2), np.float32), bias: np.zeros(2, np.float32)}
        for path, array in filled.items():
            found.fill(array, path, tensors)
        np.testing.assert_array_equal(filled[kernel], expected)
        np.testing.assert_array_equal(filled[bias], expected[0])
        back = names.official_two_stream(filled, config)
        for name, array in tensors.items():
            np.testing.assert_array_equal(back[name], array)


def small_shapes() -> dict[str, tuple[int, ...]]:
    return {names.plain_name(name): shape for name, shape in official_shapes("vilbert_beta_2layer_pretrain").items()}


def test_heads_and_connections_of_the_official_configuration():
    settings = dict(num_attention_heads=6, v_num_attention_heads=4, bi_num_attention_heads=16, fusion_method="sum")
    settings |= dict(t_biattention_id=[3, 10], v_biattention_id=[0, 1])
    config = config_from_tensors(small_shapes(), settings)
    assert (config.text.num_heads, config.visual.num_heads, config.cross_heads, config.pool) == (6, 4, 16, "sum")
    assert config.layers == connected_layers(12, 2, (3, 10), (0, 1))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(num_attention_heads=7), "num_attention_heads is 7, which does not divide the width 768"),
        (dict(t_biattention_id=[11]), "2 connections, t_biattention_id of config.json has 1"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config_from_tensors(small_shapes(), settings)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="not tensors of LXMERT or ViLBERT: pooler.dense.weight"):
        config_from_tensors({"pooler.dense.weight": (3, 3)})
    shapes = {name: shape for name, shape in small_shapes().items() if not name.startswith("encoder.layer.3.")}
    with pytest.raises(ValueError, match="some are missing"):
        config_from_tensors(shapes)


def test_a_tensor_of_another_shape_is_refused():
    path = ("two_stream", "text_pooler", "kernel")
    with pytest.raises(ValueError, match=r"pooler.dense.weight has shape \(4, 3\), .* require \(3, 3\)"):
        names.match_two_stream({"pooler.dense.weight": np.zeros((4, 3))}, {path: (3, 3)}, TwoStreamConfig())
