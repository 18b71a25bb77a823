"""Pre-training: masked words with visual clues, masked RoI classification, optionally caption-image matching."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.encoder import EncoderConfig, dense, gelu, keys, layer_norm
from vlbert_jax.fast_rcnn import GEOMETRY_SIZE
from vlbert_jax.tasks.losses import counted, cross_entropy, soft_cross_entropy
from vlbert_jax.tasks.model import (
    PredictionHead,
    VisualLinguisticModel,
    at,
    is_frozen,
    model_options,
    without_image,
    without_words,
)
from vlbert_jax.tasks.pretrain_batches import batch_shapes, eval_batches, train_batches
from vlbert_jax.tasks.pretrain_examples import word_ids

__all__ = ["batch_shapes", "eval_batches", "is_frozen", "train_batches"]  # parts of the protocol that live elsewhere

LOSSES = ("mlm_caption", "mlm_text", "mrc", "relationship", "region")
TOP = 5  # guesses of a word or a region
NUM_GROUPS = 3  # groups whose scores are reported apart


class MLMHead(nnx.Module):
    """Hidden layer, GELU, norm; the decoder is the token table itself with a bias of its own."""

    def __init__(self, config: EncoderConfig, rows: int, rngs: nnx.Rngs):
        size = config.hidden_size
        self.vocab_size = config.vocab_size
        self.transform = dense(size, size, ("embed", None), config, rngs)
        self.norm = layer_norm(size, config.dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(rows), axes=("vocab",))

    def __call__(
        self, states: Float[Array, "... d"], table: Float[Array, "rows d"]
    ) -> Float[Array, "... rows"]:
        """float32 logits; rows of the table that are no words get -inf."""
        hidden = self.norm(gelu(self.transform(states)))
        logits = jnp.einsum(
            "...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        bias = jnp.where(jnp.arange(table.shape[0]) < self.vocab_size, self.bias[...], -jnp.inf)
        return logits + jnp.expand_dims(bias, tuple(range(logits.ndim - 1)))


class PretrainingModel(VisualLinguisticModel):
    """VL-BERT and the pre-training heads."""

    def __init__(
        self,
        encoder: EncoderConfig,
        fast_rcnn: dict,
        num_region_classes: int,
        *,
        relationship: bool = False,
        region_classifier: bool = False,
        rngs: nnx.Rngs,
    ):
        if relationship and not encoder.pooler:
            raise ValueError("the relationship loss reads the pooler: set model.encoder.pooler=True with it")
        super().__init__(encoder, fast_rcnn, rngs)
        self.mlm_head = MLMHead(encoder, self.vlbert.token_embeddings.shape[0], rngs)
        self.mrc_head = PredictionHead(encoder, num_region_classes, rngs)
        size = encoder.hidden_size
        self.relationship_head = dense(size, 2, ("embed", None), encoder, rngs) if relationship else None
        feature_size = self.fast_rcnn.projection.kernel.shape[0] - GEOMETRY_SIZE
        classifier = (
            dense(feature_size, num_region_classes, ("feature", None), encoder, rngs)
            if region_classifier
            else None
        )
        self.region_classifier = classifier

    def mlm_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b n m"]
    ) -> Float[Array, "b n m v"]:
        return self.mlm_head(at(states, positions), self.vlbert.token_embeddings[...])

    def mrc_logits(
        self, states: Float[Array, "b n s d"], positions: Int[Array, "b k"]
    ) -> Float[Array, "b k c"]:
        return self.mrc_head(at(states[:, 0], positions))

    def relationship_logits(self, states: Float[Array, "b n s d"]) -> Float[Array, "b 2"]:
        return self.relationship_head(self.vlbert.pool(states[:, 0])).astype(jnp.float32)


def build_model(config, rngs: nnx.Rngs) -> PretrainingModel:
    """The model of a config; see configs/pretrain.py for the fields. Raises ValueError where they contradict."""
    if config.opening.steps and not config.losses.region:
        raise ValueError("config.opening.steps trains the region head alone: set config.losses.region=1.0 with it")
    encoder, fast_rcnn = model_options(config)
    return PretrainingModel(
        encoder,
        fast_rcnn | dict(hidden_vector=not config.data.hide_pixels),
        config.model.num_region_classes,
        relationship=config.losses.relationship,
        region_classifier=config.losses.region > 0,
        rngs=rngs,
    )


def is_idle(path: tuple, config, names: tuple[str, ...]) -> bool:
    """What the phases of `active_losses` leave alone: all but the region head, or the region head."""
    of_region_head = path[0] == "region_classifier" or (path[0] == "fast_rcnn" and path[1] in ("backbone", "c5"))
    if set(names) == {"region"}:
        return not of_region_head
    return of_region_head and config.losses.region > 0 and "region" not in names


# --- Losses ---------------------------------------------------------------------------------------------------------


def active_losses(config, step: int) -> tuple[str, ...]:
    """Names of the losses that count at `step`.

    A run from scratch may open with a phase that trains the region head alone, on its auxiliary loss, and then keep it
    as it is for a while; afterwards everything is trained.
    """
    losses = config.losses
    if step < config.opening.steps:
        return ("region",)
    on = dict(
        mlm_caption=losses.mlm,
        mlm_text=losses.mlm and losses.text_only,
        mrc=losses.mrc,
        relationship=losses.relationship,
        region=losses.region > 0 and step >= losses.region_fixed_until,
    )
    return tuple(name for name in LOSSES if on[name])


def loss_weights(config) -> dict[str, float]:
    """All one in the official code, but for the auxiliary region classification."""
    return {name: config.losses.region if name == "region" else 1.0 for name in LOSSES}


def _chosen(config, field: str, *values: str) -> str:
    """`config.losses[field]`. Raises ValueError if it is none of `values`."""
    if config.losses[field] not in values:
        raise ValueError(f"config.losses.{field} is {config.losses[field]!r}, not one of {', '.join(values)}")
    return config.losses[field]


def _num_captions(batch: Batch) -> int:
    """How many of an example's sequences are captions: the first, or none, as without an image all is text alone."""
    return 0 if batch.boxes is None else 1


