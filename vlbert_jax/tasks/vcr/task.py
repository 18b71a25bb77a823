"""Visual commonsense reasoning: four sequences, one per choice, share an image (paper, section 4.1).

`config.subtask`: q2a chooses the answer, qa2r the rationale with the right answer given. The two are trained apart;
evaluation joins them where `config.companion` names the weights of the other.
"""

import copy
import csv
import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.data import tables
from vlbert_jax.data.examples import Example, image_shapes, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.config import model_options
from vlbert_jax.model.layers import PredictionHead, dense, dropout, gather_positions, split_keys, xavier_init
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel, without_image
from vlbert_jax.model.visual_linguistic import region_head_is_frozen as is_frozen
from vlbert_jax.tasks.base import is_idle
from vlbert_jax.tasks.losses import binary_cross_entropy, counted, cross_entropy
from vlbert_jax.tasks.report import write_report as write_choices
from vlbert_jax.tasks.vcr.examples import SUBTASKS, ChoiceLayout, choice_example, first_name, object_names, readable
from vlbert_jax.visualization import report

log = logging.getLogger(__name__)
__all__ = ["is_frozen", "is_idle"]  # parts of the task protocol that live elsewhere


class VCRModel(VisualLinguisticModel):
    """VL-BERT with a pooler, a score per choice, and the auxiliary classes of the objects (official CNN_LOSS_TOP)."""

    def __init__(self, encoder, fast_rcnn: dict, num_object_classes: int, rngs: nnx.Rngs):
        if not encoder.pooler:
            raise ValueError("config.model.encoder.pooler is False, but a choice's score is computed from the pooler")
        super().__init__(encoder, fast_rcnn, rngs)
        self.dropout_rate = encoder.dropout_rate
        exact = dataclasses.replace(encoder, dtype=jnp.float32)  # four scores must not tie
        self.choice_head = dense(encoder.hidden_size, 1, ("embed", None), exact, rngs)
        self.object_head = PredictionHead(encoder, num_object_classes, rngs)

    def choice_logits(self, states: Float[Array, "b n s d"], key=None) -> Float[Array, "b n"]:
        pooled = dropout(self.vlbert.pool(states), self.dropout_rate, key)
        return self.choice_head(pooled)[..., 0]

    def object_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b n r"]
    ) -> Float[Array, "b n r c"]:
        """`positions` are those of the regions in their sequences."""
        return self.object_head(gather_positions(states, positions))


def build_model(config, rngs: nnx.Rngs) -> VCRModel:
    """The model of a config; config.model.num_object_classes counts the background too."""
    return VCRModel(*model_options(config), config.model.num_object_classes, rngs)


def prepare(model: VCRModel, config, filled: set[tuple]) -> None:
    """The layer that scores a choice starts as the official one does."""
    if ("choice_head", "kernel") not in filled:
        xavier_init(model.choice_head.kernel, config.seed)
    if ("vlbert", "pooler", "kernel") not in filled and filled:
        log.warning("the layer behind [CLS] is new: pre-training has none, officially it is BERT's (config.init.bert)")


# --- Examples -------------------------------------------------------------------------------------------------------


def _maker(config, orientation: str, train: bool):
    tokenizer, layout = tokenizer_of(config), ChoiceLayout.of(config, orientation, train)

    def make(record: dict, flip: bool) -> Example:
        example = choice_example(record, flip, tokenizer, layout)
        if train and example["choice"] < 0:
            raise ValueError(f"{record['annot_id']} has no label to learn from: see config.data.train_split")
        return example

    return make


def batch_shapes(config) -> Batch:
    layout = ChoiceLayout.of(config, usual_orientation(config))
    n, rows, size = 4, layout.max_regions + 1, layout.roi_size
    shapes = sequence_shapes(n, layout.sequence_length) | image_shapes(layout) | dict(
        region_positions=((n, rows), np.int32),
        region_shapes=((rows, size, size), np.float32),
        region_classes=((rows,), np.int32),
        choice=((), np.int32),
        text_cut=((), bool),
    )
    return tables.batch_shapes(config, shapes)


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    return tables.train_batches(config, _maker, start_step, process_index, process_count)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    return {"questions": tables.eval_batches(config, _maker, process_index, process_count)}


# --- Losses and scores ----------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    return ("choice", "object") if config.losses.object and not config.blind else ("choice",)


def loss_weights(config) -> dict[str, float]:
    return {"choice": 1.0, "object": config.losses.object}


