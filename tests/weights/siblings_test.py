"""Files of VL-BERT's one-stream siblings through `convert`, `init.checkpoint` and back."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from configs import classify as classify_recipes
from configs import pretrain as pretrain_recipes
from configs import retrieval as retrieval_recipes
from configs import vcr as vcr_recipes
from configs import vqa as vqa_recipes
from tests.helpers.siblings_case import HEADS, save, small_tensors
from tests.helpers.weights_case import run as convert
from vlbert_jax.convert import main
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.tasks import get_task
from vlbert_jax.weights import two_stream_names as names
from vlbert_jax.weights.conversion import prepare_conversion
from vlbert_jax.weights.family_start import with_start_of_retrieval
from vlbert_jax.weights.initialize import load_into
from vlbert_jax.weights.read import read_weights

torch = pytest.importorskip("torch")

TWO_STREAMS = {
    "airsplay_lxmert_pretrain": "pretrain",
    "airsplay_lxmert_vqa": "answer",
    "vilbert_beta_6layer_vqa": "pretrain",
    "vilbert_multitask_12in1": "answer",
}
FILES = {  # list of names -> the task
    "visualbert_vqa": "answer",
    "visualbert_vqa_pre": "pretrain",
    "visualbert_original_flickr": "pretrain",
    "uniter_base": "pretrain",
    "uniter_base_vqa": "answer",
    "uniter_base_nlvr2_paired_attn": "classify",
    "oscar_base_vqa": "answer",
    "uniter_base_vcr": "choice",
    "visualbert_original_vcr": "choice",
    "oscar_base_nlvr2": "classify",
    "vinvl_base_nlvr2": "classify",
    "vinvl_base": "pretrain",
}


def back_and_forth(tensors, given, back, *options, capsys):
    """Return what `convert` says of the file `given` with these tensors; it becomes a folder and the file `back`."""
    save(given, tensors)
    output = convert(given, back.parent / "converted", *options, *HEADS, capsys=capsys)
    convert(back.parent / "converted", back, "--strict")
    return output


@pytest.mark.parametrize("name", FILES)
def test_to_vlbert_jax_and_back(name, tmp_path, capsys):
    """All tensors are equal after a round trip, under the same names and as often."""
    tensors, back = small_tensors(name), tmp_path / ("back.th" if "original" in name else "back.bin")
    output = back_and_forth(tensors, tmp_path / "given.pt", back, capsys=capsys)
    assert f"{name.split('_')[0]}, {FILES[name]} in pytorch" in output and "unknown" not in output
    assert "newly" not in output
    found = torch.load(back, weights_only=True)
    assert found.keys() == tensors.keys()
    for key, tensor in found.items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[key], err_msg=key)


@pytest.mark.parametrize("name", TWO_STREAMS)
def test_two_streams_and_back(name, tmp_path, capsys):
    """All is equal after a round trip: the trunk, the heads of other tasks, and layers that are never used."""
    task, vilbert = TWO_STREAMS[name], name.startswith("vilbert")
    tensors, back = small_tensors(name, layers=99 if vilbert else 1), tmp_path / ("back.bin" if vilbert else "back.pth")
    output = back_and_forth(tensors, tmp_path / "given.pth", back, f"--task={task}", capsys=capsys)
    assert f"{'vilbert' if vilbert else 'lxmert'}, {task} in pytorch" in output.replace("pretrain in", f"{task} in")
    assert "newly" not in output and "unknown" not in output and "dropped: head" not in output
    assert ("kept apart: head of another task" in output) == vilbert
    found = torch.load(back, weights_only=True)
    assert found.keys() == tensors.keys()
    found = {key: tensor.numpy() for key, tensor in found.items()}
    for key in [key for key in tensors if key.endswith("weight_v")]:  # the product counts
        one, other = (names.plain_tensors({x: of.pop(x) for x in (key, f"{key[:-1]}g")}) for of in (found, tensors))
        np.testing.assert_allclose(*one.values(), *other.values(), rtol=1e-6)
    for key, array in found.items():
        np.testing.assert_array_equal(array, tensors[key], err_msg=key)


def test_spellings_wrappers_and_half_precision(tmp_path):
    """A trainer's file with `module.`, gamma and beta in float16 gives what the plain file gives."""
    tensors = {name: array.astype(np.float16) for name, array in small_tensors("uniter_base").items()}
    old = {}
    for name, array in tensors.items():
        norm = "norm." in name.lower()
        name = name.replace("weight", "gamma").replace("bias", "beta") if norm else name
        old[f"module.{name}"] = torch.from_numpy(array)
    torch.save({"model_state": old, "optimizer": {"m": torch.zeros(2)}}, tmp_path / "old.pt")
    save(tmp_path / "plain.pt", {name: array.astype(np.float32) for name, array in tensors.items()})
    plain, read = (read_weights(tmp_path / name) for name in ("plain.pt", "old.pt"))
    assert read.architecture == "uniter" and read.dropped["optimizer state"]
    assert read.tensors.keys() == plain.tensors.keys()
    for name, array in plain.tensors.items():
        assert read.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(read.tensors[name], array, err_msg=name)


