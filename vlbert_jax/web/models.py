"""A model of the page: what its task asks for, its answers, and its attention."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from vlbert_jax.data.examples import is_precomputed
from vlbert_jax.prediction.predictor import Picture, Predictor
from vlbert_jax.tasks import TASKS
from vlbert_jax.visualization.attention import attention_page
from vlbert_jax.visualization.templates import Html
from vlbert_jax.web.scene import Scene
from vlbert_jax.weights.shipped import notice_of


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answers of a model to a text, as the page shows them."""

    text: str
    lines: list[str]
    marks: dict[int, str]  # number of a box to draw strongly, from 0 -> label
    warnings: list[str]  # what the library warned of, such as words that are not in the vocabulary
    best: str  # the best choice, "" where the task takes no choices


class ServedModel:
    """A model with the task that it answers; it keeps its view of the image that was asked about last."""

    def __init__(self, predictor: Predictor):
        self.predictor, self.task = predictor, predictor.task
        self.registered = TASKS[self.task.name]
        self.name = predictor.path.rstrip("/").rpartition("/")[2]
        self.notice = notice_of(predictor.path)
        self._looked: tuple[Scene, Picture] | None = None

    @property
    def option(self) -> str:
        """The option of the prediction command that takes the task's texts, without dashes: "question"."""
        return self.registered.option.removeprefix("--")

    def look(self, scene: Scene) -> Picture:
        """Return the model's view of a scene. Raises ValueError where it cannot use the regions."""
        if self._looked is None or self._looked[0] is not scene:
            if scene.has_drawn_boxes and is_precomputed(self.predictor.config):
                raise ValueError(
                    f"{self.name} reads features that a detector computes for its own regions, and a drawn box has "
                    "none; reset the regions. Boxes can be deleted."
                )
            self._looked = scene, self.predictor.look(scene.pixels, scene.regions)
        return self._looked[1]

    def ask(self, scene: Scene, text: str, choices: Sequence[str] = ()) -> Reply:
        """Return the answers to a text about a scene.

        Raises:
            ValueError: The text, the choices or the regions cannot be used.
        """
        if self.registered.takes_choices and not choices:
            raise ValueError("there is no choice; write one in each line")
        with collected_warnings() as warnings:
            described = self.task.describe(self.predictor.ask(self.look(scene), text, choices))
        best = described["answers"][0]["text"] if self.registered.takes_choices else ""
        return Reply(text, self.task.lines(described), self.task.marks(text, described), warnings, best)

    def attention(self, scene: Scene, reply: Reply) -> Html:
        """Return the page of the attention between the elements of an answered text and the regions of a scene."""
        picture = self.look(scene)
        with collected_warnings():  # `ask` has reported them
            seen: Any = self.predictor.attention(picture, reply.text, choice=reply.best)
        shown = dict(title=f"{reply.text} ({scene.name})", answer="\n".join(reply.lines), layer_names=seen.layers)
        return attention_page(picture.pixels, picture.regions.boxes, *seen[:3], **shown)


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that receives what the package logs as warnings in this thread, instead of the terminal."""
    found: list[str] = []
    log, thread = logging.getLogger("vlbert_jax"), threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                found.append(record.getMessage())

    collector = Collector(logging.WARNING)
    log.addHandler(collector)
    try:
        yield found
    finally:
        log.removeHandler(collector)
