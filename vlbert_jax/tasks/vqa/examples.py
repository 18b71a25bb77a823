"""VQA examples: the question, a [MASK] for the answer, and the regions."""

import dataclasses
import functools
import os

import numpy as np

from vlbert_jax.batch import Example
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.data.packing import pack
from vlbert_jax.data.tokenizer import MIRROR, Tokenizer, mirrored
from vlbert_jax.tasks.layouts import region_layout
from vlbert_jax.tasks.vqa import accuracy

_load_answers = functools.cache(accuracy.load_answers)


def answers_of(config) -> accuracy.AnswerVocabulary:
    """Return the answer vocabulary of a run; it is read once.

    Raises:
        FileNotFoundError: There is no vocabulary.
        ValueError: It does not have `model.num_answers` entries.
    """
    local = os.path.join(config.data.data_dir, config.data.answers)
    path = local if os.path.exists(local) else config.data.answers
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no answer vocabulary at {local} (config.data.answers). Build again with --answers=3129, or with "
            "answers_vqa.txt in the download; existing tables are kept."
        )
    answers = _load_answers(path)
    if len(answers) != config.model.num_answers:
        raise ValueError(
            f"{path} has {len(answers)} answers, but config.model.num_answers is {config.model.num_answers}. "
            "Set it, or set config.data.answers to the vocabulary that the checkpoint was trained with."
        )
    return answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionLayout(ImageLayout):
    """Fields of a config that determine the example of a question."""
    sequence_length: int

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> "QuestionLayout":
        """Return the layout of a config; raise ValueError where a sequence has no room for a question."""
        d = config.data
        if d.sequence_length < d.max_regions + 6:
            raise ValueError(
                f"config.data.sequence_length {d.sequence_length} has no room for {d.max_regions} regions, the whole "
                "image, [CLS], a word, [SEP], [MASK] and [SEP]"
            )
        return cls(**cls.options(config, orientation, region_layout(config)), sequence_length=d.sequence_length)


def question_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: QuestionLayout, answers: accuracy.AnswerVocabulary
) -> Example:
    """Return `[CLS] question [SEP] [MASK] [SEP]` and the regions; n = 1.

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
    room = layout.sequence_length - num_regions - 4
    text = [tokenizer.cls_id, *ids[:room], tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id]
    segments = np.zeros(len(text), np.int32)
    segments[-2:] = 1
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
        text_cut=np.bool_(len(ids) > room),
    )
