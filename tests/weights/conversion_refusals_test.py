"""Test that errors of the conversion tool are one line, write no file and run no code of a file."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers import ROOT
from tests.helpers.weights_case import fill, fine_tuned, official_shapes, run, save_model, shrunk
from vlbert_jax.weights import export
from vlbert_jax.weights.read import read_weights

torch = pytest.importorskip("torch")


class Code:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def small_model(folder: Path) -> tuple[Path, dict]:
    tensors = fill(shrunk(official_shapes("base_prec")))
    return save_model(folder / "good.model", tensors), tensors


def refused(folder: Path, capsys, source, *options, match: str):
    """Check that a conversion ends with status 2 and one line with `match`, and writes nothing."""
    before = sorted(folder.rglob("*"))
    output = run(source, folder / "target", "--num_heads=4", *options, capsys=capsys, code=2).strip().splitlines()
    assert output[-1].startswith("error: ") and match in output[-1], output[-1]
    assert sorted(folder.rglob("*")) == before


def test_files_with_code_are_refused(tmp_path, capsys):
    flag = tmp_path / "flag"
    for legacy in (False, True):
        torch.save({"x": Code(flag)}, tmp_path / "code.model", _use_new_zipfile_serialization=not legacy)
        refused(tmp_path, capsys, tmp_path / "code.model", match="would run code")
    (tmp_path / "code.pkl").write_bytes(pickle.dumps(Code(flag)))
    refused(tmp_path, capsys, tmp_path / "code.pkl", match="code.pkl")
    assert not flag.exists()


def test_numpy_scalars_next_to_the_weights_are_read(tmp_path):
    """A NumPy scalar, such as the best score of a trainer, is not an error."""
    path = save_model(tmp_path / "m.model", fill(shrunk(official_shapes("base_prec"))), best=np.float64(0.5))
    assert read_weights(path).kind == "vlbert"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(kind, tmp_path, capsys):
    tensors = fill(shrunk(official_shapes("base_prec")))
    path = tmp_path / f"cut.{kind}"
    if kind == "safetensors":
        save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, path)
    else:
        save_model(path, tensors, legacy=kind == "legacy")
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path, capsys, path, match=str(path))


def test_files_without_weights(tmp_path, capsys):
    (tmp_path / "text.model").write_text("not a checkpoint at all\n")
    refused(tmp_path, capsys, tmp_path / "text.model", match="neither a PyTorch, safetensors nor Caffe file")
    (tmp_path / "empty.model").write_bytes(b"")
    refused(tmp_path, capsys, tmp_path / "empty.model", match="neither a PyTorch")
    (tmp_path / "folder").mkdir()
    refused(tmp_path, capsys, tmp_path / "folder", match="contains neither a vlbert_jax checkpoint nor")
    refused(tmp_path, capsys, tmp_path / "absent.model", match="no weights at")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path, capsys, tmp_path / "list.pt", match="holds a list")
    save_file({"foreign": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    refused(tmp_path, capsys, tmp_path / "foreign.safetensors", match="its tensors: foreign")


def test_tensors_that_do_not_fit(tmp_path, capsys):
    path, tensors = small_model(tmp_path)
    name = "module.vlbert.encoder.layer.1.attention.self.query.weight"
    save_model(path, tensors | {name: np.zeros((3, 3), np.float32)})
    refused(tmp_path, capsys, path, match="query.weight has shape (3, 3), the model wants (48, 48)")
    save_model(path, {n: a for n, a in tensors.items() if n != name})
    refused(tmp_path, capsys, path, match=f"lacks 1 tensors: {name.removeprefix('module.')}")
    run(path, tmp_path / "partial", "--partial", "--num_heads=4")
    assert np.isfinite(read_weights(tmp_path / "partial").tensors[name.removeprefix("module.")]).all()


def test_an_untied_decoder(tmp_path, capsys):
    path, tensors = small_model(tmp_path)
    decoder = next(name for name in tensors if name.endswith("decoder.weight"))
    save_model(path, tensors | {decoder: tensors[decoder] + 1})
    refused(tmp_path, capsys, path, match="not tied")


def test_c5_under_two_names(tmp_path, capsys):
    tensors = fill(shrunk(official_shapes("base_e2e")))
    name = "module.image_feature_extractor.head.0.1.conv2.weight"
    path = save_model(tmp_path / "two.model", tensors | {name: tensors[name] + 1})
    refused(tmp_path, capsys, path, match="head.0.1.conv2.weight differs from")


def test_values_beyond_half_precision(tmp_path, capsys):
    path, tensors = small_model(tmp_path)
    large = np.full_like(tensors["module.vlbert.embedding_LayerNorm.bias"], 1e5)
    save_model(path, tensors | {"module.vlbert.embedding_LayerNorm.bias": large})
    refused(tmp_path, capsys, path, "--dtype=float16", match="beyond the range of float16")


def test_a_config_of_another_model(tmp_path, capsys):
    """RoBERTa has the tensor names of BERT, so the fields of config.json are checked."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=50)
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    config = tmp_path / "bert/config.json"
    good = json.loads(config.read_text())
    for field, value in (("model_type", "roberta"), ("hidden_act", "relu"), ("num_hidden_layers", 3)):
        config.write_text(json.dumps(good | {field: value}))
        refused(tmp_path, capsys, tmp_path / "bert", match=f"says {field} {value}")
    config.write_text("{")
    refused(tmp_path, capsys, tmp_path / "bert", match="config.json is damaged: it is not JSON")


