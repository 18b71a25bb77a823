"""The tokenizer follows the case of its vocabulary, however the vocabulary is named."""

import json

import pytest
import transformers

from vlbert_jax.data.tokenizer import TOKENIZER_CONFIG, load_tokenizer, write_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CASED = [*SPECIAL, "Paris", "London", "the", "dog", "Is", "is", "é", "##é", "caf", "p", "##aris"]


def write(folder, tokens, **about):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    if about:
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(about))
    return folder


def tokens_of(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for word in tokenizer.words(text) for i in word]


@pytest.mark.parametrize("name", ["", "vocab.txt"])
def test_a_cased_vocabulary_keeps_case_and_accents(name, tmp_path):
    folder = write(tmp_path / "cased", CASED, do_lower_case=False)
    tokenizer = load_tokenizer(str(folder / name), len(CASED))
    assert tokens_of(tokenizer, "Is the dog is Paris London café") == [
        "Is", "the", "dog", "is", "Paris", "London", "caf", "##é",
    ]  # fmt: skip
    write_tokenizer(tokenizer, tmp_path / "copy")
    copy = load_tokenizer(str(tmp_path / "copy" / name), len(CASED))
    assert tokens_of(copy, "Is Paris café") == ["Is", "Paris", "caf", "##é"]


@pytest.mark.parametrize("about", [{}, {"do_lower_case": True}], ids=str)
@pytest.mark.parametrize("name", ["", "vocab.txt"])
def test_tokens_that_no_text_reaches_are_refused(name, about, tmp_path):
    folder = write(tmp_path / "cased", CASED, **about)
    with pytest.raises(ValueError, match=r"cased.* tokens in upper case \(Is, London, Paris\).*do_lower_case: false"):
        load_tokenizer(str(folder / name), len(CASED))


def test_an_uncased_vocabulary_needs_no_config(tmp_path):
    folder = write(tmp_path / "uncased", [*SPECIAL, "[unused0]", "the", "dog", "cafe"])
    tokenizer = load_tokenizer(str(folder), 9)
    assert tokens_of(tokenizer, "The DOG Café") == ["the", "dog", "cafe"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is no JSON object"), ("[]", "is no JSON object"), ('{"do_lower_case": "no"}', "is 'no'")],
)
def test_a_bad_config_is_reported(text, reason, tmp_path):
    folder = write(tmp_path / "bad", CASED)
    (folder / TOKENIZER_CONFIG).write_text(text)
    with pytest.raises(ValueError, match=f"bad/{TOKENIZER_CONFIG}.*{reason}"):
        load_tokenizer(str(folder), len(CASED))


ABOUT = [
    dict(do_lower_case=True), dict(do_lower_case=False), dict(do_lower_case=True, strip_accents=False),
    dict(do_lower_case=False, strip_accents=True, tokenize_chinese_chars=False),
]  # fmt: skip


@pytest.mark.parametrize("about", ABOUT, ids=str)
def test_a_file_gives_the_tokenizer_of_transformers(about, tmp_path):
    """All of it: normalization, splitting, special tokens and the template of pairs."""
    lower = about["do_lower_case"]
    pieces = ["[PAD]", "b" if lower else "B", "[UNK]", "##a", "[CLS]", "[SEP]", "[MASK]", "\u00e9"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    expected = transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), **about)
    found = load_tokenizer(str(tmp_path), len(pieces))
    assert json.loads(found.backend.to_str()) == json.loads(expected.backend_tokenizer.to_str())
    write_tokenizer(found, tmp_path / "copy")
    for copy in (
        load_tokenizer(str(tmp_path / "copy"), len(pieces)).backend,
        transformers.AutoTokenizer.from_pretrained(tmp_path / "copy").backend_tokenizer,
    ):
        assert copy.normalizer.normalize_str("\u00c9a\u4e00") == found.backend.normalizer.normalize_str("\u00c9a\u4e00")
    assert (found.cls_id, found.sep_id, found.mask_id) == (4, 5, 6) and found.ordinary_ids.tolist() == [1, 3, 7]
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece in pieces if piece != "[SEP]"), "utf-8")
    with pytest.raises(ValueError, match=r"vocab.txt' has no \[SEP\]; every BERT has them"):
        load_tokenizer(str(tmp_path), len(pieces) - 1)


def test_a_text_that_is_not_unicode_is_named(tmp_path):
    tokenizer = load_tokenizer(str(write(tmp_path, [*SPECIAL, "the"])), 6)
    for text in ("the caf\udce9", "\ud83d"):  # as a command line in Latin-1 gives it; half of a pair
        with pytest.raises(ValueError, match="is not Unicode; write it in UTF-8") as error:
            tokenizer.words(text)
        str(error.value).encode()
