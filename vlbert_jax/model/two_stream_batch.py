"""A two-stream model on a `Batch`, whose sequences then hold words alone.

Rows of regions are those of the batch. The first of an image is the whole image, which some architectures
do not read. Text without an image passes the layers of words alone, as in BERT. Where states of regions are read as
well, as in the blind baseline of pre-training, there is one region of zeros instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlbert_jax.batch import Batch
from vlbert_jax.model.layers import split_keys
from vlbert_jax.model.region_head import RegionHead
from vlbert_jax.model.two_stream import TwoStream, TwoStreamStates
from vlbert_jax.model.two_stream_config import STREAMS, TwoStreamConfig

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 1.0)  # numbers of its box


def _first_row(head: RegionHead) -> int:
    """Return the first row of an image's regions that the model reads."""
    return 0 if head.architecture.whole_image else 1


def _region_mask(head: RegionHead, batch: Batch) -> Bool[Array, "b m k"]:
    """Return which regions are real, of those that the model reads."""
    by_image = batch.region_mask.reshape(len(batch.region_mask), batch.image_size.shape[1], -1)
    return by_image[..., _first_row(head) :]


def embedded_regions(
    trunk: TwoStream, head: RegionHead, batch: Batch, appearance: Float[Array, "b r g"], key=None
) -> Float[Array, "b m k e"]:
    """Return the visual input of the regions of each image, from their appearance and their boxes."""
    b, m, _ = batch.image_size.shape
    appearance = head.hide(appearance, batch.region_hidden)

    def by_image(x: Any) -> Any:
        return None if x is None else x.reshape(b, m, -1, *x.shape[2:])

    mask = by_image(batch.region_mask)
    geometry = head.geometry(by_image(batch.boxes), batch.image_size, mask, by_image(batch.box_geometry))
    if head.architecture.whole_image:
        whole = jnp.asarray(WHOLE_IMAGE[: geometry.shape[-1]], geometry.dtype)
        geometry = geometry.at[..., 0, :].set(jnp.where(mask[..., :1], whole[None, None], 0))
    first = _first_row(head)
    return trunk.embed_regions(by_image(appearance)[..., first:, :], geometry[..., first:, :], key)


def encode(
    trunk: TwoStream,
    head: RegionHead,
    batch: Batch,
    regions: Float[Array, "b m k e"] | None,
    key=None,
    wanted: Sequence[str] = STREAMS,
    collect: bool = False,
) -> tuple[TwoStreamStates, dict[str, Any]]:
    """Return the states of words and regions, and what the blocks computed if `collect` (`TwoStreamEncoder`).

    Args:
        trunk: The model.
        head: The region head of the model.
        batch: The words, and which regions are real.
        regions: Of `embedded_regions`; None = text without an image.
        key: For dropout; None = no dropout.
        wanted: Streams whose states are read.
        collect: Whether to return the second value.
    """
    b, n, _ = batch.token_ids.shape
    key_words, key_encoder = split_keys(key, 2)
    config: TwoStreamConfig = trunk.config
    task = jnp.full((b, n), config.task_number) if config.task_tokens else None
    words = trunk.embed_words(batch.token_ids, batch.segment_ids, batch.position_ids, task, key_words)
    if regions is not None:
        mask = _region_mask(head, batch)
    elif "visual" in wanted:
        nothing = (jnp.zeros((b, 1, 1, size)) for size in (config.feature_size, config.geometry_size))
        regions = jax.lax.stop_gradient(trunk.embed_regions(*nothing))  # the norm of zeros has a gradient of a million
        mask = jnp.ones((b, 1, 1), bool)
    else:
        mask = None
    return trunk.encode(words, batch.element_mask, regions, mask, key_encoder, wanted, collect)


def attention(
    trunk: TwoStream, head: RegionHead, batch: Batch, regions: Float[Array, "b m k e"]
) -> tuple[TwoStreamStates, dict[str, Array]]:
    """Return the states and every kind of attention map, those of the words with the token of the task.

    The maps are "words" and "regions" of a stream to itself, and "words to regions" and "regions to words"
    of the cross-attentions, [layers, b, n, heads, q, k]: which element (q) reads which (k). Rows of regions
    are those of the model, one set for each sequence.
    """
    b, n, _ = batch.token_ids.shape
    states, collected = encode(trunk, head, batch, regions, collect=True)
    kinds = {
        "words": ("t", "text"), "regions": ("v", "visual"),
        "regions to words": ("x", "visual"), "words to regions": ("x", "text"),
    }  # fmt: skip

    def maps(kind: str, stream: str) -> Array:
        probabilities = collected[kind][1][stream]
        layers, _, *rest = probabilities.shape
        return probabilities.reshape(layers, b, n, *rest)

    return states, {name: maps(*place) for name, place in kinds.items() if place[0] in collected}