def test_a_folder_keeps_its_vocabulary(tmp_path):
    tensors = small_tensors("oscar_base_vqa")
    (tmp_path / "oscar").mkdir()
    words = len(tensors["bert.embeddings.word_embeddings.weight"])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = special + [f"w{i}" for i in range(words - len(special))]
    (tmp_path / "oscar/vocab.txt").write_text("\n".join(vocab) + "\n")
    (tmp_path / "oscar/config.json").write_text(json.dumps(dict(num_attention_heads=2, hidden_act="gelu")))
    save(tmp_path / "oscar/pytorch_model.bin", tensors)
    assert prepare_conversion(tmp_path / "oscar").config.model.encoder.num_heads == 2
    convert(tmp_path / "oscar", tmp_path / "converted")
    assert (tmp_path / "converted/vocabularies/vocab/vocab.txt").read_text().split() == vocab


def rewritten(tmp_path, name, path, value, capsys) -> str:
    """Return what `convert` says as a folder becomes a .bin after a field of its config was given a value."""
    folder = tmp_path / f"{name}_{value}"
    convert(save(tmp_path / "given.bin", small_tensors(name)), folder, *HEADS)
    config = json.loads((folder / "config.json").read_text())
    *blocks, field = path.split(".")
    block = config
    for part in blocks:
        block = block.setdefault(part, {})
    block[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "back.bin"), "--dry_run"]) == 0
    return capsys.readouterr().err


def test_what_a_file_without_a_config_loses(tmp_path, capsys):
    """The kind of a head whose tensors have the same names, and the switches of an architecture, are named."""
    same = rewritten(tmp_path, "vinvl_base_nlvr2", "model.label_head", "relu_norm", capsys)
    assert "warning" not in same
    lost = rewritten(tmp_path, "vinvl_base_nlvr2", "model.label_head", "hidden", capsys)
    assert "back.bin will be read without config.model.label_head=hidden; write .safetensors or a folder" in lost
    lost = rewritten(tmp_path, "uniter_base_refcoco_mlp2", "model.switches.hidden", "zeros", capsys)
    assert "without config.model.switches.hidden=zeros;" in lost


# --- Start of a run -----------------------------------------------------------------------------------------


