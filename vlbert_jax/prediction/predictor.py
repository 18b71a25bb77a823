"""A trained model for user-supplied images.

    predictor = vlbert_jax.load("workdirs/run")
    predictor.answer("photo.jpg", "what is on the table?")

Model, sequences and image transforms are those of training (tasks/); values are float32, whatever the
run computed in. `look` reads an image, finds its regions and runs the CNN once; each text about it then
takes one pass of the encoder. Lists of images or texts are answered in batches. Few shapes are compiled:
of the CNN for landscape and portrait images, and each program for batches of 1, 2, 4 and 8.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
from flax import nnx
from jax import Array

from vlbert_jax.batch import Batch, Example
from vlbert_jax.data.examples import is_precomputed
from vlbert_jax.data.image_files import read_image
from vlbert_jax.data.region_files import GRID
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.detector.detect import Detector, load_detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.files import user_path
from vlbert_jax.model.config import matmul_precision
from vlbert_jax.model.two_stream_config import STREAMS
from vlbert_jax.prediction.asked import describe_answers, draw_asked
from vlbert_jax.prediction.expected import check_features, vocabulary_of
from vlbert_jax.prediction.inspection import Inspecting
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.prediction.regions import find_regions
from vlbert_jax.prediction.requests import MOST, Request, cut_texts, in_batches, needs_of, requests_of
from vlbert_jax.prediction.search import Searching
from vlbert_jax.prediction.seen import Picture
from vlbert_jax.tasks import TASKS, all_tasks, get_task

log = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    detector: str | Path | Detector | None = None,
    vocab: str | Path = "",
    answers: str | Path = "",
    data_dir: str | Path = "",
    addresses: bool = False,
    task: str = "",
    head: str = "",
) -> Predictor:
    """Return the model in a workdir, a checkpoint folder, or other weights that `vlbert_jax.convert` reads.

    The commands first call `vlbert_jax.memory.keep_freed_memory()`, which saves page faults in programs with large
    arrays. A program of your own may do so at its start; importing the package changes no setting of the process.

    Args:
        path: Workdir, checkpoint or weights, the name of a shipped model (weights/shipped.py), or hf:USER/NAME of the
            Hugging Face hub.
        detector: Detector that finds the regions, or the path of its weights.
        vocab: Replaces config.data.vocab of the run.
        answers: Replaces config.data.answers of the run.
        data_dir: Replaces config.data.data_dir of the run.
        addresses: Whether images may be http or https addresses. Leave it out where others choose the images.
        task: Task of which weights with heads of several tasks are read, such as those of LXMERT base or of a run of
            several tasks.
        head: "gqa" or "snli_ve", which 12-in-1 has as a second head for a task (docs/weights.md); "" = the first.

    Raises:
        FileNotFoundError: There are no weights or no vocabulary.
        ValueError: The weights are incomplete.
    """
    path = user_path(str(path))
    config, graphdef, state = load_trained(path, GRID**2, task, head)
    stored = config.data.copy_and_resolve_references()
    for name, value in dict(vocab=vocab, answers=answers, data_dir=data_dir).items():
        config.data[name] = user_path(str(value)) or config.data.get(name, "")
    predictor = Predictor(path, config, graphdef, state, detector)
    predictor.addresses = addresses
    predictor.task.warn_of_lists(config, stored)
    return predictor


class Predictor(Searching, Inspecting):
    """A model and what it needs to read an image and a text; `load` makes it.

    `image` is a path, uint8 pixels [y, x, 3], a PIL image, or what `look` returned; an http or https address where
    `load` permits it. `boxes` are as in `regions.given_regions`; without them the detector finds the regions, and
    without a detector they are a grid. An image or a text may also be a list: of n texts about one image, of n images
    with one text, or of n images with n texts. The result is then a list of n results, computed in batches; `boxes` of
    n images are a list. Every method raises ValueError for what cannot be read and for a model of another task.
    """

    addresses = False  # whether images may be addresses
    scores: Mapping[str, float] = MappingProxyType({})  # of the best evaluation, where `fine_tune` made the model

    def __init__(self, path: str, config: ml_collections.ConfigDict, graphdef, state: nnx.State, finder=None):
        self.path, self.config = path, config
        self.detector = load_detector(finder) if isinstance(finder, str | Path) else finder
        self.task, self._state = get_task(config.task), state
        try:
            self.tokenizer = tokenizer_of(config)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{path}: the vocabulary of the run cannot be read: {reason}. Give it as vocab=FILE, or the folder "
                f"that holds it as data_dir=FOLDER.{vocabulary_of(config)}"
            ) from None
        try:
            self.task.load_vocabularies(config)
        except FileNotFoundError as error:  # its second sentence is about data for training
            missing = str(error).partition(". ")[0]
            raise FileNotFoundError(
                f"{path}: {missing}; give it as answers=FILE, or the folder that holds it as data_dir=FOLDER"
            ) from None

        def compiled(function):
            def precise(state, batch):
                with matmul_precision("highest"):  # accelerators would compute float32 products in TF32 or bfloat16
                    return function(nnx.merge(graphdef, state), batch)

            return functools.partial(jax.jit(precise), state)

        self._appearance = compiled(lambda model, batch: model.appearance(batch))
        self._states = compiled(lambda model, batch: model.states(batch, wanted=STREAMS))

        def attention(model, batch):
            return jax.tree.map(lambda maps: jnp.moveaxis(maps, 0, 1), model.attention(batch)[1])

        self._attention = compiled(attention)
        self._predict = compiled(lambda model, batch: self.task.predict_text(model, batch, config))

    def __repr__(self) -> str:
        encoder, model = self.config.model.encoder, self.config.model
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.filter_state(self._state, nnx.Param)))
        parts = [f"{TASKS[self.task.name].title} with {model.get('architecture', 'vlbert')}"]
        parts += [f"{encoder.num_layers} layers x {encoder.hidden_size}, {parameters:,} parameters"]
        parts += [f"{model.num_answers:,} answers"] if "num_answers" in model else []
        parts += [f"regions from {'a detector' if self.detector else 'boxes or a grid'}"]
        return f"<Predictor of {self.path}: {'; '.join(parts)}; {_usage(self.task.method)}>"

    # --- From images and texts to batches

    @overload
    def look(self, image: list | tuple, boxes: Any = None) -> list[Picture]: ...

    @overload
    def look(self, image: Any, boxes: Any = None) -> Picture: ...

    def look(self, image: Any, boxes: Any = None) -> Any:
        """Read an image, find its regions and run the CNN; all other methods take what this returns."""
        requests, several = requests_of(image, "a", ("a",), boxes)
        pictures = self._look(requests)
        return pictures if several else pictures[0]

    def _look(self, requests: Sequence[Request]) -> list[Picture]:
        """Return the images of the requests; those that are not yet read go through the CNN in batches."""
        pictures: list[Any] = [self._read(request.image, request.boxes) for request in requests]
        new = [number for number, picture in enumerate(pictures) if not isinstance(picture, Picture)]
        about = Request(None, "a", ("a",), None)
        examples = [self._example([pictures[number][1:]], about) for number in new]
        for numbers, batch in in_batches(examples, self.task.targets):
            appearance = jax.block_until_ready(self._appearance(batch))
            for place, number in enumerate(numbers):
                name, pixels, found = pictures[new[number]]
                pictures[new[number]] = Picture(name, pixels, found, appearance[place : place + 1])
        return pictures

    def _read(self, image: Any, boxes: Any) -> Picture | tuple[str, np.ndarray, Regions]:
        """Return a picture as it is; of another image the name, the pixels and the regions."""
        if isinstance(image, Picture):
            if boxes is not None:
                raise ValueError("This image has its regions already; pass boxes to `look`.")
            return image
        name, pixels = read_image(image, self.addresses)
        found = find_regions(pixels, boxes, self.detector)
        most = self.config.data.max_regions
        if len(found) > most:
            log.warning("%s: the model reads the best %d of %d regions", name, most, len(found))
            found = found.first(most)
        if is_precomputed(self.config) and found.features is None:
            raise ValueError(
                f"{self.path} was trained on features of a detector. Give the detector (detector=PATH), or a file of "
                "boxes with their features (boxes=FILE.json)."
            )
        check_features(self.path, self.config, found)
        trained_on = self.config.data.get("extractor", "") if is_precomputed(self.config) else ""
        if trained_on and found.extractor not in ("", trained_on):
            raise ValueError(
                f"{self.path} was trained on features of extractor {trained_on}, but these are of "
                f"{found.extractor}: another detector, or other settings."
            )
        return name, pixels, found

    def _example(self, shown: Sequence[tuple[np.ndarray, Regions]], request: Request) -> Example:
        """Return the example of a request about pixels and regions of one or two images, as the task lays it out."""
        records = []
        for pixels, found in shown:
            height, width = pixels.shape[:2]
            record = dict(image=pixels, image_size=np.array([width, height], np.int32), boxes=found.boxes)
            if found.features is not None:
                record |= dict(features=found.features)
            record |= dict(image_feature=() if found.image_feature is None else found.image_feature)
            records.append(record | dict(labels=found.labels))
        record = records[0] if len(records) == 1 else dict(images=records)
        record |= dict(text2=request.text2) if request.text2 else {}
        return self.task.example_from_text(record, request.text, request.choices, self.config)

    def _example_of(self, pictures: Sequence[Picture], request: Request) -> Example:
        """Return the example of a request; log a warning where a part of its text is not read."""
        for unknown in self._unknown(self.task.plain_text(" ".join([request.text, request.text2, *request.choices]))):
            log.warning("%r is not in the model's vocabulary", unknown)
        example_of = functools.partial(self._example, [(picture.pixels, picture.regions) for picture in pictures])
        example = example_of(request)
        task, is_cut = TASKS[self.task.name], example.get("text_cut")
        for text in cut_texts(request, task, example_of, self.tokenizer) if is_cut else ():
            log.warning("%r is longer than the sequence of the model; its end is not read", text)
        return {name: value for name, value in example.items() if name not in ("pixels", "region_features")}

    def _results(self, program: Callable, requests: Sequence[Request]) -> Iterator[tuple[Picture, Batch, Any]]:
        """Yield, for each request, the image, the batch of it alone and the rows that `program` returns for it."""
        for start in range(0, len(requests), MOST):
            part = requests[start : start + MOST]
            pictures: list[tuple[Picture, ...]] = [(picture,) for picture in self._look(part)]
            found = {}
            paired = [number for number, one in enumerate(part) if one.image2 is not None]
            second = self._look([Request(part[number].image2, "a", (), None) for number in paired])
            for number, picture in zip(paired, second, strict=True):
                pictures[number] += (picture,)
            examples = [self._example_of(seen, one) for seen, one in zip(pictures, part, strict=True)]
            for numbers, batch in in_batches(examples, self.task.targets):
                filled = numbers + numbers[-1:] * (len(batch.token_ids) - len(numbers))
                seen = [_joined([picture.appearance for picture in pictures[number]], axis=1) for number in filled]
                seen = _joined(seen, axis=0)
                rows = jax.device_get(program(batch.replace(region_features=seen)))
                for place, number in enumerate(numbers):
                    one, row = jax.tree.map(lambda array, place=place: array[place : place + 1], (batch, rows))
                    found[number] = pictures[number][0], one, row
            yield from (found[number] for number in range(len(part)))

    def _unknown(self, text: str) -> list[str]:
        encoding, missing = self.tokenizer.encode(text), self.tokenizer.backend.token_to_id("[UNK]")
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return list(dict.fromkeys(text[slice(*span)] for number, span in pairs if number == missing))

    def require(self, method: str) -> None:
        """Raise ValueError where `method` is not the one that the task of the model answers."""
        if self.task.method == method:
            return
        own, name = TASKS[self.task.name], next(task.name for task in all_tasks() if task.method == method)
        if name in self.config.get("tasks_of_heads", ()):
            raise ValueError(
                f"{self.path} has heads of several tasks, and this predictor uses that for {own.title}: for {method}, "
                f"load it with task={name!r}."
            )
        raise ValueError(
            f"{self.path} is a model for {own.title}: call {_usage(self.task.method)} or ask. {method} needs a model "
            f"for {TASKS[name].title}."
        )

    # --- What can be asked

    def ask(
        self, image: Any, text: Any, choices: Sequence[Any] = (), boxes: Any = None, text2: Any = "", image2: Any = None
    ) -> list[Any]:
        """Return the answers of the model's task to a text about an image.

        Args:
            image: Path, uint8 pixels [y, x, 3], PIL image, what `look` returned, or a list of these.
            text: Question, expression or caption, or a list of these.
            choices: Texts to choose from, for a task that takes choices; a list of texts for all or for each.
            boxes: Regions; without them the detector finds them, or a grid is used.
            text2: Second text, for a task that takes two; or a list of these.
            image2: Second image, for a model of pairs of images; or a list of these.

        Returns:
            Named tuples of the task: `Answer`, `Place`, or `Filled` for each [MASK]. For lists, a list of these
            lists.

        Raises:
            ValueError: The image, the boxes or the text cannot be used.
        """
        registered = TASKS[self.task.name]
        requests, several = requests_of(image, text, choices, boxes, text2, image2, registered.text_optional)
        for request in requests:
            self.task.check_text(request.text, self.config)
            needs = needs_of(request, registered, self.config)
            if needs:
                raise ValueError(f"{self.path} {needs}: call {_usage(self.task.method)}")
        answers = []
        for request, (picture, batch, rows) in zip(requests, self._results(self._predict, requests), strict=True):
            height, width = picture.pixels.shape[:2]
            rows_of_model = np.concatenate([[[0, 0, width - 1, height - 1]], picture.regions.boxes])
            answers.append(self.task.decode(rows, rows_of_model, request.choices, batch, self.config))
        return answers if several else answers[0]

    def answer(self, image: Any, question: Any, boxes: Any = None) -> list[Any]:
        """Return the five best answers to a question, each with an independent probability."""
        self.require("answer")
        return self.ask(image, question, (), boxes)

    def ground(self, image: Any, expression: Any, boxes: Any = None, phrases: Sequence[str] = ()) -> list[Any]:
        """Return the five regions that an expression most probably means.

        With `phrases`, the expression is their sentence, and the result is such a list for each of them.
        """
        self.require("ground")
        if phrases:
            return self.ask(image, [expression] * len(phrases), (), boxes, list(phrases))
        return self.ask(image, expression, (), boxes)

    def fill(self, image: Any, text: Any, boxes: Any = None) -> list[Any]:
        """Return the five best words for each [MASK] of a caption, with and without the image."""
        self.require("fill")
        return self.ask(image, text, (), boxes)

    def choose(self, image: Any, question: Any, choices: Sequence[Any], boxes: Any = None) -> list[Any]:
        """Return the probability of each choice; they sum to 1.

        [1] in a text names the first region, [1,2] two of them. A model for rationales takes the
        question followed by its answer.
        """
        self.require("choose")
        found = self.ask(image, question, choices, boxes)
        several = bool(found) and isinstance(found[0], list)
        rows = [[answer.probability for answer in answers] for answers in (found if several else [found])]
        return rows if several else rows[0]

    def classify(
        self, image: Any, text: Any = "", text2: Any = "", image2: Any = None, boxes: Any = None
    ) -> list[Any]:
        """Return the best labels with their probabilities, or the numbers, as the model was trained for."""
        self.require("classify")
        return self.ask(image, text, (), boxes, text2, image2)

    def show(self, image: Any, text: Any, choices: Sequence[Any] = (), boxes: Any = None) -> PIL.Image.Image:
        """Return one image with its regions, a text or a list of texts, and the answers; a notebook shows it."""
        picture = self.look(image, boxes)
        texts = [text] if isinstance(text, str) else text
        answers = zip(texts, self.ask(picture, texts, choices), strict=True)
        return draw_asked(picture.pixels, picture.regions, [describe_answers(self.task, *pair) for pair in answers])


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=axis)


def _usage(method: str) -> str:
    """Return how a method of `Predictor` is called, such as "answer(image, question)"."""
    names = list(inspect.signature(getattr(Predictor, method)).parameters)
    return f"{method}({', '.join(name for name in names if name not in ('self', 'boxes', 'phrases'))})"
