"""Pre-training losses as sums and counts over the global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlbert_jax.batch import END, IMG, Batch
from vlbert_jax.model.config import architecture_of
from vlbert_jax.model.layers import split_keys
from vlbert_jax.tasks.losses import cross_entropy, divergence, soft_cross_entropy
from vlbert_jax.tasks.pretrain.model import PretrainingModel
from vlbert_jax.tasks.pretrain.objectives import shares
from vlbert_jax.tasks.pretrain.targets import VISUAL_LOSSES
from vlbert_jax.tasks.pretrain.transport import transport_distances
from vlbert_jax.tasks.two_stream_losses import lxmert_visual_losses


def _chosen(config, field: str, *values: str) -> str:
    """Return `config.losses[field]`; raise ValueError if it is not one of `values`."""
    if config.losses[field] not in values:
        raise ValueError(f"config.losses.{field} is {config.losses[field]!r}, not one of {', '.join(values)}")
    return config.losses[field]


def _num_captions(batch: Batch) -> int:
    """Return how many sequences of an example are captions: one, or none in a batch without images."""
    return 0 if batch.boxes is None else 1


def target_masks(batch: Batch, config) -> dict[str, Bool[Array, "..."]]:
    """Return which targets count, for each loss that the batch has targets of, but for LXMERT's losses of regions.

    With `config.losses.only_matched`, and where words and regions are learned from captions of their image alone
    (`config.losses.ratios`), those of an image with the caption of another count in no loss.
    """
    masks = {}
    if batch.targets.mlm_mask is not None:
        captions = _num_captions(batch)
        masks["mlm_caption"] = batch.targets.mlm_mask[:, :captions]
        masks["mlm_text"] = batch.targets.mlm_mask[:, captions:]
    if batch.targets.mrc_mask is not None:
        masks["mrc"] = masks["regression"] = batch.targets.mrc_mask
    if batch.targets.relationship is not None:
        masks["relationship"] = masks["transport"] = batch.region_mask.any(axis=1)
    if batch.targets.answer is not None:
        masks["answers"] = batch.targets.answer >= 0
    if batch.targets.region_classes is not None:
        masks["region"] = batch.region_mask & ~batch.region_hidden & (batch.targets.region_classes >= 0)
    only_matched = config.losses.get("only_matched", False) or bool(shares(config))
    if only_matched and batch.targets.relationship is not None:
        matched = (batch.targets.relationship == 1)[:, None]
        for name in {"mlm_caption", "mrc", "regression"} & masks.keys():
            masks[name] = masks[name] & (matched[..., None] if name == "mlm_caption" else matched)
    return masks


def target_weights(batch: Batch, config, names) -> dict[str, tuple[Array, Array]]:
    """Return, for each loss, the weight of each target and what the weighted sum is divided by.

    `config.losses.normalize`: "targets" is the mean over targets; "examples" is the mean over the targets
    of a sequence, then over the sequences that have any (`*_LOSS_NORM_IN_BATCH_FIRST` of the official
    code, with its 1e-4). LXMERT's losses of regions are divided by the number of rows of regions.
    """
    masks = target_masks(batch, config)
    examples_first = _chosen(config, "normalize", "targets", "examples") == "examples"
    weights = {}
    for name in names:
        if name in VISUAL_LOSSES:
            _, real = _read_rows(batch, config)
            weights[name] = real.astype(jnp.float32), jnp.maximum(jnp.sum(real.any(1)) * real.shape[1], 1.0)
            continue
        mask = masks[name].astype(jnp.float32)
        if examples_first and name.startswith(("mlm", "mrc")):
            per_sequence = mask.sum(-1, keepdims=True)
            weights[name] = mask / (per_sequence + 1e-4), (per_sequence > 0).sum() + 1e-4
        else:
            weights[name] = mask, jnp.maximum(mask.sum(), 1.0)  # no target at all: a loss of 0
    return weights


def _read_rows(batch: Batch, config) -> tuple[slice, Bool[Array, "b r"]]:
    """Return the rows of the regions that the model reads, and which of these are real."""
    rows = slice(0 if architecture_of(config).whole_image else 1, None)
    return rows, batch.region_mask[:, rows]


def visual_losses(model: PretrainingModel, states, batch: Batch, appearance, config, names) -> dict[str, Array]:
    """Return the sums of LXMERT's losses of regions in `names`; `states` are those of two streams."""
    rows, real = _read_rows(batch, config)
    targets = batch.targets
    numbers = jnp.arange(batch.region_mask.shape[1])[None, :, None]
    asked = ((targets.mrc_regions[:, None] == numbers) & targets.mrc_mask[:, None]).any(-1)

    def of_classes(suffix: str) -> dict[str, Array]:
        kinds = [name for name in ("objects", "attributes") if name in names]
        return {name: getattr(targets, name.removesuffix("s") + suffix)[:, None, rows] for name in kinds}

    predictions = {name: values[:, None] for name, values in model.visual_predictions(states).items()}
    losses = lxmert_visual_losses(
        predictions,
        labels=of_classes("s"),
        confidences=of_classes("_scores"),
        features=jax.lax.stop_gradient(appearance)[:, None, rows],
        hidden=asked[:, None, rows],
        region_mask=real[:, None],
    )
    return {name: losses[name][0] for name in names}


