"""Heads of published siblings are those of classification: their names, and the recorded outputs of their code.

Tolerance: 1e-4 absolute, as for the trunk.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers import predict_case
from tests.helpers.classify_case import tiny
from tests.helpers.golden_case import Case, close
from tests.helpers.golden_folders import golden_folders
from tests.helpers.one_stream_case import encoder_of, joined, load_case, pack_case, region_head_of
from tests.helpers.siblings_case import small_tensors
from vlbert_jax.batch import make_batch
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.tasks import get_task, task_of_names, tasks_of_family
from vlbert_jax.tasks.classify.model import ClassHead, ClassifyModel
from vlbert_jax.weights import family_names, two_stream_names
from vlbert_jax.weights.family_names import to_bert_names
from vlbert_jax.weights.initialize import load_into

CLASSIFY = get_task("classify")
# Prefix of a recording -> whether it is of pairs.
RECORDED = {"uniter_nlvr2_": True, "visualbert_nlvr2_": True, "oscar_nlvr2_": True, "uniter_ve_": False}
FIXTURES = [
    path
    for folder in golden_folders("one_stream")
    for path in sorted(folder.glob("*.json"))
    if path.name.startswith(tuple(RECORDED))
]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_outputs_of_published_code(path):
    case = Case(path)
    packed = pack_case(case)
    width = packed.feature_size
    name = encoder_of(case).architecture.name
    shapes = {key: array.shape for key, array in to_bert_names(case.sd, encoder_of(case).architecture).items()}
    assert CLASSIFY.owns_family(name, shapes)
    fields = CLASSIFY.config_from_family(name, shapes)
    assert (fields["data.images_per_example"] == 2) == next(p for k, p in RECORDED.items() if path.name.startswith(k))
    expected = next(case.out[key] for key in ("scores", "logits") if key in case.out)
    head = ClassHead(
        num_labels=fields["model.num_labels"], pair=fields["model.pair"], label_head=fields["model.label_head"],
        num_images=fields["data.images_per_example"], label_hidden=fields.get("model.label_hidden", 0),
    )  # fmt: skip
    packed = joined(packed, len(packed.fields["token_ids"]) // len(expected))
    model, _ = load_case(
        lambda: ClassifyModel(encoder_of(case), region_head_of(case, width), head, nnx.Rngs(0)), case
    )
    batch = jax.tree.map(jnp.asarray, make_batch(packed.fields))

    @nnx.jit
    def outputs(model, batch):
        positions = jnp.zeros(batch.token_ids.shape[:2], jnp.int32)
        return model.outputs(model.states(batch), batch, positions)

    close(outputs(model, batch), expected)


# List of names -> the fields that it determines.
LISTS = {
    "uniter_base_nlvr2_paired_attn": ("attention", 2, "nlvr2.txt", "linear"),
    "uniter_base_ve": ("each", 1, "snli_ve_uniter.txt", "hidden"),
    "visualbert_nlvr2": ("both", 2, "nlvr2.txt", "linear"),
    "airsplay_lxmert_nlvr2": ("each", 2, "nlvr2.txt", "hidden"),
    "oscar_large_nlvr2": ("each", 2, "nlvr2.txt", "relu"),
    "vinvl_base_nlvr2": ("each", 2, "nlvr2.txt", "relu_norm"),
}


@pytest.mark.parametrize("name", LISTS)
def test_published_names_have_a_place(name):
    raw = small_tensors(name)
    architecture = family_names.architecture_of_names(raw)
    tensors = to_bert_names(raw, get_architecture(architecture))
    shapes = {key: array.shape for key, array in tensors.items()}
    assert tasks_of_family(architecture, shapes)[0] == "classify"
    fields = CLASSIFY.config_from_family(architecture, shapes)
    pair, images, labels, head = LISTS[name]
    found = [fields[f"{key}"] for key in ("model.pair", "data.images_per_example", "data.labels", "model.label_head")]
    assert found == [pair, images, labels, head]
    wanted = {"label_head", "pair_head", "pair_attention"}
    modules = (
        two_stream_names.HEADS["lxmert"] if architecture == "lxmert"
        else family_names.family_modules(get_architecture(architecture))
    )  # fmt: skip
    named = {f"{official}.{leaf}" for module, official in modules.items() if module.split("/")[0] in wanted
             for leaf in ("weight", "bias")}  # fmt: skip
    of_head = {key for key in shapes if key.startswith(("nlvr2_output", "vqa_output", "attn", "fc.0", "logit_fc"))}
    assert of_head <= named


@pytest.mark.parametrize("read, architecture", [
    ("mask", "vlbert"), ("mask", "uniter"), ("mask", "lxmert"), ("cls", "vlbert"), ("cls", "vilbert"),
])  # fmt: skip
@pytest.mark.parametrize("images", [1, 2])
def test_heads_have_names_in_every_architecture(read, architecture, images):
    """All parameters have different names; the hidden layer at [MASK] has that of the head for masked words."""
    config = tiny(images, **{
        "model.architecture": architecture, "model.read": read, "model.encoder.pooler": True,
        "model.train_region_head": False, "data.features": "precomputed",
    })  # fmt: skip
    state = nnx.state(nnx.eval_shape(lambda: CLASSIFY.build_model(config, nnx.Rngs(0))))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    table = family_names.table_of(get_architecture(architecture))
    entries = list(table(shapes, config.model.encoder.vocab_size))
    names = {entry.official for entry in entries}
    assert len(names) == len(entries)
    hidden = {entry.official for entry in entries if entry.path[:2] == ("mask_head", "transform")}
    prefix = "vlbert.mlm_head." if architecture == "vlbert" else "cls."
    leaves = ("weight", "bias") if read == "mask" else ()
    assert hidden == {f"{prefix}predictions.transform.dense.{leaf}" for leaf in leaves}
    if architecture == "vlbert":
        assert task_of_names(names) == "classify"
        of_heads = [entry for entry in entries if entry.path[0].endswith("_head")]
        found = CLASSIFY.config_from_weights({
            entry.official: entry.to_official(np.zeros(shapes[entry.path])).shape for entry in of_heads
        })  # fmt: skip
        assert found["model.num_labels"] == 2 and found["model.read"] == read
        assert found.get("data.images_per_example", 1) == images


@pytest.mark.parametrize("read", ["mask", "cls"])
def test_a_model_of_another_task_is_a_start(read, tmp_path, caplog):
    """The trunk of a VQA model is taken, and its hidden layer at [MASK] where there is one; the head is new."""
    source = predict_case.shrunk("vqa", tmp_path, **{"model.encoder.pooler": read == "cls"})
    predict_case.write_model(tmp_path / "vqa", source)
    config = tiny(1, **{"model.read": read})
    config.model.encoder, config.model.region_head = source.model.encoder, source.model.region_head
    model = nnx.eval_shape(lambda: CLASSIFY.build_model(config, nnx.Rngs(0)))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nnx.state(model, nnx.Param))
    sources, encoder = dict(checkpoint=str(tmp_path / "vqa")), config.model.encoder.to_dict()
    with caplog.at_level("INFO"):
        _, _, filled = load_into(state, nnx.State({}), encoder, "classify", sources)
    assert f"{tmp_path / 'vqa'} is a model for answer; its trunk is taken" in caplog.text
    new = {path[:2] for path, _ in nnx.to_flat_state(state) if path not in filled and path[0] != "fast_rcnn"}
    layers = ("classes",) if read == "mask" else ("transform", "norm", "classes")
    assert new == {("mask_head" if read == "mask" else "label_head", layer) for layer in layers}
    with pytest.raises(ValueError, match="of a model for classify are missing, such as .*Evaluation requires a run of"):
        load_into(state, nnx.State({}), encoder, "classify", sources, complete=True)
    with pytest.raises(ValueError, match="weights of a model for answer; pre-training starts from pre-training"):
        load_into(state, nnx.State({}), encoder, "pretrain", sources)
