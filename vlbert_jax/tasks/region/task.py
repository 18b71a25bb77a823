"""Referring expressions, phrases of a sentence and pointing questions: which region is meant (paper, section 4.3)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, padding
from vlbert_jax.data.examples import image_shapes, is_precomputed, orientation_of, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.records import open_split
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.layers import PredictionHead, xavier_init
from vlbert_jax.tasks.base import TextImageTask
from vlbert_jax.tasks.head_names import hidden_head
from vlbert_jax.tasks.layouts import lengths_of_family, trunk_options
from vlbert_jax.tasks.losses import counted
from vlbert_jax.tasks.region.examples import LISTED, ExpressionLayout, asked_example, expression_example, hits
from vlbert_jax.tasks.region.listed import check_listed, is_labeled, listed_example, right_rows
from vlbert_jax.tasks.region.model import (
    LOSSES,
    RegionModel,
    accuracies,
    appearance_of,
    baseline_logits,
    choice_accuracy,
    choosable,
    has_right_region,
    is_judged,
    loss_kind,
    region_logits,
    summed_loss,
)
from vlbert_jax.tasks.region.predictions import SCORERS, num_predicted, write_listed, write_referring
from vlbert_jax.tasks.scorers import scorer_of
from vlbert_jax.visualization.cards import Card, RankedAnswer

FAMILY_HEADS = {"uniter": "re_output", "vilbert": "vision_logit"}  # of published siblings
FAMILY_LENGTHS = {"lxmert": (36, 20), "vilbert": (100, 20)}  # regions, and elements of an expression
TASK_OF_12_IN_1 = 10  # RefCOCO+
CHECKED_IMAGES = 20  # so many first images without a detection are taken for a mistake


class Place(NamedTuple):
    """A region that an expression may mean."""

    box: tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image
    probability: float  # that the expression means it; regions are independent, with the softmax loss they share it
    region: int  # row; 0 is the whole image


@dataclasses.dataclass(frozen=True, eq=False)
class RegionTargets(Arrays):
    """What an expression is trained and scored on."""

    region_positions: Int[Array | np.ndarray, "b n r"] | None = padding(0, default=None)  # elements of the regions
    region_targets: Bool[Array | np.ndarray, "b r"] | None = padding(False, default=None)  # meant by the expression
    region_hits: Bool[Array | np.ndarray, "b r"] | None = padding(False, default=None)  # count as right when chosen
    region_choices: Bool[Array | np.ndarray, "b r"] | None = padding(False, default=None)  # may be chosen; None = all
    region_known: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # is labeled; None = all
    text_cut: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # the expression was cut


def _layers(name: str) -> dict[str, str]:
    """Return module -> tensor of a grounding head; `name` is the one layer, or the prefix of several layers."""
    return {"grounding_head": name} | hidden_head("grounding_head", name)


def _kind_of_head(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the kind of head (`HEADS` of model.py) that tensors have; "hidden" where `name` is none of theirs."""
    kinds = {f"{name}.weight": "linear", f"{name}.3.weight": "norm"}
    return next((kind for layer, kind in kinds.items() if layer in shapes), "hidden")


