"""Classification of one or two images with one or two texts: a class, any number of labels, or numbers.

`config.losses.classify` is the kind: softmax (one label), sigmoid (any number of labels) or squared
(numbers). `config.model.read` says what the head reads, `config.model.pair` how it reads two images.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, padding
from vlbert_jax.data import tables
from vlbert_jax.data.examples import has_orientations, image_shapes, orientation_of, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.layers import split_keys
from vlbert_jax.model.visual_linguistic import without_image
from vlbert_jax.tasks.answers import Answer, answer_fields, answer_line
from vlbert_jax.tasks.base import TextImageTask
from vlbert_jax.tasks.classify import report as sections
from vlbert_jax.tasks.classify.examples import ClassLayout, class_example, labels_of, loss_of
from vlbert_jax.tasks.classify.losses import answers_of, class_losses, class_metrics
from vlbert_jax.tasks.classify.model import ClassifyModel, build_classifier
from vlbert_jax.tasks.classify.results import JOINT, PREFIX, conclude_split, own_scores, predicted_of
from vlbert_jax.tasks.classify.weights import (
    MASK_OF_VLBERT,
    OWN_NAMES,
    SIBLINGS,
    fields_of_own,
    fields_of_sibling,
    own_head,
    sibling_head,
)
from vlbert_jax.tasks.losses import counted
from vlbert_jax.tasks.report import Examples
from vlbert_jax.visualization.cards import Card

REPORTED = 256  # examples of the report's confusion matrix, at least, where the split has as many
TOP = 5  # labels of a prediction


class Value(NamedTuple):
    """A number that the model predicts."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class ClassTargets(Arrays):
    """What an example is trained and scored on."""

    mask_positions: Int[Array | np.ndarray, "b n"] | None = padding(0, default=None)  # element of [MASK]
    # 1 for each right label, or standardized numbers.
    label_targets: Float[Array | np.ndarray, "b k"] | None = padding(0, default=None)
    known: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # whether the targets are known
    text_cut: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # a text was cut


