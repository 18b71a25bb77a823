"""Two streams, one of words and one of regions, that read each other (LXMERT, ViLBERT).

The blocks of a group (`two_stream_config`) are stacked along a leading axis and run under one `lax.scan`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.embeddings import table_rows
from vlbert_jax.model.encoder import MASKED, AttentionBlock, FeedForward, Layer, run_stacked
from vlbert_jax.model.layers import dense, dropout, gather_positions, layer_norm, split_keys
from vlbert_jax.model.partitioning import keep_split, look_up
from vlbert_jax.model.two_stream_config import CHANGES, STREAMS, TwoStreamConfig


class Cross(nnx.Module):
    """Cross-attention of each stream to the other, without feed-forward layers."""

    def __init__(self, config: TwoStreamConfig, rngs: nnx.Rngs):
        def direction(stream: str, other: str) -> AttentionBlock:
            sizes = dataclasses.replace(config.encoder_config(stream), num_heads=config.cross_heads)
            key_size = getattr(config, other).hidden_size
            return AttentionBlock(sizes, rngs, key_size=key_size, heads_size=config.cross_size)

        self.both = direction("text", "visual") if config.shared_cross else None
        self.text = None if config.shared_cross else direction("text", "visual")
        self.visual = None if config.shared_cross else direction("visual", "text")

    def __call__(self, states: dict[str, Array], biases: dict[str, Array], key):
        """Return the new states and the attention probabilities of both streams."""
        changed, probabilities = {}, {}
        keys = split_keys(key, 4)
        for stream, other, own_keys in (("text", "visual", keys[:2]), ("visual", "text", keys[2:])):
            block = getattr(self, stream) if self.both is None else self.both
            changed[stream], probabilities[stream] = block.attend(
                states[stream], states[other], biases[other], own_keys
            )
        return changed, probabilities


class FeedForwards(nnx.Module):
    """The feed-forward layers of both streams."""

    def __init__(self, config: TwoStreamConfig, rngs: nnx.Rngs):
        self.text = FeedForward(config.encoder_config("text"), rngs)
        self.visual = FeedForward(config.encoder_config("visual"), rngs)

    def __call__(self, states: dict[str, Array], key) -> dict[str, Array]:
        keys = split_keys(key, 2)
        return {stream: getattr(self, stream).transform(states[stream], keys[i]) for i, stream in enumerate(STREAMS)}


class Group(nnx.Module):
    """One block of each kind in `kinds`, in that order."""

    def __init__(self, kinds: str, config: TwoStreamConfig, rngs: nnx.Rngs):
        self.kinds = kinds
        self.t = Layer(config.encoder_config("text"), rngs) if "t" in kinds else None
        self.v = Layer(config.encoder_config("visual"), rngs) if "v" in kinds else None
        self.x = Cross(config, rngs) if "x" in kinds else None
        self.f = FeedForwards(config, rngs) if "f" in kinds else None

    def __call__(self, states: dict[str, Array], biases: dict[str, Array], key):
        """Return the new states, and the states and attention probabilities that each kind of block computed.

        Blocks of a stream that `states` lacks are left out.
        """
        collected = {}
        for kind, block_key in zip(self.kinds, split_keys(key, len(self.kinds)), strict=True):
            if kind not in kinds_on(self.kinds, states):
                continue
            changed, probabilities = {}, {}
            if kind == "x":
                changed, probabilities = self.x(states, biases, block_key)
            elif kind == "f":
                changed = self.f(states, block_key)
            else:
                (stream,) = CHANGES[kind]
                changed[stream], probabilities[stream] = getattr(self, kind)(states[stream], biases[stream], block_key)
            states = states | changed
            collected[kind] = changed, probabilities
        return states, collected


def kinds_on(kinds: str, streams: Collection[str]) -> str:
    """Return those kinds of blocks whose streams are all among `streams`."""
    return "".join(kind for kind in kinds if set(CHANGES[kind]) <= set(streams))


def planned_runs(layers: Sequence[tuple[str, int]], wanted: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return which blocks run, as (group, first, last + 1) in order.

    Nothing reads the states of a stream that is not in `wanted` after the last cross-attention. Groups of
    blocks that change only these are left out. The last round of the group with the cross-attention is a
    run of its own, so that the compiler removes such blocks from it; from a loop it could not.
    """
    runs, read = [], tuple(wanted)
    for group in reversed(range(len(layers))):
        kinds, times = layers[group]
        if not {stream for kind in kinds for stream in CHANGES[kind]} & set(read):
            continue
        if "x" in kinds and read != STREAMS:
            runs.append((group, times - 1, times))
            times, read = times - 1, STREAMS
        if times:
            runs.append((group, 0, times))
    return runs[::-1]


