"""12-in-1 has two heads for one task; the second one is read on request."""

import dataclasses
from typing import NamedTuple

from vlbert_jax.tasks import TASKS
from vlbert_jax.weights.read import Weights


class SecondHead(NamedTuple):
    """The second of two heads for one task."""

    task: str
    tensors: str  # prefix of its tensors
    first: str  # prefix of the head that is read otherwise
    renamed: bool  # whether both have the same layers, so that it takes the name of the first
    fields: dict[str, int]  # of the config, by dotted name, whose published value differs from that of the first head


SECOND_HEADS = {
    "gqa": SecondHead(
        "answer", "vil_prediction_gqa.", "vil_prediction.", True,
        {"model.two_stream.task_number": 15, "data.text_length": 26, "data.sequence_length": 127},
    ),
    "snli_ve": SecondHead("classify", "vil_tri_prediction.", "vil_binary_prediction.", False, {}),
}  # fmt: skip


def with_second_head(source: Weights, name: str, task: str = "") -> tuple[Weights, str]:
    """Return the weights without the first head of a task, so that the second one is read in its place, and the task.

    Args:
        source: Weights in the form of their authors.
        name: Key of `SECOND_HEADS`.
        task: Task that is asked for, "" = that of the head.

    Raises:
        ValueError: `name` is another word, the weights lack that head, or it is of another task.
    """
    if name not in SECOND_HEADS:
        raise ValueError(f"{source.path}: the head {name!r} is unknown; it must be one of {', '.join(SECOND_HEADS)}")
    second = SECOND_HEADS[name]
    if source.config:
        raise ValueError(
            f"{source.path}: the head {name} is read from the authors' file of 12-in-1 (.bin) alone, not from a run or "
            "a folder of this package: give that file"
        )
    if not any(key.startswith(second.tensors) for key in source.tensors):
        raise ValueError(
            f"{source.path}: {source.description}, has no second head {name} ({second.tensors}*); 12-in-1 has it"
        )
    if task not in ("", second.task):
        raise ValueError(
            f"{source.path}: the head {name} is for {TASKS[second.task].title} ({TASKS[second.task].option}), not for "
            f"{TASKS[task].title}: leave it out"
        )
    tensors = {key: array for key, array in source.tensors.items() if not key.startswith(second.first)}
    if second.renamed:
        tensors = {key.replace(second.tensors, second.first): array for key, array in tensors.items()}
    return dataclasses.replace(source, tensors=tensors, fields=second.fields), second.task
