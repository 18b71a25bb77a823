"""Published files of VL-BERT's one-stream siblings answer, as Hugging Face's own VisualBERT does."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vlbert_jax
from tests.helpers.siblings_case import WORDS, regions, save, small_tensors, write_image, write_words
from tests.helpers.weights_case import run as convert
from vlbert_jax.batch import make_batch
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.predict import main
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.prediction.requests import Request
from vlbert_jax.tasks import get_task
from vlbert_jax.weights.two_stream_read import read_two_stream, two_stream_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VQA = get_task("answer")
QUESTION = "what is on the table?"
SMALL = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
             max_position_embeddings=40, visual_embedding_dim=20, num_labels=11)  # fmt: skip
FULL = dict(visual_embedding_dim=2048, num_labels=3129)
SIZE = (120, 80)  # width and height of the image


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("image"), SIZE)


def write_theirs(folder, sizes: dict):
    """Write a random VisualBERT for questions as Hugging Face does, with a vocabulary and answers; return it."""
    folder.mkdir()
    torch.manual_seed(0)
    config = transformers.VisualBertConfig(**({"vocab_size": len(WORDS) + 20} | sizes))
    theirs = transformers.VisualBertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += (0.2 if config.hidden_size < 100 else 0.02) * torch.randn_like(parameter)
    theirs.save_pretrained(folder)
    write_words(folder, config.vocab_size)
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer{i}" for i in range(1, sizes["num_labels"]))]))
    return theirs


def their_logits(theirs, content: dict) -> np.ndarray:
    """Return the logits of Hugging Face for QUESTION, as the original code feeds it: regions have type 0."""
    words = ["[CLS]", "what", "is", "on", "the", "table", "?", "[MASK]", "[SEP]"]
    ids = torch.tensor([[WORDS.index(word) for word in words]])
    features = torch.tensor([content["features"]])
    kind = torch.zeros(features.shape[:2], dtype=torch.long)
    with torch.no_grad():
        return theirs(
            input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids),
            visual_embeds=features, visual_attention_mask=torch.ones_like(kind), visual_token_type_ids=kind,
        ).logits[0].numpy()  # fmt: skip


def our_logits(folder, content: dict) -> np.ndarray:
    config, graphdef, state = load_trained(folder, 9)
    config.data.answers = str(folder / "answers.txt")
    record = dict(image_size=np.array(SIZE), boxes=np.array(content["boxes"], np.float32), image_feature=())
    example = VQA.example_from_text(record | dict(features=content["features"]), QUESTION, (), config)
    batch = make_batch({name: np.asarray(value)[None] for name, value in example.items()}, VQA.targets)

    @jax.jit
    def logits(state, batch):
        model = nnx.merge(graphdef, state)
        with matmul_precision("highest"):
            return model.answer_logits(model.states(batch), batch.targets.answer_positions)

    return np.asarray(logits(state, batch))[0]


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"])
def test_visualbert_of_hugging_face(sizes, image, tmp_path, capsys):
    """Their folder gives their logits here, and what is written here loads there."""
    folder, content = tmp_path / "theirs", regions(sizes["visual_embedding_dim"])
    theirs = write_theirs(folder, {"vocab_size": 30522} | sizes if sizes is FULL else sizes)
    expected, ours = their_logits(theirs, content), our_logits(folder, content)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    best = np.argsort(-expected)[:5]
    assert expected.std() > 0.05 and np.argsort(-ours)[:5].tolist() == best.tolist()

    (tmp_path / "boxes.json").write_text(json.dumps(content))
    options = ["--checkpoint", str(folder), "--image", str(image), "--boxes", str(tmp_path / "boxes.json")]
    asked = [*options, "--answers", str(folder / "answers.txt"), "--question", QUESTION]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert [a["text"] for a in found["asked"][0]["answers"]] == [f"answer{i}" if i else "<unk>" for i in best]
    chance = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    np.testing.assert_allclose([a["probability"] for a in found["asked"][0]["answers"]], chance[best], atol=1e-3)

    convert(folder, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", "--format=hf")
    kind = transformers.VisualBertForQuestionAnswering
    back, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), tensor.numpy(), err_msg=key)
    assert (tmp_path / "back/vocab.txt").read_text() == (folder / "vocab.txt").read_text()


@pytest.fixture(scope="module")
def oscar(tmp_path_factory):
    """Return a folder as Oscar's code writes it, for masked words, and a file of answering without its config."""
    folder = tmp_path_factory.mktemp("oscar")
    tensors = small_tensors("oscar_base")
    write_words(folder, len(tensors["bert.embeddings.word_embeddings.weight"]))
    (folder / "config.json").write_text(json.dumps(dict(num_attention_heads=2, hidden_act="gelu")))
    save(folder / "pytorch_model.bin", tensors)
    (folder / "vqa").mkdir()
    for name in ("vocab.txt", "config.json"):
        (folder / "vqa" / name).write_bytes((folder / name).read_bytes())
    save(folder / "vqa/pytorch_model.bin", small_tensors("oscar_base_vqa"))
    return folder


