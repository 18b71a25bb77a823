"""Text to pieces, and pieces and regions to the packed sequence that the model reads. NumPy, per example."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Bool, Int

from vlbert_jax import batch

# --- Text -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """BERT's uncased WordPiece, with the grouping into basic words that whole-word masking needs."""

    backend: tokenizers.Tokenizer
    vocab_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    ordinary_ids: Int[np.ndarray, "v"]  # what a random word may be: no special and no unused piece

    def words(self, text: str, limit: int | None = None) -> list[list[int]]:
        """Piece ids of each basic word (`BasicTokenizer`: lower case, no accents, split at punctuation).

        With `limit`, at least as many of the first words as that if there are so many: the rest of a long
        text is then left unread.
        """
        head = text if limit is None else " ".join(text.split(maxsplit=limit)[:limit])
        encoding = self.backend.encode(head, add_special_tokens=False)
        words, last = [], None
        for piece, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word != last:
                words.append([])
                last = word
            words[-1].append(piece)
        if limit is not None and len(words) < limit and len(head) < len(text.strip()):
            return self.words(text)  # some of the first words were nothing but characters that BERT drops
        return words


def load_tokenizer(vocab: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of a `vocab.txt`, of a folder that has one, or of a name that Hugging Face knows (downloaded once).

    Raises FileNotFoundError if there is no such file, ValueError if it has not `vocab_size` pieces.
    """
    if os.path.isfile(os.path.join(vocab, "vocab.txt")):
        vocab = os.path.join(vocab, "vocab.txt")
    if os.path.isfile(vocab):
        # `vocab=`: transformers 5 ignores the old `vocab_file=` and then knows no word; hence the check
        # below.
        fast = transformers.BertTokenizerFast(vocab=vocab, do_lower_case=True)
    elif vocab.endswith(".txt"):
        raise FileNotFoundError(f"no vocabulary at {vocab!r} (config.data.vocab)")
    else:
        fast = transformers.BertTokenizerFast.from_pretrained(vocab)
    pieces = fast.get_vocab()
    if len(pieces) != vocab_size:
        found = f"the vocabulary {vocab!r} has {len(pieces)} pieces"
        raise ValueError(f"{found}, config.model.encoder.vocab_size is {vocab_size}")
    special = set(fast.all_special_ids)
    ordinary = [i for piece, i in pieces.items() if i not in special and not piece.startswith("[unused")]
    return Tokenizer(
        backend=fast.backend_tokenizer,
        vocab_size=vocab_size,
        cls_id=fast.cls_token_id,
        sep_id=fast.sep_token_id,
        mask_id=fast.mask_token_id,
        ordinary_ids=np.array(sorted(ordinary), np.int32),
    )


# --- Layout -----------------------------------------------------------------------------------------------


def truncate(num_text: int, num_regions: int, length: int) -> tuple[int, int]:
    """How many text elements and regions (the whole image counts) stay in a sequence of `length`.

    The longer part gives way one by one, text at a tie, but two text elements and one region always stay. Of
    the text the last element, [SEP], is to be kept (official code since 2020-05-21; the released weights were
    trained before, on sequences whose cut text lost it).
    """
    while num_text + num_regions > length and num_text > 0 and num_regions > 0:
        if num_regions > num_text:
            num_regions -= 1
        else:
            num_text -= 1
    return max(num_text, 2), max(num_regions, 1)


def pack(
    text_ids: Sequence[int] | Int[np.ndarray, "t"],
    segment_ids: Sequence[int] | Int[np.ndarray, "t"],
    num_regions: int,
    region_hidden: Sequence[bool] | Bool[np.ndarray, "k"],
    text_region_ids: Sequence[int] | Int[np.ndarray, "t"],
    length: int,
    vocab_size: int,
    position_offset: int = 0,
) -> dict[str, np.ndarray]:
    """One sequence, each array of `length` + 1 elements: text, regions 0..num_regions-1, [END], padding.

    `segment_ids` and `text_region_ids` belong to the text; `region_hidden` has an entry for each region (more
    are ignored). All regions share the position behind the text and carry segment 2, and so does [END], one
    position on. Padding is 0 with region NO_IMAGE. Returns `token_ids`, `region_ids`, `segment_ids`,
    `position_ids` (int32) and `element_mask` (bool). Raises ValueError if it does not fit.
    """
    t, k = len(text_ids), num_regions
    if t + k > length:
        raise ValueError(f"{t} text elements and {k} regions do not fit a sequence of {length}")
    s = length + 1
    token_ids = np.zeros(s, np.int32)
    region_ids = np.full(s, batch.NO_IMAGE, np.int32)
    segments = np.zeros(s, np.int32)
    positions = np.zeros(s, np.int32)
    token_ids[:t] = text_ids
    region_ids[:t] = text_region_ids
    segments[:t] = segment_ids
    positions[:t] = np.arange(t)
    hidden = np.asarray(region_hidden[:k], bool)
    token_ids[t : t + k] = vocab_size + np.where(hidden, batch.IMG_MASK, batch.IMG)
    region_ids[t : t + k] = np.arange(k)
    token_ids[t + k] = vocab_size + batch.END
    segments[t : t + k + 1] = 2
    positions[t : t + k] = t
    positions[t + k] = t + 1
    positions[: t + k + 1] += position_offset
    return {
        "token_ids": token_ids,
        "region_ids": region_ids,
        "segment_ids": segments,
        "position_ids": positions,
        "element_mask": np.arange(s) < t + k + 1,
    }
