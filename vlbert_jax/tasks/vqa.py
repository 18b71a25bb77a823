"""Visual question answering: the answer is read at a [MASK] behind the question (paper, section 4.2)."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax import sequence, vqa_accuracy
from vlbert_jax.batch import Batch
from vlbert_jax.encoder import keys
from vlbert_jax.report import Answer, Card
from vlbert_jax.sequence import Tokenizer
from vlbert_jax.tasks import downstream
from vlbert_jax.tasks.downstream_report import write_report as write_answers
from vlbert_jax.tasks.examples import (
    MIRROR,
    Example,
    ImageLayout,
    image_fields,
    image_shapes,
    mirrored,
    sequence_shapes,
    tokenizer_of,
    usual_orientation,
)
from vlbert_jax.tasks.losses import binary_cross_entropy, counted, cross_entropy
from vlbert_jax.tasks.model import (
    PredictionHead,
    VisualLinguisticModel,
    at,
    is_frozen,
    is_idle,
    model_options,
)
from vlbert_jax.vqa_accuracy import AnswerVocabulary

__all__ = ["is_frozen", "is_idle"]  # parts of the task protocol that live elsewhere

TOP = 5  # answers of a prediction


class VQAModel(VisualLinguisticModel):
    """VL-BERT and the head over the answer vocabulary; the head's hidden layer starts as that of masked words."""

    def __init__(self, encoder, fast_rcnn: dict, num_answers: int, rngs: nnx.Rngs):
        super().__init__(encoder, fast_rcnn, rngs)
        self.answer_head = PredictionHead(encoder, num_answers, rngs, norm=True, dropout_rate=encoder.dropout_rate)

    def answer_logits(
        self, states: Float[Array, "b 1 s d"], positions: Int[Array, " b"], key=None
    ) -> Float[Array, "b answers"]:
        """`positions` are those of [MASK]."""
        return self.answer_head(at(states[:, 0], positions[:, None])[:, 0], key)


def build_model(config, rngs: nnx.Rngs) -> VQAModel:
    """The model of a config; config.model.num_answers is the size of the answer vocabulary."""
    return VQAModel(*model_options(config), config.model.num_answers, rngs)


def prepare(model: VQAModel, config, filled: set[tuple]) -> None:
    """The last layer starts as the mean embedding of each answer's word pieces (official behaviour)."""
    if ("answer_head", "classes", "kernel") in filled:
        return
    tokenizer = tokenizer_of(config)
    pieces = [sum(tokenizer.words(answer), []) for answer in answers_of(config).entries]
    owner = np.repeat(np.arange(len(pieces)), [len(ids) for ids in pieces])
    words = model.vlbert.token_embeddings[...][np.concatenate(pieces).astype(np.int32)]
    means = jax.ops.segment_sum(words, owner, len(pieces)) / np.maximum([[len(ids)] for ids in pieces], 1)
    model.answer_head.classes.kernel.set_value(means.T)
    model.answer_head.classes.bias.set_value(jnp.zeros(len(pieces)))


# --- Examples -------------------------------------------------------------------------------------------------------


_load_answers = functools.cache(vqa_accuracy.load_answers)


def answers_of(config) -> AnswerVocabulary:
    """The run's answer vocabulary, read once. Raises ValueError if it has not `model.num_answers` entries."""
    local = os.path.join(config.data.data_dir, config.data.answers)
    path = local if os.path.exists(local) else config.data.answers
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no answer vocabulary at {local} (config.data.answers): build again with --answers=3129, or with "
            "answers_vqa.txt in the download; tables that are there stay"
        )
    answers = _load_answers(path)
    if len(answers) != config.model.num_answers:
        raise ValueError(
            f"{path} has {len(answers)} answers, config.model.num_answers is {config.model.num_answers}: "
            "set it, or give the vocabulary that the checkpoint was trained with as config.data.answers"
        )
    return answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout(ImageLayout):
    sequence_length: int

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> "Layout":
        """Raises ValueError where a sequence has no room for a question."""
        d = config.data
        if d.sequence_length < d.max_regions + 6:
            raise ValueError(
                f"config.data.sequence_length {d.sequence_length} has no room for {d.max_regions} regions, the whole "
                "image, [CLS], a word, [SEP], [MASK] and [SEP]"
            )
        return cls(**cls.options(config, orientation), sequence_length=d.sequence_length)


