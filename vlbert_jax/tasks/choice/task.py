"""Visual commonsense reasoning: four sequences, one per choice, share an image (paper, section 4.1).

`config.subtask`: q2a chooses the answer, qa2r the rationale with the right answer given. The two are
trained separately; evaluation joins them where `config.companion` names the weights of the other.
"""

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, padding
from vlbert_jax.data.examples import image_shapes, orientation_of, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.files import read_json_object
from vlbert_jax.model.architectures import VLBERT
from vlbert_jax.model.config import architecture_of
from vlbert_jax.model.layers import split_keys, xavier_init
from vlbert_jax.model.visual_linguistic import without_image
from vlbert_jax.tasks.answers import Answer, answer_fields, answer_line
from vlbert_jax.tasks.base import TextImageTask
from vlbert_jax.tasks.choice.examples import ChoiceLayout, choice_example
from vlbert_jax.tasks.choice.model import ChoiceModel, choice_losses, object_losses, objects_of, states_of
from vlbert_jax.tasks.choice.results import accuracies, own_rows, probabilities, write_table
from vlbert_jax.tasks.choice.texts import (
    ALIGNED,
    REGION,
    SUBTASKS,
    as_question,
    first_name,
    is_answerable,
    object_names,
    readable,
    record_of_text,
)
from vlbert_jax.tasks.choice.weights import (
    FAMILY_NAMES,
    OWN_NAMES,
    fields_of_own,
    fields_of_sibling,
    is_of_sibling,
)
from vlbert_jax.tasks.layouts import trunk_options
from vlbert_jax.tasks.losses import counted
from vlbert_jax.tasks.own_predictions import write_own
from vlbert_jax.visualization.cards import Card, RankedAnswer

log = logging.getLogger(__name__)
CHOICE_COUNTS = (2, 4, 8, 16)  # numbers of sequences that a user's choices are filled up to


@dataclasses.dataclass(frozen=True, eq=False)
class ChoiceTargets(Arrays):
    """What a question with its choices is trained and scored on."""

    region_positions: Int[Array | np.ndarray, "b n r"] | None = padding(0, default=None)  # elements of the regions
    region_classes: Int[Array | np.ndarray, "b r"] | None = padding(-1, default=None)  # class of each region; -1 = none
    choice: Int[Array | np.ndarray, "b"] | None = padding(-1, default=None)  # the right sequence; -1 = unknown
    text_cut: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # a text was cut


