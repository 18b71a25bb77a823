"""The model that all tasks share: the region head and the encoder, from a batch to the states of its elements."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from vlbert_jax.batch import IMG, IMG_MASK, NO_IMAGE, Batch
from vlbert_jax.model import two_stream_batch
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import gather_positions
from vlbert_jax.model.one_stream import OneStream
from vlbert_jax.model.region_head import RegionHead, prepare_pixels
from vlbert_jax.model.two_stream import TwoStream
from vlbert_jax.model.two_stream_config import TwoStreamConfig


class VisualLinguisticModel(nnx.Module):
    """The region head and VL-BERT or a sibling. Tasks add their heads.

    The trunk is `vlbert` or `two_stream`. Heads read its states by position (`words_at`, `regions_at`) or
    pooled (`pooled`), and so need not know which it is. `wanted` are the streams that the heads read.
    """

    def __init__(self, encoder: EncoderConfig | TwoStreamConfig, region_head: RegionHeadConfig, rngs: nnx.Rngs):
        two_streams = isinstance(encoder, TwoStreamConfig)
        self.fast_rcnn = RegionHead(region_head, rngs)
        # Of whatever one-stream architecture, so that paths of parameters are the same.
        self.vlbert: Any = None if two_streams else OneStream(encoder, rngs)
        self.two_stream: Any = TwoStream(encoder, rngs) if two_streams else None
        self.vocab_size = encoder.vocab_size
        self.wanted: tuple[str, ...] = two_stream_batch.STREAMS

    @property
    def token_embeddings(self) -> nnx.Param:
        """Return the table of words."""
        return (self.vlbert or self.two_stream).token_embeddings

    @jax.named_scope("region_head")
    def appearance(self, batch: Batch) -> Float[Array, "b r g"] | None:
        """Return pooled or precomputed features of the regions, before projection; None without an image."""
        if batch.pixels is None:
            if batch.region_features is None:
                return None
            return jnp.where(batch.region_mask[..., None], batch.region_features, 0)
        by_image = functools.partial(split_images, batch)
        hidden = by_image(batch.region_hidden) if not self.fast_rcnn.hides_features else None
        boxes, size = by_image(batch.boxes), flat_images(batch.image_size)
        pixels = prepare_pixels(flat_images(batch.pixels), size, boxes, hidden)
        pooled = self.fast_rcnn.appearance(
            pixels, boxes, by_image(batch.region_mask), by_image(batch.region_shapes), size
        )
        return pooled.reshape(*batch.region_mask.shape, -1)

    def region_states(
        self, batch: Batch, appearance, key=None
    ) -> Float[Array, "b r d"] | Float[Array, "b m k e"] | None:
        """Return the visual vector of each region; None without an image. In two streams, [b, m, k, e]."""
        if appearance is None:
            return None
        by_image = functools.partial(split_images, batch)
        if self.two_stream is not None:
            return two_stream_batch.embedded_regions(self.two_stream, self.fast_rcnn, batch, appearance, key)
        states = self.fast_rcnn.project(
            by_image(appearance),
            by_image(batch.boxes),
            flat_images(batch.image_size),
            by_image(batch.region_mask),
            by_image(batch.region_hidden),
            by_image(batch.box_geometry),
            key,
        )
        return states.reshape(*batch.region_mask.shape, -1)

    @jax.named_scope("encoder")
    def encode(self, batch: Batch, region_states, key=None, wanted: Sequence[str] | None = None) -> Any:
        """Return the states of all elements, [b, n, s, d], or `TwoStreamStates`.

        Args:
            batch: The sequences.
            region_states: Of `region_states`; None = no image is seen.
            key: For dropout; None = no dropout.
            wanted: Streams whose states are needed; None = those that the heads read.
        """
        if self.two_stream is not None:
            wanted = self.wanted if wanted is None else wanted
            return two_stream_batch.encode(self.two_stream, self.fast_rcnn, batch, region_states, key, wanted)[0]
        return self.vlbert(
            batch.token_ids,
            batch.region_ids,
            batch.segment_ids,
            batch.position_ids,
            batch.element_mask,
            region_states,
            key,
            **self._of_regions(batch),
            reads=self.reads(batch),
        )

    def reads(self, batch: Batch) -> Bool[Array, "b n s s"] | None:
        """Return which elements (last axis) each element reads, in models of one stream; None = all that are real."""
        return None

    def embed(self, batch: Batch, region_states) -> Float[Array, "b n s d"]:
        """Return what the encoder reads: the sum of the parts of each element, without dropout."""
        ids = (batch.token_ids, batch.region_ids, batch.segment_ids, batch.position_ids)
        return self.vlbert.embed(*ids, region_states, **self._of_regions(batch))

    def _of_regions(self, batch: Batch) -> dict:
        """Return the arguments of the encoder that only some architectures read."""
        after_norm = self.vlbert.architecture.word_visual == "after_norm"
        return dict(
            region_words=batch.region_words, empty_region=self.fast_rcnn.empty_region() if after_norm else None
        )

    def words_at(self, states, positions: Int[Array, "b n k"]) -> Float[Array, "b n k d"]:
        """Return the states of words at some positions of their sequences."""
        return gather_positions(states, positions) if self.two_stream is None else states.words(positions)

    def first_words_at(self, states, positions: Int[Array, "b k"]) -> Float[Array, "b k d"]:
        """Return the states of words at some positions of the first sequence."""
        if self.two_stream is None:
            return gather_positions(states[:, 0], positions)
        return states.of_sequence(0).words(positions[:, None])[:, 0]

    def regions_at(self, states, positions: Int[Array, "b n k"]) -> Float[Array, "b n k d"]:
        """Return the states of regions at some positions of their sequences."""
        return gather_positions(states, positions) if self.two_stream is None else states.regions(positions)

    def first_regions_at(self, states, positions: Int[Array, "b k"]) -> Float[Array, "b k d"]:
        """Return the states of regions at some positions of the first sequence."""
        if self.two_stream is None:
            return gather_positions(states[:, 0], positions)
        return states.of_sequence(0).regions(positions[:, None])[:, 0]

    def pooled(self, states, key=None, token_ids: Int[Array, "b n s"] | None = None) -> Float[Array, "b p"]:
        """Return the pooled vector of the first sequence.

        `key` is for the dropout of a product; in one stream, a product needs the ids of the elements.
        """
        if self.two_stream is None and self.vlbert.architecture.pool == "mul":
            return self.vlbert.pool_both(states[:, 0], token_ids[:, 0], key)
        if self.two_stream is None:
            return self.vlbert.pool(states[:, 0])
        return self.two_stream.pool(states.of_sequence(0), key)[:, 0]

    def pooled_each(
        self, states, key=None, token_ids: Int[Array, "b n s"] | None = None
    ) -> Float[Array, "b n p"]:
        """Return the pooled vector of every sequence; the arguments are those of `pooled`."""
        if self.two_stream is not None:
            return self.two_stream.pool(states, key)
        if self.vlbert.architecture.pool == "mul":
            flat = flat_images(states), flat_images(token_ids)  # one row per sequence
            return self.vlbert.pool_both(*flat, key).reshape(*states.shape[:2], -1)
        return self.vlbert.pool(states)

    def states(
        self, batch: Batch, key_project=None, key_encode=None, blind: bool = False, wanted: Sequence[str] | None = None
    ) -> Any:
        """Return the states of all elements of a batch; `blind` leaves the image out, `wanted` is as in `encode`."""
        if blind:
            return self.encode(without_image(batch, self.vocab_size), None, key_encode, wanted)
        return self.encode(batch, self.region_states(batch, self.appearance(batch), key_project), key_encode, wanted)

    def attention(self, batch: Batch) -> tuple[Any, Any]:
        """Return the states, and the attention of every element (first s) to every other, by layer and head.

        That is [layers, b, n, heads, s, s]; in two streams, a map by name (`two_stream_batch.attention`).
        """
        if self.two_stream is not None:
            regions = self.region_states(batch, self.appearance(batch))
            return two_stream_batch.attention(self.two_stream, self.fast_rcnn, batch, regions)
        x = self.embed(batch, self.region_states(batch, self.appearance(batch)))
        b, n, s, size = x.shape
        mask = batch.element_mask.reshape(b * n, s)
        reads = self.reads(batch)
        reads = None if reads is None else reads.reshape(b * n, s, s)
        states, _, attention = self.vlbert.encoder(x.reshape(b * n, s, size), mask, collect=True, reads=reads)
        layers, _, heads, *_ = attention.shape
        return states.reshape(x.shape), attention.reshape(layers, b, n, heads, s, s)


def flat_images(x: Shaped[Array, "b m ..."]) -> Shaped[Array, "i ..."]:
    """Return one row per image, the m images of an example one after another."""
    return x.reshape(-1, *x.shape[2:])


def split_images(batch: Batch, x: Shaped[Array, "b r ..."] | None) -> Shaped[Array, "i k ..."] | None:
    """Return values of regions with one row per image; None stays None."""
    if x is None:
        return None
    images = batch.image_size.shape[1]
    return x.reshape(-1, x.shape[1] // images, *x.shape[2:])


def without_image(batch: Batch, vocab_size: int) -> Batch:
    """Return the batch as text alone: without its regions, as text-only sequences are."""
    is_region = (batch.token_ids == vocab_size + IMG) | (batch.token_ids == vocab_size + IMG_MASK)
    return batch.replace(
        region_ids=jnp.full_like(batch.region_ids, NO_IMAGE), element_mask=batch.element_mask & ~is_region
    )


def without_words(
    batch: Batch,
    vocab_size: int,
    mask_id: int,
    kept_ids: tuple[int, ...],
    chosen: Bool[Array, "b n s"] | None = None,
) -> Batch:
    """Replace every word, or the chosen ones, by [MASK]; other elements and `kept_ids` ([CLS], [SEP]) stay."""
    ids = batch.token_ids
    is_word = ids < vocab_size if chosen is None else (ids < vocab_size) & chosen
    for kept in kept_ids:
        is_word &= ids != kept
    return batch.replace(token_ids=jnp.where(is_word, mask_id, ids))


def region_head_is_frozen(path: tuple, config) -> bool:
    """Return whether a parameter is a constant: batch norm, the frozen stages, or all convolutions."""
    if path[0] != "fast_rcnn" or path[1] not in ("backbone", "c5"):
        return False
    if not config.model.train_region_head:
        return True
    head = config.model.region_head
    if head.frozen_batch_norm and path[-1] in ("gain", "offset"):
        return True
    stage = 5 if path[1] == "c5" else 1 if path[2] == "stem" else 2 + int(path[3])
    return stage in head.frozen_stages