def question_example(
    record: dict, flip: bool, tokenizer: Tokenizer, layout: Layout, answers: AnswerVocabulary
) -> Example:
    """`[CLS] question [SEP] [MASK] [SEP]` and the regions, n = 1.

    `record` is as `image_fields` wants it, and has `boxes`, `question`, and `answers` (ten, or none). In a mirrored
    image left is right, in question and answers. A question that does not fit loses its end (officially none is cut).
    Without answers all scores are -1.
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
    packed = sequence.pack(
        text, segments, num_regions, np.zeros(num_regions, bool), np.zeros(len(text), np.int32),
        layout.sequence_length, tokenizer.vocab_size,
    )
    given = list(record["answers"])
    if flip:
        given = [" ".join(MIRROR.get(word, word) for word in answer.split(" ")) for answer in given]
    return {name: value[None] for name, value in packed.items()} | image | dict(
        answer_positions=np.int32(len(text) - 2),
        answer_targets=vqa_accuracy.soft_targets(given, answers) if given else np.full(len(answers), -1, np.float32),
        text_cut=np.bool_(len(ids) > room),
    )


def _maker(config, orientation: str, train: bool):
    tokenizer, answers = tokenizer_of(config), answers_of(config)
    layout = Layout.of(config, orientation, train)

    def make(record: dict, flip: bool) -> Example:
        if train and not record["answers"]:
            what = f"question {record['question_id']} of {config.data.train_split}"
            raise ValueError(f"{what} has no answers to learn from: see config.data.train_split")
        return question_example(record, flip, tokenizer, layout, answers)

    return make


def batch_shapes(config) -> Batch:
    layout = Layout.of(config, usual_orientation(config))
    shapes = sequence_shapes(1, layout.sequence_length) | image_shapes(layout)
    shapes |= dict(answer_positions=((), np.int32), text_cut=((), bool))
    return downstream.batch_shapes(config, shapes | dict(answer_targets=((config.model.num_answers,), np.float32)))


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    return downstream.train_batches(config, _maker, start_step, process_index, process_count)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    return {"questions": downstream.eval_batches(config, _maker, process_index, process_count)}


# --- Losses and scores ----------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    return ("answer",)


def loss_weights(config) -> dict[str, float]:
    return {"answer": 1.0}


def _known(batch: Batch) -> Array:
    """Bool [b]: examples with answers to compare with."""
    return batch.element_mask.any((1, 2)) & (batch.answer_targets[:, 0] >= 0)


def _logits(model: VQAModel, batch: Batch, config, key=None) -> Float[Array, "b answers"]:
    key_project, key_encode, key_head = keys(key, 3)
    states = model.states(batch, key_project, key_encode, config.blind)
    return model.answer_logits(states, batch.answer_positions, key_head)


def _targets(batch: Batch, config) -> Array:
    """Bool [b]: examples that count in the loss; with a softmax one of the answers has to be in the vocabulary."""
    known = _known(batch)
    return known & (batch.answer_targets.max(-1) > 0) if config.losses.answer == "softmax" else known


def _losses(logits: Float[Array, "b answers"], batch: Batch, config) -> Float[Array, " b"]:
    """Summed over the vocabulary (official), or the cross-entropy of the best answer (paper)."""
    if config.losses.answer == "sigmoid":
        return binary_cross_entropy(logits, batch.answer_targets).sum(-1)
    if config.losses.answer == "softmax":
        return cross_entropy(logits, batch.answer_targets.argmax(-1))
    raise ValueError(f"config.losses.answer is {config.losses.answer!r}, not one of sigmoid, softmax")


def accuracy(logits: Float[Array, "b answers"], batch: Batch) -> Float[Array, " b"]:
    """The score of the best answer (official SoftAcc)."""
    return jnp.take_along_axis(batch.answer_targets, logits.argmax(-1)[:, None], axis=1)[:, 0]


def loss_counts(batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
    return {"answer": jnp.maximum(_targets(batch, config).sum().astype(jnp.float32), 1.0)}


def loss_sums(model: VQAModel, batch: Batch, key, config, names):
    logits, known = _logits(model, batch, config, key), _known(batch)
    hits = counted(accuracy(logits, batch), known)
    losses = counted(_losses(logits, batch, config), _targets(batch, config))
    return {"answer": losses[0]}, {"vqa_accuracy": hits}


def score(model: VQAModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    logits, known = _logits(model, batch, config), _known(batch)
    return dict(
        vqa_accuracy=counted(accuracy(logits, batch), known),
        answer_loss=counted(_losses(logits, batch, config), _targets(batch, config)),
        text_cut=counted(batch.text_cut, batch.element_mask.any((1, 2))),
    )


# --- Predictions ----------------------------------------------------------------------------------------------------


def predict(model: VQAModel, batch: Batch, config) -> dict[str, Array]:
    """The best answers and their probabilities, [b, 5]."""
    logits = _logits(model, batch, config)
    probabilities = jax.nn.sigmoid(logits) if config.losses.answer == "sigmoid" else jax.nn.softmax(logits)
    probability, answer = jax.lax.top_k(probabilities, min(TOP, logits.shape[-1]))
    return dict(answer=answer, probability=probability)


def conclude(directory: Path, predictions: dict, config) -> dict[str, float]:
    """Writes SPLIT.json as EvalAI takes it; with annotations, returns the official accuracies as fractions."""
    rows, answers = predictions[""], answers_of(config)
    records = downstream.Split(config, config.data.eval_split).texts
    submission, accuracies, types = [], [], []
    for index, (best, *_) in zip(rows["index"], rows["answer"], strict=True):
        record = records[int(index)]
        submission.append(dict(question_id=int(record["question_id"]), answer=answers.entries[best]))
        if record["answers"]:
            accuracies.append(vqa_accuracy.answer_accuracy(answers.entries[best], record["answers"]))
            types.append(record["answer_type"])
    path = directory / f"{config.data.eval_split}.json"
    path.write_text(json.dumps(submission))
    if not accuracies:
        return {}
    official = vqa_accuracy.summary(accuracies, types)
    by_type = {f"vqa_official_accuracy_{name.replace('/', '_')}": v for name, v in official["perAnswerType"].items()}
    return {name: value / 100 for name, value in (dict(vqa_official_accuracy=official["overall"]) | by_type).items()}


def write_report(directory, model: VQAModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""
    vocabulary = answers_of(config)

    def card(record: dict, picture: dict, row: dict) -> Card:
        scores = vqa_accuracy.soft_targets(record["answers"], vocabulary)
        answers = [
            Answer(vocabulary.entries[i], float(p), float(scores[i]))
            for i, p in zip(row["answer"], row["probability"], strict=True)
        ]
        return Card(question=record["question"], answers=answers, **picture)

    write_answers(directory, "Visual question answering", model, config, history, _maker, predict, card)
