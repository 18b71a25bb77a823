"""What weights expect of the regions that they read, and whether the regions of an image are such."""

from __future__ import annotations

import ml_collections

from vlbert_jax.data.examples import is_precomputed
from vlbert_jax.detector.regions import Regions
from vlbert_jax.weights.sibling_config import BOTTOM_UP, TOKENIZERS


def vocabulary_of(config: ml_collections.ConfigDict) -> str:
    """Return which vocabulary has the size of the model's, as a sentence; "" where no published one has."""
    name = TOKENIZERS.get(config.model.encoder.vocab_size)
    return f" That of {name} has its {config.model.encoder.vocab_size:,} tokens." if name else ""


def check_features(path: str, config: ml_collections.ConfigDict, found: Regions) -> None:
    """Raise ValueError where features have another width than those that a model was trained on, or another detector.

    A detector is known to be another where the weights expect one that this package does not have.
    """
    width, expects = config.model.feature_size, config.data.get("expects", "")
    if found.features is None or not is_precomputed(config):
        return
    if found.features.shape[1] == width:
        if found.extractor and expects not in ("", BOTTOM_UP):
            raise ValueError(
                f"{path} reads features of {expects}, but those of {found.source} are of {BOTTOM_UP}: give a file of "
                "boxes with features of the former: --boxes of the command, boxes in Python."
            )
        return
    given, own = found.features.shape[1], config.model.get("architecture", "vlbert")
    extra = " The last six of Oscar's own features are the box: leave them out." if given == width + 6 else ""
    raise ValueError(
        f"{found.source}: the features have {given} numbers per region, but {path} ({own}) reads {width}"
        f"{', those of ' + expects if expects else ''}.{extra} Give features of the detector that the weights expect."
    )


def expectation_of(config: ml_collections.ConfigDict) -> str:
    """Return which detector published weights expect, as a sentence; "" where they read images, or nothing is known."""
    expects = config.data.get("expects", "") if is_precomputed(config) else ""
    return expects and f"the weights expect features of {expects}"


def origin_of_features(config: ml_collections.ConfigDict, found: Regions) -> str:
    """Return which detector published weights expect and whether the features are its own, "" where nothing is known.

    Such weights carry no fingerprint, so the detector's kind is all that can be compared.
    """
    expectation = expectation_of(config)
    if not expectation or found.features is None:
        return ""
    if not found.extractor:
        return f"{expectation}; which detector these are of is not known"
    return f"{expectation}; these are of one of that kind"