def started(recipe, source, architecture, segments=0, **fields):
    """Return the parameters of a recipe with the sizes of `source` by their paths, random and as loaded.

    `segments` is the number of segments where it is another one.
    """
    config, sizes = recipe(), prepare_conversion(source, num_heads=2).config.model
    config.model.encoder.update(dict(sizes.encoder) | (dict(num_segments=segments) if segments else {}))
    config.model.update(architecture=architecture, feature_size=sizes.feature_size, **fields)
    task, rng = get_task(config.task), np.random.default_rng(1)
    state = nnx.state(nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0))))
    for _, variable in nnx.to_flat_state(state):
        variable.set_value(jax.numpy.asarray(rng.normal(size=variable.shape).astype(np.float32)))
    params, constants = nnx.split_state(state, nnx.Param, ...)
    loaded, _, filled = load_into(
        params, constants, config.model.encoder.to_dict(), config.task, {"checkpoint": str(source)},
        architecture=config.model.architecture,
    )  # fmt: skip
    flat = [{tuple(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(s)} for s in (params, loaded)]
    return *flat, filled


def answering():
    config = vqa_recipes.base()
    config.model.answer_head, config.model.num_answers, config.model.encoder.pooler = "pooler", 9, True
    return config


def test_pretraining_starts_answering(tmp_path):
    """The trunk comes from the file, the head for answers is new; the same through a folder that was converted."""
    tensors = small_tensors("uniter_base")
    file = save(tmp_path / "uniter.pt", tensors)
    convert(file, tmp_path / "converted", *HEADS)
    before, loaded, filled = started(answering, file, "uniter")
    again = started(answering, tmp_path / "converted", "uniter")[1]
    assert {path for path in before if not np.array_equal(before[path], loaded[path])} == filled
    assert filled and not any(path[0] == "answer_head" for path in filled)
    assert {path for path in before if path[0] in ("vlbert", "fast_rcnn")} == filled
    for path, array in loaded.items():
        np.testing.assert_array_equal(again[path], array)
    given = tensors["uniter.img_embeddings.pos_linear.weight"]
    np.testing.assert_array_equal(loaded["fast_rcnn", "geometry_projection", "kernel"], given.T)


def test_uniter_starts_retrieval_from_the_head_of_pre_training(tmp_path):
    """A head with one output is the row "belongs"; the difference of both rows is not that score."""
    tensors = small_tensors("uniter_base")
    file = save(tmp_path / "uniter.pt", tensors)
    loaded, filled = started(retrieval_recipes.flickr30k, file, "uniter", matching_head="score")[1:]
    assert {("matching_head", "kernel"), ("matching_head", "bias")} <= filled
    np.testing.assert_array_equal(loaded["matching_head", "kernel"], tensors["itm_output.weight"][1:].T)
    np.testing.assert_array_equal(loaded["matching_head", "bias"], tensors["itm_output.bias"][1:])
    loaded = started(retrieval_recipes.flickr30k, file, "uniter", matching_head="classes")[1]
    np.testing.assert_array_equal(loaded["matching_head", "kernel"], tensors["itm_output.weight"].T)


def test_a_head_with_another_number_of_outputs_is_left_out():
    """All files of ViLBERT have a head with one output."""
    tensors = {"vil_logit.weight": np.zeros((1, 4)), "vil_logit.bias": np.zeros(1), "v_pooler.dense.bias": np.zeros(4)}
    assert with_start_of_retrieval(tensors, 1).keys() == tensors.keys()
    assert with_start_of_retrieval(tensors, 2).keys() == {"v_pooler.dense.bias"}


@pytest.mark.parametrize("name", ["oscar_base_nlvr2", "vinvl_base_nlvr2", "oscar_base_vqa"])
@pytest.mark.parametrize("head", ["classes", "hidden"])
def test_a_run_of_retrieval_leaves_out_other_heads(head, name, tmp_path):
    """All heads of Oscar have the same names; that of the run is new."""
    file, architecture = save(tmp_path / "given.bin", small_tensors(name)), name.partition("_")[0]
    loaded, filled = started(retrieval_recipes.flickr30k, file, architecture, matching_head=head)[1:]
    assert {path[0] for path in loaded} - {path[0] for path in filled} == {"matching_head"}


@pytest.mark.parametrize(
    ("recipe", "origins"),
    [(classify_recipes.nlvr2_uniter, [0, 1, 1]), (vcr_recipes.q2a_uniter, [0, 1, 0, 0])],
    ids=["nlvr2", "vcr"],
)
@pytest.mark.parametrize("rows", [2, 3])
def test_new_segments_of_uniter_start_as_copies(recipe, origins, rows, tmp_path):
    """NLVR2 has a segment for the second image; VCR has one for answers and one for rationales.

    A run of pre-training here has three rows, of which the last one is not trained.
    """
    tensors = small_tensors("uniter_base")
    tensors["uniter.embeddings.token_type_embeddings.weight"] = np.random.default_rng(0).normal(
        size=(rows, tensors["uniter.embeddings.word_embeddings.weight"].shape[1])
    ).astype(np.float32)
    file = save(tmp_path / "uniter.pt", tensors)
    loaded, filled = started(recipe, file, "uniter", segments=len(origins))[1:]
    table = tensors["uniter.embeddings.token_type_embeddings.weight"]
    np.testing.assert_array_equal(loaded["vlbert", "segment_embeddings"], table[origins])
    assert ("vlbert", "segment_embeddings") in filled


def test_the_second_stage_of_uniter_starts_questions_with_choices(tmp_path):
    """Its four segments are trained ones; its words for objects, of unknown order, are left out."""
    tensors, words = small_tensors("uniter_base_vcr_2nd_stage"), 28_996
    rng, table = np.random.default_rng(0), "uniter.embeddings.word_embeddings.weight"
    tensors[table] = rng.normal(size=(words + 81, 16)).astype(np.float32)
    tensors["cls.predictions.decoder.weight"] = tensors[table]
    tensors["cls.predictions.bias"] = rng.normal(size=words + 81).astype(np.float32)
    file = save(tmp_path / "uniter.pt", tensors)
    loaded, filled = started(vcr_recipes.q2a_uniter, file, "uniter", encoder=dict(vocab_size=words))[1:]
    np.testing.assert_array_equal(loaded["vlbert", "token_embeddings"][:words], tensors[table][:words])
    segments = tensors["uniter.embeddings.token_type_embeddings.weight"]
    np.testing.assert_array_equal(loaded["vlbert", "segment_embeddings"], segments)
    assert ("vlbert", "token_embeddings") in filled
    assert prepare_conversion(file, num_heads=2).config.data.vocab == "bert-base-cased"


# --- Refusals -----------------------------------------------------------------------------------------------


def test_other_architecture(tmp_path):
    file = save(tmp_path / "oscar.bin", small_tensors("oscar_base"))
    recipe = pretrain_recipes.base_prec
    with pytest.raises(ValueError, match=r"oscar.bin has weights of oscar, but config.model.architecture is 'vlbert': "
                                         "set --config.model.architecture=oscar"):  # fmt: skip
        started(recipe, file, "vlbert")


def test_other_numbers_of_layers(tmp_path):
    file = save(tmp_path / "vilbert.bin", small_tensors("vilbert_beta_2layer_pretrain", layers=99))

    def recipe():
        config = pretrain_recipes.get_config("vilbert_base")
        config.model.two_stream.layers = (1, 1, 1)
        return config

    with pytest.raises(ValueError, match=r"layers are .*2 in encoder.c_layer \(here 1\).*: set config.model.two_"):
        started(recipe, file, "vilbert")


def test_a_head_that_no_model_reads(tmp_path, capsys):
    """A conversion says that another head is initialized, and a prediction that nothing reads this one."""
    tensors = {name: array for name, array in small_tensors("oscar_base").items() if not name.startswith("cls.")}
    width = tensors["bert.pooler.dense.bias"].shape[0]
    tensors |= {"classifier.weight": np.zeros((3, width), np.float32), "classifier.bias": np.zeros(3, np.float32)}
    file = save(tmp_path / "given.pt", tensors)  # of three classes, as visual entailment has
    assert main([str(file), str(tmp_path / "folder"), "--task=match", "--dry_run", *HEADS]) == 0
    assert "a model for match does not read the head classifier of" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps(dict(num_attention_heads=2)))
    with pytest.raises(ValueError, match=r"head classifier, which no model here reads; as config.init.checkpoint"):
        load_trained(file, 1)


