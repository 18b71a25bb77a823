"""The lists of answers that models know, and how their entries are written."""

import functools
import io
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
JSON_FORM = "the file must hold a list of answers, or an object answer -> number with every number once"
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
            raise ValueError(
                f"the answer vocabulary of {len(self.entries)} entries lacks {UNKNOWN}; add it as a line, or set "
                "config.data.answers_have_unknown=False for a model that has no such answer"
            )
        self.unknown = self._numbers.get(UNKNOWN, -1)

    def __len__(self) -> int:
        return len(self.entries)

    def number(self, answer: str) -> int:
        """Return the number of an answer as it is, without normalization; `unknown` if it is not an entry."""
        return self._numbers.get(answer, self.unknown)


def load_answers(path: str | os.PathLike, needs_unknown: bool = True) -> AnswerVocabulary:
    """Read one answer per line (UTF-8): lower case, stripped, without blank lines, then `vocabulary_entry`.

    A .json file is a list of answers, or an object answer -> number, as the siblings of VL-BERT have them; its entries
    stay as they are, and `<unk>` need not be one of them. Without `needs_unknown` the same holds for lines.

    An entry that the rule changes ("t-shirt", "what?") may differ from every answer that annotators gave; that is
    official. Raises FileNotFoundError, ValueError without `<unk>` or if it is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x80") or os.fspath(path).endswith(".pkl"):
            raise ValueError("it is a pickle, which is not read here; save its list of answers as a .json file")
        if os.fspath(path).endswith(".json"):
            return AnswerVocabulary(_json_answers(content.decode()), needs_unknown=False)
        lines = io.TextIOWrapper(io.BytesIO(content), "utf-8").readlines()
        if not needs_unknown:
            return AnswerVocabulary([line.removesuffix("\n") for line in lines], needs_unknown=False)
        stripped = [line.lower().strip() for line in lines]
        return AnswerVocabulary([vocabulary_entry(line) for line in stripped if line])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _json_answers(text: str) -> list[str]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{JSON_FORM}, and is no JSON: {error}") from None
    numbers = list(content.values()) if isinstance(content, dict) else []
    if numbers and all(type(number) is int for number in numbers) and sorted(numbers) == list(range(len(numbers))):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) for answer in content):
        raise ValueError(JSON_FORM)
    return content


_load_answers = functools.cache(load_answers)


def path_of_list(data_dir: str, name: str) -> str:
    """Return the path of an answer list: below `data_dir`, elsewhere, or of those that ship; else the first one."""
    local = os.path.join(data_dir, name)
    return next((path for path in (local, name, str(SHIPPED_ANSWERS / name)) if os.path.exists(path)), local)


def check_replaced(config, own: str, data_dir: str) -> str:
    """Return what is wrong with `config.data.answers` in place of the list of the weights, as a sentence; "" = nothing.

    Lists of several models have the same length, and the order of each is its own.

    Args:
        config: Config with the list that is given.
        own: `config.data.answers` of the weights, "" where they have none.
        data_dir: Folder of the data of the weights.
    """
    given, path = answers_of(config).entries, path_of_list(data_dir, own)
    if own and os.path.exists(path):
        if _load_answers(path, config.data.get("answers_have_unknown", True)).entries == given:
            return ""
        return f"{config.data.answers} has other answers, or another order, than {own}, the list of the weights."
    architecture, lxmert = config.model.get("architecture", "vlbert"), LXMERT_ANSWERS.get(len(given), "")
    if architecture != "lxmert" and lxmert and _load_answers(str(SHIPPED_ANSWERS / lxmert)).entries == given:
        return f"{config.data.answers} is the answer list of LXMERT; weights of {architecture} have another order."
    return ""


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
    path = path_of_list(config.data.data_dir, config.data.answers)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no answer vocabulary at {path} (config.data.answers). Build again with --answers=3129, or with "
            "answers_vqa.txt in the download; existing tables are kept."
        )
    have_unknown = config.data.get("answers_have_unknown", True)
    answers = _load_answers(path, have_unknown)
    if (answers.unknown >= 0) != have_unknown:
        raise ValueError(
            f"{path} is the answer list of another model: {UNKNOWN} is an answer of VL-BERT and VisualBERT "
            f"alone. Give the list that the weights of {architecture} were trained with; in a run that is to learn "
            f"this list, set --config.data.answers_have_unknown={not have_unknown}."
        )
    if len(answers) != config.model.num_answers:
        raise ValueError(
            f"{path} has {len(answers)} answers, but config.model.num_answers is {config.model.num_answers}. "
            "Set it, or set config.data.answers to the vocabulary that the checkpoint was trained with."
        )
    return answers
