"""VL-BERT: every element is a token, a visual feature, a segment and a position (paper, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import END, IMG, NO_IMAGE, NUM_EXTRA_IDS
from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.encoder import Encoder
from vlbert_jax.model.layers import dense, dropout, gather_positions, layer_norm, split_keys
from vlbert_jax.model.partitioning import keep_split, replicate

ROW_MULTIPLE = 128  # rows of the token table, so that it shards and tiles


def table_rows(vocab_size: int) -> int:
    """Return the rows of the token table: the vocabulary, the extra ids, and padding that no id reaches."""
    return -(-(vocab_size + NUM_EXTRA_IDS) // ROW_MULTIPLE) * ROW_MULTIPLE


class VLBert(nnx.Module):
    """Embeddings of words and regions, and the encoder over both."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.vocab_size, self.dropout_rate, self.dtype = config.vocab_size, config.dropout_rate, config.dtype
        size, visual_size = config.hidden_size, config.visual_size or config.hidden_size

        def table(*shape, axes):
            return nnx.Param(jax.random.normal(rngs.params(), shape) * config.init_deviation, axes=axes)

        self.token_embeddings = table(table_rows(config.vocab_size), size, axes=("vocab", "embed"))
        self.position_embeddings = table(config.max_positions, size, axes=(None, "embed"))
        self.segment_embeddings = table(config.num_segments, size, axes=(None, "embed"))
        self.text_only_visual = table(visual_size, axes=("embed",))  # the visual vector of text without an image
        resize = visual_size != size

        def resizing():
            return dense(visual_size, size, (None, "embed"), config, rngs) if resize else None

        self.text_resize, self.region_resize = resizing(), resizing()

        def visual_norm(gain):
            return layer_norm(size, config.dtype, rngs, gain=gain) if config.visual_layer_norm else Factor(gain)

        self.text_visual_norm = visual_norm(config.text_visual_gain_init)
        self.region_visual_norm = visual_norm(config.region_visual_gain_init)
        self.embedding_norm = layer_norm(size, config.dtype, rngs)
        self.encoder = Encoder(config, rngs)
        self.pooler = dense(size, size, ("embed", None), config, rngs) if config.pooler else None

    def embed(
        self,
        token_ids: Int[Array, "b n s"],
        region_ids: Int[Array, "b n s"],
        segment_ids: Int[Array, "b n s"],
        position_ids: Int[Array, "b n s"],
        region_states: Float[Array, "b r d"] | None,
        key=None,
    ) -> Float[Array, "b n s h"]:
        """Return the normalized sum of the four parts of each element; [END] has no visual part."""
        b = token_ids.shape[0]
        text_only = jnp.broadcast_to(
            self.text_only_visual[...][None, None], (b, 1, self.text_only_visual.shape[0])
        ).astype(self.dtype)
        visual = (
            text_only
            if region_states is None
            else jnp.concatenate([region_states.astype(self.dtype), text_only], 1)
        )
        as_text, as_region = visual, visual
        if self.text_resize is not None:
            as_text, as_region = self.text_resize(visual), self.region_resize(visual)
        as_text, as_region = self.text_visual_norm(as_text), self.region_visual_norm(as_region)
        # An element can carry a region as words do, the text-only vector, a region as regions do, or nothing. One
        # gather from these few rows replaces two norms over every element.
        nothing = jnp.zeros_like(as_text[:, :1])
        rows = jnp.concatenate([as_text, as_region[:, :-1], nothing], axis=1)
        r = visual.shape[1] - 1
        row = jnp.where(region_ids == NO_IMAGE, r, region_ids)
        row = jnp.where(token_ids >= self.vocab_size + IMG, region_ids + r + 1, row)
        row = jnp.where(token_ids == self.vocab_size + END, 2 * r + 1, row)
        # Many elements carry the same row, so the sum that is the gather's gradient needs float32.
        carried = gather_positions(rows.astype(jnp.float32), row.reshape(b, -1)).astype(self.dtype)
        carried = carried.reshape(*row.shape, -1)
        words = self._look_up(self.token_embeddings, token_ids)
        places = self._look_up(self.position_embeddings, position_ids)
        segments = self._look_up(self.segment_embeddings, segment_ids)
        states = self.embedding_norm(keep_split(words + carried + places + segments))
        return dropout(states, self.dropout_rate, key)

    def _look_up(self, table: nnx.Param, ids: Int[Array, "b n s"]) -> Float[Array, "b n s h"]:
        """Return the rows `ids` of an embedding table; an id outside the table reads its nearest row.

        The gather precedes the cast: its gradient is a sum over many elements, which bfloat16 rounds at each addition.
        """
        return replicate(table[...]).at[ids].get(mode="clip").astype(self.dtype)

    def __call__(
        self,
        token_ids: Int[Array, "b n s"],
        region_ids: Int[Array, "b n s"],
        segment_ids: Int[Array, "b n s"],
        position_ids: Int[Array, "b n s"],
        element_mask: Bool[Array, "b n s"],
        region_states: Float[Array, "b r d"] | None,
        key=None,
    ) -> Float[Array, "b n s h"]:
        """Return the states of every element; `key` is for dropout."""
        key_embedding, key_encoder = split_keys(key, 2)
        x = self.embed(token_ids, region_ids, segment_ids, position_ids, region_states, key_embedding)
        b, n, s, size = x.shape
        states = self.encoder(x.reshape(b * n, s, size), element_mask.reshape(b * n, s), key_encoder)
        return states.reshape(b, n, s, size)  # pyright: ignore[reportAttributeAccessIssue]

    def pool(self, states: Float[Array, "... s h"]) -> Float[Array, "... h"]:
        """Return the tanh layer of the first element, [CLS]."""
        return jnp.tanh(self.pooler(states[..., 0, :]))


class Factor(nnx.Module):
    """One learned factor, where the visual layer norms are switched off."""

    def __init__(self, value: float):
        self.scale = nnx.Param(jnp.float32(value), axes=())

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return (x.astype(jnp.float32) * self.scale[...]).astype(x.dtype)  # its gradient sums over all of x
