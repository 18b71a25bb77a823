"""Probes of a pre-trained model: which modality predicts the other, and where heads look from masked words.

Removal follows the cross-modal input ablation of Frank, Bugliarello and Elliott (2021, "Vision-and-Language or
Vision-for-Language?"): the words of a caption are predicted with fewer and fewer regions, and the classes of hidden
regions with fewer and fewer words. Two things are different here. There a removed region keeps its place with a feature
of zeros. Here it leaves the sequence, because architectures differ in what hides a region (pixels, a learned vector,
zeros, nothing), and because the image without any region is then the text alone of `visual_word_accuracy_blind`. And
its pixels are set to the mean color, so that neither the whole image nor another region shows it.
A removed word becomes [MASK], as there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlbert_jax.batch import END, IMG, NO_IMAGE, Batch
from vlbert_jax.data.tokenizer import masking_ids, tokenizer_of
from vlbert_jax.model.region_head import prepare_pixels, under_boxes
from vlbert_jax.model.visual_linguistic import flat_images, split_images, without_words
from vlbert_jax.tasks.losses import counted, cross_entropy, soft_cross_entropy
from vlbert_jax.tasks.pretrain.examples import word_ids
from vlbert_jax.tasks.pretrain.losses import target_masks
from vlbert_jax.tasks.pretrain.model import PretrainingModel


def probe(model: PretrainingModel, batch: Batch, config) -> dict[str, Any]:
    """Return the sums of a batch of `aligned.probe_batches`.

    Returns:
        `sums`: metric -> (sum, count), each [levels], or for attention [layers, heads]. `shown`: of the first masked
        word that counts for attention: whether there is one, its row and its number among the masked words of the row,
        and its attention to each region, [layers, heads, r].
    """
    sums = {}
    if config.losses.mlm:
        sums |= _predicted_words(model, batch, config)
    if batch.targets.mrc_mask is not None and (config.losses.mrc or config.losses.get("objects", False)):
        sums |= _predicted_regions(model, batch, config)
    of_attention, shown = _attention_sums(model, batch, config)
    return dict(sums=sums | of_attention, shown=shown)


# --- Words from fewer regions ----------------------------------------------------------------------------


def _predicted_words(model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Return accuracy and loss of masked words at each level; "visual" are those that only the image determines."""
    targets = batch.targets
    words = target_masks(batch, config)["mlm_caption"]
    if config.data.visual_words:
        visual = words & jnp.isin(targets.mlm_labels, jnp.asarray(word_ids(config, config.data.visual_words)))
    else:
        visual = words & _named_regions(batch).any(-1)[:, None]

    def at(removed: Bool[Array, "b r"]) -> dict[str, tuple[Array, Array]]:
        logits = model.mlm_logits(states_without(model, batch, removed), targets.mlm_positions)
        hits, losses = logits.argmax(-1) == targets.mlm_labels, cross_entropy(logits, targets.mlm_labels)
        return _both("words", hits, losses, words) | _both("visual_words", hits, losses, visual)

    return jax.lax.map(at, targets.removed_regions.swapaxes(0, 1))  # one program for all levels


def _both(name: str, hits, losses, mask) -> dict[str, tuple[Array, Array]]:
    return {f"{name}.accuracy": counted(hits, mask), f"{name}.loss": counted(losses, mask)}


def _named_regions(batch: Batch) -> Bool[Array, "b k r"]:
    """Return which regions each masked word of a caption names."""
    targets = batch.targets
    found = jnp.take_along_axis(targets.named, targets.mlm_positions[:, 0, :, None], axis=1, mode="clip")
    return found & targets.mlm_mask[:, 0, :, None]


def states_without(model: PretrainingModel, batch: Batch, removed: Bool[Array, "b r"]) -> Any:
    """Return the states of a batch without some regions; without any, and the whole image, those of text alone.

    With precomputed features the whole image's is the mean of the regions that are left, where one is removed; which
    of several boxes beyond `max_regions` counted in it is not known.
    """
    kept = batch.region_mask & ~removed
    is_region = (batch.token_ids >= model.vocab_size + IMG) & (batch.token_ids != model.vocab_size + END)
    without = jnp.take_along_axis(removed[:, None], batch.region_ids, axis=2, mode="clip") & (batch.region_ids >= 0)
    left = batch.replace(
        region_mask=kept,
        element_mask=batch.element_mask & ~(is_region & without),
        region_ids=jnp.where(without, NO_IMAGE, batch.region_ids),
    )
    if batch.pixels is not None:
        left = left.replace(pixels=_without_pixels(model, batch, removed))
    else:
        seen = kept & ~batch.region_hidden & _boxes_alone(batch)
        mean = jnp.einsum("br,brg->bg", seen, batch.region_features) / jnp.maximum(seen.sum(1), 1)[:, None]
        changed = removed.any(1)[:, None] & ~_boxes_alone(batch)
        left = left.replace(region_features=jnp.where(changed[..., None], mean[:, None], batch.region_features))
    # Two streams without any region read all of the masked ones, which have features and geometry of zeros, as the one
    # region has that the blind baseline reads (two_stream_batch.encode); so the states are the same.
    return model.encode(left, model.region_states(left, model.appearance(left)))


def _boxes_alone(batch: Batch) -> Bool[Array, "1 r"]:
    """Return which rows of the regions are not the whole image."""
    return (jnp.arange(batch.region_mask.shape[1]) > 0)[None]


