"""Oscar and VinVL read the names of the regions as a second text, in every task, from the classes of a table."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import caption, classify, pretrain, retrieval, vqa
from data_prep.build import build_scene_kinds, main
from data_prep.scenes.world import CLASS_NAMES
from tests.helpers.retrieval_case import SPECIAL, VOCAB_SIZE, WORDS, build_tables, shrunk
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.batch import make_batch
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.packing import RegionLayout, pack
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.answer.examples import QuestionLayout, question_example
from vlbert_jax.tasks.answer_lists import AnswerVocabulary
from vlbert_jax.tasks.caption.examples import DescriptionLayout, description_example
from vlbert_jax.tasks.caption.model import CaptionModel
from vlbert_jax.tasks.classify.examples import ClassLayout, class_example
from vlbert_jax.tasks.match.examples import PairLayout, choice_of_pairs, pair_on_device, with_names
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate, evaluate_run, make_score
from vlbert_jax.training.loop import train
from vlbert_jax.training.provenance import provenance_of
from vlbert_jax.training.state import split_model

TEXT = ["[CLS]", "a", "red", "square", "[SEP]"]
T = 10  # places of a text


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a vocabulary and the names of three classes."""
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *WORDS)))
    (tmp_path / "objects_vocab.txt").write_text("white, black\ngreen\nblue square,blue\n")
    return tmp_path


def config_of(recipe, folder, **fields):
    """Return a shipped recipe, shrunk, for Oscar with two regions."""
    oscar = {"model.architecture": "oscar", "model.encoder.pooler": True, "data.sequence_length": 16}
    return shrunk(recipe, folder, **oscar | fields)


def record_of(**fields):
    """Return the image with three regions, the last of which is cut, and their classes, as a table has them."""
    boxes = np.array([[4, 8, 14, 18], [32, 8, 42, 18], [1, 1, 9, 9]], np.float32)
    features = np.arange(9, dtype=np.float32).reshape(3, 3)
    record = dict(image=b"", image_size=np.array([48, 32], np.int32), boxes=boxes, features=features)
    return record | dict(image_feature=(), best_class=np.array([3, 2, 1], np.int32)) | fields


def answer_of(folder, record, flip, **fields):
    config = config_of(vqa.base(), folder, **{"model.answer_head": "pooler_linear"} | fields)
    record = record | dict(question="a red square", answers=["a"] * 10)
    layout = QuestionLayout.of(config)
    return config, question_example(record, flip, tokenizer_of(config), layout, AnswerVocabulary(["a"], False))


def class_of(folder, record, flip, **fields):
    config = config_of(classify.snli_ve(), folder, **fields)
    record = record | dict(text="a red square", text2="", labels=["green"], values=np.zeros(0), known=True)
    return config, class_example(record, flip, tokenizer_of(config), ClassLayout.of(config), ["green", "red", "a"])


def pair_of(folder, record, flip, **fields):
    config = config_of(retrieval.coco_oscar(), folder, **fields)
    return config, choice_of_pairs(["a red square"], [record], flip, tokenizer_of(config), PairLayout.of(config))


def caption_of(folder, record, flip, **fields):
    config = config_of(caption.coco(), folder, **{"data.sequence_length": T + 6, "data.mask_words": 0.0} | fields)
    record, rng = record | dict(text="a red square"), np.random.default_rng(0)
    return config, description_example(record, flip, rng, tokenizer_of(config), DescriptionLayout.of(config))


MAKERS = dict(answer=answer_of, classify=class_of, match=pair_of, caption=caption_of)


def read(example):
    """Return the words of segment 0 and of segment 1 that are read."""
    ids, words = example["token_ids"][0], [*SPECIAL, *WORDS]
    real = example["element_mask"][0] & (ids < VOCAB_SIZE)
    behind = example["segment_ids"][0] == 1
    return [words[i] for i in ids[real & ~behind]], [words[i] for i in ids[real & behind]]


