"""The lists of answers that models know, and how their entries are written."""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vlbert_jax.files import parse_json

UNKNOWN = "<unk>"
PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"  # neither the colon nor the full stop, which has its own rule
MAX_FULL_STOPS = 32  # a mistake of the official code: it passes a flag where the count belongs
DIGITS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
DIGITS["none"] = "0"
# Number of LXMERT's answers -> the shipped list (vlbert_jax/assets/answers).
LXMERT_ANSWERS = {3129: "lxmert_vqa.json", 1842: "lxmert_gqa.json", 9500: "lxmert_all.json"}
LXMERT_PRETRAINING = 9500
LXMERT_ARTICLES = ("a ", "an ", "the ")  # removed one after another, in this order
LXMERT_WRITTEN = {word: digit for word, digit in DIGITS.items() if word not in ("none", "zero")} | {"grey": "gray"}
SHIPPED_ANSWERS = Path(__file__).resolve().parents[1] / "assets/answers"


def without_punctuation(text: str, flags: re.RegexFlag) -> str:
    """Return `text` without one mark of PUNCTUATION, or with a space in its place; drop most full stops."""
    thousands = re.search(r"\d,\d", text, flags)
    result = text
    for mark in PUNCTUATION:
        apart = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if apart or thousands else " ")
    return re.sub(r"\.(?!\d)", "", result, count=MAX_FULL_STOPS, flags=flags)


def vocabulary_entry(line: str) -> str:
    """Return an answer after the punctuation rule of the official vocabulary.

    Digits of any script, spaces and `<unk>` stay.
    """
    return line if line == UNKNOWN else without_punctuation(line, re.UNICODE)


def lxmert_spelling(answer: str) -> str:
    """Return an answer as LXMERT's lists have it: lower case, without full stop and article, numbers as digits."""
    found = answer.lower().removesuffix(".").strip()
    for article in LXMERT_ARTICLES:
        found = found.removeprefix(article).strip()
    return LXMERT_WRITTEN.get(found, found)


class AnswerVocabulary:
    """Answers by number. The first of repeated entries counts; `unknown` is the number of `<unk>`, -1 without it."""

    def __init__(self, entries: Sequence[str], needs_unknown: bool = True):
        self.entries = tuple(entries)
        self._numbers = {entry: number for number, entry in reversed(list(enumerate(self.entries)))}
        if needs_unknown and UNKNOWN not in self._numbers:
            raise ValueError(f"the answer vocabulary of {len(self.entries)} entries lacks {UNKNOWN}; add it as a line")
        self.unknown = self._numbers.get(UNKNOWN, -1)

    def __len__(self) -> int:
        return len(self.entries)

    def number(self, answer: str) -> int:
        """Return the number of an answer as it is, without normalization; `unknown` if it is not an entry."""
        return self._numbers.get(answer, self.unknown)


def load_answers(path: str | os.PathLike) -> AnswerVocabulary:
    """Read one answer per line (UTF-8): lower case, stripped, without blank lines, then `vocabulary_entry`.

    A .json file is a list of answers, or an object answer -> number, as the siblings of VL-BERT have them; its entries
    stay as they are, and `<unk>` need not be one of them.

    An entry that the rule changes ("t-shirt", "what?") may differ from every answer that annotators gave; that is
    official. Raises FileNotFoundError, ValueError without `<unk>` or if it is not UTF-8.
    """
    try:
        if os.fspath(path).endswith(".json"):
            return AnswerVocabulary(_json_answers(Path(path).read_text("utf-8")), needs_unknown=False)
        with open(path, encoding="utf-8") as lines:
            stripped = [line.lower().strip() for line in lines]
        return AnswerVocabulary([vocabulary_entry(line) for line in stripped if line])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _json_answers(text: str) -> list[str]:
    content = parse_json(text)
    numbers = list(content.values()) if isinstance(content, dict) else []
    if numbers and all(type(number) is int for number in numbers) and sorted(numbers) == list(range(len(numbers))):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) for answer in content):
        raise ValueError("the file must hold a list of answers, or an object answer -> number with every number once")
    return content


_load_answers = functools.cache(load_answers)


def answers_of(config) -> AnswerVocabulary:
    """Return the answer vocabulary of a run; it is read once.

    Raises:
        FileNotFoundError: There is no vocabulary.
        ValueError: It does not have `model.num_answers` entries, or is the list of another model.
    """
    architecture = config.model.get("architecture", "vlbert")
    if not config.data.answers:
        raise FileNotFoundError(
            f"no answer list: the weights of {architecture} do not hold theirs, and each model has its own order; "
            "take the list of its code (a .json list, or an object answer -> number)"
        )
    local = os.path.join(config.data.data_dir, config.data.answers)
    path = local if os.path.exists(local) else config.data.answers
    if not os.path.exists(path) and (SHIPPED_ANSWERS / path).exists():
        path = str(SHIPPED_ANSWERS / path)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no answer vocabulary at {local} (config.data.answers). Build again with --answers=3129, or with "
            "answers_vqa.txt in the download; existing tables are kept."
        )
    answers = _load_answers(path)
    if (answers.unknown >= 0) != config.data.get("answers_have_unknown", True):
        raise ValueError(
            f"{path} is the answer list of another model: {UNKNOWN} is an answer of VL-BERT and VisualBERT "
            f"alone. Give the list that the weights of {architecture} were trained with."
        )
    if len(answers) != config.model.num_answers:
        raise ValueError(
            f"{path} has {len(answers)} answers, but config.model.num_answers is {config.model.num_answers}. "
            "Set it, or set config.data.answers to the vocabulary that the checkpoint was trained with."
        )
    return answers
