"""Names of UNITER, VisualBERT, Oscar, VinVL, B2T2.

Every tensor of every list has one place, or a reason for none, and comes back under its name.
"""

import dataclasses
import json
import re

import numpy as np
import pytest
from flax import nnx

from configs import pretrain as pretrain_recipes
from configs import vqa as vqa_recipes
from tests.helpers import GOLDEN
from tests.helpers.weights_case import official_shapes
from vlbert_jax.model.architectures import UNICODER_VL, get_architecture
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.one_stream_heads import OneStreamHeads, OneStreamModel
from vlbert_jax.tasks import get_task
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.entry import Entry, copy_into
from vlbert_jax.weights.family_heads import one_stream_heads
from vlbert_jax.weights.family_names import (
    family_of,
    family_table,
    original_state_dict,
    pack_attention,
    reason_not_used,
    to_bert_names,
)

FAMILIES = ("uniter", "visualbert", "oscar", "vinvl", "b2t2")
LISTS = sorted(path for name in FAMILIES for path in (GOLDEN / "names").glob(f"names_{name}_*.tsv"))


def tensors_of(path) -> tuple[dict, object]:
    """Return zeros of the listed shapes, by the names of the table, and the architecture."""
    lines = (line.split("\t") for line in path.read_text().splitlines())
    shapes = {name: tuple(json.loads(shape)) for name, shape in lines}
    architecture = get_architecture(path.stem.split("_")[1])
    if "position_x_embeddings" in shapes:
        architecture = get_architecture("b2t2_positions")
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    found = to_bert_names(zeros, architecture)
    assert len(pack_attention(found)) == len(zeros), "two tensors have one name"
    return found, architecture


def configs_of(tensors, architecture):
    """Return the sizes of encoder and region head."""
    vocab_size, hidden_size = tensors["bert.embeddings.word_embeddings.weight"].shape
    numbers = {int(m[1]) for m in map(re.compile(r"bert\.encoder\.layer\.(\d+)\.").match, tensors) if m}
    encoder = EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=max(numbers) + 1,
        mlp_size=len(tensors["bert.encoder.layer.0.intermediate.dense.bias"]),
        max_positions=len(tensors["bert.embeddings.position_embeddings.weight"]),
        num_segments=len(tensors["bert.embeddings.token_type_embeddings.weight"]),
        pooler=True,
        architecture=architecture,
    )
    projection = f"{family_of(architecture).modules['fast_rcnn/projection']}.weight"
    joined = architecture.geometry_size if architecture.geometry == "joint" else 0
    head = RegionHeadConfig(
        hidden_size,
        backbone=None,
        feature_size=tensors[projection].shape[1] - joined,
        hidden_vector=architecture.hidden == "vector",
        architecture=architecture,
    )
    return encoder, head


def match(build, tensors, vocab_size, architecture):
    """Return the matched tensors, and the parameters that they do not fill."""
    state = nnx.state(nnx.eval_shape(build))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    found = vlbert_names.match_tensors(
        tensors, shapes, vocab_size, lambda shapes, size: family_table(shapes, size, architecture)
    )
    assert all(map(found.covers, shapes))  # but for rows without a name

    def filled(path):
        table = np.broadcast_to(np.float32(0), shapes[path])
        return sum(entry.part(table).size for entry in found.entries[path])

    return found, [path for path, shape in shapes.items() if filled(path) != np.prod(shape)]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem.removeprefix("names_"))
def test_every_tensor_has_a_place_or_a_reason(path):
    tensors, architecture = tensors_of(path)
    encoder, head = configs_of(tensors, architecture)
    heads = one_stream_heads({name: array.shape for name, array in tensors.items()}, architecture)
    found, empty = match(
        lambda: OneStreamModel(encoder, head, heads, nnx.Rngs(0)), tensors, encoder.vocab_size, architecture
    )
    assert found.missing == []
    assert empty == [("vlbert", "token_embeddings")]  # rows behind the vocabulary
    assert len(set(found.matched)) == len(found.matched)
    has_heads = re.search("nlvr2|vcr|refcoco|retrieval|flickr", path.stem) and "_pre" not in path.stem
    assert (heads != OneStreamHeads()) or not has_heads or "2nd_stage" in path.stem
    of_pretraining = r"(cls\.(predictions|seq_relationship)|itm_output|feat_regress|region_classifier)\."
    of_answers = r"(vqa_output|cls)\."
    for name in found.unused:
        reason = reason_not_used(name, architecture)
        assert reason, f"{name} has neither a place nor a reason"
        assert reason == "duplicate" or not name.startswith(("bert.", "position_"))  # the whole trunk is used
        if reason == "head of another task":
            assert re.match(of_pretraining if has_heads else f"{of_pretraining}|{of_answers}", name), name
    if architecture.name.startswith("b2t2"):  # no weights of it are published; its names are those of TensorFlow
        return
    kept = {name: tensors[name] for name in (*found.matched, *found.unused)}
    kept = {name: array for name, array in kept.items() if reason_not_used(name, architecture) != "duplicate"}
    back = original_state_dict(kept, architecture, ".th" if "original" in path.stem else ".bin")
    assert {name: array.shape for name, array in back.items()} == official_shapes(path.stem.removeprefix("names_"))