class RegionTask(TextImageTask):
    """Choosing the region that an expression means."""

    name = "region"
    targets = RegionTargets
    subset = "expressions"

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> RegionModel:
        """Return the model of a config."""
        return RegionModel(*trunk_options(config), rngs, config.model.get("grounding_head", "hidden"))

    def initialize_heads(self, model: RegionModel, config, loaded: set[tuple]) -> None:
        """Initialize the layer that scores a region as the official code does."""
        if isinstance(model.region_head, PredictionHead) and ("region_head", "classes", "kernel") not in loaded:
            xavier_init(model.region_head.classes.kernel, config.seed)

    def example_maker(self, config, orientation: str, train: bool) -> Callable[[dict, bool], Example]:
        """Return the function that makes the example of an expression."""
        tokenizer, layout = tokenizer_of(config), ExpressionLayout.of(config, orientation, train)
        _check_table(config, layout.kind)
        make = listed_example if layout.kind == LISTED else expression_example
        return lambda record, flip: make(record, flip, tokenizer, layout)

    target_remedy = (
        "No region overlaps the box that is meant by half: check the boxes of the tables, config.data.train_boxes and "
        "eval_boxes, and config.data.max_regions."
    )

    def target_checker(self, config, train: bool) -> Callable[[dict], bool]:
        """Return the function that finds a right region among those of the model, or no label where none is needed."""
        layout = ExpressionLayout.of(config, train=train)
        _check_table(config, layout.kind)
        read = slice(layout.regions.first_row, layout.max_regions + 1)

        def is_usable(record: dict) -> bool:
            unlabeled = layout.kind == LISTED and not train and not is_labeled(record)
            return unlabeled or bool(_right_rows(record, layout)[read].any())

        return is_usable

    def example_shapes(self, config) -> Shapes:
        """Return shapes and dtypes of an example of most batches."""
        layout = ExpressionLayout.of(config, usual_orientation(config))
        rows = layout.max_regions + 1
        shapes = sequence_shapes(1, layout.sequence_length, layout.regions) | image_shapes(layout)
        some_only = layout.kind == LISTED or layout.regions.first_row > 0
        flags = ("region_targets", "region_hits", *(("region_choices",) if some_only else ()))
        shapes |= dict.fromkeys(flags, ((rows,), bool)) | dict(text_cut=((), bool))
        shapes |= dict(region_known=((), bool)) if layout.kind == LISTED else {}
        return shapes | dict(region_positions=((1, rows), np.int32))

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of the one loss; raise ValueError where its kind is unknown."""
        if (kind := loss_kind(config)) not in LOSSES:
            raise ValueError(f"config.losses.grounding is {kind!r}; it must be one of {', '.join(LOSSES)}")
        return {"region": 1.0}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the number of regions that may be chosen, or of examples that have a right one."""
        learned = has_right_region(batch) if loss_kind(config) == "softmax" else choosable(batch)
        return {"region": jnp.maximum(learned.sum().astype(jnp.float32), 1.0)}

    def loss_sums(self, model: RegionModel, batch: Batch, key, config, names):
        """Return the summed loss and the training accuracies."""
        logits = region_logits(model, batch, appearance_of(model, batch, config.blind), key)
        return {"region": summed_loss(logits, batch, loss_kind(config))[0]}, accuracies(logits, batch)

    def score(self, model: RegionModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return the accuracy of the choice, of baselines, of any region (`chance`), of the best (`possible`)."""
        logits_by_name, labeled = baseline_logits(model, batch, config), is_judged(batch)
        any_region = batch.targets.region_hits.sum(1) / jnp.maximum(choosable(batch).sum(1), 1)
        choices = {f"grounding_accuracy{name}": choice_accuracy(rows, batch) for name, rows in logits_by_name.items()}
        return accuracies(logits_by_name[""], batch) | choices | dict(
            grounding_accuracy_chance=counted(any_region, labeled),
            grounding_accuracy_possible=counted(batch.targets.region_hits.any(1), labeled),
            region_loss=summed_loss(logits_by_name[""], batch, loss_kind(config)),
            text_cut=counted(batch.targets.text_cut, batch.region_mask.any(1)),
        )

    # --- Evaluation ---------------------------------------------------------------------------------

    def predict(self, model: RegionModel, batch: Batch, config) -> dict[str, Array]:
        """Return the rows of the best regions and their probabilities, [b, 5]; 0 where there are fewer."""
        logits = region_logits(model, batch, appearance_of(model, batch, config.blind))
        best, region = jax.lax.top_k(logits, min(num_predicted(config), logits.shape[-1]))
        if loss_kind(config) == "softmax":
            return dict(region=region, probability=jnp.exp(best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)))
        return dict(region=region, probability=jax.nn.sigmoid(best))

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write the files of predictions and return the scores that need all examples; see predictions.py."""
        write = write_listed if config.data.eval_boxes == LISTED else write_referring
        return write(directory, predictions[""], config)

    metric_labels = {
        "grounding_accuracy": "expressions whose region was found",
        "grounding_accuracy_chance": "the same by chance",
        "grounding_accuracy_possible": "the same at best, with these regions",
        "grounding_accuracy_wordless": "the same without the words",
        "grounding_identity_accuracy": "expressions whose very object was found",
        "grounding_accuracy_top5": "phrases of which one of the best five regions is right",
        "grounding_accuracy_top10": "phrases of which one of the best ten regions is right",
        "grounding_merged_accuracy": "phrases whose merged box was found",
        "pointing_accuracy": "questions whose box was found",
        "region_accuracy": "regions judged right, of all",
        "region_loss": "loss of the regions",
        "positive_region_accuracy": "regions judged right, of those that are meant",
        "positive_region_fraction": "share of regions that are meant",
        "text_cut": "share of texts that were cut to the length of the sequence",
    }
    prompt = '--expression "the one on the left"'

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return "VL-BERT on referring expressions"

    def card(self, record: dict, shown: dict, row: dict, config) -> Card | None:
        """Return the card of an expression with the best regions; None without a label."""
        layout = ExpressionLayout.of(config, train=False)
        if layout.kind == LISTED and not is_labeled(record):
            return None
        right = _right_rows(record, layout)
        answers = [
            RankedAnswer(f"region {i}" if i else "the whole image", float(p), float(right[i]))
            for i, p in zip(row["region"], row["probability"], strict=True)
            if i < len(shown["boxes"])
        ]
        meant = ", ".join(map(str, np.flatnonzero(right))) or "none of the regions"
        context = f"{record['context']} — " if record.get("context") else ""
        return Card(**shown, question=f"{context}{record['expression']}", answers=answers, title=f"meant: {meant}")

    # --- Weights ------------------------------------------------------------------------------------

    official_names = {
        "region_head/transform": "final_mlp.0.dense",
        "region_head/classes": "final_mlp.2",
    } | _layers("grounding_mlp")  # the released VL-BERTs have no such head: names for files of this package
    family_names = {"uniter": _layers("re_output")}
    official_heads = ("final_mlp.", "grounding_mlp.")
    starts_from = {"vlbert.mvrc_head.transform.": "final_mlp.0."}
    defaults = {"data.max_regions": 120, "data.sequence_length": 160, "data.eval_boxes": "gt"}

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights for referring expressions: the head of VL-BERT has no norm."""
        own = {"grounding_mlp.weight", "grounding_mlp.3.weight"} & names
        return bool(own) or ("final_mlp.2.weight" in names and "final_mlp.0.LayerNorm.weight" not in names)

    def config_from_weights(self, shapes) -> dict:
        """Return the kind of the head."""
        return {"model.grounding_head": _kind_of_head("grounding_mlp", shapes)}

    def owns_family(self, architecture: str, shapes) -> bool:
        """Return whether a sibling has a head that scores regions."""
        return architecture in FAMILY_HEADS and _kind_of_head(FAMILY_HEADS[architecture], shapes) != "hidden"

    def config_from_family(self, architecture: str, shapes) -> dict:
        """Return the kind of the head, and the lengths of the published recipe; features belong to listed boxes."""
        return {
            "model.grounding_head": _kind_of_head(FAMILY_HEADS.get(architecture, ""), shapes),
            "data.train_boxes": LISTED,
            "data.eval_boxes": LISTED,
            "losses.grounding": "softmax" if architecture == "uniter" else "sigmoid",
        } | lengths_of_family(architecture, shapes, *FAMILY_LENGTHS.get(architecture, (100, 60)), TASK_OF_12_IN_1)

    # --- Answers to a user --------------------------------------------------------------------------

    method = "ground"

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of an expression whose region is not known; with `text2`, of this phrase of the text."""
        layout = ExpressionLayout.of(config, orientation_of(record), train=False)
        phrase = record.get("text2", "")
        record = record | (dict(expression=phrase, context=text) if phrase else dict(expression=text))
        return asked_example(record, record["boxes"], False, tokenizer_of(config), layout)

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Place]:
        """Return the regions that the expression most probably means."""
        pairs = zip(rows["region"][0], rows["probability"][0], strict=True)
        return [Place(tuple(boxes[i].tolist()), float(p), int(i)) for i, p in pairs if i < len(boxes)]

    def describe(self, answers: list[Place]) -> dict:
        """Return the places as plain values."""
        return {
            "places": [
                dict(box=[round(v, 1) for v in p.box], region=p.region, probability=round(p.probability, 4))
                for p in answers
            ]
        }

    def lines(self, described) -> list[str]:
        """Return the best place."""
        best = described["places"][0]
        where = "the whole image" if best["region"] == 0 else f"region {best['region']}, {best['box']}"
        return [f"{where}  {best['probability']:.0%}"]

    def marks(self, text: str, described) -> dict[int, str]:
        """Return the best box, labelled with the expression; none where it is the whole image."""
        best = described["places"][0]
        return {best["region"] - 1: f"{text}  {best['probability']:.0%}"} if best["region"] else {}


def _right_rows(record: dict, layout: ExpressionLayout) -> Bool[np.ndarray, "r"]:
    """Return which rows count as right when chosen."""
    if layout.kind == LISTED:
        return right_rows(record, layout.regions.first_row)
    return hits(record, layout.kind, layout.image_scale, layout.caffe_resize)


def _check_table(config, kind: str) -> None:
    """Raise ValueError where the records have no such regions to choose from."""
    d = config.data
    if kind == LISTED:
        scorer_of(config, SCORERS)
        split = Split(config, d.train_split)
        check_listed(split[0])
        if is_precomputed(config) and "boxes" in split.texts[0]:
            raise ValueError(
                f"the texts of {d.texts} have boxes of their own, for which no features are stored: set "
                "config.data.features=image."
            )
        return
    if kind == "gt":
        return
    images = open_split(d.data_dir, d.images, "images")
    if not any(len(images[i]["proposals"]) for i in range(min(len(images), CHECKED_IMAGES))):
        raise ValueError(
            f"{d.images} in {d.data_dir} has no detections: build it with --proposals, or choose among annotations "
            "(config.data.train_boxes=gt, config.data.eval_boxes=gt)"
        )
