"""The sequences of B2T2 in VCR: recorded ones, and by hand what the recordings do not have."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_prep.build import build_scene_tasks
from tests.helpers.golden_folders import golden_folders
from tests.helpers.vcr_case import shrunk
from vlbert_jax.batch import IMG, NO_IMAGE
from vlbert_jax.data.packing import RegionLayout
from vlbert_jax.data.tokenizer import load_tokenizer
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.region_head import RegionHead
from vlbert_jax.prediction.inspection import Inspecting
from vlbert_jax.tasks.choice.examples import ChoiceLayout, choice_example
from vlbert_jax.tasks.choice.task import ChoiceTask

PATHS = [path for folder in golden_folders("one_stream") for path in sorted(folder.glob("data_b2t2_*.json"))]
SIDE = 224  # of the image of the recorded boxes
WORDS = "what is near the cup ? and per ##son [unused0] [unused1] [unused2] [unused3] [unused4] [unused5]".split()


def tokenizer_with(folder, tokens):
    """Return a tokenizer of these tokens and the special ones."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(tokens)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    return load_tokenizer(str(folder), len(tokens))


def layout(limit: int, **changes) -> ChoiceLayout:
    fields = dict(
        precomputed=False, image_scale=(SIDE, SIDE), orientation="landscape", max_regions=6, feature_size=0,
        geometry_dtype=np.dtype(np.float32), subtask="q2a", sequence_length=limit + 4, text_length=limit, roi_size=2,
        num_classes=0, arrangement="inline",
        regions=RegionLayout(words_carry="all", segment=1, positions="running", end_token=False, apart=True,
                             geometry_size=4),
    )  # fmt: skip
    return ChoiceLayout(**(fields | changes))


