"""A two-stream model with the heads of its pre-training and of the tasks that released weights answer."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.model.config import EncoderConfig
from vlbert_jax.model.embeddings import table_rows
from vlbert_jax.model.layers import MLMHead, PredictionHead, dense, gelu, layer_norm
from vlbert_jax.model.two_stream import TwoStream, TwoStreamStates
from vlbert_jax.model.two_stream_config import TwoStreamConfig


@dataclasses.dataclass(frozen=True)
class TwoStreamHeads:
    """The heads of a model: numbers of classes, 0 = without this head."""

    mlm: bool = False  # masked words, over the vocabulary
    relationship: bool = False  # the text does not belong, or belongs, to the image
    objects: int = 0  # of regions: object classes (LXMERT), with the two fields below in one head
    attributes: int = 0
    features: int = 0  # columns of the appearance that is predicted
    region_classes: int = 0  # of regions, in a head of their own (ViLBERT)
    answers: int = 0
    gqa_answers: int = 0  # a second vocabulary of answers (12-in-1)
    pair_classes: int = 0  # of a text and two images
    choice: bool = False  # score of a text for an image
    relations: int = 0  # of a premise and an image: contradiction, neutral, entailment
    grounding: bool = False  # score of each region
    word_scores: bool = False  # score of each word; no published task uses it
    relu_answers: bool = False  # the head over answers has a ReLU, no norm, and dropout 0.5 (the first ViLBERT)


class VisualHead(nnx.Module):
    """LXMERT's head of regions: one hidden layer; then object, attribute and appearance."""

    def __init__(self, config: EncoderConfig, heads: TwoStreamHeads, rngs: nnx.Rngs):
        size = config.hidden_size
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        exact = dataclasses.replace(config, dtype=jnp.float32)
        self.objects = dense(size, heads.objects, ("embed", None), exact, rngs)
        self.attributes = dense(size, heads.attributes, ("embed", None), exact, rngs)
        self.features = dense(size, heads.features, ("embed", "feature"), exact, rngs)

    def __call__(self, states: Float[Array, "... d"]) -> dict[str, Float[Array, "... c"]]:
        """Return float32 logits of objects and attributes, and the predicted appearance."""
        hidden = self.norm(gelu(self.transform(states)))
        return {name: getattr(self, name)(hidden) for name in ("objects", "attributes", "features")}


class TwoStreamModel(nnx.Module):
    """The trunk and the heads that `heads` names.

    Heads read `TwoStreamStates` by position, or the pooled vector of a sequence and its image.
    """

    def __init__(self, config: TwoStreamConfig, heads: TwoStreamHeads, rngs: nnx.Rngs):
        self.two_stream = TwoStream(config, rngs)
        text, visual = config.encoder_config("text"), config.encoder_config("visual")
        pooled = config.pool_size
        exact = dataclasses.replace(text, dtype=jnp.float32)

        def over_pooled(classes: int, sequences: int = 1, relu: bool = False) -> PredictionHead | None:
            sizes = dict(inputs=sequences * pooled, hidden=2 * pooled, norm=not relu, relu=relu)
            rate = 0.5 if relu else 0.0
            return PredictionHead(text, classes, rngs, **sizes, dropout_rate=rate) if classes else None

        def scores(wanted: int, width: int) -> nnx.Linear | None:
            return dense(width, int(wanted), ("embed", None), exact, rngs) if wanted else None

        self.mlm_head = MLMHead(text, table_rows(config.vocab_size), rngs) if heads.mlm else None
        self.relationship_head = scores(2 * heads.relationship, pooled)
        self.visual_head = VisualHead(visual, heads, rngs) if heads.objects else None
        classes = heads.region_classes
        self.mrc_head = PredictionHead(visual, classes, rngs, norm=True) if classes else None
        self.answer_head = over_pooled(heads.answers, relu=heads.relu_answers)
        self.gqa_head = over_pooled(heads.gqa_answers)
        self.pair_head = over_pooled(heads.pair_classes, sequences=2)
        self.choice_head = scores(heads.choice, pooled)
        self.relation_head = scores(heads.relations, pooled)
        self.grounding_head = scores(heads.grounding, visual.hidden_size)
        self.word_head = scores(heads.word_scores, text.hidden_size)

    # Heads over states.

    def mlm_logits(self, states: TwoStreamStates, positions: Int[Array, "b n k"]) -> Float[Array, "b n k v"]:
        """Return a logit per token at the masked words; rows of the table that are not words get -inf."""
        return self.mlm_head(states.words(positions), self.two_stream.token_embeddings[...])

    def mrc_logits(self, states: TwoStreamStates, positions: Int[Array, "b n k"]) -> Float[Array, "b n k c"]:
        """Return a logit per region class, or predicted columns of appearance, at the hidden regions."""
        return self.mrc_head(states.regions(positions))

    def visual_predictions(
        self, states: TwoStreamStates, positions: Int[Array, "b n k"]
    ) -> dict[str, Float[Array, "b n k c"]]:
        """Return LXMERT's predictions for regions: objects, attributes, features."""
        return self.visual_head(states.regions(positions))

    def grounding_logits(self, states: TwoStreamStates, positions: Int[Array, "b n k"]) -> Float[Array, "b n k"]:
        """Return a score of each region."""
        return self.grounding_head(states.regions(positions))[..., 0]

    def word_logits(self, states: TwoStreamStates, positions: Int[Array, "b n k"]) -> Float[Array, "b n k"]:
        """Return a score of each word."""
        return self.word_head(states.words(positions))[..., 0]

    # Heads over the pooled vector.

    def relationship_logits(self, pooled: Float[Array, "b n p"]) -> Float[Array, "b n 2"]:
        """Return two logits: the text does not belong, or belongs, to the image."""
        return self.relationship_head(pooled)

    def answer_logits(self, pooled: Float[Array, "b n p"], key=None) -> Float[Array, "b n answers"]:
        """Return a logit per answer; `key` is for dropout."""
        return self.answer_head(pooled, key)

    def gqa_logits(self, pooled: Float[Array, "b n p"]) -> Float[Array, "b n answers"]:
        """Return a logit per answer of the second vocabulary."""
        return self.gqa_head(pooled)

    def pair_logits(self, pooled: Float[Array, "b 2 p"]) -> Float[Array, "b c"]:
        """Return a logit per class of a text and two images; sequence k is the text with image k."""
        return self.pair_head(pooled.reshape(len(pooled), -1))

    def choice_logits(self, pooled: Float[Array, "b n p"]) -> Float[Array, "b n"]:
        """Return a score of each sequence of an example for its image."""
        return self.choice_head(pooled)[..., 0]

    def relation_logits(self, pooled: Float[Array, "b n p"]) -> Float[Array, "b n c"]:
        """Return a logit per relation of a text to an image."""
        return self.relation_head(pooled)
