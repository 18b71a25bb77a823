"""Losses of two-stream models as (sum, count), so that parts of a global batch add up.

Axes: `b` examples, `n` sequences per example, `k` words or regions. Masks are True where a target is real.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.tasks.losses import SumCount, binary_cross_entropy, counted, cross_entropy, soft_cross_entropy

# LXMERT's weight of the losses of regions: the inverse share of hidden regions. Hugging Face rounds it to 6.67.
LXMERT_VISUAL_WEIGHT = 1 / 0.15


def label_loss(logits: Float[Array, "... c"], labels: Int[Array, "..."], mask: Bool[Array, "..."]) -> SumCount:
    """Return the cross-entropy of masked words, of matching, of answers or of choices: a mean over labels."""
    return counted(cross_entropy(logits, jnp.where(mask, labels, 0)), mask)


def answer_loss(
    logits: Float[Array, "... a"], targets: Float[Array, "... a"], mask: Bool[Array, "..."]
) -> SumCount:
    """Return the binary cross-entropy of soft answers: a sum over answers, a mean over examples."""
    targets = jnp.where(mask[..., None], targets, 0)  # a NaN in padding would reach the gradient as 0 * NaN
    return counted(binary_cross_entropy(logits, targets).sum(-1), mask)


def one_hot_loss(logits: Float[Array, "... c"], labels: Int[Array, "..."], mask: Bool[Array, "..."]) -> SumCount:
    """Return the binary cross-entropy of a class (12-in-1): a mean over classes and examples."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    return counted(binary_cross_entropy(logits, targets).mean(-1), mask)


def grounding_loss(
    logits: Float[Array, "b n k"], targets: Float[Array, "b n k"], region_mask: Bool[Array, "b n k"]
) -> SumCount:
    """Return the binary cross-entropy of soft regions: a sum over regions, a mean over sequences.

    Padded regions add nothing: the official code gives them a logit of -10000 and a target of 0.
    """
    losses = jnp.where(region_mask, binary_cross_entropy(logits, jnp.where(region_mask, targets, 0)), 0)
    return counted(losses.sum(-1), region_mask.any(-1))


def region_class_loss(
    logits: Float[Array, "... k c"], targets: Float[Array, "... k c"], mask: Bool[Array, "... k"]
) -> SumCount:
    """Return ViLBERT's divergence KL(target || softmax) of hidden regions: a mean over these."""
    targets = jnp.where(mask[..., None], targets, 0)
    entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets), axis=-1)
    return counted(soft_cross_entropy(logits, targets) - entropy, mask)


def region_feature_loss(
    predicted: Float[Array, "... k g"], targets: Float[Array, "... k g"], mask: Bool[Array, "... k"]
) -> SumCount:
    """Return ViLBERT's squared error of hidden regions: a mean over columns and these regions."""
    return counted(jnp.square(predicted - jnp.where(mask[..., None], targets, 0)).mean(-1), mask)


def smooth_l1(error: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return error^2 / 2 below 1, and |error| - 1/2 above."""
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)


def lxmert_visual_losses(
    predictions: dict[str, Float[Array, "b n k c"]],
    labels: dict[str, Int[Array, "b n k"]],
    confidences: dict[str, Float[Array, "b n k"]],
    features: Float[Array, "b n k g"],
    hidden: Bool[Array, "b n k"],
    region_mask: Bool[Array, "b n k"],
    weight: Any = LXMERT_VISUAL_WEIGHT,
) -> dict[str, SumCount]:
    """Return LXMERT's losses of regions: objects, attributes, features.

    Objects and attributes are predicted at all regions and weighted by the detector's confidence;
    features are predicted at hidden regions. Each sum is divided by the number of region rows of real
    sequences, padding included, as in the official code.

    Args:
        predictions: What `TwoStreamModel.visual_predictions` returns, for all rows of regions.
        labels: Class of each region, by "objects" and "attributes"; -1 or less = none.
        confidences: Confidence of each class.
        features: Appearance of each region before it was hidden.
        hidden: Whether the appearance of a region was hidden.
        region_mask: Whether a region is real.
        weight: Factor of all three.
    """
    count = jnp.sum(region_mask.any(-1)).astype(jnp.float32) * region_mask.shape[-1]
    losses = {}
    for name, classes in labels.items():
        known = region_mask & (classes >= 0)
        values = cross_entropy(predictions[name], jnp.where(known, classes, 0))
        losses[name] = weight * jnp.sum(jnp.where(known, confidences[name], 0) * values), count
    hidden = hidden & region_mask
    errors = smooth_l1(predictions["features"] - jnp.where(hidden[..., None], features, 0)).mean(-1)
    losses["features"] = weight * jnp.sum(jnp.where(hidden, errors, 0)), count
    return losses