def _without_pixels(model: PretrainingModel, batch: Batch, removed: Bool[Array, "b r"]) -> Float[Array, "b m y x 3"]:
    """Return the prepared images with the mean color under removed regions, and under those that training blanks."""
    blanked = removed if model.fast_rcnn.hides_features else removed | batch.region_hidden
    blanked = split_images(batch, blanked & _boxes_alone(batch))  # no element carries a whole image that is removed
    boxes, size = split_images(batch, batch.boxes), flat_images(batch.image_size)
    pixels = prepare_pixels(flat_images(batch.pixels), size)
    pixels = jnp.where(under_boxes(boxes, blanked, *pixels.shape[1:3])[..., None], 0, pixels)
    return pixels.reshape(batch.pixels.shape)


# --- Regions from fewer words ----------------------------------------------------------------------------


def _predicted_regions(model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
    """Return accuracy and loss of hidden regions at each level; "named" are those that the caption names.

    Their classes are those of the head of hidden regions or, where the model has LXMERT's head alone, its objects.
    """
    targets = batch.targets
    regions = model.region_states(batch, model.appearance(batch))
    asked = target_masks(batch, config)["mrc"]
    named = asked & jnp.take_along_axis(targets.named.any(1), targets.mrc_regions, axis=1, mode="clip")

    def at(removed: Bool[Array, "b s"]) -> dict[str, tuple[Array, Array]]:
        states = model.encode(without_words(batch, *masking_ids(config), removed[:, None]), regions)
        if config.losses.mrc:
            logits = model.mrc_logits(states, targets.mrc_positions)
            hits = logits.argmax(-1) == targets.mrc_targets.argmax(-1)
            losses = soft_cross_entropy(logits, targets.mrc_targets)
        else:
            logits = model.visual_predictions(states)["objects"]
            rows = targets.mrc_regions - (batch.region_mask.shape[1] - logits.shape[1])
            logits = jnp.take_along_axis(logits, rows[..., None], axis=1, mode="clip")
            best = jnp.take_along_axis(targets.objects, targets.mrc_regions, axis=1, mode="clip")
            hits, losses = logits.argmax(-1) == best, cross_entropy(logits, jnp.maximum(best, 0))
        return _both("regions", hits, losses, asked) | _both("named_regions", hits, losses, named)

    return jax.lax.map(at, targets.removed_words.swapaxes(0, 1))


# --- Attention -------------------------------------------------------------------------------------------


def attention_to_regions(model: PretrainingModel, batch: Batch) -> Float[Array, "layers b heads k r"]:
    """Return the attention of each masked word of a caption to each region, row 0 being the whole image.

    In two streams the layers are the cross-attentions. What the model does not read has zeros.
    """
    positions, r = batch.targets.mlm_positions[:, 0], batch.region_mask.shape[1]
    _, maps = model.attention(batch)
    if model.two_stream is None:
        is_region = (batch.token_ids >= model.vocab_size + IMG) & (batch.token_ids != model.vocab_size + END)
        rows = is_region[:, 0, :, None] & (batch.region_ids[:, 0, :, None] == jnp.arange(r)[None, None])
        rows = (rows & batch.element_mask[:, 0, :, None]).astype(jnp.float32)
        asked = _at(maps[:, :, 0].astype(jnp.float32), positions)
        return jnp.einsum("lbhks,bsr->lbhkr", asked, rows)
    maps = maps["words to regions"][:, :, 0].astype(jnp.float32)
    behind_task = maps.shape[3] - batch.token_ids.shape[2]  # the token of the task follows [CLS]
    asked = _at(maps, positions + behind_task)
    return jnp.pad(asked, [(0, 0)] * 4 + [(r - asked.shape[-1], 0)])


def _at(maps: Float[Array, "l b h q k"], positions) -> Float[Array, "l b h p k"]:
    return jnp.take_along_axis(maps, positions[None, :, None, :, None], axis=3, mode="clip")


def _attention_sums(model: PretrainingModel, batch: Batch, config) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the sums of attention over masked words, and what is shown of the first (`probe`).

    A word counts if it is [MASK], names a region, none of those that it names is hidden, and there are others. `right`
    is the attention on the regions that it names as a share of that on all regions, without the whole image. `chance`
    is the share of these regions in their number, which uniform attention has. `regions` is the attention on all
    regions.
    """
    attention, right = attention_to_regions(model, batch), _named_regions(batch)
    real = batch.region_mask & _boxes_alone(batch)
    of_masked = jnp.take_along_axis(batch.token_ids[:, 0], batch.targets.mlm_positions[:, 0], axis=1, mode="clip")
    number = right.sum(-1)
    counts = (of_masked == tokenizer_of(config).mask_id) & (number > 0) & (number < real.sum(-1)[:, None])
    counts &= ~(right & batch.region_hidden[:, None]).any(-1)
    to_regions = jnp.where(real[None, :, None, None], attention, 0)
    on_regions = to_regions.sum(-1)
    on_right = jnp.where(right[None, :, None], to_regions, 0).sum(-1)
    shares = on_right / jnp.maximum(on_regions, 1e-30)
    chance = number / jnp.maximum(real.sum(-1), 1)[:, None]

    def summed(values: Float[Array, "l b h k"]) -> tuple[Array, Array]:
        return jnp.where(counts[None, :, None], values, 0).sum((1, 3)), counts.sum()

    sums = {"attention.right": summed(shares), "attention.regions": summed(on_regions)}
    sums["attention.chance"] = jnp.where(counts, chance, 0).sum(), counts.sum()
    row, word = jnp.divmod(counts.argmax(), counts.shape[1])
    shown = dict(found=counts.any(), row=row, word=word, attention=to_regions[:, row, :, word])
    return sums, shown
