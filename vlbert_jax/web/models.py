"""A model of the page: what its task asks for, its answers, and its attention.

What a model is asked follows from its entry in the registry of tasks and from the images of its examples:
a text, with choices or without; nothing, where the task takes no text; a text about two images; or, where
the task searches, texts for an image and images for a text."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from vlbert_jax.data.examples import images_per_example, is_precomputed
from vlbert_jax.prediction.predictor import Picture, Predictor
from vlbert_jax.prediction.search import Found, ranked
from vlbert_jax.tasks import TASKS
from vlbert_jax.visualization.attention import attention_page
from vlbert_jax.visualization.templates import Html
from vlbert_jax.web.scene import Scene
from vlbert_jax.weights.shipped import notice_of

KEPT = 128  # images whose view a model keeps


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answers of a model to a text, as the page shows them."""

    text: str
    lines: list[str]
    marks: dict[int, str]  # number of a box to draw strongly, from 0 -> label
    warnings: list[str]  # what the library warned of, such as words that are not in the vocabulary
    best: str  # the best choice, "" where the task takes no choices


class ServedModel:
    """A model with the task that it answers; it keeps its view of the images that were asked about last."""

    def __init__(self, predictor: Predictor):
        self.predictor, self.task = predictor, predictor.task
        self.registered = TASKS[self.task.name]
        self.name = predictor.path.rstrip("/").rpartition("/")[2]
        self.notice = notice_of(predictor.path)
        two = images_per_example(predictor.config) == 2
        self.searches = self.registered.searches
        self.takes_second = two and not self.searches  # whether a text is about the scene and a second image
        self.searches_with_image = two and self.searches  # whether images are sought by the scene with a text
        self._looked: list[tuple[Scene, Picture]] = []

    @property
    def option(self) -> str:
        """The option of the prediction command that takes the task's texts, without dashes: "question"."""
        return self.registered.option.removeprefix("--")

    @property
    def label(self) -> str:
        """The name of the model's tab, after the method of `Predictor` that it answers: "Answer"."""
        return self.task.method.capitalize() + " two images" * self.takes_second

    @property
    def kind(self) -> str:
        """What the model is asked, as a key of the example texts: the name of its task, "_pair" for two images."""
        return self.task.name + "_pair" * (self.takes_second or self.searches_with_image)

    @property
    def shows_attention(self) -> bool:
        """Whether there is attention to show: between one text and one image."""
        return self.registered.takes_text and not (self.takes_second or self.searches)

    def look(self, scene: Scene) -> Picture:
        """Return the model's view of a scene. Raises ValueError where it cannot use the regions."""
        picture = next((picture for seen, picture in self._looked if seen is scene), None)
        if picture is None:
            if scene.has_drawn_boxes and is_precomputed(self.predictor.config):
                raise ValueError(
                    f"{self.name} reads features that a detector computes for its own regions, and a drawn box has "
                    "none; reset the regions. Boxes can be deleted."
                )
            picture = self.predictor.look(scene.pixels, scene.regions)
            self._looked = [*self._looked, (scene, picture)][-KEPT:]
        return picture

    def ask(self, scene: Scene, text: str, choices: Sequence[str] = (), second: Scene | None = None) -> Reply:
        """Return the answers to a text about a scene, or about it and a second one.

        Raises:
            ValueError: The text, the choices or the regions cannot be used.
        """
        if self.registered.takes_choices and not choices:
            raise ValueError("there is no choice; write one in each line")
        if not self.registered.takes_text:
            text = self.registered.title
        with collected_warnings() as warnings:
            pictures = [self.look(one) for one in (scene, second) if one is not None]
            described = self.task.describe(self.predictor.ask(pictures[0], text, choices, None, "", *pictures[1:]))
        best = described["answers"][0]["text"] if self.registered.takes_choices else ""
        return Reply(text, self.task.lines(described), self.task.marks(text, described), warnings, best)

    def rank_texts(self, scene: Scene, texts: Sequence[str]) -> Reply:
        """Return how well each of some texts fits a scene, the best first. Raises ValueError as `ask`."""
        with collected_warnings() as warnings:
            scores = self.predictor.similarity(self.look(scene), _written(texts))[0]
        found = ranked(texts, scores, len(texts))
        return Reply(scene.name, [f"{_fit(one)}  {one.name}" for one in found], {}, warnings, "")

    def order_images(self, scene: Scene, text: str, gallery: Sequence[Scene]) -> tuple[dict[int, str], list[str]]:
        """Return number of each image of a gallery -> how well a text fits it, the best first, and the warnings.

        Models of queries of an image and a text read the scene with the text. Raises ValueError as `ask`.
        """
        with collected_warnings() as warnings:
            pictures, (text,) = [self.look(one) for one in gallery], _written([text])
            if self.searches_with_image:
                found = self.predictor.search((self.look(scene), text), pictures, len(pictures))
            else:
                found = ranked(pictures, self.predictor.similarity(pictures, [text])[:, 0], len(pictures))
        return {one.number: _fit(one) for one in found}, warnings

    def attention(self, scene: Scene, reply: Reply) -> Html:
        """Return the page of the attention between the elements of an answered text and the regions of a scene."""
        picture = self.look(scene)
        with collected_warnings():  # `ask` has reported them
            seen: Any = self.predictor.attention(picture, reply.text, choice=reply.best)
        shown = dict(title=f"{reply.text} ({scene.name})", answer="\n".join(reply.lines), layer_names=seen.layers)
        return attention_page(picture.pixels, picture.regions.boxes, *seen[:3], **shown)


def _written(texts: Sequence[str]) -> list[str]:
    """Return the texts; raise ValueError where there is none or one is empty."""
    if not texts or not all(text.strip() for text in texts):
        raise ValueError("the text is empty")
    return list(texts)


def _fit(found: Found) -> str:
    """Return the probability that a text and an image belong together, and their score."""
    return f"{found.probability:4.0%}  {found.score:5.1f}"


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that receives what the package logs as warnings in this thread, instead of the terminal."""
    found: list[str] = []
    log, thread = logging.getLogger("vlbert_jax"), threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.getMessage() not in found:  # a search asks of each image
                found.append(record.getMessage())

    collector = Collector(logging.WARNING)
    log.addHandler(collector)
    try:
        yield found
    finally:
        log.removeHandler(collector)
