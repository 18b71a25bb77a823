"""The model that writes captions: each word is predicted from the words before it and from the image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import MLMHead
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel, without_image

LEAST = -1e30  # score of what cannot be written


class CaptionModel(VisualLinguisticModel):
    """VL-BERT or a sibling of one stream, with the head for masked words of pre-training.

    A word reads itself, the words before it, the regions, their names and [END]; regions, names and [END] read each
    other, but no word. So states of the image do not depend on the caption, and no word depends on a later one.
    """

    def __init__(self, encoder: EncoderConfig, region_head: RegionHeadConfig, rngs: nnx.Rngs):
        super().__init__(encoder, region_head, rngs)
        self.mlm_head = MLMHead(encoder, self.token_embeddings.shape[0], rngs)

    def reads(self, batch: Batch) -> Bool[Array, "b n s s"]:
        """Return which elements (last axis) each element reads."""
        is_word = (batch.token_ids < self.vocab_size) & (batch.segment_ids == 0)  # names have segment 1
        place = jnp.arange(batch.token_ids.shape[-1])
        before = (place[None] <= place[:, None])[None, None]
        return ~is_word[..., None, :] | (is_word[..., :, None] & is_word[..., None, :] & before)

    def word_logits(self, states, positions: Int[Array, "b n k"]) -> Float[Array, "b n k v"]:
        """Return a logit per token at some positions."""
        return self.mlm_head(self.words_at(states, positions), self.token_embeddings[...])


def write_captions(
    model: CaptionModel,
    batch: Batch,
    beams: int,
    text_length: int,
    ids: tuple[int, int, int],
    writable: Bool[Array, " v"],
    blind: bool = False,
) -> tuple[Int[Array, "b k t"], Float[Array, "b k"]]:
    """Return the best captions of each image by beam search, and the mean log probability of their tokens.

    A step puts [MASK] behind what is written, reads the probabilities of the token there, and keeps the best
    continuations; with one beam that is the most probable token. The steps are one loop in one compiled
    program. Captions are ordered by the sum of the log probabilities, divided by the number of tokens.

    Args:
        model: The model.
        batch: Images, and their sequences of n = 1; the words in these are not read.
        beams: Captions that are kept for each image.
        text_length: Places for the tokens of a caption with [CLS] and [SEP].
        ids: Ids of [CLS], [SEP] and [MASK].
        writable: Tokens that a caption can have; [SEP], which ends it, is one of them.
        blind: Whether to leave the images out.

    Returns:
        Tokens with [CLS] and [SEP], padded with 0; and scores. The best caption of an image is the first.
    """
    cls_id, sep_id, mask_id = ids
    b, t = len(batch.token_ids), text_length
    regions = None if blind else model.region_states(batch, model.appearance(batch))
    batch = without_image(batch, model.vocab_size) if blind else batch
    names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
    repeated = {name: jnp.repeat(getattr(batch, name), beams, axis=1) for name in names}
    place = jnp.arange(t)
    writable = jnp.pad(writable, (0, model.token_embeddings.shape[0] - len(writable)))

    def log_probabilities(tokens: Int[Array, "b k t"], step) -> Float[Array, "b k v"]:
        words = jnp.where((place == step)[None, None], mask_id, tokens)
        real = jnp.broadcast_to((place <= step)[None, None], words.shape)
        fields = repeated | dict(
            token_ids=jnp.concatenate([words, repeated["token_ids"][..., t:]], axis=-1),
            element_mask=jnp.concatenate([real, repeated["element_mask"][..., t:]], axis=-1),
        )
        states = model.encode(batch.replace(**fields), regions)
        logits = model.word_logits(states, jnp.full((b, beams, 1), step))[:, :, 0]
        return jax.nn.log_softmax(jnp.where(writable[None, None], logits, LEAST), axis=-1)

    def is_unfinished(state):
        step, _, _, done = state
        return (step < t) & ~jnp.all(done)

    def write(state):
        step, tokens, scores, done = state
        chances = log_probabilities(tokens, step)
        v = chances.shape[-1]
        ended = jnp.where(jnp.arange(v) == 0, 0.0, LEAST)[None, None]  # a finished caption has one continuation
        totals = scores[..., None] + jnp.where(done[..., None], ended, chances)
        scores, best = jax.lax.top_k(totals.reshape(b, -1), beams)
        parent, token = best // v, (best % v).astype(jnp.int32)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1)
        tokens = jnp.where((place == step)[None, None], token[..., None], tokens)
        done = jnp.take_along_axis(done, parent, axis=1) | (token == sep_id)
        return step + 1, tokens, scores, done

    tokens = jnp.zeros((b, beams, t), jnp.int32).at[..., 0].set(cls_id)
    # All beams begin alike, so only the first one counts.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, LEAST)[None], (b, beams))
    start = jnp.int32(1), tokens, scores, jnp.zeros((b, beams), bool)
    _, tokens, scores, _ = jax.lax.while_loop(is_unfinished, write, start)
    means = scores / jnp.maximum((tokens > 0).sum(-1) - 1, 1)
    order = jnp.argsort(-means, axis=1)
    return jnp.take_along_axis(tokens, order[..., None], axis=1), jnp.take_along_axis(means, order, axis=1)
