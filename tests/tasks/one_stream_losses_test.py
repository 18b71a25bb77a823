"""Losses of one-stream heads by hand, whatever the values of padding."""

import jax
import jax.numpy as jnp
import numpy as np

from vlbert_jax.tasks import one_stream_losses as losses

RNG = np.random.default_rng(0)
SCORES, PHRASES = RNG.normal(size=(3, 2, 4)).astype(np.float32), RNG.normal(size=(3, 2, 3, 4)).astype(np.float32)
REAL = np.arange(4) < np.array([4, 2, 0])[:, None, None] * np.ones((1, 2, 1), int)  # the last example is padding
HITS = REAL[:, :, None] & (np.array([1, 2, 0])[:, None] > np.arange(4))  # the last phrase of each sequence has none
TARGETS = (HITS / np.maximum(HITS.sum(-1, keepdims=True), 1)).astype(np.float32)
LABELS = np.where(REAL.any(-1), 1, 99).astype(np.int32)


@jax.jit
def sums_and_gradients(scores, phrases, targets):
    def total(scores, phrases):
        found = dict(
            rank=losses.rank_loss(scores[:, 0], jnp.asarray(REAL[:, 0])),
            region=losses.region_choice_loss(scores, jnp.asarray(LABELS), jnp.asarray(REAL)),
            phrase=losses.phrase_loss(phrases, targets, jnp.asarray(REAL)),
        )
        return sum(value for value, _ in found.values()), found

    gradients, found = jax.grad(total, argnums=(0, 1), has_aux=True)(scores, phrases)
    return found, gradients


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_by_hand_and_padding():
    found, gradients = sums_and_gradients(SCORES, PHRASES, TARGETS)
    expected = dict(rank=[0.0, 4], region=[0.0, 4], phrase=[0.0, 4])
    for i, count in enumerate((4, 2)):
        probabilities = 1 / (1 + np.exp(-SCORES[i, 0, :count].astype(np.float64)))
        expected["rank"][0] += np.maximum(0.2 + probabilities[1:] - probabilities[0], 0).sum()
        for n in range(2):
            expected["region"][0] -= np.log(softmax(SCORES[i, n, :count])[1])
            for p, hits in enumerate((1, 2, 0)):  # the divergence from a uniform distribution over the hits
                predicted = softmax(PHRASES[i, n, p, :count])[:hits]
                expected["phrase"][0] += np.log(1 / hits / predicted).sum() / hits if hits else 0
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)

    real = REAL[:, :, None]
    spoiled = [np.where(REAL, SCORES, 1e9), np.where(real, PHRASES, 1e9), np.where(real, TARGETS, np.nan)]
    again, same = sums_and_gradients(*(x.astype(np.float32) for x in spoiled))
    jax.tree.map(np.testing.assert_array_equal, (again, same), (found, gradients))
