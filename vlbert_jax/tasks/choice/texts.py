"""The texts of VCR: how they name objects, how they are cut, and how they become the text of a sequence.

Q2A: a question and an answer. QA2R: a question, the right answer and a rationale; where the right answer is unknown
(test), all four are tried: 16 sequences, ordered by answer, then by rationale.
"""

from __future__ import annotations

import collections
import json
import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from vlbert_jax.data.sibling_rules import words_of_regions
from vlbert_jax.data.tokenizer import Tokenizer

SUBTASKS = ("q2a", "qa2r")
REGION = re.compile(r"(\[\d+(?:\s*,\s*\d+)*\])")  # [1] or [1,2]: how VCR's texts name regions
PERSON = "person"  # the category whose objects get names
PERSON_NAMES = "Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Frankie Pat Quinn".split()
# config.data.arrangement -> the part in which question, answer and rationale are. [SEP] follows every part.
ARRANGEMENTS = {
    "context": (0, 0, 1),  # a rationale responds to question and answer: VL-BERT, ViLBERT
    "context_tail": (0, 0, 1),  # as context, and of a response that is too long the tail is kept: VisualBERT
    "response": (0, 1, 1),  # answer and rationale respond to the question
    "inline": (0, 1, 1),  # as response, and regions are words of the text (inline.py): B2T2
    "apart": (0, 1, 2),  # UNITER
}
# Segments of the parts; UNITER's regions have 1.
SEGMENTS = dict.fromkeys(ARRANGEMENTS, (0, 1)) | {"apart": (0, 2, 3)}
ALIGNED = 8  # most words of a sequence that a region is aligned with

Tokens = list[tuple[int, int]]  # (token id, region whose feature it carries)


def object_names(objects: Sequence[str], start: int) -> list[str]:
    """Return what texts call the objects: their category, or for persons one of 13 neutral names.

    Names are taken in turn from number `start`. The official code continues from example to example, so
    that a name depends on what its process has read before; here `first_name` determines the start.
    """
    names, number = [], start
    for category in objects:
        if category == PERSON:
            names.append(PERSON_NAMES[number % len(PERSON_NAMES)])
            number += 1
        else:
            names.append(category)
    return names


def first_name(annot_id: str) -> int:
    """Return the number of the first name in a question: a fixed one, uniform over questions."""
    return zlib.crc32(annot_id.encode()) % len(PERSON_NAMES)


def tagged_words(text: str, names: Sequence[str]) -> list[tuple[str, int]]:
    """Return (word, region) for each word of a text in the form of the builder.

    The form is a JSON list of words and of lists of object numbers; a list [i, j] reads "name_i and name_j".
    Region i + 1 is object i, region 0 the whole image.
    """
    found = []
    for part in json.loads(text):
        if isinstance(part, str):
            found.append((part, 0))
            continue
        for place, number in enumerate(part):
            found += [("and", 0)] * (place > 0) + [(names[number], number + 1)]
    return found


def readable(text: str, names: Sequence[str]) -> str:
    """Return such a text as a sentence."""
    return " ".join(word for word, _ in tagged_words(text, names))


