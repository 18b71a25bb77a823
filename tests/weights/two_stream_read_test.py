"""Files of LXMERT and ViLBERT in the forms in which they are published, and what is refused."""

import json
import re

import numpy as np
import pytest
from flax import nnx

from tests.helpers import GOLDEN
from tests.helpers.golden_case import Case, flat
from vlbert_jax.weights import two_stream_names as names
from vlbert_jax.weights.export import write_safetensors
from vlbert_jax.weights.two_stream_read import read_two_stream, two_stream_model

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["lxmert_pretrain", "lxmert_qa", "lxmert_nlvr2", "vilbert_beta_tasks"])
def case(request):
    return Case(GOLDEN / f"two_stream/{request.param}_a.json")


def write(path, tensors, settings=None):
    """Write a PyTorch file as the official code does, and config.json."""
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}, path)
    if settings is not None:
        (path.parent / "config.json").write_text(json.dumps(settings))
    return path


def wrapped(tensors):
    """Return the tensors of LXMERT by the names of the official code with data parallelism."""
    if any(name.startswith("lxrt_encoder.") for name in tensors):  # a fine-tuned model
        return {name.replace("model.bert.", "model.module.bert."): array for name, array in tensors.items()}
    return {"module." + re.sub(r"^lxmert\.", "bert.", name): array for name, array in tensors.items()}


def test_a_file_in_any_form_is_the_same_model(case, tmp_path):
    settings = case.meta["config"]
    read = read_two_stream(write(tmp_path / "pytorch_model.bin", case.sd, settings))
    other = read_two_stream(write(tmp_path / "LXRT.pth", wrapped(case.sd)))
    write_safetensors(tmp_path / "model.safetensors", case.sd)
    safe = read_two_stream(tmp_path)
    assert (read.container, other.container, safe.container) == ("pytorch", "pytorch", "safetensors")
    assert read.family == case.path.name.split("_")[0]
    for weights in (other, safe):
        assert weights.config == read.config and weights.heads == read.heads and weights.dropped == read.dropped
        assert weights.tensors.keys() == read.tensors.keys()
        for name, array in read.tensors.items():
            np.testing.assert_array_equal(weights.tensors[name], array, err_msg=name)
    assert set(read.dropped) <= {"duplicate", "never used by the official code"}
    model = two_stream_model(read, scan_layers=False)
    assert not model.two_stream.config.scan_layers
    ours = {path: np.asarray(array) for path, array in flat(nnx.state(model)).items()}
    back = names.official_two_stream(ours, read.config)
    assert back.keys() == read.tensors.keys()
    for name, array in read.tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def small():
    return Case(GOLDEN / "two_stream/lxmert_qa_a.json")


def test_the_number_of_heads_is_that_of_the_configuration(tmp_path):
    case = small()
    path = write(tmp_path / "model.pth", case.sd)
    assert read_two_stream(path).config.text.num_heads == 1  # 64 per head, but the width is 24
    (tmp_path / "official.json").write_text(json.dumps(case.meta["config"]))
    assert read_two_stream(path, tmp_path / "official.json").config.text.num_heads == 3


def test_damaged_sources_are_refused(tmp_path):
    case = small()
    lacking = {name: array for name, array in case.sd.items() if "pooler.dense.bias" not in name}
    with pytest.raises(ValueError, match=r"a.pth lacks pooler.dense.bias \(1 tensors\)"):
        read_two_stream(write(tmp_path / "a.pth", lacking))
    unknown = case.sd | {"lxmert.encoder.gate.weight": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"b.pth has tensors that no LXMERT or ViLBERT has: encoder.gate.weight"):
        read_two_stream(write(tmp_path / "b.pth", unknown))
    with pytest.raises(ValueError, match=r"c.pth: These are not tensors of LXMERT or ViLBERT"):
        read_two_stream(write(tmp_path / "c.pth", {"fc.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"hidden_act relu; only gelu"):
        read_two_stream(write(tmp_path / "d.pth", case.sd, dict(hidden_act="relu")))
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        read_two_stream(tmp_path / "e.pth")
