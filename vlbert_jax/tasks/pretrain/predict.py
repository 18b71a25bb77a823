"""The most probable words and region classes at masked places."""

from typing import Any

import jax
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Batch
from vlbert_jax.model.visual_linguistic import (
    without_image,
)
from vlbert_jax.tasks.pretrain.model import PretrainingModel

TOP = 5  # guesses of a word or a region


def guesses(logits: Float[Array, "... c"]) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """Return the probabilities and numbers of the best classes, at most five."""
    return tuple(jax.lax.top_k(jax.nn.softmax(logits), min(TOP, logits.shape[-1])))


def guess_words(model: PretrainingModel, batch: Batch, states: Any, config) -> dict[str, tuple]:
    """Return `guesses` at the masked words: `words` from the states, `words_blind` without the image."""
    blind = model.encode(without_image(batch, config.model.encoder.vocab_size), None)
    encoded = {"words": states, "words_blind": blind}
    return {name: guesses(model.mlm_logits(these, batch.targets.mlm_positions)) for name, these in encoded.items()}
