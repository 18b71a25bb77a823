"""Referring expressions: which region does the phrase mean (paper, section 4.3)."""

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
from vlbert_jax.data.examples import image_shapes, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.records import open_split
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import masking_ids, tokenizer_of
from vlbert_jax.model.config import model_options
from vlbert_jax.model.layers import PredictionHead, gather_positions, split_keys, xavier_init
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel, without_words
from vlbert_jax.model.visual_linguistic import region_head_is_frozen as is_frozen
from vlbert_jax.tasks.base import is_idle
from vlbert_jax.tasks.losses import binary_cross_entropy, counted
from vlbert_jax.tasks.refcoco.examples import ExpressionLayout, expression_example, hits, meant_row, original_boxes
from vlbert_jax.tasks.report import write_report as write_choices
from vlbert_jax.visualization import report

__all__ = ["is_frozen", "is_idle"]  # parts of the task protocol that live elsewhere
TOP = 5  # regions of a prediction
CHECKED_IMAGES = 20  # that may all be without a detection before this is taken for a mistake


class RefCOCOModel(VisualLinguisticModel):
    """VL-BERT and a score per region; the head's hidden layer starts as that of masked regions."""

    def __init__(self, encoder, fast_rcnn: dict, rngs: nnx.Rngs):
        super().__init__(encoder, fast_rcnn, rngs)
        self.region_head = PredictionHead(encoder, 1, rngs)

    def region_logits(self, states: Float[Array, "b 1 s d"], positions: Int[Array, "b r"]) -> Float[Array, "b r"]:
        """`positions` are those of the regions in the sequence."""
        return self.region_head(gather_positions(states[:, 0], positions))[..., 0]


def build_model(config, rngs: nnx.Rngs) -> RefCOCOModel:
    return RefCOCOModel(*model_options(config), rngs)


def prepare(model: RefCOCOModel, config, filled: set[tuple]) -> None:
    """The layer that scores a region starts as the official one does."""
    if ("region_head", "classes", "kernel") not in filled:
        xavier_init(model.region_head.classes.kernel, config.seed)


def _maker(config, orientation: str, train: bool):
    tokenizer, layout = tokenizer_of(config), ExpressionLayout.of(config, orientation, train)
    if layout.kind != "gt":
        _check_detections(config)
    return lambda record, flip: expression_example(record, flip, tokenizer, layout)


def _check_detections(config) -> None:
    """Raises ValueError if the images have none: the table is without them, unless it is told to have them."""
    d = config.data
    images = open_split(d.data_dir, d.images, "images")
    if not any(len(images[i]["proposals"]) for i in range(min(len(images), CHECKED_IMAGES))):
        raise ValueError(
            f"{d.images} in {d.data_dir} has no detections: build it with --proposals, or choose among annotations "
            "(config.data.train_boxes=gt, config.data.eval_boxes=gt)"
        )


def batch_shapes(config) -> Batch:
    layout = ExpressionLayout.of(config, usual_orientation(config))
    rows = layout.max_regions + 1
    shapes = sequence_shapes(1, layout.sequence_length) | image_shapes(layout)
    shapes |= dict.fromkeys(("region_targets", "region_hits"), ((rows,), bool)) | dict(text_cut=((), bool))
    return tables.batch_shapes(config, shapes | dict(region_positions=((1, rows), np.int32)))


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    return tables.train_batches(config, _maker, start_step, process_index, process_count)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    return {"expressions": tables.eval_batches(config, _maker, process_index, process_count)}


# --- Losses and scores ----------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    return ("region",)


def loss_weights(config) -> dict[str, float]:
    return {"region": 1.0}


