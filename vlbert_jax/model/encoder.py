"""The BERT encoder (Devlin et al., 2019): post-layer-norm blocks with GELU."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.layers import dense, dropout, gelu, layer_norm, split_keys
from vlbert_jax.model.partitioning import keep_split

MASKED = -10000.0  # added to the scores of padded keys


class Attention(nnx.Module):
    """Multi-head attention with the output projection.

    Keys and values come from the states that queries come from, or from states of width `key_size`.
    The heads together are `heads_size` wide.
    """

    def __init__(
        self, config: EncoderConfig, rngs: nnx.Rngs, key_size: int | None = None, heads_size: int | None = None
    ):
        size = config.hidden_size
        key_size, heads_size = key_size or size, heads_size or size
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout_rate
        self.query = dense(size, heads_size, ("embed", "heads"), config, rngs)
        self.key = dense(key_size, heads_size, ("embed", "heads"), config, rngs)
        self.value = dense(key_size, heads_size, ("embed", "heads"), config, rngs)
        self.output = dense(heads_size, size, ("heads", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "b s d"], read: Float[Array, "b k e"], bias: Float[Array, "b 1 #s k"], key):
        """Return the projected context and the attention probabilities (b, heads, s, k) before dropout.

        Args:
            x: States whose queries are asked.
            read: States with the keys and values.
            bias: Added to the scores of the keys.
            key: For dropout; None = no dropout.
        """
        query, key_states, value = (
            layer(states).reshape(*states.shape[:2], self.num_heads, -1).swapaxes(1, 2)  # b h s e
            for layer, states in ((self.query, x), (self.key, read), (self.value, read))
        )
        scores = jnp.einsum("bhqe,bhke->bhqk", query, key_states, preferred_element_type=jnp.float32)
        scores = scores / math.sqrt(query.shape[-1]) + bias
        probabilities = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        context = jnp.einsum("bhqk,bhke->bhqe", dropout(probabilities, self.dropout_rate, key), value)
        return self.output(context.swapaxes(1, 2).reshape(*x.shape[:2], -1)), probabilities


class AttentionBlock(nnx.Module):
    """Attention, the residual connection and the layer norm; sizes as in `Attention`."""

    def __init__(
        self, config: EncoderConfig, rngs: nnx.Rngs, key_size: int | None = None, heads_size: int | None = None
    ):
        self.dropout_rate = config.dropout_rate
        self.attention = Attention(config, rngs, key_size, heads_size)
        self.attention_norm = layer_norm(config.hidden_size, config.dtype, rngs)

    def attend(
        self, x: Float[Array, "b s d"], read: Float[Array, "b k e"], bias: Float[Array, "b 1 #s k"], keys
    ):
        """Return the new states and the attention probabilities; `keys` are two for dropout, or two Nones."""
        key_probabilities, key_attention = keys
        attended, probabilities = self.attention(x, read, bias, key_probabilities)
        return self.attention_norm(keep_split(x + dropout(attended, self.dropout_rate, key_attention))), probabilities


class FeedForward(nnx.Module):
    """Two dense layers with a GELU between them, the residual connection and the layer norm."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        size = config.hidden_size
        self.dropout_rate, self.gelu = config.dropout_rate, config.architecture.gelu
        self.intermediate = dense(size, config.mlp_size, ("embed", "mlp"), config, rngs)
        self.output = dense(config.mlp_size, size, ("mlp", "embed"), config, rngs)
        self.output_norm = layer_norm(size, config.dtype, rngs)

    def transform(self, x: Float[Array, "b s d"], key=None) -> Float[Array, "b s d"]:
        """Return the new states; `key` is for dropout."""
        wide = gelu(self.intermediate(x), self.gelu)
        return self.output_norm(keep_split(x + dropout(self.output(wide), self.dropout_rate, key)))


class Layer(AttentionBlock, FeedForward):
    """One encoder block: self-attention, then the feed-forward layers."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        AttentionBlock.__init__(self, config, rngs)
        FeedForward.__init__(self, config, rngs)

    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 #s s"], key=None):
        key_probabilities, key_attention, key_output = split_keys(key, 3)
        x, probabilities = self.attend(x, x, bias, (key_probabilities, key_attention))
        return self.transform(x, key_output), probabilities


class Encoder(nnx.Module):
    """`num_layers` blocks, whose parameters are stacked along a leading axis.

    Stacked, they run under `lax.scan`: trace and compile time do not grow with depth. `scan_layers=False`
    unrolls the same parameters; the values are the same.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.num_layers, self.scan_layers, self.remat = config.num_layers, config.scan_layers, config.remat
        if config.remat not in ("none", "dots", "full"):
            raise ValueError(f"model.encoder.remat is {config.remat!r}; it can be none, dots or full")
        make = nnx.vmap(functools.partial(Layer, config), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(config.num_layers))

    def __call__(
        self,
        x: Float[Array, "b s d"],
        mask: Bool[Array, "b s"],
        key=None,
        collect: bool = False,
        reads: Bool[Array, "b s s"] | None = None,
    ):
        """Return the last states; with `collect` also every layer's states and attention probabilities, stacked.

        `reads` states which elements (last axis) each element reads; None = all that are real.
        """
        bias = jnp.where(mask, 0.0, MASKED)[:, None, None]
        if reads is not None:
            bias = bias + jnp.where(reads, 0.0, MASKED)[:, None]
        graphdef, stacked = nnx.split(self.layers)
        layer_keys = None if key is None else jax.random.split(key, self.num_layers)

        def block(x, parameters_and_key):
            parameters, key = parameters_and_key
            x, probabilities = nnx.merge(graphdef, parameters)(x, bias, key)
            return x, (x, probabilities) if collect else None

        x, collected = run_stacked(block, x, (stacked, layer_keys), self.num_layers, self.scan_layers, self.remat)
        return (x, *collected) if collect else x


def run_stacked(block, carry, stacked, count: int, scan: bool, remat: str) -> tuple[Any, Any]:
    """Apply a block `count` times and return the last carry and the stacked outputs.

    Args:
        block: Function (carry, parameters of one application) -> (carry, outputs).
        carry: Pytree of states.
        stacked: Pytree of parameters, stacked along a leading axis.
        count: Length of that axis.
        scan: Whether to run under `lax.scan`; otherwise the applications are unrolled.
        remat: What is recomputed in the backward pass: none | dots | full.
    """
    if remat != "none":
        policy = None if remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = jax.checkpoint(block, policy=policy, prevent_cse=not scan)
    if scan:
        return jax.lax.scan(block, carry, stacked)
    collected = []
    for i in range(count):
        carry, outputs = block(carry, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        collected.append(outputs)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
