"""The embeddings: every element is a token, a visual feature, a segment and a position (VL-BERT, section 3.2).

`model/architectures.py` has the switches by which the one-stream models differ.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import END, IMG, NO_IMAGE, NUM_EXTRA_IDS
from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.layers import apply_if, dense, dropout, gather_positions, layer_norm
from vlbert_jax.model.partitioning import keep_split, look_up

ROW_MULTIPLE = 128  # rows of the token table, so that it shards and tiles


def table_rows(vocab_size: int) -> int:
    """Return the rows of the token table: the vocabulary, the extra ids, and padding that no id reaches."""
    return -(-(vocab_size + NUM_EXTRA_IDS) // ROW_MULTIPLE) * ROW_MULTIPLE


class Embeddings(nnx.Module):
    """Embeddings of words and regions. A parameter exists where the architecture reads it."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        self.architecture = switches = config.architecture
        self.vocab_size, self.dropout_rate, self.dtype = config.vocab_size, config.dropout_rate, config.dtype
        size, visual_size = config.hidden_size, config.visual_size or config.hidden_size
        words_carry = switches.word_visual == "before_norm"

        def table(*shape, axes, **metadata):
            return nnx.Param(jax.random.normal(rngs.params(), shape) * config.init_deviation, axes=axes, **metadata)

        rows = table_rows(config.vocab_size)
        self.token_embeddings = table(rows, size, axes=("vocab", "embed"), several_uses=True)  # MLM decodes with it
        self.position_embeddings = table(config.max_positions, size, axes=(None, "embed"))
        self.segment_embeddings = table(config.num_segments, size, axes=(None, "embed"))
        # The visual vector of text without an image.
        self.text_only_visual = table(visual_size, axes=("embed",)) if words_carry else None

        def own_table(kind, rows):
            return table(rows, size, axes=(None, "embed")) if kind == "own" else None

        self.region_position_embeddings = own_table(switches.region_position, config.max_positions)
        self.region_segment_embeddings = own_table(switches.region_segment, config.num_segments)

        def resizing(exists):
            return dense(visual_size, size, (None, "embed"), config, rngs) if exists and visual_size != size else None

        self.text_resize, self.region_resize = resizing(words_carry), resizing(True)

        def visual_norm(exists, gain):
            if not exists:
                return None
            return layer_norm(size, config.dtype, rngs, gain=gain) if config.visual_layer_norm else Factor(gain)

        self.text_visual_norm = visual_norm(words_carry, config.text_visual_gain_init)
        self.region_visual_norm = visual_norm(switches.visual_norm == "after", config.region_visual_gain_init)
        self.embedding_norm = layer_norm(size, config.dtype, rngs)
        self.region_norm = layer_norm(size, config.dtype, rngs) if switches.region_norm == "own" else None

    def embed(
        self,
        token_ids: Int[Array, "b n s"],
        region_ids: Int[Array, "b n s"],
        segment_ids: Int[Array, "b n s"],
        position_ids: Int[Array, "b n s"],
        region_states: Float[Array, "b r d"] | None,
        key=None,
        region_words: Int[Array, "b n r a"] | None = None,
        empty_region: Float[Array, " d"] | None = None,
    ) -> Float[Array, "b n s h"]:
        """Return the sum of the four parts of each element, normalized as the architecture does.

        `region_words` are the positions of the words that each region is aligned with, -1 = none; the mean
        of their position embeddings is added to the region (VisualBERT). `empty_region` is the visual
        feature of elements without a region, where words carry it behind the norm (B2T2).
        """
        switches = self.architecture
        is_region = (token_ids >= self.vocab_size + IMG) & (token_ids != self.vocab_size + END)
        carried = self._carried(token_ids, region_ids, is_region, region_states, empty_region)
        tokens = self._look_up(self.token_embeddings, token_ids)
        tokens = tokens if switches.region_word else jnp.where(is_region[..., None], 0, tokens)
        places = self._by_kind(
            switches.region_position, self.position_embeddings, self.region_position_embeddings, position_ids, is_region
        )
        if region_words is not None:
            places += self._aligned(region_words, region_ids, is_region)
        segments = self._by_kind(
            switches.region_segment, self.segment_embeddings, self.region_segment_embeddings, segment_ids, is_region
        )
        if switches.word_visual == "after_norm":
            words = self.embedding_norm(keep_split(tokens + places + segments))
            return dropout(words, self.dropout_rate, key) + carried
        states = self._normalize(keep_split(tokens + carried + places + segments), is_region)
        return dropout(states, self.dropout_rate, key)

    def _carried(
        self, token_ids, region_ids, is_region: Bool[Array, "b n s"], region_states, empty_region
    ) -> Float[Array, "b n s h"]:
        """Return the visual part of each element; [END] has none.

        An element can carry a region as words do, what text without an image carries, a region as regions
        do, or nothing. One gather from these few rows replaces norms over every element.
        """
        b = token_ids.shape[0]
        kind = self.architecture.word_visual
        text_only = {"before_norm": self.text_only_visual, "after_norm": empty_region, "none": None}[kind]
        visual = [] if region_states is None else [region_states.astype(self.dtype)]
        if text_only is not None:
            vector = text_only[...][None, None]
            visual.append(jnp.broadcast_to(vector, (b, 1, vector.shape[-1])).astype(self.dtype))
        size = self.position_embeddings.shape[1]
        if not visual:
            return jnp.zeros((*token_ids.shape, size), self.dtype)
        nothing = jnp.zeros((b, 1, size), self.dtype)
        visual = jnp.concatenate(visual, 1)
        as_text = apply_if(self.text_visual_norm, apply_if(self.text_resize, visual))
        as_region = apply_if(self.region_visual_norm, apply_if(self.region_resize, visual))
        if kind == "before_norm":
            rows = jnp.concatenate([as_text, as_region[:, :-1], nothing], axis=1)
            r = visual.shape[1] - 1
            row = jnp.where(region_ids == NO_IMAGE, r, region_ids)
            row = jnp.where(is_region, region_ids + r + 1, row)
            row = jnp.where(token_ids == self.vocab_size + END, 2 * r + 1, row)
        elif kind == "after_norm":
            rows, row = as_region, jnp.where(region_ids == NO_IMAGE, visual.shape[1] - 1, region_ids)
        else:
            rows = jnp.concatenate([as_region, nothing], axis=1)
            row = jnp.where(is_region, region_ids, visual.shape[1])
        # Many elements carry the same row, so the sum that is the gather's gradient needs float32.
        carried = gather_positions(rows.astype(jnp.float32), row.reshape(b, -1)).astype(self.dtype)
        return carried.reshape(*row.shape, -1)

    def _by_kind(self, kind: str, shared: nnx.Param, own: nnx.Param | None, ids, is_region) -> Float[Array, "b n s h"]:
        """Return the rows `ids` of the table of words; for regions those of `own`, or zeros where they have none."""
        found = self._look_up(shared, ids)
        if kind in ("shared", "running"):
            return found
        of_regions = 0 if own is None else self._look_up(own, ids)
        return jnp.where(is_region[..., None], of_regions, found)

    def _aligned(
        self, region_words: Int[Array, "b n r a"], region_ids, is_region: Bool[Array, "b n s"]
    ) -> Float[Array, "b n s h"]:
        """Return for each region the mean position embedding of its words; 0 without words, and for words."""
        real = (region_words >= 0)[..., None]
        places = self._look_up(self.position_embeddings, jnp.maximum(region_words, 0))
        mean = jnp.where(real, places, 0).sum(3) / jnp.maximum(real.sum(3), 1)
        return jnp.where(is_region[..., None], gather_positions(mean, region_ids), 0).astype(self.dtype)

    def _normalize(self, states: Float[Array, "b n s h"], is_region) -> Float[Array, "b n s h"]:
        words = self.embedding_norm(states)
        if self.architecture.region_norm == "shared":
            return words
        return jnp.where(is_region[..., None], apply_if(self.region_norm, states), words)

    def _look_up(self, table: nnx.Param, ids: Int[Array, "..."]) -> Float[Array, "... h"]:
        """Return the rows `ids` of an embedding table; an id outside the table reads its nearest row.

        The gather precedes the cast: its gradient is a sum over many elements, which bfloat16 rounds at each addition.
        """
        return look_up(table[...], ids).astype(self.dtype)


class Factor(nnx.Module):
    """One learned factor, where the visual layer norms are switched off."""

    def __init__(self, value: float):
        self.scale = nnx.Param(jnp.float32(value), axes=())

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return (x.astype(jnp.float32) * self.scale[...]).astype(x.dtype)  # its gradient sums over all of x