def _target_weights(batch: Batch, config, names) -> dict[str, tuple[Array, Array]]:
    """Per loss: the weight of each target, and what the weighted sum is divided by.

    `normalise="targets"`: the mean over targets; "examples": the mean over the targets of a sequence, then over the
    sequences that have any (official `*_LOSS_NORM_IN_BATCH_FIRST`, with its 1e-4).
    """
    masks = {}
    if batch.mlm_mask is not None:
        captions = _num_captions(batch)
        masks["mlm_caption"] = batch.mlm_mask[:, :captions]
        masks["mlm_text"] = batch.mlm_mask[:, captions:]
    if batch.mrc_mask is not None:
        masks["mrc"] = batch.mrc_mask
    if batch.relationship is not None:
        masks["relationship"] = batch.region_mask.any(axis=1)
    if batch.region_classes is not None:
        masks["region"] = batch.region_mask & ~batch.region_hidden & (batch.region_classes >= 0)
    examples_first = _chosen(config, "normalise", "targets", "examples") == "examples"
    weights = {}
    for name in names:
        mask = masks[name].astype(jnp.float32)
        if examples_first and name.startswith(("mlm", "mrc")):
            per_sequence = mask.sum(-1, keepdims=True)
            weights[name] = mask / (per_sequence + 1e-4), (per_sequence > 0).sum() + 1e-4
        else:
            weights[name] = mask, jnp.maximum(mask.sum(), 1.0)  # no target at all: a loss of 0
    return weights


