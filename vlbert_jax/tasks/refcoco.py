"""Referring expressions: which region does the phrase mean (paper, section 4.3)."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax import data, sequence, transforms
from vlbert_jax.batch import Batch
from vlbert_jax.encoder import keys
from vlbert_jax.report import Answer, Card
from vlbert_jax.sequence import Tokenizer
from vlbert_jax.tasks import downstream, downstream_report
from vlbert_jax.tasks.examples import (
    Example,
    ImageLayout,
    image_fields,
    image_shapes,
    is_precomputed,
    mirrored,
    padded,
    sequence_shapes,
    tokenizer_of,
    usual_orientation,
)
from vlbert_jax.tasks.losses import binary_cross_entropy, counted
from vlbert_jax.tasks.model import (
    PredictionHead,
    VisualLinguisticModel,
    at,
    is_frozen,
    is_idle,
    model_options,
    without_words,
    xavier,
)

__all__ = ["is_frozen", "is_idle"]  # parts of the task protocol that live elsewhere

KINDS = ("gt", "detected", "both")  # of regions to choose from
POSITIVE = 0.5  # of a target, more of it than this is in common with what is meant; of a hit, no less
TOP = 5  # regions of a prediction
CHECKED_IMAGES = 20  # that may all be without a detection before this is taken for a mistake


class RefCOCOModel(VisualLinguisticModel):
    """VL-BERT and a score per region; the head's hidden layer starts as that of masked regions."""

    def __init__(self, encoder, fast_rcnn: dict, rngs: nnx.Rngs):
        super().__init__(encoder, fast_rcnn, rngs)
        self.region_head = PredictionHead(encoder, 1, rngs)

    def region_logits(self, states: Float[Array, "b 1 s d"], positions: Int[Array, "b r"]) -> Float[Array, "b r"]:
        """`positions` are those of the regions in the sequence."""
        return self.region_head(at(states[:, 0], positions))[..., 0]


def build_model(config, rngs: nnx.Rngs) -> RefCOCOModel:
    return RefCOCOModel(*model_options(config), rngs)


def prepare(model: RefCOCOModel, config, filled: set[tuple]) -> None:
    """The layer that scores a region starts as the official one does."""
    if ("region_head", "classes", "kernel") not in filled:
        xavier(model.region_head.classes.kernel, config.seed)


# --- Boxes ----------------------------------------------------------------------------------------------------------


