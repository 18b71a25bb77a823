"""Layers that the encoder, the embeddings and the heads share."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.partitioning import with_table

LAYER_NORM_EPSILON = 1e-12


def dropout(x: Float[Array, "..."], rate: float, key) -> Float[Array, "..."]:
    """Zero a share `rate` of the values and scale up the others; `key=None` returns x. The rate is exact to 2^-16."""
    if key is None or rate == 0:
        return x
    threshold = round(rate * 2**16)

    def sampled():
        return jax.random.bits(key, x.shape, jnp.uint16) >= threshold  # half the random bits of a uniform sample

    def hashed():
        return hashed_bits(key, x.shape) >> 16 >= threshold

    keep = jax.lax.platform_dependent(cpu=hashed, default=sampled)
    return jnp.where(keep, x / (1 - threshold / 2**16), 0).astype(x.dtype)


def hashed_bits(key, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return 32 random bits per element: the hash of its index and of two words sampled with the key.

    The CPU backend of XLA computes the ten rounds of `rbg` anew for each number, which took a tenth of a training step;
    this hash (two multiplications, constants of C. Wellons' lowbias32) is fused into what reads it. The second word
    enters between the multiplications, so the bits of one key are not those of another one at shifted indices.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    x = first
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        x = x + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = x ^ second
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def split_keys(key, count: int):
    """Return `count` keys, or as many Nones: no key means no dropout."""
    return [None] * count if key is None else jax.random.split(key, count)


def gelu(x: Float[Array, "..."], kind: str = "erf") -> Float[Array, "..."]:
    """Return the exact GELU by erf, as in the official code, or its approximation by tanh.

    The exact GELU of XLA uses erfc, which takes twice the time on a CPU.
    """
    return _gelu(x, kind)


@functools.partial(jax.checkpoint, static_argnums=1)  # the backward pass needs x alone, not its products
def _gelu(x, kind: str):
    wide = x.astype(jnp.float32)  # 1 + erf(x) cancels for negative x
    if kind == "tanh":
        return jax.nn.gelu(wide, approximate=True).astype(x.dtype)
    return (wide * 0.5 * (1 + jax.lax.erf(wide / math.sqrt(2)))).astype(x.dtype)


def apply_if(layer, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `layer(x)`, or x where there is no layer."""
    return x if layer is None else layer(x)


def dense(inputs: int, outputs: int, axes: tuple, config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a linear layer initialized as in BERT; `axes` are the logical names of the kernel's dimensions."""
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.with_metadata(nnx.initializers.normal(config.init_deviation), axes=axes),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=axes[1:]),
        dtype=config.dtype,
        rngs=rngs,
    )


def layer_norm(size: int, dtype, rngs: nnx.Rngs, gain: float = 1.0) -> nnx.LayerNorm:
    """Return a layer norm whose scale starts at `gain`."""
    return nnx.LayerNorm(
        size,
        epsilon=LAYER_NORM_EPSILON,
        scale_init=nnx.with_metadata(nnx.initializers.constant(gain), axes=("embed",)),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed",)),
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits that parity requires
        dtype=dtype,
        rngs=rngs,
    )


class PredictionHead(nnx.Module):
    """Hidden layer, GELU and, if `norm`, a layer norm; then the classes.

    The input is `inputs` wide and the hidden layer `hidden`; None = as wide as the encoder. `relu` replaces the GELU.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        rngs: nnx.Rngs,
        *,
        inputs: int | None = None,
        hidden: int | None = None,
        norm: bool = False,
        relu: bool = False,
        dropout_rate: float = 0.0,
    ):
        inputs, hidden = inputs or config.hidden_size, hidden or config.hidden_size
        self.dropout_rate, self.relu, self.gelu = dropout_rate, relu, config.architecture.gelu
        self.transform = dense(inputs, hidden, ("embed", None), config, rngs)
        self.norm = layer_norm(hidden, config.dtype, rngs) if norm else None
        # float32, because in bfloat16 many classes would tie.
        self.classes = dense(hidden, num_classes, ("embed", None), dataclasses.replace(config, dtype=jnp.float32), rngs)

    @jax.named_scope("head")
    def __call__(self, states: Float[Array, "... d"], key=None) -> Float[Array, "... c"]:
        """Return float32 logits; `key` is for dropout."""
        hidden = self.transform(states)
        hidden = apply_if(self.norm, jax.nn.relu(hidden) if self.relu else gelu(hidden, self.gelu))
        return self.classes(dropout(hidden, self.dropout_rate, key))


class MLMHead(nnx.Module):
    """Hidden layer, GELU and norm; the decoder is the token table with a separate bias."""

    def __init__(self, config: EncoderConfig, rows: int, rngs: nnx.Rngs):
        size = config.hidden_size
        self.vocab_size, self.gelu = config.vocab_size, config.architecture.gelu
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(rows), axes=("vocab",))

    @jax.named_scope("head")
    def __call__(
        self, states: Float[Array, "b ... d"], table: Float[Array, "... rows d"]
    ) -> Float[Array, "b ... rows"]:
        """Return float32 logits; rows of the table that are not words get -inf."""
        hidden = self.norm(gelu(self.transform(states), self.gelu))
        logits = with_table(_decoded, table, hidden)
        bias = jnp.where(jnp.arange(table.shape[-2]) < self.vocab_size, self.bias[...], -jnp.inf)
        return logits + jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))


def _decoded(table: Float[Array, "rows d"], hidden: Float[Array, "... d"]) -> Float[Array, "... rows"]:
    return jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)


class LinearHead(nnx.Module):
    """Dropout and the classes, without a hidden layer. The input is `inputs` wide; None = as wide as the encoder."""

    def __init__(self, config: EncoderConfig, num_classes: int, rngs: nnx.Rngs, inputs: int | None = None):
        self.dropout_rate, wide = config.dropout_rate, dataclasses.replace(config, dtype=jnp.float32)
        self.classes = dense(inputs or config.hidden_size, num_classes, ("embed", None), wide, rngs)

    @jax.named_scope("head")
    def __call__(self, states: Float[Array, "... d"], key=None) -> Float[Array, "... c"]:
        """Return float32 logits; `key` is for dropout."""
        return self.classes(dropout(states, self.dropout_rate, key))


def xavier_init(kernel: nnx.Param, seed: int) -> None:
    """Initialize a kernel with the uniform Xavier distribution.

    The official code does so for the layers that score a choice or a region.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    kernel.set_value(nnx.initializers.xavier_uniform()(key, kernel.shape, jnp.float32))


def gather_positions(states: Float[Array, "... s d"], positions: Int[Array, "... m"]) -> Float[Array, "... m d"]:
    """Return the states at some positions of their sequences; a position outside reads the nearest end."""
    return jnp.take_along_axis(states, positions[..., None], axis=-2, mode="clip")