@pytest.mark.parametrize("name", ["visualbert_original_vqa", "airsplay_lxmert_vqa"])
def test_heads_that_nothing_says(name, tmp_path, capsys):
    file = save(tmp_path / "given.th", small_tensors(name))
    output = convert(file, tmp_path / "converted", code=2, capsys=capsys)
    assert "put its config.json (num_attention_heads) next to the weights, or convert them with --num_heads" in output
    assert output.count("\n") == 1 and not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("visualbert_vqa", dict(bypass_transformer=True), "bypass_transformer True, but the weights next to it, read"),
        ("visualbert_vqa", dict(num_attention_heads="2"), "num_attention_heads '2'; it must be a whole number from 1"),
        ("visualbert_vqa", dict(num_attention_heads=True), "num_attention_heads True; it must be a whole number"),
        ("airsplay_lxmert_vqa", dict(num_attention_heads=[2]), "num_attention_heads [2]; it must be a whole number"),
        ("airsplay_lxmert_vqa", dict(model_type="bert"), "model_type bert, but the weights next to it"),
        ("airsplay_lxmert_vqa", dict(hidden_size=768), "hidden_size 768, but the weights"),
        ("airsplay_lxmert_vqa", dict(l_layers=9), "l_layers 9, but the weights"),
        ("vilbert_multitask_12in1", dict(v_num_attention_heads=2.0), "v_num_attention_heads 2.0; it must be"),
        ("vilbert_multitask_12in1", dict(v_num_hidden_layers=4), "v_num_hidden_layers 4, but the weights"),
        ("vilbert_multitask_12in1", dict(t_biattention_id=["10"]), "['10']; it must be a list of the numbers"),
        ("vilbert_multitask_12in1", dict(v_biattention_id=[0]), "v_biattention_id 1: take the config.json of these"),
        ("vilbert_multitask_12in1", dict(dynamic_attention=True), "dynamic_attention True; only False is supported"),
        ("vilbert_multitask_12in1", dict(fusion_method="max"), "fusion_method max; only mul or sum is supported"),
        ("vilbert_multitask_12in1", dict(fusion_method="sum"), "(config.json: fusion_method), but vilbert"),
    ],
)
def test_a_config_of_another_model(name, fields, said, tmp_path, capsys):
    file = save(tmp_path / "pytorch_model.bin", small_tensors(name, layers=99 if "vil" in name else 1))
    heads = dict.fromkeys(("num_attention_heads", "v_num_attention_heads", "bi_num_attention_heads"), 1)
    (tmp_path / "config.json").write_text(json.dumps(heads | fields))
    output = convert(file, tmp_path / "converted", code=2, capsys=capsys)
    assert said in output and "config.json" in output and output.count("\n") == 1