class ChoiceTask(TextImageTask):
    """Choosing the answer to a question, or the rationale of an answer."""

    name = "choice"
    targets = ChoiceTargets
    subset = "questions"

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> ChoiceModel:
        """Return the model of a config; config.model.num_object_classes includes the background, 0 = no classes."""
        kind = config.model.get("choice_head", "score")
        if config.losses.get("object", 0) and not config.model.num_object_classes:
            raise ValueError(
                f"config.losses.object is {config.losses.object}, but config.model.num_object_classes=0 is a model "
                "without classes of the objects: set config.losses.object=0, or the number of classes."
            )
        return ChoiceModel(*trunk_options(config), config.model.num_object_classes, rngs, kind)

    def initialize_heads(self, model: ChoiceModel, config, loaded: set[tuple]) -> None:
        """Initialize the layer that scores a choice as the official code of VL-BERT does."""
        head, is_vlbert = model.choice_head, architecture_of(config).name == VLBERT.name
        if is_vlbert and isinstance(head, nnx.Linear) and ("choice_head", "kernel") not in loaded:
            xavier_init(head.kernel, config.seed)
        if ("vlbert", "pooler", "kernel") not in loaded and loaded:
            log.warning(
                "The pooler after [CLS] is new: pre-training has none. The official code takes that of BERT: set "
                "config.init.bert."
            )

    def example_maker(self, config, orientation: str, train: bool) -> Callable[[dict, bool], Example]:
        """Return the function that makes the example of a question with its choices."""
        tokenizer, layout = tokenizer_of(config), ChoiceLayout.of(config, orientation, train)

        def make(record: dict, flip: bool) -> Example:
            record = as_question(record)
            example = choice_example(record, flip, tokenizer, layout)
            if train and example["choice"] < 0:
                raise ValueError(
                    f"{record['annot_id']} has no label to learn from: choose another config.data.train_split."
                )
            return example

        return make

    target_remedy = "The right choice must be one of the choices, and differ from them in words of the vocabulary."

    def target_checker(self, config, train: bool) -> Callable[[dict], bool]:
        """Return the function that finds the right choice among the choices, or that none is known."""
        return functools.partial(is_answerable, subtask=config.subtask, tokenizer=tokenizer_of(config))

    def example_shapes(self, config) -> Shapes:
        """Return shapes and dtypes of an example of most batches."""
        layout = ChoiceLayout.of(config, usual_orientation(config))
        n, rows, size = layout.num_choices, layout.max_regions + 1, layout.roi_size
        aligned = dict(region_words=((n, rows, ALIGNED), np.int32)) if layout.align_regions else {}
        return sequence_shapes(n, layout.sequence_length, layout.regions) | image_shapes(layout) | aligned | dict(
            region_positions=((n, rows), np.int32),
            region_shapes=((rows, size, size), np.float32),
            region_classes=((rows,), np.int32),
            choice=((), np.int32),
            text_cut=((), bool),
        )

    def active_losses(self, config, step: int) -> tuple[str, ...]:
        """Return the losses; objects are not classified without the image."""
        return ("choice", "object") if config.losses.object and not config.blind else ("choice",)

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of each loss."""
        return {"choice": 1.0, "object": config.losses.object}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the number of questions, and of regions in all sequences."""
        targets = {"choice": batch.targets.choice >= 0, "object": objects_of(batch)}
        return {name: jnp.maximum(targets[name].sum().astype(jnp.float32), 1.0) for name in names}

    def loss_sums(self, model: ChoiceModel, batch: Batch, key, config, names):
        """Return the summed losses and the training accuracies."""
        key_states, key_head = split_keys(key, 2)
        states = states_of(model, batch, config, key_states, objects="object" in names)
        logits, choice = model.choice_logits(states, key_head, batch.token_ids), batch.targets.choice
        sums = {"choice": counted(choice_losses(logits, choice, config.losses.choice), choice >= 0)[0]}
        metrics = {"choice_accuracy": counted(logits[..., -1].argmax(-1) == choice, choice >= 0)}
        if "object" in names:
            losses, hits = object_losses(model, states, batch)
            sums["object"] = counted(losses, objects_of(batch))[0]
            metrics["object_accuracy"] = counted(hits, objects_of(batch))
        return sums, metrics

    def score(self, model: ChoiceModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return losses and accuracies; `choice_accuracy_blind` is that of the same weights on the text alone."""
        classifies = "object" in self.active_losses(config, 0)
        states, choice = states_of(model, batch, config, objects=classifies), batch.targets.choice
        logits = model.choice_logits(states, token_ids=batch.token_ids)
        metrics = dict(
            choice_accuracy=counted(logits[..., -1].argmax(-1) == choice, choice >= 0),
            choice_loss=counted(choice_losses(logits, choice, config.losses.choice), choice >= 0),
            text_cut=counted(batch.targets.text_cut, batch.element_mask.any((1, 2))),
        )
        if not config.blind:
            text = model.encode(without_image(batch, model.vocab_size), None)
            blind = model.choice_logits(text, token_ids=batch.token_ids)
            metrics["choice_accuracy_blind"] = counted(blind[..., -1].argmax(-1) == choice, choice >= 0)
        if classifies:
            losses, hits = object_losses(model, states, batch)
            metrics["object_loss"] = counted(losses, objects_of(batch))
            metrics["object_accuracy"] = counted(hits, objects_of(batch))
        return metrics

    # --- Evaluation ---------------------------------------------------------------------------------

    def companions(self, config) -> dict:
        """Return the run of the other subtask, with the weights that `config.companion` names.

        Raises:
            ValueError: The weights are those of a workdir of the same subtask.
        """
        if not config.companion:
            return {}
        other = copy.deepcopy(config)
        other.subtask = SUBTASKS[1 - SUBTASKS.index(config.subtask)]
        about = Path(config.companion) / "config.json"
        if about.is_file() and read_json_object(about, "change config.companion").get("subtask") == config.subtask:
            raise ValueError(
                f"config.companion: {config.companion} is a run of {config.subtask}; it must be one of {other.subtask}."
            )
        other.companion = ""
        other.init.update(dict(bert="", resnet="", checkpoint=config.companion))
        return {other.subtask: other}

    def predict(self, model: ChoiceModel, batch: Batch, config) -> dict[str, Array]:
        """Return the scores of the choices, [b, 4].

        For QA2R without labels they are [b, 16]: the rationales with answer 0, with answer 1, ...
        """
        logits = model.choice_logits(states_of(model, batch, config), token_ids=batch.token_ids)
        return dict(logits=logits[..., -1])

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write SPLIT_SUBTASK.csv; with a companion, write SPLIT.csv (leaderboard), return the joint accuracy.

        User-supplied data have SPLIT.jsonl and SPLIT.csv.
        """
        split = config.data.eval_split
        records = Split(config, split).texts
        rows = {name or config.subtask: table for name, table in predictions.items()}
        index = rows[config.subtask]["index"]
        if any(not np.array_equal(table["index"], index) for table in rows.values()):
            raise ValueError("The run and its companion were not evaluated on the same questions.")
        texts = [as_question(records[int(number)]) for number in index]
        order = np.argsort([text["index"] for text in texts], kind="stable")  # as in the file, orientations mixed
        texts = [texts[i] for i in order]
        logits = {name: np.asarray(table["logits"])[order] for name, table in rows.items()}
        name = split if len(logits) == len(SUBTASKS) else f"{split}_{config.subtask}"
        number = config.data.get("num_choices", 4)
        if "num_choices" in config.data:
            write_own(directory, split, own_rows(texts, logits[config.subtask]), {str(k): k for k in range(number)})
            return {}
        tables = {subtask: probabilities(scores, number) for subtask, scores in logits.items()}
        write_table(directory / f"{name}.csv", [text["annot_id"] for text in texts], tables)
        fields = {"q2a": "answer_label", "qa2r": "rationale_label"}
        labels = {subtask: np.array([text[field] for text in texts]) for subtask, field in fields.items()}
        if len(logits) < len(SUBTASKS) or any((values < 0).any() for values in labels.values()):
            return {}
        return accuracies(logits, labels)

    metric_labels = {
        "choice_accuracy": "questions of which the right choice was found",
        "choice_loss": "loss of the choice",
        "object_accuracy": "objects classified right",
        "object_loss": "loss of the objects",
        "text_cut": "share of texts that were cut to the length of the sequence",
    }
    prompt = '--question "what is [1] doing?" --choices "[1] is eating" "[1] is asleep"'

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        if "num_choices" in config.data:
            return "Choice of texts"
        title = {"q2a": "question to answer", "qa2r": "question and answer to rationale"}[config.subtask]
        return f"Visual commonsense reasoning: {title}"

    def card(self, record: dict, shown: dict, row: dict, config) -> Card | None:
        """Return the card of a question with the probability of each choice; None without a label."""
        record = as_question(record)
        if record["answer_label"] < 0 or (record["rationale_label"] < 0 and config.subtask == "qa2r"):
            return None
        names = object_names(record["objects"], first_name(record["annot_id"]))
        names = [f"{name} {region}" for region, name in enumerate(names, 1)]
        asked, choices, label = record["question"], record["answers"], int(record["answer_label"])
        question = readable(asked, names)
        if config.subtask == "qa2r":
            question += f" {readable(choices[label], names)}"
            choices, label = record["rationales"], int(record["rationale_label"])
        chances = probabilities(row["logits"][None], len(choices))[0]
        ranked = np.argsort(-chances)
        answers = [RankedAnswer(readable(choices[i], names), float(chances[i]), float(i == label)) for i in ranked]
        labels = ["", *names][: len(shown["boxes"])]
        return Card(question=question, answers=answers, box_labels=labels, **shown)

    # --- Weights ------------------------------------------------------------------------------------

    official_names = OWN_NAMES
    family_names = FAMILY_NAMES
    official_heads = ("final_mlp.", "cnn_loss_reg.", "choice_mlp.")
    official_prefix = "vlbert._module."
    starts_from = {"vlbert.mvrc_head.transform.": "cnn_loss_reg.0."}
    segments_from = {1: 0}  # `SEGMB_INIT` of the official code
    family_segments_from = {"uniter": {2: 0, 3: 0}}
    defaults = {
        "subtask": "q2a",
        "data.max_regions": 59,
        "data.sequence_length": 127,
        "data.text_length": 64,
        "data.image_scale": (600, 1200),
        "losses.choice": "sigmoid",
        "losses.object": 1.0,
    }

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights for VCR: a score per choice, or the classes of the objects."""
        return bool({"final_mlp.1.weight", "choice_mlp.3.weight", "cnn_loss_reg.2.weight"} & names)

    def config_from_weights(self, shapes) -> dict:
        """Return the head and the number of object classes; the pooler is initialized where the source has none."""
        return fields_of_own(shapes)

    def owns_family(self, architecture: str, shapes) -> bool:
        """Return whether a sibling has a head over choices; that of 12-in-1 was trained for retrieval."""
        return is_of_sibling(architecture, shapes)

    def config_from_family(self, architecture: str, shapes) -> dict:
        """Return the head and the arrangement of the texts; no sibling classifies objects while it chooses."""
        return fields_of_sibling(architecture, shapes)

    # --- Answers to a user --------------------------------------------------------------------------

    method = "choose"
    takes_choices = True

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of a question with its choices.

        [1] in a text names the first region, [1,2] two of them. Regions are whole boxes, without a
        shape. Sequences are filled up to 2, 4, 8 or 16, so that few programs are compiled.
        """
        count = next((n for n in CHOICE_COUNTS if n >= len(choices)), len(choices))
        layout = ChoiceLayout.of(config, orientation_of(record))
        layout = dataclasses.replace(layout, subtask="q2a", num_choices=count)
        filled = [*choices, *[""] * (count - len(choices))]
        asked = record | record_of_text(text, filled, record["labels"])
        return choice_example(asked, False, tokenizer_of(config), layout)

    def plain_text(self, text: str) -> str:
        """Return a text without the names of regions, such as [1]."""
        return REGION.sub(" ", text)

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Answer]:
        """Return the choices in the order given; their probabilities sum to 1."""
        chances = jax.device_get(jax.nn.softmax(rows["logits"][0, : len(choices)]))
        return [Answer(choice, float(p)) for choice, p in zip(choices, chances, strict=True)]

    def describe(self, answers: list[Answer]) -> dict:
        """Return the choices as plain values, the most probable first."""
        return {"answers": [answer_fields(a) for a in sorted(answers, key=lambda a: -a.probability)]}

    def lines(self, described) -> list[str]:
        """Return the choices in one line."""
        return [answer_line(described["answers"])]
