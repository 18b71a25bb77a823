"""Plain texts of user-supplied data are choices like those of VCR."""

import numpy as np

from tests.helpers.golden_data_case import load_tokenizer
from vlbert_jax.batch import IMG
from vlbert_jax.data.packing import VLBERT_LAYOUT
from vlbert_jax.tasks.choice.examples import ChoiceLayout, choice_example
from vlbert_jax.tasks.choice.results import columns, probabilities
from vlbert_jax.tasks.choice.texts import as_question, is_answerable

RECORD = dict(
    example_id="7", text="what is left ?", choices=["the red one", "green", "the red one"], label=1, extra="",
    image=np.full((30, 40, 3), 90, np.uint8), image_size=np.array([40, 30]),
    boxes=np.array([[2, 3, 14, 16], [5, 6, 25, 28]], np.float32),
)  # fmt: skip


def layout() -> ChoiceLayout:
    return ChoiceLayout(
        precomputed=False, image_scale=(30, 40), orientation="landscape", max_regions=3, feature_size=4,
        geometry_dtype=None, regions=VLBERT_LAYOUT, subtask="q2a", sequence_length=24, text_length=16, roi_size=2,
        num_classes=81, num_choices=3,
    )  # fmt: skip


def test_an_example_by_hand():
    tokenizer = load_tokenizer()
    example = choice_example(as_question(RECORD), False, tokenizer, layout())
    assert example["token_ids"].shape == (3, 25) and example["choice"] == 1 and not example["text_cut"]
    ids = [tokenizer.backend.token_to_id(word) for word in "[CLS] what is left ? [SEP] green [SEP]".split()]
    assert example["token_ids"][1, :11].tolist() == [*ids, *[tokenizer.vocab_size + IMG] * 3]
    assert (example["region_ids"][1, :8] == 0).all()  # words carry the whole image
    assert (example["region_shapes"][:3] == 1).all() and example["region_classes"][:3].tolist() == [0, 0, 0]
    hidden = choice_example(as_question(RECORD | dict(label=-1)), False, tokenizer, layout())
    assert hidden["choice"] == -1


def test_records_of_vcr_stay_as_they_are():
    record = dict(question="[]", answers=["[]"] * 4)
    assert as_question(record) is record


def test_what_can_be_learned_from():
    tokenizer = load_tokenizer()
    assert is_answerable(RECORD, "q2a", tokenizer)
    assert not is_answerable(RECORD | dict(choices=["green", "green"]), "q2a", tokenizer)
    assert is_answerable(RECORD | dict(label=-1), "q2a", tokenizer)


def test_probabilities_and_columns_of_any_number_of_choices():
    found = probabilities(np.log(np.array([[1.0, 2.0, 5.0]])), 3)
    np.testing.assert_allclose(found, [[0.125, 0.25, 0.625]], rtol=1e-6)
    assert columns("q2a", 3) == ["answer_0", "answer_1", "answer_2"]
