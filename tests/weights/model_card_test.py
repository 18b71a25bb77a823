"""Test the model cards of workdirs and of exported folders."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from configs import vqa
from tests.helpers.weights_case import run
from vlbert_jax.weights.export import may_replace
from vlbert_jax.weights.model_card import MARK, stored_facts, write_run_card

COMMAND = "python -m vlbert_jax.main --config=vqa"


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "fish"
    (folder / "checkpoints/7").mkdir(parents=True)
    (folder / "versions.json").write_text(json.dumps(dict(revision="abc123", command=COMMAND)))
    scores = dict(answer_accuracy=0.61234, loss=float("nan"), eval_time=3.0, step=7)
    write_run_card(folder, vqa.get_config().to_dict(), 7, scores)
    return folder


def test_the_card_of_a_run(workdir):
    card = ModelCard.load(workdir / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "vlbert_jax" and data["pipeline_tag"] == "visual-question-answering"
    assert {k: data["training"][k] for k in ("command", "commit", "updates")} == dict(
        command=COMMAND, commit="abc123", updates=7
    )
    (score,) = card.data.eval_results  # neither the duration nor the value that is not finite
    assert (score.metric_type, score.metric_value, score.dataset_name) == ("answer_accuracy", 0.6123, "vqa/scenes")
    told = ("# fish", "`vlbert`", "2 layers of width 128", "256 tokens", "36", f"`{COMMAND}`", "`abc123`", "0.6123")
    for part in (*told, 'vlbert_jax.load("PATH")', "MIT license"):
        assert part in card.text, part


def test_a_card_that_a_user_wrote_stays(workdir):
    config = vqa.get_config().to_dict()
    write_run_card(workdir, config, 9, dict(answer_accuracy=0.7))
    card = (workdir / "README.md").read_text()
    assert "0.7" in card and "0.6123" not in card
    (workdir / "README.md").write_text(card.replace(MARK, "My model."))
    write_run_card(workdir, config, 11, dict(answer_accuracy=0.8))
    assert "My model." in (workdir / "README.md").read_text() and stored_facts(workdir)[0]["updates"] == 9
    assert stored_facts(workdir / "checkpoints/7") == stored_facts(workdir)
    assert stored_facts(workdir / "nothing") == ({}, [])


def test_exported_folders_repeat_the_card_of_their_source(tmp_path):
    """The start of another task has no scores, and says that parts of it are not trained."""
    run("demo-vqa", tmp_path / "copy")
    text, facts = (tmp_path / "copy/README.md").read_text(), stored_facts(tmp_path / "copy")
    assert facts[1] == stored_facts("demo-vqa")[1] and len(facts[1]) == 2
    assert facts[0]["source"] == "demo-vqa: VL-BERT, answer in safetensors" and "initialized at random" not in text
    run("demo-pretrain", tmp_path / "start", "--task=vqa")
    text = (tmp_path / "start/README.md").read_text()
    assert "2 tensors of this model are initialized at random" in text and "--config.init.checkpoint=PATH" in text
    assert stored_facts(tmp_path / "start")[1] == [] and "visual question answering (`answer`)" in text
    run("demo-pretrain", tmp_path / "bert", "--format=hf")
    card = ModelCard.load(tmp_path / "bert/README.md")
    assert card.data.library_name == "transformers" and "AutoModel.from_pretrained" in card.text
    assert re.search("the text side alone", card.text) and not card.data.eval_results
    assert may_replace(tmp_path / "bert")
    (tmp_path / "bert/README.md").write_text("My notes.")
    assert not may_replace(tmp_path / "bert")