@pytest.mark.parametrize("flip", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("task", MAKERS)
def test_the_second_text_is_the_names_of_the_regions(folder, task, flip):
    """Regions keep their names in a mirrored image; the third region is beyond `max_regions`, and its name with it."""
    _, example = MAKERS[task](folder, record_of(), flip)
    text, names = read(example)
    assert names == ["blue", "square", "green", "[SEP]"]
    assert len(text) == len(TEXT) and (text == TEXT or task == "caption")  # of a caption a word is masked
    assert (example["token_ids"][0] == VOCAB_SIZE).sum() == 2
    np.testing.assert_array_equal(example["region_features"][1:3], record_of()["features"][:2])


@pytest.mark.parametrize("task", MAKERS)
def test_a_table_without_classes_has_no_names(folder, task):
    record = record_of()
    del record["best_class"]
    for found, fields in (
        (record, {}), (record_of(), {"data.class_names": ""}), (record_of(), {"blind": True}),
        (record_of(), {"model.architecture": "uniter"}),
    ):  # fmt: skip
        assert read(MAKERS[task](folder, found, False, **fields)[1])[1] == []


def test_a_question_may_have_all_places_that_regions_leave(folder):
    config = config_of(vqa.base(), folder, **{"model.answer_head": "pooler_linear", "data.text_length": 16})
    for words, is_cut in ((12, False), (13, True)):  # of 16 places, two are of regions, none of the whole image
        record = record_of(question=" ".join(["red"] * words), answers=["a"] * 10)
        args = False, tokenizer_of(config), QuestionLayout.of(config), AnswerVocabulary(["a"], False)
        example = question_example(record, *args)
        assert example["text_cut"] == is_cut and example["element_mask"].sum() == 16


def test_a_run_depends_on_the_names_only_if_it_reads_them(folder):
    for architecture, read_in_training in (("oscar", True), ("uniter", False)):
        config = config_of(vqa.base(), folder, **{"model.architecture": architecture})
        assert ("class_names" in provenance_of(config)["data"]) == read_in_training


def test_a_list_that_is_missing_or_short(folder):
    with pytest.raises(ValueError, match="objects_vocab.txt .* has 3 lines, but a region is of class 4: give "):
        answer_of(folder, record_of(best_class=np.array([4, 1, 1])), False)
    (folder / "objects_vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"objects_vocab.txt \(config.data.class_names\) is not a file, but "):
        answer_of(folder, record_of(), False)


def test_a_caption_reads_the_names_and_they_do_not_read_it(folder):
    _, example = caption_of(folder, record_of(), False)
    batch = make_batch({name: value[None] for name, value in example.items()}, get_task("caption").targets)
    reads = np.array(CaptionModel.reads(types.SimpleNamespace(vocab_size=VOCAB_SIZE), batch))[0, 0]
    assert reads[:, T:].all()  # names and regions are read by all
    np.testing.assert_array_equal(reads[:T, :T], np.tril(np.ones((T, T), bool)))
    assert not reads[T:, :T].any()


# --- Pre-training: names are masked, and may be those of another image -------------------------------


def pretrained(folder, relationship=0.2, words=0.9, unknown=(), **fields):
    """Return the example of a caption, whose masking draws are `words`, with another record at hand.

    Regions `unknown` have no class.
    """
    config = pretrain.get_config("oscar_base")
    config.model.encoder.vocab_size = VOCAB_SIZE
    config.model.update(dict(num_region_classes=4, feature_size=3))
    config.data.update(dict(data_dir=str(folder), vocab=str(folder / "vocab.txt"), features="precomputed"))
    config.data.update(dict(max_regions=3, text_length=14, sequence_length=17))
    config.update_from_flattened_dict(fields)
    scores = np.full((3, 4), 0.1, np.float16)
    scores[np.arange(3), [3, 2, 1]] = 0.7
    scores[list(unknown)] = 0
    draws = Samples(
        flip=0.9, relationship=relationship, other=0.0, words=np.resize(words, 32), replacements=np.full(32, 7),
        regions=np.full(3, 0.9),
    )  # fmt: skip
    record = record_of(caption=["a", "red", "square"], class_scores=scores)
    other = ["black", "square"], None, None, scores[:, [0, 2, 1, 3]][1:]  # its regions are of classes 1 and 2
    return caption_example(record, draws, tokenizer_of(config), CaptionLayout.of(config), *other)


@pytest.mark.parametrize(
    ("relationship", "target", "words", "names"),
    [(0.49, 1, "a red square", "blue square green white"), (0.5, 2, "a red square", "white green"),
     (0.74, 2, "a red square", "white green"), (0.75, 0, "black square", "blue square green white")],
)  # fmt: skip
def test_pairs_of_pre_training(folder, relationship, target, words, names):
    """Half are right, a quarter have another image's names, a quarter another caption (Oscar+)."""
    example = pretrained(folder, relationship)
    assert read(example) == (["[CLS]", *words.split(), "[SEP]"], [*names.split(), "[SEP]"])
    assert example["relationship"] == target and not example["mlm_mask"].any()


def test_two_classes_keep_the_names_of_the_image(folder):
    example = pretrained(folder, 0.6, **{"model.relationship_classes": 2})
    assert read(example)[1] == ["blue", "square", "green", "white", "[SEP]"] and example["relationship"] == 0


def test_a_region_without_a_class_gives_its_name_to_no_region_beyond_the_limit(folder):
    example = pretrained(folder, unknown=[0], **{"data.max_regions": 2})
    assert read(example)[1] == ["green", "[SEP]"]


def test_names_are_masked_as_words_are(folder):
    """Of three words and four names, the second word and the second name are masked; [SEP] is never."""
    example = pretrained(folder, words=np.array([0.9, 0.1, 0.9, 0.9, 0.1, 0.9, 0.9]))
    assert read(example) == (["[CLS]", "a", "[MASK]", "square", "[SEP]"], ["blue", "[MASK]", "green", "white", "[SEP]"])
    labels = [[*SPECIAL, *WORDS][i] for i in example["mlm_labels"][0][example["mlm_mask"][0]]]
    assert labels == ["red", "square"] and example["mlm_positions"][0, :2].tolist() == [2, 6]


@pytest.mark.parametrize(("length", "names"), [(8, ["blue", "square", "[SEP]"]), (6, []), (4, [])])
def test_names_have_the_room_that_the_caption_leaves(folder, length, names):
    example = pretrained(folder, words=0.1, **{"data.text_length": length})
    assert len(read(example)[1]) == len(names)
    assert example["mlm_mask"].sum() == min(3, length - 2) + max(len(names) - 1, 0)  # what is cut is not predicted
    assert (example["token_ids"][0] == VOCAB_SIZE).sum() == 3


# --- Retrieval: the device joins texts and names ----------------------------------------------------


def test_pairs_of_the_device_have_the_names_of_the_host(folder):
    texts, names = [[2, 5, 3], [2, 5, 6, 5, 3], [2, 6, 6, 6, 6, 6, 3]], [[], [11], [11, 12, 13, 14]]
    layout, length, rows = RegionLayout(whole_image=False, words_carry="none", end_token=False), 7, [3, 2, 1]
    tokenizer = tokenizer_of(config_of(retrieval.coco(), folder))
    ids = jnp.array([[*text, *[0] * (7 - len(text))] for text in texts])
    second = jnp.array([[*name, *[0] * (4 - len(name))] for name in names]), jnp.array([0, 1, 4]), length
    found = pair_on_device(ids, jnp.array([3, 5, 7]), jnp.array(rows), 10, 20, layout, second)
    for i, count in enumerate(rows):
        for k, text in enumerate(texts):
            joined, segments = with_names(text, names[i], tokenizer, length)
            zeros = np.zeros(len(joined), np.int32)
            packed = pack(joined, segments, count, np.zeros(count, bool), zeros, 10, 20, layout=layout)
            for name, value in packed.items():
                np.testing.assert_array_equal(found[name][i, k], value, err_msg=f"{name} {i} {k}")


def test_evaluation_equals_pairs_with_names_scored_alone(tmp_path):
    data_dir = build_tables(tmp_path, classes=True)
    (data_dir / "objects_vocab.txt").write_text("red\ngreen\nblue square\nwhite\nblack\n")
    fields = {"data.text_length": 14, "data.eval_candidates": 3, "model.encoder.init_deviation": 0.5}
    config = config_of(retrieval.coco_oscar(), data_dir, **fields)
    match = get_task("match")
    graphdef, params, constants = split_model(match.build_model(config, nnx.Rngs(0)), match, config)
    split = Split(config, "val")
    texts = sorted((text for text in split.texts if text["image_number"] < 11), key=lambda text: text["text_id"])
    examples = [
        match.example_from_text(split.images[image], text["text"], (), config) for image in (8, 9, 10) for text in texts
    ]
    batch = make_batch({name: np.stack([one[name] for one in examples]) for name in examples[0]}, match.targets)

    @jax.jit
    def score(params, constants, batch):
        model = nnx.merge(graphdef, params, constants)
        return model.pair_scores(model.pair_states(batch), batch.token_ids)

    def alone(batch):
        return np.array(score(params, constants, batch)).reshape(3, -1)

    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_score(graphdef, match, config, mesh, predict=True)
        _, rows = evaluate(program, params, constants, match, config, mesh, lambda: False)
    np.testing.assert_allclose(rows["scores"], alone(batch), atol=2e-5)
    nameless = batch.replace(element_mask=batch.element_mask & (batch.segment_ids != 1))
    assert np.abs(rows["scores"] - alone(nameless)).min() > 1e-4  # all images have names


# --- A run -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["oscar", "vinvl"])
def test_a_recipe_trains_and_is_evaluated_on_a_corpus_with_classes(tmp_path, architecture):
    """NLVR2 is built from drawn scenes with the command; its sequences have names of both images."""
    source = build_scene_kinds(tmp_path, num_train=16, num_val=8, num_test=8, feature_width=12, tasks=())["source"]
    regions = [f"--regions={source}/nlvr2/regions", "--features", "--classes"]
    assert main(["nlvr2", f"--source={source}/nlvr2", f"--data_dir={tmp_path}", "--corpus=named", *regions]) == 0
    (tmp_path / "objects_vocab.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES[1:]))
    config = classify.nlvr2_oscar()
    shrink(config, classify.demo_pairs(), tmp_path, num_layers=1, names=("vocab",))
    config.model.architecture, config.model.feature_size, config.init.scratch = architecture, 12, True
    config.data.update(dict(texts="nlvr2/named", images="nlvr2_images/named", max_regions=6, text_length=30))
    config.data.sequence_length = 36
    config.batch_size, config.total_steps, config.warmup_steps, config.eval_every_steps = 4, 2, 1, 0
    task, mesh = get_task("classify"), sharding.make_mesh(config.mesh, jax.devices()[:1])
    train(config, task, tmp_path / "run", mesh)
    scores = evaluate_run(config, task, tmp_path / "run", mesh)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(scores["classify_accuracy"]) and any("classify_loss" in row for row in rows)
    assert (tmp_path / "run/vocabularies/class_names.txt").is_file()  # the workdir can answer without the data
    batch, split = next(task.train_batches(config, 0, 0, 1)), Split(config, "train")
    tokenizer = tokenizer_of(config)
    for index, ids, segments in zip(batch.index, batch.token_ids, batch.segment_ids, strict=True):
        for image, sequence, of_sequence in zip(split[int(index)]["images"], ids, segments, strict=True):
            named = " ".join(CLASS_NAMES[number] for number in image["best_class"][:6])
            second = sequence[(of_sequence == 1) & (sequence > 0)]
            assert second.tolist()[:-1] == sum(tokenizer.words(named), [])[: len(second) - 1] and len(second) > 2