def record(question: list, answers: list[list], objects: list[str], boxes: list, **changes) -> dict:
    return dict(
        annot_id="train-0", image=np.zeros((SIDE, SIDE, 3), np.uint8), image_size=np.array([SIDE, SIDE]),
        boxes=np.array(boxes, float), objects=objects, classes=np.zeros(len(objects), int),
        shapes=np.ones((len(objects), 2, 2), np.uint8), question=json.dumps(question),
        answers=[json.dumps(answer) for answer in answers], rationales=['["near"]'] * 4, answer_label=0,
        rationale_label=1,
    ) | changes  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_sequences_are_those_of_the_original_code(path, tmp_path):
    """Tokens, segments and boxes are equal, and so are the rows of the tables of box positions."""
    rows = json.loads(path.read_text())["rows"]
    words = [token for row in rows for name in ("question_tokens", "answer_tokens") for token in row[name]]
    tokenizer = tokenizer_with(tmp_path, [*filter(lambda word: "[" not in word, words), *WORDS, "[OBJ-2]"])
    config = RegionHeadConfig(4, backbone=None, feature_size=4, architecture=get_architecture("b2t2_positions"))
    head = RegionHead(config, nnx.Rngs(0))
    head.x_positions[...] = head.y_positions[...] = jnp.arange(1.0, 57)[:, None]
    for row in rows:
        known = record(row["question"], [row["answer"]], row["objects"], row["boxes"])
        example = choice_example(known, False, tokenizer, layout(row["length"] - 1, num_choices=1))
        number = len(row["tokens"])
        assert example["element_mask"][0].sum() == number
        own = {"[IMAGE]": tokenizer.vocab_size + IMG} | {f"[OBJ-{k}]": f"[unused{k}]" for k in (0, 1, 3, 4, 5)}
        tokens = [own.get(token, token) for token in row["tokens"]]  # the vocabulary has [OBJ-2] itself
        ids = [token if isinstance(token, int) else tokenizer.backend.token_to_id(token) for token in tokens]
        assert example["token_ids"][0, :number].tolist() == ids
        assert example["segment_ids"][0, :number].tolist() == row["segment_ids"]
        assert example["position_ids"][0, :number].tolist() == list(range(number))
        carried = example["region_ids"][0, :number]
        assert carried[1] == 0 and (carried[row["tokens"].index("[SEP]")] == NO_IMAGE)
        found = np.asarray(head._position_features(jnp.asarray(example["box_geometry"])[None]))[0]
        assert not found[0].any()  # the whole image has no position
        slots = np.array(row["bbox_pos"]).reshape(4, 4)
        for place, slot in enumerate(row["bbox_idx"]):
            if slot < 0:
                assert carried[place] == (0 if place == 1 else NO_IMAGE)
                continue
            y, x, height, width = slots[slot]
            assert (slots[slot][[1, 0]] == np.array(row["boxes"])[carried[place] - 1, :2].astype(int)).all()
            if x + width < SIDE - 1 and y + height < SIDE - 1:  # here other boxes end at the border
                bins = [x // 4, x // 4 + width // 4, y // 4, y // 4 + height // 4]
                assert found[carried[place]].tolist() == [number + 1 for number in bins]


def test_rationales_share_the_cut_of_question_and_answer(tmp_path):
    """The longest text loses its end; what question and answer lost, they lack with later rationales."""
    tokenizer = tokenizer_with(tmp_path, WORDS)
    known = record(["what", "is", [0], "?"], [["the", [1]]] * 4, ["cup", "person"], [[1, 2, 9, 9], [3, 4, 9, 9]])
    known["rationales"] = [json.dumps(text) for text in (["near"] * 4, ["the"], ["is"] * 9, [])]
    found = choice_example(known, False, tokenizer, layout(9, subtask="qa2r"))
    image = "[IMAGE]"
    expected = [
        f"[CLS] {image} what is cup [SEP] the per ##son near near near [SEP]",
        f"[CLS] {image} what is cup [SEP] the per ##son the [SEP]",
        f"[CLS] {image} what is cup [SEP] the per ##son is is is [SEP]",
        f"[CLS] {image} what is cup [SEP] the per ##son [SEP]",
    ]
    for ids, mask, text in zip(found["token_ids"], found["element_mask"], expected, strict=True):
        assert " ".join(tokenizer.backend.id_to_token(int(i)) or image for i in ids[mask]) == text
    assert found["text_cut"] and found["choice"] == 1
    whole = choice_example(known, False, tokenizer, layout(21, subtask="qa2r"))
    assert not whole["text_cut"] and whole["element_mask"].sum(1).tolist() == [17, 14, 22, 13]
    unknown = choice_example(known | dict(answer_label=-1), False, tokenizer, layout(9, subtask="qa2r"))
    assert len(unknown["token_ids"]) == 16 and (unknown["token_ids"][:4] == found["token_ids"]).all()


def test_objects_beyond_the_limit_have_their_name_alone(tmp_path):
    tokenizer = tokenizer_with(tmp_path, WORDS)
    known = record([[0, 1], "?"], [["is"]] * 4, ["cup", "person"], [[1, 2, 9, 9], [3, 4, 9, 9]])
    found = choice_example(known, False, tokenizer, layout(9, max_regions=1))
    ids = [tokenizer.backend.token_to_id(token) for token in "cup [unused0] and per ##son ? [SEP]".split()]
    assert found["token_ids"][0, 2:9].tolist() == ids
    assert found["region_ids"][0, 2:9].tolist() == [NO_IMAGE, 1, *[NO_IMAGE] * 5]


def test_a_vocabulary_without_tokens_for_objects(tmp_path):
    tokenizer = tokenizer_with(tmp_path, WORDS)
    known = record(["what"], [["is"]] * 4, ["cup"], [[1, 2, 9, 9]])
    choice_example(known, False, tokenizer, layout(9, max_regions=6))
    with pytest.raises(ValueError, match=r"max_regions is 7, but the vocabulary .* for 6 objects, .*max_regions=6, or"):
        choice_example(known, False, tokenizer, layout(9, max_regions=7))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_tasks(folder, num_train=8, num_val=4, num_test=2)
    return folder


@pytest.mark.parametrize(
    "variant, fields, message",
    [
        ("q2a_uniter", {"data.arrangement": "inline"}, "is for B2T2, .*architecture is uniter: choose"),
        ("q2a_b2t2", {"model.num_object_classes": 11}, "no regions to classify, .* is 11: set it to 0"),
    ],
)
def test_fields_that_do_not_fit(variant, fields, message, data_dir):
    with pytest.raises(ValueError, match=message):
        ChoiceLayout.of(shrunk(variant, data_dir, **fields))


def test_the_elements_of_a_sequence_are_its_words(data_dir):
    """States and attention of a prediction name [IMAGE] and every word, and have no regions behind them."""
    config = shrunk("q2a_b2t2", data_dir)
    batch = next(ChoiceTask().train_batches(config, 0, 0, 1))
    tokenizer = load_tokenizer(str(data_dir / config.data.vocab), config.model.encoder.vocab_size)
    predictor = types.SimpleNamespace(config=config, tokenizer=tokenizer)
    tokens, (first, end) = Inspecting._elements(predictor, batch)
    assert tokens[:2] == ("[CLS]", "[IMAGE]") and tokens[-1] == "[SEP]"
    assert len(tokens) == first == end == batch.element_mask[0, 0].sum()
    carried = batch.region_ids[batch.element_mask]
    assert (batch.region_ids[:, :, 1] == 0).all() and (carried == 0).sum() == 4 * config.batch_size
    assert set(np.unique(carried)) >= {NO_IMAGE, 0, 1}
