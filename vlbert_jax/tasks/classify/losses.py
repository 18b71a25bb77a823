"""Losses and scores of classes, labels and numbers, per example; the task adds them up."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from vlbert_jax.data.records import open_split
from vlbert_jax.tasks.classify.examples import labels_of, loss_of, value_scale
from vlbert_jax.tasks.losses import SumCount, counted, cross_entropy

BALANCED = "balanced"
THRESHOLD = 0.0  # logit from which on a label is in the answer: a probability of 0.5


def class_weights(config) -> Float32[np.ndarray, " k"] | None:
    """Return the weight of each class; None where all are equal.

    `config.losses.class_weights` is empty, a number for each class ("1,4.5"), or "balanced". With a softmax the weight
    is that of the examples of the class; balanced: all classes have the same sum in the training split. With a sigmoid
    it is that of the examples with the label; balanced: they count as much as those without it.

    Raises:
        ValueError: The weights are not of these forms, or the loss is that of numbers.
    """
    given = str(config.losses.get("class_weights", ""))
    if not given:
        return None
    loss, labels, d = loss_of(config), labels_of(config), config.data
    if loss == "squared":
        raise ValueError("config.losses.class_weights is for classes and labels; a squared error has none.")
    if given == BALANCED:
        counts, total = _label_counts(str(d.data_dir), d.texts, d.train_split, labels)
        counts = np.maximum(counts, 1)
        return (total / (len(labels) * counts) if loss == "softmax" else (total - counts) / counts).astype(np.float32)
    parts = given.split(",")
    weights = np.array([float(part) if part.replace(".", "", 1).isdigit() else 0.0 for part in parts], np.float32)
    if len(weights) != len(labels) or not (weights > 0).all():
        raise ValueError(
            f"config.losses.class_weights is {given!r}; it must be {BALANCED!r}, or {len(labels)} positive numbers "
            f"with commas, in the order of the labels: {', '.join(labels[:6])}"
        )
    return weights


@functools.cache
def _label_counts(data_dir: str, texts: str, splits: str, labels: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """Return the number of training examples with each label, and of all examples."""
    counts, total = dict.fromkeys(labels, 0), 0
    for split in splits.split("+"):
        for orientation in ("landscape", "portrait"):
            records = open_split(data_dir, texts, f"{split}_{orientation}", optional=True)
            total += len(records)
            for number in range(len(records)):
                for label in set(records[number]["labels"]) & counts.keys():
                    counts[label] += 1
    return np.array(list(counts.values())), total


def counted_examples(targets, config) -> Bool[Array, " b"]:
    """Return which examples count in the loss; a softmax requires that the label is one of the model's."""
    return targets.known & (targets.label_targets > 0).any(-1) if loss_of(config) == "softmax" else targets.known


def class_losses(outputs: Float[Array, "b k"], targets, config) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Return the loss of each example and its weight in the mean; both are 0 where an example does not count.

    That is the cross-entropy of the label (softmax), the binary losses summed over labels (sigmoid), or the
    squared errors of standardized numbers summed over these (squared).
    """
    counts, loss, weights = counted_examples(targets, config), loss_of(config), class_weights(config)
    wanted = jnp.where(counts[:, None], targets.label_targets, 0)  # a NaN in padding would reach the gradient
    weight = counts.astype(jnp.float32)
    if loss == "softmax":
        if weights is not None:
            weight *= jnp.asarray(weights)[wanted.argmax(-1)]
        losses = weight * cross_entropy(outputs, wanted.argmax(-1))
    elif loss == "sigmoid":
        positive = wanted * jax.nn.softplus(-outputs)
        positive = positive if weights is None else positive * jnp.asarray(weights)[None]
        losses = (positive + (1 - wanted) * jax.nn.softplus(outputs)).sum(-1)
    else:
        losses = jnp.square(outputs - wanted).sum(-1)
    return jnp.where(counts, losses, 0), weight


def class_metrics(outputs: Float[Array, "b k"], targets, config) -> dict[str, SumCount]:
    """Return the score of a batch by the kind of the loss.

    That is the accuracy, the micro F1 at a probability of 0.5, or the mean squared error of the numbers in their
    own units.
    """
    known, loss = targets.known, loss_of(config)
    wanted = jnp.where(known[:, None], targets.label_targets, 0)
    if loss == "softmax":
        hits = jnp.take_along_axis(wanted, outputs.argmax(-1)[:, None], axis=1)[:, 0] > 0
        return {"classify_accuracy": counted(hits, known)}
    if loss == "sigmoid":
        chosen, gold = (outputs >= THRESHOLD) & known[:, None], wanted > 0
        hits, both = jnp.sum(chosen & gold), jnp.sum(chosen) + jnp.sum(gold)
        return {"classify_micro_f1": (2.0 * hits.astype(jnp.float32), both.astype(jnp.float32))}
    _, deviations = value_scale(config)
    errors = jnp.square((outputs - wanted) * jnp.asarray(deviations)[None]).mean(-1)
    return {"classify_squared_error": counted(errors, known)}


def answers_of(outputs: Float[Array, "b k"], config) -> Float[Array, "b k"]:
    """Return probabilities of classes or labels, or numbers in their own units."""
    loss = loss_of(config)
    if loss == "squared":
        means, deviations = value_scale(config)
        return outputs * jnp.asarray(deviations)[None] + jnp.asarray(means)[None]
    return jax.nn.softmax(outputs) if loss == "softmax" else jax.nn.sigmoid(outputs)
