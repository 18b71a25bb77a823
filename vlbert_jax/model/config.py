"""Sizes and options of the model, read from the config of a run."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder and of the embeddings in front of it."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    max_positions: int = 512
    num_segments: int = 3
    dropout_rate: float = 0.1
    init_deviation: float = 0.02  # of embeddings and kernels
    text_visual_gain_init: float = 0.0
    region_visual_gain_init: float = 0.0
    visual_size: int = 0  # width of the visual vectors where it is not hidden_size
    visual_layer_norm: bool = True  # False: one learned factor instead
    pooler: bool = False
    scan_layers: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32  # of activations


def matmul_precision(name: str):
    """Return a context in which matrix products and convolutions are traced with precision `name`.

    "default" is the platform's choice; on accelerators it computes float32 products in TF32 or
    bfloat16. All other names are those of `jax.default_matmul_precision`.
    """
    return contextlib.nullcontext() if name == "default" else jax.default_matmul_precision(name)


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