def loss_counts(batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
    """What the sum of each loss is divided by; needs no model."""
    return {name: count for name, (_, count) in _target_weights(batch, config, names).items()}


def loss_sums(model: PretrainingModel, batch: Batch, key, config, names):
    """Sums of the losses called `names`, and training accuracies as (sum, count)."""
    key_project, key_encode = keys(key, 2)
    weights = {name: weight for name, (weight, _) in _target_weights(batch, config, names).items()}
    appearance = model.appearance(batch)
    if config.losses.region > 0 and "region" not in names:  # the phase in which the region head is fixed
        appearance = jax.lax.stop_gradient(appearance)
    sums, metrics = {}, {}

    def add(name, losses, hits, weight):
        sums[name] = jnp.sum(losses * weight)
        real = weight > 0
        metrics[f"{name}_accuracy"] = jnp.sum(hits & real), jnp.sum(real)

    if "region" in names:
        logits = model.region_classifier(appearance).astype(jnp.float32)
        classes = jnp.maximum(batch.region_classes, 0)
        add("region", cross_entropy(logits, classes), logits.argmax(-1) == classes, weights["region"])
    if set(names) == {"region"}:
        return sums, metrics

    states = model.encode(batch, model.region_states(batch, appearance, key_project), key_encode)
    if "mlm_caption" in names or "mlm_text" in names:
        logits = model.mlm_logits(states, batch.mlm_positions)
        losses, hits = cross_entropy(logits, batch.mlm_labels), logits.argmax(-1) == batch.mlm_labels
        captions = _num_captions(batch)
        for name, rows in (("mlm_caption", slice(0, captions)), ("mlm_text", slice(captions, None))):
            if name in names:
                add(name, losses[:, rows], hits[:, rows], weights[name])
    if "mrc" in names:
        logits = model.mrc_logits(states, batch.mrc_positions)
        best = batch.mrc_targets.argmax(-1)
        soft = _chosen(config, "mrc_targets", "soft", "hard") == "soft"
        losses = soft_cross_entropy(logits, batch.mrc_targets) if soft else cross_entropy(logits, best)
        add("mrc", losses, logits.argmax(-1) == best, weights["mrc"])
    if "relationship" in names:
        logits = model.relationship_logits(states)
        hits = logits.argmax(-1) == batch.relationship
        add("relationship", cross_entropy(logits, batch.relationship), hits, weights["relationship"])
    return sums, metrics


# --- Scores ---------------------------------------------------------------------------------------------------------


def score(model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Losses and accuracies of an evaluation batch, each beside its blind twin; (sum, count) per metric."""
    vocab_size = config.model.encoder.vocab_size
    appearance = model.appearance(batch)
    region_states = model.region_states(batch, appearance)
    states = model.encode(batch, region_states)
    metrics = {}
    kind = "text" if batch.boxes is None else "caption"

    def add(name, values, mask):
        metrics[name] = counted(values, mask)

    if config.losses.mlm:
        words_by = {"": states}
        if kind == "caption":
            words_by["_blind"] = model.encode(without_image(batch, vocab_size), None)
        for suffix, element_states in words_by.items():
            logits = model.mlm_logits(element_states, batch.mlm_positions)
            hits = logits.argmax(-1) == batch.mlm_labels
            add(f"mlm_{kind}_accuracy{suffix}", hits, batch.mlm_mask)
            add(f"mlm_{kind}_loss{suffix}", cross_entropy(logits, batch.mlm_labels), batch.mlm_mask)
            if kind == "caption" and config.data.visual_words:
                visual = jnp.isin(batch.mlm_labels, jnp.asarray(word_ids(config, config.data.visual_words)))
                visual &= batch.mlm_mask
                add(f"visual_word_accuracy{suffix}", hits, visual)
                for count in range(1, NUM_GROUPS + 1):
                    in_group = visual & (batch.group == count)[:, None, None]
                    add(f"visual_word_accuracy_objects_{count}{suffix}", hits, in_group)
    if kind == "caption" and config.losses.mrc:
        wordless = without_words(batch, config)
        best = batch.mrc_targets.argmax(-1)
        for suffix, element_states in {"": states, "_blind": model.encode(wordless, region_states)}.items():
            logits = model.mrc_logits(element_states, batch.mrc_positions)
            add(f"mrc_accuracy{suffix}", logits.argmax(-1) == best, batch.mrc_mask)
            add(f"mrc_loss{suffix}", soft_cross_entropy(logits, batch.mrc_targets), batch.mrc_mask)
    if kind == "caption" and config.losses.relationship:
        logits = model.relationship_logits(states)
        add("relationship_accuracy", logits.argmax(-1) == batch.relationship, batch.region_mask.any(1))
    if kind == "caption" and config.losses.region > 0:
        hits = model.region_classifier(appearance).argmax(-1) == batch.region_classes
        add("region_accuracy", hits, _target_weights(batch, config, ("region",))["region"][0] > 0)
    return metrics


def guesses(logits: Float[Array, "... c"]) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """Probabilities and numbers of the best classes, at most five."""
    return tuple(jax.lax.top_k(jax.nn.softmax(logits), min(TOP, logits.shape[-1])))


def guess_words(model: PretrainingModel, batch: Batch, states: Float[Array, "b n s d"], config) -> dict[str, tuple]:
    """`guesses` of the words at `mlm_positions`: `words` from the states, `words_blind` without the image."""
    blind = model.encode(without_image(batch, config.model.encoder.vocab_size), None)
    encoded = {"words": states, "words_blind": blind}
    return {name: guesses(model.mlm_logits(these, batch.mlm_positions)) for name, these in encoded.items()}


def write_report(directory, model: PretrainingModel, config, history: list[dict]) -> None:
    """The run's page for people, `directory`/index.html."""
    from vlbert_jax.tasks import pretrain_report  # it reads this module

    pretrain_report.write_report(directory, model, config, history)
