"""The model that scores the choices of a question, and its losses."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.layers import PredictionHead, dense, dropout, split_keys
from vlbert_jax.model.two_stream_config import STREAMS, TwoStreamConfig
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.tasks.losses import binary_cross_entropy, cross_entropy

HEADS = {"score": 1, "classes": 2, "hidden": 2}  # config.model.choice_head -> number of outputs for each choice
LOSSES = {"sigmoid": 1, "softmax": 1, "classes": 2}  # config.losses.choice -> number of outputs for each choice


class ChoiceModel(VisualLinguisticModel):
    """VL-BERT or a sibling with a pooler, a head over each choice, and classes of the objects (official CNN_LOSS_TOP).

    "score" is a head with one output (VL-BERT, VisualBERT, ViLBERT). "classes" has two, for a wrong and a right choice
    (B2T2), and "hidden" has them after a hidden layer with ReLU and layer norm (UNITER). Without object classes
    (`num_object_classes` 0) there is no head of the objects.
    """

    def __init__(
        self, encoder, region_head: RegionHeadConfig, num_object_classes: int, rngs: nnx.Rngs, kind: str = "score"
    ):
        if kind not in HEADS:
            raise ValueError(f"config.model.choice_head is {kind!r}; it must be one of {', '.join(HEADS)}.")
        if not encoder.pooler:
            raise ValueError("config.model.encoder.pooler is False, but a choice's score is computed from the pooler")
        super().__init__(encoder, region_head, rngs)
        text, size = encoder.encoder_config("text"), encoder.pool_size
        self.dropout_rate = 0.0 if kind == "hidden" else encoder.dropout_rate  # UNITER has none there
        if kind == "hidden":
            sizes = dict(inputs=size, hidden=2 * size)
            self.choice_head = PredictionHead(text, HEADS[kind], rngs, **sizes, norm=True, relu=True)
        else:
            exact = dataclasses.replace(text, dtype=jnp.float32)  # four scores must not tie
            self.choice_head = dense(size, HEADS[kind], ("embed", None), exact, rngs)
        visual = encoder.encoder_config("visual")
        self.object_head = PredictionHead(visual, num_object_classes, rngs) if num_object_classes else None
        if isinstance(encoder, TwoStreamConfig):
            self.wanted = encoder.pooled_streams

    def choice_logits(
        self, states, key=None, token_ids: Int[Array, "b n s"] | None = None
    ) -> Float[Array, "b n c"]:
        """Return the outputs of the head, of which the last one is the score by which choices are ranked.

        Args:
            states: Of `VisualLinguisticModel.states`.
            key: For dropout; None = no dropout.
            token_ids: Ids of the elements, which a product of pooled vectors needs.
        """
        key_pool = None if key is None else jax.random.fold_in(key, 1)
        pooled = self.pooled_each(states, key_pool, token_ids)
        return self.choice_head(dropout(pooled, self.dropout_rate, key))

    def object_logits(self, states, positions: Int[Array, "b n r"]) -> Float[Array, "b n r c"]:
        """Return a logit per object class; `positions` are those of the regions in their sequences."""
        return self.object_head(self.regions_at(states, positions))  # pyright: ignore[reportOptionalCall]


def states_of(model: ChoiceModel, batch: Batch, config, key=None, objects: bool = False):
    """Return the states of all elements; `objects` says whether those of the regions are read, too."""
    key_project, key_encode = split_keys(key, 2)
    return model.states(batch, key_project, key_encode, config.blind, STREAMS if objects else None)


def choice_losses(logits: Float[Array, "b n c"], choice: Int[Array, " b"], kind: str) -> Float[Array, " b"]:
    """Return the loss of each question.

    sigmoid: the mean binary loss over the choices (official code). softmax: the cross-entropy of the right choice
    (paper, VisualBERT, ViLBERT). classes: the mean cross-entropy of the classes wrong and right (UNITER, B2T2).

    Args:
        logits: Outputs of the head.
        choice: The right choice; -1 = unknown, for which callers mask the loss.
        kind: Key of `LOSSES`.

    Raises:
        ValueError: `kind` is another word, or it reads another number of outputs than the head has.
    """
    if kind not in LOSSES:
        raise ValueError(f"config.losses.choice is {kind!r}; it must be one of {', '.join(LOSSES)}.")
    if LOSSES[kind] != logits.shape[-1]:
        fitting = ", ".join(name for name, outputs in LOSSES.items() if outputs == logits.shape[-1])
        raise ValueError(
            f"config.losses.choice={kind} does not fit a head with {logits.shape[-1]} outputs for each choice "
            f"(config.model.choice_head): set config.losses.choice to one of {fitting}, or choose another head."
        )
    right = jnp.maximum(choice, 0)
    is_right = jax.nn.one_hot(right, logits.shape[1])
    if kind == "sigmoid":
        return binary_cross_entropy(logits[..., 0], is_right).mean(-1)
    if kind == "softmax":
        return cross_entropy(logits[..., 0], right)
    return cross_entropy(logits, is_right.astype(jnp.int32)).mean(-1)


def objects_of(batch: Batch) -> Bool[Array, "b n r"]:
    """Return which regions have a class, for every sequence; the whole image counts."""
    real = batch.region_mask & (batch.targets.region_classes >= 0)
    return jnp.broadcast_to(real[:, None], batch.targets.region_positions.shape)


def object_losses(model: ChoiceModel, states, batch: Batch) -> tuple[Float[Array, "b n r"], Bool[Array, "b n r"]]:
    """Return the cross-entropy and whether the class is right, of every region in every sequence."""
    logits = model.object_logits(states, batch.targets.region_positions)
    classes = jnp.maximum(batch.targets.region_classes, 0)[:, None]
    classes = jnp.broadcast_to(classes, batch.targets.region_positions.shape)
    return cross_entropy(logits, classes), logits.argmax(-1) == classes
