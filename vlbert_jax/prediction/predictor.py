"""A trained model for pictures of one's own.

    predictor = vlbert_jax.load("workdirs/vqa")
    predictor.answer("photo.jpg", "what is on the table?")

The model, the sequences and the transforms are those of training (tasks/); numbers are float32, whatever the run
computed in. A picture is read, its regions found and its CNN run once by `look`; questions about it then cost an
encoder pass. Two shapes are compiled at most, for landscape and portrait pictures.
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

from vlbert_jax.batch import IMG, Batch
from vlbert_jax.data.examples import is_precomputed
from vlbert_jax.data.image_files import read_image
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.detector.detect import load_detector
from vlbert_jax.detector.fingerprint import extractor_id
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.prediction.regions import GRID, Found, find_regions
from vlbert_jax.tasks import TASKS
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, fill_example
from vlbert_jax.tasks.pretrain.predict import guess_words
from vlbert_jax.tasks.refcoco.examples import ExpressionLayout, asked_example
from vlbert_jax.tasks.vcr.examples import REGION, ChoiceLayout, choice_example, vcr_fields
from vlbert_jax.tasks.vqa.examples import QuestionLayout, answers_of, question_example

log = logging.getLogger(__name__)

# What a task's model is for, the method and the options of the command that suit it.
ABILITIES = {
    "pretrain": ("masked words (pre-training)", "fill", "--caption"),
    "vqa": ("visual question answering", "answer", "--question"),
    "refcoco": ("referring expressions", "ground", "--expression"),
    "vcr": ("visual commonsense reasoning", "choose", "--question with --choices"),
}


class Answer(NamedTuple):
    text: str
    probability: float


class Place(NamedTuple):
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the picture
    probability: float  # of being meant, apart from the others
    region: int  # row; 0 is the whole image


class Filled(NamedTuple):
    """Guesses of one [MASK], most probable first."""

    words: list[Answer]
    blind: list[Answer]  # without the image


class Encoded(NamedTuple):
    """The last states of a sequence, for a head of one's own."""

    tokens: tuple[str, ...]  # text with its special pieces
    text: Float[np.ndarray, "t d"]
    regions: Float[np.ndarray, "r d"]  # row 0 is the whole image


