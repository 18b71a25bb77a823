"""The scores of evaluation: losses and accuracies, each next to its blind baseline."""

import jax.numpy as jnp
from jaxtyping import Array

from vlbert_jax.batch import Batch
from vlbert_jax.data.tokenizer import masking_ids
from vlbert_jax.model.visual_linguistic import without_image, without_words
from vlbert_jax.tasks.losses import counted, cross_entropy, soft_cross_entropy
from vlbert_jax.tasks.pretrain.examples import word_ids
from vlbert_jax.tasks.pretrain.losses import regression_errors, signed_distances, target_masks
from vlbert_jax.tasks.pretrain.model import PretrainingModel

NUM_GROUPS = 3  # groups whose scores are reported separately


def score(model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Return metric -> (sum, count) of an evaluation batch, for all losses of the config (`Task.score`)."""
    appearance = model.appearance(batch)
    region_states = model.region_states(batch, appearance)
    states = model.encode(batch, region_states)
    metrics, targets, losses = {}, batch.targets, config.losses
    masks, is_caption = target_masks(batch, config), batch.boxes is not None
    kind = "caption" if is_caption else "text"

    def add(name, values, mask):
        metrics[name] = counted(values, mask)

    if losses.mlm:
        words, words_by = masks[f"mlm_{kind}"], {"": states}
        if is_caption:
            words_by["_blind"] = model.encode(without_image(batch, config.model.encoder.vocab_size), None)
        for suffix, element_states in words_by.items():
            logits = model.mlm_logits(element_states, targets.mlm_positions)
            hits = logits.argmax(-1) == targets.mlm_labels
            add(f"mlm_{kind}_accuracy{suffix}", hits, words)
            add(f"mlm_{kind}_loss{suffix}", cross_entropy(logits, targets.mlm_labels), words)
            if is_caption and config.data.visual_words:
                visual = words & jnp.isin(targets.mlm_labels, jnp.asarray(word_ids(config, config.data.visual_words)))
                add(f"visual_word_accuracy{suffix}", hits, visual)
                for count in range(1, NUM_GROUPS + 1):
                    in_group = visual & (targets.group == count)[:, None, None]
                    add(f"visual_word_accuracy_objects_{count}{suffix}", hits, in_group)
    if not is_caption:
        return metrics
    if losses.mrc:
        wordless = without_words(batch, *masking_ids(config))
        best = targets.mrc_targets.argmax(-1)
        for suffix, element_states in {"": states, "_blind": model.encode(wordless, region_states)}.items():
            logits = model.mrc_logits(element_states, targets.mrc_positions)
            add(f"mrc_accuracy{suffix}", logits.argmax(-1) == best, masks["mrc"])
            add(f"mrc_loss{suffix}", soft_cross_entropy(logits, targets.mrc_targets), masks["mrc"])
    if losses.relationship:
        logits = model.relationship_logits(states, None, batch.token_ids)
        add("relationship_accuracy", logits.argmax(-1) == targets.relationship, masks["relationship"])
    if losses.get("answers", False):
        logits = model.question_logits(states, None, batch.token_ids)
        add("answers_accuracy", logits.argmax(-1) == targets.answer, masks["answers"])
        add("answers_loss", cross_entropy(logits, jnp.maximum(targets.answer, 0)), masks["answers"])
    if losses.get("regression", False):
        add("regression_loss", regression_errors(model, states, batch, appearance), masks["regression"])
    if losses.get("transport", 0.0):
        add("transport_loss", signed_distances(model, states, batch), masks["transport"])
    if losses.get("objects", False):
        hits = model.visual_predictions(states)["objects"].argmax(-1)
        known = targets.objects[:, -hits.shape[1] :]
        add("objects_accuracy", hits == known, known >= 0)
    if losses.region > 0:
        hits = model.region_classifier(appearance).argmax(-1) == targets.region_classes
        add("region_accuracy", hits, masks["region"])
    return metrics
