"""What a run for one task takes of a sibling's weights for another one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.tasks import PRETRAINING, get_task
from vlbert_jax.weights.family_names import MLM_BIAS, SEGMENTS, WORDS, family_of

OBJECT_WORDS = 81  # words for objects that UNITER's second stage of pre-training adds; their order is not published


def without_heads(tensors: Mapping[str, np.ndarray], task: str, architecture: str) -> dict[str, np.ndarray]:
    """Return weights of a sibling for `task` without its heads, but for those layers that pre-training has, too."""
    names, shared = (get_task(name).family_names.get(architecture, {}).values() for name in (task, PRETRAINING))
    modules = family_of(get_architecture(architecture)).modules if get_architecture(architecture).streams == 1 else {}
    own = [name for module, name in modules.items() if module.startswith(("pair_", "matching_"))]
    heads = tuple(f"{name}." for name in (*names, *own) if name not in shared)
    return {name: array for name, array in tensors.items() if not name.startswith(heads)}


def with_start_of_retrieval(tensors: Mapping[str, np.ndarray], outputs: int) -> dict[str, np.ndarray]:
    """Return weights of pre-training with the start of a head for retrieval: UNITER's is the head of pre-training.

    Args:
        tensors: Name, as `to_bert_names` has it, -> tensor.
        outputs: Outputs of the run's head: one is the row "belongs", two are both rows. Heads with another number of
            outputs are left out.
    """
    heads = ("rank_output.", "vil_logit.")
    kept = {name: a for name, a in tensors.items() if not name.startswith(heads) or len(a) == outputs}
    pairs = {f"rank_output.{leaf}": f"itm_output.{leaf}" for leaf in ("weight", "bias")}
    return {new: tensors[old][2 - outputs :] for new, old in pairs.items() if old in tensors} | kept


def with_segments(
    tensors: Mapping[str, np.ndarray], task: str, architecture: str, rows: int
) -> dict[str, np.ndarray]:
    """Return weights of pre-training or of a BERT with the segments that a task adds, as copies of other segments.

    A table of pre-training may have rows for them already, which it did not train; one with more than three rows is of
    UNITER's second stage, which did.

    Args:
        tensors: Name, as `to_bert_names` has it, -> tensor.
        task: Name of the task.
        architecture: Name of the architecture.
        rows: Segments of the model; those that the task does not name and the table lacks are left to the model.
    """
    table, sources = tensors.get(SEGMENTS), get_task(task).family_segments_from.get(architecture, {})
    found = [] if table is None else [*table]
    for row in sorted(sources) if len(found) <= 3 else ():
        if row < rows and row <= len(found):
            found[row : row + 1] = [found[sources[row]]]
    return dict(tensors) | ({SEGMENTS: np.stack(found)} if found else {})


def without_object_words(tensors: Mapping[str, np.ndarray], vocab_size: int) -> dict[str, np.ndarray]:
    """Return weights without the words that UNITER's second stage adds, for a model of the vocabulary alone.

    Args:
        tensors: Name, as `to_bert_names` has it, -> tensor.
        vocab_size: Words of the model.
    """
    return {
        name: array[:vocab_size] if name in (WORDS, MLM_BIAS) and len(array) == vocab_size + OBJECT_WORDS else array
        for name, array in tensors.items()
    }
