"""Losses of one-stream models for retrieval, expressions and phrases as (sum, count).

Axes: `b` examples, `n` sequences per example, `p` phrases, `k` regions. Masks are True where a value is real.
Choices and pairs have the cross-entropy of labels (`label_loss` in vlbert_jax/tasks/two_stream_losses.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.model.encoder import MASKED
from vlbert_jax.tasks.losses import SumCount, counted, cross_entropy, divergence, soft_cross_entropy

RANK_MARGIN = 0.2  # of UNITER's retrieval, between probabilities


def rank_loss(
    scores: Float[Array, "b n"], sequence_mask: Bool[Array, "b n"], margin: float = RANK_MARGIN
) -> SumCount:
    """Return the hinge loss max(0, margin + sigmoid(wrong) - sigmoid(right)): a mean over the wrong pairs.

    Sequence 0 is the right pair of text and image (UNITER).
    """
    probabilities = jax.nn.sigmoid(scores)
    losses = jnp.maximum(margin + probabilities[:, 1:] - probabilities[:, :1], 0)
    return counted(losses, sequence_mask[:, 1:] & sequence_mask[:, :1])


def region_choice_loss(
    scores: Float[Array, "b n k"], labels: Int[Array, "b n"], region_mask: Bool[Array, "b n k"]
) -> SumCount:
    """Return the cross-entropy of the region that an expression names, among the real ones: a mean over sequences."""
    losses = cross_entropy(jnp.where(region_mask, scores, MASKED), labels)
    return counted(losses, region_mask.any(-1))


def phrase_loss(
    scores: Float[Array, "b n p k"], targets: Float[Array, "b n p k"], region_mask: Bool[Array, "b n k"]
) -> SumCount:
    """Return the divergence KL(target || softmax) of phrases: a sum over phrases, a mean over sequences (VisualBERT).

    A phrase without a target has zeros and adds nothing.
    """
    real = region_mask[:, :, None]
    targets = jnp.where(real, targets, 0)
    losses = divergence(soft_cross_entropy(jnp.where(real, scores, MASKED), targets), targets)
    return counted(losses.sum(-1), region_mask.any(-1))
