"""Pre-training: masked words with visual clues, masked regions with linguistic clues, and optional further losses."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array

from vlbert_jax.batch import Batch, Example
from vlbert_jax.data.examples import orientation_of
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.architectures import VLBERT, Architecture
from vlbert_jax.tasks.answer_lists import LXMERT_ANSWERS
from vlbert_jax.tasks.answers import Answer, answer_fields, answer_line
from vlbert_jax.tasks.base import Task, Updates
from vlbert_jax.tasks.layouts import trunk_options
from vlbert_jax.tasks.pretrain import aligned, batches, losses, probe, probe_results, report, scores
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, fill_example
from vlbert_jax.tasks.pretrain.model import PretrainingModel
from vlbert_jax.tasks.pretrain.objectives import is_unused, losses_of, numbers_of_updates, objective_at, shares
from vlbert_jax.tasks.pretrain.predict import guess_words
from vlbert_jax.tasks.pretrain.targets import LOSSES, VISUAL_LOSSES, PretrainTargets


class Filled(NamedTuple):
    """The most probable words for one [MASK], the best first."""

    words: list[Answer]
    blind: list[Answer]  # without the image


def _check_streams(config, architecture: Architecture, mrc: bool, regression: bool, visual: list[str]) -> None:
    """Raise ValueError for losses that the arrangement of the model does not have."""
    if architecture.streams == 1 and visual:
        raise ValueError(
            f"config.losses.{visual[0]} is True, but {architecture.name} has no such head: set it to False, or choose "
            "an architecture of two streams (lxmert, vilbert)."
        )
    if architecture.streams == 2 and config.losses.get("transport", 0.0):
        raise ValueError(
            f"config.losses.transport moves words to regions of one sequence; {architecture.name} has two streams: set "
            "it to 0."
        )
    if architecture.streams == 2 and mrc and regression:
        raise ValueError(
            f"{architecture.name} predicts the classes of hidden regions or their features: set config.losses.mrc or "
            "config.losses.regression to False."
        )
    if "features" in visual and config.data.hide_pixels:
        raise ValueError(
            "config.losses.features predicts the features of hidden regions, so these must be replaced, not their "
            "pixels: set config.data.hide_pixels=False."
        )


class PretrainTask(Task):
    """Pre-training on captions with images, mixed 1:1 with text alone."""

    name = "pretrain"
    targets = PretrainTargets

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> PretrainingModel:
        """Return the model of a config; see configs/pretrain.py for the fields."""
        if config.opening.steps and not config.losses.region:
            raise ValueError("config.opening.steps trains the region head alone; set config.losses.region=1.0 as well.")
        encoder, region_head = trunk_options(config)
        architecture, hides_pixels = region_head.architecture, config.data.hide_pixels
        mrc = config.losses.get("mrc", True)  # configs that were read from weights have no such field
        if mrc and architecture.hidden == "none" and not hides_pixels:
            raise ValueError(
                f"config.losses.mrc is True, but {architecture.name} has nothing that replaces the feature of a hidden "
                "region; set config.losses.mrc=False."
            )
        regression = config.losses.get("regression", False)
        if regression and (hides_pixels or architecture.hidden == "none"):
            raise ValueError(
                "config.losses.regression predicts the features of hidden regions, so these must be replaced, not "
                "their pixels: set config.data.hide_pixels=False and an architecture that hides features (vlbert, "
                "uniter)."
            )
        if config.losses.get("transport", 0.0) and not config.losses.relationship:
            raise ValueError("config.losses.transport compares pairs: set config.losses.relationship=True as well.")
        visual = [name for name in VISUAL_LOSSES if config.losses.get(name, False)]
        if shares(config) and (others := [*visual, *["answers"] * config.losses.get("answers", False)]):
            raise ValueError(
                f"config.losses.{others[0]} is in no objective of config.losses.ratios: set one of both to False or 0."
            )
        _check_streams(config, architecture, mrc, regression, visual)
        return PretrainingModel(
            encoder,
            dataclasses.replace(region_head, hidden_vector=not hides_pixels and architecture.hidden != "none"),
            config.model.num_region_classes,
            mrc=mrc or architecture.name == VLBERT.name,  # VL-BERT's weights have that head in any case
            relationship=config.losses.relationship,
            relationship_classes=config.model.get("relationship_classes", 2),
            region_classifier=config.losses.region > 0,
            regression=regression,
            num_attributes=config.model.num_attributes if visual else 0,
            num_answers=config.model.num_answers if config.losses.get("answers", False) else 0,
            rngs=rngs,
        )

    def train_batches(self, config, start_step: int, process_index: int, process_count: int) -> Iterator[Batch]:
        """Iterate without end over this process's part of global batches start_step, start_step + 1, ..."""
        return batches.train_batches(config, start_step, process_index, process_count)

    def eval_batches(self, config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return this process's part of the captions of the evaluation split, and of its text if it is mixed in."""
        return batches.eval_batches(config, process_index, process_count)

    def batch_shapes(self, config) -> Batch:
        """Return the global batch of an update as shapes alone; this needs no data."""
        return batches.batch_shapes(config)

    def is_idle(self, path: tuple, config, names: tuple[str, ...]) -> bool:
        """Return whether a phase leaves a parameter fixed: all but the region head, or the region head."""
        of_region_head = path[0] == "region_classifier" or (path[0] == "fast_rcnn" and path[1] in ("backbone", "c5"))
        if set(names) == {"region"}:
            return not of_region_head
        if is_unused(path, config, names):
            return True
        return of_region_head and config.losses.region > 0 and "region" not in names

    def active_losses(self, config, step: int) -> tuple[str, ...]:
        """Return the names of the losses that count at `step`.

        A run from scratch may start with a phase that trains the region head alone, on its auxiliary
        loss, and then keep it fixed for a while; afterwards everything is trained.
        """
        if step < config.opening.steps:
            return ("region",)
        return self._active(config, step, objective_at(config, step))

    def _active(self, config, step: int, objective: str) -> tuple[str, ...]:
        """Return the losses of an update after the opening with this objective; "" = all."""
        chosen = config.losses
        on = dict(
            mlm_caption=chosen.mlm,
            mlm_text=chosen.mlm and chosen.text_only,
            mrc=chosen.mrc,
            relationship=chosen.relationship,
            region=chosen.region > 0 and step >= chosen.region_fixed_until,
            regression=chosen.get("regression", False),
            transport=chosen.get("transport", 0.0) > 0,
            **{name: chosen.get(name, False) for name in (*VISUAL_LOSSES, "answers")},
        )
        return losses_of(objective, tuple(name for name in LOSSES if on[name]))

    def alternates(self, config) -> bool:
        """Return whether each update trains one objective."""
        return bool(shares(config))

    def updates(self, config) -> dict[str, Updates]:
        """Return the largest updates of each objective, where each update trains one."""
        numbers, last = numbers_of_updates(config), config.total_steps - 1
        batch = self.batch_shapes(config)
        found = {name: Updates(batch, self._active(config, last, name), number) for name, number in numbers.items()}
        return found or super().updates(config)

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weights: 1 as in the official code, except for region classification and optimal transport."""
        given = dict(region=config.losses.region, transport=config.losses.get("transport", 0.0))
        return {name: given.get(name, 1.0) for name in LOSSES}

    def loss_counts(self, batch: Batch, config, names):
        """Return what the sum of each loss is divided by."""
        return losses.loss_counts(batch, config, names)

    def loss_sums(self, model: PretrainingModel, batch: Batch, key, config, names):
        """Return the summed losses and the training accuracies."""
        return losses.loss_sums(model, batch, key, config, names)

    def score(self, model: PretrainingModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return losses and accuracies of an evaluation batch, each next to its blind baseline, as (sum, count)."""
        return scores.score(model, batch, config)

    # --- Probes -------------------------------------------------------------------------------------

    def probe_batches(self, config, process_index: int, process_count: int) -> Iterator[Batch]:
        """Return the captions of the evaluation split with what is removed of them."""
        return aligned.probe_batches(config, process_index, process_count)

    def probe(self, model: PretrainingModel, batch: Batch, config) -> dict:
        """Return how well each modality is predicted from less of the other, and where heads look."""
        return probe.probe(model, batch, config)

    def conclude_probe(self, directory, about, sums, shown, config) -> list[str]:
        """Write probes.json and probes.svg, and return the table."""
        return probe_results.conclude(directory, about, sums, shown, config)

    # --- Report -------------------------------------------------------------------------------------

    metric_labels = {
        "mlm_caption_accuracy": "masked words of captions, read with the image",
        "mlm_caption_loss": "loss of masked words of captions",
        "mlm_text_accuracy": "masked words of text alone",
        "mlm_text_loss": "loss of masked words of text alone",
        "visual_word_accuracy": "masked words that only the image determines",
        "objects": "objects in the image:",
        "mrc_accuracy": "hidden regions classified from the caption",
        "mrc_loss": "loss of hidden regions",
        "region_accuracy": "visible regions classified by the region head",
        "region_loss": "loss of visible regions (region head)",
        "relationship_accuracy": "whether caption and image belong together",
        "answers_accuracy": "questions among the captions",
        "answers_loss": "loss of the answers to these questions",
        "relationship_loss": "loss of caption and image belonging together",
        "regression_loss": "loss of the features of hidden regions",
        "transport_loss": "loss of the alignment of words and regions",
    }
    prompt = '--caption "a [MASK] on the left"'

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return "Pre-training"

    def report_batches(self, config) -> list[Batch]:
        """Return the first batch of captions of each orientation; none where the images are not stored."""
        return report.report_batches(config)

    def report_rows(self, model: PretrainingModel, batch: Batch, config) -> dict:
        """Return guesses of masked words and hidden regions, with and without the other modality."""
        return report.report_rows(model, batch, config)

    def report_examples(self, shown: list[tuple[Batch, dict]], config, scores):
        """Return images with guesses of masked words and hidden regions."""
        return report.report_examples(shown, config, scores)

    def next_commands(self, config, workdir: str) -> list[tuple[str, str]]:
        """Return the commands of fine-tuning too."""
        recipe = "vqa" if config.data.embedded else "RECIPE"
        tune = f"python -m vlbert_jax.main --config={recipe} --config.init.checkpoint={workdir}"
        what = "Fine-tune it (python -m vlbert_jax.main --list prints the recipes):"
        return [(what, tune), *super().next_commands(config, workdir)]

    # --- Weights ------------------------------------------------------------------------------------

    official_names = {
        "mlm_head/transform": "vlbert.mlm_head.predictions.transform.dense",
        "mlm_head/norm": "vlbert.mlm_head.predictions.transform.LayerNorm",
        "mrc_head/transform": "vlbert.mvrc_head.transform.dense",
        "mrc_head/norm": "vlbert.mvrc_head.transform.LayerNorm",  # where the architecture has it
        "mrc_head/classes": "vlbert.mvrc_head.region_cls_pred",
        "relationship_head": "vlbert.relationsip_head.caption_image_relationship",  # the spelling of the official code
        "question_head/transform": "question_head.logit_fc.0",  # names of LXMERT; VL-BERT has no such head
        "question_head/norm": "question_head.logit_fc.2",
        "question_head/classes": "question_head.logit_fc.3",
        "region_classifier": "image_feature_extractor.regularizing_predictor",
    }
    _of_bert = {
        "mlm_head/transform": "cls.predictions.transform.dense",
        "mlm_head/norm": "cls.predictions.transform.LayerNorm",
        "relationship_head": "cls.seq_relationship",
    }
    family_names = {
        "visualbert": _of_bert,
        "oscar": _of_bert,
        "vinvl": _of_bert,
        "b2t2": _of_bert,
        "b2t2_positions": _of_bert,
        "unicoder_vl": _of_bert,
        "uniter": _of_bert
        | {
            "relationship_head": "itm_output",
            "mrc_head/transform": "region_classifier.net.0",
            "mrc_head/norm": "region_classifier.net.2",
            "mrc_head/classes": "region_classifier.net.3",
            "regression_head/transform": "feat_regress.net.0",
            "regression_head/norm": "feat_regress.net.2",
            "regression_head": "feat_regress",
        },
    }

    hugging_face = {"visualbert": "VisualBertForPreTraining"}

    def config_from_family(self, architecture: str, shapes) -> dict:
        """Return which heads there are, and the number of region classes."""
        if architecture in ("lxmert", "vilbert"):
            return _two_stream_fields(shapes)
        names = self.family_names.get(architecture, self._of_bert)
        classes = shapes.get(f"{names.get('mrc_head/classes', '')}.weight")
        matching = shapes.get(f"{names['relationship_head']}.weight")
        return {
            "losses.mrc": classes is not None,
            "losses.relationship": matching is not None,
            "model.relationship_classes": 2 if matching is None else matching[0],
            "losses.regression": f"{names.get('regression_head', '')}.bias" in shapes,
            "losses.text_only": False,
            "data.max_regions": 100,
            "data.sequence_length": 160,
            "model.num_region_classes": 1601 if classes is None else classes[0],
        }

    defaults = {
        "data.max_regions": 100,
        "data.sequence_length": 64,
        "data.flip_probability": 0.0,
        "data.mask_words": 0.15,
        "data.mask_regions": 0.15,
        "data.group_words": (),
        "data.text_min_words": 64,
        "data.max_mlm_targets": 24,
        "data.max_mrc_targets": 20,
        "losses.mlm": True,
        "losses.mrc": True,
        "losses.relationship": False,
        "losses.region": 0.0,
    }

    # --- Answers to a user --------------------------------------------------------------------------

    method = "fill"

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of a caption with one [MASK] or several."""
        tokenizer = tokenizer_of(config)
        asked = sum(tokenizer.words(text), []).count(tokenizer.mask_id)
        layout = CaptionLayout.of(config, orientation_of(record), train=False)
        example = fill_example(record | dict(caption=text), tokenizer, layout)
        if (room := int(example["mlm_mask"].sum())) < asked:
            raise ValueError(f"The sequence of the model holds {room} of the {asked} [MASK] in {text[:40]!r}...")
        return example

    def check_text(self, text: str, config) -> None:
        """Raise ValueError where a caption has no [MASK]."""
        tokenizer = tokenizer_of(config)
        if tokenizer.mask_id not in sum(tokenizer.words(text), []):
            raise ValueError(f"{text!r} has no [MASK] to fill.")

    def predict_text(self, model: PretrainingModel, batch: Batch, config) -> dict:
        """Return the most probable words for each [MASK], with and without the image."""
        return guess_words(model, batch, model.states(batch), config)

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Filled]:
        """Return the most probable words for each [MASK]."""
        backend = tokenizer_of(config).backend

        def words(name: str, i: int) -> list[Answer]:
            pairs = zip(*(array[0, 0, i] for array in rows[name]), strict=True)
            return [Answer(backend.id_to_token(int(number)), float(p)) for p, number in pairs]

        asked = int(np.sum(batch.targets.mlm_mask))
        return [Filled(words("words", i), words("words_blind", i)) for i in range(asked)]

    def describe(self, answers: list[Filled]) -> dict:
        """Return the words as plain values."""
        return {
            "masks": [
                {name: [answer_fields(word) for word in words] for name, words in mask._asdict().items()}
                for mask in answers
            ]
        }

    def lines(self, described) -> list[str]:
        """Return two lines per [MASK]: with and without the image."""
        kinds = {"words": "with the image", "blind": "without it"}
        return [f"{kind}:  {answer_line(mask[name])}" for mask in described["masks"] for name, kind in kinds.items()]


def _two_stream_fields(shapes) -> dict:
    """Return the config fields that the heads of LXMERT or ViLBERT determine (`PretrainTask.config_from_family`)."""

    def rows(module: str) -> int:
        return shapes.get(f"{module}.weight", (0,))[0]

    answers = rows("answer_head.logit_fc.3")
    objects, classes = rows("obj_predict_head.decoder_dict.obj"), rows("cls.imagePredictions.decoder")
    lxmert = "encoder.visn_fc.visn_fc.weight" in shapes
    return {
        "losses.mrc": bool(classes),
        "losses.relationship": bool(rows("cls.seq_relationship") or rows("cls.bi_seq_relationship")),
        "losses.text_only": False,
        **dict.fromkeys((f"losses.{name}" for name in VISUAL_LOSSES), bool(objects)),
        "model.num_region_classes": objects + 1 if objects else classes or 1601,
        "losses.answers": bool(answers),
        "model.num_answers": answers,
        "data.answers": LXMERT_ANSWERS.get(answers, ""),
        "data.answers_have_unknown": False,
        "model.num_attributes": rows("obj_predict_head.decoder_dict.attr"),
        "data.max_regions": 36 if lxmert else 100,
        "data.sequence_length": 64,
        "data.text_length": 20 if lxmert else 36,
    }
