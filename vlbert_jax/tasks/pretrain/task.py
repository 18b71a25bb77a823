"""Pre-training: masked words with visual clues, masked RoI classification, optionally caption-image matching."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vlbert_jax.batch import Batch
from vlbert_jax.data.tokenizer import masking_ids
from vlbert_jax.model.config import model_options
from vlbert_jax.model.visual_linguistic import region_head_is_frozen as is_frozen
from vlbert_jax.model.visual_linguistic import without_image, without_words
from vlbert_jax.tasks.losses import counted, cross_entropy, soft_cross_entropy
from vlbert_jax.tasks.pretrain.batches import batch_shapes, eval_batches, train_batches
from vlbert_jax.tasks.pretrain.examples import word_ids
from vlbert_jax.tasks.pretrain.losses import _target_weights, loss_counts, loss_sums
from vlbert_jax.tasks.pretrain.model import PretrainingModel

__all__ = ["batch_shapes", "eval_batches", "is_frozen", "loss_counts", "loss_sums", "train_batches"]

LOSSES = ("mlm_caption", "mlm_text", "mrc", "relationship", "region")
NUM_GROUPS = 3  # groups whose scores are reported apart


def build_model(config, rngs: nnx.Rngs) -> PretrainingModel:
    """The model of a config; see configs/pretrain.py for the fields. Raises ValueError where they contradict."""
    if config.opening.steps and not config.losses.region:
        raise ValueError("config.opening.steps trains the region head alone: set config.losses.region=1.0 with it")
    encoder, fast_rcnn = model_options(config)
    return PretrainingModel(
        encoder,
        fast_rcnn | dict(hidden_vector=not config.data.hide_pixels),
        config.model.num_region_classes,
        relationship=config.losses.relationship,
        region_classifier=config.losses.region > 0,
        rngs=rngs,
    )


def is_idle(path: tuple, config, names: tuple[str, ...]) -> bool:
    """What the phases of `active_losses` leave alone: all but the region head, or the region head."""
    of_region_head = path[0] == "region_classifier" or (path[0] == "fast_rcnn" and path[1] in ("backbone", "c5"))
    if set(names) == {"region"}:
        return not of_region_head
    return of_region_head and config.losses.region > 0 and "region" not in names


# --- Losses ---------------------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    """Names of the losses that count at `step`.

    A run from scratch may open with a phase that trains the region head alone, on its auxiliary loss, and then keep it
    as it is for a while; afterwards everything is trained.
    """
    losses = config.losses
    if step < config.opening.steps:
        return ("region",)
    on = dict(
        mlm_caption=losses.mlm,
        mlm_text=losses.mlm and losses.text_only,
        mrc=losses.mrc,
        relationship=losses.relationship,
        region=losses.region > 0 and step >= losses.region_fixed_until,
    )
    return tuple(name for name in LOSSES if on[name])


def loss_weights(config) -> dict[str, float]:
    """All one in the official code, but for the auxiliary region classification."""
    return {name: config.losses.region if name == "region" else 1.0 for name in LOSSES}


# --- Scores ---------------------------------------------------------------------------------------------------------


def score(model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Losses and accuracies of an evaluation batch, each beside its blind twin; (sum, count) per metric."""
    vocab_size = config.model.encoder.vocab_size
    appearance = model.appearance(batch)
    region_states = model.region_states(batch, appearance)
    states = model.encode(batch, region_states)
    metrics = {}
    kind = "text" if batch.boxes is None else "caption"

    def add(name, values, mask):
        metrics[name] = counted(values, mask)

    if config.losses.mlm:
        words_by = {"": states}
        if kind == "caption":
            words_by["_blind"] = model.encode(without_image(batch, vocab_size), None)
        for suffix, element_states in words_by.items():
            logits = model.mlm_logits(element_states, batch.mlm_positions)
            hits = logits.argmax(-1) == batch.mlm_labels
            add(f"mlm_{kind}_accuracy{suffix}", hits, batch.mlm_mask)
            add(f"mlm_{kind}_loss{suffix}", cross_entropy(logits, batch.mlm_labels), batch.mlm_mask)
            if kind == "caption" and config.data.visual_words:
                visual = jnp.isin(batch.mlm_labels, jnp.asarray(word_ids(config, config.data.visual_words)))
                visual &= batch.mlm_mask
                add(f"visual_word_accuracy{suffix}", hits, visual)
                for count in range(1, NUM_GROUPS + 1):
                    in_group = visual & (batch.group == count)[:, None, None]
                    add(f"visual_word_accuracy_objects_{count}{suffix}", hits, in_group)
    if kind == "caption" and config.losses.mrc:
        wordless = without_words(batch, *masking_ids(config))
        best = batch.mrc_targets.argmax(-1)
        for suffix, element_states in {"": states, "_blind": model.encode(wordless, region_states)}.items():
            logits = model.mrc_logits(element_states, batch.mrc_positions)
            add(f"mrc_accuracy{suffix}", logits.argmax(-1) == best, batch.mrc_mask)
            add(f"mrc_loss{suffix}", soft_cross_entropy(logits, batch.mrc_targets), batch.mrc_mask)
    if kind == "caption" and config.losses.relationship:
        logits = model.relationship_logits(states)
        add("relationship_accuracy", logits.argmax(-1) == batch.relationship, batch.region_mask.any(1))
    if kind == "caption" and config.losses.region > 0:
        hits = model.region_classifier(appearance).argmax(-1) == batch.region_classes
        add("region_accuracy", hits, _target_weights(batch, config, ("region",))["region"][0] > 0)
    return metrics


def write_report(directory, model: PretrainingModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""
    from vlbert_jax.tasks.pretrain import report  # it reads this module

    report.write_report(directory, model, config, history)
