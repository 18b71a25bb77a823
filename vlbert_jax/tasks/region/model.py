"""The model that scores the regions of an image, its losses and its scores."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.data.tokenizer import masking_ids
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.layers import PredictionHead, dense, dropout, split_keys
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel, without_words
from vlbert_jax.tasks.losses import binary_cross_entropy, counted

LOSSES = ("sigmoid", "softmax")  # values of config.losses.grounding
HEADS = ("hidden", "linear", "norm")  # values of config.model.grounding_head


class RegionModel(VisualLinguisticModel):
    """VL-BERT or a sibling, and a score per region.

    "hidden" is VL-BERT's head, whose hidden layer with GELU starts from that for hidden regions. "norm" has a layer
    norm behind the GELU (UNITER on RefCOCO+). "linear" has no hidden layer (ViLBERT, UNITER on RefCOCO and RefCOCOg).
    """

    def __init__(self, encoder, region_head: RegionHeadConfig, rngs: nnx.Rngs, kind: str = "hidden"):
        if kind not in HEADS:
            raise ValueError(f"config.model.grounding_head is {kind!r}; it must be one of {', '.join(HEADS)}.")
        super().__init__(encoder, region_head, rngs)
        visual = encoder.encoder_config("visual")
        # UNITER has no dropout there.
        self.dropout_rate = 0.0 if kind != "linear" or visual.architecture.name == "uniter" else visual.dropout_rate
        if kind == "linear":
            exact = dataclasses.replace(visual, dtype=jnp.float32)  # scores must not tie
            head = dense(visual.hidden_size, 1, ("embed", None), exact, rngs)
        else:
            head = PredictionHead(visual, 1, rngs, norm=kind == "norm")
        self.region_head = head if kind == "hidden" else None
        self.grounding_head = None if kind == "hidden" else head
        if isinstance(encoder, TwoStreamConfig):
            self.wanted = ("visual",)

    def region_logits(self, states, positions: Int[Array, "b r"], key=None) -> Float[Array, "b r"]:
        """Return a logit per region; `positions` are those of the regions in the sequence, `key` is for dropout."""
        read = dropout(self.first_regions_at(states, positions), self.dropout_rate, key)
        head: Any = self.region_head or self.grounding_head
        return head(read)[..., 0].astype(jnp.float32)


def appearance_of(model: RegionModel, batch: Batch, blind: bool) -> Float[Array, "b r g"]:
    """Return the appearance of the regions, or zeros if `blind`, so that only places and sizes are known."""
    if not blind:
        return model.appearance(batch)
    rows = jax.eval_shape(model.appearance, batch)
    return jnp.zeros(rows.shape, rows.dtype)


def region_logits(model: RegionModel, batch: Batch, appearance, key=None) -> Float[Array, "b r"]:
    """Return a logit per region, -inf in padding; in the official code padding can be chosen."""
    key_project, key_encode, key_head = split_keys(key, 3)
    states = model.encode(batch, model.region_states(batch, appearance, key_project), key_encode)
    logits = model.region_logits(states, batch.targets.region_positions[:, 0], key_head)
    return jnp.where(choosable(batch), logits, -jnp.inf)


def loss_kind(config) -> str:
    """Return which loss is trained: each region for itself (sigmoid), or one of several right ones (softmax)."""
    return config.losses.get("grounding", "sigmoid")


def choosable(batch: Batch) -> Bool[Array, "b r"]:
    """Return which rows may be chosen."""
    choices = batch.targets.region_choices
    return batch.region_mask if choices is None else batch.region_mask & choices


def is_judged(batch: Batch) -> Bool[Array, "b"]:
    """Return which rows are examples whose right region is known."""
    known = batch.targets.region_known
    return batch.region_mask.any(1) if known is None else batch.region_mask.any(1) & known


def has_right_region(batch: Batch) -> Bool[Array, "b"]:
    """Return which examples have a right region among those that may be chosen."""
    return (batch.targets.region_targets & choosable(batch)).any(1)


def region_losses(logits: Float[Array, "b r"], batch: Batch) -> Float[Array, "b r"]:
    """Return the loss of each region for itself; the value of those that cannot be chosen is arbitrary."""
    return binary_cross_entropy(jnp.where(choosable(batch), logits, 0), batch.targets.region_targets)


def summed_loss(logits: Float[Array, "b r"], batch: Batch, kind: str) -> tuple[Array, Array]:
    """Return (sum, count) of the loss: over regions (sigmoid), or over examples with a right region (softmax).

    Softmax is the divergence of VisualBERT, whose target is 1/m for each of m right regions.
    """
    allowed = choosable(batch)
    if kind == "sigmoid":
        return counted(region_losses(logits, batch), allowed & is_judged(batch)[:, None])
    finite = jnp.where(allowed, logits, 0)
    right = batch.targets.region_targets & allowed
    number = jnp.maximum(right.sum(1), 1)
    log_total = jax.nn.logsumexp(finite, axis=-1, where=allowed)
    mean_right = jnp.where(right, finite, 0).sum(1) / number
    return counted(log_total - mean_right - jnp.log(number), right.any(1))


def choice_accuracy(logits: Float[Array, "b r"], batch: Batch) -> tuple[Array, Array]:
    """Return whether the best region is a hit, as (sum, count)."""
    chosen = logits.argmax(-1)[:, None]
    return counted(jnp.take_along_axis(batch.targets.region_hits, chosen, axis=1)[:, 0], is_judged(batch))


def accuracies(logits: Float[Array, "b r"], batch: Batch) -> dict[str, tuple[Array, Array]]:
    """Return the accuracy of the choice and of single regions.

    The official code calls them RefAcc, ClsAcc, ClsPosAcc and ClsPosFrac.
    """
    correct = (logits > 0) == batch.targets.region_targets
    judged = choosable(batch) & is_judged(batch)[:, None]
    return dict(
        grounding_accuracy=choice_accuracy(logits, batch),
        region_accuracy=counted(correct, judged),
        positive_region_accuracy=counted(correct, batch.targets.region_targets & judged),
        positive_region_fraction=counted(batch.targets.region_targets, judged),
    )


def baseline_logits(model: RegionModel, batch: Batch, config) -> dict[str, Float[Array, "b r"]]:
    """Return logits of the model ("") and of its baselines (`_blind`, `_wordless`).

    Blind, the words and the places of the regions are known, not their appearance. Wordless, every word is
    masked, because the most conspicuous region is often the one that is meant.
    """
    seen = appearance_of(model, batch, config.blind)
    return {
        "": region_logits(model, batch, seen),
        "_blind": region_logits(model, batch, jnp.zeros_like(seen)),
        "_wordless": region_logits(model, without_words(batch, *masking_ids(config)), seen),
    }
