"""Published files of LXMERT answer as Hugging Face's own LXMERT does."""

import json

import numpy as np
import pytest

import vlbert_jax
from tests.helpers.siblings_case import WORDS, regions, write_image, write_words
from tests.helpers.weights_case import run as convert
from vlbert_jax.predict import main
from vlbert_jax.tasks.answer_lists import check_replaced
from vlbert_jax.weights.read import read_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUESTION = "what is on the table?"
SMALL = dict(vocab_size=len(WORDS) + 20, hidden_size=24, num_attention_heads=3, intermediate_size=40, l_layers=2,
             r_layers=1, x_layers=1, max_position_embeddings=40, visual_feat_dim=20)  # fmt: skip
SIZE = (120, 80)  # width and height of the image


def write_theirs(folder, kind: str, sizes: dict, deviation: float):
    """Write a random LXMERT as Hugging Face does, with a vocabulary, and return it."""
    torch.manual_seed(0)
    config = transformers.LxmertConfig(**sizes)
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += deviation * torch.randn_like(parameter)
    theirs.save_pretrained(folder)
    write_words(folder, config.vocab_size)
    return theirs


def their_outputs(theirs, content: dict, text: list[str]):
    ids = torch.tensor([[WORDS.index(word) for word in text]])
    boxes = np.array(content["boxes"], np.float32) / np.tile(np.array(SIZE, np.float32), 2)
    with torch.no_grad():
        return theirs(
            input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids),
            visual_feats=torch.tensor([content["features"]]), visual_pos=torch.from_numpy(boxes)[None],
        )  # fmt: skip


def asked(folder, image, boxes, *options, capsys) -> dict:
    """Return what the command answers, as plain values."""
    arguments = ["--checkpoint", folder, "--image", image, "--boxes", boxes, "--json", *options]
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)[0]


FULL = dict(visual_feat_dim=2048)


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"])
def test_questions(sizes, tmp_path, capsys):
    """The answers are those of the shipped list in LXMERT's order; the way back loads without a missing key."""
    folder, image = tmp_path / "theirs", write_image(tmp_path, SIZE)
    sizes = sizes | dict(num_qa_labels=3129)
    theirs = write_theirs(folder, "LxmertForQuestionAnswering", sizes, 0.2 if "hidden_size" in sizes else 0.02)
    answers = json.loads((vlbert_jax.weights.shipped.ASSETS / "answers/lxmert_vqa.json").read_text())
    content = regions(sizes["visual_feat_dim"], 36 if sizes is FULL else 4)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    text = ["[CLS]", "what", "is", "on", "the", "table", "?", "[SEP]"]
    expected = their_outputs(theirs, content, text).question_answering_score[0].numpy()
    best = np.argsort(-expected)[:5]
    found = asked(folder, image, tmp_path / "boxes.json", "--question", QUESTION, capsys=capsys)
    assert [answer["text"] for answer in found["asked"][0]["answers"]] == [answers[i] for i in best]
    given = [answer["probability"] for answer in found["asked"][0]["answers"]]
    np.testing.assert_allclose(given, 1 / (1 + np.exp(-expected[best])), atol=1e-3)
    assert "bottom-up-attention" in found["features"] and expected.std() > 0.05

    convert(folder, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", "--format=hf")
    back, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), tensor.numpy(), err_msg=key)


def test_more_boxes_than_the_model_reads(tmp_path, capsys):
    """Of 40 boxes it reads the 36 with the best scores, wherever they are in the file."""
    folder, image = tmp_path / "theirs", write_image(tmp_path, SIZE)
    write_theirs(folder, "LxmertForQuestionAnswering", SMALL | dict(num_qa_labels=3129), 0.2)
    content, order = regions(20, 40), np.random.default_rng(2).permutation(40)
    content["scores"] = np.linspace(0.9, 0.1, 40).tolist()
    best = {name: values[:36] for name, values in content.items()}
    mixed = {name: [values[i] for i in order] for name, values in content.items()}
    found = []
    for name, values in dict(best=best, mixed=mixed).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
        one = asked(folder, image, tmp_path / f"{name}.json", "--question", QUESTION, capsys=capsys)
        found.append((one["asked"][0]["answers"], len(one["regions"])))
    assert found[0] == found[1] and found[0][1] == 36