def _region_class_losses(logits: Float[Array, "b h c"], targets: Float[Array, "b h c"], config):
    """Return the loss of each hidden region and the class that counts as right.

    `config.losses.mrc_targets`: "soft" is the cross-entropy with the detector's distribution, "hard" with
    its best class, "object" with its best class that is not the background (class 0), "kl" the
    Kullback-Leibler divergence, averaged over the classes (UNITER), and "kl_sum" the same, summed (ViLBERT).
    """
    kind = _chosen(config, "mrc_targets", "soft", "hard", "object", "kl", "kl_sum")
    best = targets[..., 1:].argmax(-1) + 1 if kind == "object" else targets.argmax(-1)
    if kind in ("hard", "object"):
        return cross_entropy(logits, best), best
    losses = soft_cross_entropy(logits, targets)
    if kind == "soft":
        return losses, best
    losses = divergence(losses, targets)
    return losses / logits.shape[-1] if kind == "kl" else losses, best


def loss_counts(batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
    """Return what the sum of each loss is divided by; this needs no model."""
    return {name: count for name, (_, count) in target_weights(batch, config, names).items()}


def loss_sums(model: PretrainingModel, batch: Batch, key, config, names):
    """Return the sums of the losses in `names`, and training accuracies as (sum, count)."""
    key_project, key_encode = split_keys(key, 2)
    weights = {name: weight for name, (weight, _) in target_weights(batch, config, names).items()}
    appearance = model.appearance(batch)
    if config.losses.region > 0 and "region" not in names:  # the phase in which the region head is fixed
        appearance = jax.lax.stop_gradient(appearance)
    sums, metrics = {}, {}

    def add(name, losses, hits, weight):
        real = weight > 0
        sums[name] = jnp.sum(jnp.where(real, losses, 0) * weight)
        metrics[f"{name}_accuracy"] = jnp.sum(hits & real), jnp.sum(real)

    if "region" in names:
        logits = model.region_classifier(appearance).astype(jnp.float32)
        classes = jnp.maximum(batch.targets.region_classes, 0)
        add("region", cross_entropy(logits, classes), logits.argmax(-1) == classes, weights["region"])
    if set(names) == {"region"}:
        return sums, metrics

    states = model.encode(batch, model.region_states(batch, with_swaps(appearance, batch), key_project), key_encode)
    if "mlm_caption" in names or "mlm_text" in names:
        logits = model.mlm_logits(states, batch.targets.mlm_positions)
        losses, hits = cross_entropy(logits, batch.targets.mlm_labels), logits.argmax(-1) == batch.targets.mlm_labels
        captions = _num_captions(batch)
        for name, rows in (("mlm_caption", slice(0, captions)), ("mlm_text", slice(captions, None))):
            if name in names:
                add(name, losses[:, rows], hits[:, rows], weights[name])
    if "mrc" in names:
        logits = model.mrc_logits(states, batch.targets.mrc_positions)
        # A NaN in padding would reach the gradient as 0 * NaN.
        targets = jnp.where(batch.targets.mrc_mask[..., None], batch.targets.mrc_targets, 0)
        losses, best = _region_class_losses(logits, targets, config)
        add("mrc", losses, logits.argmax(-1) == best, weights["mrc"])
    if "regression" in names:
        sums["regression"] = jnp.sum(regression_errors(model, states, batch, appearance) * weights["regression"])
    key_pool = None if key is None else jax.random.fold_in(key_encode, 1)
    if "answers" in names:
        logits, answers = model.question_logits(states, key_pool, batch.token_ids), jnp.maximum(batch.targets.answer, 0)
        add("answers", cross_entropy(logits, answers), logits.argmax(-1) == answers, weights["answers"])
    if "relationship" in names:
        logits = model.relationship_logits(states, key_pool, batch.token_ids)
        hits = logits.argmax(-1) == batch.targets.relationship
        add("relationship", cross_entropy(logits, batch.targets.relationship), hits, weights["relationship"])
    if chosen := tuple(name for name in VISUAL_LOSSES if name in names):
        sums |= visual_losses(model, states, batch, appearance, config, chosen)
    if "transport" in names:
        distances = signed_distances(model, states, batch)
        sums["transport"] = jnp.sum(jnp.where(weights["transport"] > 0, distances, 0) * weights["transport"])
    return sums, metrics


def with_swaps(appearance: Float[Array, "b r g"] | None, batch: Batch) -> Float[Array, "b r g"] | None:
    """Return what the model sees of the regions: some have the appearance of another image's region (LXMERT)."""
    rows = batch.targets.swap_rows
    if rows is None or appearance is None:
        return appearance
    places = jnp.where(rows > 0, rows, appearance.shape[1])  # out of range: not written
    return appearance.at[jnp.arange(len(rows))[:, None], places].set(batch.targets.swap_features, mode="drop")


def regression_errors(model: PretrainingModel, states, batch: Batch, appearance) -> Float[Array, "b h"]:
    """Return the mean squared error of the features of each hidden region, 0 where there is none."""
    given = jnp.take_along_axis(appearance, batch.targets.mrc_regions[..., None], axis=1, mode="clip")
    errors = model.regressed_features(states, batch.targets.mrc_positions) - jax.lax.stop_gradient(given)
    return jnp.mean(jnp.where(batch.targets.mrc_mask[..., None], errors, 0) ** 2, axis=-1)


def signed_distances(model: PretrainingModel, states, batch: Batch) -> Float[Array, "b"]:
    """Return the distance of words and regions of each pair; of pairs that do not belong together its negative.

    So pairs that belong together come closer, and the others move apart.
    """
    ids, real, vocab_size = batch.token_ids[:, 0], batch.element_mask[:, 0], model.vocab_size
    is_region = (ids >= vocab_size + IMG) & (ids != vocab_size + END)
    distances = transport_distances(states[:, 0], real & (ids < vocab_size), real & is_region)
    return jnp.where(batch.targets.relationship == 1, distances, -distances)
