"""Sizes and options of the model, read from the config of a run."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vlbert_jax.model.architectures import ALLOWED, VLBERT, Architecture, get_architecture
from vlbert_jax.model.resnet import EXPANSION

BOX_NUMBERS = (4, 5, 6, 7)  # what geometry of numbers can have (geometry.py)
PRODUCT_SIZE = 1024  # of the published ViLBERT


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder and of the embeddings before it."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    max_positions: int = 512
    num_segments: int = 3
    dropout_rate: float = 0.1
    init_deviation: float = 0.02  # standard deviation of embeddings and kernels
    text_visual_gain_init: float = 0.0
    region_visual_gain_init: float = 0.0
    visual_size: int = 0  # width of the visual vectors; 0 = hidden_size
    visual_layer_norm: bool = True  # False: one learned factor instead
    pooler: bool = False
    product_size: int = PRODUCT_SIZE  # width of the pooled vector where it is a product
    scan_layers: bool = True
    remat: str = "none"
    architecture: Architecture = VLBERT
    dtype: Any = jnp.float32  # of activations

    @property
    def pool_size(self) -> int:
        """Return the width of the pooled vector."""
        return self.hidden_size if self.architecture.pool == "text" else self.product_size

    def encoder_config(self, stream: str) -> "EncoderConfig":
        """Return the options of the layers that words ("text") or regions ("visual") pass: the same ones."""
        return self


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Sizes and operations of the ResNet: stem, C2 to C4, and C5, which runs on regions."""

    stem_width: int
    widths: tuple[int, ...]  # of the 3x3 convolutions of C2 to C5
    blocks: tuple[int, ...]  # bottlenecks of C2 to C5
    strides: tuple[int, ...]  # of C2 to C4
    stride_in_1x1: bool  # True: Caffe's bottlenecks; False: torchvision's
    frozen_stages: tuple[int, ...] = ()  # 1 = stem, 2 to 4 = C2 to C4, 5 = C5
    caffe_max_pool: bool = False  # the detector's max-pooling after the stem


@dataclasses.dataclass(frozen=True)
class RoIOptions:
    """How regions are pooled from the feature map and how they pass C5."""

    operation: str = "align"  # align | pool
    size: int = 14  # bins per side
    samples: int = 1  # sampling points per bin and axis of "align"; 0 = adaptive
    chunk: int = 16  # regions that pass C5 at once
    remat: bool = False  # recompute C5 in the backward pass
    frozen: bool = False  # no gradient passes C5

    def __post_init__(self):
        if self.operation not in ("align", "pool"):
            raise ValueError(f"roi_operation is {self.operation!r}; it must be 'align' or 'pool'.")


@dataclasses.dataclass(frozen=True)
class RegionHeadConfig:
    """Sizes and operations of the region head."""

    hidden_size: int  # of the visual vectors that it returns; 0 = it projects nothing (two streams)
    backbone: BackboneConfig | None  # None: appearance is precomputed
    feature_size: int = 0  # columns of precomputed appearance
    dilated_c5: bool = True
    roi: RoIOptions = RoIOptions()
    mask_padding: bool = False  # each image gets the feature map that it would have alone
    hidden_vector: bool = False  # a vector, learned or zeros, replaces the appearance of hidden regions
    dropout_rate: float = 0.1  # before the projection
    projection_gain_init: float = 1.0  # of the projection's weights, relative to PyTorch's default
    geometry_gain_init: float = 1.0  # of its rows for box geometry, relative to those for appearance
    architecture: Architecture = VLBERT
    dtype: Any = jnp.float32  # of activations

    @property
    def appearance_size(self) -> int:
        """Return the columns of appearance: of what the ResNet pools, or of the precomputed features."""
        return self.feature_size if self.backbone is None else self.backbone.widths[-1] * EXPANSION


def matmul_precision(name: str):
    """Return a context in which matrix products and convolutions are traced with precision `name`.

    "default" is the platform's choice; on accelerators it computes float32 products in TF32 or
    bfloat16. All other names are those of `jax.default_matmul_precision`.
    """
    return contextlib.nullcontext() if name == "default" else jax.default_matmul_precision(name)


def model_options(config) -> tuple[EncoderConfig, RegionHeadConfig]:
    """Return the options of encoder and region head of a run's config; configs/common.py describes the fields."""
    architecture, dtype = architecture_of(config), jnp.dtype(config.compute_dtype)
    sizes = dict(config.model.encoder) | dict(product_size=product_size(config))
    encoder = EncoderConfig(**sizes, architecture=architecture, dtype=dtype)
    return encoder, region_head_options(config, encoder.visual_size or encoder.hidden_size)


def product_size(config) -> int:
    """Return the width of the pooled vector where it is a product."""
    return config.model.get("switches", {}).get("product_size", 0) or PRODUCT_SIZE


def architecture_of(config) -> Architecture:
    """Return the architecture of a run's config; configs from before this field are of VL-BERT.

    The block `config.model.switches` replaces some of its values, so that systems can be compared that differ in
    the rest alone.
    """
    architecture = get_architecture(config.model.get("architecture", VLBERT.name))
    given = config.model.get("switches", {})
    changes: dict[str, Any] = {}
    for field in ("pool", "hidden"):
        if value := given.get(field, ""):
            if value not in ALLOWED[field]:
                raise ValueError(
                    f"config.model.switches.{field} is {value!r}; it must be one of {', '.join(ALLOWED[field])}, or "
                    "empty for that of the architecture."
                )
            changes[field] = value
    if given.get("whole_image", False):
        changes["whole_image"] = True
    numbers = given.get("box_numbers", 0)
    if numbers and architecture.geometry in ("joint", "separate") and architecture.geometry_size in BOX_NUMBERS:
        if numbers not in BOX_NUMBERS:
            raise ValueError(f"config.model.switches.box_numbers is {numbers}; it must be 0 or 4 to 7.")
        changes["geometry_size"] = numbers
    changes = {name: value for name, value in changes.items() if getattr(architecture, name) != value}
    return dataclasses.replace(architecture, **changes) if changes else architecture


def region_head_options(config, hidden_size: int) -> RegionHeadConfig:
    """Return the options of the region head of a run's config."""
    model, dtype = config.model, jnp.dtype(config.compute_dtype)
    head = dict(model.region_head)
    frozen_stages = tuple(head.pop("frozen_stages"))
    if not model.train_region_head:
        frozen_stages = (1, 2, 3, 4, 5)
    backbone = BackboneConfig(
        stem_width=head.pop("stem_width"),
        **{name: tuple(head.pop(name)) for name in ("widths", "blocks", "strides")},
        stride_in_1x1=head.pop("stride_in_1x1"),
        frozen_stages=frozen_stages,
        caffe_max_pool=head.pop("caffe_max_pool", False),
    )
    roi = RoIOptions(
        **{name.removeprefix("roi_"): head.pop(name) for name in list(head) if name.startswith("roi_")},
        remat=head.pop("remat", False),
        frozen={1, 2, 3, 4, 5} <= set(frozen_stages),  # else gradients pass through C5
    )
    del head["frozen_batch_norm"]  # `region_head_is_frozen` reads it
    architecture = architecture_of(config)
    if not architecture.projection_dropout:
        head["dropout_rate"] = 0.0
    return RegionHeadConfig(
        hidden_size=hidden_size,
        backbone=backbone if config.data.features == "image" else None,
        feature_size=model.feature_size,
        roi=roi,
        architecture=architecture,
        dtype=dtype,
        **head,
    )
