"""Classes, labels or numbers from one or two images: the model, and the fields of a config that choose its head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.data.examples import images_per_example
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig, architecture_of
from vlbert_jax.model.layers import LinearHead, PredictionHead, dense, dropout, gelu, layer_norm, split_keys
from vlbert_jax.model.one_stream_heads import PairAttention
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.tasks.layouts import trunk_options

READS = ("cls", "mask")
PAIRS = ("each", "both", "attention")
HEADS = ("linear", "hidden", "relu", "relu_norm")


@dataclasses.dataclass(frozen=True)
class ClassHead:
    """How an example is read: fields of `config.model`."""

    num_labels: int  # outputs: classes, labels or numbers
    read: str = "cls"  # the pooled [CLS], or the state at a [MASK] behind the text, as VQA in VL-BERT
    # How two images are read. each: a sequence for each, whose vectors are joined | both: one sequence over both |
    # attention: a sequence for each, which then read each other (UNITER)
    pair: str = "each"
    # Of [CLS]. linear | hidden: a hidden layer with GELU and norm | relu: with ReLU (Oscar) | relu_norm: with ReLU and
    # norm (VinVL)
    label_head: str = "linear"
    num_images: int = 1
    label_hidden: int = 0  # columns of the hidden layer; 0 = twice those of the pooled vector

    @property
    def num_sequences(self) -> int:
        return 1 if self.pair == "both" else self.num_images

    @classmethod
    def of(cls, config) -> ClassHead:
        """Return the fields of a config; raise ValueError where they contradict each other."""
        model, images = config.model, images_per_example(config)
        found = cls(
            model.num_labels, model.get("read", "cls"), model.get("pair", "each"), model.get("label_head", "linear"),
            images, model.get("label_hidden", 0),
        )  # fmt: skip
        for name, allowed in dict(read=READS, pair=PAIRS, label_head=HEADS).items():
            if getattr(found, name) not in allowed:
                raise ValueError(
                    f"config.model.{name} is {getattr(found, name)!r}; it must be one of {', '.join(allowed)}."
                )
        if images not in (1, 2):
            raise ValueError(f"config.data.images_per_example is {images}; it must be 1 or 2.")
        if found.num_labels < 1:
            raise ValueError("config.model.num_labels is 0: set it to the number of lines of config.data.labels.")
        two_streams = architecture_of(config).streams == 2
        if two_streams and images == 2 and found.pair != "each":
            raise ValueError(
                f"config.model.pair={found.pair!r} requires one stream; {architecture_of(config).name} has two: set "
                "config.model.pair=each."
            )
        if found.attends and found.read == "mask":
            raise ValueError("config.model.pair=attention reads all states: set config.model.read=cls.")
        return found

    @property
    def attends(self) -> bool:
        return self.num_images == 2 and self.pair == "attention"

    @property
    def reads_pooler(self) -> bool:
        return self.read == "cls" and not self.attends


class MaskHead(nnx.Module):
    """The hidden layer of the head for masked words, for each sequence, and classes over all sequences."""

    def __init__(self, config: EncoderConfig, num_labels: int, sequences: int, rngs: nnx.Rngs):
        size = config.hidden_size
        self.dropout_rate, self.gelu = config.dropout_rate, config.architecture.gelu
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        exact = dataclasses.replace(config, dtype=jnp.float32)
        self.classes = dense(sequences * size, num_labels, ("embed", None), exact, rngs)

    @jax.named_scope("head")
    def __call__(self, states: Float[Array, "b n d"], key=None) -> Float[Array, "b k"]:
        """Return float32 outputs; `key` is for dropout."""
        hidden = self.norm(gelu(self.transform(states), self.gelu))
        return self.classes(dropout(hidden.reshape(len(hidden), -1), self.dropout_rate, key))


class ClassifyModel(VisualLinguisticModel):
    """VL-BERT or a sibling, and a head over the sequences of an example.

    There is one of three heads: `mask_head`, `label_head` for one image, `pair_head` for two.
    """

    def __init__(self, encoder, region_head: RegionHeadConfig, head: ClassHead, rngs: nnx.Rngs):
        if head.reads_pooler and not encoder.pooler:
            raise ValueError(
                "config.model.read=cls requires config.model.encoder.pooler=True; config.model.read=mask does not."
            )
        super().__init__(encoder, region_head, rngs)
        self.head = head
        text, n = encoder.encoder_config("text"), head.num_sequences
        width = n * (text.hidden_size if head.attends else encoder.pool_size)
        self.pair_attention = PairAttention(text, rngs) if head.attends else None
        self.mask_head = MaskHead(text, head.num_labels, n, rngs) if head.read == "mask" else None
        layers = None
        if head.read == "cls" and head.label_head == "linear":
            layers = LinearHead(text, head.num_labels, rngs, inputs=width)
        elif head.read == "cls":
            sizes = dict(inputs=width, hidden=head.label_hidden or 2 * encoder.pool_size)
            kind = dict(norm=head.label_head != "relu", relu=head.label_head.startswith("relu"))
            layers = PredictionHead(text, head.num_labels, rngs, **sizes, **kind)
        self.label_head = layers if head.num_images == 1 else None
        self.pair_head = layers if head.num_images == 2 else None
        if isinstance(encoder, TwoStreamConfig):
            self.wanted = encoder.pooled_streams if head.reads_pooler else ("text",)

    def outputs(self, states, batch: Batch, positions: Int[Array, "b n"], key=None) -> Float[Array, "b k"]:
        """Return an output per class, label or number, float32.

        Args:
            states: Of `VisualLinguisticModel.states`.
            batch: The sequences.
            positions: Those of [MASK].
            key: For dropout; None = no dropout.
        """
        key_pool, key_head = split_keys(key, 2)
        if self.mask_head is not None:
            return self.mask_head(self.words_at(states, positions[..., None])[:, :, 0], key_head)
        if self.pair_attention is not None:
            vectors = self.pair_attention(states, batch.element_mask, key_pool)
        else:
            vectors = self.pooled_each(states, key_pool, batch.token_ids)
        head = self.label_head if self.pair_head is None else self.pair_head
        return head(vectors.reshape(len(vectors), -1), key_head)  # pyright: ignore[reportOptionalCall]


def build_classifier(config, rngs: nnx.Rngs) -> ClassifyModel:
    """Return the model of a config."""
    return ClassifyModel(*trunk_options(config), ClassHead.of(config), rngs)