def test_masked_words_with_the_names_of_the_regions(oscar, image):
    """The names are the second part of the text, so they change the words; the blind guess has no image but names."""
    predictor = vlbert_jax.load(oscar)
    by_names = {}
    for names in ((), ("cat", "red ball", "table", "cat")):
        content = regions(2048, labels=names)
        (oscar / "boxes.json").write_text(json.dumps(content))
        (mask,) = predictor.fill(image, "the [MASK] is on the table", oscar / "boxes.json")
        assert len(mask.words) == 5 and mask.words != mask.blind
        by_names[names] = mask.words
        request = Request(image, "the [MASK]", (), oscar / "boxes.json")
        example = predictor._example_of(predictor._look([request]), request)
        second = [*" ".join(names).split(), "[SEP]"] if names else []
        text = ["[CLS]", "the", "[MASK]", "[SEP]", *second]
        assert example["token_ids"][0, : len(text)].tolist() == [WORDS.index(word) for word in text]
        assert example["segment_ids"][0, : len(text)].tolist() == [0] * 4 + [1] * len(second)
    first, second = by_names.values()
    assert first != second


def refused(*arguments, capsys) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_refusals_and_what_the_weights_expect(oscar, image, capsys):
    """One line each says what is wrong and what to do."""
    checkpoint, boxes = oscar / "vqa", oscar / "of.json"
    short, other, answers = (oscar / f"{name}.json" for name in ("short", "other", "answers"))
    count = len(small_tensors("oscar_base_vqa")["classifier.bias"])
    boxes.write_text(json.dumps(regions(2048)))
    options = ["--checkpoint", checkpoint, "--image", image, "--boxes", boxes, "--question", QUESTION]
    error = refused(*options, capsys=capsys)
    assert "the weights of oscar do not hold theirs" in error and "--answers" in error
    short.write_text(json.dumps([f"answer{i}" for i in range(count - 1)]))
    error = refused(*options, "--answers", short, capsys=capsys)
    assert f"has {count - 1} answers, but config.model.num_answers is {count}" in error
    other.write_text(json.dumps(["<unk>", *(f"answer{i}" for i in range(1, count))]))
    assert "is the answer list of another model: <unk>" in refused(*options, "--answers", other, capsys=capsys)
    answers.write_text(json.dumps({f"answer{i}": i for i in reversed(range(count))}))
    assert main([str(option) for option in (*options, "--answers", answers)]) == 0
    output = capsys.readouterr().out
    assert "expect features of the bottom-up-attention detector" in output and "is not known" in output
    assert "answer" in output.splitlines()[-1]
    boxes.write_text(json.dumps(regions(2054)))
    error = refused(*options, "--answers", answers, capsys=capsys)
    assert "2054 numbers per region" in error and "reads 2048" in error and "leave them out" in error
    (oscar / "short.txt").write_text("\n".join(WORDS) + "\n")
    error = refused(*options, "--answers", answers, "--vocab", oscar / "short.txt", capsys=capsys)
    assert f"has {len(WORDS)} tokens, but config.model.encoder.vocab_size is" in error and "--vocab" in error


