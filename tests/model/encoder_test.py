"""Test the encoder: dropout masks, recomputation, padding and precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.toy_runs import make_mesh
from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.encoder import Encoder
from vlbert_jax.model.layers import dropout, hashed_bits

CONFIG = EncoderConfig(vocab_size=50, hidden_size=16, num_layers=3, num_heads=2, mlp_size=32, dropout_rate=0.3)


def encoder(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return Encoder(config, nnx.Rngs(0))


@pytest.fixture
def inputs():
    x = jax.random.normal(jax.random.key(1), (2, 7, 16))
    return x, jnp.arange(7)[None] < jnp.array([[7], [4]])


def test_two_steps_drop_different_units(inputs):
    """The masks depend on the key of the step, and equal keys give equal masks."""
    x = jnp.ones((2, 7, 16))
    model = encoder(num_layers=1)
    run = nnx.jit(lambda model, key: model(x, inputs[1], key))
    first, second = run(model, jax.random.key(0)), run(model, jax.random.key(1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, run(model, jax.random.key(0)))


def test_layers_drop_different_units(inputs):
    """Two layers with equal parameters have different dropout masks."""
    model = encoder(num_layers=2, dropout_rate=0.5)
    keys = jax.random.split(jax.random.key(0), 2)
    assert not np.array_equal(jax.random.key_data(keys[0]), jax.random.key_data(keys[1]))
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), nnx.state(model.layers))
    nnx.update(model.layers, same)
    _, states, _ = model(*inputs, jax.random.key(0), collect=True)
    _, again, _ = model(states[0], inputs[1], jax.random.key(0), collect=True)
    assert not np.allclose(states[1], again[0])


@pytest.mark.parametrize(
    "changes", [dict(scan_layers=False), dict(remat="full"), dict(scan_layers=False, remat="dots")]
)
def test_scan_and_remat_do_not_change_values(inputs, changes):
    """Values and gradients are equal with dropout."""

    def value_and_gradient(model):
        return nnx.jit(nnx.value_and_grad(lambda m: jnp.sum(m(*inputs, jax.random.key(3)) ** 2)))(model)

    (value, gradient), (other, other_gradient) = value_and_gradient(encoder()), value_and_gradient(encoder(**changes))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient, other_gradient)


def test_padding_does_not_change_real_elements(inputs):
    x, mask = inputs
    model = encoder()
    other = jnp.where(mask[..., None], x, 100.0)
    np.testing.assert_allclose(model(x, mask)[1, :4], model(other, mask)[1, :4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(x[1:, :4], mask[1:, :4])[0], model(x, mask)[1, :4], rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones(200_000)
    y = dropout(x, 0.1, jax.random.key(0))
    assert abs(float((y == 0).mean()) - 0.1) < 3e-3
    assert abs(float(y.mean()) - 1) < 3e-3
    assert dropout(x, 0.1, None) is x


def test_hashed_bits_are_independent_of_each_other():
    """Of neighbors, of other keys at the same and at shifted indices; every bit is one in half of the numbers."""
    count = 200_000
    first, second = (np.asarray(hashed_bits(jax.random.key(key), (count,))) for key in (0, 1))
    ones = (first[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(axis=0)
    np.testing.assert_allclose(ones, 0.5, atol=5e-3)  # more than four standard errors
    assert len(np.unique(first)) > count - 20  # 5 equal pairs are expected
    shares = np.bincount(first >> 24, minlength=256) / count
    assert np.sum((shares - 1 / 256) ** 2 * 256) * count < 350  # chi-square, 255 degrees of freedom
    pairs = [(first[:-shift], first[shift:]) for shift in (1, 2, 64, 768, 1024)]
    pairs += [(first, second), *((first[:-shift], second[shift:]) for shift in (1, 2, 1024))]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
        assert abs((a < 2**31).astype(int) @ (b < 2**31) / len(a) - 0.25) < 5e-3


def test_hashed_bits_depend_on_the_index_alone():
    """On neither the shape nor the mesh, whatever kind the key is of."""
    key = jax.random.key(3, impl="rbg")
    flat = hashed_bits(key, (4 * 6 * 8,))
    np.testing.assert_array_equal(hashed_bits(key, (4, 6, 8)).ravel(), flat)
    with jax.set_mesh(make_mesh()):
        sharded = jax.jit(lambda: hashed_bits(key, (8, 24)), out_shardings=jax.P("data"))()
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded.ravel(), flat)
    assert not hashed_bits(key, ()).shape


def test_bfloat16_is_close_to_float32(inputs):
    x, mask = inputs
    exact, rounded = encoder()(x, mask), encoder(dtype=jnp.bfloat16)(x.astype(jnp.bfloat16), mask)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, atol=0.1)


def test_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="none, dots or full"):
        Encoder(dataclasses.replace(CONFIG, remat="all"), nnx.Rngs(0))
