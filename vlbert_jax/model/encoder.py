"""The BERT encoder (Devlin et al., 2019): post-layer-norm blocks with GELU."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.layers import dense, dropout, gelu, layer_norm, split_keys
from vlbert_jax.model.partitioning import keep_split

MASKED = -10000.0  # added to the scores of padded keys


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
        """Return the projected context and the attention probabilities (b, heads, s, s) before dropout."""
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
        self.dropout_rate, self.gelu = config.dropout_rate, config.architecture.gelu
        self.attention = Attention(config, rngs)
        self.attention_norm = layer_norm(size, config.dtype, rngs)
        self.intermediate = dense(size, config.mlp_size, ("embed", "mlp"), config, rngs)
        self.output = dense(config.mlp_size, size, ("mlp", "embed"), config, rngs)
        self.output_norm = layer_norm(size, config.dtype, rngs)

    def __call__(self, x: Float[Array, "b s d"], bias: Float[Array, "b 1 1 s"], key=None):
        key_probabilities, key_attention, key_output = split_keys(key, 3)
        attended, probabilities = self.attention(x, bias, key_probabilities)
        x = self.attention_norm(keep_split(x + dropout(attended, self.dropout_rate, key_attention)))
        wide = gelu(self.intermediate(x), self.gelu)
        x = self.output_norm(keep_split(x + dropout(self.output(wide), self.dropout_rate, key_output)))
        return x, probabilities


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

    def __call__(self, x: Float[Array, "b s d"], mask: Bool[Array, "b s"], key=None, collect: bool = False):
        """Return the last states; with `collect` also every layer's states and attention probabilities, stacked."""
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
