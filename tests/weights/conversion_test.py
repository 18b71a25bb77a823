"""Test conversions of every source to every format and back, and new parameters."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.helpers import weights_case
from tests.helpers.weights_case import caffe_file, fill, fine_tuned, official_shapes, run, save_model, shrunk
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.weights import vlbert_names
from vlbert_jax.weights.conversion import arrays_of, model_config, prepare_conversion
from vlbert_jax.weights.read import Weights, flatten_tree, read_weights
from vlbert_jax.weights.resnet_names import official_to_resnet

PRETRAIN = pretrain.PretrainTask()

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VARIANTS = ["base_e2e", "base_prec", "large_e2e", "large_prec"]
ODD = dict(
    hidden_size=96, num_hidden_layers=3, num_attention_heads=6, intermediate_size=200, vocab_size=333,
    max_position_embeddings=40,
)  # fmt: skip
NARROW = dict(ODD, hidden_size=20, num_attention_heads=4, vocab_size=128, num_hidden_layers=1)


def load_model(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True)["state_dict"].items()}


def assert_equal(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def bert(folder: Path, seed: int = 0, **sizes) -> Path:
    torch.manual_seed(seed)
    model = transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    for parameter in model.parameters():  # the initial biases and norms are constant
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


# --- Round trips ----------------------------------------------------------------------------------


# How a file is packed does not depend on the model in it.
@pytest.mark.parametrize(("variant", "legacy"), list(zip(VARIANTS, [False, True, True, False], strict=True)))
def test_official_to_vlbert_jax_and_back(variant, legacy, tmp_path, capsys):
    """All tensors of the released models are equal after a round trip through files."""
    tensors = fill(shrunk(official_shapes(variant)))
    source = save_model(tmp_path / "given.model", tensors, legacy, optimizer={"state": {0: {"m": torch.zeros(3)}}})
    output = run(source, tmp_path / "converted", "--num_heads=4", capsys=capsys)
    assert "VL-BERT, pretrain in pytorch" in output and "newly" not in output and "unknown" not in output
    assert "dropped: optimizer state" in output
    run(tmp_path / "converted", tmp_path / "back.model", "--strict")
    assert_equal(load_model(tmp_path / "back.model"), tensors)
    run(tmp_path / "converted", tmp_path / "back.safetensors")
    assert_equal(load_file(tmp_path / "back.safetensors"), tensors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_released_size(variant):
    """Each of the four models converts at full size; each tensor has its own constant value."""
    shapes = official_shapes(variant)
    tensors = {
        vlbert_names.plain_name(name): np.broadcast_to(np.int16(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    tensors[vlbert_names.DECODER] = tensors.get(vlbert_names.WORDS)
    source = Weights(
        variant,
        "vlbert",
        "pytorch",
        {name: a for name, a in tensors.items()
         if vlbert_names.reason_not_wanted(name) not in ("duplicate", "batch counter")},
    )
    config = model_config(source, "pretrain")
    state = nnx.state(nnx.eval_shape(lambda: PRETRAIN.build_model(config, nnx.Rngs(0))))
    flat = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    found = vlbert_names.match_tensors(source.tensors, flat, config.model.encoder.vocab_size)
    assert found.missing == found.unused == []
    for path, shape in flat.items():
        array = np.empty(shape, np.int16)
        found.fill(array, path, source.tensors)
        for entry in found.entries[path]:
            back, given = entry.to_official(entry.part(array)), source.tensors[entry.official]
            assert back.shape == given.shape and (back == given.flat[0]).all(), entry.official


@pytest.mark.parametrize("task", ["answer", "choice", "region"])
def test_fine_tuned_models(task, tmp_path, capsys):
    tensors = fine_tuned(task)
    source = save_model(tmp_path / "given.model", tensors)
    output = run(source, tmp_path / "converted", "--num_heads=4", capsys=capsys)
    assert f"VL-BERT, {task} in" in output
    run(tmp_path / "converted", tmp_path / "back.pt", "--strict")
    assert_equal(load_model(tmp_path / "back.pt"), tensors)
    assert json.loads((tmp_path / "converted/config.json").read_text())["task"] == task


def test_half_becomes_single_precision(tmp_path):
    tensors = fill(shrunk(official_shapes("base_prec")))
    halves = {name: a.astype(np.float16) for name, a in tensors.items()}
    run(save_model(tmp_path / "half.model", halves), tmp_path / "single.pt", "--num_heads=4")
    assert_equal(load_model(tmp_path / "single.pt"), {n: a.astype(np.float32) for n, a in halves.items()})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_precisions(dtype, tmp_path):
    tensors = fill(shrunk(official_shapes("base_prec")))
    source = save_model(tmp_path / "given.model", tensors)
    for target in ("half.pt", "half.safetensors"):
        run(source, tmp_path / target, f"--dtype={dtype}", "--num_heads=4")
        read = read_weights(tmp_path / target).tensors[vlbert_names.SEGMENTS]
        expected = tensors[f"module.{vlbert_names.SEGMENTS}"].astype(np.dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("sizes", [ODD, NARROW], ids=["odd", "narrow"])
def test_hugging_face_to_vlbert_jax_and_back(sizes, tmp_path):
    source = bert(tmp_path / "bert", **sizes)
    run(source, tmp_path / "converted")
    run(tmp_path / "converted", tmp_path / "back", "--format=hf", "--dtype=float32")
    assert_equal(load_file(tmp_path / "back/model.safetensors"), load_file(source / "model.safetensors"))
    model = transformers.BertForPreTraining.from_pretrained(tmp_path / "back")
    given = transformers.BertForPreTraining.from_pretrained(source)
    for (name, found), (_, expected) in zip(model.state_dict().items(), given.state_dict().items(), strict=True):
        assert torch.equal(found, expected), name
    config = transformers.BertModel.from_pretrained(tmp_path / "back").config
    assert config.num_attention_heads == sizes["num_attention_heads"]


@pytest.mark.parametrize("segments", [1, 4])
def test_a_bert_without_heads_and_with_other_segments(segments, tmp_path):
    """Parameters initialized in the vlbert_jax folder are not exported as weights."""
    model = transformers.BertModel(transformers.BertConfig(**ODD, type_vocab_size=segments), add_pooling_layer=False)
    model.save_pretrained(tmp_path / "bert")
    given = load_file(tmp_path / "bert/model.safetensors")
    run(tmp_path / "bert", tmp_path / "converted")
    run(tmp_path / "converted", tmp_path / "back", "--format=hf")
    assert_equal(load_file(tmp_path / "back/model.safetensors"), {f"bert.{name}": a for name, a in given.items()})


def test_content_determines_the_file_format(tmp_path):
    """The suffix of a file is ignored.

    The length of a safetensors header may start with the first bytes of a pickle or zip file.
    """
    tensors = fill(shrunk(official_shapes("base_prec")))
    save_model(tmp_path / "torch.safetensors", tensors)
    assert read_weights(tmp_path / "torch.safetensors").container == "pytorch"
    for name, first in (("pickle.bin", b"\x80"), ("zip.bin", b"PK")):
        for pad in range(1, 40_000):
            header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"x": "y" * pad}}
            text = json.dumps(header).encode()
            if len(text).to_bytes(8, "little").startswith(first):
                break
        (tmp_path / name).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(ValueError, match="its tensors: w"):
            read_weights(tmp_path / name)


def test_files_hold_complete_models(tmp_path, capsys):
    """A file converted from BERT or for a task has every tensor and can be read again."""
    source = bert(tmp_path / "bert", **ODD)
    run(source, tmp_path / "whole.safetensors")
    assert prepare_conversion(tmp_path / "whole.safetensors", num_heads=6).absent == []
    pretrained = save_model(tmp_path / "given.model", fill(shrunk(official_shapes("base_e2e"))))
    for task in ("answer", "choice", "region"):
        run(pretrained, tmp_path / f"{task}.pt", f"--task={task}", "--num_heads=4")
        names_of_task = fine_tuned(task).keys() if task != "answer" else None
        written = load_model(tmp_path / f"{task}.pt")
        assert names_of_task is None or written.keys() == names_of_task
        assert read_weights(tmp_path / f"{task}.pt").task == task


def test_bert_files_of_all_kinds(tmp_path):
    """Old names, names without prefix, models without heads and shards give the same weights."""
    folder = bert(tmp_path / "bert", **ODD)
    state = {name: torch.from_numpy(a) for name, a in load_file(folder / "model.safetensors").items()}
    expected = read_weights(folder).tensors
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
        for n, a in state.items()
    }
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    torch.save(old, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    read = read_weights(tmp_path / "pytorch_model.bin")
    assert read.num_heads == 6  # from the config next to the file
    assert_equal(read.tensors, expected)

    bare = {n.removeprefix("bert."): a for n, a in state.items() if n.startswith("bert.")}
    torch.save(bare | {"embeddings.position_ids": torch.arange(40)[None]}, tmp_path / "bare.bin")
    read = prepare_conversion(tmp_path / "bare.bin")
    assert read.unknown == [] and read.absent == []
    assert_equal({n: read.tensors[n] for n in read.found.matched}, {n: expected[n] for n in read.found.matched})

    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "config.json").write_text((folder / "config.json").read_text())
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(state)}
    for part in set(where.values()):
        save_file({name: state[name].numpy() for name in state if where[name] == part}, parts / part)
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    read = read_weights(parts)
    assert_equal(read.tensors, expected)
    assert read.num_heads == 6
    (parts / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors, which the folder does not contain"):
        read_weights(parts)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(), ODD, NARROW], ids=["base", "odd", "narrow"])
def test_forward_equals_hugging_face(sizes, tmp_path):
    """Hidden states and MLM logits of text equal those of PyTorch's BERT within 1e-5."""
    source = bert(tmp_path / "bert", **sizes)
    run(source, tmp_path / "converted")
    conversion = prepare_conversion(tmp_path / "converted")
    params, constants = arrays_of(conversion, None)
    model = nnx.eval_shape(lambda: PRETRAIN.build_model(conversion.config, nnx.Rngs(0)))
    graphdef, abstract = nnx.split(model)
    flat = {**flatten_tree({"params": params}), **flatten_tree({"constants": constants})}
    for path, variable in nnx.to_flat_state(abstract):
        variable.set_value(jnp.asarray(flat[tuple(map(str, path))]))
    model = nnx.merge(graphdef, abstract)

    torch_model = transformers.BertForPreTraining.from_pretrained(source).eval()
    rng, vocab_size = np.random.default_rng(0), torch_model.config.vocab_size
    ids, segments = rng.integers(0, vocab_size, (2, 24)), rng.integers(0, 2, (2, 24))
    mask = np.arange(24)[None] < np.array([[24], [17]])
    with torch.no_grad():
        given = [torch.from_numpy(np.asarray(a, np.int64)) for a in (ids, mask, segments)]
        out = torch_model(given[0], given[1], given[2], output_hidden_states=True)

    def rows(array):
        return jnp.asarray(array, jnp.int32)[:, None]

    positions = np.broadcast_to(np.arange(24), ids.shape)
    states = model.vlbert(
        rows(ids), rows(np.full_like(ids, -1)), rows(segments), rows(positions), jnp.asarray(mask)[:, None], None
    )
    real = mask[..., None]
    np.testing.assert_allclose(states[:, 0] * real, out.hidden_states[-1].numpy() * real, rtol=0, atol=1e-5)
    logits = model.mlm_logits(states, rows(positions))[:, 0, :, :vocab_size]
    np.testing.assert_allclose(logits * real, out.prediction_logits.numpy() * real, rtol=0, atol=1e-5)