class TwoStreamEncoder(nnx.Module):
    """The blocks of both streams; `scan_layers=False` unrolls the same parameters, the values are the same."""

    def __init__(self, config: TwoStreamConfig, rngs: nnx.Rngs):
        self.config = config
        self.groups = nnx.List([])
        for kinds, times in config.layers:
            make = nnx.vmap(functools.partial(Group, kinds, config), in_axes=0, out_axes=0)
            self.groups.append(make(rngs.split(times)))

    def __call__(
        self,
        states: dict[str, Array],
        masks: dict[str, Array],
        key=None,
        wanted: Sequence[str] = STREAMS,
        collect: bool = False,
    ):
        """Return the last states of the streams in `wanted`, and what the blocks computed if `collect`.

        States are [sequences, elements, width]. The second value has, for each kind of block, its states
        and its attention probabilities by stream, stacked over the blocks of that kind. Probabilities
        are those of a stream's elements (first) for what they read.

        Args:
            states: Stream -> states. There may be fewer rows of regions than of words: each is repeated,
                and layers before the first cross-attention run once for all its copies. Of text alone there are
                no regions, and its states pass the layers of words alone.
            masks: Stream -> True where an element is real.
            key: For dropout.
            wanted: Streams whose states are read; blocks that do not change these are left out.
            collect: Whether to return what each block computed.
        """
        config = self.config
        group_keys = split_keys(key, len(config.layers))
        found: dict[str, list] = {}
        layers = [(kinds_on(kinds, states), times) for kinds, times in config.layers]
        for group, start, stop in planned_runs(layers, STREAMS if collect else wanted):
            kinds, times = layers[group]
            if "x" in kinds or collect:
                states, masks = _repeat_regions(states), _repeat_regions(masks)
            biases = {name: jnp.where(mask, 0.0, MASKED)[:, None, None] for name, mask in masks.items()}
            graphdef, stacked = nnx.split(self.groups[group])
            keys = None if key is None else jax.random.split(group_keys[group], times)
            stacked = jax.tree.map(lambda leaf, part=slice(start, stop): leaf[part], (stacked, keys))
            carried = {name: states[name] for kind in kinds for name in CHANGES[kind]}

            def block(states, parameters_and_key, graphdef=graphdef, biases=biases):
                parameters, key = parameters_and_key
                states, computed = nnx.merge(graphdef, parameters)(states, biases, key)
                return states, computed if collect else None

            scan = config.scan_layers and stop - start > 1
            carried, computed = run_stacked(block, carried, stacked, stop - start, scan, config.remat)
            states = states | carried
            for kind in kinds if collect else ():
                found.setdefault(kind, []).append(computed[kind])
        collected = {kind: jax.tree.map(lambda *x: jnp.concatenate(x), *parts) for kind, parts in found.items()}
        return {name: states[name] for name in wanted}, collected


