"""WordPiece tokenization of texts."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int

from vlbert_jax.files import read_json_object, read_lines

TOKENIZER_CONFIG = "tokenizer_config.json"
# Field of tokenizer_config.json -> argument of the normalizer and default. Accents: None = removed with upper case.
NORMALIZATION = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
SPECIAL = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """The WordPiece tokenizer of BERT, with the grouping into words that whole-word masking needs."""

    backend: tokenizers.Tokenizer
    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    ordinary_ids: Int[np.ndarray, "v"]  # tokens that may replace a word: neither special nor unused

    def encode(self, text: str) -> tokenizers.Encoding:
        """Return the encoding of a text without [CLS] and [SEP].

        Raises:
            ValueError: Part of the text is not Unicode, as after a command line in another encoding.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False)
        except TypeError:
            raise ValueError(f"the text {text[:60]!r} is not Unicode; write it in UTF-8") from None

    def words(self, text: str, limit: int | None = None) -> list[list[int]]:
        """Return the token ids of each word (`BasicTokenizer`).

        Words end at spaces and punctuation. Those of an uncased vocabulary are in lower case without accents.
        With `limit`, only the start of a long text is read: at least `limit` words, if there are that many.
        """
        head = text if limit is None else " ".join(text.split(maxsplit=limit)[:limit])
        encoding = self.encode(head)
        words, last = [], None
        for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word != last:
                words.append([])
                last = word
            words[-1].append(piece)
        if limit is not None and len(words) < limit and len(head) < len(text.strip()):
            return self.words(text)  # BERT drops all characters of some of the first words
        return words


def load_tokenizer(vocab: str, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a vocabulary.

    Args:
        vocab: A `vocab.txt`, a folder that has one, or a name at Hugging Face (downloaded once). Text becomes lower
            case without accents, unless `do_lower_case` or `strip_accents` in tokenizer_config.json beside vocab.txt
            is false.
        vocab_size: Number of tokens that the model has.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The vocabulary has another number of tokens, or tokens in upper case that no text reaches.
    """
    file = os.path.join(vocab, "vocab.txt") if os.path.isdir(vocab) else vocab
    if os.path.isfile(file):
        backend = _word_piece(file, _normalization(Path(file).with_name(TOKENIZER_CONFIG)))
    elif vocab.endswith(".txt"):
        raise FileNotFoundError(f"no vocabulary at {vocab!r} (config.data.vocab)")
    else:
        import transformers  # it takes seconds, and files need it not

        fast = transformers.BertTokenizerFast.from_pretrained(vocab)  # pyright: ignore[reportAttributeAccessIssue]
        backend = fast.backend_tokenizer
    pieces = backend.get_vocab()
    if len(pieces) != vocab_size:
        found = f"the vocabulary {vocab!r} has {len(pieces)} tokens"
        raise ValueError(
            f"{found}, but config.model.encoder.vocab_size is {vocab_size}: set it to {len(pieces)} for a new model, "
            "or config.data.vocab to the vocabulary of the weights"
        )
    cased = sorted(piece for piece in pieces if re.search("[A-Z]", piece) and not piece.startswith("["))
    if cased and getattr(backend.normalizer, "lowercase", False):
        raise ValueError(
            f"the vocabulary {vocab!r} has tokens in upper case ({', '.join(cased[:3])}), but its text becomes lower "
            f"case: put the model's {TOKENIZER_CONFIG} with do_lower_case: false beside vocab.txt, or choose an "
            "uncased vocabulary"
        )
    ordinary = [i for piece, i in pieces.items() if piece not in SPECIAL and not piece.startswith("[unused")]
    return Tokenizer(
        backend=backend,
        vocab_size=vocab_size,
        cls_id=pieces["[CLS]"],
        sep_id=pieces["[SEP]"],
        mask_id=pieces["[MASK]"],
        ordinary_ids=np.array(sorted(ordinary), np.int32),
    )


def _word_piece(file: str, normalization: Mapping[str, bool | None]) -> tokenizers.Tokenizer:
    """Return what transformers.BertTokenizerFast makes of a vocab.txt.

    Raises:
        ValueError: A special token is missing.
    """
    pieces = {piece: number for number, piece in enumerate(read_lines(file))}
    if lacking := [token for token in SPECIAL if token not in pieces]:
        raise ValueError(f"the vocabulary {file!r} has no {', '.join(lacking)}; every BERT has them")
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(**normalization)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    ends = [(token, pieces[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    backend.add_special_tokens(list(SPECIAL))
    return backend


def _normalization(about: Path) -> dict[str, bool | None]:
    """Return the arguments of the normalizer that a tokenizer_config.json states; the defaults without the file."""
    stated = {}
    if about.is_file():
        try:
            stated = read_json_object(about, "download it again")
        except ValueError as error:
            raise ValueError(f"{about} is no JSON object ({error}); download it again") from None
    found = {}
    for name, (argument, default) in NORMALIZATION.items():
        value = found[argument] = stated.get(name, default)
        if not isinstance(value, bool) and value is not default:
            raise ValueError(f"{about}: {name} is {value!r}; it must be true or false")
    return found


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that `load_tokenizer` and `transformers.AutoTokenizer` read into a folder.

    They are vocab.txt, tokenizer.json and tokenizer_config.json.
    """
    backend = tokenizer.backend
    tokens = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    about: dict[str, Any] = {"tokenizer_class": "BertTokenizer"}
    for name, (argument, default) in NORMALIZATION.items():
        about[name] = getattr(backend.normalizer, argument, default)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), "utf-8")
    backend.save(str(folder / "tokenizer.json"))
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(about | special, indent=2) + "\n")


@functools.cache
def _tokenizer(vocab: str, vocab_size: int) -> Tokenizer:
    return load_tokenizer(vocab, vocab_size)


def tokenizer_of(config) -> Tokenizer:
    """Return the tokenizer of a run; it is loaded once."""
    local = os.path.join(config.data.data_dir, config.data.vocab)
    return _tokenizer(local if os.path.exists(local) else config.data.vocab, config.model.encoder.vocab_size)


def masking_ids(config) -> tuple[int, int, tuple[int, int]]:
    """Return the vocabulary size, the id of [MASK], and the ids of [CLS] and [SEP], as `without_words` takes them."""
    tokenizer = tokenizer_of(config)
    return tokenizer.vocab_size, tokenizer.mask_id, (tokenizer.cls_id, tokenizer.sep_id)


MIRROR = {"left": "right", "right": "left"}


def mirrored(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return token ids with left and right exchanged, for a mirrored image."""
    swap = {tokenizer.backend.token_to_id(a): tokenizer.backend.token_to_id(b) for a, b in MIRROR.items()}
    return [swap.get(i, i) for i in ids]
