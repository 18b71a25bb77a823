"""Around the weights: tokenizers of exported folders, wrapped state dicts, and disks that are full."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_prep.scenes.downstream import vocabulary
from tests.helpers import HANG_SECONDS, ROOT
from tests.helpers.weights_case import fill, official_shapes, run, save_model, shrunk
from vlbert_jax.data.tokenizer import load_tokenizer, write_tokenizer
from vlbert_jax.weights.containers import WRAPPERS
from vlbert_jax.weights.read import read_weights

torch = pytest.importorskip("torch")
import transformers  # noqa: E402 (it looks for torch)

TEXTS = ("What color is the BALL?", "the unknown-word, left of a cup's fish", "")


def write_words(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    return folder / "vocab.txt"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return a folder of Hugging Face with the weights of a small BERT."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertForPreTraining(config).save_pretrained(folder)
    return folder


def check_tokenizer(folder, vocab):
    """Compare the exported tokenizer with the one of runs: plain ids, and those of a pair with its special tokens."""
    ours, theirs = load_tokenizer(str(vocab), 256), transformers.AutoTokenizer.from_pretrained(folder)
    words = [sum(ours.words(text), []) for text in TEXTS]
    assert len(theirs) == 256 and len(words[0]) == 6
    for text, ids in zip(TEXTS, words, strict=True):
        assert theirs(text, add_special_tokens=False).input_ids == ids
    pair = theirs(*TEXTS[:2])
    assert pair.input_ids == [ours.cls_id, *words[0], ours.sep_id, *words[1], ours.sep_id]
    assert pair.token_type_ids == [0] * (len(words[0]) + 2) + [1] * (len(words[1]) + 1)
    assert theirs.mask_token_id == ours.mask_id
    assert (folder / "vocab.txt").read_text() == vocab.read_text()


def test_a_folder_of_hugging_face_has_the_tokenizer(bert, tmp_path, capsys):
    """That of the folder, of the option, or of the workdir that the weights are from."""
    vocab = write_words(tmp_path / "words")
    said = run(bert, tmp_path / "without", "--format=hf", capsys=capsys)
    assert "has no tokenizer, so none is written; --vocab=vocab.txt adds one" in said
    assert not (tmp_path / "without/vocab.txt").exists()
    said = run(bert, tmp_path / "option", "--format=hf", f"--vocab={vocab}", capsys=capsys)
    assert "warning" not in said
    shutil.copytree(bert, tmp_path / "complete")
    write_words(tmp_path / "complete")
    run(tmp_path / "complete", tmp_path / "own", "--format=hf")
    run(bert, tmp_path / "workdir", "--task=pretrain")
    (tmp_path / "workdir/vocabularies").mkdir()
    write_tokenizer(load_tokenizer(str(vocab), 256), tmp_path / "workdir/vocabularies/vocab")
    run(tmp_path / "workdir", tmp_path / "run", "--format=hf")
    for name in ("option", "own", "run"):
        check_tokenizer(tmp_path / name, vocab)
    run(bert, tmp_path / "own", "--format=hf", "--overwrite", f"--vocab={vocab}")


def test_a_tokenizer_of_another_size_is_refused(bert, tmp_path, capsys):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(vocabulary()[:-1]) + "\n")
    said = run(bert, tmp_path / "out", "--format=hf", f"--vocab={vocab}", capsys=capsys, code=2)
    assert "has 255 tokens" in said and not (tmp_path / "out").exists()
    said = run(bert, tmp_path / "out", f"--vocab={vocab}", capsys=capsys, code=2)
    assert "--vocab is for --format=hf" in said


@pytest.mark.parametrize("wrappers", [*((name,) for name in WRAPPERS), ("model", "state_dict")], ids="-".join)
def test_wrapped_state_dicts(wrappers, tmp_path):
    tensors = fill(shrunk(official_shapes("base_prec")))
    plain = read_weights(save_model(tmp_path / "plain.model", tensors))
    content = {name: torch.from_numpy(np.asarray(array)) for name, array in tensors.items()}
    for name in reversed(wrappers):
        content = {name: content, "optimizer": {"state": torch.ones(3)}, "epoch": 4}
    torch.save(content, tmp_path / "wrapped.pt")
    wrapped = read_weights(tmp_path / "wrapped.pt")
    assert wrapped.kind == "vlbert" and wrapped.tensors.keys() == plain.tensors.keys()
    for name, array in plain.tensors.items():
        np.testing.assert_array_equal(wrapped.tensors[name], array)
    assert len(wrapped.dropped["optimizer state"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["out.safetensors", "out.pt", "folder", "--format=hf"])
def test_a_full_disk_is_one_line(target, bert, tmp_path):
    """On a small file system; nothing is left there."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system gives no mount namespace")
    (tmp_path / "small").mkdir()
    place = f"{tmp_path}/small/out --format=hf" if target == "--format=hf" else f"{tmp_path}/small/{target}"
    command = f"{sys.executable} -m vlbert_jax.convert {bert} {place} --task=pretrain"
    steps = f"mount -t tmpfs -o size=100k tmpfs {tmp_path}/small; {command}; status=$?; ls -A {tmp_path}/small; "
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{steps} exit $status"],
        capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: no space left on device while writing {tmp_path}/small/")
    assert done.stdout.splitlines()[-1].startswith(("newly", "dropped", "matched", "kept"))  # of the table
