"""Visual question answering: the answer is read at a [MASK] behind the question (paper, section 4.2)."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.data import tables
from vlbert_jax.data.examples import Example, image_shapes, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.config import model_options
from vlbert_jax.model.layers import PredictionHead, gather_positions, split_keys
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.model.visual_linguistic import region_head_is_frozen as is_frozen
from vlbert_jax.tasks.base import is_idle
from vlbert_jax.tasks.losses import binary_cross_entropy, counted, cross_entropy
from vlbert_jax.tasks.report import write_report as write_answers
from vlbert_jax.tasks.vqa.accuracy import answer_accuracy, soft_targets, summary
from vlbert_jax.tasks.vqa.examples import QuestionLayout, answers_of, question_example
from vlbert_jax.visualization import report

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
        return self.answer_head(gather_positions(states[:, 0], positions[:, None])[:, 0], key)


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


def _maker(config, orientation: str, train: bool):
    tokenizer, answers = tokenizer_of(config), answers_of(config)
    layout = QuestionLayout.of(config, orientation, train)

    def make(record: dict, flip: bool) -> Example:
        if train and not record["answers"]:
            what = f"question {record['question_id']} of {config.data.train_split}"
            raise ValueError(f"{what} has no answers to learn from: see config.data.train_split")
        return question_example(record, flip, tokenizer, layout, answers)

    return make


def batch_shapes(config) -> Batch:
    layout = QuestionLayout.of(config, usual_orientation(config))
    shapes = sequence_shapes(1, layout.sequence_length) | image_shapes(layout)
    shapes |= dict(answer_positions=((), np.int32), text_cut=((), bool))
    return tables.batch_shapes(config, shapes | dict(answer_targets=((config.model.num_answers,), np.float32)))


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    return tables.train_batches(config, _maker, start_step, process_index, process_count)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    return {"questions": tables.eval_batches(config, _maker, process_index, process_count)}


# --- Losses and scores ----------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    return ("answer",)


def loss_weights(config) -> dict[str, float]:
    return {"answer": 1.0}


def _known(batch: Batch) -> Array:
    """Bool [b]: examples with answers to compare with."""
    return batch.element_mask.any((1, 2)) & (batch.answer_targets[:, 0] >= 0)


def _logits(model: VQAModel, batch: Batch, config, key=None) -> Float[Array, "b answers"]:
    key_project, key_encode, key_head = split_keys(key, 3)
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
    records = Split(config, config.data.eval_split).texts
    submission, accuracies, types = [], [], []
    for index, (best, *_) in zip(rows["index"], rows["answer"], strict=True):
        record = records[int(index)]
        submission.append(dict(question_id=int(record["question_id"]), answer=answers.entries[best]))
        if record["answers"]:
            accuracies.append(answer_accuracy(answers.entries[best], record["answers"]))
            types.append(record["answer_type"])
    path = directory / f"{config.data.eval_split}.json"
    path.write_text(json.dumps(submission))
    if not accuracies:
        return {}
    official = summary(accuracies, types)
    by_type = {f"vqa_official_accuracy_{name.replace('/', '_')}": v for name, v in official["perAnswerType"].items()}
    return {name: value / 100 for name, value in (dict(vqa_official_accuracy=official["overall"]) | by_type).items()}


def write_report(directory, model: VQAModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""
    vocabulary = answers_of(config)

    def card(record: dict, picture: dict, row: dict) -> report.Card:
        scores = soft_targets(record["answers"], vocabulary)
        answers = [
            report.Answer(vocabulary.entries[i], float(p), float(scores[i]))
            for i, p in zip(row["answer"], row["probability"], strict=True)
        ]
        return report.Card(question=record["question"], answers=answers, **picture)

    write_answers(directory, "Visual question answering", model, config, history, _maker, predict, card)
