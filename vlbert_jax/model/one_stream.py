"""One-stream models: VL-BERT and its siblings. One encoder attends over words and regions together."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import END, IMG
from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.embeddings import Embeddings
from vlbert_jax.model.encoder import Encoder
from vlbert_jax.model.layers import dense, dropout, gather_positions, split_keys


class OneStream(Embeddings):
    """Embeddings of words and regions, and the encoder over both."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        size = config.hidden_size
        self.encoder = Encoder(config, rngs)
        self.pooler = dense(size, config.pool_size, ("embed", None), config, rngs) if config.pooler else None
        mul = config.pooler and config.architecture.pool == "mul"
        self.region_pooler = dense(size, config.pool_size, ("embed", None), config, rngs) if mul else None

    def __call__(
        self,
        token_ids: Int[Array, "b n s"],
        region_ids: Int[Array, "b n s"],
        segment_ids: Int[Array, "b n s"],
        position_ids: Int[Array, "b n s"],
        element_mask: Bool[Array, "b n s"],
        region_states: Float[Array, "b r d"] | None,
        key=None,
        region_words: Int[Array, "b n r a"] | None = None,
        empty_region: Float[Array, " d"] | None = None,
        reads: Bool[Array, "b n s s"] | None = None,
    ) -> Float[Array, "b n s h"]:
        """Return the states of every element; `key` is for dropout.

        `embed` describes the other arguments, and `Encoder` what each element `reads`.
        """
        key_embedding, key_encoder = split_keys(key, 2)
        x = self.embed(
            token_ids, region_ids, segment_ids, position_ids, region_states, key_embedding, region_words, empty_region
        )
        b, n, s, size = x.shape
        flat = None if reads is None else reads.reshape(b * n, s, s)
        states = self.encoder(x.reshape(b * n, s, size), element_mask.reshape(b * n, s), key_encoder, reads=flat)
        return states.reshape(b, n, s, size)  # pyright: ignore[reportAttributeAccessIssue]

    def pool(self, states: Float[Array, "... s h"]) -> Float[Array, "... p"]:
        """Return the tanh layer of the first element, [CLS]."""
        return jnp.tanh(self.pooler(states[..., 0, :]))

    def pool_both(
        self, states: Float[Array, "b s h"], token_ids: Int[Array, "b s"], key=None
    ) -> Float[Array, "b p"]:
        """Return the product of the ReLU layers of [CLS] and of the first region; `key` is for its dropout."""
        is_region = (token_ids >= self.vocab_size + IMG) & (token_ids != self.vocab_size + END)
        first = gather_positions(states, jnp.argmax(is_region, axis=1)[:, None])[:, 0]
        product = jax.nn.relu(self.pooler(states[:, 0])) * jax.nn.relu(self.region_pooler(first))
        return dropout(product, self.dropout_rate, key)
