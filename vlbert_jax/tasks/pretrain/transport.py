"""Optimal transport between the words and the regions of a pair (UNITER, section 3.2: word-region alignment)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

BETA = 0.5  # the smaller, the closer the plan is to the exact one
ITERATIONS = 50
FAR = 1e4  # added to the denominators of padding, so that its share is nearly 0
SMALLEST_NORM = 1e-5


def transport_distances(
    states: Float[Array, "b s d"], is_word: Bool[Array, "b s"], is_region: Bool[Array, "b s"]
) -> Float[Array, " b"]:
    """Return the cost of moving the words of each pair to its regions, in float32.

    The cost of a word and a region is 1 - the cosine of their states. The plan comes from the proximal
    point method (IPOT) and is a constant of the gradient, as in the original code.
    """
    states = states.astype(jnp.float32)
    squares = jnp.sum(states * states, axis=-1, keepdims=True)
    states = states * jax.lax.rsqrt(jnp.maximum(squares, SMALLEST_NORM**2))
    both = is_word[:, :, None] & is_region[:, None, :]
    cost = jnp.where(both, 1 - jnp.einsum("bwd,brd->bwr", states, states, precision="highest"), 0)
    return jnp.sum(cost * _plan(jax.lax.stop_gradient(cost), both, is_word, is_region), axis=(1, 2))


def _plan(cost: Float[Array, "b w r"], both, is_word, is_region) -> Float[Array, "b w r"]:
    """Return how much of each word is moved to each region; rows and columns sum to nearly equal shares."""
    kernel = jnp.where(both, jnp.exp(-cost / BETA), 0)
    num_words = is_word.sum(1, keepdims=True).astype(jnp.float32)
    num_regions = is_region.sum(1, keepdims=True).astype(jnp.float32)
    far_words, far_regions = jnp.where(is_word, 0, FAR), jnp.where(is_region, 0, FAR)

    def iterate(_, plan_and_words):
        plan, of_words = plan_and_words
        moved = kernel * plan
        of_regions = 1 / (num_regions * jnp.sum(moved * of_words[:, :, None], axis=1) + far_regions)
        of_words = 1 / (num_words * jnp.sum(moved * of_regions[:, None, :], axis=2) + far_words)
        return of_words[:, :, None] * moved * of_regions[:, None, :], of_words

    start = both.astype(jnp.float32), jnp.where(is_word, 1 / jnp.maximum(num_words, 1), 0)
    return jax.lax.fori_loop(0, ITERATIONS, iterate, start)[0]
