"""VCR examples: `[CLS] question [SEP] response [SEP]` and the regions, one sequence per response.

Q2A: the responses are the answers. QA2R: the right answer follows the question, and the responses are
the rationales; where the right answer is unknown (test), all four are tried: 16 sequences, ordered by
answer, then by rationale. A word that names an object carries the visual feature of that object, other
words that of the whole image. NumPy, without the model.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.data.packing import pack, padded
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.tasks.layouts import region_layout

SUBTASKS = ("q2a", "qa2r")
PERSON = "person"  # the category whose objects get names
PERSON_NAMES = "Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Frankie Pat Quinn".split()
NUM_SPECIAL = 3  # [CLS] and two [SEP]

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


def contexts(
    record: dict, start: int, subtask: str, tokenizer: Tokenizer, limit: int
) -> tuple[list[tuple[Tokens, Tokens]], bool]:
    """Return the parts of each sequence, and whether any was cut.

    In test the official code does not cut QA2R, and contexts of 135 tokens occur, longer than any in
    training. Here they are cut as in training, for each answer separately, so that shapes are static.

    Args:
        record: Record of the question.
        start: As in `object_names`.
        subtask: q2a or qa2r.
        tokenizer: Tokenizer of the run.
        limit: Largest number of tokens of both parts.

    Returns:
        (first, second) part of each sequence without [CLS] and [SEP], and whether a text was cut.
    """
    names = object_names(record["objects"], start)

    def tokens(texts: Sequence[str]) -> list[Tokens]:
        return [tagged_tokens(text, names, tokenizer) for text in texts]

    pairs, before = [], 0
    (question,), answers = tokens([record["question"]]), list(record["answers"])
    if subtask == "q2a":
        answers = tokens(answers)
        kept, lengths = cut_answers(len(question), [len(answer) for answer in answers], limit)
        pairs = [(question[:kept], answer[:n]) for answer, n in zip(answers, lengths, strict=True)]
        before = sum(len(question) + len(answer) for answer in answers)
    else:
        label, rationales = int(record["answer_label"]), tokens(record["rationales"])
        for answer in tokens(answers if label < 0 else [answers[label]]):
            q, a, lengths = cut_rationales(len(question), len(answer), [len(r) for r in rationales], limit)
            pairs += [(question[:q] + answer[:a], r[:n]) for r, n in zip(rationales, lengths, strict=True)]
            before += sum(len(question) + len(answer) + len(r) for r in rationales)
    return pairs, sum(len(first) + len(second) for first, second in pairs) < before


# --- Examples -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceLayout(ImageLayout):
    """Fields of a config that determine the example of a question with its choices."""
    subtask: str
    sequence_length: int
    text_length: int  # tokens of question and response, without [CLS] and [SEP]
    roi_size: int
    num_classes: int
    num_choices: int = 4

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> ChoiceLayout:
        """Return the layout of a config; raise ValueError where its fields contradict."""
        d, regions = config.data, region_layout(config)
        if config.subtask not in SUBTASKS:
            raise ValueError(f"config.subtask is {config.subtask!r}, not one of {', '.join(SUBTASKS)}")
        needed = d.text_length + NUM_SPECIAL
        length = needed if regions.apart else d.sequence_length
        if not regions.apart and needed + d.max_regions + 1 > length:
            raise ValueError(
                f"config.data.sequence_length is {length}, but {d.text_length} tokens of text, {NUM_SPECIAL} special "
                f"ones, {d.max_regions} regions and the whole image need {needed + d.max_regions + 1}"
            )
        return cls(
            **cls.options(config, orientation, regions),
            subtask=config.subtask,
            sequence_length=length,
            text_length=d.text_length,
            roi_size=config.model.region_head.roi_size,
            num_classes=config.model.num_object_classes,
            num_choices=d.get("num_choices", 4),
        )


def choice_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: ChoiceLayout, start: int | None = None
) -> Example:
    """Return a question with its choices: n = 4, or 16 for QA2R without labels.

    All sequences share the image. Objects beyond `max_regions` are left out, and words that name them carry
    the feature of the whole image. Without labels `choice` is -1.

    Args:
        record: A row of `vcr` joined with its row of `vcr_images`.
        flip: Whether to mirror the image.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
        start: Replaces `first_name`.

    Raises:
        ValueError: An object has a class that the model does not have, or no stored features.
    """
    if layout.precomputed and "features" not in record:
        raise ValueError(
            f"{record['annot_id']}: its objects have no stored features, as in VCR: set config.data.features=image."
        )
    if len(record["classes"]) and max(record["classes"]) >= layout.num_classes:
        raise ValueError(
            f"{record['annot_id']}: an object of class {max(record['classes'])}, but config.model.num_object_classes "
            f"is {layout.num_classes}; it counts the whole image's class 0 too"
        )
    image = image_fields(record, record["boxes"], layout, flip, exact=True)
    num_regions, rows = int(image["region_mask"].sum()), layout.max_regions + 1
    is_read = image["region_mask"] & (np.arange(rows) >= layout.regions.first_row)
    start = first_name(record["annot_id"]) if start is None else start
    pairs, cut = contexts(record, start, layout.subtask, tokenizer, layout.text_length)
    sequences, positions = [], []
    for first, second in pairs:
        ids = [tokenizer.cls_id, *(i for i, _ in first), tokenizer.sep_id, *(i for i, _ in second), tokenizer.sep_id]
        regions = np.array([0, *(r for _, r in first), 0, *(r for _, r in second), 0], np.int32)
        regions[regions >= num_regions] = 0
        segments = np.repeat([0, 1], [len(first) + 2, len(second) + 1])
        shown = np.zeros(num_regions, bool)
        sequences.append(
            pack(
                ids, segments, num_regions, shown, regions, layout.sequence_length, tokenizer.vocab_size,
                layout=layout.regions,
            )
        )  # fmt: skip
        places = layout.regions.place_of(np.arange(rows), len(ids), layout.sequence_length)
        positions.append(np.where(is_read, places, 0).astype(np.int32))
    label = int(record["answer_label" if layout.subtask == "q2a" else "rationale_label"])
    whole = np.ones((1, *record["shapes"].shape[1:]), np.uint8)
    shapes = np.concatenate([whole, record["shapes"]])[:num_regions]
    classes = np.append(0, record["classes"]).astype(np.int32)
    return image | {name: np.stack([s[name] for s in sequences]) for name in sequences[0]} | dict(
        region_positions=np.stack(positions),
        region_shapes=padded(on_rois(shapes, layout.roi_size, flip), rows),
        region_classes=np.where(is_read, padded(classes[:num_regions], rows), -1).astype(np.int32),
        choice=np.int32(label if len(pairs) == layout.num_choices else -1),
        text_cut=np.bool_(cut),
    )


def on_rois(shapes: UInt8[np.ndarray, "k g g"], size: int, flip: bool) -> Float32[np.ndarray, "k p p"]:
    """Return masks of objects on the RoI grid, mirrored with the image; another grid gets the covered share."""
    shapes = np.ascontiguousarray(shapes[:, :, ::-1] if flip else shapes, np.float32)
    if shapes.shape[1:] == (size, size):
        return shapes
    return np.stack([cv2.resize(shape, (size, size), interpolation=cv2.INTER_AREA) for shape in shapes])
REGION = re.compile(r"(\[\d+(?:\s*,\s*\d+)*\])")  # [1] or [1,2]: how VCR's texts name regions


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
