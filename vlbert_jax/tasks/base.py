"""The interface of a task, and what the tasks over a table of texts and a table of images share.

Training, evaluation, prediction and weight conversion call these methods and know no task by name.
Losses and metrics are sums and counts over the global batch, so that one device, many devices and
batches that are cut into parts agree.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, NoTargets, Shapes
from vlbert_jax.data import tables
from vlbert_jax.model.visual_linguistic import region_head_is_frozen
from vlbert_jax.tasks import report
from vlbert_jax.tasks.report import About, Examples
from vlbert_jax.visualization.cards import Card

Config = ml_collections.ConfigDict
Metrics = dict[str, tuple[Array, Array]]  # metric -> (sum, count)


class Updates(NamedTuple):
    """Updates of a run that are one compiled program."""

    batch: Batch  # the global batch, as shapes alone
    losses: tuple[str, ...]  # that are trained
    number: int  # of such updates in the run


def _closest(name: str, cls: type) -> str:
    public = sorted({own for base in cls.__mro__[1:] for own in vars(base) if not own.startswith("_")})
    near: Iterable[str] = difflib.get_close_matches(name, public, 1)
    return f"is {next(iter(near))} meant?" if near else "helpers of a task start with an underscore"


class Task:
    """One task: its sequences, head, losses and scores, the names of its weights, and its answers to a user.

    A subclass overrides methods and attributes of this class; helpers of its own start with an
    underscore. A public name that this class does not have, or another signature, is a TypeError when
    the subclass is defined, so that a misspelt override is found at once.
    """

    name: ClassVar[str] = ""  # key of the registry and value of config.task
    targets: ClassVar[type[Arrays]] = NoTargets  # class of `Batch.targets`

    def __init_subclass__(cls, extends: bool = False, **options):
        super().__init_subclass__(**options)
        if extends:  # a base of tasks that adds hooks of its own
            return
        for name, value in vars(cls).items():
            if name.startswith("_"):
                continue
            inherited = [getattr(base, name) for base in cls.__mro__[1:] if hasattr(base, name)]
            if not inherited:
                raise TypeError(f"{cls.__name__}.{name} overrides nothing; {_closest(name, cls)}")
            if inspect.isfunction(value):
                own, other = (list(inspect.signature(f).parameters) for f in (value, inherited[0]))
                if own != other:
                    raise TypeError(f"{cls.__name__}.{name} takes {', '.join(own)}; it must take {', '.join(other)}")

    def overrides(self, method: str) -> bool:
        """Return whether the task has a method of its own in place of the default."""
        return getattr(type(self), method) is not getattr(Task, method)

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config: Config, rngs: nnx.Rngs) -> Any:
        """Return the nnx.Module that is trained; raise ValueError where the fields of `config` contradict."""
        raise NotImplementedError

    def train_batches(
        self, config: Config, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """Iterate without end over this process's part of global batches start_step, start_step + 1, ... (NumPy)."""
        raise NotImplementedError

    def eval_batches(self, config: Config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return, for each subset of the evaluation split, this process's part of its batches.

        Every example comes exactly once over all processes; the last batch is filled up with padding.
        """
        raise NotImplementedError

    def batch_shapes(self, config: Config) -> Batch:
        """Return the global batch of an update as shapes alone; this needs no data."""
        raise NotImplementedError

    def updates(self, config: Config) -> dict[str, Updates]:
        """Return the largest updates of a run by a name, "" if there is one kind; `--mode=compile` reports on them."""
        last = self.active_losses(config, config.total_steps - 1)  # the last phase trains the most
        return {"": Updates(self.batch_shapes(config), last, config.total_steps)}

    def alternates(self, config: Config) -> bool:
        """Return whether updates train different losses in turn."""
        return False

    def loss_weights(self, config: Config) -> dict[str, float]:
        """Return the weight of each loss in the sum."""
        raise NotImplementedError

    def active_losses(self, config: Config, step: int) -> tuple[str, ...]:
        """Return the names of the losses that count at `step`; they are static in the compiled program."""
        return tuple(self.loss_weights(config))

    def loss_counts(self, batch: Batch, config: Config, names: tuple[str, ...]) -> dict[str, Float[Array, ""]]:
        """Return what the sum of each loss in `names` is divided by; this needs no model."""
        raise NotImplementedError

    def loss_sums(
        self, model: Any, batch: Batch, key: Any, config: Config, names: tuple[str, ...]
    ) -> tuple[dict[str, Float[Array, ""]], Metrics]:
        """Return the sum of each loss in `names`, and training metrics; `key` is for dropout, None = no dropout."""
        raise NotImplementedError

    def score(self, model: Any, batch: Batch, config: Config) -> Metrics:
        """Return the metrics of an evaluation batch, without dropout."""
        raise NotImplementedError

    def is_frozen(self, path: tuple, config: Config) -> bool:
        """Return whether the parameter at `path` is a constant of the run."""
        return region_head_is_frozen(path, config)

    def is_idle(self, path: tuple, config: Config, names: tuple[str, ...]) -> bool:
        """Return whether updates with the losses `names` leave the parameter at `path` unchanged."""
        return False

    def initialize_heads(self, model: Any, config: Config, loaded: set[tuple]) -> None:
        """Change the heads of a new model in place; `loaded` are the paths of parameters read from weights."""

    def answer_rows(self, config: Config, count: int) -> Int[np.ndarray, "a"] | None:
        """Return the rows of the run's answers in a head of pre-training over `count` answers.

        -1 = pre-training does not know the answer; None = the task has no answers, or those of the head are unknown.
        """
        return None

    # --- Evaluation ---------------------------------------------------------------------------------

    def predict(self, model: Any, batch: Batch, config: Config) -> dict[str, Any]:
        """Return arrays [b, ...]: the predictions for each example. Empty: the task writes no predictions."""
        return {}

    def conclude(self, directory: Path, predictions: dict[str, dict], config: Config) -> dict[str, float]:
        """Write prediction files, and return the scores that need all examples at once.

        Args:
            directory: Folder for the files.
            predictions: "" or the name of a companion -> rows of `predict` in the order of their index.
            config: Config of the run.
        """
        return {}

    def joint_rows(self, model: Any, batch: Batch, config: Config) -> dict[str, Any]:
        """Return those predictions for each example that `joint_scores` needs while a run trains."""
        return self.predict(model, batch, config) if self.overrides("joint_scores") else {}

    pace: ClassVar[str] = ""  # metric whose sum per second an evaluation states, as scored pairs; "" = none

    def joint_scores(self, rows: dict[str, Any], config: Config) -> dict[str, float]:
        """Return scores that every evaluation makes of all rows of `joint_rows`, in the order of their index."""
        return {}

    def companions(self, config: Config) -> dict[str, Config]:
        """Return the configs of other runs, by name, whose predictions `conclude` needs too."""
        return {}

    # --- Probes -------------------------------------------------------------------------------------

    def probe_batches(self, config: Config, process_index: int, process_count: int) -> Iterator[Batch]:
        """Return this process's part of the batches of the evaluation split that are probed (`--mode=probe`)."""
        raise NotImplementedError

    def probe(self, model: Any, batch: Batch, config: Config) -> dict[str, Any]:
        """Return `sums`, metric -> (sum, count) as arrays of any shape, and `shown`, what figures show of the batch."""
        raise NotImplementedError

    def conclude_probe(
        self, directory: Path, about: Mapping[str, Any], sums: dict[str, Any], shown: tuple[Batch, Any], config: Config
    ) -> list[str]:
        """Write the results of all batches, and return the lines that the command prints.

        Args:
            directory: Folder for the files.
            about: What the file of results says about the run, such as its step.
            sums: Metric -> (sum, count) over all batches.
            shown: The first batch (NumPy) and its `shown`.
            config: Config of the run.
        """
        raise NotImplementedError

    # --- Report -------------------------------------------------------------------------------------

    # Metric (without _blind and group), or kind of group -> its readable label.
    metric_labels: ClassVar[Mapping[str, str]] = {}
    prompt: ClassVar[str] = ""  # arguments of the prediction command that ask the model something, as an example

    def report_title(self, config: Config) -> str:
        """Return the heading of the report."""
        return self.name

    def report_batches(self, config: Config) -> list[Batch]:
        """Return whole batches of the evaluation split (NumPy) from which the report's examples are chosen."""
        return []

    def report_rows(self, model: Any, batch: Batch, config: Config) -> dict[str, Any]:
        """Return arrays [b, ...]: what the report shows of the model's answers to a batch."""
        return self.predict(model, batch, config)

    def report_examples(
        self, shown: list[tuple[Batch, dict]], config: Config, scores: Mapping[str, Any]
    ) -> Examples:
        """Return the examples of the report.

        Args:
            shown: The batches of `report_batches`, each with its rows of `report_rows`.
            config: Config of the run.
            scores: The newest evaluation; the examples are right as often as it says.
        """
        return Examples()

    def next_commands(self, config: Config, workdir: str) -> list[tuple[str, str]]:
        """Return commands for a trained model, each (what it does, the command); `workdir` is quoted."""
        # Demos know synthetic scenes alone.
        image = "examples/scene.jpg --boxes=examples/scene.json" if config.data.get("embedded") else "photo.jpg"
        ask = f"python -m vlbert_jax.predict --checkpoint={workdir} --image={image} {self.prompt}"
        return [("Ask the model about an image:", ask)] if self.prompt else []

    def write_report(
        self, directory: Path, shown: list[tuple[Batch, dict]], config: Config, history: list[dict], about: About
    ) -> Examples:
        """Write the report page of the run, `directory`/index.html, and return its examples.

        Args:
            directory: Folder of the page.
            shown: As in `report_examples`; empty where the page has no examples.
            config: Config of the run.
            history: Rows of metrics.jsonl.
            about: What the page says about the run.
        """
        examples = self.report_examples(shown, config, report.newest_scores(history)) if shown else Examples()
        report.write_report(directory, self.report_title(config), self.metric_labels, examples, config, history, about)
        return examples

    # --- Weights ------------------------------------------------------------------------------------

    # Module of vlbert_jax -> module of the official model, for the heads of this task.
    official_names: ClassVar[Mapping[str, str]] = {}
    # Architecture -> module of vlbert_jax -> module of the original code, for the heads of this task in other models.
    family_names: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    # Architecture -> class of Hugging Face's transformers that has the heads of this task.
    hugging_face: ClassVar[Mapping[str, str]] = {}
    # Prefixes of official tensors that only heads of this task have, in whatever arrangement.
    official_heads: ClassVar[tuple[str, ...]] = ()
    official_prefix: ClassVar[str] = "vlbert."  # what the official model calls the trunk
    # Prefix of an official pre-training tensor -> prefix of the tensor of this task that starts from it, or of several.
    starts_from: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    # Row of the segment table -> row of the pre-trained table that it starts from.
    segments_from: ClassVar[Mapping[int, int]] = {}
    # The same for a sibling: architecture -> row that pre-training does not train -> row of the pre-trained table.
    family_segments_from: ClassVar[Mapping[str, Mapping[int, int]]] = {}

    # What to do where weights that are evaluated lack tensors of the model.
    missing_remedy: ClassVar[str] = "Evaluation requires a run of this task, not weights that it starts from."

    def owns(self, names: set[str]) -> bool:
        """Return whether official tensors with these names include the heads of this task."""
        return False

    def config_from_weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the fields of the config, by dotted name, that the shapes of official tensors determine."""
        return {}

    def owns_family(self, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether tensors of a sibling, by the names of `family_names`, include the heads of this task."""
        return False

    def config_from_family(self, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the fields of the config, by dotted name, that a sibling and the shapes of its tensors determine."""
        return {}

    # Fields of config.data and of the config itself (by dotted name) of the published recipe, for weights without a
    # stored config.
    defaults: ClassVar[Mapping[str, Any]] = {}

    # --- Answers to a user --------------------------------------------------------------------------

    method: ClassVar[str] = ""  # method of `Predictor` that this task answers
    takes_choices: ClassVar[bool] = False  # whether the user gives the choices

    def load_vocabularies(self, config: Config) -> None:
        """Load what answers are read from; raise FileNotFoundError or ValueError where it is missing."""

    def warn_of_lists(self, config: Config, stored: Config) -> None:
        """Log a warning where a list is not that of `stored`, the `config.data` of the weights."""

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config: Config) -> Example:
        """Return the example of a user's text about an image.

        Args:
            record: `image` (uint8 pixels [y, x, 3]), `image_size` (width, height), `boxes` [r, 4] in
                pixels of the image, `labels` (str per box), and `features` where they are precomputed.
            text: Question, expression or caption.
            choices: Texts to choose from, where the task takes choices.
            config: Config of the model.

        Raises:
            ValueError: The text does not suit the task.
        """
        raise NotImplementedError

    def check_text(self, text: str, config: Config) -> None:
        """Raise ValueError where a user's text asks nothing of the task."""

    def plain_text(self, text: str) -> str:
        """Return a user's text without notation that is not words of the vocabulary."""
        return text

    def predict_text(self, model: Any, batch: Batch, config: Config) -> dict[str, Any]:
        """Return arrays [1, ...] from which `decode` reads the answers for a batch of one user text."""
        return self.predict(model, batch, config)

    def decode(
        self,
        rows: dict[str, Any],
        boxes: Float[np.ndarray, "r 4"],
        choices: Sequence[str],
        batch: Batch,
        config: Config,
    ) -> list[Any]:
        """Return the answers as named tuples, the best first where they compete.

        Args:
            rows: What `predict_text` returned, as NumPy arrays.
            boxes: Boxes of the model's rows in pixels of the image; row 0 is the whole image.
            choices: As in `example_from_text`.
            batch: The batch of the text, as NumPy arrays.
            config: Config of the model.
        """
        raise NotImplementedError

    def describe(self, answers: list[Any]) -> dict[str, Any]:
        """Return the answers as plain values for JSON: one field."""
        raise NotImplementedError

    def lines(self, described: Mapping[str, Any]) -> list[str]:
        """Return what `describe` returned as lines to print."""
        raise NotImplementedError

    def marks(self, text: str, described: Mapping[str, Any]) -> dict[int, str]:
        """Return the number of each box to draw strongly (from 0) and the label to write on it."""
        return {}


class TextImageTask(Task, extends=True):
    """A task over a table of texts and a table of images (data/tables.py).

    A subclass says how an example is made of a record (`example_maker`, `example_shapes`) and how it
    is shown in the report (`card`).
    """

    subset: ClassVar[str] = "questions"  # name of the one subset that is evaluated

    def example_maker(self, config: Config, orientation: str, train: bool) -> Callable[[dict, bool], Example]:
        """Return the function (record, mirrored) -> example for images of `orientation`."""
        raise NotImplementedError

    def example_shapes(self, config: Config) -> Shapes:
        """Return shapes and dtypes of an example of most batches."""
        raise NotImplementedError

    target_remedy: ClassVar[str] = ""  # what to do where `target_checker` accepts no record

    def target_checker(self, config: Config, train: bool) -> Callable[[dict], bool] | None:
        """Return the function record -> False where it has a target that no output can match; None = no check."""
        return None

    def card(self, record: dict, shown: dict, row: dict, config: Config) -> Card | None:
        """Return the card of an example in the report; None where no right answer is known.

        Args:
            record: Record of the example.
            shown: Fields `image` and `boxes` of the card.
            row: The example's row of each array of `predict`.
            config: Config of the run.
        """
        raise NotImplementedError

    def train_batches(
        self, config: Config, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """Iterate without end over this process's part of global batches start_step, start_step + 1, ... (NumPy)."""
        shapes = self.example_shapes(config)
        self._check_targets(config, True)
        return tables.train_batches(
            config, self.example_maker, shapes, self.targets, start_step, process_index, process_count
        )

    def eval_batches(self, config: Config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return this process's part of the evaluation split, every example once over all processes."""
        shapes = self.example_shapes(config)
        self._check_targets(config, False)
        parts = tables.eval_parts(config, self.example_maker, shapes, self.targets, process_index, process_count)
        return {self.subset: itertools.chain.from_iterable(parts)}

    def _check_targets(self, config: Config, train: bool) -> None:
        split = config.data.train_split if train else config.data.eval_split
        tables.check_targets(config, split, self.target_checker(config, train), self.target_remedy)

    def batch_shapes(self, config: Config) -> Batch:
        """Return the global batch of an update as shapes alone; this needs no data."""
        return tables.batch_shapes(config, self.example_shapes(config), self.targets)

    def report_batches(self, config: Config) -> list[Batch]:
        """Return the first batch of each orientation; none where the images are not stored."""
        if config.data.features != "image":
            return []
        shapes = self.example_shapes(config)
        return [next(part) for part in tables.eval_parts(config, self.example_maker, shapes, self.targets, 0, 1)]

    def report_examples(
        self, shown: list[tuple[Batch, dict]], config: Config, scores: Mapping[str, Any]
    ) -> Examples:
        """Return texts with the image and the model's answers."""
        return report.answer_examples(shown, config, self.card, scores.get(config.best_metric))