def loss_counts(batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
    return {"region": jnp.maximum(batch.region_mask.sum().astype(jnp.float32), 1.0)}


def appearance_of(model: RefCOCOModel, batch: Batch, blind: bool) -> Float[Array, "b r g"]:
    """What the regions look like; nothing but zeros where `blind`, so that only their places and sizes are known."""
    if not blind:
        return model.appearance(batch)
    rows = jax.eval_shape(model.appearance, batch)
    return jnp.zeros(rows.shape, rows.dtype)


def region_logits(model: RefCOCOModel, batch: Batch, appearance, key=None) -> Float[Array, "b r"]:
    """-inf where there is no region; officially padding can be chosen."""
    key_project, key_encode = split_keys(key, 2)
    states = model.encode(batch, model.region_states(batch, appearance, key_project), key_encode)
    logits = model.region_logits(states, batch.region_positions[:, 0])
    return jnp.where(batch.region_mask, logits, -jnp.inf)


def region_losses(logits: Float[Array, "b r"], batch: Batch) -> Float[Array, "b r"]:
    """Of each region against whether it is what is meant; anything where there is no region."""
    return binary_cross_entropy(jnp.where(batch.region_mask, logits, 0), batch.region_targets)


def choice_accuracy(logits: Float[Array, "b r"], batch: Batch) -> tuple[Array, Array]:
    """Whether the best region is a hit, as (sum, count)."""
    chosen = logits.argmax(-1)[:, None]
    return counted(jnp.take_along_axis(batch.region_hits, chosen, axis=1)[:, 0], batch.region_mask.any(1))


def accuracies(logits: Float[Array, "b r"], batch: Batch) -> dict[str, tuple[Array, Array]]:
    """Of the choice, and of the regions one by one (official RefAcc, ClsAcc, ClsPosAcc, ClsPosFrac)."""
    correct = (logits > 0) == batch.region_targets
    return dict(
        refcoco_accuracy=choice_accuracy(logits, batch),
        region_accuracy=counted(correct, batch.region_mask),
        positive_region_accuracy=counted(correct, batch.region_targets),
        positive_region_fraction=counted(batch.region_targets, batch.region_mask),
    )


def loss_sums(model: RefCOCOModel, batch: Batch, key, config, names):
    logits = region_logits(model, batch, appearance_of(model, batch, config.blind), key)
    loss, _ = counted(region_losses(logits, batch), batch.region_mask)
    return {"region": loss}, accuracies(logits, batch)


def twin_logits(model: RefCOCOModel, batch: Batch, config) -> dict[str, Float[Array, "b r"]]:
    """As trained (""), blind, wordless. Blind knows the words and where the regions are, not what they look like;
    wordless sees all, and every word is masked: what stands out is often meant."""
    seen = appearance_of(model, batch, config.blind)
    return {
        "": region_logits(model, batch, seen),
        "_blind": region_logits(model, batch, jnp.zeros_like(seen)),
        "_wordless": region_logits(model, without_words(batch, *masking_ids(config)), seen),
    }


def score(model: RefCOCOModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Accuracy of the chosen region, of the twins' choices, of any region (`chance`) and of the best (`possible`)."""
    twins, real = twin_logits(model, batch, config), batch.region_mask.any(1)
    any_region = batch.region_hits.sum(1) / jnp.maximum(batch.region_mask.sum(1), 1)
    choices = {f"refcoco_accuracy{twin}": choice_accuracy(logits, batch) for twin, logits in twins.items()}
    return accuracies(twins[""], batch) | choices | dict(
        refcoco_accuracy_chance=counted(any_region, real),
        refcoco_accuracy_possible=counted(batch.region_hits.any(1), real),
        region_loss=counted(region_losses(twins[""], batch), batch.region_mask),
        text_cut=counted(batch.text_cut, real),
    )


# --- Predictions ----------------------------------------------------------------------------------------------------


def predict(model: RefCOCOModel, batch: Batch, config) -> dict[str, Array]:
    """The rows of the best regions and their probabilities of being meant, [b, 5]; 0 where there are fewer."""
    logits = region_logits(model, batch, appearance_of(model, batch, config.blind))
    best, region = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))
    return dict(region=region, probability=jax.nn.sigmoid(best))


def conclude(directory: Path, predictions: dict, config) -> dict[str, float]:
    """Writes SPLIT.json, official form with `sent_id` besides, in the official order within a split (`testA+testB` are
    mixed); with annotations among the regions, returns the share of expressions whose very annotation was chosen
    (MAttNet's rule, stricter than the official one)."""
    rows, d = predictions[""], config.data
    split, found, exact = Split(config, d.eval_split), [], []
    for number, (region, *_) in zip(rows["index"], rows["region"], strict=True):
        record = split[int(number)]
        box = original_boxes(record, d.eval_boxes, tuple(d.image_scale))[region]
        found.append((int(record["index"]), int(record["ref_id"]), int(record["sent_id"]), box.tolist()))
        exact.append(int(region) == meant_row(record, d.eval_boxes))
    official = [dict(ref_id=ref_id, sent_id=sent_id, box=box) for _, ref_id, sent_id, box in sorted(found)]
    (directory / f"{d.eval_split}.json").write_text(json.dumps(official))
    return {} if d.eval_boxes == "detected" or not exact else dict(refcoco_identity_accuracy=float(np.mean(exact)))


def write_report(directory, model: RefCOCOModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""

    def card(record: dict, picture: dict, row: dict) -> report.Card:
        right = hits(record, config.data.eval_boxes, tuple(config.data.image_scale))
        answers = [
            report.Answer(f"region {i}" if i else "the whole image", float(p), float(right[i]))
            for i, p in zip(row["region"], row["probability"], strict=True)
            if i < len(picture["boxes"])
        ]
        meant = ", ".join(map(str, np.flatnonzero(right))) or "none of the regions"
        return report.Card(**picture, question=record["expression"], answers=answers, title=f"meant: {meant}")

    title = "VL-BERT on referring expressions"
    write_choices(directory, title, model, config, history, _maker, predict, card)
