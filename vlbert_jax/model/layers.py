"""Layers that the encoder, the embeddings and the heads share."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.model.config import EncoderConfig

LAYER_NORM_EPSILON = 1e-12


def dropout(x: Float[Array, "..."], rate: float, key) -> Float[Array, "..."]:
    """Zeroes a share `rate` and scales up the rest; `key=None` leaves x alone. The rate is exact to 2^-16."""
    if key is None or rate == 0:
        return x
    threshold = round(rate * 2**16)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= threshold  # half the random bits of a uniform draw
    return jnp.where(keep, x / (1 - threshold / 2**16), 0).astype(x.dtype)


def split_keys(key, count: int):
    """`count` keys, or as many Nones: no key means no dropout."""
    return [None] * count if key is None else jax.random.split(key, count)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU by erf, as in the official code; XLA's own goes by erfc, which costs twice as much on CPU."""
    wide = x.astype(jnp.float32)  # 1 + erf(x) cancels for negative x
    return (wide * 0.5 * (1 + jax.lax.erf(wide / math.sqrt(2)))).astype(x.dtype)


def dense(inputs: int, outputs: int, axes: tuple, config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer initialised as in BERT; `axes` are the logical names of the kernel's dimensions."""
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.with_metadata(nnx.initializers.normal(config.init_deviation), axes=axes),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=axes[1:]),
        dtype=config.dtype,
        rngs=rngs,
    )


def layer_norm(size: int, dtype, rngs: nnx.Rngs, gain: float = 1.0) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        size,
        epsilon=LAYER_NORM_EPSILON,
        scale_init=nnx.with_metadata(nnx.initializers.constant(gain), axes=("embed",)),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed",)),
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses the digits that parity needs
        dtype=dtype,
        rngs=rngs,
    )


class PredictionHead(nnx.Module):
    """Hidden layer, GELU and, where asked for, a norm; then the classes."""

    def __init__(
        self, config: EncoderConfig, num_classes: int, rngs: nnx.Rngs, *, norm: bool = False, dropout_rate: float = 0.0
    ):
        size = config.hidden_size
        self.dropout_rate = dropout_rate
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs) if norm else None
        # In float32: in bfloat16 many classes would tie.
        self.classes = dense(size, num_classes, ("embed", None), dataclasses.replace(config, dtype=jnp.float32), rngs)

    @jax.named_scope("head")
    def __call__(self, states: Float[Array, "... d"], key=None) -> Float[Array, "... c"]:
        """float32 logits; `key` draws dropout."""
        hidden = gelu(self.transform(states))
        hidden = hidden if self.norm is None else self.norm(hidden)
        return self.classes(dropout(hidden, self.dropout_rate, key))


def xavier_init(kernel: nnx.Param, seed: int) -> None:
    """Gives a kernel Xavier's uniform numbers: how the official layers that score a choice or a region start."""
    key = jax.random.key(seed, impl="threefry2x32")
    kernel.set_value(nnx.initializers.xavier_uniform()(key, kernel.shape, jnp.float32))


def gather_positions(states: Float[Array, "... s d"], positions: Int[Array, "... m"]) -> Float[Array, "... m d"]:
    """Return the states at some positions of their sequences; a position outside reads the nearest end."""
    return jnp.take_along_axis(states, positions[..., None], axis=-2, mode="clip")
