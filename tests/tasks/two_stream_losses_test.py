"""Losses of two-stream models: parts of a batch add up, and the values of padding do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlbert_jax.tasks import two_stream_losses as losses

B, N, K, C = 4, 1, 5, 3
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def uniform(*shape):
    return jnp.asarray(RNG.uniform(size=shape), jnp.float32)


def labels(*shape):
    return jnp.asarray(RNG.integers(0, C, shape), jnp.int32)


OF_REGIONS = jnp.asarray(np.arange(K) < np.array([5, 3, 4, 0])[:, None, None])  # the last example is padding
OF_EXAMPLES = OF_REGIONS.any(-1)


# Name -> (loss, logits, targets, mask). A loss takes the logits, the targets and the mask.
LOSSES = {
    "label": (losses.label_loss, normal(B, N, K, C), (labels(B, N, K),), OF_REGIONS),
    "answer": (losses.answer_loss, normal(B, N, C), (uniform(B, N, C),), OF_EXAMPLES),
    "one_hot": (losses.one_hot_loss, normal(B, N, C), (labels(B, N),), OF_EXAMPLES),
    "grounding": (losses.grounding_loss, normal(B, N, K), (uniform(B, N, K),), OF_REGIONS),
    "region_class": (losses.region_class_loss, normal(B, N, K, C), (uniform(B, N, K, C),), OF_REGIONS),
    "region_feature": (losses.region_feature_loss, normal(B, N, K, C), (normal(B, N, K, C),), OF_REGIONS),
}


@pytest.fixture(params=LOSSES)
def case(request):
    return LOSSES[request.param]


def test_parts_add_up(case):
    loss, logits, targets, mask = case
    whole = loss(logits, *targets, mask)
    parts = [loss(logits[rows], *(x[rows] for x in targets), mask[rows]) for rows in (slice(0, 1), slice(1, B))]
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), rtol=1e-6)
    assert whole[1] == mask.sum() or whole[1] == OF_EXAMPLES.sum()


def test_padding_does_not_matter(case):
    """Neither the loss nor the gradient depends on targets of padding, even where they are NaN."""
    loss, logits, targets, mask = case

    def value(logits, targets):
        return loss(logits, *targets, mask)[0]

    def spoiled(x):
        hidden = jnp.logical_not(mask).reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return jnp.where(hidden, jnp.nan if x.dtype == jnp.float32 else 99, x)

    expected = jax.value_and_grad(value)(logits, targets)
    found = jax.value_and_grad(value)(logits, [spoiled(x) for x in targets])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not np.any(np.asarray(expected[1])[~np.asarray(mask)]) and np.any(expected[1])


def lxmert(logits, classes, confidences, features, hidden, mask=OF_REGIONS):
    predictions = dict(objects=logits, attributes=logits, features=logits)
    named = dict(objects=classes, attributes=classes)
    return losses.lxmert_visual_losses(
        predictions, named, dict.fromkeys(named, confidences), features, hidden, mask, 2.0
    )


VISUAL = (
    normal(B, N, K, C), labels(B, N, K), uniform(B, N, K), 3 * normal(B, N, K, C), uniform(B, N, K) < 0.5
)  # fmt: skip


def test_losses_of_lxmert_by_hand():
    """Over all rows of real examples; objects and attributes by confidence, features where they are hidden."""
    logits, classes, confidences, features, hidden = map(np.asarray, VISUAL)
    found = lxmert(*VISUAL)
    expected = dict(objects=0.0, features=0.0)
    for i, j in np.argwhere(np.asarray(OF_REGIONS)[:, 0]):
        row = logits[i, 0, j].astype(np.float64)
        expected["objects"] += confidences[i, 0, j] * (np.log(np.exp(row).sum()) - row[classes[i, 0, j]])
        error = np.abs(row - features[i, 0, j])
        smooth = np.where(error < 1, error**2 / 2, error - 0.5).mean()
        expected["features"] += smooth * hidden[i, 0, j]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], (2 * value, 3 * K), rtol=1e-5)
    np.testing.assert_array_equal(found["attributes"], found["objects"])
    assert losses.LXMERT_VISUAL_WEIGHT == 1 / 0.15


def test_padding_of_lxmert_does_not_matter():
    logits, classes, confidences, features, hidden = VISUAL
    padded = ~OF_REGIONS
    spoiled = (
        jnp.where(padded, 99, classes), jnp.where(padded, jnp.nan, confidences),
        jnp.where((padded | ~hidden)[..., None], jnp.nan, features), hidden | padded,
    )  # fmt: skip

    def value(logits, *targets):
        return sum(total for total, _ in lxmert(logits, *targets).values())

    expected = jax.value_and_grad(value)(logits, classes, confidences, features, hidden)
    found = jax.value_and_grad(value)(logits, *spoiled)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    none = lxmert(logits, jnp.full_like(classes, -1), confidences, features, hidden)
    assert none["objects"][0] == 0 and none["features"][0] > 0
