"""Losses per target in float32; tasks add them up as (sum, count)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

SumCount = tuple[Float[Array, ""], Float[Array, ""]]  # what is added up over the parts of a global batch


def cross_entropy(logits: Float[Array, "... c"], labels: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return -log softmax(logits)[labels].

    A label outside the classes gives NaN and a gradient of 0: callers mask the losses of padding with
    `jnp.where`, and a wrong label of a real target stops the run.
    """
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def soft_cross_entropy(logits: Float[Array, "... c"], targets: Float[Array, "... c"]) -> Float[Array, "..."]:
    """Return -sum of targets * log softmax(logits); the targets are not renormalized, as in the official code."""
    return -jnp.sum(targets.astype(jnp.float32) * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def divergence(cross_entropies: Float[Array, "..."], targets: Float[Array, "... c"]) -> Float[Array, "..."]:
    """Return the Kullback-Leibler divergence from cross-entropies with soft targets that need not sum to 1."""
    targets = targets.astype(jnp.float32)
    return cross_entropies + jnp.sum(jax.scipy.special.xlogy(targets, targets), axis=-1)


def binary_cross_entropy(logits: Float[Array, "..."], targets: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Return -t log sigmoid(z) - (1 - t) log sigmoid(-z), for targets t in [0, 1]."""
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def counted(values: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> SumCount:
    """Return (sum, count) of the values where the mask is True: a metric."""
    return jnp.sum(jnp.where(mask, values, 0)).astype(jnp.float32), jnp.sum(mask).astype(jnp.float32)
