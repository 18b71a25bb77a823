"""Test the tables of tensor names: each official tensor maps to one place and back."""

import re

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import pretrain as recipes
from tests.helpers.weights_case import NAMES, fill, fine_tuned, official_shapes, shrunk
from vlbert_jax.batch import END
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.bert_names import bert_to_official, official_to_bert
from vlbert_jax.weights.resnet_names import caffe_to_resnet, official_to_resnet, resnet_to_official

PRETRAIN = pretrain.PretrainTask()

VARIANTS = ["base_e2e", "base_prec", "large_e2e", "large_prec"]
NOT_OWN = ("duplicate", "batch counter")


def abstract(config):
    return nnx.state(nnx.eval_shape(lambda: PRETRAIN.build_model(config, nnx.Rngs(0))))


def shapes_of(state) -> dict[tuple, tuple[int, ...]]:
    return {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}


def own_names(variant: str) -> dict[str, tuple[int, ...]]:
    """Return official shapes without duplicates and batch counters; names have no "module."."""
    plain = {vlbert_names.plain_name(name): shape for name, shape in official_shapes(variant).items()}
    return {name: shape for name, shape in plain.items() if vlbert_names.reason_not_wanted(name) not in NOT_OWN}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_official_name_has_one_place(variant):
    config = getattr(recipes, variant)()
    entries = list(vlbert_names.name_table(shapes_of(abstract(config)), config.model.encoder.vocab_size))
    ours = {entry.official for entry in entries}
    assert len(ours) == len(entries)
    assert ours == set(own_names(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_equal_the_official_ones(variant):
    """The numbers of trained and frozen parameters are equal.

    Statistics of batch norm and padding rows of the token table are not counted.
    """
    config = getattr(recipes, variant)()
    official = sum(int(np.prod(shape)) for name, shape in own_names(variant).items() if "running_" not in name)
    params = nnx.filter_state(abstract(config), nnx.Param)
    rows = params["vlbert"]["token_embeddings"].shape[0]
    padding = rows - config.model.encoder.vocab_size - END - 1
    padding = padding * config.model.encoder.hidden_size + rows - config.model.encoder.vocab_size  # table, MLM bias
    assert sum(int(np.prod(shape)) for shape in shapes_of(params).values()) - padding == official


@st.composite
def models(draw):
    """Generate configs of small models of all shapes."""
    config = recipes.base_e2e() if draw(st.booleans()) else recipes.base_prec()
    heads = draw(st.integers(1, 3))
    config.model.encoder.update(
        vocab_size=draw(st.integers(1, 300)),
        hidden_size=heads * draw(st.integers(1, 5)),
        num_heads=heads,
        num_layers=draw(st.integers(1, 4)),
        mlp_size=draw(st.integers(1, 20)),
        max_positions=draw(st.integers(1, 20)),
        pooler=draw(st.booleans()),
    )
    with config.model.encoder.unlocked():
        config.model.encoder.visual_layer_norm = draw(st.booleans())
        config.model.encoder.visual_size = draw(st.sampled_from([0, 7]))
    config.losses.relationship = config.model.encoder.pooler and draw(st.booleans())
    config.losses.region = float(draw(st.booleans()))
    config.data.hide_pixels = draw(st.booleans())
    config.model.region_head.update(
        stem_width=draw(st.integers(1, 4)),
        widths=tuple(draw(st.lists(st.integers(1, 3), min_size=4, max_size=4))),
        blocks=tuple(draw(st.lists(st.integers(1, 3), min_size=4, max_size=4))),
    )
    return config


@settings(max_examples=25, deadline=None)
@given(models(), st.integers(0, 9))
def test_every_name_maps_to_one_place_and_back(config, seed):
    """Names are unique, every value except padding has a name, and a round trip changes no bit."""
    shapes, vocab_size = shapes_of(abstract(config)), config.model.encoder.vocab_size
    rng = np.random.default_rng(seed)
    ours = {path: rng.standard_normal(shape, dtype=np.float32) for path, shape in shapes.items()}
    official = vlbert_names.to_official(ours, vocab_size)
    assert len(official) == len(list(vlbert_names.name_table(shapes, vocab_size)))
    found = vlbert_names.match_tensors(official, shapes, vocab_size)
    assert found.missing == found.unused == []
    for path, array in ours.items():
        back = np.full_like(array, np.nan)
        found.fill(back, path, official)
        unreached = np.isnan(back)
        if path in (vlbert_names.TOKEN_TABLE, ("mlm_head", "bias")):
            extra = END + 1 if path == vlbert_names.TOKEN_TABLE else 0
            assert not unreached[: vocab_size + extra].any()
            unreached[vocab_size + extra :] = False
        assert not unreached.any()
        np.testing.assert_array_equal(back, np.where(np.isnan(back), back, array))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_state_dict_is_the_official_one(variant):
    """Names and values are equal, duplicates included; shared tensors stay shared."""
    tensors = fill(shrunk(official_shapes(variant)))
    plain = {vlbert_names.plain_name(name): array for name, array in tensors.items()}
    own = {name: array for name, array in plain.items() if vlbert_names.reason_not_wanted(name) not in NOT_OWN}
    counters = {name: int(array) for name, array in plain.items() if name.endswith("num_batches_tracked")}
    state = vlbert_names.official_state_dict(own, counters)
    assert state.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    decoder, words = (f"module.{name}" for name in (vlbert_names.DECODER, vlbert_names.WORDS))
    assert state[decoder] is state[words]


def test_a_wrong_shape_is_refused():
    config = recipes.base_prec()
    tensors = {"vlbert.encoder.layer.1.attention.self.query.weight": np.zeros((3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"layer.1.attention.self.query.weight has shape \(3, 3\).*wants \(768, 768\)"):
        vlbert_names.match_tensors(tensors, shapes_of(abstract(config)), config.model.encoder.vocab_size)


def test_trained_words_replace_the_first_rows():
    """`word_embedding_frozen` has a second, trained table, which replaces the first rows."""
    shapes = {vlbert_names.TOKEN_TABLE: (128, 2)}
    words, trained = np.zeros((20, 2), np.float32), np.ones((4, 2), np.float32)
    tensors = {vlbert_names.WORDS: words, vlbert_names.TRAINED_WORDS: trained}
    found, table = vlbert_names.match_tensors(tensors, shapes, 20), np.full((128, 2), 5, np.float32)
    found.fill(table, vlbert_names.TOKEN_TABLE, tensors)
    assert found.unused == [] and (table[:4] == 1).all() and (table[4:20] == 0).all() and (table[20:] == 5).all()


# --- Names of other programs ----------------------------------------------------------------------


def test_bert_names():
    """Old and new names, with and without prefix, map to VL-BERT."""
    plain = "embeddings.LayerNorm"
    for name in (f"bert.{plain}.gamma", f"{plain}.gamma", f"bert.{plain}.weight", f"{plain}.weight"):
        assert bert_to_official(name) == "vlbert.embedding_LayerNorm.weight"
    tensors = {name: np.zeros(shape) for name, shape in own_names("base_prec").items()}
    tensors |= {"vlbert.pooler.dense.bias": np.zeros(3), vlbert_names.RELATIONSHIP: np.zeros((2, 3))}
    bert = official_to_bert(tensors)
    assert len(bert) == 5 + 16 * 12 + 5 + 2  # embeddings, layers, MLM, pooler and relationship
    back = [bert_to_official(name) for name in bert]
    assert len(set(back)) == len(back) and set(back) <= set(tensors)
    assert len(bert["bert.embeddings.token_type_embeddings.weight"]) == 2


def test_resnet_names():
    lines = [line.split("\t")[0] for line in (NAMES / "names_resnet101_vgbua.tsv").read_text().splitlines()]
    own = [name for name in lines if "num_batches" not in name]
    official = {resnet_to_official(name): name for name in own}
    expected = {name for name in own_names("base_e2e") if vlbert_names.REQUIRED["resnet"].match(name)}
    assert set(official) == expected
    assert official_to_resnet(dict.fromkeys(official, np.zeros(1)), {}).keys() == set(own)


def test_caffe_names():
    """Every listed layer is mapped; statistics are divided by their factor.

    The blobs of a layer are filled with the number of its line.
    """
    for number, line in enumerate((NAMES / "names_caffe_to_torch.tsv").read_text().splitlines(), 1):
        layer, _, torch_name = (part.strip() for part in line.split("\t"))
        layer = re.sub(r"\[.*", "", layer)
        one, factor = np.full(1, number, np.float32), np.full(1, 4, np.float32)
        blobs = [one, 2 * one, factor] if layer.startswith("bn") else [one, 2 * one]
        found = caffe_to_resnet(layer, blobs if layer.startswith(("bn", "scale")) else [one])
        if not re.match(r"conv1|bn|layer", torch_name):  # a layer of the detector only
            assert found == {}
        elif layer.startswith("bn"):
            prefix = re.match(r"(.*)\.running", torch_name).group(1)
            assert found == {f"{prefix}.running_mean": number / 4, f"{prefix}.running_var": number / 2}
        elif layer.startswith("scale"):
            prefix = torch_name.removesuffix(".weight/bias")
            assert found == {f"{prefix}.weight": number, f"{prefix}.bias": 2 * number}
        else:
            assert found == {torch_name: number}
    no_factor = caffe_to_resnet("bn_conv1", [np.ones(1), np.ones(1), np.zeros(1)])
    assert no_factor == {"bn1.running_mean": 0, "bn1.running_var": 0}


# --- From pre-training to a task ------------------------------------------------------------------


def test_warm_start():
    tensors = {vlbert_names.plain_name(name): a for name, a in fill(shrunk(official_shapes("base_e2e"))).items()}
    mlm, mrc = "vlbert.mlm_head.predictions.transform.dense.weight", "vlbert.mvrc_head.transform.dense.weight"
    for task, source, target in (
        ("answer", mlm, "final_mlp.0.dense.weight"),
        ("choice", mrc, "cnn_loss_reg.0.dense.weight"),
        ("region", mrc, "final_mlp.0.dense.weight"),
    ):
        started = vlbert_names.warm_start(tensors, task)
        assert source not in started
        np.testing.assert_array_equal(started[target], tensors[source])
        same = vlbert_names.SEGMENTS
        rows = [0, 0, 2] if task == "choice" else [0, 1, 2]
        np.testing.assert_array_equal(started[same], tensors[same][rows])
    assert vlbert_names.warm_start(tensors, "pretrain") == tensors


def test_heads_determine_the_task():
    for task in ("answer", "choice", "region"):
        tensors = {vlbert_names.plain_name(name): array for name, array in fine_tuned(task).items()}
        assert vlbert_names.task_of_names(tensors) == task
        assert vlbert_names.warm_start(tensors, task) == tensors
        with pytest.raises(ValueError, match=f"weights of a model for {task}"):
            vlbert_names.warm_start(tensors, "pretrain")
