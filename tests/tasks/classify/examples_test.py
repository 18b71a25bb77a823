"""Sequences, regions and targets of classification, by hand."""

import numpy as np
import pytest

from tests.helpers.classify_case import image_record, text_record, tiny
from vlbert_jax.batch import END, IMG
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks.classify.examples import ClassLayout, _cut, class_example, labels_of
from vlbert_jax.tasks.layouts import region_layout

ROWS = 4  # of an image: itself and three regions


def example_of(images: int = 2, flip: bool = False, record: dict | None = None, **fields):
    """Return the example of a record about images 0 (one region) and 1 (two regions), and the tokenizer."""
    config = tiny(images, **fields)
    joined = [image_record(k) for k in range(images)]
    joined = dict(images=joined) if images > 1 else joined[0]
    text = dict(text="the red one", text2="", labels=["True"], values=np.zeros(0), known=True)
    layout, tokenizer = ClassLayout.of(config, "square"), tokenizer_of(config)
    example = class_example(joined | text | (record or {}), flip, tokenizer, layout, labels_of(config))
    return example, tokenizer, config


def words(tokenizer, text: str) -> list[int]:
    return [tokenizer.backend.token_to_id(word) for word in text.split()]


def test_a_sequence_for_each_image():
    example, tokenizer, _ = example_of(**{"model.read": "mask"})
    text = words(tokenizer, "[CLS] the red one [SEP] [MASK] [SEP]")
    img, end = tokenizer.vocab_size + IMG, tokenizer.vocab_size + END
    assert example["token_ids"][0, :10].tolist() == [*text, img, img, end]
    assert example["token_ids"][1, :11].tolist() == [*text, img, img, img, end]
    assert example["region_ids"][0, :9].tolist() == [0] * 7 + [0, 1]
    assert example["region_ids"][1, :10].tolist() == [ROWS] * 7 + [ROWS, ROWS + 1, ROWS + 2]
    assert example["region_ids"][0, 9] == -1 and example["mask_positions"].tolist() == [5, 5]
    assert example["segment_ids"][1, :11].tolist() == [0] * 5 + [1] * 2 + [2] * 4
    assert example["region_mask"].tolist() == [True, True, False, False, True, True, True, False]
    assert example["label_targets"].tolist() == [0, 1] and example["known"] and not example["text_cut"]


def test_one_sequence_over_both_images():
    fields = {"model.pair": "both", "model.read": "cls", "model.encoder.pooler": True, "model.encoder.num_segments": 4}
    example, tokenizer, _ = example_of(**fields)
    assert example["token_ids"].shape[0] == 1
    assert example["token_ids"][0, 5:11].tolist() == [tokenizer.vocab_size + IMG] * 5 + [tokenizer.vocab_size + END]
    assert example["region_ids"][0, :10].tolist() == [0] * 5 + [0, 1, ROWS, ROWS + 1, ROWS + 2]
    assert example["segment_ids"][0, 5:11].tolist() == [2, 2, 3, 3, 3, 2]
    assert example["position_ids"][0, 5:11].tolist() == [5, 5, 6, 6, 6, 7]
    three, *_ = example_of(**fields | {"model.encoder.num_segments": 3})
    assert three["segment_ids"][0, 5:11].tolist() == [2] * 6  # the table has no row for the second image


@pytest.mark.parametrize("name, segments", [("visualbert", [0, 1, 1]), ("uniter", [1, 2, 2])])
def test_siblings_tell_the_images_apart_by_segments(name, segments):
    fields = {"model.architecture": name, "model.pair": "both", "model.read": "cls", "model.encoder.pooler": True}
    example, tokenizer, config = example_of(**fields)
    assert not region_layout(config).whole_image
    assert example["token_ids"][0, 5:9].tolist() == [tokenizer.vocab_size + IMG] * 3 + [0]
    assert example["region_ids"][0, 4:8].tolist() == [-1, 1, ROWS + 1, ROWS + 2]  # words carry nothing
    assert example["segment_ids"][0, 5:8].tolist() == segments


def test_two_streams_have_words_alone():
    fields = {"model.architecture": "lxmert", "model.read": "cls", "model.encoder.pooler": True}
    example, tokenizer, _ = example_of(**fields | {"data.text_length": 8})
    assert example["token_ids"].shape == (2, 8) and example["element_mask"].sum(1).tolist() == [5, 5]
    assert (example["region_ids"] == -1).all() and example["region_mask"].sum() == 5