def resnet(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a small ResNet with torchvision's names."""
    tensors = {vlbert_names.plain_name(name): a for name, a in fill(shrunk(official_shapes("base_e2e")), seed).items()}
    return {name: np.array(a) for name, a in official_to_resnet(tensors, {}).items()}


def test_resnet_files(tmp_path, capsys):
    given = resnet()
    classifier = {"fc.weight": np.zeros((10, 4), np.float32), "fc.bias": np.zeros(10, np.float32)}
    torch.save({n: torch.from_numpy(a) for n, a in (given | classifier).items()}, tmp_path / "resnet.model")
    output = run(tmp_path / "resnet.model", tmp_path / "out.safetensors", capsys=capsys)
    assert "ResNet in pytorch" in output and "dropped: ImageNet classifier" in output
    out = load_file(tmp_path / "out.safetensors")
    assert_equal(out, given)
    run(tmp_path / "resnet.model", tmp_path / "hf", "--format=hf", code=2)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("form", [{}, dict(legacy=True), dict(legacy=True, old_layers=True)])
def test_caffe_detector(form, tmp_path, capsys):
    """A Caffe detector gives a ResNet with torchvision's names; other layers are reported.

    The statistics are divided by their factor.
    """
    given = {name: a for name, a in resnet().items() if "num_batches" not in name}
    layers = {"cls_score": [np.ones((3, 2), np.float32), np.ones(3, np.float32)]}
    for line in (weights_case.NAMES / "names_caffe_to_torch.tsv").read_text().splitlines():
        layer, torch_name = line.split("[")[0].split("\t")[0], line.split("\t")[2]
        prefix = torch_name.removesuffix(".running_*").removesuffix(".running_mean/var (divide by blob2)")
        if f"{prefix}.running_mean" in given:
            mean, variance = (given[f"{prefix}.running_{leaf}"] for leaf in ("mean", "var"))
            layers[layer] = [mean * 8, variance * 8, np.full(1, 8, np.float32)]
        elif (affine := torch_name.removesuffix(".weight/bias")) != torch_name and f"{affine}.weight" in given:
            layers[layer] = [given[f"{affine}.{leaf}"] for leaf in ("weight", "bias")]
        elif torch_name in given:
            layers[layer] = [given[torch_name]]
    (tmp_path / "net.caffemodel").write_bytes(caffe_file(layers, **form))
    output = run(tmp_path / "net.caffemodel", tmp_path / "out.pt", capsys=capsys)
    assert "ResNet in caffe" in output and "detector's own layer" in output and "cls_score[0]" in output
    out = {name: tensor.numpy() for name, tensor in torch.load(tmp_path / "out.pt", weights_only=True).items()}
    assert_equal(out, given)


def test_a_model_from_a_resnet(tmp_path, capsys):
    (tmp_path / "net.caffemodel").write_bytes(caffe_file({"conv1": [np.zeros((4, 3, 7, 7), np.float32)]}))
    output = run(tmp_path / "net.caffemodel", tmp_path / "out.pt", capsys=capsys, code=2)
    assert "holds no weights of BERT, VL-BERT, its siblings or ResNet" in output
    safe = tmp_path / "resnet.safetensors"
    save_file(resnet(), safe)
    conversion = prepare_conversion(safe)
    assert conversion.config.data.features == "image" and conversion.absent == []
    assert conversion.config.model.region_head.blocks == (2, 2, 2, 3)


@pytest.mark.slow
def test_safetensors_need_no_torch(tmp_path):
    """Safetensors are converted in a process that cannot import PyTorch."""
    source = bert(tmp_path / "bert", **ODD)
    code = (
        "import sys; sys.modules['torch'] = None; from vlbert_jax import convert; sys.exit(convert.main(sys.argv[1:]))"
    )
    env = os.environ | {"XLA_FLAGS": ""}
    for arguments in ([source, tmp_path / "converted"], [tmp_path / "converted", tmp_path / "back", "--format=hf"]):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=env)
    assert_equal(load_file(tmp_path / "back/model.safetensors"), load_file(source / "model.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "converted"), str(tmp_path / "x.pt")], capture_output=True, env=env
    )
    command = b"run pip install torch --index-url https://download.pytorch.org/whl/cpu"
    assert done.returncode == 2 and command in done.stderr


# --- New parameters -------------------------------------------------------------------------------


def test_new_parameters(tmp_path, capsys):
    """New visual parameters have standard deviation 0.02, and new gains of visual norms are 0."""
    output = run(bert(tmp_path / "bert", **ODD), tmp_path / "converted", capsys=capsys)
    assert "newly initialized" in output and "mrc_head/classes" in output
    tensors = read_weights(tmp_path / "converted").tensors
    assert not tensors["vlbert.visual_ln_text.weight"].any() and not tensors["vlbert.visual_ln_object.weight"].any()
    for name in ("vlbert.mvrc_head.transform.dense.weight", "vlbert.end_embedding.weight", vlbert_names.SEGMENTS):
        new = tensors[name][2:] if name == vlbert_names.SEGMENTS else tensors[name]
        assert np.isfinite(new).all() and 0.013 < new.std() < 0.027, name


@pytest.mark.parametrize("task", ["answer", "choice", "region"])
def test_pretraining_to_a_task(task, tmp_path, capsys):
    tensors = fill(shrunk(official_shapes("base_e2e")))
    source = save_model(tmp_path / "given.model", tensors)
    output = run(source, tmp_path / "start", f"--task={task}", "--num_heads=4", capsys=capsys)
    assert "newly initialized" in output and "dropped: head of another task" in output
    started = read_weights(tmp_path / "start")
    assert started.task == task
    expected = vlbert_names.warm_start({vlbert_names.plain_name(name): a for name, a in tensors.items()}, task)
    for name in expected.keys() & started.tensors.keys():
        np.testing.assert_array_equal(started.tensors[name], expected[name], err_msg=name)
    pooler = "vlbert.pooler.dense.weight"
    assert (pooler in started.tensors) == (task == "choice")


def test_sizes_are_read_from_the_file(tmp_path):
    source = bert(tmp_path / "bert", **ODD)
    conversion = prepare_conversion(source)
    encoder = conversion.config.model.encoder
    assert (encoder.hidden_size, encoder.num_layers, encoder.num_heads, encoder.mlp_size) == (96, 3, 6, 200)
    assert (encoder.vocab_size, encoder.max_positions, encoder.num_segments) == (333, 40, 3)
    assert prepare_conversion(source, num_heads=3).config.model.encoder.num_heads == 3
    bare = dataclasses.replace(read_weights(source), num_heads=None)
    assert model_config(bare, "pretrain").model.encoder.num_heads == 1  # 96 is not a multiple of 64
    with pytest.raises(ValueError, match="7 heads do not divide 96"):
        prepare_conversion(source, num_heads=7)