def tagged_tokens(text: str, names: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    """Return (token id, region) for each token of such a text; words are tokenized one by one."""
    found = tagged_words(text, names)
    words = [word for word, _ in found]
    encoding = tokenizer.backend.encode(words, is_pretokenized=True, add_special_tokens=False)
    return [(piece, found[word][1]) for piece, word in zip(encoding.ids, encoding.word_ids, strict=True)]  # pyright: ignore[reportCallIssue]


def as_question(record: dict) -> dict:
    """Return a record of plain texts, as user-supplied data have, in the form of the records of VCR.

    Such a record has `example_id`, `text`, `choices` and `label`, -1 without one; no text names a region. A
    record of VCR is returned as it is.
    """
    if "choices" not in record:
        return record
    number = len(record.get("boxes", ()))
    return record | dict(
        annot_id=record["example_id"],
        objects=["region"] * number,
        classes=np.zeros(number, np.int32),
        shapes=np.ones((number, 14, 14), np.uint8),
        question=json.dumps(record["text"].split()),
        answers=[json.dumps(choice.split()) for choice in record["choices"]],
        answer_label=record["label"],
        rationale_label=-1,
    )


def is_answerable(record: dict, subtask: str, tokenizer: Tokenizer) -> bool:
    """Return whether the right choice is one of the choices and the model reads it otherwise than the others.

    Without a label there is nothing to compare, and the result is True.
    """
    record = as_question(record)
    choices, label = (("answers", "answer_label"), ("rationales", "rationale_label"))[SUBTASKS.index(subtask)]
    texts, number = list(record[choices]), int(record[label])
    if not 0 <= number < len(texts):
        return number < 0

    def read(text: str) -> list:
        return [tokenizer.words(part) if isinstance(part, str) else part for part in json.loads(text)]

    return any(read(texts[number]) != read(text) for text in texts)


def cut_answers(question: int, answers: Sequence[int], limit: int) -> tuple[int, list[int]]:
    """Return how many tokens of the question and of each answer are kept (official Q2A).

    While a pair is too long, the answer loses its last token if it is longer, else the question does. The
    question is shared by the four answers: a token that it lost for one answer is lost for the next ones
    and, in the end, for all.
    """
    kept = []
    for answer in answers:
        while question + answer > limit:
            if answer > question:
                answer -= 1
            else:
                question -= 1
        kept.append(answer)
    return question, kept


def cut_rationales(question: int, answer: int, rationales: Sequence[int], limit: int) -> tuple[int, int, list[int]]:
    """Return how many tokens of the question, the answer and each rationale are kept (official QA2R).

    The rationale is shortened if it is longer than question and answer together, else the question down to
    one token, then the answer. Question and answer are shared by the four rationales, as in `cut_answers`.
    The official code does this in training and validation.
    """
    kept = []
    for rationale in rationales:
        while question + answer + rationale > limit:
            if rationale > question + answer:
                rationale -= 1
            elif question > 1:
                question -= 1
            else:
                answer -= 1
        kept.append(rationale)
    return question, answer, kept


def cut_response(texts: Sequence[list], limit: int) -> list[list]:
    """Return what is kept of the texts of a sequence whose last one loses its beginning (VisualBERT).

    The original code fails where the texts before it are longer than `limit`; here they lose their end.
    """
    *context, response = texts
    kept, room = [], limit
    for text in context:
        kept.append(text[:room])
        room -= len(kept[-1])
    return [*kept, response[max(len(response) - room, 0) :]]


def cut_texts(
    record: dict, start: int, subtask: str, tokenizer: Tokenizer, limit: int, arrangement: str = "context"
) -> tuple[list[list[Tokens]], bool]:
    """Return the texts of each sequence as tokens, and whether any was cut.

    In test the official code does not cut QA2R, and contexts of 135 tokens occur, longer than any in
    training. Here they are cut as in training, for each answer separately, so that shapes are static.

    Args:
        record: Record of the question.
        start: As in `object_names`.
        subtask: q2a or qa2r.
        tokenizer: Tokenizer of the run.
        limit: Largest number of tokens of all texts of a sequence.
        arrangement: Key of `ARRANGEMENTS`; "context_tail" has a cut of its own.

    Returns:
        Question and answer, for QA2R also the rationale, of each sequence of `texts_of`; and whether a text was cut.
    """
    names = object_names(record["objects"], start)

    def tokens(texts: Sequence[str]) -> list[Tokens]:
        return [tagged_tokens(text, names, tokenizer) for text in texts]

    if arrangement == "context_tail":
        whole = [tokens(texts) for texts in texts_of(record, subtask)]
        found = [cut_response(texts, limit) for texts in whole]
        return found, found != whole
    (question,), answers = tokens([record["question"]]), list(record["answers"])
    if subtask == "q2a":
        answers = tokens(answers)
        kept, lengths = cut_answers(len(question), [len(answer) for answer in answers], limit)
        found = [[question[:kept], answer[:n]] for answer, n in zip(answers, lengths, strict=True)]
        before = sum(len(question) + len(answer) for answer in answers)
    else:
        label, rationales = int(record["answer_label"]), tokens(record["rationales"])
        found, before = [], 0
        for answer in tokens(answers if label < 0 else [answers[label]]):
            q, a, lengths = cut_rationales(len(question), len(answer), [len(r) for r in rationales], limit)
            found += [[question[:q], answer[:a], r[:n]] for r, n in zip(rationales, lengths, strict=True)]
            before += sum(len(question) + len(answer) + len(r) for r in rationales)
    return found, sum(len(text) for texts in found for text in texts) < before


def texts_of(record: dict, subtask: str) -> list[list[str]]:
    """Return the texts of each sequence in the form of the builder, in the order of `cut_texts`."""
    question, answers = record["question"], list(record["answers"])
    if subtask == "q2a":
        return [[question, answer] for answer in answers]
    label = int(record["answer_label"])
    return [
        [question, answer, rationale]
        for answer in (answers if label < 0 else [answers[label]]) for rationale in record["rationales"]
    ]  # fmt: skip


def joined(texts: Sequence[Sequence], arrangement: str) -> list[list]:
    """Join the texts of a sequence to the parts that [SEP] separates.

    Args:
        texts: Question and answer, perhaps rationale, each a list of words or tokens.
        arrangement: Key of `ARRANGEMENTS`; of two texts each is a part.
    """
    parts: list[list] = []
    for text, part in zip(texts, ARRANGEMENTS[arrangement] if len(texts) == 3 else (0, 1), strict=True):
        parts += [[]] if part == len(parts) else []
        parts[part] += text
    return parts


def segments_of(parts: Sequence[Tokens], arrangement: str) -> Int32[np.ndarray, "t"]:
    """Return the segment of each element of a text: [CLS], and the parts with a [SEP] behind each.

    A [SEP] between two parts has the segment of the first; in the arrangement "apart", that of the second.

    Args:
        parts: As `joined` returns them.
        arrangement: Key of `SEGMENTS`.
    """
    lengths = [len(part) + 1 for part in parts]  # each with one special token
    lengths[-1 if arrangement == "apart" else 0] += 1
    return np.repeat(np.array(SEGMENTS[arrangement][: len(parts)], np.int32), lengths)


def words_of_rows(
    texts: Sequence[str], parts: Sequence[Tokens], arrangement: str, rows: int
) -> Int32[np.ndarray, "r a"]:
    """Return the positions of the words that refer to each row of the regions, -1 = none (VisualBERT).

    They are the words' numbers, as `words_of_regions` says. Those behind the tokens that are kept of a part, and all
    after the first a = `ALIGNED` of a region, are left out.

    Args:
        texts: Texts of the sequence in the form of the builder.
        parts: Their tokens, as `joined` returns them.
        arrangement: Key of `ARRANGEMENTS`.
        rows: r, the rows of the regions with that of the whole image.
    """
    of_rows, offset = collections.defaultdict(list), 1
    for words, part in zip(joined([json.loads(text) for text in texts], arrangement), parts, strict=True):
        for number, places in words_of_regions(words, offset).items():
            of_rows[number + 1] += [place for place in places if place < offset + len(part)]
        offset += len(part) + 1
    found = np.full((rows, ALIGNED), -1, np.int32)
    for row, places in of_rows.items():
        if row < rows:
            found[row, : len(places[:ALIGNED])] = places[:ALIGNED]
    return found


def record_of_text(question: str, choices: Sequence[str], labels: Sequence[str]) -> dict:
    """Return the record of a user's question about regions without masks.

    Args:
        question: Text in which [1] names the first region, [1,2] two of them.
        choices: Texts to choose from, in the same form.
        labels: Label of each region, "" if unknown.

    Raises:
        ValueError: A text names a region that does not exist.
    """

    def tagged(text: str) -> str:
        parts = []
        for part in REGION.split(text):
            if not REGION.fullmatch(part):
                parts += part.split()
                continue
            numbers = [int(number) - 1 for number in re.findall(r"\d+", part)]
            if not all(0 <= number < len(labels) for number in numbers):
                raise ValueError(f"{part} in {text!r}: regions are 1 to {len(labels)}")
            parts.append(numbers)
        return json.dumps(parts)

    return dict(
        annot_id=question,
        objects=[label or "thing" for label in labels],
        classes=np.zeros(len(labels), np.int32),
        shapes=np.ones((len(labels), 14, 14), np.uint8),
        question=tagged(question),
        answers=[tagged(choice) for choice in choices],
        answer_label=-1,
        rationale_label=-1,
    )