def kept_apart(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a model whose elements do not end alike after its layers."""
    for key, array in tensors.items():
        if key.endswith("LayerNorm.weight"):
            array += 1
        elif ".encoder." in key:
            array *= 0.3
    return tensors


def write_vilbert(folder, name):
    """Write a small file of ViLBERT with its config and a vocabulary."""
    tensors = kept_apart(small_tensors(name, layers=99))
    write_words(folder, len(tensors["bert.embeddings.word_embeddings.weight"]))
    heads = dict(num_attention_heads=2, v_num_attention_heads=1, bi_num_attention_heads=1)
    (folder / "config.json").write_text(json.dumps(heads | dict(hidden_act="gelu")))
    save(folder / "pytorch_model.bin", tensors)


def their_outputs(folder, content: dict, text: str, response: str, tasks, head):
    """Return head(model, states) for the number of each task, from inputs as the official code's."""
    model = two_stream_model(read_two_stream(folder))
    behind = [*response.split(), "[SEP]"] if response else []
    ids = [WORDS.index(word) for word in ["[CLS]", *text.split(), "[SEP]", *behind]]
    segments = np.repeat([0, 1], [len(ids) - len(behind), len(behind)])
    features, (width, height) = np.array(content["features"], np.float32), SIZE
    x1, y1, x2, y2 = np.array(content["boxes"], np.float32).T
    places = np.stack([x1 / width, y1 / height, x2 / width, y2 / height, (y2 - y1) * (x2 - x1) / (width * height)], 1)
    rows = len(features) + 1
    inputs = dict(
        token_ids=np.array(ids)[None, None], segment_ids=segments[None, None],
        position_ids=np.arange(len(ids))[None, None], word_mask=np.ones((1, 1, len(ids)), bool),
        region_mask=np.ones((1, 1, rows), bool),
        features=np.concatenate([features.mean(0, keepdims=True), features])[None, None],
        geometry=np.concatenate([[[0, 0, 1, 1, 1]], places]).astype(np.float32)[None, None],
    )  # fmt: skip

    @nnx.jit
    def outputs(model, inputs):
        numbers = [dict(task=jnp.full((1, 1), task)) if task else {} for task in tasks]
        return [head(model, model.two_stream(**inputs, **number), len(ids)) for number in numbers]

    with matmul_precision("highest"):
        return outputs(model, {name: jnp.asarray(value) for name, value in inputs.items()})


def their_scores(folder, content: dict, text: str, tasks, response: str = "") -> tuple[np.ndarray, float]:
    """Return the scores of the rows of an image for a text and that of the pair; `tasks` are the numbers of both."""
    rows = len(content["features"]) + 1

    def scores(model, states, words):
        positions = words + jnp.arange(rows)[None, None]
        pair = model.choice_logits(model.two_stream.pool(states))
        return model.grounding_logits(states, positions)[0, 0], pair[0, 0]

    (regions, _), (_, pair) = their_outputs(folder, content, text, response, tasks, scores)
    return np.asarray(regions), float(pair)


@pytest.mark.parametrize("name, tasks", [
    ("vilbert_multitask_12in1", (10, 8)), ("vilbert_beta_6layer_vcr_retrieval_refcoco", (0, 0)),
])  # fmt: skip
def test_vilbert_finds_regions_and_images(name, tasks, image, tmp_path):
    """One file has heads for regions and for retrieval; 12-in-1 reads the number of the task."""
    text, content = "the red ball", regions(2048)
    write_vilbert(tmp_path, name)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    logits, score = their_scores(tmp_path, content, text, tasks)
    chances = 1 / (1 + np.exp(-logits))
    assert chances.std() > 1e-3
    places = vlbert_jax.load(tmp_path, task="region").ground(image, text, tmp_path / "boxes.json")
    assert [place.region for place in places] == np.argsort(-chances).tolist()
    np.testing.assert_allclose([place.probability for place in places], np.sort(chances)[::-1], atol=1e-5)
    found = vlbert_jax.load(tmp_path, task="match").similarity([image], [text, "a cat"], [tmp_path / "boxes.json"])
    np.testing.assert_allclose(found[0, 0], score, atol=1e-4)
    assert found[0, 0] != found[0, 1]


def test_second_heads_of_12_in_1(image, tmp_path, capsys):
    """`head` reads GQA in place of VQA, and SNLI-VE in place of NLVR2, with the numbers of their tasks."""
    name, content, text = "vilbert_multitask_12in1", regions(2048), "the red ball"
    write_vilbert(tmp_path, name)
    boxes, answers = tmp_path / "boxes.json", tmp_path / "answers.json"
    boxes.write_text(json.dumps(content))

    def outputs(model, states, _):
        pooled = model.two_stream.pool(states)
        return model.gqa_logits(pooled)[0, 0], model.relation_logits(pooled)[0, 0]

    ((gqa, _), (_, relations)) = their_outputs(tmp_path, content, text, "", (15, 13), outputs)
    entries = [f"answer{i}" for i in range(len(gqa))]
    answers.write_text(json.dumps(entries))
    found = vlbert_jax.load(tmp_path, head="gqa", answers=answers).answer(image, text, boxes)
    best = np.argsort(-gqa)[: len(found)]
    assert [answer.text for answer in found] == [entries[i] for i in best]
    expected = np.asarray(jax.nn.sigmoid(gqa))[best]
    assert expected.std() > 1e-3
    np.testing.assert_allclose([answer.probability for answer in found], expected, atol=1e-5)

    options = ["--checkpoint", tmp_path, "--image", image, "--boxes", boxes, "--text", text, "--json"]
    assert main([str(option) for option in (*options, "--head=snli_ve")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    classes = {each["text"]: each["probability"] for each in row["asked"][0]["answers"]}
    chances = np.sort(np.asarray(jax.nn.softmax(relations)))
    np.testing.assert_allclose(sorted(classes.values()), chances, atol=1e-4)
    assert classes.keys() == {"contradiction", "neutral", "entailment"}
    assert "needs a second image" in refused(*options, capsys=capsys)
    assert "must be one of gqa, snli_ve" in refused(*options, "--head=vqa", capsys=capsys)
    assert "is for visual question answering (--question), not for" in refused(*options, "--head=gqa", capsys=capsys)
    assert "--head needs the --checkpoint" in refused("--image", image, "--head=gqa", capsys=capsys)
    assert "not from a run" in refused("--checkpoint=demo-vqa", *options[2:-3], "--head=gqa", capsys=capsys)
    write_vilbert(tmp_path, "vilbert_beta_6layer_vcr_retrieval_refcoco")
    assert "has no second head gqa" in refused(*options, "--head=gqa", capsys=capsys)


def test_vilbert_chooses(image, tmp_path):
    """The head for choices reads question and answer as two segments; its scores become probabilities."""
    question, choices, content = "what is on the table ?", ["the red ball", "a cat", "a ball"], regions(2048)
    write_vilbert(tmp_path, "vilbert_beta_6layer_vcr_retrieval_refcoco")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    scores = np.array([their_scores(tmp_path, content, question, (0, 0), choice)[1] for choice in choices])
    found = vlbert_jax.load(tmp_path, task="choice").choose(image, question, choices, tmp_path / "boxes.json")
    expected = np.exp(scores) / np.exp(scores).sum()
    assert expected.std() > 5e-4
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("name", ["uniter_base_vcr", "visualbert_vcr"])
def test_heads_over_choices_answer(name, image, tmp_path, capsys):
    """A file for VCR chooses among texts; the architecture determines what the sequences are."""
    tensors = small_tensors(name)
    words = next(key for key in tensors if key.endswith("word_embeddings.weight"))
    write_words(tmp_path, len(tensors[words]))
    (tmp_path / "config.json").write_text(json.dumps(dict(num_attention_heads=2)))
    save(tmp_path / "pytorch_model.bin", tensors)
    features = tensors[next(key for key in tensors if key.endswith(("img_linear.weight", "visual_projection.weight")))]
    (tmp_path / "boxes.json").write_text(json.dumps(regions(features.shape[1])))
    options = ["--checkpoint", tmp_path, "--image", image, "--boxes", tmp_path / "boxes.json", "--json"]
    asked = ["--question", "what is [1] ?", "--choices", "a cat", "[2] is a ball"]
    assert main([str(option) for option in (*options, *asked)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    chances = {row["text"]: row["probability"] for row in found["asked"][0]["answers"]}
    assert chances.keys() == {"a cat", "[2] is a ball"} and sum(chances.values()) == pytest.approx(1, abs=1e-3)
    predictor = vlbert_jax.load(tmp_path)
    config = predictor.config
    assert config.data.align_regions == (name == "visualbert_vcr") and config.model.num_object_classes == 0
    assert config.data.arrangement == ("apart" if name == "uniter_base_vcr" else "context_tail")
    assert bool(config.model.get("switches", {}).get("whole_image")) == (name == "visualbert_vcr")


def test_pairs_of_pre_training_need_no_fine_tuning(image, tmp_path, capsys):
    """The head of the relationship of UNITER base scores texts; the output says which detector it expects."""
    tensors = small_tensors("uniter_base")
    write_words(tmp_path, len(tensors["uniter.embeddings.word_embeddings.weight"]))
    (tmp_path / "config.json").write_text(json.dumps(dict(num_attention_heads=2)))
    save(tmp_path / "pytorch_model.bin", tensors)
    (tmp_path / "boxes.json").write_text(json.dumps(regions(2048)))
    (tmp_path / "texts.txt").write_text("the red ball\na cat\n")
    options = ["--checkpoint", tmp_path, "--image", image, "--boxes", tmp_path / "boxes.json", "--json"]
    assert main([str(option) for option in (*options, "--texts", tmp_path / "texts.txt")]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["features"].startswith("the weights expect features of the bottom-up-attention detector")
    assert {row["text"] for row in found["texts"]} == {"the red ball", "a cat"}
    assert main([str(option) for option in (*options, "--text", "a cat")]) == 0
    (about,) = json.loads(capsys.readouterr().out)
    score = next(row["score"] for row in found["texts"] if row["text"] == "a cat")
    assert about["asked"][0]["fit"]["score"] == pytest.approx(score, abs=1e-4)
    assert "takes --caption" in refused(*options, "--expression", "a cat", capsys=capsys)


@pytest.mark.parametrize("layers", ["linear", "mlp"])
def test_retrieval_reads_the_names_of_the_regions(layers, oscar, image, tmp_path, capsys):
    """Oscar's head with two outputs scores pairs; the names that the boxes have are the second part of the text."""
    rng, tensors = np.random.default_rng(0), kept_apart(small_tensors("oscar_base_vqa"))
    width = tensors.pop("classifier.weight").shape[1]
    del tensors["classifier.bias"]
    sizes = {"": (2, width)} if layers == "linear" else {".0": (5, width), ".2": (2, 5)}
    for name, size in sizes.items():
        tensors[f"classifier{name}.weight"] = rng.standard_normal(size, np.float32)
        tensors[f"classifier{name}.bias"] = rng.standard_normal(size[0], np.float32)
    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((oscar / name).read_bytes())
    save(tmp_path / "pytorch_model.bin", tensors)
    predictor, text, scores = vlbert_jax.load(tmp_path), "a ball", []
    assert predictor.config.model.matching_head == ("classes" if layers == "linear" else "hidden")
    for names in ((), ("cat", "red ball", "table", "cat")):
        (tmp_path / "boxes.json").write_text(json.dumps(regions(2048, labels=names)))
        request = Request(image, text, (), tmp_path / "boxes.json")
        example = predictor._example_of(predictor._look([request]), request)
        second = [*" ".join(names).split(), "[SEP]"] if names else []
        words = [WORDS.index(word) for word in ["[CLS]", "a", "ball", "[SEP]", *second]]
        assert example["token_ids"][0, : len(words)].tolist() == words
        assert example["segment_ids"][0, : len(words)].tolist() == [0] * 4 + [1] * len(second)
        scores.append(predictor.similarity(image, text, boxes=tmp_path / "boxes.json")[0, 0])
    assert abs(scores[0] - scores[1]) > 1e-3
    options = ["--checkpoint", tmp_path, "--image", image, "--boxes", tmp_path / "boxes.json", "--json"]
    assert main([str(option) for option in (*options, "--text", text)]) == 0
    (about,) = json.loads(capsys.readouterr().out)
    assert about["asked"][0]["fit"]["score"] == pytest.approx(float(scores[1]), abs=1e-4)
    assert "takes --text" in refused(*options, "--question", text, capsys=capsys)


@pytest.mark.parametrize("name, detector", [("vinvl_base", "VinVL's"), ("vilbert_multitask_12in1", "12-in-1's")])
def test_features_of_another_detector(name, detector, oscar, image, tmp_path, capsys):
    """Regions with an extractor are of this package's detector, which these weights do not know."""
    if name.startswith("vilbert"):
        write_vilbert(tmp_path, name)
    else:
        tensors = small_tensors(name)
        write_words(tmp_path, len(tensors["bert.embeddings.word_embeddings.weight"]))
        (tmp_path / "config.json").write_text(json.dumps(dict(num_attention_heads=2, hidden_act="gelu")))
        save(tmp_path / "pytorch_model.bin", tensors)
    (tmp_path / "boxes.json").write_text(json.dumps(regions(2048) | dict(extractor="0123456789abcdef")))
    options = ["--image", image, "--boxes", tmp_path / "boxes.json", "--caption", "a [MASK]"]
    logging.getLogger("vlbert_jax").setLevel(logging.INFO)  # as a run in the same process; its lines are no warnings
    error = refused("--checkpoint", tmp_path, *options, capsys=capsys)
    assert f"reads features of {detector} detector" in error and "boxes with features of the former" in error
    assert main([str(option) for option in ("--checkpoint", oscar, *options)]) == 0
    assert "these are of one of that kind" in capsys.readouterr().out
