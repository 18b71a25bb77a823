"""Sizes and options of two-stream models, and the published ones.

A model is a pattern of blocks of four kinds, given as groups (kinds, times):

    t  Transformer layer on the words
    v  Transformer layer on the regions
    x  cross-attention: each stream reads the other; both read the states before the block
    f  feed-forward layers of both streams
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from vlbert_jax.model.config import (
    EncoderConfig,
    RegionHeadConfig,
    architecture_of,
    product_size,
    region_head_options,
)

STREAMS = ("text", "visual")
CHANGES = {"t": ("text",), "v": ("visual",), "x": STREAMS, "f": STREAMS}  # kind of block -> streams that it changes
TABLES = ("token", "position", "segment")  # embeddings of words
# Fields of `config.model.encoder` that mean the same here.
ENCODER_FIELDS = ("vocab_size", "max_positions", "dropout_rate", "init_deviation", "scan_layers", "remat")


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """Sizes of one stream."""

    hidden_size: int = 768
    num_heads: int = 12
    mlp_size: int = 3072


@dataclasses.dataclass(frozen=True)
class TwoStreamConfig:
    """Sizes and options of a two-stream model; the defaults are those of LXMERT."""

    layers: tuple[tuple[str, int], ...] = (("t", 9), ("v", 5), ("xtv", 5))  # groups: kinds of blocks, times
    text: StreamConfig = StreamConfig()
    visual: StreamConfig = StreamConfig()
    cross_size: int = 768  # width of the heads of a cross-attention together
    cross_heads: int = 12
    shared_cross: bool = True  # both directions of a cross-attention have the same parameters
    vocab_size: int = 30522
    max_positions: int = 512
    num_segments: int = 2
    still_rows: tuple[str, ...] = TABLES  # tables whose row 0 gets no gradient from look-ups
    task_tokens: int = 0  # rows of the table of tasks; 0 = the text has no task token
    task_number: int = 0  # the row that the text of a `Batch` has
    feature_size: int = 2048  # columns of precomputed appearance
    geometry_size: int = 4  # numbers of a box
    visual_norm: str = "each"  # each: mean of the normalized projections | sum: their normalized sum
    pool: str = "text"  # text: tanh layer of [CLS] | mul, sum: of ReLU layers of [CLS] and the first region
    pool_size: int = 768
    dropout_rate: float = 0.1
    init_deviation: float = 0.02  # standard deviation of embeddings and kernels
    scan_layers: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32  # of activations

    def __post_init__(self):
        for kinds, times in self.layers:
            if not kinds or set(kinds) - CHANGES.keys() or len(set(kinds)) < len(kinds) or times < 1:
                raise ValueError(
                    f"layers has the group {(kinds, times)}; a group is different letters of t, v, x, f and a number "
                    "of times, at least 1"
                )
        if self.shared_cross and self.text.hidden_size != self.visual.hidden_size:
            raise ValueError(
                f"shared_cross=True needs streams of one width; they are {self.text.hidden_size} and "
                f"{self.visual.hidden_size}"
            )
        for field, values in {
            "visual_norm": ("each", "sum"), "pool": ("text", "mul", "sum"), "remat": ("none", "dots", "full")
        }.items():  # fmt: skip
            if getattr(self, field) not in values:
                raise ValueError(f"{field} is {getattr(self, field)!r}, not one of {', '.join(values)}")
        if self.task_number >= max(self.task_tokens, 1):
            raise ValueError(f"task_number is {self.task_number}, but task_tokens is {self.task_tokens}")
        if unknown := set(self.still_rows) - set(TABLES):
            raise ValueError(f"still_rows has {', '.join(sorted(unknown))}; the tables are {', '.join(TABLES)}")

    @property
    def pooler(self) -> bool:
        """Every two-stream model has the layers of the pooled vector."""
        return True

    @property
    def pooled_streams(self) -> tuple[str, ...]:
        """Return the streams that `TwoStream.pool` reads."""
        return ("text",) if self.pool == "text" else STREAMS

    def encoder_config(self, stream: str) -> EncoderConfig:
        """Return the options of the layers of a stream."""
        return EncoderConfig(
            vocab_size=self.vocab_size,
            **dataclasses.asdict(getattr(self, stream)),
            dropout_rate=self.dropout_rate,
            init_deviation=self.init_deviation,
            dtype=self.dtype,
        )


def connected_layers(
    num_text: int, num_visual: int, text_ids: Sequence[int], visual_ids: Sequence[int]
) -> tuple[tuple[str, int], ...]:
    """Return ViLBERT's pattern of blocks as groups.

    Connection i, cross-attention and feed-forward layers, precedes text layer `text_ids[i]` and visual
    layer `visual_ids[i]`. Text layers that a connection waits for run before visual layers.

    Args:
        num_text: Number of text layers.
        num_visual: Number of visual layers.
        text_ids: `t_biattention_id` of the official configuration.
        visual_ids: `v_biattention_id` of the official configuration.
    """
    groups: list[tuple[str, int]] = []

    def add(kinds: str, times: int):
        if groups and groups[-1][0] == kinds:
            groups[-1] = kinds, groups[-1][1] + times
        elif times:
            groups.append((kinds, times))

    done_text = done_visual = 0
    for text_id, visual_id in zip(text_ids, visual_ids, strict=True):
        counts = text_id - done_text, visual_id - done_visual
        done_text, done_visual = text_id, visual_id
        if counts == (1, 1):  # the regular case is one group, so that it is one loop
            add("tvxf", 1)
            continue
        add("t", counts[0])
        add("v", counts[1])
        add("xf", 1)
    add("v", num_visual - done_visual)
    add("t", num_text - done_text)
    return tuple(groups)


def _vilbert(connections: int, **options) -> TwoStreamConfig:
    """Return the options of the published ViLBERT with so many connections, before its last text layers."""
    return TwoStreamConfig(
        layers=connected_layers(12, connections, range(12 - connections, 12), range(connections)),
        visual=StreamConfig(1024, 8, 1024),
        cross_size=1024,
        cross_heads=8,
        shared_cross=False,
        still_rows=("token",),
        geometry_size=5,
        visual_norm="sum",
        pool="mul",
        pool_size=1024,
        **options,
    )


def two_stream_options(config) -> tuple[TwoStreamConfig, RegionHeadConfig]:
    """Return the options of the trunk and of the region head of a run's config.

    `config.model.encoder` has the sizes of the words' stream, but not the number of its layers. The block
    `config.model.two_stream` has the others; empty values and zeros are those of the published model.

    Raises:
        ValueError: The fields of the block have the wrong number of values, or values that do not fit together.
    """
    architecture, encoder, given = architecture_of(config), config.model.encoder, config.model.get("two_stream", {})
    text = StreamConfig(encoder.hidden_size, encoder.num_heads, encoder.mlp_size)
    vilbert = architecture.name == "vilbert"

    def chosen(field: str, published: tuple[int, ...]) -> tuple[int, ...]:
        values = tuple(given.get(field, ())) or published
        if len(values) != len(published) or min(values) < (0 if field == "layers" else 1):
            raise ValueError(
                f"config.model.two_stream.{field} is {values}; it must be {len(published)} numbers, such as "
                f"{published}."
            )
        return values

    layers = chosen("layers", (12, 6, 6) if vilbert else (9, 5, 5))
    visual = chosen("visual", (1024, 8, 1024) if vilbert else dataclasses.astuple(text))
    cross = chosen("cross", (1024, 8) if vilbert else (text.hidden_size, text.num_heads))
    for name, (width, heads) in {"visual": visual[:2], "cross": cross}.items():
        if width % heads:
            raise ValueError(f"config.model.two_stream.{name}: {heads} heads do not divide a width of {width}.")
    if not vilbert and visual[0] != text.hidden_size:
        raise ValueError(
            f"config.model.two_stream.visual has a width of {visual[0]}; {architecture.name} shares cross-attention "
            f"between both streams, so it must be config.model.encoder.hidden_size, {text.hidden_size}."
        )
    number, tokens = given.get("task_number", 0), given.get("task_tokens", 0)
    if not 0 <= number < max(tokens, 1):
        raise ValueError(
            f"config.model.two_stream.task_number is {number}; with task_tokens={tokens} it must be below "
            f"{max(tokens, 1)}."
        )
    if not architecture.whole_image and config.get("data", {}).get("max_regions", 1) < 1:
        raise ValueError(
            f"config.data.max_regions is 0, but {architecture.name} reads regions alone: set it to 1 or more."
        )
    if vilbert:
        num_text, num_visual, connections = layers
        if connections > min(num_text, num_visual):
            raise ValueError(
                f"config.model.two_stream.layers is {layers}: there are more connections than layers of a stream."
            )
        ids = (range(n - connections, n) for n in (num_text, num_visual))
        groups = connected_layers(num_text, num_visual, *ids)
    else:
        groups = tuple((kinds, n) for kinds, n in zip(("t", "v", "xtv"), layers, strict=True) if n)
    trunk = TwoStreamConfig(
        layers=groups,
        text=text,
        visual=StreamConfig(*visual),
        cross_size=cross[0],
        cross_heads=cross[1],
        shared_cross=not vilbert,
        still_rows=("token",) if vilbert else TABLES,
        task_tokens=tokens,
        task_number=number,
        feature_size=config.model.feature_size,
        geometry_size=architecture.geometry_size,
        visual_norm="each" if architecture.visual_norm == "each" else "sum",
        pool=architecture.pool,
        pool_size=text.hidden_size if architecture.pool == "text" else product_size(config),
        dtype=jnp.dtype(config.compute_dtype),
        **{name: encoder[name] for name in ENCODER_FIELDS},
    )
    head = region_head_options(config, hidden_size=0)
    return dataclasses.replace(trunk, feature_size=head.appearance_size), head


# The published models.
TWO_STREAM_MODELS = {
    "lxmert": TwoStreamConfig(),
    "vilbert_2layer": _vilbert(2),
    "vilbert_4layer": _vilbert(4),
    "vilbert": _vilbert(6),
    "vilbert_8layer": _vilbert(8),
    "vilbert_12in1": _vilbert(6, task_tokens=20),
}