def _repeat_regions(arrays: dict[str, Array]) -> dict[str, Array]:
    """Return the arrays with as many rows of regions as of words."""
    copies = len(arrays["text"]) // len(arrays["visual"])
    if copies == 1:
        return arrays
    return arrays | {"visual": keep_split(jnp.repeat(arrays["visual"], copies, axis=0))}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("text", "visual"), meta_fields=("num_words",)
)
@dataclasses.dataclass(frozen=True)
class TwoStreamStates:
    """The states of words and regions; None where nothing reads them.

    Positions are those of one sequence: words are at 0 to t - 1, regions at t to t + r - 1. Heads read
    states by position and do not know that words and regions lie apart.
    """

    text: Any  # [b, n, t, d]
    visual: Any  # [b, n, r, e]
    num_words: int  # t

    def of_sequence(self, number: int) -> TwoStreamStates:
        """Return the states of one sequence of each example."""
        text, visual = (None if x is None else x[:, number : number + 1] for x in (self.text, self.visual))
        return dataclasses.replace(self, text=text, visual=visual)

    def with_text(self, others: TwoStreamStates) -> TwoStreamStates:
        """Return these states with the words of further sequences behind them."""
        return dataclasses.replace(self, text=jnp.concatenate([self.text, others.text], axis=1))

    def words(self, positions: Int[Array, "b n k"]) -> Float[Array, "b n k d"]:
        """Return the states of words."""
        return gather_positions(self.text, positions)

    def regions(self, positions: Int[Array, "b n k"]) -> Float[Array, "b n k e"]:
        """Return the states of regions."""
        return gather_positions(self.visual, positions - self.num_words)


