"""A workdir holds what predictions need: it answers in another place, without the data of its run."""

import json
import shutil

import pytest
import skimage

import vlbert_jax
from data_prep.build import build_scene_tasks
from tests.helpers.predict_case import WIDTH, shrunk
from vlbert_jax import convert, main
from vlbert_jax.data.tokenizer import load_tokenizer, write_tokenizer
from vlbert_jax.weights.stored_config import own_vocabularies

CAT = f"{skimage.data_dir}/chelsea.png"
QUESTION = "what color is the ball?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the config of a short run, its workdir, and an answer of it; then move the workdir and the data."""
    folder = tmp_path_factory.mktemp("run")
    build_scene_tasks(folder / "data", num_train=8, num_val=6, num_test=2, feature_width=WIDTH)
    fields = {"total_steps": 1, "eval_every_steps": 0, "data.embedded": "", "init.scratch": True, "report": False}
    config = shrunk("vqa", folder / "data", **fields)
    main.run(config, folder / "workdir", "train")
    answer = vlbert_jax.load(folder / "workdir", data_dir=folder / "data").answer(CAT, QUESTION)
    (folder / "data").rename(folder / "elsewhere")
    shutil.copytree(folder / "workdir", folder / "copy")
    shutil.rmtree(folder / "workdir")
    return config, folder, answer


@pytest.mark.slow
def test_a_copy_answers_from_any_folder_without_the_data(run, tmp_path, monkeypatch):
    _, folder, answer = run
    monkeypatch.chdir(tmp_path)
    assert vlbert_jax.load(folder / "copy").answer(CAT, QUESTION) == answer
    assert vlbert_jax.load(folder / "copy/checkpoints/1").answer(CAT, QUESTION) == answer
    assert convert.main([str(folder / "copy"), str(tmp_path / "converted")]) == 0
    assert vlbert_jax.load(tmp_path / "converted").answer(CAT, QUESTION) == answer
    assert convert.main([str(folder / "copy"), str(tmp_path / "converted"), "--overwrite"]) == 0


@pytest.mark.slow
def test_a_copy_is_evaluated_on_data_in_another_place(run, tmp_path):
    """The tables suffice; without them one line says what is missing."""
    config, folder, _ = run
    config = config.copy_and_resolve_references()
    shutil.copytree(folder / "elsewhere", tmp_path / "tables", ignore=shutil.ignore_patterns("*.txt"))
    config.data.data_dir = str(tmp_path / "tables")
    main.run(config, folder / "copy", "evaluate")
    assert json.loads((folder / "copy/scores.json").read_text())["step"] == 1
    config.data.data_dir = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no records in {tmp_path}/nowhere/vqa/scenes; build them: "):
        main.run(config, folder / "copy", "evaluate")


@pytest.mark.parametrize("lower", [True, False])
def test_a_written_tokenizer_is_the_same(lower, tmp_path):
    for name, config in (("a", dict(do_lower_case=lower)), ("b", None)):
        (tmp_path / name).mkdir()
        if config:
            tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "b" if lower else "A", "a", "##b"]
            (tmp_path / name / "vocab.txt").write_text("\n".join(tokens) + "\n")
            (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config))
    first = load_tokenizer(str(tmp_path / "a"), 8)
    assert first.words("A ab") == [[6 if lower else 5], [6, 7]]
    write_tokenizer(first, tmp_path / "b")
    again = load_tokenizer(str(tmp_path / "b"), 8)
    assert again.words("A ab") == first.words("A ab") and again.backend.get_vocab() == first.backend.get_vocab()


def test_other_weights_have_no_vocabularies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocabularies").mkdir()
    assert own_vocabularies("bert-base-uncased") == own_vocabularies(tmp_path / "a.model") == {}