def test_damaged_vlbert_jax_folders(tmp_path, capsys):
    path, _ = small_model(tmp_path)
    run(path, tmp_path / "converted", "--num_heads=4")
    config = (tmp_path / "converted/config.json").read_text()
    (tmp_path / "converted/config.json").write_text('{"model": {}}')
    refused(tmp_path, capsys, tmp_path / "converted", match="converted cannot be read: KeyError: 'encoder'")
    (tmp_path / "converted/config.json").write_text(config)
    for file in (tmp_path / "converted/state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    # Threads of Orbax may print errors after the call, so the tool runs in a separate process.
    command = [sys.executable, "-m", "vlbert_jax.convert", str(tmp_path / "converted"), str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""})
    found = f"error: {tmp_path}/converted is damaged: {tmp_path}/converted/state/"
    assert done.returncode == 2 and found in done.stderr and "bytes instead of" in done.stderr, done.stderr
    (tmp_path / "converted/checksums.json").unlink()  # as earlier versions wrote the folder
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 2 and f"error: {tmp_path}/converted/state is damaged" in done.stderr, done.stderr
    assert not (tmp_path / "target").exists()


def test_a_vocabulary_of_another_size(tmp_path, capsys):
    path, tensors = small_model(tmp_path)
    bias = "module.vlbert.mlm_head.predictions.bias"
    save_model(path, tensors | {bias: np.zeros(17, np.float32)})
    refused(tmp_path, capsys, path, match="predictions.bias has shape (17,), the model wants (476,)")


def test_the_wrong_task(tmp_path, capsys):
    path = save_model(tmp_path / "vqa.model", fine_tuned("answer"))
    refused(tmp_path, capsys, path, "--task=vcr", match="weights of a model for answer")


def test_nan_and_unknown_tensors(tmp_path, capsys):
    """NaN and unknown tensors are reported; with --strict they are errors."""
    path, tensors = small_model(tmp_path)
    bad = np.array(tensors["module.vlbert.embedding_LayerNorm.bias"])
    bad[0] = np.nan
    odd = {"module.vlbert.embedding_LayerNorm.bias": bad, "module.vlbert.invented.weight": np.ones(2, np.float32)}
    save_model(path, tensors | odd)
    refused(tmp_path, capsys, path, "--strict", match="vlbert.invented.weight is unknown")
    refused(tmp_path, capsys, path, "--strict", match="embedding_LayerNorm.bias has NaN")
    output = run(path, tmp_path / "out.pt", "--num_heads=4", capsys=capsys)
    assert "dropped: unknown" in output and "warning: vlbert.embedding_LayerNorm.bias has NaN" in output


def test_targets(tmp_path, capsys):
    path, tensors = small_model(tmp_path)
    (tmp_path / "target").mkdir()
    (tmp_path / "target/other").write_text("other")
    refused(tmp_path, capsys, path, match="target exists; choose another target, or replace it with --overwrite")
    refused(tmp_path, capsys, path, "--overwrite", match="contains other files")
    output = run(path, path, "--overwrite", capsys=capsys, code=2)
    assert "is or contains the source" in output and path.exists()
    (tmp_path / "target/other").unlink()
    output = run(path, tmp_path / "out.tar", capsys=capsys, code=2)
    assert "has the suffix '.tar', which is not of a known format" in output
    before = sorted(tmp_path.rglob("*"))
    output = run(path, tmp_path / "new", "--dry-run", "--num_heads=4", capsys=capsys)
    assert "matched" in output and sorted(tmp_path.rglob("*")) == before
    for form in ("orbax", "orbax", "pt", "safetensors", "hf", "orbax"):  # folders by files and the reverse
        run(path, tmp_path / "target", "--overwrite", "--num_heads=4", f"--format={form}")
        assert read_weights(tmp_path / "target").kind == ("bert" if form == "hf" else "vlbert")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    run(path, tmp_path / "link", "--overwrite", "--num_heads=4")
    assert (tmp_path / "link").is_symlink() and read_weights(tmp_path / "target").kind == "vlbert"
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    path, _ = small_model(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def disk_full(*_):
        raise OSError("no space left on device")

    for form, writer in (("orbax", "_write_config"), ("safetensors", "_umask"), ("hf", "write_safetensors")):
        with monkeypatch.context() as patched:
            patched.setattr(export, writer, disk_full)
            run(path, tmp_path / "target", f"--format={form}", "--num_heads=4", code=2)
        assert sorted(tmp_path.rglob("*")) == before