class Attention(NamedTuple):
    """Where the elements of a sequence look."""

    tokens: tuple[str, ...]
    regions: tuple[str, ...]  # row 0 is the whole image; behind them, one more element, [END]
    probabilities: Float[np.ndarray, "layers heads s s"]  # what each element (rows) takes from each; rows add up to 1


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture that `Predictor.look` has read, for any number of questions."""

    name: str
    pixels: UInt8[np.ndarray, "y x 3"]
    regions: Found
    appearance: Shaped[Array, "1 r g"]  # of the model's regions, row 0 the whole image


def load(
    path: str | Path,
    *,
    detector: str | Path | detector.Detector | None = None,
    vocab: str | Path = "",
    answers: str | Path = "",
    data_dir: str | Path = "",
) -> Predictor:
    """The model in a workdir, a checkpoint's folder, or any other weights that `vlbert_jax.convert` knows.

    `detector` finds the regions (`vlbert_jax.detector.load`). `vocab`, `answers` and `data_dir` replace the run's
    config.data of these names. Raises FileNotFoundError, or ValueError where weights are not all there.
    """
    config, graphdef, state = load_trained(path, GRID**2)
    for name, value in dict(vocab=vocab, answers=answers, data_dir=data_dir).items():
        config.data[name] = str(value) or config.data[name]
    return Predictor(str(path), config, graphdef, state, detector)


class Predictor:
    """A model and what it needs to read a picture and a text; made by `load`.

    `image` is a path, uint8 pixels [y, x, 3], a PIL image, or what `look` returned; `boxes` as in `boxes.given`, else
    the detector finds the regions, else they are a grid. Every method raises ValueError, in one line, for a picture or
    boxes that cannot be read and for a model of another task.
    """

    def __init__(self, path: str, config: ml_collections.ConfigDict, graphdef, state: nnx.State, finder=None):
        self.path, self.config, self.task = path, config, config.task
        self.detector = load_detector(finder) if isinstance(finder, str | Path) else finder
        self._module, self._state = TASKS[config.task], state
        try:
            self.tokenizer = tokenizer_of(config)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{path}: the run's vocabulary: {reason}: give it with --vocab (vocab=), or the folder it is in as "
                "--data_dir (data_dir=)"
            ) from None
        self.answers = None
        if self.task == "vqa":
            try:
                self.answers = answers_of(config)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}; or give it with --answers (answers=), or --data_dir") from None

        def compiled(function):
            return functools.partial(jax.jit(lambda s, batch: function(nnx.merge(graphdef, s), batch)), state)

        self._appearance = compiled(lambda model, batch: model.appearance(batch))
        self._states = compiled(lambda model, batch: model.states(batch))
        self._attention = compiled(lambda model, batch: model.attention(batch)[1])
        self._predict = compiled(self._predicted)

    def _predicted(self, model, batch: Batch) -> dict:
        if self.task == "pretrain":
            return guess_words(model, batch, model.states(batch), self.config)
        return self._module.predict(model, batch, self.config)

    # --- Pictures and texts to batches

    def look(self, image: Any, boxes: Any = None) -> Picture:
        """Reads a picture, finds its regions and runs the CNN; everything else takes what this returns."""
        if isinstance(image, Picture):
            if boxes is not None:
                raise ValueError("this picture has its regions already: give boxes where it is looked at")
            return image
        name, pixels = read_image(image)
        found = find_regions(pixels, boxes, self.detector)
        most = self.config.data.max_regions
        if len(found) > most:
            log.warning("%s: of %d regions the model takes the first %d", name, len(found), most)
            found = found.first(most)
        if is_precomputed(self.config) and found.features is None:
            raise ValueError(
                f"{self.path} was trained on a detector's features: give the detector (--detector), or a file of boxes "
                "with their features (--boxes)"
            )
        trained_on = self.config.data.get("extractor", "") if is_precomputed(self.config) else ""
        made_by = found.extractor or (self._own_extractor() if trained_on and boxes is None else "")
        if trained_on and made_by not in ("", trained_on):
            raise ValueError(
                f"{self.path} was trained on features of extractor {trained_on}, these are of {made_by}: another "
                "detector, or other settings"
            )
        batch = self._batch(pixels, found, "a", ("a",))
        appearance = jax.block_until_ready(self._appearance(batch))
        return Picture(name, pixels, found, appearance)

    def _own_extractor(self) -> str:
        """The name that features of the detector have where they are stored."""
        return extractor_id(self.detector.fingerprint) if self.detector else ""

    def _batch(self, pixels: np.ndarray, found: Found, text: str, choices: Sequence[str] = ()) -> Batch:
        """The sequence that the task has for a text, and the image; for VCR one sequence per choice."""
        height, width = pixels.shape[:2]
        record = dict(image=pixels, image_size=np.array([width, height], np.int32), boxes=found.boxes)
        if found.features is not None:
            record |= dict(features=found.features)
        record |= dict(image_feature=() if found.image_feature is None else found.image_feature)
        orientation = "landscape" if width >= height else "portrait"
        config, tokenizer = self.config, self.tokenizer
        if self.task == "vqa":
            asked, layout = record | dict(question=text, answers=[]), QuestionLayout.of(config, orientation)
            example = question_example(asked, False, tokenizer, layout, self.answers)
        elif self.task == "refcoco":
            layout = ExpressionLayout.of(config, orientation, train=False)
            example = asked_example(record | dict(expression=text), found.boxes, False, tokenizer, layout)
        elif self.task == "vcr":
            layout = dataclasses.replace(ChoiceLayout.of(config, orientation), subtask="q2a")
            example = choice_example(record | vcr_fields(text, choices, found.labels), False, tokenizer, layout)
        else:
            layout = CaptionLayout.of(config, orientation, train=False)
            example = fill_example(record | dict(caption=text), tokenizer, layout)
        if example.get("text_cut"):
            log.warning("%r is longer than the model's sequence: its end is not read", text)
        return Batch(**{name: value[None] for name, value in example.items()})

    def _ask(self, image: Any, text: str, boxes: Any, choices: Sequence[str] = ()) -> tuple[Picture, Batch]:
        if not text.strip():
            raise ValueError("the text is empty")
        picture = self.look(image, boxes)
        for unknown in self._unknown(REGION.sub(" ", " ".join([text, *choices]))):
            log.warning("%r is not in the model's vocabulary", unknown)
        batch = self._batch(picture.pixels, picture.regions, text, choices)
        return picture, batch.replace(image=None, region_features=picture.appearance)

    def _unknown(self, text: str) -> list[str]:
        backend = self.tokenizer.backend
        encoding, missing = backend.encode(text, add_special_tokens=False), backend.token_to_id("[UNK]")
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[slice(*span)] for number, span in pairs if number == missing))

    def require(self, method: str) -> None:
        """Raises ValueError where the model is for another question than `method` asks."""
        what, own, option = ABILITIES[self.task]
        if own != method:
            wanted = next(ability for ability in ABILITIES.values() if ability[1] == method)
            raise ValueError(
                f"{self.path} is a model for {what}: it takes {option} ({own}); {wanted[2]} ({method}) needs one for "
                f"{wanted[0]}"
            )

    # --- What can be asked

    def answer(self, image: Any, question: str, boxes: Any = None) -> list[Answer]:
        """VQA: the five best answers. With a sigmoid for each (the default), probabilities do not add up to 1."""
        self.require("answer")
        _, batch = self._ask(image, question, boxes)
        best = jax.device_get(self._predict(batch))
        pairs = zip(best["answer"][0], best["probability"][0], strict=True)
        return [Answer(self.answers.entries[i], float(p)) for i, p in pairs]

    def ground(self, image: Any, expression: str, boxes: Any = None) -> list[Place]:
        """RefCOCO+: the five regions that the expression most probably means."""
        self.require("ground")
        picture, batch = self._ask(image, expression, boxes)
        best = jax.device_get(self._predict(batch))
        height, width = picture.pixels.shape[:2]
        rows = np.concatenate([[[0, 0, width - 1, height - 1]], picture.regions.boxes])
        pairs = zip(best["region"][0], best["probability"][0], strict=True)
        return [Place(tuple(rows[i].tolist()), float(p), int(i)) for i, p in pairs if i < len(rows)]

    def fill(self, image: Any, text: str, boxes: Any = None) -> list[Filled]:
        """Pre-training: the five best pieces for each [MASK] of the text, with and without the image."""
        self.require("fill")
        asked = sum(self.tokenizer.words(text), []).count(self.tokenizer.mask_id)
        if not asked:
            raise ValueError(f"{text!r} has no [MASK] to fill")
        _, batch = self._ask(image, text, boxes)
        if (room := int(batch.mlm_mask.sum())) < asked:
            raise ValueError(f"of {asked} [MASK] in {text[:40]!r}... the model's sequence holds {room}")
        best = jax.device_get(self._predict(batch))

        def words(name: str, i: int) -> list[Answer]:
            pairs = zip(*(array[0, 0, i] for array in best[name]), strict=True)
            return [Answer(self.tokenizer.backend.id_to_token(int(number)), float(p)) for p, number in pairs]

        return [Filled(words("words", i), words("words_blind", i)) for i in range(asked)]

    def choose(self, image: Any, question: str, choices: Sequence[str], boxes: Any = None) -> list[float]:
        """VCR: the probability of each choice; they add up to 1.

        [1] in a text names the first region, [1,2] two. Regions are whole boxes, as nobody gives their shapes. A model
        for rationales (QA2R) takes the question followed by its answer.
        """
        self.require("choose")
        _, batch = self._ask(image, question, boxes, choices)
        logits = jax.device_get(self._predict(batch))["logits"]
        return np.asarray(jax.nn.softmax(logits[0])).tolist()

    def encode(self, image: Any, text: str, boxes: Any = None, choice: str = "") -> Encoded:
        """The last states of the task's sequence; `choice` is what VCR puts behind the question."""
        picture, batch = self._ask(image, text, boxes, (choice,))
        states = np.asarray(self._states(batch))[0, 0]
        tokens, (first, end) = self._elements(batch)
        return Encoded(tokens, states[:first], states[first:end])

    def attention(self, image: Any, text: str, boxes: Any = None, choice: str = "") -> Attention:
        """What every element of the task's sequence takes from every other."""
        picture, batch = self._ask(image, text, boxes, (choice,))
        tokens, (first, end) = self._elements(batch)
        attention = np.asarray(self._attention(batch))[:, 0, 0, :, : end + 1, : end + 1]
        return Attention(tokens, tuple(map(picture.regions.name, range(end - first))), attention)

    def _elements(self, batch: Batch) -> tuple[tuple[str, ...], tuple[int, int]]:
        """The text's pieces, and where regions begin and end in the (first) sequence."""
        ids, real = batch.token_ids[0, 0], int(batch.element_mask[0, 0].sum())
        first = int(np.argmax(ids == self.tokenizer.vocab_size + IMG))
        return tuple(self.tokenizer.backend.id_to_token(int(i)) for i in ids[:first]), (first, real - 1)
