"""The targets of pre-training, and the names of its losses."""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, padding

VISUAL_LOSSES = ("objects", "attributes", "features")  # of LXMERT's head of regions
LOSSES = ("mlm_caption", "mlm_text", "mrc", "relationship", "region", "regression", "transport")
LOSSES = (*LOSSES, *VISUAL_LOSSES, "answers")


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainTargets(Arrays):
    """Masked words, hidden regions and the relationship; sparse, so that only these positions reach the heads.

    Axes: `k` masked words per sequence, `h` hidden regions, `c` region classes, `w` swapped regions.
    """

    mlm_positions: Int[Array | np.ndarray, "b n k"] | None = padding(0, default=None)  # elements of masked words
    mlm_labels: Int[Array | np.ndarray, "b n k"] | None = padding(0, default=None)  # their token ids
    mlm_mask: Bool[Array | np.ndarray, "b n k"] | None = padding(False, default=None)
    mrc_regions: Int[Array | np.ndarray, "b h"] | None = padding(0, default=None)  # rows of hidden regions
    mrc_positions: Int[Array | np.ndarray, "b h"] | None = padding(0, default=None)  # their elements in sequence 0
    mrc_targets: Float[Array | np.ndarray, "b h c"] | None = padding(0, default=None)  # the detector's distribution
    mrc_mask: Bool[Array | np.ndarray, "b h"] | None = padding(False, default=None)
    # Rows of regions that the model sees with the feature of another image's region, 0 = none, and these features.
    swap_rows: Int[Array | np.ndarray, "b w"] | None = padding(0, default=None)
    swap_features: Float[Array | np.ndarray, "b w g"] | None = padding(0, default=None)
    # 1 = caption belongs to image, 0 = it does not, 2 = the names of regions do not.
    relationship: Int[Array | np.ndarray, "b"] | None = padding(0, default=None)
    region_classes: Int[Array | np.ndarray, "b r"] | None = padding(-1, default=None)  # most probable class; -1 = none
    # Most probable object and attribute of each region, without the background, from 0; -1 = none. And their scores.
    objects: Int[Array | np.ndarray, "b r"] | None = padding(-1, default=None)
    object_scores: Float[Array | np.ndarray, "b r"] | None = padding(0, default=None)
    attributes: Int[Array | np.ndarray, "b r"] | None = padding(-1, default=None)
    attribute_scores: Float[Array | np.ndarray, "b r"] | None = padding(0, default=None)
    answer: Int[Array | np.ndarray, "b"] | None = padding(-1, default=None)  # of a question; -1 = none
    group: Int[Array | np.ndarray, "b"] | None = padding(0, default=None)  # objects in the scene: scores by group


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeTargets(PretrainTargets):
    """The targets of a batch that is probed; `l` are the levels of aligned.py."""

    named: Bool[Array | np.ndarray, "b s r"] | None = padding(False, default=None)  # token of sequence 0 names region
    removed_regions: Bool[Array | np.ndarray, "b l r"] | None = padding(False, default=None)
    removed_words: Bool[Array | np.ndarray, "b l s"] | None = padding(False, default=None)  # of sequence 0
