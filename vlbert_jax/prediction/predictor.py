"""A trained model for user-supplied images.

    predictor = vlbert_jax.load("workdirs/run")
    predictor.answer("photo.jpg", "what is on the table?")

Model, sequences and image transforms are those of training (tasks/); values are float32, whatever the
run computed in. `look` reads an image, finds its regions and runs the CNN once; each text about it then
takes one pass of the encoder. At most two shapes are compiled, for landscape and portrait images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8

from vlbert_jax.batch import IMG, Batch, make_batch
from vlbert_jax.data.examples import is_precomputed
from vlbert_jax.data.image_files import read_image
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.detector.detect import Detector, load_detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import user_path
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.prediction.regions import GRID, find_regions
from vlbert_jax.tasks import TASKS, Registered, all_tasks, get_task
from vlbert_jax.tasks.base import Answer

log = logging.getLogger(__name__)

class Encoded(NamedTuple):
    """The last states of a sequence, as input of a user-supplied head."""

    tokens: tuple[str, ...]  # text with its special tokens
    text: Float[np.ndarray, "t d"]
    regions: Float[np.ndarray, "r d"]  # row 0 is the whole image


class Attention(NamedTuple):
    """The attention between the elements of a sequence."""

    tokens: tuple[str, ...]
    regions: tuple[str, ...]  # row 0 is the whole image; [END] follows them
    probabilities: Float[np.ndarray, "layers heads s s"]  # attention of each element (row) to each; rows sum to 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that `Predictor.look` has read, for any number of texts."""

    name: str
    pixels: UInt8[np.ndarray, "y x 3"]
    regions: Regions
    appearance: Shaped[Array, "1 r g"]  # of the regions; row 0 is the whole image


def load(
    path: str | Path,
    *,
    detector: str | Path | Detector | None = None,
    vocab: str | Path = "",
    answers: str | Path = "",
    data_dir: str | Path = "",
) -> Predictor:
    """Return the model in a workdir, a checkpoint folder, or other weights that `vlbert_jax.convert` reads.

    Args:
        path: Workdir, checkpoint or weights, or the name of a shipped model (weights/shipped.py).
        detector: Detector that finds the regions, or the path of its weights.
        vocab: Replaces config.data.vocab of the run.
        answers: Replaces config.data.answers of the run.
        data_dir: Replaces config.data.data_dir of the run.

    Raises:
        FileNotFoundError: There are no weights or no vocabulary.
        ValueError: The weights are incomplete.
    """
    path = user_path(str(path))
    config, graphdef, state = load_trained(path, GRID**2)
    for name, value in dict(vocab=vocab, answers=answers, data_dir=data_dir).items():
        config.data[name] = user_path(str(value)) or config.data.get(name, "")
    return Predictor(path, config, graphdef, state, detector)


def option_of(task: Registered) -> str:
    """Return the options of the prediction command that a task takes."""
    return task.option + (" with --choices" if task.takes_choices else "")


