"""Test the tokenizer and the layout of packed sequences."""

import pathlib

import numpy as np
import pytest

from vlbert_jax.batch import END, IMG, IMG_MASK, NO_IMAGE
from vlbert_jax.data.packing import pack, truncate
from vlbert_jax.data.tokenizer import load_tokenizer

TOKENS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "ball",
    "##s",
    "cafe",
    ".",
    "'",
    "s",
]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(TOKENS) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer(vocab):
    return load_tokenizer(str(vocab), len(TOKENS))


def named(words):
    return [[TOKENS[token] for token in word] for word in words]


# --- Text -----------------------------------------------------------------------------------------


def test_tokens_are_grouped_by_basic_word(tokenizer):
    words = named(tokenizer.words("A red  BALLS, Café's\tballs."))
    comma = ["[UNK]"]
    assert words == [["a"], ["red"], ["ball", "##s"], comma, ["cafe"], ["'"], ["s"], ["ball", "##s"], ["."]]
    assert tokenizer.words("  \n") == []


def test_special_tokens_in_the_text_are_kept(tokenizer):
    assert named(tokenizer.words("red [MASK][MASK] ball")) == [["red"], ["[MASK]"], ["[MASK]"], ["ball"]]


def test_the_vocabulary_is_read(tokenizer):
    """The tokenizer reads the file, although transformers 5 ignores the argument `vocab_file`."""
    assert named(tokenizer.words("a red ball")) == [["a"], ["red"], ["ball"]]
    assert (TOKENS[tokenizer.cls_id], TOKENS[tokenizer.sep_id], TOKENS[tokenizer.mask_id]) == (
        "[CLS]",
        "[SEP]",
        "[MASK]",
    )


def test_random_words_are_not_special_tokens(tokenizer):
    assert [TOKENS[i] for i in tokenizer.ordinary_ids] == TOKENS[6:]


@pytest.mark.parametrize("limit", [1, 2, 5, 50])
@pytest.mark.parametrize(
    "text", ["a red ball", "a, red. ball's " * 9, "\x00 \x00 a \x00 red balls \x00", " a "]
)
def test_a_limit_changes_only_the_tail(tokenizer, text, limit):
    whole, head = tokenizer.words(text), tokenizer.words(text, limit)
    assert len(head) >= min(limit, len(whole)) and head == whole[: len(head)]


def test_a_vocabulary_of_another_size_is_an_error(vocab):
    with pytest.raises(ValueError, match="has 14 tokens, but config.model.encoder.vocab_size is 30522"):
        load_tokenizer(str(vocab), 30522)
    with pytest.raises(FileNotFoundError, match="no vocabulary at 'nowhere/vocab.txt'"):
        load_tokenizer("nowhere/vocab.txt", 14)


def test_a_folder_with_a_vocabulary_is_read(vocab):
    assert load_tokenizer(str(vocab.parent), len(TOKENS)).words("red balls") == [[7], [8, 9]]


# --- Layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_text", "num_regions", "length", "kept"),
    [
        (20, 40, 64, (20, 40)),  # both parts fit
        (20, 80, 64, (20, 44)),  # the longer part is cut
        (80, 20, 64, (44, 20)),
        (80, 80, 64, (32, 32)),  # text is cut first if both parts are equally long
        (33, 80, 64, (32, 32)),
        (31, 80, 64, (31, 33)),
        (2, 101, 64, (2, 62)),
        (64, 1, 64, (63, 1)),
        (9, 9, 3, (2, 2)),  # two text elements always remain
    ],
)
def test_truncation(num_text, num_regions, length, kept):
    assert truncate(num_text, num_regions, length) == kept


def test_text_longer_than_the_sequence_may_be_cut_before():
    """All texts of at least `length` elements are cut to the same length."""
    for regions in range(1, 120):
        assert len({truncate(text, regions, 64) for text in range(64, 200)}) == 1


def test_packed_by_hand():
    packed = pack([3, 6, 7, 4], [0, 0, 1, 1], 2, [False, True], [0, 0, 1, 0], 8, vocab_size=100)
    assert packed["token_ids"].tolist() == [3, 6, 7, 4, 100 + IMG, 100 + IMG_MASK, 100 + END, 0, 0]
    assert packed["region_ids"].tolist() == [0, 0, 1, 0, 0, 1, *[NO_IMAGE] * 3]
    assert packed["segment_ids"].tolist() == [0, 0, 1, 1, 2, 2, 2, 0, 0]
    assert packed["position_ids"].tolist() == [0, 1, 2, 3, 4, 4, 5, 0, 0]
    assert packed["element_mask"].tolist() == [True] * 7 + [False] * 2
    assert {name: a.dtype for name, a in packed.items()} == {
        name: np.bool_ if name == "element_mask" else np.int32 for name in packed
    }


def test_packed_text_alone_and_full():
    packed = pack([6, 7, 8], [0] * 3, 0, [], [NO_IMAGE] * 3, 3, vocab_size=100)
    assert packed["token_ids"].tolist() == [6, 7, 8, 100 + END]
    assert packed["region_ids"].tolist() == [NO_IMAGE] * 4
    assert packed["position_ids"].tolist() == [0, 1, 2, 4]  # [END] is at the next position, with or without regions
    assert packed["element_mask"].all()


def test_position_offset():
    packed = pack([6, 7], [0, 0], 1, [False], [0, 0], 4, vocab_size=100, position_offset=2)
    assert packed["position_ids"].tolist() == [2, 3, 4, 5, 0]


def test_too_many_elements_are_an_error():
    with pytest.raises(ValueError, match="3 text elements and 2 regions do not fit a sequence of 4"):
        pack([6, 7, 8], [0] * 3, 2, [False] * 2, [0] * 3, 4, vocab_size=100)