def test_dynamic_attention(tmp_path, capsys):
    tensors = small_tensors("vilbert_beta_2layer_pretrain", layers=99)
    tensors["bert.encoder.v_layer.0.attention.self.dyLinear_q.weight"] = np.zeros((2, 2), np.float32)
    output = convert(save(tmp_path / "given.bin", tensors), tmp_path / "converted", *HEADS, code=2, capsys=capsys)
    assert "has dynamic attention (bert.encoder.v_layer.0.attention.self.dyLinear_q.weight)" in output


def test_copies_that_differ(tmp_path, capsys):
    tensors = small_tensors("uniter_base")
    tensors["feat_regress.weight"] = tensors["feat_regress.weight"] + 1
    output = convert(save(tmp_path / "given.pt", tensors), tmp_path / "converted", *HEADS, code=2, capsys=capsys)
    assert "feat_regress.weight differs from bert.img_embeddings.img_linear.weight" in output


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("uniter_base_vcr", "choice", "matched"),
        ("vilbert_multitask_12in1", "match", "matched"),
        ("uniter_base", "caption", "matched"),
        ("vilbert_multitask_12in1", "caption", "has two streams"),
        ("uniter_base", "mixture", "give one of the other tasks with --task"),
    ],
)
def test_a_start_for_every_task(name, task, said, tmp_path, capsys):
    """Weights become the start of a model for any task, or one line says why not."""
    file = save(tmp_path / "given.pt", small_tensors(name, layers=99 if "vil" in name else 1))
    code = 0 if said == "matched" else 2
    output = convert(file, tmp_path / "folder", f"--task={task}", "--dry_run", *HEADS, code=code, capsys=capsys)
    assert said in output and (code == 0 or output.count("\n") == 1)


def test_no_class_of_hugging_face(tmp_path, capsys):
    file = save(tmp_path / "uniter.pt", small_tensors("uniter_base_vqa"))
    output = convert(file, tmp_path / "folder", "--format=hf", *HEADS, code=2, capsys=capsys)
    assert "Hugging Face has no class of uniter for answer" in output and not (tmp_path / "folder").exists()


@pytest.mark.parametrize("question, field, value", [
    ("choice", "task", "choice"), ("answer", "model.two_stream.task_number", 1),
    ("region", "model.grounding_head", "linear"), ("match", "model.two_stream.task_number", 8),
])  # fmt: skip
def test_a_file_with_a_stored_config_answers_for_each_of_its_heads(question, field, value, tmp_path):
    """The task of the run is read first; for another one, its head and the fields that depend on it are read."""
    file = save(tmp_path / "given.bin", small_tensors("vilbert_multitask_12in1", layers=99))
    (tmp_path / "config.json").write_text(json.dumps(
        dict(num_attention_heads=2, v_num_attention_heads=1, bi_num_attention_heads=1)
    ))  # fmt: skip
    task = ("--task=choice", "--partial") if question == "choice" else ()
    convert(file, tmp_path / "with.safetensors", *task)
    source = read_weights(tmp_path / "with.safetensors")
    assert source.task == (question if task else "pretrain")
    config, graphdef, state = load_trained(tmp_path / "with.safetensors", 1, question)
    assert config.task == question
    block = config
    for part in field.split("."):
        block = block[part]
    assert block == value