def test_the_pretrained_model_answers_and_fills(tmp_path, capsys):
    """One file has both heads; the option decides. Its 9,500 answers have a list of their own."""
    folder, image = tmp_path / "theirs", write_image(tmp_path, SIZE)
    sizes = SMALL | dict(num_qa_labels=9500, num_object_labels=9, num_attr_labels=5)
    theirs = write_theirs(folder, "LxmertForPreTraining", sizes, 0.2)
    weights = read_weights(folder)
    assert weights.architecture == "lxmert" and weights.tasks == ("pretrain", "answer", "match")
    answers = json.loads((vlbert_jax.weights.shipped.ASSETS / "answers/lxmert_all.json").read_text())
    content = regions(20)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    text = ["[CLS]", "what", "is", "on", "the", "table", "?", "[SEP]"]
    expected = their_outputs(theirs, content, text).question_answering_score[0].numpy()
    found = asked(folder, image, tmp_path / "boxes.json", "--question", QUESTION, capsys=capsys)
    assert [a["text"] for a in found["asked"][0]["answers"]] == [answers[i] for i in np.argsort(-expected)[:5]]

    masked = ["[CLS]", "a", "[MASK]", "is", "on", "the", "table", "[SEP]"]
    expected = their_outputs(theirs, content, masked).prediction_logits[0, 2].numpy()
    found = asked(folder, image, tmp_path / "boxes.json", "--caption", "a [MASK] is on the table", capsys=capsys)
    words = (folder / "vocab.txt").read_text().split()
    filled = found["asked"][0]["masks"][0]["words"]
    assert [word["text"] for word in filled] == [words[i] for i in np.argsort(-expected)[:5]]
    chance = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    np.testing.assert_allclose([w["probability"] for w in filled], np.sort(chance)[::-1][:5], atol=1e-3)


def test_another_list_is_refused(tmp_path, capsys):
    folder, image = tmp_path / "theirs", write_image(tmp_path, SIZE)
    write_theirs(folder, "LxmertForQuestionAnswering", SMALL | dict(num_qa_labels=3129), 0.2)
    (tmp_path / "boxes.json").write_text(json.dumps(regions(20)))
    (tmp_path / "list.txt").write_text("\n".join(["<unk>", *(f"a{i}" for i in range(3128))]))
    options = ["--checkpoint", folder, "--image", image, "--boxes", tmp_path / "boxes.json", "--question", QUESTION]
    assert main([str(option) for option in (*options, "--answers", tmp_path / "list.txt")]) == 2
    assert "is the answer list of another model: <unk>" in capsys.readouterr().err


def test_another_list_of_the_same_length_is_named(tmp_path, capsys, caplog):
    """A model may have been trained with it, so it answers; of weights without a list, LXMERT's is another model's."""
    folder, image = tmp_path / "theirs", write_image(tmp_path, SIZE)
    write_theirs(folder, "LxmertForQuestionAnswering", SMALL | dict(num_qa_labels=3129), 0.2)
    boxes, shipped = tmp_path / "boxes.json", vlbert_jax.weights.shipped.ASSETS / "answers/lxmert_vqa.json"
    boxes.write_text(json.dumps(regions(20)))
    entries = json.loads(shipped.read_text())
    for name, own in dict(copy=entries, turned=entries[::-1]).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
        caplog.clear()
        predictor = vlbert_jax.load(folder, answers=tmp_path / f"{name}.json")
        assert predictor.answer(image, QUESTION, boxes)[0].text in entries
        said = "has other answers, or another order, than lxmert_vqa.json, the list of the weights"
        assert (said in caplog.text) == (name == "turned")
    predictor.config.model.architecture = "vilbert"
    for name, said in dict(copy=True, turned=False).items():
        predictor.config.data.answers = str(tmp_path / f"{name}.json")
        assert ("is the answer list of LXMERT" in check_replaced(predictor.config, "", "data")) == said