def _objects(batch: Batch) -> Bool[Array, "b n r"]:
    """The regions of all sequences, the whole image too."""
    real = batch.region_mask & (batch.region_classes >= 0)
    return jnp.broadcast_to(real[:, None], batch.region_positions.shape)


def _states(model: VCRModel, batch: Batch, config, key=None) -> Float[Array, "b n s d"]:
    key_project, key_encode = split_keys(key, 2)
    return model.states(batch, key_project, key_encode, config.blind)


def _choice_losses(logits: Float[Array, "b n"], batch: Batch, config) -> Float[Array, " b"]:
    """The mean over the choices of a sigmoid's loss for each (official), or the cross-entropy of the right (paper)."""
    right = jnp.maximum(batch.choice, 0)
    if config.losses.choice == "sigmoid":
        return binary_cross_entropy(logits, jax.nn.one_hot(right, logits.shape[1])).mean(-1)
    if config.losses.choice == "softmax":
        return cross_entropy(logits, right)
    raise ValueError(f"config.losses.choice is {config.losses.choice!r}, not one of sigmoid, softmax")


def _object_losses(model: VCRModel, states: Float[Array, "b n s d"], batch: Batch):
    """(cross-entropy, whether the class is right) of every region in every sequence, [b n r] each."""
    logits = model.object_logits(states, batch.region_positions)
    classes = jnp.broadcast_to(jnp.maximum(batch.region_classes, 0)[:, None], batch.region_positions.shape)
    return cross_entropy(logits, classes), logits.argmax(-1) == classes


