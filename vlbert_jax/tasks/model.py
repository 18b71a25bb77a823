"""What the models of all tasks share: region head, VL-BERT, and a head of two layers."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import IMG, IMG_MASK, NO_IMAGE, Batch
from vlbert_jax.encoder import EncoderConfig, dense, dropout, gelu, layer_norm
from vlbert_jax.fast_rcnn import FastRCNN, prepare_pixels
from vlbert_jax.tasks.examples import tokenizer_of
from vlbert_jax.vlbert import VLBert


class VisualLinguisticModel(nnx.Module):
    """Region head and VL-BERT: a batch to the states of its elements. Tasks add their heads."""

    def __init__(self, encoder: EncoderConfig, fast_rcnn: dict, rngs: nnx.Rngs):
        self.fast_rcnn = FastRCNN(**fast_rcnn, hidden_size=encoder.visual_size or encoder.hidden_size, rngs=rngs)
        self.vlbert = VLBert(encoder, rngs)

    def appearance(self, batch: Batch) -> Float[Array, "b r g"] | None:
        """Pooled or precomputed features of the regions, before projection."""
        if batch.image is None:
            return batch.region_features
        blanked = batch.region_hidden if self.fast_rcnn.hidden_appearance is None else None
        pixels = prepare_pixels(batch.image, batch.image_size, batch.boxes, blanked)
        return self.fast_rcnn.appearance(
            pixels, batch.boxes, batch.region_mask, batch.region_shapes, batch.image_size
        )

    def region_states(self, batch: Batch, appearance, key=None) -> Float[Array, "b r d"] | None:
        """The visual vector of each region; None without an image."""
        if appearance is None:
            return None
        return self.fast_rcnn.project(
            appearance,
            batch.boxes,
            batch.image_size,
            batch.region_mask,
            batch.region_hidden,
            batch.box_geometry,
            key,
        )

    def encode(self, batch: Batch, region_states, key=None) -> Float[Array, "b n s d"]:
        return self.vlbert(
            batch.token_ids,
            batch.region_ids,
            batch.segment_ids,
            batch.position_ids,
            batch.element_mask,
            region_states,
            key,
        )

    def states(self, batch: Batch, key_project=None, key_encode=None, blind: bool = False) -> Float[Array, "b n s d"]:
        """From the batch to the states of its elements; `blind` leaves the image out."""
        if blind:
            return self.encode(without_image(batch, self.vlbert.vocab_size), None, key_encode)
        return self.encode(batch, self.region_states(batch, self.appearance(batch), key_project), key_encode)

    def attention(
        self, batch: Batch
    ) -> tuple[Float[Array, "b n s d"], Float[Array, "layers b n heads s s"]]:
        """The same states, and what every element (first s) takes from every other in each layer and head."""
        region_states = self.region_states(batch, self.appearance(batch))
        x = self.vlbert.embed(
            batch.token_ids, batch.region_ids, batch.segment_ids, batch.position_ids, region_states
        )
        b, n, s, size = x.shape
        mask = batch.element_mask.reshape(b * n, s)
        states, _, attention = self.vlbert.encoder(x.reshape(b * n, s, size), mask, collect=True)
        layers, _, heads, *_ = attention.shape
        return states.reshape(x.shape), attention.reshape(layers, b, n, heads, s, s)


class PredictionHead(nnx.Module):
    """Hidden layer, GELU and, where asked for, a norm; then the classes."""

    def __init__(
        self, config: EncoderConfig, num_classes: int, rngs: nnx.Rngs, *, norm: bool = False, dropout_rate: float = 0.0
    ):
        size = config.hidden_size
        self.dropout_rate = dropout_rate
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs) if norm else None
        # In float32: in bfloat16 many classes would tie.
        self.classes = dense(size, num_classes, ("embed", None), dataclasses.replace(config, dtype=jnp.float32), rngs)

    def __call__(self, states: Float[Array, "... d"], key=None) -> Float[Array, "... c"]:
        """float32 logits; `key` draws dropout."""
        hidden = gelu(self.transform(states))
        hidden = hidden if self.norm is None else self.norm(hidden)
        return self.classes(dropout(hidden, self.dropout_rate, key))


def xavier(kernel: nnx.Param, seed: int) -> None:
    """Gives a kernel Xavier's uniform numbers: how the official layers that score a choice or a region start."""
    key = jax.random.key(seed, impl="threefry2x32")
    kernel.set_value(nnx.initializers.xavier_uniform()(key, kernel.shape, jnp.float32))


def at(states: Float[Array, "... s d"], positions: Int[Array, "... m"]) -> Float[Array, "... m d"]:
    """The states at some positions of their sequences."""
    return jnp.take_along_axis(states, positions[..., None], axis=-2)


def without_image(batch: Batch, vocab_size: int) -> Batch:
    """The blind twin of a batch: what a sequence of text alone looks like, its regions gone."""
    is_region = (batch.token_ids == vocab_size + IMG) | (batch.token_ids == vocab_size + IMG_MASK)
    return batch.replace(
        region_ids=jnp.full_like(batch.region_ids, NO_IMAGE), element_mask=batch.element_mask & ~is_region
    )


def without_words(batch: Batch, config) -> Batch:
    """Every word masked: what the image alone says."""
    tokenizer, ids = tokenizer_of(config), batch.token_ids
    is_word = (ids < tokenizer.vocab_size) & (ids != tokenizer.cls_id) & (ids != tokenizer.sep_id)
    return batch.replace(token_ids=jnp.where(is_word, tokenizer.mask_id, ids))


def model_options(config) -> tuple[EncoderConfig, dict]:
    """The sizes of encoder and region head of a run's config; see configs/common.py for the fields."""
    model, dtype = config.model, jnp.dtype(config.compute_dtype)
    head = dict(model.region_head)
    frozen_stages = tuple(head.pop("frozen_stages"))
    if not model.train_region_head:
        frozen_stages = (1, 2, 3, 4, 5)
    del head["frozen_batch_norm"]  # read by is_frozen
    backbone = {name: head.pop(name) for name in ("stem_width", "widths", "blocks", "strides", "stride_in_1x1")}
    backbone["caffe_max_pool"] = head.pop("caffe_max_pool", False)
    fast_rcnn = dict(
        backbone=dict(backbone, frozen_stages=frozen_stages) if config.data.features == "image" else None,
        feature_size=model.feature_size,
        frozen_c5={1, 2, 3, 4, 5} <= set(frozen_stages),  # else gradients pass through it
        dtype=dtype,
        **head,
    )
    return EncoderConfig(**model.encoder, dtype=dtype), fast_rcnn


def is_idle(path: tuple, config, names: tuple[str, ...]) -> bool:
    """Fine-tuning has no phases: every update changes all that is trained."""
    return False


def is_frozen(path: tuple, config) -> bool:
    """Frozen: batch norm and the first stages as configured, or all convolutions of the region head."""
    if path[0] != "fast_rcnn" or path[1] not in ("backbone", "c5"):
        return False
    if not config.model.train_region_head:
        return True
    head = config.model.region_head
    if head.frozen_batch_norm and path[-1] in ("gain", "offset"):
        return True
    stage = 5 if path[1] == "c5" else 1 if path[2] == "stem" else 2 + int(path[3])
    return stage in head.frozen_stages