class Predictor:
    """A model and what it needs to read an image and a text; `load` makes it.

    `image` is a path, uint8 pixels [y, x, 3], a PIL image, or what `look` returned. `boxes` are as in
    `regions.given_regions`; without them the detector finds the regions, and without a detector they are a
    grid. Every method raises ValueError for an image or boxes that cannot be read and for a model of
    another task.
    """

    def __init__(self, path: str, config: ml_collections.ConfigDict, graphdef, state: nnx.State, finder=None):
        self.path, self.config = path, config
        self.detector = load_detector(finder) if isinstance(finder, str | Path) else finder
        self.task, self._state = get_task(config.task), state
        try:
            self.tokenizer = tokenizer_of(config)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{path}: the vocabulary of the run cannot be read: {reason}. Give it with --vocab (vocab=), or the "
                "folder that holds it as --data_dir (data_dir=)."
            ) from None
        try:
            self.task.load_vocabularies(config)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; or give it with --answers (answers=), or --data_dir") from None

        def compiled(function):
            def precise(state, batch):
                with matmul_precision("highest"):  # accelerators would compute float32 products in TF32 or bfloat16
                    return function(nnx.merge(graphdef, state), batch)

            return functools.partial(jax.jit(precise), state)

        self._appearance = compiled(lambda model, batch: model.appearance(batch))
        self._states = compiled(lambda model, batch: model.states(batch))
        self._attention = compiled(lambda model, batch: model.attention(batch)[1])
        self._predict = compiled(lambda model, batch: self.task.predict_text(model, batch, config))

    # --- From images and texts to batches

    def look(self, image: Any, boxes: Any = None) -> Picture:
        """Read an image, find its regions and run the CNN; all other methods take what this returns."""
        if isinstance(image, Picture):
            if boxes is not None:
                raise ValueError("This image has its regions already; pass boxes to `look`.")
            return image
        name, pixels = read_image(image)
        found = find_regions(pixels, boxes, self.detector)
        most = self.config.data.max_regions
        if len(found) > most:
            log.warning("%s: the model reads the first %d of %d regions", name, most, len(found))
            found = found.first(most)
        if is_precomputed(self.config) and found.features is None:
            raise ValueError(
                f"{self.path} was trained on features of a detector. Give the detector (--detector), or a file of "
                "boxes with their features (--boxes)."
            )
        trained_on = self.config.data.get("extractor", "") if is_precomputed(self.config) else ""
        if trained_on and found.extractor not in ("", trained_on):
            raise ValueError(
                f"{self.path} was trained on features of extractor {trained_on}, but these are of "
                f"{found.extractor}: another detector, or other settings."
            )
        batch = self._batch(pixels, found, "a", ("a",))
        appearance = jax.block_until_ready(self._appearance(batch))
        return Picture(name, pixels, found, appearance)

    def _batch(self, pixels: np.ndarray, found: Regions, text: str, choices: Sequence[str] = ()) -> Batch:
        """Return the batch of one text about an image, as the task lays it out."""
        height, width = pixels.shape[:2]
        record = dict(image=pixels, image_size=np.array([width, height], np.int32), boxes=found.boxes)
        if found.features is not None:
            record |= dict(features=found.features)
        record |= dict(image_feature=() if found.image_feature is None else found.image_feature)
        record |= dict(labels=found.labels)
        example = self.task.example_from_text(record, text, choices, self.config)
        if example.get("text_cut"):
            log.warning("%r is longer than the sequence of the model; its end is not read", text)
        return make_batch({name: value[None] for name, value in example.items()}, self.task.targets)

    def _ask(self, image: Any, text: str, boxes: Any, choices: Sequence[str] = ()) -> tuple[Picture, Batch]:
        if not text.strip():
            raise ValueError("the text is empty")
        picture = self.look(image, boxes)
        for unknown in self._unknown(self.task.plain_text(" ".join([text, *choices]))):
            log.warning("%r is not in the model's vocabulary", unknown)
        batch = self._batch(picture.pixels, picture.regions, text, choices)
        return picture, batch.replace(pixels=None, region_features=picture.appearance)

    def _unknown(self, text: str) -> list[str]:
        backend = self.tokenizer.backend
        encoding, missing = backend.encode(text, add_special_tokens=False), backend.token_to_id("[UNK]")
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[slice(*span)] for number, span in pairs if number == missing))

    def require(self, method: str) -> None:
        """Raise ValueError where `method` is not the one that the task of the model answers."""
        if self.task.method == method:
            return
        own, wanted = TASKS[self.task.name], next(TASKS[t.name] for t in all_tasks() if t.method == method)
        raise ValueError(
            f"{self.path} is a model for {own.title}: it takes {option_of(own)} ({self.task.method}). "
            f"{option_of(wanted)} ({method}) needs a model for {wanted.title}."
        )

    # --- What can be asked

    def ask(self, image: Any, text: str, choices: Sequence[str] = (), boxes: Any = None) -> list[Any]:
        """Return the answers of the model's task to a text about an image.

        Args:
            image: Path, uint8 pixels [y, x, 3], PIL image, or what `look` returned.
            text: Question, expression or caption.
            choices: Texts to choose from, for a task that takes choices.
            boxes: Regions; without them the detector finds them, or a grid is used.

        Returns:
            Named tuples of the task: `Answer`, `Place`, or `Filled` for each [MASK].

        Raises:
            ValueError: The image, the boxes or the text cannot be used.
        """
        self.task.check_text(text, self.config)
        picture, batch = self._ask(image, text, boxes, choices)
        rows = jax.device_get(self._predict(batch))
        height, width = picture.pixels.shape[:2]
        rows_of_model = np.concatenate([[[0, 0, width - 1, height - 1]], picture.regions.boxes])
        return self.task.decode(rows, rows_of_model, choices, jax.device_get(batch), self.config)

    def answer(self, image: Any, question: str, boxes: Any = None) -> list[Answer]:
        """Return the five best answers to a question, each with an independent probability."""
        self.require("answer")
        return self.ask(image, question, (), boxes)

    def ground(self, image: Any, expression: str, boxes: Any = None) -> list[Any]:
        """Return the five regions that an expression most probably means."""
        self.require("ground")
        return self.ask(image, expression, (), boxes)

    def fill(self, image: Any, text: str, boxes: Any = None) -> list[Any]:
        """Return the five best words for each [MASK] of a caption, with and without the image."""
        self.require("fill")
        return self.ask(image, text, (), boxes)

    def choose(self, image: Any, question: str, choices: Sequence[str], boxes: Any = None) -> list[float]:
        """Return the probability of each choice; they sum to 1.

        [1] in a text names the first region, [1,2] two of them. A model for rationales takes the
        question followed by its answer.
        """
        self.require("choose")
        return [answer.probability for answer in self.ask(image, question, choices, boxes)]

    def encode(self, image: Any, text: str, boxes: Any = None, choice: str = "") -> Encoded:
        """Return the last states of the sequence of a text; `choice` is the choice of a task that takes choices."""
        picture, batch = self._ask(image, text, boxes, (choice,))
        states = np.asarray(self._states(batch))[0, 0]
        tokens, (first, end) = self._elements(batch)
        return Encoded(tokens, states[:first], states[first:end])

    def attention(self, image: Any, text: str, boxes: Any = None, choice: str = "") -> Attention:
        """Return the attention of every element of the sequence of a text to every other."""
        picture, batch = self._ask(image, text, boxes, (choice,))
        tokens, (first, end) = self._elements(batch)
        attention = np.asarray(self._attention(batch))[:, 0, 0, :, : end + 1, : end + 1]
        return Attention(tokens, tuple(map(picture.regions.name, range(end - first))), attention)

    def _elements(self, batch: Batch) -> tuple[tuple[str, ...], tuple[int, int]]:
        """Return the tokens of the text, and where regions begin and end in the (first) sequence."""
        ids, real = batch.token_ids[0, 0], int(batch.element_mask[0, 0].sum())
        first = int(np.argmax(ids == self.tokenizer.vocab_size + IMG))
        return tuple(self.tokenizer.backend.id_to_token(int(i)) for i in ids[:first]), (first, real - 1)
