"""What a run for one task takes of a sibling's weights for another one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlbert_jax.tasks import PRETRAINING, get_task
from vlbert_jax.weights.family_names import SEGMENTS


def without_heads(tensors: Mapping[str, np.ndarray], task: str, architecture: str) -> dict[str, np.ndarray]:
    """Return weights of a sibling for `task` without its heads, but for those layers that pre-training has, too."""
    names, shared = (get_task(name).family_names.get(architecture, {}).values() for name in (task, PRETRAINING))
    heads = tuple(f"{name}." for name in names if name not in shared)
    return {name: array for name, array in tensors.items() if not name.startswith(heads)}


def with_start_of_retrieval(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return weights with a head for retrieval if they are UNITER's: the row "belongs" of that of pre-training."""
    pairs = {f"rank_output.{leaf}": f"itm_output.{leaf}" for leaf in ("weight", "bias")}
    return {new: tensors[old][1:] for new, old in pairs.items() if old in tensors} | dict(tensors)


def with_new_segments(
    tensors: Mapping[str, np.ndarray], task: str, architecture: str, rows: int
) -> dict[str, np.ndarray]:
    """Return weights whose table of segments has `rows` rows if the task says which rows the new ones start from."""
    table, sources = tensors.get(SEGMENTS), get_task(task).family_segments_from.get(architecture, {})
    if table is None or not all(row in sources for row in range(len(table), rows)):
        return dict(tensors)
    new = [table[sources[row]] for row in range(len(table), rows)]
    return dict(tensors) | {SEGMENTS: np.stack([*table, *new])}
