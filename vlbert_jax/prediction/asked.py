"""A text that was asked and its answers: as lines, as plain values, and drawn into the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from vlbert_jax.detector.regions import Regions
from vlbert_jax.tasks import TASKS
from vlbert_jax.tasks.base import Task
from vlbert_jax.visualization.drawing import draw_regions


@dataclasses.dataclass(frozen=True)
class Asked:
    """A text about an image, and how its answers are shown."""

    text: str
    fields: dict[str, Any]  # text and answers as plain values for JSON
    lines: list[str]  # the answers, to print
    marks: dict[int, str]  # number of a box to draw strongly -> label


def describe_answers(task: Task, text: str, answers: list[Any]) -> Asked:
    """Return the answers of `Predictor.ask` to a text in the forms in which they are shown."""
    described = task.describe(answers)
    kind = TASKS[task.name].option.removeprefix("--")
    return Asked(text, {kind: text} | described, task.lines(described), task.marks(text, described))


def draw_asked(pixels: UInt8[np.ndarray, "y x 3"], found: Regions, asked: Sequence[Asked]) -> PIL.Image.Image:
    """Return the image with its regions, the regions that answers name, and texts and answers below."""
    names = [f"{i} {found.name(i)}" if label else str(i) for i, label in enumerate(found.labels, 1)]
    marks: dict[int, list[str]] = {}
    for one in asked:
        for box, label in one.marks.items():
            marks.setdefault(box, []).append(label)
    strong = {box: ", ".join(labels) for box, labels in marks.items()}
    below = [line for one in asked for line in (one.text, *(f"   {line}" for line in one.lines))]
    return draw_regions(pixels, found.boxes, names, strong, below)
