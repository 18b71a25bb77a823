"""The BERT encoder (Devlin et al., 2019): post-layer-norm blocks with exact GELU."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlbert_jax.batch import keep_split

LAYER_NORM_EPSILON = 1e-12
MASKED = -10000.0  # added to the scores of padded keys


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder and of the embeddings in front of it."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    max_positions: int = 512
    num_segments: int = 3
    dropout_rate: float = 0.1
    init_deviation: float = 0.02  # of embeddings and kernels
    text_visual_gain_init: float = 0.0
    region_visual_gain_init: float = 0.0
    visual_size: int = 0  # width of the visual vectors where it is not hidden_size
    visual_layer_norm: bool = True  # False: one learned factor instead
    pooler: bool = False
    scan_layers: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32  # of activations


def dropout(x: Float[Array, "..."], rate: float, key) -> Float[Array, "..."]:
    """Zeroes a share `rate` and scales up the rest; `key=None` leaves x alone. The rate is exact to 2^-16."""
    if key is None or rate == 0:
        return x
    threshold = round(rate * 2**16)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= threshold  # half the random bits of a uniform draw
    return jnp.where(keep, x / (1 - threshold / 2**16), 0).astype(x.dtype)


def keys(key, count: int):
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


class Attention(nnx.Module):
    """Multi-head self-attention with the output projection."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        size = config.hidden_size
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout_rate
        self.query = dense(size, size, ("embed", "heads"), config, rngs)
        self.key = dense(size, size, ("embed", "heads"), config, rngs)
        self.value = dense(size, size, ("embed", "heads"), config, rngs)
        self.output = dense(size, size, ("heads", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 1 s"], key):
        """Returns the projected context and the attention probabilities (b, heads, s, s) before dropout."""
        split = (*x.shape[:2], self.num_heads, -1)
        query, key_states, value = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key_states, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(query.shape[-1]) + bias
        probabilities = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        context = jnp.einsum("bhqk,bkhe->bqhe", dropout(probabilities, self.dropout_rate, key), value)
        return self.output(context.reshape(x.shape)), probabilities


class Layer(nnx.Module):
    """One encoder block."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        size = config.hidden_size
        self.dropout_rate = config.dropout_rate
        self.attention = Attention(config, rngs)
        self.attention_norm = layer_norm(size, config.dtype, rngs)
        self.intermediate = dense(size, config.mlp_size, ("embed", "mlp"), config, rngs)
        self.output = dense(config.mlp_size, size, ("mlp", "embed"), config, rngs)
        self.output_norm = layer_norm(size, config.dtype, rngs)

    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 1 s"], key=None):
        key_probabilities, key_attention, key_output = keys(key, 3)
        attended, probabilities = self.attention(x, bias, key_probabilities)
        x = self.attention_norm(keep_split(x + dropout(attended, self.dropout_rate, key_attention)))
        wide = gelu(self.intermediate(x))
        x = self.output_norm(keep_split(x + dropout(self.output(wide), self.dropout_rate, key_output)))
        return x, probabilities


class Encoder(nnx.Module):
    """`num_layers` blocks, their parameters stacked along a leading axis.

    Stacked, they run under `lax.scan`: trace and compile time do not grow with depth. `scan_layers=False` unrolls the
    same parameters; the numbers are the same.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.num_layers, self.scan_layers, self.remat = config.num_layers, config.scan_layers, config.remat
        if config.remat not in ("none", "dots", "full"):
            raise ValueError(f"model.encoder.remat is {config.remat!r}; it can be none, dots or full")
        make = nnx.vmap(functools.partial(Layer, config), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(config.num_layers))

    def __call__(self, x: Float[Array, "b s d"], mask: Bool[Array, "b s"], key=None, collect: bool = False):
        """Returns the last states; with `collect` also every layer's states and attention probabilities, stacked."""
        bias = jnp.where(mask, 0.0, MASKED)[:, None, None]
        graphdef, stacked = nnx.split(self.layers)
        layer_keys = None if key is None else jax.random.split(key, self.num_layers)

        def block(x, parameters_and_key):
            parameters, key = parameters_and_key
            x, probabilities = nnx.merge(graphdef, parameters)(x, bias, key)
            return x, (x, probabilities) if collect else None

        if self.remat != "none":
            policy = (
                None if self.remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            )
            block = jax.checkpoint(block, policy=policy, prevent_cse=not self.scan_layers)
        if self.scan_layers:
            x, collected = jax.lax.scan(block, x, (stacked, layer_keys))
        else:
            collected = []
            for i in range(self.num_layers):
                x, outputs = block(x, jax.tree.map(lambda leaf, i=i: leaf[i], (stacked, layer_keys)))
                collected.append(outputs)
            collected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected) if collect else None
        return (x, *collected) if collect else x
