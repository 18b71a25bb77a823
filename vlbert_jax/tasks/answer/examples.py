"""VQA examples: the question, a [MASK] where the head reads the answer there, and the regions."""

import dataclasses

import numpy as np
from jaxtyping import Int

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.data.packing import pack
from vlbert_jax.data.tokenizer import MIRROR, Tokenizer, mirrored
from vlbert_jax.tasks.answer import accuracy
from vlbert_jax.tasks.answer_lists import AnswerVocabulary
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout, sequence_length, text_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionLayout(ImageLayout):
    """Fields of a config that determine the example of a question."""
    sequence_length: int
    text_length: int
    answer_head: str  # `config.model.answer_head`; it determines the text around the question

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> "QuestionLayout":
        """Return the layout of a config; raise ValueError where a sequence has no room for a question."""
        d, regions, length = config.data, region_layout(config), sequence_length(config)
        if not regions.apart and length < d.max_regions + 6:
            raise ValueError(
                f"config.data.sequence_length {length} has no room for {d.max_regions} regions, the whole "
                "image, [CLS], a word, [SEP], [MASK] and [SEP]"
            )
        if text_length(config) < 5:
            raise ValueError(
                f"config.data.text_length {text_length(config)} has no room for [CLS], a word, [SEP], [MASK] and [SEP]"
            )
        return cls(
            **cls.options(config, orientation, regions),
            sequence_length=length,
            text_length=text_length(config),
            answer_head=config.model.get("answer_head", "mask"),
        )


def question_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: QuestionLayout, answers: AnswerVocabulary
) -> Example:
    """Return the text of `_question_text` and the regions; n = 1.

    In a mirrored image left and right are exchanged in the question and the answers. A question that does
    not fit is cut at its end; the official code cuts none.

    Args:
        record: As for `image_fields`, with `boxes`, `question`, and `answers` (ten, or none: all scores
            are -1).
        flip: Whether to mirror the image.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
        answers: Answer vocabulary of the run.
    """
    image = image_fields(record, record["boxes"], layout, flip)
    num_regions = int(image["region_mask"].sum())
    ids = sum(tokenizer.words(record["question"]), [])
    if flip:
        ids = mirrored(ids, tokenizer)
    names = names_of_regions(record, tokenizer, layout)
    elements = 0 if layout.regions.apart else num_regions - layout.regions.first_row
    room = min(layout.sequence_length - elements, layout.text_length)
    text, segments, cut = _question_text(ids, names, room, tokenizer, layout)
    packed = pack(
        text, segments, num_regions, np.zeros(num_regions, bool), np.zeros(len(text), np.int32),
        layout.sequence_length, tokenizer.vocab_size, layout=layout.regions,
    )
    given = list(record["answers"])
    if flip:
        given = [" ".join(MIRROR.get(word, word) for word in answer.split(" ")) for answer in given]  # pyright: ignore[reportCallIssue]
    return {name: value[None] for name, value in packed.items()} | image | dict(
        answer_positions=np.int32(len(text) - 2),
        answer_targets=accuracy.soft_targets(given, answers) if given else np.full(len(answers), -1, np.float32),
        text_cut=np.bool_(cut),
    )


def _question_text(
    ids: list[int], names: list[int], room: int, tokenizer: Tokenizer, layout: QuestionLayout
) -> tuple[list[int], Int[np.ndarray, "t"], bool]:
    """Return the ids and the segments of the text, and whether the question was cut.

    A head that reads [MASK] has it in the last place but one: `[CLS] question [SEP] [MASK] [SEP]` (VL-BERT), or
    `[CLS] question ? [MASK] [SEP]`, whatever mark the question ends with (VisualBERT). For a head that reads the pooler
    the text is `[CLS] question [SEP]` and, where an architecture has them, `names of the regions [SEP]`.

    Args:
        ids: Of the question.
        names: Ids of the names of the regions.
        room: Largest number of ids.
        tokenizer: Tokenizer of the run.
        layout: Names the head.
    """
    inside, behind = [], []
    if layout.answer_head == "mask":
        behind = [tokenizer.mask_id, tokenizer.sep_id]
    elif layout.answer_head == "mask_linear":
        mark = sum(tokenizer.words("?"), [])
        ids = ids[: -len(mark)] if ids[-len(mark) :] == mark else ids
        inside = [*mark, tokenizer.mask_id]
    kept = ids[: room - 2 - len(inside) - len(behind)]
    first = [tokenizer.cls_id, *kept, *inside, tokenizer.sep_id]
    if layout.answer_head.startswith("pooler"):
        behind = closed(names, room - len(first), tokenizer)
    segments = np.repeat(np.array([0, 1], np.int32), [len(first), len(behind)])
    return first + behind, segments, len(kept) < len(ids)
