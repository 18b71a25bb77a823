"""The heads of one-stream models for pairs of images, choices, retrieval, expressions and phrases."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.encoder import MASKED, Attention
from vlbert_jax.model.layers import PredictionHead, dense, dropout, gather_positions, split_keys
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel


@dataclasses.dataclass(frozen=True)
class HeadShape:
    """The layers of a head: classes, or one score, perhaps behind a hidden layer."""

    classes: int = 1
    hidden: int = 0  # width of the hidden layer; 0 = without one
    norm: bool = False  # layer norm behind the hidden layer
    relu: bool = False  # ReLU instead of the GELU of the hidden layer
    dropout: bool = False  # dropout of what the head reads, at the rate of the encoder


@dataclasses.dataclass(frozen=True)
class OneStreamHeads:
    """The heads of a model; None = without this head."""

    pair: HeadShape | None = None  # of a text and two images: whether the text is true of them
    # What it reads. both: the pooled vector of one sequence over both images | each: those of two sequences, one per
    # image | attention: the states of two sequences, which read each other
    pair_reads: str = "both"
    choice: HeadShape | None = None  # of a text for an image: a score, or the classes wrong and right
    matching: HeadShape | None = None  # of a text and an image: a score, or classes
    grounding: HeadShape | None = None  # of each region: a score
    phrases: bool = False  # a score of each region for each phrase


class PairAttention(nnx.Module):
    """Two sequences read each other; each becomes one vector, a weighted sum of its states (UNITER)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        size = config.hidden_size
        self.dropout_rate = config.dropout_rate
        self.first, self.second = Attention(config, rngs), Attention(config, rngs)
        self.join = dense(2 * size, size, ("embed", None), config, rngs)
        self.weight = dense(size, 1, ("embed", None), dataclasses.replace(config, dtype=jnp.float32), rngs)

    def __call__(
        self, states: Float[Array, "b 2 s d"], mask: Bool[Array, "b 2 s"], key=None
    ) -> Float[Array, "b 2 d"]:
        """Return a vector of each sequence; `mask` is True for real elements, `key` is for dropout."""
        bias = jnp.where(mask, 0.0, MASKED)
        keys = split_keys(key, 4)
        attended = jnp.stack(
            [
                attention(states[:, k], states[:, 1 - k], bias[:, 1 - k, None, None], keys[k])[0]
                for k, attention in enumerate((self.first, self.second))
            ],
            axis=1,
        )
        joined = jax.nn.relu(self.join(jnp.concatenate([attended, states], axis=-1)))
        joined = dropout(joined, self.dropout_rate, keys[2])
        weights = jax.nn.softmax(jax.nn.relu(self.weight(joined))[..., 0] + bias, axis=-1)
        return jnp.einsum("bns,bnsd->bnd", dropout(weights, self.dropout_rate, keys[3]), joined)


class PhraseAttention(nnx.Module):
    """The score of a region for a phrase is a product of query and key, as wide as one head of the encoder."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        size, self.width = config.hidden_size, config.hidden_size // config.num_heads
        exact = dataclasses.replace(config, dtype=jnp.float32)
        self.query, self.key = (dense(size, self.width, ("embed", None), exact, rngs) for _ in range(2))

    def __call__(
        self, phrases: Float[Array, "b n p d"], regions: Float[Array, "b n k d"]
    ) -> Float[Array, "b n p k"]:
        """Return float32 scores."""
        return jnp.einsum("bnpe,bnke->bnpk", self.query(phrases), self.key(regions)) / math.sqrt(self.width)


class OneStreamModel(VisualLinguisticModel):
    """The trunk and the heads that `heads` names. Heads read the states of `VisualLinguisticModel.states`."""

    def __init__(self, encoder: EncoderConfig, region_head: RegionHeadConfig, heads: OneStreamHeads, rngs: nnx.Rngs):
        super().__init__(encoder, region_head, rngs)
        self.heads, self.dropout_rate = heads, encoder.dropout_rate
        size = encoder.hidden_size
        exact = dataclasses.replace(encoder, dtype=jnp.float32)

        def layers(shape: HeadShape | None, inputs: int = size) -> nnx.Linear | PredictionHead | None:
            if shape is None:
                return None
            if not shape.hidden:
                return dense(inputs, shape.classes, ("embed", None), exact, rngs)
            sizes = dict(inputs=inputs, hidden=shape.hidden, norm=shape.norm, relu=shape.relu)
            return PredictionHead(encoder, shape.classes, rngs, **sizes)

        self.pair_attention = PairAttention(encoder, rngs) if heads.pair_reads == "attention" else None
        self.pair_head = layers(heads.pair, size if heads.pair_reads == "both" else 2 * size)
        self.choice_head = layers(heads.choice)
        self.matching_head = layers(heads.matching)
        self.grounding_head = layers(heads.grounding)
        self.phrase_attention = PhraseAttention(encoder, rngs) if heads.phrases else None

    def _read(self, name: str, vectors: Float[Array, "... i"], key) -> Float[Array, "... c"]:
        """Return what a head makes of the vectors, float32."""
        rate = self.dropout_rate if getattr(self.heads, name).dropout else 0.0
        return getattr(self, f"{name}_head")(dropout(vectors, rate, key)).astype(jnp.float32)

    def pair_logits(
        self, states: Float[Array, "b n s d"], element_mask: Bool[Array, "b n s"], key=None
    ) -> Float[Array, "b c"]:
        """Return a logit per class of a text and two images: one sequence over both, or one for each."""
        key_attention, key_head = split_keys(key, 2)
        if self.pair_attention is None:
            vectors = self.vlbert.pool(states)
        else:
            vectors = self.pair_attention(states, element_mask, key_attention)
        return self._read("pair", vectors.reshape(len(vectors), -1), key_head)

    def choice_logits(self, states: Float[Array, "b n s d"], key=None) -> Float[Array, "b n c"]:
        """Return for each sequence a score, or logits of the classes wrong and right."""
        return self._read("choice", self.vlbert.pool(states), key)

    def matching_logits(self, states: Float[Array, "b n s d"], key=None) -> Float[Array, "b n c"]:
        """Return for each sequence and its image a score, or a logit per class."""
        return self._read("matching", self.vlbert.pool(states), key)

    def grounding_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b n k"], key=None
    ) -> Float[Array, "b n k"]:
        """Return a score of each region; `positions` are those of the regions in their sequences."""
        return self._read("grounding", gather_positions(states, positions), key)[..., 0]

    def phrase_logits(
        self, states: Float[Array, "b n s d"], phrases: Int[Array, "b n p"], regions: Int[Array, "b n k"]
    ) -> Float[Array, "b n p k"]:
        """Return a score of each region for each phrase, from the positions of both; a phrase is its last token."""
        return self.phrase_attention(gather_positions(states, phrases), gather_positions(states, regions))
