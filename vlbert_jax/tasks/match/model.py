"""The model that scores whether a text and an image belong together, and its losses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.model.config import EncoderConfig, RegionHeadConfig
from vlbert_jax.model.layers import PredictionHead, dense, dropout, split_keys
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel, without_image
from vlbert_jax.tasks.losses import binary_cross_entropy, cross_entropy
from vlbert_jax.tasks.match.batches import Candidates
from vlbert_jax.tasks.match.examples import PairLayout, pair_on_device, query_on_device

LOSSES = ("softmax", "hinge", "sigmoid")
HEADS = ("relationship", "score", "classes", "hidden")  # values of config.model.matching_head


class MatchModel(VisualLinguisticModel):
    """VL-BERT or a sibling, and a head that reads whether a text belongs to an image.

    "relationship" is the head of pre-training: the score of a pair is the logit of "belongs" minus that of "does
    not". So a model that was pre-trained with the relationship loss scores pairs without fine-tuning. "score" is a
    head with one output (UNITER, ViLBERT), "classes" one with the two outputs of "relationship" (Oscar, VinVL),
    "hidden" has them after a hidden layer with ReLU (Oscar and VinVL with "classifier": "mlp" in config.json).
    """

    def __init__(
        self,
        encoder: EncoderConfig | TwoStreamConfig,
        region_head: RegionHeadConfig,
        classes: int,
        rngs: nnx.Rngs,
        kind: str = "relationship",
        hidden: int = 0,
    ):
        """Make the model; `hidden` is the width of the hidden layer, 0 = twice that of the pooled vector."""
        if kind not in HEADS:
            raise ValueError(f"config.model.matching_head is {kind!r}; it must be one of {', '.join(HEADS)}.")
        if not encoder.pooler:
            raise ValueError("config.model.encoder.pooler is False, but the score of a pair is read from the pooler.")
        super().__init__(encoder, region_head, rngs)
        is_uniter = encoder.encoder_config("text").architecture.name == "uniter"
        self.dropout_rate = 0.0 if kind == "score" and is_uniter else encoder.dropout_rate  # UNITER has none there
        exact = dataclasses.replace(encoder.encoder_config("text"), dtype=jnp.float32)  # scores must not tie
        width, outputs = encoder.pool_size, {"score": 1, "relationship": classes}.get(kind, 2)
        if kind == "hidden":
            layer = PredictionHead(exact, outputs, rngs, inputs=width, hidden=hidden or 2 * width, relu=True)
        else:
            layer = dense(width, outputs, ("embed", None), exact, rngs)
        self.relationship_head = layer if kind == "relationship" else None
        self.matching_head = None if kind == "relationship" else layer
        if isinstance(encoder, TwoStreamConfig):
            self.wanted = encoder.pooled_streams

    def pair_states(self, batch: Batch, key=None, blind: bool = False):
        """Return the states of the pairs of `choice_of_pairs`, [b, n, s, d] or `TwoStreamStates`."""
        key_project, key_encode = split_keys(key, 2)
        if blind:
            return self.encode(without_image(batch, self.vocab_size), None, key_encode)
        regions = self.region_states(batch, self.appearance(batch), key_project)
        if self.two_stream is not None:  # of one image each, as `PairLayout.of` checks
            n, m = batch.token_ids.shape[1], batch.image_size.shape[1]
            image = jnp.asarray([0] * (n - m + 1) + list(range(1, m)))  # of each sequence
            mask = batch.region_mask.reshape(len(batch.region_mask), m, -1)[:, image]
            regions, size = regions[:, image], batch.image_size[:, image]
            read = dict.fromkeys(("pixels", "region_features", "boxes", "region_hidden", "box_geometry"))  # already
            batch = batch.replace(**read, region_mask=mask.reshape(len(mask), -1), image_size=size)
        return self.encode(batch, regions, key_encode)

    def pair_scores(self, states, token_ids: Int[Array, "b n s"], key=None) -> Float[Array, "b n"]:
        """Return the score of every sequence with its image, in float32."""
        key_pool, key_head = split_keys(key, 2)
        pooled = self.pooled_each(states, key_pool, token_ids)
        head: Any = self.relationship_head or self.matching_head
        logits = head(dropout(pooled, self.dropout_rate, key_head)).astype(jnp.float32)
        return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]


def score_candidates(
    model: MatchModel, batch: Batch, candidates: Candidates, layout: PairLayout, per_pass: int, blind: bool = False
) -> Float[Array, "b t"]:
    """Return the score of every text with each image of a batch.

    The CNN and the projection of the regions run once for each image; the encoder then runs over
    `per_pass` texts at a time.

    Args:
        model: The model.
        batch: Images; of their sequences the names of the regions are read, where `eval_parts` has written them.
        candidates: The texts.
        layout: Layout of a pair.
        per_pass: Texts that are paired with every image of the batch at once.
        blind: Whether to leave the images out; then all have the same score for a text.
    """
    regions = None if blind else model.region_states(batch, model.appearance(batch))
    num_rows, number = batch.region_mask.sum(1), len(candidates.ids)
    names = batch.token_ids[:, 0], batch.element_mask[:, 0].sum(1), layout.text_length
    per_pass = min(per_pass, number)
    passes = -(-number // per_pass)
    rows = jnp.resize(jnp.arange(number), passes * per_pass).reshape(passes, per_pass)  # some texts fill the last pass
    ids, lengths = jnp.asarray(candidates.ids)[rows], jnp.asarray(candidates.lengths)[rows]

    def scores(texts):
        ids, lengths = texts
        pairs = pair_on_device(
            ids, lengths, num_rows, layout.sequence_length, model.vocab_size, layout.regions,
            names if layout.class_names else None,
        )  # fmt: skip
        pairs = batch.replace(**pairs)
        if blind:
            pairs = without_image(pairs, model.vocab_size)
        return model.pair_scores(model.encode(pairs, regions), pairs.token_ids)

    found = jax.lax.map(scores, (ids, lengths))  # passes b per_pass
    return found.swapaxes(0, 1).reshape(len(num_rows), -1)[:, :number]


def score_queries(
    model: MatchModel, batch: Batch, layout: PairLayout, blind: bool = False
) -> Float[Array, "b b"]:
    """Return the score of every query (row) of a batch with every candidate (column).

    The CNN and the projection of the regions run once for each image; the encoder then runs over each query
    with one candidate at a time, which is that of the example itself, of the next example, and so on.

    Args:
        model: The model.
        batch: Examples of `query_batches`: a query and a candidate each, and the text.
        layout: Layout of a pair.
        blind: Whether to leave the images out; then all candidates have the same score for a query.
    """
    b, lengths = len(batch.token_ids), batch.element_mask[:, 0].sum(1)
    regions = None if blind else model.region_states(batch, model.appearance(batch))
    rows = batch.region_mask.shape[1] // 2

    def shifted(x: Any, by: Any) -> Any:
        """Return values of the regions, with those of the candidate of the example `by` rows below."""
        return jnp.concatenate([x[:, :rows], jnp.roll(x[:, rows:], -by, axis=0)], axis=1)

    def scores(by: Any) -> Float[Array, " b"]:
        mask = shifted(batch.region_mask, by)
        packed = query_on_device(
            batch.token_ids[:, 0], lengths, mask.reshape(b, 2, rows).sum(2), rows, layout.num_segments,
            layout.sequence_length, model.vocab_size, layout.regions,
        )  # fmt: skip
        pairs = batch.replace(**packed, region_mask=mask)
        if blind:
            pairs = without_image(pairs, model.vocab_size)
        states = model.encode(pairs, None if regions is None else shifted(regions, by))
        return model.pair_scores(states, pairs.token_ids)[:, 0]

    found, place = jax.lax.map(scores, jnp.arange(b)), jnp.arange(b)  # by, query
    return found[(place[None, :] - place[:, None]) % b, place[:, None]]


def match_losses(
    scores: Float[Array, "b n"], choice: Int[Array, " b"], kind: str, margin: float
) -> Float[Array, " b"]:
    """Return the loss of each choice among n pairs.

    softmax: the cross-entropy of the right pair (ViLBERT). hinge: the mean over the other pairs of
    max(0, margin + sigmoid of their score - sigmoid of the right one) (UNITER). sigmoid: the mean binary cross-entropy
    of the pairs (Oscar).

    Raises:
        ValueError: `kind` is another word.
    """
    right = jnp.maximum(choice, 0)
    if kind == "softmax":
        return cross_entropy(scores, right)
    if kind == "sigmoid":
        return binary_cross_entropy(scores, jax.nn.one_hot(right, scores.shape[1])).mean(-1)
    if kind == "hinge":
        chances = jax.nn.sigmoid(scores)
        of_right = jnp.take_along_axis(chances, right[:, None], axis=1, mode="clip")
        losses = jnp.maximum(0, margin + chances - of_right)
        others = jnp.arange(scores.shape[1])[None] != right[:, None]
        return jnp.sum(jnp.where(others, losses, 0), axis=1) / (scores.shape[1] - 1)
    raise ValueError(f"config.losses.match is {kind!r}; it must be one of {', '.join(LOSSES)}.")