def overlaps(boxes: Float[np.ndarray, "n 4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "n"]:
    """Intersection over union, a box reaching from its first to its last pixel: widths are x2 - x1 + 1 (official).

    Computed in the precision of the arguments, step by step as the official code does, as 0.5 decides.
    """
    shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
    shared = np.prod(np.maximum(shared, 0), axis=1)
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    return shared / (sizes + np.prod(box[2:] - box[:2] + 1) - shared)


def candidates(record: dict, kind: str) -> Float[np.ndarray, "n 4"]:
    """The boxes to choose from besides the whole image, in pixels of the original: detections before annotations."""
    boxes = dict(gt=("boxes",), detected=("proposals",), both=("proposals", "boxes"))[kind]
    return np.concatenate([record[name] for name in boxes])


def meant_row(record: dict, kind: str) -> int:
    """The row of the annotation that is meant, behind the whole image; -1 among detections.

    Raises ValueError if the image has no such annotation.
    """
    (found,) = np.nonzero(record["ann_ids"] == record["ann_id"])
    if not len(found):
        raise ValueError(
            f"expression {record['sent_id']} means annotation {record['ann_id']}, which is none of image "
            f"{record['image_id']}: texts and images are not of one build; remove both tables and build them again"
        )
    before = {"gt": 1, "both": 1 + len(record["proposals"]), "detected": None}[kind]
    return -1 if before is None else before + int(found[0])


def original_boxes(record: dict, kind: str, scale: tuple[int, int]) -> Float[np.ndarray, "r 4"]:
    """What a choice of each row means in pixels of the original image: the region as the model has it, mapped back.

    The official way there and back, in single precision; the first row is the whole image.
    """
    original = tuple(map(int, record["image_size"]))
    size = transforms.resized_size(original, scale)
    placed = transforms.place_boxes(candidates(record, kind), original, size, False)
    return placed / np.tile(transforms.resize_ratios(original, size), 2)


def hits(record: dict, kind: str, scale: tuple[int, int]) -> Bool[np.ndarray, "r"]:
    """Rows that count as right when chosen: compared in the original image and in double precision (official test)."""
    return overlaps(original_boxes(record, kind, scale).astype(np.float64), record["box"]) >= POSITIVE


# --- Examples -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout(ImageLayout):
    kind: str  # of regions: gt, detected or both
    sequence_length: int

    @classmethod
    def of(cls, config, orientation: str = "landscape", train: bool = True) -> "Layout":
        """Raises ValueError on an unknown kind, and where a sequence has no room for text."""
        d = config.data
        field = "train_boxes" if train else "eval_boxes"
        if d[field] not in KINDS:
            raise ValueError(f"config.data.{field} is {d[field]!r}, not one of {', '.join(KINDS)}")
        if is_precomputed(config):
            raise ValueError("config.data.features must be image: referring expressions have no precomputed features")
        if d.sequence_length < d.max_regions + 4:
            raise ValueError(
                f"config.data.sequence_length {d.sequence_length} has no room for {d.max_regions} regions, the whole "
                "image, [CLS], a word and [SEP]"
            )
        options = cls.options(config, orientation)
        return cls(**options, kind=d[field], sequence_length=d.sequence_length)


def expression_example(record: dict, flip: bool, tokenizer: Tokenizer, layout: Layout) -> Example:
    """`[CLS] expression [SEP]` and the regions, n = 1.

    `record` is as `image_fields` wants it, and has `boxes`, `ann_ids` and `proposals` of the image, `expression`,
    `ann_id` and `box` (float64) of what is meant. In a mirrored image left is right. Regions beyond `max_regions`
    cannot be chosen, an expression that does not fit loses its end (officially there is no limit). `region_targets`
    are compared in the resized, perhaps mirrored image in single precision, as officially for training; `region_hits`
    as officially for testing, see `hits`.
    """
    boxes, rows = candidates(record, layout.kind), layout.max_regions + 1
    meant_row(record, layout.kind)  # are image and text of one build?
    example = asked_example(record, boxes, flip, tokenizer, layout)
    original, size = (tuple(map(int, side)) for side in (record["image_size"], example["image_size"]))
    meant = transforms.place_boxes(record["box"][None], original, size, flip)[1]
    return example | dict(
        region_targets=example["region_mask"] & (overlaps(example["boxes"], meant) > POSITIVE),
        region_hits=padded(hits(record, layout.kind, layout.image_scale)[:rows], rows),
    )


def asked_example(
    record: dict, boxes: Float[np.ndarray, "n 4"], flip: bool, tokenizer: Tokenizer, layout: Layout
) -> Example:
    """The same without what is right: `record` needs the image and `expression`, `boxes` are those to choose from."""
    image = image_fields(record, boxes, layout, flip)
    real = image["region_mask"]
    num_regions = int(real.sum())
    ids = sum(tokenizer.words(record["expression"]), [])
    if flip:
        ids = mirrored(ids, tokenizer)
    room = layout.sequence_length - num_regions - 2
    text = [tokenizer.cls_id, *ids[:room], tokenizer.sep_id]
    zeros = np.zeros(len(text), np.int32)
    nothing_hidden = np.zeros(num_regions, bool)
    packed = sequence.pack(
        text, zeros, num_regions, nothing_hidden, zeros, layout.sequence_length, tokenizer.vocab_size
    )
    packed["region_positions"] = np.where(real, len(text) + np.arange(len(real)), 0).astype(np.int32)
    return {name: value[None] for name, value in packed.items()} | image | dict(text_cut=np.bool_(len(ids) > room))


def _maker(config, orientation: str, train: bool):
    tokenizer, layout = tokenizer_of(config), Layout.of(config, orientation, train)
    if layout.kind != "gt":
        _check_detections(config)
    return lambda record, flip: expression_example(record, flip, tokenizer, layout)


def _check_detections(config) -> None:
    """Raises ValueError if the images have none: the table is without them, unless it is told to have them."""
    d = config.data
    images = data.open_split(d.data_dir, d.images, "images")
    if not any(len(images[i]["proposals"]) for i in range(min(len(images), CHECKED_IMAGES))):
        raise ValueError(
            f"{d.images} in {d.data_dir} has no detections: build it with --proposals, or choose among annotations "
            "(config.data.train_boxes=gt, config.data.eval_boxes=gt)"
        )


def batch_shapes(config) -> Batch:
    layout = Layout.of(config, usual_orientation(config))
    rows = layout.max_regions + 1
    shapes = sequence_shapes(1, layout.sequence_length) | image_shapes(layout)
    shapes |= dict.fromkeys(("region_targets", "region_hits"), ((rows,), bool)) | dict(text_cut=((), bool))
    return downstream.batch_shapes(config, shapes | dict(region_positions=((1, rows), np.int32)))


def train_batches(config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
    return downstream.train_batches(config, _maker, start_step, process_index, process_count)


def eval_batches(config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
    return {"expressions": downstream.eval_batches(config, _maker, process_index, process_count)}


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
    key_project, key_encode = keys(key, 2)
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
        "_wordless": region_logits(model, without_words(batch, config), seen),
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
    split, found, exact = downstream.Split(config, d.eval_split), [], []
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

    def card(record: dict, picture: dict, row: dict) -> Card:
        right = hits(record, config.data.eval_boxes, tuple(config.data.image_scale))
        answers = [
            Answer(f"region {i}" if i else "the whole image", float(p), float(right[i]))
            for i, p in zip(row["region"], row["probability"], strict=True)
            if i < len(picture["boxes"])
        ]
        meant = ", ".join(map(str, np.flatnonzero(right))) or "none of the regions"
        return Card(**picture, question=record["expression"], answers=answers, title=f"meant: {meant}")

    title = "VL-BERT on referring expressions"
    downstream_report.write_report(directory, title, model, config, history, _maker, predict, card)