def loss_counts(batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
    targets = {"choice": batch.choice >= 0, "object": _objects(batch)}
    return {name: jnp.maximum(targets[name].sum().astype(jnp.float32), 1.0) for name in names}


def loss_sums(model: VCRModel, batch: Batch, key, config, names):
    key_states, key_head = split_keys(key, 2)
    states = _states(model, batch, config, key_states)
    logits, known = model.choice_logits(states, key_head), batch.choice >= 0
    sums = {"choice": counted(_choice_losses(logits, batch, config), known)[0]}
    metrics = {"vcr_accuracy": counted(logits.argmax(-1) == batch.choice, known)}
    if "object" in names:
        losses, hits = _object_losses(model, states, batch)
        sums["object"] = counted(losses, _objects(batch))[0]
        metrics["object_accuracy"] = counted(hits, _objects(batch))
    return sums, metrics


def score(model: VCRModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Losses and accuracies; `vcr_accuracy_blind` is what the same weights choose from the text alone."""
    states, known = _states(model, batch, config), batch.choice >= 0
    logits = model.choice_logits(states)
    metrics = dict(
        vcr_accuracy=counted(logits.argmax(-1) == batch.choice, known),
        choice_loss=counted(_choice_losses(logits, batch, config), known),
        text_cut=counted(batch.text_cut, batch.element_mask.any((1, 2))),
    )
    if not config.blind:
        blind = model.choice_logits(model.encode(without_image(batch, config.model.encoder.vocab_size), None))
        metrics["vcr_accuracy_blind"] = counted(blind.argmax(-1) == batch.choice, known)
    if "object" in active_losses(config, 0):
        losses, hits = _object_losses(model, states, batch)
        metrics["object_loss"] = counted(losses, _objects(batch))
        metrics["object_accuracy"] = counted(hits, _objects(batch))
    return metrics


# --- Predictions ----------------------------------------------------------------------------------------------------


def companions(config) -> dict:
    """The run of the other subtask, with the weights that `config.companion` names; none where it is empty.

    Raises ValueError where these are of a workdir of the same subtask: weights alone would not tell.
    """
    if not config.companion:
        return {}
    other = copy.deepcopy(config)
    other.subtask = SUBTASKS[1 - SUBTASKS.index(config.subtask)]
    about = Path(config.companion) / "config.json"
    if about.is_file() and json.loads(about.read_text()).get("subtask") == config.subtask:
        raise ValueError(f"config.companion: {config.companion} is a run of {config.subtask}, not of {other.subtask}")
    other.companion = ""
    other.init.update(dict(bert="", resnet="", checkpoint=config.companion))
    return {other.subtask: other}


def predict(model: VCRModel, batch: Batch, config) -> dict[str, Array]:
    """The choices' scores [b, 4]; of QA2R without labels [b, 16]: the rationales with answer 0, with answer 1, ..."""
    return dict(logits=model.choice_logits(_states(model, batch, config)))


def probabilities(logits: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q n"]:
    """Softmax over each four choices: what the leaderboard wants, and officially gets, whatever the loss."""
    grouped = logits.reshape(len(logits), -1, 4).astype(np.float32)
    powers = np.exp(grouped - grouped.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).reshape(logits.shape)


def columns(subtask: str, number: int) -> list[str]:
    """Names of the leaderboard's columns; `rationale_j` is no column of it: the right answer was given."""
    if subtask == "q2a":
        return [f"answer_{i}" for i in range(4)]
    if number == 4:
        return [f"rationale_{j}" for j in range(4)]
    return [f"rationale_conditioned_on_a{i}_{j}" for i in range(4) for j in range(4)]


def write_table(path: Path, annot_ids: Iterable[str], tables: dict[str, Float[np.ndarray, "q n"]]) -> None:
    """A row for each question: annot_id and the columns of each subtask, q2a first."""
    ordered = {name: tables[name] for name in SUBTASKS if name in tables}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["annot_id", *(c for name, table in ordered.items() for c in columns(name, table.shape[1]))])
        for annot_id, *rows in zip(annot_ids, *ordered.values(), strict=True):
            writer.writerow([annot_id, *(str(value) for row in rows for value in row)])


def accuracies(
    logits: dict[str, Float[np.ndarray, "q 4"]], labels: dict[str, Int[np.ndarray, " q"]]
) -> dict[str, float]:
    """`vcr_{q2a,qa2r}_accuracy`, and `vcr_q2ar_accuracy`: how often both choices are right."""
    hits = {name: scores.argmax(1) == labels[name] for name, scores in logits.items()}
    found = {f"vcr_{name}_accuracy": float(hit.mean()) for name, hit in hits.items()}
    return found | dict(vcr_q2ar_accuracy=float(np.logical_and(*hits.values()).mean()))


def conclude(directory: Path, predictions: dict, config) -> dict[str, float]:
    """Writes SPLIT_SUBTASK.csv; with a companion SPLIT.csv, what the leaderboard takes, and the joint accuracy."""
    split = config.data.eval_split
    records = Split(config, split).texts
    rows = {name or config.subtask: table for name, table in predictions.items()}
    index = rows[config.subtask]["index"]
    if any(not np.array_equal(table["index"], index) for table in rows.values()):
        raise ValueError("the two runs were not evaluated on the same questions")
    texts = [records[int(number)] for number in index]
    order = np.argsort([text["index"] for text in texts], kind="stable")  # as in the file, orientations mixed
    texts = [texts[i] for i in order]
    logits = {name: np.asarray(table["logits"])[order] for name, table in rows.items()}
    name = split if len(logits) == len(SUBTASKS) else f"{split}_{config.subtask}"
    tables = {subtask: probabilities(scores) for subtask, scores in logits.items()}
    write_table(directory / f"{name}.csv", [text["annot_id"] for text in texts], tables)
    fields = {"q2a": "answer_label", "qa2r": "rationale_label"}
    labels = {subtask: np.array([text[field] for text in texts]) for subtask, field in fields.items()}
    if len(logits) < len(SUBTASKS) or any((values < 0).any() for values in labels.values()):
        return {}
    return accuracies(logits, labels)


def write_report(directory, model: VCRModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""

    def card(record: dict, picture: dict, row: dict) -> report.Card | None:
        if record["answer_label"] < 0 or record["rationale_label"] < 0:
            return None
        names = object_names(record["objects"], first_name(record["annot_id"]))
        names = [f"{name} {region}" for region, name in enumerate(names, 1)]
        asked, choices, label = record["question"], record["answers"], int(record["answer_label"])
        question = readable(asked, names)
        if config.subtask == "qa2r":
            question += f" {readable(choices[label], names)}"
            choices, label = record["rationales"], int(record["rationale_label"])
        chances = probabilities(row["logits"][None])[0]
        ranked = np.argsort(-chances)
        answers = [report.Answer(readable(choices[i], names), float(chances[i]), float(i == label)) for i in ranked]
        labels = ["", *names][: len(picture["boxes"])]
        return report.Card(question=question, answers=answers, box_labels=labels, **picture)

    title = {"q2a": "question to answer", "qa2r": "question and answer to rationale"}[config.subtask]
    write_choices(directory, f"Visual commonsense reasoning: {title}", model, config, history, _maker, predict, card)