class TwoStream(nnx.Module):
    """Embeddings of words and regions, the blocks over both, and the pooled vector."""

    def __init__(self, config: TwoStreamConfig, rngs: nnx.Rngs):
        self.config = config
        text, visual = config.encoder_config("text"), config.encoder_config("visual")

        def table(rows: int, **metadata) -> nnx.Param:
            values = jax.random.normal(rngs.params(), (rows, text.hidden_size)) * config.init_deviation
            return nnx.Param(values, axes=("vocab" if rows > 1024 else None, "embed"), **metadata)

        self.token_embeddings = table(table_rows(config.vocab_size), several_uses=True)  # MLM decodes with it
        self.position_embeddings = table(config.max_positions)
        self.segment_embeddings = table(config.num_segments)
        self.task_embeddings = table(config.task_tokens) if config.task_tokens else None
        self.embedding_norm = layer_norm(text.hidden_size, config.dtype, rngs)
        self.appearance = dense(config.feature_size, visual.hidden_size, ("feature", "embed"), visual, rngs)
        self.geometry = dense(config.geometry_size, visual.hidden_size, (None, "embed"), visual, rngs)
        self.visual_norm = layer_norm(visual.hidden_size, config.dtype, rngs)  # of the appearance, or of the sum
        each = config.visual_norm == "each"
        self.geometry_norm = layer_norm(visual.hidden_size, config.dtype, rngs) if each else None
        self.encoder = TwoStreamEncoder(config, rngs)

        def pooler(stream: EncoderConfig) -> nnx.Linear:
            return dense(stream.hidden_size, config.pool_size, ("embed", None), stream, rngs)

        self.text_pooler = pooler(text)
        self.visual_pooler = None if config.pool == "text" else pooler(visual)

    def embed_words(
        self,
        token_ids: Int[Array, "b n t"],
        segment_ids: Int[Array, "b n t"],
        position_ids: Int[Array, "b n t"],
        task: Int[Array, "b n"] | None = None,
        key=None,
    ) -> Float[Array, "b n s d"]:
        """Return the normalized sum of token, position and segment; the token of the task follows [CLS]."""
        words = self._look_up("token", token_ids)
        words = words + self._look_up("position", position_ids) + self._look_up("segment", segment_ids)
        if self.task_embeddings is not None:
            tasks = self._look_up("task", task[..., None])
            words = jnp.concatenate([words[:, :, :1], tasks, words[:, :, 1:]], axis=2)
        return dropout(self.embedding_norm(keep_split(words)), self.config.dropout_rate, key)

    def _look_up(self, name: str, ids: Int[Array, "b n s"]) -> Float[Array, "b n s d"]:
        """Return the rows `ids` of a table; the gather precedes the cast, because its gradient sums in float32."""
        rows = look_up(getattr(self, f"{name}_embeddings")[...], ids)
        if name in self.config.still_rows:
            rows = jnp.where((ids == 0)[..., None], jax.lax.stop_gradient(rows), rows)
        return rows.astype(self.config.dtype)

    def embed_regions(
        self, features: Float[Array, "b m r g"], geometry: Float[Array, "b m r e"], key=None
    ) -> Float[Array, "b m r d"]:
        """Return the visual input of each region, from its appearance and its box."""
        appearance = keep_split(self.appearance(features.astype(self.config.dtype)))
        places = keep_split(self.geometry(geometry.astype(self.config.dtype)))
        if self.geometry_norm is None:
            states = self.visual_norm(appearance + places)
        else:
            states = (self.visual_norm(appearance) + self.geometry_norm(places)) / 2
        return dropout(states, self.config.dropout_rate, key)

    def __call__(
        self,
        token_ids: Int[Array, "b n t"],
        segment_ids: Int[Array, "b n t"],
        position_ids: Int[Array, "b n t"],
        word_mask: Bool[Array, "b n t"],
        features: Float[Array, "b m r g"],
        geometry: Float[Array, "b m r e"],
        region_mask: Bool[Array, "b m r"],
        task: Int[Array, "b n"] | None = None,
        key=None,
        wanted: Sequence[str] = STREAMS,
    ) -> TwoStreamStates:
        """Return the states of words and regions.

        Args:
            token_ids: Words of n sequences, without elements for regions.
            segment_ids: Row of the segment table of each word.
            position_ids: Row of the position table of each word.
            word_mask: True = real word.
            features: Appearance of the regions of m images: one for all sequences, or one for each.
            geometry: Numbers of each region's box.
            region_mask: True = real region.
            task: Number of the task, where the model has a token for it.
            key: For dropout; None = no dropout.
            wanted: Streams whose states are read; blocks that do not change these are left out.
        """
        keys = split_keys(key, 3)
        words = self.embed_words(token_ids, segment_ids, position_ids, task, keys[0])
        regions = self.embed_regions(features, geometry, keys[1])
        return self.encode(words, word_mask, regions, region_mask, keys[2], wanted)[0]

    def encode(
        self,
        words: Float[Array, "b n s d"],
        word_mask: Bool[Array, "b n t"],
        regions: Float[Array, "b m r e"] | None,
        region_mask: Bool[Array, "b m r"] | None,
        key=None,
        wanted: Sequence[str] = STREAMS,
        collect: bool = False,
    ) -> tuple[TwoStreamStates, dict[str, Any]]:
        """Return the states of embedded words and regions, and what the blocks computed if `collect`.

        Without regions, `wanted` is ("text",). The words have one more element where there is a token of the task.
        The second value is that of `TwoStreamEncoder`, whose sequences are those of all examples.
        """
        has_task = self.task_embeddings is not None
        mask = jnp.concatenate([word_mask[:, :, :1], word_mask], axis=2) if has_task else word_mask
        b, _, t = word_mask.shape
        flat_states, flat_masks = (
            {name: x.reshape(-1, *x.shape[2:]) for name, x in arrays.items() if x is not None}
            for arrays in (dict(text=words, visual=regions), dict(text=mask, visual=region_mask))
        )
        states, collected = self.encoder(flat_states, flat_masks, key, wanted, collect)
        states = {name: x.reshape(b, -1, *x.shape[1:]) for name, x in states.items()}
        text, visual = states.get("text"), states.get("visual")
        if has_task and text is not None:  # positions are those of the words alone
            text = jnp.concatenate([text[:, :, :1], text[:, :, 2:]], axis=2)
        return TwoStreamStates(text, visual, t), collected

    def pooled_parts(self, states: TwoStreamStates) -> tuple[Float[Array, "b n p"], ...]:
        """Return the pooled vector of [CLS] and, where the model has it, that of the first region."""
        text = self.text_pooler(states.text[:, :, 0])
        if self.visual_pooler is None:
            return (jnp.tanh(text),)
        return jax.nn.relu(text), jax.nn.relu(self.visual_pooler(states.visual[:, :, 0]))

    def pool(self, states: TwoStreamStates, key=None) -> Float[Array, "b n p"]:
        """Return the vector of a sequence and its image; `key` is for dropout of a product or sum."""
        parts = self.pooled_parts(states)
        if self.config.pool == "text":
            return parts[0]
        fused = parts[0] * parts[1] if self.config.pool == "mul" else parts[0] + parts[1]
        return dropout(fused, self.config.dropout_rate, key)