def test_two_texts_no_text_and_cutting():
    pooled = {"model.read": "cls", "model.encoder.pooler": True}
    two, tokenizer, _ = example_of(1, record=dict(text2="is it left"), **pooled)
    ids = words(tokenizer, "[CLS] the red one [SEP] is it left [SEP]")
    assert two["token_ids"][0, :9].tolist() == ids
    assert two["segment_ids"][0, :9].tolist() == [0] * 5 + [1] * 4
    masked, *_ = example_of(1, record=dict(text="", text2=""), **{"model.read": "mask"})
    assert masked["token_ids"][0, :4].tolist() == words(tokenizer, "[CLS] [SEP] [MASK] [SEP]")
    short = {"model.read": "mask", "data.text_length": 8}
    cut, *_ = example_of(1, record=dict(text2="is it left"), **short)
    assert cut["token_ids"][0, :8].tolist() == words(tokenizer, "[CLS] the red [SEP] is [SEP] [MASK] [SEP]")
    assert cut["text_cut"] and cut["mask_positions"].tolist() == [6]


@pytest.mark.parametrize("given, room, kept", [
    ((5, 2), 9, (5, 2)), ((5, 2), 5, (3, 2)), ((5, 2), 3, (2, 1)), ((2, 5), 3, (2, 1)), ((3, 0), 2, (2, 0)),
    ((4, 4), 5, (3, 2)), ((4, 4), 0, (0, 0)), ((2, 2), -1, (0, 0)),
])  # fmt: skip
def test_the_longer_text_is_cut(given, room, kept):
    assert _cut(*given, room) == kept


def test_a_mirrored_image_exchanges_left_and_right(tmp_path):
    (tmp_path / "sides.txt").write_text("left\nright\nno\n")
    fields = {"data.labels": str(tmp_path / "sides.txt"), "model.num_labels": 3}
    record = dict(text="it is left", labels=["left"])
    plain, tokenizer, _ = example_of(1, False, record, **fields)
    flipped, *_ = example_of(1, True, record, **fields)
    assert plain["label_targets"].tolist() == [1, 0, 0] and flipped["label_targets"].tolist() == [0, 1, 0]
    assert flipped["token_ids"][0, 3] == tokenizer.backend.token_to_id("right")
    assert not np.array_equal(plain["boxes"], flipped["boxes"])


def test_classes_are_not_read_as_names_of_regions():
    """Oscar's text has the names of the regions; a joined record has its classes under the same field."""
    fields = {"model.architecture": "oscar", "model.read": "cls", "model.encoder.pooler": True}
    example, tokenizer, _ = example_of(1, record=dict(labels=["the"]), **fields)
    assert example["token_ids"][0, :5].tolist() == words(tokenizer, "[CLS] the red one [SEP]")
    assert (example["token_ids"][0, 5:] != tokenizer.backend.token_to_id("the")).all()
    named = dict(images=[image_record(0) | dict(labels=["red"])])
    example, tokenizer, _ = example_of(1, record=named, **fields)
    assert example["token_ids"][0, 5:7].tolist() == words(tokenizer, "red [SEP]")


def test_targets_of_labels_and_numbers():
    many = {"losses.classify": "sigmoid"}
    assert example_of(record=dict(labels=[]), **many)[0]["label_targets"].tolist() == [0, 0]
    assert example_of(record=dict(labels=["True", "False"]), **many)[0]["label_targets"].tolist() == [1, 1]
    numbers = {"losses.classify": "squared", "data.labels": "", "data.value_means": (2.0, 0.0),
               "data.value_deviations": (4.0, 1.0)}  # fmt: skip
    known = text_record(4, 2, "train")
    example, *_ = example_of(record=dict(values=known["values"]), **numbers)
    assert example["label_targets"].tolist() == [-0.25, -1.0] and example["known"]
    unknown, *_ = example_of(record=dict(values=np.zeros(0), known=False), **numbers)
    assert not unknown["known"]


@pytest.mark.parametrize("fields, message", [
    ({"model.read": "word"}, "config.model.read is 'word'; it must be one of cls, mask"),
    ({"data.images_per_example": 3}, "config.data.images_per_example is 3; it must be 1 or 2"),
    ({"model.architecture": "lxmert", "model.pair": "both"}, "pair='both' requires one stream; lxmert has two"),
    ({"model.pair": "attention"}, "pair=attention reads all states: set config.model.read=cls"),
    ({"data.sequence_length": 8}, "sequence_length 8 has no room .* at least 9"),
    ({"losses.classify": "hinge"}, "losses.classify is 'hinge'; it must be softmax, sigmoid, squared"),
    ({"data.labels": "nowhere.txt"}, "no list of labels at nowhere.txt"),
    ({"model.num_labels": 5}, "nlvr2.txt has 2 labels, but config.model.num_labels is 5"),
    ({"data.value_means": (1.0, 2.0, 3.0)}, "value_means has 3 entries"),
])  # fmt: skip
def test_contradictions_are_named(fields, message):
    config = tiny(**fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        labels_of(config)
        ClassLayout.of(config)