class ClassifyTask(TextImageTask):
    """Classes, labels or numbers of images and texts."""

    name = "classify"
    targets = ClassTargets
    subset = "examples"

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> ClassifyModel:
        """Return the model of a config; config.model.num_labels is the number of its outputs."""
        return build_classifier(config, rngs)

    def example_maker(self, config, orientation: str, train: bool) -> Callable[[dict, bool], Example]:
        """Return the function that makes an example of a record."""
        tokenizer, labels, layout = tokenizer_of(config), labels_of(config), ClassLayout.of(config, orientation)
        split = config.data.train_split

        def make(record: dict, flip: bool) -> Example:
            example = class_example(record, flip, tokenizer, layout, labels)
            counts = example["known"] and (layout.loss != "softmax" or example["label_targets"].any())
            if train and not counts:
                found = f"the label {record['labels'][0]!r}, which config.data.labels lacks" if record["labels"] else (
                    "no label"
                )  # fmt: skip
                raise ValueError(f"An example of {split} in {config.data.texts} has {found}: build the table again, or "
                                 "choose another config.data.train_split.")  # fmt: skip
            return example

        return make

    target_remedy = "Check config.data.labels, the list of labels."

    def target_checker(self, config, train: bool) -> Callable[[dict], bool]:
        """Return the function that finds one of the labels in the list, or that none is known or needed."""
        labels, loss = labels_of(config), loss_of(config)

        def is_usable(record: dict) -> bool:
            return loss != "softmax" or not record["known"] or any(label in labels for label in record["labels"])

        return is_usable

    def example_shapes(self, config) -> Shapes:
        """Return shapes and dtypes of an example of most batches."""
        layout = ClassLayout.of(config, usual_orientation(config))
        n = layout.head.num_sequences
        shapes = sequence_shapes(n, layout.sequence_length, layout.regions) | image_shapes(layout)
        shapes |= dict(mask_positions=((n,), np.int32), label_targets=((layout.head.num_labels,), np.float32))
        return shapes | dict(known=((), bool), text_cut=((), bool))

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of the one loss."""
        return {"classify": 1.0}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the sum of the weights of the examples that count: their number where all classes weigh the same."""
        outputs = jnp.zeros(batch.targets.label_targets.shape)
        return {"classify": jnp.maximum(class_losses(outputs, batch.targets, config)[1].sum(), 1e-6)}

    def loss_sums(self, model: ClassifyModel, batch: Batch, key, config, names):
        """Return the summed loss and the score of the kind."""
        outputs = _outputs(model, batch, config, key)
        losses, _ = class_losses(outputs, batch.targets, config)
        return {"classify": losses.sum()}, class_metrics(outputs, batch.targets, config)

    def score(self, model: ClassifyModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return the score of the kind, the loss, and the share of examples whose texts were cut."""
        outputs = _outputs(model, batch, config)
        losses, weights = class_losses(outputs, batch.targets, config)
        return class_metrics(outputs, batch.targets, config) | dict(
            classify_loss=(losses.sum(), weights.sum()),
            text_cut=counted(batch.targets.text_cut, batch.element_mask.any((1, 2))),
        )

    # --- Evaluation ---------------------------------------------------------------------------------

    def predict(self, model: ClassifyModel, batch: Batch, config) -> dict[str, Array]:
        """Return the probabilities of the labels, or the numbers, [b, k]."""
        return dict(probabilities=answers_of(_outputs(model, batch, config), config))

    def joint_rows(self, model: ClassifyModel, batch: Batch, config) -> dict[str, Array]:
        """Return the predictions while a run trains, if `config.best_metric` is a score that needs all examples."""
        is_joint = config.best_metric.removeprefix(PREFIX) in JOINT
        return self.predict(model, batch, config) if is_joint else {}

    def joint_scores(self, rows: dict, config) -> dict[str, float]:
        """Return the scores of all examples at once, such as AUROC, where labels are known."""
        return {f"{PREFIX}{name}": value for name, value in own_scores(predicted_of(rows, config)).items()}

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write SPLIT.jsonl and SPLIT.csv; return the scores that need all examples, where labels are known."""
        return conclude_split(directory, predictions[""], config)

    metric_labels = {
        "classify_accuracy": "examples classified right",
        "classify_micro_f1": "F1 of all labels together",
        "classify_macro_f1": "mean F1 of the labels",
        "classify_f1": "F1 of the positive label",
        "classify_auroc": "area under the ROC curve",
        "classify_average_precision": "average precision",
        "classify_squared_error": "mean squared error",
        "classify_loss": "loss of the labels",
        "text_cut": "share of texts that were cut to the length of the sequence",
    }
    prompt = '--text "is the cup full?"'

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        kind = {"softmax": "Classes", "sigmoid": "Labels", "squared": "Numbers"}[loss_of(config)]
        return f"{kind} of {'pairs of images' if config.data.get('images_per_example', 1) == 2 else 'images'}"

    def report_batches(self, config) -> list[Batch]:
        """Return the first batches of each orientation, with REPORTED examples or all."""
        shapes, batches = self.example_shapes(config), []
        parts = tables.eval_parts(config, self.example_maker, shapes, self.targets, 0, 1)
        for part in parts:
            seen = 0
            while seen < REPORTED // len(parts) and (batch := next(part, None)) is not None:
                batches.append(batch)
                seen += config.batch_size
        return batches

    def report_examples(self, shown, config, scores: Mapping[str, Any]) -> Examples:
        """Return cards of examples, and a table of confusions and calibration over the reported examples."""
        best = scores.get("classify_accuracy")
        has_pixels = [pair for pair in shown if pair[0].pixels is not None]
        examples = super().report_examples(has_pixels, config, {config.best_metric: best})
        targets = np.concatenate([batch.targets.label_targets[batch.targets.known] for batch, _ in shown])
        values = np.concatenate([rows["probabilities"][batch.targets.known] for batch, rows in shown])
        loss, labels = loss_of(config), labels_of(config)
        if loss == "squared" or not len(targets):
            return examples
        if loss == "softmax":
            right = np.where(targets.any(1), targets.argmax(1), -1)
            more = sections.class_sections(labels, right, values)
        else:
            more = sections.label_sections(labels, targets > 0, values)
        return Examples([*examples.sections, *more], examples.cards)

    def card(self, record: dict, shown: dict, row: dict, config) -> Card | None:
        """Return the card of an example with the best labels."""
        return sections.example_card(record, shown, row, labels_of(config), loss_of(config))

    # --- Weights ------------------------------------------------------------------------------------

    official_names = OWN_NAMES | MASK_OF_VLBERT
    family_names = SIBLINGS
    family_segments_from = {"uniter": {2: 1}}
    official_heads = ("label_mlp.", "pair_mlp.", "pair_attention.", "mask_classes.")

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights of classes, labels or numbers."""
        return bool(own_head(dict.fromkeys(names, ())))

    def config_from_weights(self, shapes) -> dict[str, Any]:
        """Return the number of outputs, and what the head reads."""
        return fields_of_own(shapes)

    def owns_family(self, architecture: str, shapes) -> bool:
        """Return whether a sibling has a head for pairs of images, or for the relation of a text to an image."""
        return bool(sibling_head(architecture, shapes)[0])

    def config_from_family(self, architecture: str, shapes) -> dict[str, Any]:
        """Return the head, its labels, and the lengths of the published recipe."""
        return fields_of_sibling(architecture, shapes)

    defaults = {
        "data.max_regions": 100,
        "data.sequence_length": 164,
        "data.labels": "",
        "losses.classify": "softmax",
    }

    # --- Answers to a user --------------------------------------------------------------------------

    method = "classify"

    def load_vocabularies(self, config) -> None:
        """Load the list of labels."""
        labels_of(config)

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of a text without known labels; the record may have `text2` and `images`."""
        images = record.get("images") or [record]
        orientation = orientation_of(images[0]) if has_orientations(config) else "square"
        layout = dataclasses.replace(ClassLayout.of(config, orientation), num_images=len(images))
        asked = dict(images=images, text=text, text2=record.get("text2", ""), labels=(), values=(), known=False)
        return class_example(asked, False, tokenizer_of(config), layout, labels_of(config))

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Any]:
        """Return the best labels; those of a sigmoid do not sum to 1. Or return the numbers."""
        labels, values = labels_of(config), rows["probabilities"][0]
        if loss_of(config) == "squared":
            return [Value(name, float(value)) for name, value in zip(labels, values, strict=True)]
        return [Answer(labels[k], float(values[k])) for k in np.argsort(-values, kind="stable")[:TOP]]

    def describe(self, answers: list[Any]) -> dict[str, Any]:
        """Return the labels or the numbers as plain values."""
        if answers and isinstance(answers[0], Value):
            return {"values": [dict(name=one.name, value=float(f"{one.value:.6g}")) for one in answers]}
        return {"answers": [answer_fields(answer) for answer in answers]}

    def lines(self, described) -> list[str]:
        """Return the labels or the numbers in one line."""
        if "values" in described:
            return ["   ".join(f"{one['name']} {one['value']:g}" for one in described["values"])]
        return [answer_line(described["answers"])]


def _outputs(model: ClassifyModel, batch: Batch, config, key=None) -> Float[Array, "b k"]:
    key_project, key_encode, key_head = split_keys(key, 3)
    states = model.states(batch, key_project, key_encode, config.blind)
    seen = without_image(batch, config.model.encoder.vocab_size) if config.blind else batch
    return model.outputs(states, seen, batch.targets.mask_positions, key_head)