# Lists whose heads are here -> the task, and options of its config.
PRETRAINED = dict(mrc=False, relationship=True)
WITH_HEADS = {
    "uniter_base": ("pretrain", dict(mrc=True, regression=True, relationship=True)),
    "uniter_large": ("pretrain", dict(mrc=True, regression=True, relationship=True)),
    "uniter_base_vqa": ("answer", "pooler"),
    "uniter_base_ve": ("answer", "pooler"),
    "visualbert_vqa_pre": ("pretrain", PRETRAINED),
    "visualbert_original_nlvr2_pre": ("pretrain", PRETRAINED),
    "visualbert_vqa": ("answer", "mask_linear"),
    "visualbert_original_vqa": ("answer", "mask_linear"),
    "oscar_base": ("pretrain", PRETRAINED),
    "oscar_large_vqa": ("answer", "pooler_linear"),
    "vinvl_base_vqa": ("answer", "pooler_linear"),
}


@pytest.mark.parametrize("name", WITH_HEADS)
def test_the_heads_of_pretraining_and_answers_have_places(name):
    tensors, architecture = tensors_of(GOLDEN / "names" / f"names_{name}.tsv")
    encoder, head = configs_of(tensors, architecture)
    task, options = WITH_HEADS[name]
    config = (pretrain_recipes.base_prec_no_text if task == "pretrain" else vqa_recipes.base)()
    config.model.architecture, config.model.feature_size = architecture.name, head.feature_size
    config.model.encoder = {field: getattr(encoder, field) for field in config.model.encoder}
    if task == "pretrain":
        config.losses.update(options)
    else:
        config.model.answer_head = options
        answers = next(len(v) for n, v in tensors.items() if re.fullmatch(r"(vqa_output\.3|cls|classifier)\.bias", n))
        config.model.num_answers = answers
    found, empty = match(
        lambda: get_task(task).build_model(config, nnx.Rngs(0)), tensors, encoder.vocab_size, architecture
    )
    assert found.missing == []
    # Only pre-training hides regions, and rows behind the vocabulary are not words.
    assert set(empty) <= {("vlbert", "token_embeddings"), ("mlm_head", "bias")}
    reasons = {n: reason_not_used(n, architecture) for n in found.unused}
    assert set(reasons.values()) <= {"duplicate", "vector of hidden regions"}, reasons


def test_lists_of_all_families_are_found():
    assert {path.stem.split("_")[1] for path in LISTS} == set(FAMILIES)


def test_an_unknown_tensor_of_the_trunk_has_no_reason():
    assert reason_not_used("bert.embeddings.other.weight", get_architecture("uniter")) == ""


def test_other_spellings():
    oscar, visualbert = get_architecture("oscar"), get_architecture("visualbert")
    array = np.zeros(2)
    assert list(to_bert_names({"module.bert.LayerNorm.gamma": array}, oscar)) == ["bert.LayerNorm.weight"]
    original = to_bert_names({"bert.bert.embeddings.token_type_embeddings_visual.weight": array}, visualbert)
    assert original.keys() == to_bert_names({"visual_bert.embeddings.visual_token_type_embeddings.weight": array},
                                            visualbert).keys()  # fmt: skip


def test_an_architecture_of_its_own_has_no_names():
    with pytest.raises(ValueError, match="no names of weights for mine"):
        list(family_table({("vlbert", "token_embeddings"): (3, 2)}, 3, dataclasses.replace(UNICODER_VL, name="mine")))


@pytest.mark.parametrize(
    ("entry", "shape"),
    [(Entry("x", (), "linear", roll=2), (3, 5)), (Entry("x", (), "last row"), (2, 5))],
    ids=["geometry behind", "last row"],
)
def test_layouts_and_back(entry, shape):
    official = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parameter = entry.to_parameter(official)
    if entry.roll:
        np.testing.assert_array_equal(parameter, np.concatenate([official.T[3:], official.T[:3]]))
    else:
        np.testing.assert_array_equal(parameter, official[1])
        official[0] = 0  # nothing reads the first row
    np.testing.assert_array_equal(entry.to_official(parameter), official)


@pytest.mark.parametrize("shape", [(130, 3), (64, 1), (200, 2, 3, 3), (70,), ()])
def test_arrays_are_copied_by_blocks(shape):
    official = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    source = official.transpose(range(official.ndim)[::-1])
    target = np.full(source.shape, np.nan, np.float32)
    copy_into(target, source)
    np.testing.assert_array_equal(target, source)
